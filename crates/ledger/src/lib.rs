//! The ledger: everything that people and Estoppel decide, append-only, in one total order.
//!
//! Records are rows of an SQLite file and leaves of a Merkle tree ([`merkle`], RFC 6962; what a
//! leaf covers is said in `leaf.rs`). Each commit signs a [`Checkpoint`] over everything so far.
//!
//! Invariants:
//! - *acknowledged-is-kept*: [`Pending`] resolves after the fsync; what it acknowledged is there
//!   after kill -9 and power loss. A failed fsync ends appending until a restart.
//! - *tamper-evident*: [`verify`] finds and names each record that was changed, removed, moved or
//!   copied, and, given a checkpoint that was kept elsewhere, truncation and rewriting. Without
//!   one, truncation cannot be seen, and the report says so.
//! - One total order without gaps: seqs count from 0, and nobody sees a record that is not durable.
//! - Of records with one key, one is kept.
//!
//! The ledger reads no body: what records mean is the business of folds over them. It reads no
//! clock but to bound how old its exported checkpoint gets. It neither purges nor replicates yet;
//! salted leaves and proofs are what those will stand on.
//!
//! In the folder: `ledger.db` and SQLite's `-wal` and `-shm` beside it, `ledger.lock`, the newest
//! checkpoint as `checkpoint`, and `snapshots/`.

mod checkpoint;
mod copy;
mod damage;
mod error;
mod files;
mod leaf;
mod ledger;
pub mod merkle;
mod note;
mod pending;
mod snapshot;
mod store;
mod verify;
mod writer;

use std::{fmt, io, path::Path, sync::Arc};

pub use checkpoint::{Checkpoint, CheckpointError, Head, verifier_key};
pub use copy::copy;
pub use damage::{Damage, Which};
pub use error::{BODY_BYTES_MAX, KEY_BYTES_MAX, KIND_BYTES_MAX, LedgerError, RecordError};
pub use leaf::hash as leaf_of;
pub use ledger::Ledger;
pub use merkle::Hash;
pub use note::{NoteError, VerifierKey};
pub use pending::Pending;
pub use snapshot::{Doubt, Snapshot};
pub use verify::{Truncation, VerifyReport, verify};

/// How to open a ledger.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The disk to keep the database on; absent: the system's. Tests put a faulty one here.
    pub disk: Option<Arc<dyn Disk>>,
}

impl Options {
    fn vfs(&self) -> Option<&str> {
        self.disk.as_deref().map(Disk::vfs)
    }
}

/// What acknowledging rests on: the way to the database's files.
pub trait Disk: fmt::Debug + Send + Sync {
    /// The SQLite VFS, by name.
    fn vfs(&self) -> &str;

    /// Makes what was created in a folder durable.
    ///
    /// # Errors
    /// As the operating system reports.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// The record is durable, in this place.
    New {
        /// Its place.
        seq: u64,
    },
    /// A record with this key is durable already, and stays the only one.
    Existing {
        /// Its place.
        seq: u64,
        /// Whether kind and body are the same as those of the record that was appended now.
        same_body: bool,
    },
}

impl Appended {
    /// The place of the record that is kept.
    pub const fn seq(self) -> u64 {
        match self {
            Self::New { seq } | Self::Existing { seq, .. } => seq,
        }
    }
}

/// How a checkpoint that was kept elsewhere stands to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The ledger holds the same history, and perhaps more.
    Continues,
    /// The ledger lacks records that it once signed: an old copy was restored.
    RolledBack {
        /// How many.
        missing: u64,
    },
    /// The ledger signed another history up to there.
    Rewritten,
}

/// An error with its sources, for logs.
fn chain(error: &LedgerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
