//! Halts: to give them, to ask for them, to end them.

use estoppel_model::{Actor, Destination, IncidentId, Limit, OrderId, ScopeSet, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

fn global() -> ScopeSet {
    ScopeSet::from(estoppel_model::Scope::Global)
}

/// `POST /kill-switch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HaltRequest {
    /// What to halt: `global` (the default), `KIND:ID`, `plugin:NAME@RANGE`, or an array of them.
    #[serde(default = "global")]
    #[schema(value_type = String, example = "session:abc123", default = "global")]
    pub scope: ScopeSet,
    /// Why, in a person's words: 1 to 2,000 bytes.
    #[schema(example = "suspected prompt injection")]
    pub reason: String,
    /// Id of the halt, made by the client; sent again it is the same halt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub id: Option<OrderId>,
    /// When the server shall release it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// The incident that it belongs to; absent: the open one of the same scope, else a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub incident: Option<IncidentId>,
}

impl HaltRequest {
    /// A halt of this scope.
    pub fn new(scope: ScopeSet, reason: impl Into<String>) -> Self {
        let id = Some(OrderId::new());
        Self { scope, reason: reason.into(), id, until: None, incident: None }
    }
}

/// How safely an order is kept at the moment of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durable {
    /// In force and broadcast, in memory only: the disk did not answer in time.
    No,
    /// On this node's disk, in the order spool.
    Node,
    /// In the ledger.
    Ledger,
}

/// The answer to a halt. The halt is in force and on its way when this is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HaltAccepted {
    /// The halt's id: see `GET /v1/halts/{id}`.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrderId,
    /// What it reaches.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// How safely it is kept by now.
    pub durable: Durable,
    /// The incident that it opened or joined.
    #[schema(value_type = uuid::Uuid)]
    pub incident: IncidentId,
    /// When it was accepted.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    /// Enforcers that it was sent to, each of whose leases was alive.
    pub enforcers: usize,
    /// Whether the halt had been given before under the same id.
    pub repeated: bool,
}

/// `GET /kill-switch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KillSwitchState {
    /// Whether a halt of exactly this scope is active.
    pub active: bool,
    /// The first such halt's reason.
    pub reason: Option<String>,
    /// Who gave it.
    #[schema(value_type = Option<String>)]
    pub activated_by: Option<Actor>,
    /// Since when.
    #[schema(value_type = Option<String>)]
    pub timestamp: Option<Timestamp>,
    /// All active halts of exactly this scope.
    pub halts: Vec<HaltSummary>,
    /// Whether what the scope names must stop: `active`, or a global halt.
    pub stop: bool,
}

/// One halt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HaltSummary {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrderId,
    /// What it reaches.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// Why.
    pub reason: String,
    /// Who gave it.
    #[schema(value_type = String)]
    pub activated_by: Actor,
    /// Since when.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    /// When the server will release it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// The incident that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub incident: Option<IncidentId>,
}

/// `POST /kill-switch/release`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The scope whose halts end.
    #[schema(value_type = String, example = "session:abc123")]
    pub scope: ScopeSet,
    /// Why it is safe to start again: 1 to 2,000 bytes.
    pub reason: String,
    /// The halts that end. May be left out when exactly one is active at the scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<uuid::Uuid>>)]
    pub halts: Option<Vec<OrderId>>,
    /// Id of the release, made by the client; sent again it is the same release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub id: Option<OrderId>,
    /// For how long what was released is watched closely, in seconds: 0 not at all, else 60 to
    /// 2,592,000 (30 days). Left out: a day, and not at all after a release of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_seconds: Option<u64>,
}

/// The answer to a release, which is in the ledger when this is sent; or, with status 202, to one
/// that waits for a second person and has ended nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseAccepted {
    /// The release's id.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrderId,
    /// The halts that it ended.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub halts: Vec<OrderId>,
    /// Halts that still reach the scope.
    pub still_active: Vec<HaltSummary>,
    /// By policy a second person must approve: nothing has ended yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<crate::ReleasePending>,
    /// The order by which what was released is watched closely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<HaltSummary>,
}

/// Where a halt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HaltState {
    /// Not all enforcers refuse yet.
    Sent,
    /// All refuse new work, or their lease is over.
    Refusing,
    /// All have settled work in flight, or did not answer and their lease is over.
    Settled,
    /// Nobody is waited for any more: all refuse, but some were gone before they settled, and what
    /// became of their work in flight is not known.
    Unsettled,
    /// A release has ended it.
    Released,
}

