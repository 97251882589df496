//! An enforcer's side of the stream: connection, lease, order set, confirmations; and the uploader
//! of its events.
//!
//! [`Link`] drives [`estoppel_killswitch::enforcer::Enforcer`] over WebSockets. [`View`] is what
//! enforcement code asks, without lock, disk or network. An order is in force in every view before
//! anything else is done about it: before its confirmation, its event, its way to the disk.
//!
//! Invariants *lease*, *starting-always-does* and *confirmed* hold in `killswitch`; here it is that
//! nothing slow stands in their way: each task waits for one thing only.

mod cache;
mod config;
mod connection;
mod glass;
mod handle;
mod keys;
mod spool;
mod station;
mod tasks;
mod upload;
mod view;

pub use config::{LinkConfig, LinkError, OnLost, WorkInFlight};
pub use connection::reconnect_pause;
pub use estoppel_api::{Trust, TrustError};
pub use estoppel_killswitch::{Rate, TooSoon, breaker, canary_of, frame, reaches};
pub use handle::{Link, LinkEvent, LinkStatus, LocalHalt};
pub use spool::SpoolError;
pub use upload::{EventBuffer, UploadConfig, UploadError, UploadStatus, Uploader, WhenFull};
pub use view::{Refusal, View};
