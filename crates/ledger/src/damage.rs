//! What can be wrong with a stored ledger, each named so that a person can go and look.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::CheckpointError;

/// Which checkpoint contradicts what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The one in the database.
    Database,
    /// The file `checkpoint` beside it.
    File,
    /// The one that was given, kept elsewhere.
    Given,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "the checkpoint in the database",
            Self::File => "the checkpoint file",
            Self::Given => "the given checkpoint",
        })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(tag = "damage", rename_all = "snake_case")]
pub enum Damage {
    /// Content and leaf of a record contradict each other.
    #[error("record {seq}: its body, kind, key, time, salt or leaf was changed")]
    Record {
        /// Where.
        seq: u64,
    },
    /// A record cannot be read as one.
    #[error("record {seq}: cannot be read: {reason}")]
    Unreadable {
        /// Where.
        seq: u64,
        /// What SQLite says.
        reason: String,
    },
    /// Records are gone, and others follow.
    #[error("records {first} to {last} are missing")]
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A record stands in the place of another.
    #[error("record {belongs} was moved: it stands at {at}")]
    Moved {
        /// Where it stands.
        at: u64,
        /// Where it was appended.
        belongs: u64,
    },
    /// A record stands twice.
    #[error("record {of} was copied: it stands again at {at}")]
    Copied {
        /// Where the copy stands.
        at: u64,
        /// Where the record belongs, and is.
        of: u64,
    },
    /// A row with a place that no ledger gives.
    #[error("a record stands at the impossible place {place}")]
    Foreign {
        /// The place.
        place: i64,
    },
    /// A stored node of the tree is missing, changed, or one too many.
    #[error(
        "the tree's node {index} over {} records is not what its records hash to",
        256_u128.saturating_pow(*level)
    )]
    Tile {
        /// Powers of 256 that it covers.
        level: u32,
        /// Counted from 0 on its level.
        index: u64,
    },
    /// The number of records is not the one that was signed.
    #[error("{}", size_text(*which, *expected, *found))]
    Size {
        /// Signed where.
        which: Which,
        /// How many were signed.
        expected: u64,
        /// How many are stored.
        found: u64,
    },
    /// The records up to a signed size hash to another root: some were rewritten with their leaves.
    #[error("the first {size} records were rewritten: {which} signs another root")]
    Root {
        /// Signed where.
        which: Which,
        /// How many records it covers.
        size: u64,
    },
    /// A checkpoint cannot be read, or is not this ledger's.
    #[error("{which}: {reason}")]
    Checkpoint {
        /// Which.
        which: Which,
        /// Why not.
        #[serde(serialize_with = "as_text")]
        reason: CheckpointError,
    },
    /// The ledger's public key is not one.
    #[error("the ledger's public key was changed")]
    Key,
    /// A table, index or trigger is not as the ledger makes it.
    #[error("the table or index {name} is not as the ledger makes it")]
    Schema {
        /// Its name, shortened and quoted.
        name: String,
    },
    /// The file's marks are not those of a ledger of this format.
    #[error(
        "the file does not say that it is a ledger: application {application}, format {format}"
    )]
    Format {
        /// SQLite's application id.
        application: i64,
        /// SQLite's user version.
        format: i64,
    },
    /// SQLite finds the file inconsistent.
    #[error("the database: {message}")]
    Database {
        /// What it says.
        message: String,
    },
}

fn size_text(which: Which, expected: u64, found: u64) -> String {
    if found < expected {
        format!("truncated: {which} signs {expected} records, {found} are stored")
    } else {
        format!("{which} signs {expected} records, {found} are stored: some were added unsigned")
    }
}

fn as_text<S: Serializer>(reason: &CheckpointError, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(reason)
}
