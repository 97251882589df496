//! `/v1/evidence/holds`: what keeps an incident's evidence from disposal.
//!
//! Anyone on call may place a hold; to release one is a lead's, with a reason that stays.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use estoppel_api::{HoldEnd, HoldRequest, HoldSummary, Problem, ReleaseHoldRequest, Role};
use estoppel_evidence::{HoldId, HoldPlaced, HoldReleased, HoldView};
use estoppel_ledger::Appended;
use estoppel_model::Untrusted;
use uuid::Uuid;

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
    vault::{may, stated},
};
use crate::Server;

/// Lists the holds, released ones, too, the newest first.
#[utoipa::path(get, path = "/v1/evidence/holds", tag = "evidence", responses((status = 200, body = [HoldSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<HoldSummary>>, Failure> {
    may(&caller, Role::Viewer)?;
    server.journal().ledger()?;
    let ids: Vec<HoldId> = server
        .journal()
        .read(|state| state.chains.holds().rev().map(|hold| hold.placed.hold).collect());
    ids.into_iter().map(|id| find(&server, id)).collect::<Result<_, _>>().map(Json)
}

/// Places a hold on an incident's evidence, also on what is captured later.
#[utoipa::path(
    post, path = "/v1/evidence/holds", tag = "evidence", request_body = HoldRequest,
    responses((status = 201, body = HoldSummary), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn place(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<HoldRequest>,
) -> Result<(StatusCode, Json<HoldSummary>), Failure> {
    may(&caller, Role::Responder)?;
    stated("reason", &request.reason)?;
    let incident = super::incidents::find(&server, &request.incident)?.id();
    let hold = HoldId::new();
    let reason = Untrusted::new(request.reason);
    let placed = HoldPlaced { hold, incident, reason, by: caller.0.actor };
    let record = placed.record(server.clock().now()).map_err(Failure::internal)?;
    // A disposal that is under way ends first, or waits for this one.
    let _opened = server.vault().opened().await;
    server.journal().commit(record).await?;
    Ok((StatusCode::CREATED, Json(find(&server, hold)?)))
}

/// Releases a hold. Others on the same incident stay.
#[utoipa::path(
    post, path = "/v1/evidence/holds/{id}/release", tag = "evidence", params(("id" = uuid::Uuid, Path)),
    request_body = ReleaseHoldRequest,
    responses((status = 200, body = HoldSummary), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn release(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
    JsonBody(request): JsonBody<ReleaseHoldRequest>,
) -> Result<Json<HoldSummary>, Failure> {
    may(&caller, Role::Lead)?;
    stated("reason", &request.reason)?;
    server.journal().ledger()?;
    let hold = HoldId::from_uuid(id);
    let found = server.journal().read(|state| {
        state.chains.hold(hold).map(|view| (view.placed.incident, view.released.is_some()))
    });
    let (incident, released) = found.ok_or_else(|| nothing(hold))?;
    let ended = || Failure::Conflict(format!("hold {hold} was released before"));
    if released {
        return Err(ended());
    }
    let reason = Untrusted::new(request.reason);
    let released = HoldReleased { hold, incident, reason, by: caller.0.actor };
    let record = released.record(server.clock().now()).map_err(Failure::internal)?;
    match server.journal().commit(record).await? {
        Appended::New { .. } => find(&server, hold).map(Json),
        Appended::Existing { .. } => Err(ended()),
    }
}

fn nothing(hold: HoldId) -> Failure {
    Failure::NotFound(format!("there is no hold {hold}: `estoppel evidence hold` lists them"))
}

fn find(server: &Server, hold: HoldId) -> Result<HoldSummary, Failure> {
    let found = server.journal().read(|state| {
        let view = state.chains.hold(hold)?;
        let incident = state.incidents.incident(view.placed.incident).map(|it| it.number);
        Some(HoldSummary { incident, ..summary(view) })
    });
    found.ok_or_else(|| nothing(hold))
}

fn summary(view: &HoldView) -> HoldSummary {
    let placed = &view.placed;
    HoldSummary {
        hold: placed.hold.as_uuid(),
        incident: None,
        incident_id: placed.incident.as_uuid(),
        reason: placed.reason.raw().clone(),
        by: placed.by.to_string(),
        since: view.since,
        released: view.released.as_ref().map(|(released, at, _)| HoldEnd {
            reason: released.reason.raw().clone(),
            by: released.by.to_string(),
            at: *at,
        }),
    }
}
