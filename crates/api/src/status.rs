//! How the server and its enforcers are.

use estoppel_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /healthz`: needs no token, says nothing of anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` once orders are taken; recovery may still go on.
    pub status: String,
    /// The server's version.
    pub version: String,
}

/// `GET /readyz`: needs no token, says nothing of anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether each part is ready.
    pub ready: bool,
    /// The parts.
    pub parts: Vec<PartState>,
}

/// How one part of the server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartState {
    /// Which part.
    pub name: String,
    /// Whether it does what it is for.
    pub ready: bool,
    /// How it is, in a few words.
    pub state: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// Since when it runs.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// Active halts.
    pub halts: Vec<crate::HaltSummary>,
    /// Enforcers, connected now or with a lease that is not over.
    pub enforcers: Vec<EnforcerStatus>,
    /// Incidents that are not closed.
    pub incidents_open: usize,
    /// The ledger: `ok`, or what is wrong with it.
    pub ledger: String,
    /// Records in the ledger.
    pub ledger_records: u64,
    /// The event log: `ok`, or what is wrong with it.
    pub event_log: String,
    /// The SQL worker: `ok` with its isolation, or what is wrong with it.
    pub sql_worker: String,
    /// Where pages go, without secrets; `none` is a gap.
    pub paging: String,
    /// `auto` or `ask`: what unlisted egress alone does.
    pub egress_response: String,
    /// `enforce`, `observe` or `learn`: what the gateways do with unlisted egress.
    pub gateway_mode: String,
    /// What is not as it should be, in words.
    pub warnings: Vec<String>,
}

/// One enforcer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnforcerStatus {
    /// Its name.
    pub name: String,
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// When its lease is over.
    #[schema(value_type = Option<String>)]
    pub lease_until: Option<Timestamp>,
    /// Whom it enforces, where it said so.
    #[schema(value_type = Vec<Object>)]
    pub subjects: Vec<estoppel_model::Subject>,
    /// What its machine does not permit.
    pub gaps: Vec<String>,
}
