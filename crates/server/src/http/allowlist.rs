//! `/v1/allowlist`: where agents may send to.

use axum::{Json, extract::State};
use estoppel_api::{Allowlist, AllowlistSuggestion, GatewayPolicy, Problem, Role};
use estoppel_extract::Allowlist as Parsed;
use estoppel_model::NewRecord;

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{Server, journal::AllowlistSet};

/// Tells the allowlist; `null` while none is set.
#[utoipa::path(get, path = "/v1/allowlist", tag = "egress", responses((status = 200, body = Allowlist)))]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Allowlist>, Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Viewer)?;
    server.journal().ledger()?;
    Ok(Json(Allowlist { domains: server.journal().read(|state| state.allowlist.clone()) }))
}

/// Sets the whole allowlist, or forgets it. A list with one wrong entry is refused whole.
#[utoipa::path(
    put, path = "/v1/allowlist", tag = "egress", request_body = Allowlist,
    responses((status = 200, body = Allowlist), (status = 422, body = Problem))
)]
pub(crate) async fn put(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<Allowlist>,
) -> Result<Json<Allowlist>, Failure> {
    caller.at_least(Role::Admin)?;
    caller.unbound("the allowlist is everybody's")?;
    if let Some(domains) = &request.domains {
        Parsed::parse(domains).map_err(|error| Failure::Unprocessable(error.to_string()))?;
    }
    let set = AllowlistSet { domains: request.domains.clone(), by: caller.0.actor };
    let record = NewRecord::json(AllowlistSet::KIND, None, server.clock().now(), &set)
        .map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    server.apply_allowlist();
    Ok(Json(request))
}

/// Tells what gateways enforce beside orders. Before the ledger is open nothing is told, and
/// gateways go on with what they have.
#[utoipa::path(
    get, path = "/v1/gateway/policy", tag = "egress", responses((status = 200, body = GatewayPolicy))
)]
pub(crate) async fn policy(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<GatewayPolicy>, Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Viewer)?;
    server.journal().ledger()?;
    Ok(Json(GatewayPolicy {
        mode: server.config().gateway_mode.clone(),
        domains: server.journal().read(|state| state.allowlist.clone()),
        key: server.key().public().to_owned(),
    }))
}

/// Lists where agents went while egress was learned.
#[utoipa::path(
    get, path = "/v1/allowlist/suggest", tag = "egress",
    responses((status = 200, body = [AllowlistSuggestion]))
)]
pub(crate) async fn suggest(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<AllowlistSuggestion>>, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("it cannot see where others went")?;
    Ok(Json(server.responder().suggestions()))
}
