//! What can go wrong, by what the caller can do about it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the event log `{}` is open in another process: end that one first", folder.display())]
    Locked {
        /// The log's folder.
        folder: PathBuf,
    },
    /// The file system refused.
    #[error("event log: `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn at(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Why events were not accepted. None of those of the call counts as accepted; it may be repeated
/// as a whole, since events that were written after all are known by their ids.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The disk is full. Later calls work again once there is room.
    #[error("event log: the disk is full: free some space; nothing that was accepted is lost")]
    Full,
    /// The file could not be made; a later call may work.
    #[error("event log: no new log file: {source}")]
    Unavailable {
        /// What the operating system says.
        source: Arc<io::Error>,
    },
    /// A write or sync failed; what the disk holds is unknown until the log is read back.
    #[error("event log: {reason}; nothing more is accepted until a restart reads the log back")]
    Poisoned {
        /// What failed.
        reason: Arc<str>,
    },
    /// An event could not be written as JSON.
    #[error("event log: an event cannot be written as JSON: {source}")]
    Encode {
        /// Why.
        source: Arc<serde_json::Error>,
    },
    /// The log is being closed.
    #[error("event log: it is being closed")]
    Closed,
}

/// The limits of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SqlLimit {
    /// Time on the clock.
    Time,
    /// Rows of the result.
    Rows,
    /// Bytes of the result.
    Bytes,
    /// Memory of the query.
    Memory,
    /// Bytes of the query's text.
    Text,
}

impl SqlLimit {
    const fn hint(self) -> &'static str {
        match self {
            Self::Time => "narrow the time range or filter by session_id, user_id or task_id",
            Self::Rows | Self::Bytes => "select fewer columns, add LIMIT or aggregate",
            Self::Memory => "sort, join or group fewer rows: filter first",
            Self::Text => "shorten the query",
        }
    }
}

/// Why a query has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SqlError {
    /// The query is wrong: syntax, an unknown name, a type.
    #[error("{message}")]
    Query {
        /// What is wrong. It can repeat text of the query.
        message: String,
    },
    /// The query asks for more than reading the tables.
    #[error(
        "{what} is not allowed: queries only read the tables audit_log, network_log, allowlist"
    )]
    Forbidden {
        /// What it asks for.
        what: String,
    },
    /// The query ran into one of its limits.
    #[error("the query went over its limit of {allowed}: {}", limit.hint())]
    Limit {
        /// Which.
        limit: SqlLimit,
        /// The limit, with its unit.
        allowed: String,
    },
    /// Too many queries wait already.
    #[error("too many queries are waiting: try again in a moment")]
    Busy,
    /// A sealed file is not the one that was sealed.
    #[error("sealed file `{file}` is damaged: {reason}; put it back from a backup or a replica")]
    Damaged {
        /// Its name in the folder of segments.
        file: String,
        /// How it differs.
        reason: String,
    },
    /// The worker is gone; the next query starts another.
    #[error("the query's worker process {reason}: the next query starts a new one")]
    Worker {
        /// How it ended.
        reason: String,
    },
    /// The engine failed.
    #[error("the query engine failed: {message}")]
    Engine {
        /// What it says.
        message: String,
    },
    /// The log is being closed.
    #[error("the event log is being closed")]
    Closed,
}
