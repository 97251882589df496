//! `/v1/break-glass`: files by which agents go on for a while although no server answers.

use axum::{Json, extract::State, http::StatusCode};
use estoppel_api::{BreakGlassMade, BreakGlassRequest, BreakGlassSummary, Problem, Role};

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{Server, break_glass};

/// Makes a file, signed with the server's key; it is shown this once. Its making is a record.
#[utoipa::path(
    post, path = "/v1/break-glass", tag = "break-glass", request_body = BreakGlassRequest,
    responses((status = 201, body = BreakGlassMade), (status = 403, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem))
)]
pub(crate) async fn make(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<BreakGlassRequest>,
) -> Result<(StatusCode, Json<BreakGlassMade>), Failure> {
    caller.at_least(Role::Admin)?;
    caller.unbound("break-glass is the operator's")?;
    let made = break_glass::make(&server, request, caller.0.actor).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Lists the files that were made or used, the latest first, and who went on by them.
#[utoipa::path(get, path = "/v1/break-glass", tag = "break-glass", responses((status = 200, body = [BreakGlassSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<BreakGlassSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("break-glass is the operator's")?;
    server.journal().ledger()?;
    Ok(Json(server.journal().read(|state| state.break_glasses.latest_first().cloned().collect())))
}
