//! Detectors over the event stream, and what may follow from what they see.
//!
//! [`Detectors::observe`] takes one event after the other and returns what is wrong with it, once
//! each. [`Responses::respond`] folds detections to what is to be done: report, ask a person, or
//! act. Both are state machines of bounded memory: what an attacker sends a million of is
//! forgotten in the order of its age, never kept without end.
//!
//! Invariants:
//! - *bounded automation*: what follows by itself reaches a session, a task or a plugin and never
//!   more, and only so often an hour.
//! - A detection's text is our own words, with foreign names shortened and made inert: it can be
//!   shown anywhere.
//! - An event that says nothing of who acted, or is late, or is repeated, is not an error.
//!
//! This crate does no input or output and reads no clock: the events' times of arrival drive it.

mod detection;
mod detectors;
mod egress;
mod field;
mod injection;
mod policy;
mod recent;
mod response;
mod runaway;

pub use detection::{
    Detection, DetectionId, EGRESS_LEARNED, EGRESS_UNLISTED, Family, INJECTION, Maturity, RUNAWAY,
    Rule,
};
pub use detectors::{Detectors, subject_of};
pub use egress::{Learned, Suggestion};
pub use injection::{Channel, Inspection, Reason, inspect};
pub use policy::{DetectPolicy, EgressMode};
pub use response::{Decision, HaltRate, Response, Responses, assess, halt_scope};
