//! `/v1/limits`: to bound what tasks may do, and to see what bounds them.
//!
//! A limit stops nobody who stays within it, so that it opens no incident and pages nobody; what is over
//! it, its guard stops and tells.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use estoppel_api::{Durable, LimitAccepted, LimitRequest, LimitSummary, Problem, Role};
use estoppel_killswitch::server::Switch;
use estoppel_model::{EntityId, Order, OrderBody};

use super::{
    extract::{Caller, JsonBody},
    kill_switch::{durable, reason, within},
    problem::Failure,
};
use crate::Server;

/// Bounds what a scope's tasks may do. Of several limits the strictest holds, bound by bound; a lead
/// releases one by its id.
#[utoipa::path(
    post, path = "/v1/limits", tag = "kill switch", request_body = LimitRequest,
    responses((status = 202, body = LimitAccepted), (status = 403, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn post(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<LimitRequest>,
) -> Result<(StatusCode, Json<LimitAccepted>), Failure> {
    caller.at_least(Role::Responder)?;
    reason(&request.reason)?;
    let LimitRequest { scope, limit, reason, id, incident } = request;
    if limit.is_none() {
        let hint = "`limit` names no bound: such as {\"steps_max\": 100}".to_owned();
        return Err(Failure::Unprocessable(hint));
    }
    if limit.cost_usd_max.is_some_and(|cost| !cost.is_finite() || cost < 0.0) {
        return Err(Failure::Unprocessable("`cost_usd_max` is no amount from 0".to_owned()));
    }
    let order = Order {
        id: id.unwrap_or_default(),
        tenant: within(&caller, &scope)?,
        scope,
        reason,
        issued_by: caller.0.actor,
        issued_at: server.clock().now(),
        incident,
        body: OrderBody::Limit { limit: limit.clone() },
    };
    let mut given = server.switchboard().give(order).await??;
    if !given.repeated {
        server.incidents().ordered(&given);
    }
    let durable: Durable = durable(&mut given).await;
    let accepted = LimitAccepted {
        id: given.order.id,
        scope: given.order.scope.clone(),
        limit,
        durable,
        enforcers: given.expected,
    };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Lists the limits in force, earliest first.
#[utoipa::path(get, path = "/v1/limits", tag = "kill switch", responses((status = 200, body = [LimitSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<LimitSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    Ok(Json(active(&server, caller.0.tenant).await?))
}

/// All limits in force that somebody of this tenant may see.
pub(crate) async fn active(
    server: &Server,
    tenant: Option<EntityId>,
) -> Result<Vec<LimitSummary>, Failure> {
    let limits =
        server.switchboard().ask(move |switch, _| in_force(switch, tenant.as_ref())).await?;
    Ok(limits.iter().filter_map(|order| summary(order)).collect())
}

/// The orders behind them, earliest first.
pub(crate) fn in_force(switch: &Switch, tenant: Option<&EntityId>) -> Vec<Arc<Order>> {
    let is_visible = |order: &Order| {
        tenant.is_none() || order.tenant.is_none() || order.tenant.as_ref() == tenant
    };
    let mut limits: Vec<Arc<Order>> = switch
        .orders()
        .in_force()
        .filter(|order| matches!(order.body, OrderBody::Limit { .. }) && is_visible(order))
        .cloned()
        .collect();
    limits.sort_by_key(|order| (order.issued_at, order.id));
    limits
}

/// A limit for people; `None` of another order.
fn summary(order: &Order) -> Option<LimitSummary> {
    let OrderBody::Limit { limit } = &order.body else { return None };
    Some(LimitSummary {
        id: order.id,
        scope: order.scope.clone(),
        limit: limit.clone(),
        reason: order.reason.clone(),
        activated_by: order.issued_by.clone(),
        timestamp: order.issued_at,
        incident: order.incident,
    })
}
