//! The event log: durable ingest of audit and network events, and SQL over them.
//!
//! The process that opens an [`EventLog`] owns the write-ahead log: [`EventLog::append`] answers
//! after the group that holds the events was synced (invariant *acknowledged-is-kept*). SQL runs in
//! a child process, the worker ([`worker::main`]), which has a memory limit, a low priority, no
//! network and no secrets: a query that panics, runs away or eats its memory ends the worker, never
//! the server. The worker reads the write-ahead log up to the length that each request names, so
//! what was acknowledged is visible to the next query; it also seals old parts to Parquet.
//!
//! The tables are `audit_log` and `network_log` with the columns of `model`'s events, then
//! `received_at` and `event_id`, and `allowlist`.
//!
//! What this crate does not do: it never changes or reorders what was accepted, it knows no
//! retention and no holds yet, and it answers for durability on this machine's disk only.

mod disk;
mod error;
mod layout;
mod log;
mod merkle;
mod protocol;
mod row;
mod sealer;
mod supervisor;
mod wal;
mod window;
pub mod worker;

pub use disk::{Disk, DiskFile, SystemDisk};
pub use error::{AppendError, OpenError, SqlError, SqlLimit};
pub use layout::Seal;
pub use log::{AppendReport, EventLog, OnSync, Options, Status, WorkerCommand};
pub use protocol::{Access, AllowedDestination, Column, Excess, Isolation, SqlLimits, Table};
pub use wal::{Damage, DamageKind};
