//! Releases that wait for a second person.

use estoppel_model::{Actor, OrderId, ScopeSet, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A release that one person has asked for and another must approve. Until then nothing has
/// started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleasePending {
    /// Names it: see `POST /v1/releases/{id}/approve`.
    pub id: Uuid,
    /// The scope that was asked to be released.
    #[schema(value_type = String)]
    pub scope: ScopeSet,
    /// The halts that would end.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub halts: Vec<OrderId>,
    /// Why it is safe to start again, in the first person's words.
    pub reason: String,
    /// The first person.
    #[schema(value_type = String)]
    pub requested_by: Actor,
    /// When they asked.
    #[schema(value_type = String)]
    pub requested_at: Timestamp,
    /// When it is forgotten.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// `POST /v1/releases/{id}/approve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveReleaseRequest {
    /// Why it is safe to start again, in the second person's words: 1 to 2,000 bytes.
    pub reason: String,
}
