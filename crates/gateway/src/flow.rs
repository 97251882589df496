//! Flows: one request or tunnel each, from its judgement to its last row.
//!
//! A flow is registered before the orders are asked, and both happen again at each write. So an
//! order is seen either by the flow that is starting or by the sweep that the order starts, and no
//! byte slips in between.

mod judge;
mod limits;
mod open;
mod rates;
mod registry;

pub(crate) use limits::Uncounted;
pub(crate) use open::{Cause, Flow, Upstream};
pub use registry::Totals;
pub(crate) use registry::{FlowGuard, Flows};
