//! `/v1/drills`: a canary through every connected enforcer, and what drills came to.

use axum::{Json, extract::State};
use estoppel_api::{DrillSummary, Problem, Role};

use super::{extract::Caller, problem::Failure};
use crate::{Server, drill};

/// Sends a canary halt through every connected enforcer, without touching a session, and answers
/// with what it came to, after at most ten seconds of waiting. The body is ignored.
#[utoipa::path(
    post, path = "/v1/drills/kill-switch", tag = "drills",
    responses((status = 200, body = DrillSummary), (status = 403, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem))
)]
pub(crate) async fn kill_switch(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<DrillSummary>, Failure> {
    caller.at_least(Role::Responder)?;
    caller.unbound("a drill reaches everybody's enforcers")?;
    drill::run(&server, caller.0.actor).await.map(Json)
}

/// Lists the last drills, the latest first.
#[utoipa::path(get, path = "/v1/drills", tag = "drills", responses((status = 200, body = [DrillSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<DrillSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("drills are the operator's")?;
    server.journal().ledger()?;
    Ok(Json(server.journal().read(|state| state.drills.latest_first().cloned().collect())))
}
