//! What hosts captured comes in (row P7): contents, then the manifest that lists them. How it is
//! read is in `vault.rs`.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use estoppel_api::{EVIDENCE_BYTES_MAX, EvidenceAccepted, Problem, Role};
use estoppel_evidence::{Digest, Item, Manifest, SealedManifest, custody::CustodyAction};
use estoppel_incident::record::EvidenceAdded;
use estoppel_killswitch::Audience;
use estoppel_model::{Actor, IncidentId, OrderId, Untrusted};

use super::{
    extract::{Caller, read_body},
    problem::Failure,
};
use crate::{Server, custody::Deed, vault::VaultError};

/// Largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest text of a manifest that a custody event repeats, in characters.
pub(super) const TEXT_CHARS_MAX: usize = 500;
/// Gaps of a manifest that its own record lists; the manifest has all.
const GAPS_MAX: usize = 50;

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::OtherContent { .. } => Self::Unprocessable(error.to_string()),
            VaultError::TooLarge { bytes_max } => Self::TooLarge { bytes_max },
            VaultError::BrokenOff { .. } => Self::Malformed(error.to_string()),
            VaultError::Full { .. } | VaultError::NoRoom { .. } => Self::Full(error.to_string()),
            VaultError::Busy => Self::Unavailable(error.to_string()),
            VaultError::Disk(_) => Self::internal(error),
        }
    }
}

pub(super) fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse()
        .map_err(|error: estoppel_evidence::DigestError| Failure::Malformed(error.to_string()))
}

/// Keeps the content of an item under its SHA-256.
#[utoipa::path(
    put, path = "/v1/evidence/{sha256}", tag = "evidence", params(("sha256" = String, Path)),
    request_body(content = Vec<u8>), responses((status = 204), (status = 422, body = Problem), (status = 413, body = Problem))
)]
pub(crate) async fn put(
    State(server): State<Server>,
    caller: Caller,
    Path(sha256): Path<String>,
    body: Body,
) -> Result<StatusCode, Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Responder)?;
    server.vault().put(digest(&sha256)?, body, EVIDENCE_BYTES_MAX).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a manifest to an incident. Its items' contents come first; those that are missing are named.
#[utoipa::path(
    post, path = "/v1/incidents/{id}/evidence", tag = "evidence", params(("id" = String, Path)),
    request_body(content = String, description = "the manifest, byte for byte as it was sealed"),
    responses((status = 200, body = EvidenceAccepted), (status = 404, body = Problem))
)]
pub(crate) async fn add(
    State(server): State<Server>,
    caller: Caller,
    Path(incident): Path<String>,
    body: Body,
) -> Result<Json<EvidenceAccepted>, Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Responder)?;
    let incident = super::incidents::find(&server, &incident)?.id();
    keep(&server, incident, None, caller.0.actor, body).await
}

/// Adds a manifest to the incident of a halt, by the halt's id: a halt that was given on a host while
/// no server answered has its incident only since the host handed it back.
#[utoipa::path(
    post, path = "/v1/halts/{id}/evidence", tag = "evidence", params(("id" = uuid::Uuid, Path)),
    request_body(content = String, description = "the manifest, byte for byte as it was sealed"),
    responses((status = 200, body = EvidenceAccepted), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn add_to_halt(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<OrderId>,
    body: Body,
) -> Result<Json<EvidenceAccepted>, Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Responder)?;
    server.journal().ledger()?;
    let order = server.switchboard().ask(move |switch, _| switch.orders().order(id).cloned());
    // Another tenant's halt is not there, also not as a word in an error.
    let audience = Audience::of(caller.0.tenant.as_ref());
    let known = order.await?.filter(|order| audience.admits(order));
    let incident = known.and_then(|order| {
        server.journal().read(|state| Some(state.incidents.of_order(order.id)?.id()))
    });
    let incident = incident.ok_or_else(|| {
        Failure::NotFound(format!("no incident has halt {id} yet: its host hands it back first"))
    })?;
    keep(&server, incident, Some(id), caller.0.actor, body).await
}

