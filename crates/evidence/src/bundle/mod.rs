//! Bundles: evidence of some captures in one file that proves itself, with or without Estoppel.
//!
//! The file is a plain tar archive; its first entry is a DSSE envelope over an in-toto statement
//! that lists every other entry with its SHA-256 and length. `docs/evidence-bundle.md` is the format
//! for others; `verify_bundle.py`, which each bundle carries, reads it with Python alone.
//!
//! Invariants:
//! - One bundle has one text: headers, padding and envelope are computed anew and compared. So each
//!   byte of the file is either hashed or expected, and there is no parser of archives that names,
//!   links or lengths of a stranger could lead astray.
//! - What is not in it is named in it: contents that the vault no longer has, and captures that
//!   were disposed of.
//! - Each custody event is signed, continues its chain, and comes as the ledger's record, salt
//!   included, so that its leaf can be computed and found among the ledger's.
//!
//! Not here: the ledger's tree and checkpoints ([`Bundle::leaves`] and [`Bundle::checkpoint`] are
//! handed out for whoever knows them), and where contents come from and go to.

mod archive;
mod envelope;
mod error;
mod read;
mod statement;
mod write;

use estoppel_model::{Record, RecordKind, Timestamp};
use serde::{Deserialize, Serialize};

pub use error::BundleError;
pub use read::{Bundle, read};
pub use statement::{Absent, BundledCapture, PREDICATE_TYPE, Predicate};
pub use write::{Contents, SealedBundle};

use crate::Digest;

/// The script that verifies a bundle with Python 3 and its standard library alone.
pub const SCRIPT: &str = include_str!("verify_bundle.py");
const README: &str = include_str!("README.txt");

/// Bytes of one leaf of the ledger's tree.
pub const LEAF_BYTES: usize = 32;
/// Most leaves of a bundle: larger ledgers are not exported.
pub const LEAVES_MAX: usize = 4 << 20;

const ENVELOPE_NAME: &str = "bundle.dsse.json";
const README_NAME: &str = "README.txt";
const SCRIPT_NAME: &str = "verify.py";
const CUSTODY_NAME: &str = "custody.jsonl";
const CHECKPOINT_NAME: &str = "ledger/checkpoint";
const LEAVES_NAME: &str = "ledger/leaves";
/// What stands before manifests and blobs, in this order.
const FIXED_NAMES: [&str; 5] =
    [README_NAME, SCRIPT_NAME, CUSTODY_NAME, CHECKPOINT_NAME, LEAVES_NAME];

fn manifest_name(digest: &Digest) -> String {
    format!("manifests/{digest}.json")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{digest}")
}

/// Most bytes of the entry of this name.
fn bytes_max(name: &str) -> u64 {
    const MIB: u64 = 1 << 20;
    match name {
        ENVELOPE_NAME | CUSTODY_NAME => 64 * MIB,
        README_NAME | SCRIPT_NAME => MIB,
        CHECKPOINT_NAME => 64 * 1024,
        LEAVES_NAME => (LEAVES_MAX * LEAF_BYTES) as u64,
        name if name.starts_with("manifests/") => 16 * MIB,
        _ => archive::BYTES_MAX,
    }
}

/// A record of the ledger as a bundle discloses it: one line of `custody.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledRecord {
    /// Its place in the ledger.
    pub seq: u64,
    /// When it was made, in microseconds since 1970.
    pub at_us: i64,
    /// What it is about.
    pub kind: String,
    /// Its idempotency key.
    pub key: String,
    /// The salt of its leaf, lower-case hex.
    pub salt: String,
    /// Its body, byte for byte.
    pub body: String,
}

impl BundledRecord {
    /// A record with its salt.
    pub fn of(record: Record, salt: &[u8]) -> Self {
        Self {
            seq: record.seq,
            at_us: record.at.as_micros(),
            kind: record.kind.as_str().to_owned(),
            key: record.key.unwrap_or_default(),
            salt: hex::encode(salt),
            body: record.body,
        }
    }

    /// The record, and its salt; `None` when that is no hex.
    pub fn disclosed(&self) -> Option<(Record, Vec<u8>)> {
        let record = Record {
            seq: self.seq,
            kind: RecordKind::from_stored(self.kind.clone()),
            key: Some(self.key.clone()),
            at: Timestamp::from_micros(self.at_us),
            body: self.body.clone(),
        };
        Some((record, hex::decode(&self.salt).ok()?))
    }
}

#[cfg(test)]
mod tests;
