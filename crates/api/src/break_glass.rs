//! Break-glass files: agents that go on for a while although no server answers.

use estoppel_model::{Actor, EntityId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// `POST /v1/break-glass`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassRequest {
    /// When the file ends, by the wall clock; at most 90 days ahead.
    #[schema(value_type = String)]
    pub until: Timestamp,
    /// How long each enforcer goes on by it, in all; at most a day. Left out: four hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_seconds_max: Option<u64>,
    /// Why it is made.
    pub reason: String,
    /// Only for enforcers of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcer: Option<String>,
    /// Only for enforcers whose token is bound to this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant: Option<EntityId>,
}

/// A file that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakGlassMade {
    /// What it says.
    #[serde(flatten)]
    pub break_glass: BreakGlassSummary,
    /// Its content, to be put as `break-glass.json` into an enforcer's state folder.
    pub file: String,
}

/// `GET /v1/break-glass`: a file, and who went on by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakGlassSummary {
    /// Names it.
    pub id: Uuid,
    /// Who made it.
    #[schema(value_type = String)]
    pub issued_by: Actor,
    /// When.
    #[schema(value_type = String)]
    pub issued_at: Timestamp,
    /// When it ends.
    #[schema(value_type = String)]
    pub until: Timestamp,
    /// How long each enforcer goes on by it, in all.
    pub use_seconds_max: u64,
    /// Why it was made.
    pub reason: String,
    /// Which enforcers it is for, in words.
    pub audience: String,
    /// Who told of having used it, the first first.
    pub uses: Vec<BreakGlassUsed>,
}

/// An enforcer's use of a file, by its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakGlassUsed {
    /// The name of its token.
    #[schema(value_type = String)]
    pub actor: Actor,
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// Its name.
    pub enforcer: String,
    /// When it began, by the enforcer's clock.
    #[schema(value_type = String)]
    pub first_at: Timestamp,
    /// When it last did, by the enforcer's clock.
    #[schema(value_type = String)]
    pub last_at: Timestamp,
    /// For how long, in all; at most ten seconds more than that.
    pub used_seconds: u64,
    /// When the server heard of it.
    #[schema(value_type = String)]
    pub told_at: Timestamp,
}
