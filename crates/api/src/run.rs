//! Runs of playbooks.

use estoppel_model::{IncidentId, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A run of a playbook, as `GET /v1/runs` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunSummary {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub id: RunId,
    /// The playbook's name.
    pub playbook: String,
    /// The incident that it serves.
    #[schema(value_type = uuid::Uuid)]
    pub incident: IncidentId,
    /// `asking`, `running`, `done`, `failed` or `declined`.
    pub state: String,
    /// When it began.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// Its steps so far.
    pub steps: Vec<RunStep>,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunStep {
    /// The step's id in the playbook.
    pub id: String,
    /// The step's action.
    pub action: String,
    /// `waiting`, `intended`, `done`, `failed`, `indeterminate` or `skipped`.
    pub state: String,
    /// What was observed.
    pub observed: Option<String>,
    /// When it ended.
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
}

/// `POST /v1/runs/{id}/approve`: lets a run that asks begin, or declines it;
/// `POST /v1/runs/{id}/steps/{step}/approve`: the same of one step that waits for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveRequest {
    /// Whether it may begin.
    pub approve: bool,
    /// Why.
    pub reason: String,
}
