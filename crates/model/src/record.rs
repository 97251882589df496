//! Records of the ledger: everything that people and Estoppel decide, in one total order.
//!
//! A record's body is JSON text that is hashed as it stands. What the bodies of a kind hold is
//! said beside the fold that reads them (`incident`, `playbook`, `evidence`, `killswitch`); the
//! ledger itself knows none of it, and a fold skips kinds that it does not know.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What a record is about, such as `order` or `incident.note`: lower-case words with dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordKind(std::borrow::Cow<'static, str>);

impl RecordKind {
    /// The kind of this name.
    pub const fn new(name: &'static str) -> Self {
        Self(std::borrow::Cow::Borrowed(name))
    }

    /// A kind that was read back.
    pub const fn from_stored(name: String) -> Self {
        Self(std::borrow::Cow::Owned(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A record before it has its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRecord {
    /// What it is about.
    pub kind: RecordKind,
    /// The idempotency key: of several records with one key only the first is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When it was made.
    pub at: Timestamp,
    /// JSON text.
    pub body: String,
}

impl NewRecord {
    /// A record with a body that is serialised here, once and for all.
    ///
    /// # Errors
    /// When the body cannot be written as JSON (a map with keys that are no texts).
    pub fn json(
        kind: RecordKind,
        key: Option<String>,
        at: Timestamp,
        body: &impl Serialize,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self { kind, key, at, body: serde_json::to_string(body)? })
    }
}

/// A record in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the one total order, counted from 0.
    pub seq: u64,
    /// What it is about.
    pub kind: RecordKind,
    /// Its idempotency key.
    pub key: Option<String>,
    /// When it was made, by the clock of the node that made it.
    pub at: Timestamp,
    /// JSON text, byte for byte as it was appended.
    pub body: String,
}

impl Record {
    /// Reads the body.
    ///
    /// # Errors
    /// When it is not what the caller's kind holds.
    pub fn parse<'de, T: Deserialize<'de>>(&'de self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.body)
    }
}
