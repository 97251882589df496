//! What can go wrong with the ledger, and which of it ends appending for good.

use std::{io, path::PathBuf, sync::Arc};

use rusqlite::{ErrorCode, ffi};

use crate::{CheckpointError, Damage};

/// Longest kind of a record, in bytes.
pub const KIND_BYTES_MAX: usize = 64;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest body of a record, in bytes.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why the ledger did not do what was asked. Cheap to clone: a whole group shares one failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// Another process, or another [`crate::Ledger`], has the folder open.
    #[error(
        "ledger: {dir} is in use by another process: stop that one, or give another data folder"
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// A file of the ledger's folder could not be used.
    #[error("ledger: cannot {action} {path}")]
    File {
        /// What was tried, such as `create`.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// There was no room. Nothing of the group was kept; appends work again once there is space.
    #[error("ledger: disk full: nothing was kept; free space under the data folder and try again")]
    DiskFull,
    /// SQLite could not do something that may be tried again.
    #[error("ledger: cannot {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: Arc<rusqlite::Error>,
    },
    /// Writing or syncing failed earlier, and what is on the disk is not known. An fsync that
    /// failed is never retried: the kernel may have dropped what it could not write.
    #[error(
        "ledger: no longer writable after: {cause}. Check the disk, then restart: it recovers what \
         was acknowledged"
    )]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// More is waiting to be written than the ledger takes.
    #[error("ledger: {waiting} appends are waiting for the disk: try again later")]
    Overloaded {
        /// How many.
        waiting: usize,
    },
    /// The ledger was closed before the append was written. It was not kept.
    #[error("ledger: closed")]
    Closed,
    /// The system gave no random bytes for a salt.
    #[error("ledger: no random bytes: {reason}")]
    Random {
        /// Why not.
        reason: String,
    },
    /// The record breaks a bound.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The ledger belongs to another key.
    #[error(
        "ledger: {dir} was made with another signing key: restore that key, or start with an empty \
         data folder"
    )]
    OtherKey {
        /// The folder.
        dir: PathBuf,
    },
    /// The file is no ledger, or one of a newer Estoppel.
    #[error("ledger: {path} is not a ledger of format {known}: {found}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that this version writes.
        known: i64,
        /// What the file is instead.
        found: String,
    },
    /// What is stored contradicts itself.
    #[error("ledger: damaged: {0}; `estoppel ledger verify` lists all damage")]
    Damaged(Box<Damage>),
    /// A checkpoint is not one of this ledger.
    #[error("ledger: the checkpoint cannot be used: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A proof was asked for about records that do not exist.
    #[error("ledger: no proof of {what}: the ledger has {size} records")]
    NoSuchRecord {
        /// What was asked for.
        what: String,
        /// How many records there are.
        size: u64,
    },
    /// A snapshot's name becomes a file's name.
    #[error("ledger: `{name}` is no snapshot name: use 1 to 64 of a-z, 0-9, _ and -")]
    SnapshotName {
        /// The name, as far as it is plain ASCII.
        name: String,
    },
}

/// Why a record is not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// Kinds are lower-case words with dots.
    #[error(
        "record kind {kind}: use 1 to {KIND_BYTES_MAX} of a-z, 0-9, _ and dots, such as \
         `incident.note`"
    )]
    Kind {
        /// The kind, shortened and quoted.
        kind: String,
    },
    /// A key is short and shows what it is.
    #[error("record key {key}: use 1 to {KEY_BYTES_MAX} bytes without control characters")]
    Key {
        /// The key, shortened and quoted.
        key: String,
    },
    /// A body has a largest size.
    #[error("record body of {bytes} bytes: at most {BODY_BYTES_MAX}")]
    BodyTooLarge {
        /// How many.
        bytes: usize,
    },
    /// A body is JSON.
    #[error("record body is not JSON")]
    BodyNotJson {
        /// Why not.
        source: Arc<serde_json::Error>,
    },
}

impl LedgerError {
    /// For `map_err`: names what was tried.
    pub(crate) fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| {
            if is_disk_full(&source) {
                return Self::DiskFull;
            }
            Self::Database { action, source: Arc::new(source) }
        }
    }

    /// For `map_err`: names what was tried with which file.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source: Arc::new(source) }
    }

    pub(crate) fn damaged(damage: Damage) -> Self {
        Self::Damaged(Box::new(damage))
    }

    /// Whether writing must end: what is on the disk is no longer known. The causes that leave it
    /// known are named, all others are taken for the worst.
    pub(crate) fn poisons(&self) -> bool {
        let Self::Database { source, .. } = self else { return matches!(self, Self::Damaged(_)) };
        let Some(code) = source.sqlite_error_code() else { return true };
        !matches!(
            code,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory
        )
    }
}

/// Whether a failure is one of space. SQLite has a code of its own for the file that it maps.
fn is_disk_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::DiskFull || error.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}
