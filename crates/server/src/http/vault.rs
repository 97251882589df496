//! `/v1/evidence`: what the vault keeps, who did what with it, and how it leaves.
//!
//! To list and to read the custody log is to see no evidence. Everything else is a custody event,
//! durable before the first byte goes out. Evidence is the operator's: a host's processes are not
//! one tenant's, so a token that is bound to a tenant sees none of it.

use std::collections::BTreeSet;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use estoppel_api::{
    CaptureSummary, CaptureVerified, CustodyLine, DisposeRequest, Disposed, ExportRequest,
    PURPOSE_BYTES_MAX, Problem, Role, VerifyCaptureRequest,
};
use estoppel_evidence::{
    CaptureId, Digest, Finding, Kept, Manifest, SignedEvent, VaultEvent, custody::CustodyAction,
};
use estoppel_incident::IncidentState;
use estoppel_model::Untrusted;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    evidence::TEXT_CHARS_MAX,
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{Server, bundle, custody::Deed, pipe, vault::Vault};

/// Most findings of a verification that are told.
const FINDINGS_MAX: usize = 1_000;

/// What something is done for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purpose {
    #[serde(default)]
    purpose: String,
}

/// A purpose or a reason: it is in the record for good.
pub(super) fn stated(name: &str, text: &str) -> Result<(), Failure> {
    if text.trim().is_empty() {
        return Err(Failure::Unprocessable(format!("`{name}` is empty: say what for")));
    }
    if text.len() > PURPOSE_BYTES_MAX {
        return Err(Failure::Unprocessable(format!(
            "`{name}` has {} bytes: at most {PURPOSE_BYTES_MAX}",
            text.len()
        )));
    }
    Ok(())
}

pub(super) fn may(caller: &Caller, role: Role) -> Result<(), Failure> {
    caller.at_least(role)?;
    caller.unbound("evidence is the operator's")
}

fn deed(caller: &Caller, capture: CaptureId, kept: &Kept, action: CustodyAction) -> Deed {
    Deed {
        capture,
        case: kept.case,
        item: None,
        actor: caller.0.actor.clone(),
        action,
        from: Some("vault".to_owned()),
        to: None,
        purpose: String::new(),
        result: String::new(),
    }
}

/// Lists the captures that the vault has, or had, the newest first.
#[utoipa::path(get, path = "/v1/evidence", tag = "evidence", responses((status = 200, body = [CaptureSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<CaptureSummary>>, Failure> {
    may(&caller, Role::Viewer)?;
    server.journal().ledger()?;
    Ok(Json(server.journal().read(|state| {
        let summary = |(id, kept): (CaptureId, &Kept)| CaptureSummary {
            capture: id.as_uuid(),
            incident: state.incidents.incident(kept.case).map(|incident| incident.number),
            incident_id: kept.case.as_uuid(),
            origin: kept.origin.clone(),
            since: kept.since,
            summary: kept.summary.clone(),
            manifest_sha256: kept.manifest.to_string(),
            custody_events: kept.head.count,
            held: state.chains.holding(kept.case).next().is_some(),
            disposed_at: kept.disposed_at,
        };
        state.chains.captures().rev().map(summary).collect()
    })))
}

