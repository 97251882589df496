//! The vault: captures, their custody, holds, bundles.

use estoppel_model::{IncidentNumber, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One capture of `GET /v1/evidence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureSummary {
    /// Its id.
    pub capture: Uuid,
    /// The incident that it serves.
    #[schema(value_type = Option<String>, example = "IR-2026-001")]
    pub incident: Option<IncidentNumber>,
    /// The incident's id.
    pub incident_id: Uuid,
    /// Where it came from, such as a host's name.
    pub origin: Option<String>,
    /// When the vault took it.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// What it came to, such as `41 items, 3 gaps`.
    pub summary: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// How many events its custody chain has.
    pub custody_events: u64,
    /// Whether a hold keeps it from disposal.
    pub held: bool,
    /// When its contents were disposed of.
    #[schema(value_type = Option<String>)]
    pub disposed_at: Option<Timestamp>,
}

/// One event of `GET /v1/evidence/captures/{id}/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CustodyLine {
    /// Its place in the ledger.
    pub record: u64,
    /// Its place in the capture's chain, from 0.
    pub seq: u64,
    /// SHA-256 of the event before.
    pub prev_hash: Option<String>,
    /// When.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Who.
    pub actor: String,
    /// `acquire`, `verify`, `access`, `copy`, `transfer`, `export`, `derive` or `dispose`.
    pub action: String,
    /// The item, where it is about one; a stranger's text.
    pub item: Option<String>,
    /// Where it was.
    pub from: Option<String>,
    /// Where it is.
    pub to: Option<String>,
    /// What for.
    pub purpose: String,
    /// The manifest's SHA-256 before.
    pub hash_before: Option<String>,
    /// The manifest's SHA-256 after.
    pub hash_after: Option<String>,
    /// What it came to.
    pub result: String,
    /// Whose key signed it.
    pub key: String,
    /// The signature.
    pub signature: String,
    /// Whether the signature is good.
    pub signed: bool,
}

/// `POST /v1/evidence/captures/{id}/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyCaptureRequest {
    /// What for: 1 to 1,000 bytes.
    pub purpose: String,
}

/// What comparing a capture with its manifest came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureVerified {
    /// The capture.
    pub capture: Uuid,
    /// How many items its manifest lists.
    pub items: u64,
    /// What does not fit; empty when all does.
    pub findings: Vec<String>,
}

/// `POST /v1/evidence/export`: the answer is the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// All captures of this incident, by its number or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// These captures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captures: Vec<Uuid>,
    /// What for: 1 to 1,000 bytes.
    pub purpose: String,
}

/// `POST /v1/evidence/holds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// Whose evidence, by the incident's number or id.
    pub incident: String,
    /// Why: 1 to 1,000 bytes.
    pub reason: String,
}

/// `POST /v1/evidence/holds/{id}/release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseHoldRequest {
    /// Why: 1 to 1,000 bytes.
    pub reason: String,
}

/// A hold: while it is not released, no evidence of its incident is disposed of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldSummary {
    /// Its id.
    pub hold: Uuid,
    /// The incident.
    #[schema(value_type = Option<String>, example = "IR-2026-001")]
    pub incident: Option<IncidentNumber>,
    /// The incident's id.
    pub incident_id: Uuid,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub by: String,
    /// When.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Its end.
    pub released: Option<HoldEnd>,
}

/// How a hold ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldEnd {
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// `POST /v1/evidence/captures/{id}/dispose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DisposeRequest {
    /// Why: 1 to 1,000 bytes.
    pub reason: String,
}

/// What was disposed of. The manifest and the custody chain stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disposed {
    /// The capture.
    pub capture: Uuid,
    /// Contents that are gone.
    pub contents_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Contents that stay, since another capture has them, too.
    pub contents_shared: u64,
}
