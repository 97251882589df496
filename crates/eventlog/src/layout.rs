//! Which files hold the log now: sealed segments, then write-ahead segments, without a gap or an
//! overlap of sequence numbers.
//!
//! A [`Snapshot`] of it goes with each query: the reader sees exactly the events that were durable
//! when it was taken, each once, whatever is sealed meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use estoppel_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{row::EventTable, wal::Segment};

/// Version of the manifests that this code writes.
pub(crate) const SEAL_VERSION: u32 = 1;

/// The manifest of a sealed segment: which events it holds, and what its files must hash to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    pub(crate) version: u32,
    /// Sequence number of the first event.
    pub first_seq: u64,
    /// One more than that of the last.
    pub next_seq: u64,
    /// How many events it holds.
    pub events: u64,
    /// How many could not be read back when it was sealed. Their bytes are in the quarantine.
    pub lost: u64,
    /// RFC 6962 root over the events' bytes in their order, in hex.
    pub merkle_root: String,
    pub(crate) tables: Vec<SealedTable>,
    pub(crate) ids: SealedFile,
    /// When it was sealed.
    pub sealed_at: Timestamp,
}

/// A file of a sealed segment, by name within the folder of segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SealedFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// The rows of one table in a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SealedTable {
    pub(crate) table: EventTable,
    pub(crate) file: SealedFile,
    pub(crate) rows: u64,
    pub(crate) earliest: Timestamp,
    pub(crate) latest: Timestamp,
}

impl Seal {
    pub(crate) fn file_name(&self) -> String {
        format!("{}.json", stem(self.first_seq, self.next_seq))
    }
}

/// What the files of a sealed segment are called before the dot.
pub(crate) fn stem(first_seq: u64, next_seq: u64) -> String {
    format!("{first_seq:020}-{next_seq:020}")
}

/// What a reader reads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) sealed: Vec<Arc<Seal>>,
    pub(crate) wal: Vec<Segment>,
    /// Events that are known to be lost in segments that are gone altogether.
    pub(crate) lost: u64,
}

/// The layout, shared by the writer, the sealer and those who query.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedLayout(Arc<Mutex<Snapshot>>);

impl SharedLayout {
    pub(crate) fn new(layout: Snapshot) -> Self {
        Self(Arc::new(Mutex::new(layout)))
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Takes in that the active segment has grown, or that a new one began.
    pub(crate) fn advance(&self, active: &Segment) {
        let mut layout = self.lock();
        match layout.wal.last_mut() {
            Some(last) if last.first_seq == active.first_seq => last.clone_from(active),
            _ => layout.wal.push(active.clone()),
        }
    }

    /// Puts a sealed segment in the place of the write-ahead segments that it holds.
    pub(crate) fn seal(&self, seal: Arc<Seal>) {
        let mut layout = self.lock();
        layout.wal.retain(|segment| segment.first_seq >= seal.next_seq);
        layout.sealed.push(seal);
    }

    /// Bytes of write-ahead log, and how many segments are sealed.
    pub(crate) fn size(&self) -> (u64, usize) {
        let layout = self.lock();
        (layout.wal.iter().map(|segment| segment.end).sum(), layout.sealed.len())
    }
}
