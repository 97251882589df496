//! The moments at which a process that ends leaves something half done.
//!
//! Production passes through them without a word; the crash tests end their server at each.

use std::{fmt, sync::Arc};

use estoppel_model::RecordKind;

/// A boundary of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment<'a> {
    /// An order is in force, and nothing of it is in the spool's file.
    OrderDue,
    /// It is in the file, which is synced.
    OrderKept,
    /// A record is about to be appended to the ledger.
    RecordDue(&'a RecordKind),
    /// It is durable.
    RecordKept(&'a RecordKind),
}

impl fmt::Display for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OrderDue => f.write_str("spool due"),
            Self::OrderKept => f.write_str("spool kept"),
            Self::RecordDue(kind) => write!(f, "{kind} due"),
            Self::RecordKept(kind) => write!(f, "{kind} kept"),
        }
    }
}

/// Learns of each moment, on the thread that comes to it.
pub type AtMoment = Arc<dyn Fn(Moment<'_>) + Send + Sync>;