/// Gives a capture's manifest, byte for byte as it was sealed.
#[utoipa::path(
    get, path = "/v1/evidence/captures/{id}", tag = "evidence",
    params(("id" = uuid::Uuid, Path), ("purpose" = String, Query, description = "what for: it is recorded")),
    responses((status = 200, content_type = "application/json"), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn show(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(Purpose { purpose }): Query<Purpose>,
) -> Result<Response, Failure> {
    may(&caller, Role::Responder)?;
    stated("purpose", &purpose)?;
    let id = CaptureId::from_uuid(id);
    let kept = server.kept(id)?;
    let (sealed, _) = server.manifest_of(&kept).await?;
    let to = Some(caller.0.actor.to_string());
    let result = "the manifest was shown".to_owned();
    let deed = Deed { to, purpose, result, ..deed(&caller, id, &kept, CustodyAction::Access) };
    server.record_custody(deed, kept.manifest).await?;
    let text = sealed.text().to_owned();
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Gives the content of a capture's item. It is hostile: never to be shown in place.
#[utoipa::path(
    get, path = "/v1/evidence/captures/{id}/items/{sha256}", tag = "evidence",
    params(("id" = uuid::Uuid, Path), ("sha256" = String, Path), ("purpose" = String, Query, description = "what for: it is recorded")),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn item(
    State(server): State<Server>,
    caller: Caller,
    Path((id, sha256)): Path<(Uuid, String)>,
    Query(Purpose { purpose }): Query<Purpose>,
) -> Result<Response, Failure> {
    may(&caller, Role::Responder)?;
    stated("purpose", &purpose)?;
    let sha256 = super::evidence::digest(&sha256)?;
    let id = CaptureId::from_uuid(id);
    let opened = server.vault().opened().await;
    let kept = server.kept(id)?;
    let (_, manifest) = server.manifest_of(&kept).await?;
    let item = manifest.items.iter().find(|item| item.stored_sha256 == sha256);
    let item = item.ok_or_else(|| {
        Failure::NotFound(format!("capture {id} has no item with SHA-256 {sha256}"))
    })?;
    if let Some(at) = kept.disposed_at {
        return Err(Failure::Conflict(format!("capture {id} was disposed of at {at}")));
    }
    let vault = server.vault().clone();
    let found = tokio::task::spawn_blocking(move || bundle::found_wrong(&vault, &sha256));
    let found = found.await.map_err(Failure::internal)?;
    let found = found.map_err(|why| Failure::Conflict(format!("{sha256}: {why}")))?;
    let deed = Deed {
        item: Some(Untrusted::new(Untrusted::new(&item.id).inline(TEXT_CHARS_MAX))),
        to: Some(caller.0.actor.to_string()),
        purpose,
        result: format!("{} bytes were given out", found.bytes),
        ..deed(&caller, id, &kept, CustodyAction::Copy)
    };
    server.record_custody(deed, kept.manifest).await?;
    let vault = server.vault().clone();
    let body = pipe::body(&server, move |pipe| {
        let _opened = opened;
        std::io::copy(&mut vault.file(&sha256)?, pipe).map(drop)
    });
    Ok(file(body, "application/octet-stream", found.bytes))
}

fn file(body: Body, kind: &'static str, bytes: u64) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
    ];
    (headers, body).into_response()
}

/// Lists a capture's custody events.
#[utoipa::path(
    get, path = "/v1/evidence/captures/{id}/log", tag = "evidence", params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = [CustodyLine]), (status = 404, body = Problem))
)]
pub(crate) async fn log(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<Vec<CustodyLine>>, Failure> {
    may(&caller, Role::Viewer)?;
    let kept = server.kept(CaptureId::from_uuid(id))?;
    let ledger = server.journal().ledger()?.clone();
    let lines = tokio::task::spawn_blocking(move || {
        let line = |place: &u64| -> Result<CustodyLine, Failure> {
            let (record, _) = ledger.disclose(*place).map_err(Failure::internal)?;
            let signed: SignedEvent = record.parse().map_err(Failure::internal)?;
            let event = signed.read().map_err(Failure::internal)?;
            Ok(line(*place, &signed, event))
        };
        kept.records.iter().map(line).collect::<Result<Vec<_>, _>>()
    });
    lines.await.map_err(Failure::internal)?.map(Json)
}

fn line(record: u64, signed: &SignedEvent, event: VaultEvent) -> CustodyLine {
    let digest = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    let entry = event.entry.entry;
    CustodyLine {
        record,
        seq: event.seq,
        prev_hash: digest(event.prev_hash),
        time: entry.time,
        actor: entry.actor.to_string(),
        action: entry.action.as_str().to_owned(),
        item: event.entry.item.map(Untrusted::into_raw),
        from: entry.from,
        to: entry.to,
        purpose: entry.purpose,
        hash_before: digest(entry.hash_before),
        hash_after: digest(entry.hash_after),
        result: entry.result,
        key: signed.key.to_string(),
        signature: signed.signature.clone(),
        signed: signed.is_signed(),
    }
}

/// Compares what is stored of a capture with its manifest, and records what that came to.
#[utoipa::path(
    post, path = "/v1/evidence/captures/{id}/verify", tag = "evidence", params(("id" = uuid::Uuid, Path)),
    request_body = VerifyCaptureRequest,
    responses((status = 200, body = CaptureVerified), (status = 404, body = Problem))
)]
pub(crate) async fn verify(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
    JsonBody(request): JsonBody<VerifyCaptureRequest>,
) -> Result<Json<CaptureVerified>, Failure> {
    may(&caller, Role::Responder)?;
    stated("purpose", &request.purpose)?;
    let capture = CaptureId::from_uuid(id);
    let _opened = server.vault().opened().await;
    let kept = server.kept(capture)?;
    let (items, findings) = match server.manifest_of(&kept).await {
        Err(Failure::Conflict(why)) => (0, vec![why]),
        Err(error) => return Err(error),
        Ok((_, manifest)) if kept.disposed_at.is_some() => (manifest.items.len(), Vec::new()),
        Ok((_, manifest)) => {
            let vault = server.vault().clone();
            let count = manifest.items.len();
            let compared = tokio::task::spawn_blocking(move || compare(&vault, &manifest));
            (count, compared.await.map_err(Failure::internal)?)
        }
    };
    let result = match (findings.len(), kept.disposed_at) {
        (0, Some(_)) => "the manifest is what it was; the contents were disposed of".to_owned(),
        (0, None) => format!("{items} items are what they were"),
        (count, _) => format!("{count} findings over {items} items"),
    };
    let deed = Deed {
        purpose: request.purpose,
        result,
        ..deed(&caller, capture, &kept, CustodyAction::Verify)
    };
    server.record_custody(deed, kept.manifest).await?;
    Ok(Json(CaptureVerified { capture: id, items: items as u64, findings }))
}

