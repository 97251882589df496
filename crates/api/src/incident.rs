//! Incidents: to open them, to write into them, to close them.

use estoppel_model::{IncidentId, IncidentNumber, Subject, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/incidents`: a person's report, or an incident opened by hand (row P3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenIncidentRequest {
    /// What is wrong, in a line.
    pub title: String,
    /// `prompt_injection`, `malicious_plugin`, `tenant_leak`, `runaway` or `other` (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `critical`, `high` (the default), `medium` or `low`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// What was seen, in a person's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whom it concerns, where that is known.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub subject: Subject,
    /// Whether it is a report by somebody who saw something, rather than opened by a responder.
    #[serde(default)]
    pub report: bool,
    /// Id of the incident, made by the client; sent again it is the same incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub id: Option<IncidentId>,
}

/// The answer to opening an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncidentOpened {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub id: IncidentId,
    /// Its number for people.
    #[schema(value_type = String, example = "IR-2026-001")]
    pub number: IncidentNumber,
}

/// One line of `GET /v1/incidents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IncidentSummary {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub id: IncidentId,
    /// Its number for people.
    #[schema(value_type = String)]
    pub number: IncidentNumber,
    /// What it is about.
    pub title: String,
    /// Its type.
    pub kind: String,
    /// How bad.
    pub severity: String,
    /// `open`, `contained` or `closed`.
    pub state: String,
    /// When it was opened.
    #[schema(value_type = String)]
    pub opened_at: Timestamp,
    /// Who works on it.
    pub assignee: Option<String>,
}

/// `POST /v1/incidents/{id}/notes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteRequest {
    /// The note: 1 to 64 KiB.
    pub text: String,
}

/// `POST /v1/incidents/{id}/assign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignRequest {
    /// Who works on it.
    pub to: String,
}

/// `POST /v1/incidents/{id}/close`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// What it was, and why it is over.
    pub reason: String,
    /// Root cause, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_cause: Option<String>,
}

/// The answer to a manifest of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceAccepted {
    /// SHA-256 of the manifest as it was kept, lower-case hex.
    pub manifest_sha256: String,
    /// Items of the manifest whose content has not arrived.
    pub missing: Vec<String>,
}
