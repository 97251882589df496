//! An enforcer's side of the stream: connection, lease, order set, confirmations, spool.

mod config;
mod handle;
mod spool;
mod upload;
mod view;

pub use config::{LinkConfig, LinkError, OnLost};
pub use estoppel_killswitch::frame;
pub use handle::{Link, LinkEvent, LinkStatus, LocalHalt};
pub use spool::SpoolError;
pub use upload::{EventBuffer, UploadConfig, UploadError, UploadStatus, Uploader, WhenFull};
pub use view::{Refusal, View};
