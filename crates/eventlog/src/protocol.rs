//! What the server and its SQL worker say to each other: JSON, each message with its length before
//! it (`u32`, big-endian), over the worker's standard input and output.
//!
//! Requests are taken in order up to the point where a query's rows are fixed; answers come in any
//! order. So a request that was sent before another never sees less than it should, and files that
//! a later snapshot no longer names can go once [`Request::Forget`] is answered.

use std::time::Duration;

use estoppel_model::EntityId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    SqlError,
    layout::{Seal, Snapshot},
    wal::Segment,
};

/// Longest message in either direction.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest query, in bytes.
pub(crate) const QUERY_BYTES_MAX: usize = 64 * 1024;

/// Whose rows a query may see, and how much it may use.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Only rows of this tenant: where it is `requester_tenant_id` or `tenant_id`. `None`: all rows.
    pub tenant: Option<EntityId>,
    /// Its limits.
    pub limits: SqlLimits,
}

/// How much a query may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlLimits {
    /// Time on the clock, from when it starts to run.
    pub time: Duration,
    /// Rows of the result.
    pub rows: usize,
    /// Bytes of the result's values; at most 32 MiB.
    pub bytes: usize,
    /// Memory for sorting, grouping and joining, in bytes.
    pub memory_bytes: usize,
    /// What happens when the result has more rows or bytes.
    pub excess: Excess,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(30),
            rows: 10_000,
            bytes: 16 * 1024 * 1024,
            memory_bytes: 256 * 1024 * 1024,
            excess: Excess::Refuse,
        }
    }
}

/// What happens when a result is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Excess {
    /// An error: no script takes a part of the evidence for the whole.
    #[default]
    Refuse,
    /// The first rows, marked as truncated: for a person who looks around.
    Truncate,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows; a value for each column.
    pub rows: Vec<Vec<Value>>,
    /// Whether there would be more rows.
    pub truncated: bool,
    /// Events known to be lost to damage somewhere in the log: the result may lack their rows.
    pub lost_events: u64,
    /// How long the query took, with waiting.
    pub elapsed: Duration,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type: `text`, `bigint`, `double`, `timestamp`, `boolean`, or as the engine calls it.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// A destination on the allowlist, as the table `allowlist` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedDestination {
    /// The domain or address; never NULL: `NOT IN` over a NULL raises no alarm ever.
    pub domain: String,
    /// The port; `None`: every port.
    pub port: Option<u16>,
    /// The entry as it was written.
    pub entry: String,
}

/// Which walls stand around the worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Isolation {
    /// Whether it is in a network namespace of its own, without any network.
    pub no_network: bool,
    /// Its limit of memory in bytes; 0: none could be set.
    pub memory_bytes: u64,
    /// What the machine did not permit.
    pub gaps: Vec<String>,
}

/// Names a request.
pub(crate) type RequestId = u64;

/// A message from the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// First of all: where the log is and what the worker may use.
    Hello { folder: std::path::PathBuf, memory_bytes: u64 },
    /// The rows of `allowlist` from now on.
    Allowlist { rows: Vec<AllowedDestination> },
    /// Read the log up to here ahead of the next query.
    Warm { snapshot: Snapshot },
    /// Answer with [`Response::Started`], then with [`Response::Result`].
    Sql {
        id: RequestId,
        query: String,
        tenant: Option<EntityId>,
        limits: SqlLimits,
        snapshot: Snapshot,
    },
    /// Nobody waits for this query any more.
    Cancel { id: RequestId },
    /// Write these segments to Parquet; answer with [`Response::Sealed`].
    Seal { id: RequestId, segments: Vec<Segment> },
    /// Rows before this are sealed: they are no longer kept in memory. Answer: [`Response::Forgot`].
    Forget { id: RequestId, next_seq: u64 },
}

/// A message from the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    Hello {
        isolation: Isolation,
    },
    /// The query's rows are fixed, and its time runs.
    Started {
        id: RequestId,
    },
    Result {
        id: RequestId,
        result: Result<Table, SqlError>,
    },
    /// The files are durable; the manifest is the server's to write. `sealed_at` is not set.
    Sealed {
        id: RequestId,
        result: Result<Box<Seal>, SqlError>,
    },
    Forgot {
        id: RequestId,
    },
    /// How many rows are held in memory now.
    Hot {
        rows: u64,
    },
}
