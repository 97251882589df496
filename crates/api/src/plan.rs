//! What a halt would hit, before it is given. Asking changes nothing.

use estoppel_model::{Scope, ScopeSet, Subject, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/halts/plan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// What would be halted.
    #[schema(value_type = String, example = "session:abc123")]
    pub scope: ScopeSet,
}

/// What a halt of a scope would hit, as far as the server has seen it.
///
/// Sessions are those whose events came within the last [`HaltPlan::window_seconds`]; they are a
/// hint for people and bound nothing: a halt also reaches what the server has never heard of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HaltPlan {
    /// The scope that was asked about.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// Sessions seen lately that it reaches, the latest first; at most 50.
    pub sessions: Vec<PlannedSession>,
    /// How many there are, listed or not.
    pub session_count: usize,
    /// Agents behind those sessions.
    pub agent_count: usize,
    /// Users behind them.
    pub user_count: usize,
    /// Tenants behind them.
    pub tenant_count: usize,
    /// Connected enforcers that would get the order at once, by kind.
    pub enforcers: Vec<PlannedEnforcers>,
    /// What limits those enforcers, as they say themselves; at most 20.
    pub gaps: Vec<PlannedGap>,
    /// Halts in force that reach the scope already: its own, and a global one.
    pub active: Vec<crate::HaltSummary>,
    /// Neither sessions nor enforcers know what the scope names.
    pub unknown: bool,
    /// What was probably meant, when nothing was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub did_you_mean: Option<Scope>,
    /// How far back sessions count as seen lately.
    pub window_seconds: u64,
    /// Since when the server has watched: it forgets who was seen when it restarts.
    #[schema(value_type = String)]
    pub watched_since: Timestamp,
}

/// A session that a halt would reach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlannedSession {
    /// Who acts in it, as its events say.
    #[schema(value_type = Object)]
    pub subject: Subject,
    /// When its last event came.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
    /// How many of its events came since it was first seen.
    pub events: u64,
}

/// Connected enforcers of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedEnforcers {
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// How many are connected.
    pub count: usize,
}

/// What an enforcer cannot do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedGap {
    /// The enforcer's name.
    pub enforcer: String,
    /// The gap, in its own words.
    pub gap: String,
}