fn compare(vault: &Vault, manifest: &Manifest) -> Vec<String> {
    let mut unread = Vec::new();
    let findings = estoppel_evidence::verify(manifest, |digest| {
        vault.measure(digest).unwrap_or_else(|error| {
            unread.push(format!("{digest} cannot be read: {error}"));
            None
        })
    });
    let findings = findings.iter().map(Finding::to_string);
    unread.into_iter().chain(findings).take(FINDINGS_MAX).collect()
}

/// Gives a bundle of captures: one file that proves itself, also without Estoppel.
#[utoipa::path(
    post, path = "/v1/evidence/export", tag = "evidence", request_body = ExportRequest,
    responses((status = 200, content_type = "application/x-tar"), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn export(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<ExportRequest>,
) -> Result<Response, Failure> {
    may(&caller, Role::Responder)?;
    stated("purpose", &request.purpose)?;
    let incident = request.incident.as_deref();
    let incident = incident.map(|name| super::incidents::find(&server, name)).transpose()?;
    let captures: Vec<CaptureId> =
        request.captures.iter().map(|id| CaptureId::from_uuid(*id)).collect();
    let opened = server.vault().opened().await;
    let chosen = bundle::chosen(&server, incident.map(|view| view.id()), &captures)?;
    let sealed = bundle::make(&server, chosen, caller.0.actor, request.purpose).await?;
    let bytes = sealed.bytes();
    let vault = server.vault().clone();
    let body = pipe::body(&server, move |pipe| {
        let _opened = opened;
        sealed.write(pipe, |digest| vault.file(digest))
    });
    Ok(file(body, "application/x-tar", bytes))
}

/// Disposes of a capture's contents, for good. Again finishes what a crash left.
#[utoipa::path(
    post, path = "/v1/evidence/captures/{id}/dispose", tag = "evidence", params(("id" = uuid::Uuid, Path)),
    request_body = DisposeRequest,
    responses((status = 200, body = Disposed), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn dispose(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
    JsonBody(request): JsonBody<DisposeRequest>,
) -> Result<Json<Disposed>, Failure> {
    may(&caller, Role::Lead)?;
    stated("reason", &request.reason)?;
    let capture = CaptureId::from_uuid(id);
    // Behind it nobody places a hold, adds a capture or reads one.
    let _closed = server.vault().closed().await?;
    let kept = server.kept(capture)?;
    let (_, manifest) = server.manifest_of(&kept).await?;
    let mut own: BTreeSet<Digest> = manifest.items.iter().map(|item| item.stored_sha256).collect();
    let count = own.len();
    let others = server.journal().read(|state| {
        let others = state.chains.captures().filter(|(id, _)| *id != capture);
        others.map(|(_, kept)| kept.clone()).collect::<Vec<_>>()
    });
    for other in others {
        // Never by its own name: a manifest stays, whoever else lists it.
        own.remove(&other.manifest);
        if other.disposed_at.is_none() {
            let (_, manifest) = server.manifest_of(&other).await?;
            let listed: BTreeSet<Digest> =
                manifest.items.iter().map(|item| item.stored_sha256).collect();
            own.retain(|digest| !listed.contains(digest));
        }
    }
    own.remove(&kept.manifest);
    if kept.disposed_at.is_none() {
        may_be_disposed_of(&server, capture, &kept)?;
        let deed = Deed {
            purpose: request.reason,
            result: format!("{} contents are removed", own.len()),
            ..deed(&caller, capture, &kept, CustodyAction::Dispose)
        };
        server.record_custody(deed, kept.manifest).await?;
    }
    let shared = (count - own.len()) as u64;
    let vault = server.vault().clone();
    let removed = tokio::task::spawn_blocking(move || {
        let removed = own.iter().map(|digest| vault.remove(digest));
        removed.collect::<Result<Vec<_>, _>>()
    });
    let removed = removed.await.map_err(Failure::internal)?.map_err(Failure::internal)?;
    Ok(Json(Disposed {
        capture: id,
        contents_removed: removed.iter().flatten().count() as u64,
        bytes_removed: removed.iter().flatten().sum(),
        contents_shared: shared,
    }))
}

fn may_be_disposed_of(server: &Server, capture: CaptureId, kept: &Kept) -> Result<(), Failure> {
    server.journal().read(|state| {
        let holds: Vec<String> = state
            .chains
            .holding(kept.case)
            .map(|hold| format!("{} by {}", hold.placed.hold, hold.placed.by))
            .collect();
        if !holds.is_empty() {
            return Err(Failure::Conflict(format!(
                "capture {capture} is held: a lead releases {} first",
                holds.join(", ")
            )));
        }
        match state.incidents.incident(kept.case) {
            Some(view) if view.state() != IncidentState::Closed => Err(Failure::Conflict(format!(
                "{} is not closed: its evidence may still be needed",
                view.number
            ))),
            _ => Ok(()),
        }
    })
}
