//! What can be wrong with a bundle.

use std::io;

use crate::{Digest, ManifestError, Signatory};

/// Why a file is no whole bundle, or none can be made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read or written.
    #[error("the bundle cannot be read or written")]
    Io(#[from] io::Error),
    /// Something cannot be written as JSON.
    #[error("the bundle's list cannot be written")]
    Json(#[source] serde_json::Error),
    /// It ends too early.
    #[error("{file} is cut off: the bundle ends before it should")]
    CutOff {
        /// Where.
        file: String,
    },
    /// An entry is not the one that comes next.
    #[error("{file} is not where it should be: an entry was changed, removed, moved or put in")]
    Entry {
        /// What should be there.
        file: String,
    },
    /// An entry is larger than any of its name.
    #[error("{file} has {bytes} bytes: at most {bytes_max}")]
    TooLarge {
        /// Which.
        file: String,
        /// How many it has.
        bytes: u64,
        /// How many it may have.
        bytes_max: u64,
    },
    /// The envelope is not one of a bundle.
    #[error("bundle.dsse.json is not a bundle's envelope: {why}")]
    Envelope {
        /// Why not.
        why: String,
    },
    /// The envelope is not signed by the key that it names.
    #[error("bundle.dsse.json is not signed by key {key}: it was changed")]
    Signature {
        /// The key.
        key: Box<Signatory>,
    },
    /// The signed list is not one of a bundle.
    #[error("the bundle's signed list is wrong: {why}")]
    Statement {
        /// Why.
        why: String,
    },
    /// A content is not what the list says.
    #[error("{file} was changed: its SHA-256 is {found}, not {expected}")]
    Content {
        /// Which.
        file: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Bytes that belong to nothing are not zero.
    #[error("the padding behind {file} was changed")]
    Padding {
        /// Behind what.
        file: String,
    },
    /// Something follows the end.
    #[error("something follows the end of the bundle")]
    Longer,
    /// A manifest cannot be read.
    #[error("{file}: {source}")]
    Manifest {
        /// Which.
        file: String,
        /// Why not.
        source: ManifestError,
    },
    /// The custody records are wrong.
    #[error("custody.jsonl, line {line}: {why}")]
    Custody {
        /// Which, counted from 1.
        line: usize,
        /// Why.
        why: String,
    },
}

impl BundleError {
    pub(super) fn statement(why: impl Into<String>) -> Self {
        Self::Statement { why: why.into() }
    }
}
