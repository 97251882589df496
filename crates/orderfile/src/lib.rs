//! The files in which orders outlast a restart: a server's spool and an enforcer's cache.
//!
//! Both are text, a line for each thing behind the CRC-32C of the line, and only appended to. What
//! was appended is on the disk when the call returns. They differ in what damage means: a server
//! starts with what it can read, since to refuse would be to stop nothing; an enforcer whose cache
//! is damaged lets nothing go until a server has answered.
//!
//! File operations go through [`Folder`], so that the simulation can put a disk beneath that fills
//! up, fails and forgets. Absent here: threads, queues, locks on folders; the server and the link
//! have those.

mod cache;
mod folder;
mod line;
mod spool;

pub use cache::{Found, OrderCache};
pub use folder::{AppendFile, Folder, RealFolder};
pub use spool::{AppendError, OrderSpool, Recovered, recover};
