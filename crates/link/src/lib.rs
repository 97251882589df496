//! An enforcer's side of the stream: connection, lease, order set, confirmations, spool.

mod config;
mod handle;
mod view;

pub use config::{LinkConfig, LinkError, OnLost};
pub use handle::{Link, LinkEvent, LinkStatus, LocalHalt};
pub use view::{Refusal, View};
