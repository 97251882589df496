//! Events in, tables out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `POST /v1/events`: what was accepted is on disk when this is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IngestReport {
    /// Events that are kept now.
    pub accepted: usize,
    /// Of the accepted, how many had been kept before under the same id.
    pub duplicates: usize,
    /// Events that were refused, at most 100 of them; the others of the batch are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// How many were refused.
    pub rejected_count: usize,
}

/// One event that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rejected {
    /// Its place in the batch, counted from 0.
    pub index: usize,
    /// Why.
    pub error: String,
}

/// `POST /v1/sql`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlRequest {
    /// One SELECT over `audit_log`, `network_log` and `allowlist`.
    pub query: String,
}

/// A query's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SqlTable {
    /// The columns.
    pub columns: Vec<SqlColumn>,
    /// The rows, each with a value for each column. Times are RFC 3339 texts in UTC.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// Whether there were more rows than the limit.
    pub truncated: bool,
    /// How long it took.
    pub elapsed_ms: f64,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SqlColumn {
    /// Its name.
    pub name: String,
    /// Its type, as the engine names it.
    #[serde(rename = "type")]
    pub kind: String,
}

/// `GET` and `PUT /v1/allowlist`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Allowlist {
    /// Entries: `example.com`, `*.example.com`, each with an optional `:PORT`, or `ADDRESS:PORT`.
    /// `null`: no allowlist is set and egress is learned.
    pub domains: Option<Vec<String>>,
}

/// One line of `GET /v1/allowlist/suggest`: where agents have gone while egress was learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllowlistSuggestion {
    /// The entry to add.
    pub domain: String,
    /// How many flows went there.
    pub flows: u64,
    /// How many sessions went there.
    pub sessions: u64,
}

/// `GET /v1/gateway/policy`: what a gateway enforces beside orders; asked again every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GatewayPolicy {
    /// `learn`, `observe` or `enforce`.
    pub mode: String,
    /// The allowlist's entries; `null` while none is set, and then every gateway learns.
    pub domains: Option<Vec<String>>,
    /// The server's public key in hex, by which credentials are checked.
    pub key: String,
}
