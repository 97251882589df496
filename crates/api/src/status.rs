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
    /// Limits in force.
    #[serde(default)]
    pub limits: Vec<crate::LimitSummary>,
    /// Orders by which something is watched closely after a release.
    #[serde(default)]
    pub watches: Vec<crate::HaltSummary>,
    /// Releases that wait for a second person.
    #[serde(default)]
    pub releases_pending: Vec<crate::ReleasePending>,
    /// Drills of the kill switch.
    #[serde(default)]
    pub drills: crate::DrillStatus,
    /// Who may halt: the names of all good tokens of responders, leads and admins.
    #[serde(default)]
    pub on_call: Vec<String>,
    /// Enforcers, connected now or with a lease that is not over.
    pub enforcers: Vec<EnforcerStatus>,
    /// Until then there may be more: enforcers to which a server before this one gave leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub enforcers_unknown_until: Option<Timestamp>,
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
    /// The mirror of the kill switch in Redis, where one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStatus>,
    /// What is not as it should be, in words.
    pub warnings: Vec<String>,
}

/// The mirror of the kill switch in Redis. What it lacks does not hold up a halt: enforcers have
/// their orders from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedisStatus {
    /// Where Redis is, without secrets.
    pub address: String,
    /// Whether it answers.
    pub connected: bool,
    /// Whether it tells of changes; without, keys are polled.
    pub tracking: bool,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When Redis was last seen to say what it is to say.
    #[schema(value_type = Option<String>)]
    pub last_sync: Option<Timestamp>,
    /// Keys that do not say yet what they are to say, as far as is known.
    pub behind: usize,
    /// Since when there are such keys.
    #[schema(value_type = Option<String>)]
    pub behind_since: Option<Timestamp>,
    /// Halts in force that somebody wrote to Redis.
    pub halts_from_redis: usize,
    /// Keys that say `active` and have to wait, since too many did at once.
    pub halts_waiting: usize,
    /// Halts in force that one tenant's token gave and that are written nowhere: keys are
    /// everybody's.
    pub not_written: usize,
    /// Scopes, at most 20, whose keys somebody keeps active although their halts were released here.
    pub insisted: Vec<String>,
    /// Keys under `kill_switch:` that name no scope.
    pub ignored_keys: usize,
    /// What is wrong with one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored_key: Option<String>,
    /// How often a value was read since the start that says neither active nor inactive.
    #[serde(default)]
    pub values_refused: u64,
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