/// Keeps a manifest with its incident; `order`: it must be of that halt.
async fn keep(
    server: &Server,
    incident: IncidentId,
    order: Option<OrderId>,
    by: Actor,
    body: Body,
) -> Result<Json<EvidenceAccepted>, Failure> {
    let bytes = read_body(body, MANIFEST_BYTES_MAX).await?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|_| Failure::Malformed("the manifest is not UTF-8".to_owned()))?;
    let (sealed, manifest) = SealedManifest::open(text, None)
        .map_err(|error| Failure::Unprocessable(error.to_string()))?;
    if manifest.case.is_some_and(|case| case != incident) {
        return Err(Failure::Conflict("the manifest is of another incident".to_owned()));
    }
    if order.is_some_and(|order| manifest.order != Some(order)) {
        return Err(Failure::Conflict("the manifest is of another halt".to_owned()));
    }
    let manifest_sha256 = sealed.digest().to_string();
    // What is there stays there until it is recorded whose it is.
    let _opened = server.vault().opened().await;
    let known = server.journal().read(|state| state.chains.capture(manifest.id).cloned());
    if let Some(known) = &known {
        let id = manifest.id;
        if known.manifest != sealed.digest() || known.case != incident {
            return Err(Failure::Conflict(format!(
                "capture {id} is kept already, with another manifest or incident"
            )));
        }
        if let Some(at) = known.disposed_at {
            return Err(Failure::Conflict(format!("capture {id} was disposed of at {at}")));
        }
    }
    let mut missing = Vec::new();
    for item in &manifest.items {
        if server.vault().has(&item.stored_sha256, item.bytes).await {
            record(server, added(incident, &manifest, item, &manifest_sha256)).await?;
        } else {
            missing.push(item.id.clone());
        }
    }
    if missing.is_empty() {
        server.vault().put_text(sealed.text().to_owned()).await?;
        if known.is_none() {
            acquire(server, incident, &manifest, sealed.digest(), by).await?;
        }
        record(server, listing(incident, &manifest, &sealed)).await?;
    }
    Ok(Json(EvidenceAccepted { manifest_sha256, missing }))
}

/// Begins the capture's custody chain.
async fn acquire(
    server: &Server,
    case: IncidentId,
    manifest: &Manifest,
    digest: Digest,
    by: Actor,
) -> Result<(), Failure> {
    let bytes: u64 = manifest.items.iter().map(|item| item.bytes).sum();
    let deed = Deed {
        capture: manifest.id,
        case,
        item: None,
        actor: by,
        action: CustodyAction::Acquire,
        from: Some(Untrusted::new(&manifest.host).inline(TEXT_CHARS_MAX)),
        to: Some("vault".to_owned()),
        purpose: Untrusted::new(&manifest.authority).inline(TEXT_CHARS_MAX),
        result: format!(
            "{} items, {bytes} bytes, {} redactions, {} gaps",
            manifest.items.len(),
            manifest.redacted.len(),
            manifest.gaps.len()
        ),
    };
    server.record_custody(deed, digest).await
}

async fn record(server: &Server, added: EvidenceAdded) -> Result<(), Failure> {
    let record = added.record(server.clock().now()).map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    Ok(())
}

fn added(
    incident: IncidentId,
    manifest: &Manifest,
    item: &Item,
    manifest_sha256: &str,
) -> EvidenceAdded {
    let redactions = manifest.redacted.iter().filter(|redaction| redaction.item == item.id).count();
    EvidenceAdded {
        incident,
        item: Untrusted::new(item.id.clone()),
        method: Untrusted::new(item.method.clone()),
        origin: Untrusted::new(manifest.host.clone()),
        sha256: Some(item.sha256.to_string()),
        bytes: item.bytes,
        manifest_sha256: manifest_sha256.to_owned(),
        captured_at: item.ended_at,
        redactions: redactions as u64,
        gaps: item.gaps.iter().cloned().map(Untrusted::new).collect(),
    }
}

/// The manifest itself, which says what could not be captured.
fn listing(incident: IncidentId, manifest: &Manifest, sealed: &SealedManifest) -> EvidenceAdded {
    let gaps = manifest.gaps.iter().map(|gap| Untrusted::new(format!("{}: {}", gap.what, gap.why)));
    EvidenceAdded {
        incident,
        item: Untrusted::new(format!("manifest of capture {}", manifest.id)),
        method: Untrusted::new(format!(
            "sealed by {} {}",
            manifest.tool.name, manifest.tool.version
        )),
        origin: Untrusted::new(manifest.host.clone()),
        sha256: Some(sealed.digest().to_string()),
        bytes: sealed.text().len() as u64,
        manifest_sha256: sealed.digest().to_string(),
        captured_at: manifest.ended_at,
        redactions: manifest.redacted.len() as u64,
        gaps: gaps.take(GAPS_MAX).collect(),
    }
}