/// `GET /v1/halts/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HaltStatus {
    /// The halt.
    #[serde(flatten)]
    pub halt: HaltSummary,
    /// Where it stands over all enforcers.
    pub state: HaltState,
    /// Enforcers whose lease was alive when it was accepted.
    pub expected: usize,
    /// Of those, how many refuse new work.
    pub refusing: usize,
    /// Of those, how many have settled.
    pub settled: usize,
    /// Of those, how many did not confirm and whose lease is over.
    pub by_lease: usize,
    /// Of those, how many refused and were gone before they settled: their process ended or was cut
    /// off, and their lease is over.
    #[serde(default)]
    pub gone: usize,
    /// Until then enforcers that do not know of the halt may act: a server before this one gave them
    /// leases, and this one does not know them yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub unknown_until: Option<Timestamp>,
    /// Until then enforcers that are counted by their lease alone may act: a break-glass file is out,
    /// by which those that reach no server go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub break_glass_until: Option<Timestamp>,
    /// How safely it is kept.
    pub durable: Durable,
    /// Each enforcer's word.
    pub enforcers: Vec<EnforcerProgress>,
}

/// One enforcer's word on one halt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnforcerProgress {
    /// The enforcer's name.
    pub name: String,
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// Whether it sees effects from outside of the agent, or only claims.
    pub witness: bool,
    /// Whether its lease was alive when the halt was accepted; later ones do not count.
    pub expected: bool,
    /// When it refused new work, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub refusing_at: Option<Timestamp>,
    /// Microseconds from the halt's acceptance to the arrival here of the confirmation that it
    /// refuses, by the server's clock; left out once the server that took the halt has ended, for
    /// what is left then are two machines' clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing_after_us: Option<u64>,
    /// When it had settled, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub settled_at: Option<Timestamp>,
    /// As `refusing_after_us`, of settling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_after_us: Option<u64>,
    /// What settling came to: steps cancelled, connections cut, processes frozen, last byte out,
    /// containment, work that could not be interrupted.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub settlement: serde_json::Value,
    /// It does not know the order's kind, and refuses its scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsupported: bool,
    /// Its lease is over and it has not confirmed: it refuses by itself since then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_lease: bool,
    /// It refused, and its lease was over before it settled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// When its lease is over at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub lease_until: Option<Timestamp>,
}

/// `POST /v1/limits`: bound what a scope's tasks may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitRequest {
    /// For whom.
    #[schema(value_type = String, example = "agent:support")]
    pub scope: ScopeSet,
    /// The bounds, at least one: `steps_max`, `wall_clock_ms_max`, `cost_usd_max`, `tokens_max`,
    /// `concurrency_max`, `errors_in_a_row_max`, `identical_calls_max`, `requests_per_minute`,
    /// `read_only`, `tenant_validation_strict`.
    #[schema(value_type = Object)]
    pub limit: Limit,
    /// Why.
    pub reason: String,
    /// Id of the order, made by the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub id: Option<OrderId>,
    /// The incident that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub incident: Option<IncidentId>,
}

/// A limit is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitAccepted {
    /// The order, by which a lead releases it.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrderId,
    /// Whom it reaches.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// The bounds.
    #[schema(value_type = Object)]
    pub limit: Limit,
    /// How safely it is kept.
    pub durable: Durable,
    /// Enforcers that were alive when it was accepted.
    pub enforcers: usize,
}

/// A limit in force, as `GET /v1/limits` lists them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitSummary {
    /// The order, by which a lead releases it.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrderId,
    /// Whom it reaches.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// The bounds.
    #[schema(value_type = Object)]
    pub limit: Limit,
    /// Why, in a person's words.
    pub reason: String,
    /// Who gave it.
    #[schema(value_type = String)]
    pub activated_by: Actor,
    /// Since when.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    /// The incident that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub incident: Option<IncidentId>,
}

/// `POST /v1/blocks`: refuse and cut a destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockRequest {
    /// For whom.
    #[serde(default = "global")]
    #[schema(value_type = String, default = "global")]
    pub scope: ScopeSet,
    /// Where nothing may go: `HOST` or `HOST:PORT`.
    #[schema(value_type = String, example = "attacker.example")]
    pub destination: Destination,
    /// Why.
    pub reason: String,
    /// Id of the order, made by the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub id: Option<OrderId>,
    /// The incident that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub incident: Option<IncidentId>,
}
