//! What the event log answered, with the questions: the report's other source beside the records.

use estoppel_model::{Timestamp, Untrusted};

use super::damage::Damage;

/// An answer with its question. A query that failed is stated in the report, not left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The query's text, so that anybody can ask again.
    pub query: String,
    /// What came back, or why nothing did.
    pub result: Result<T, String>,
}

/// Bytes between an incident's subject and one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationBytes {
    /// The destination, as the agent or the gateway named it.
    pub destination: Untrusted<String>,
    /// The port.
    pub port: Option<u16>,
    /// Whether the allowlist has it; absent when there is no list.
    pub listed: Option<bool>,
    /// How many flows.
    pub flows: u64,
    /// Bytes that went there.
    pub bytes_sent: u64,
    /// Bytes that came from there.
    pub bytes_received: u64,
    /// When the first flow was seen.
    pub first_at: Timestamp,
    /// When the last flow was seen.
    pub last_at: Timestamp,
}

/// What the incident's subject did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditSummary {
    /// How many steps.
    pub steps: u64,
    /// How often each tool was called, most often first.
    pub tools: Vec<(Untrusted<String>, u64)>,
}

/// What the report knows beside the records.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// When the queries ran.
    pub as_of: Timestamp,
    /// The ledger's last checkpoint.
    pub checkpoint: Option<String>,
    /// Q1: where data went to.
    pub destinations: Answer<Vec<DestinationBytes>>,
    /// Q2: what was done.
    pub audit: Answer<AuditSummary>,
    /// Of a runaway: what it cost.
    pub damage: Option<Damage>,
}
