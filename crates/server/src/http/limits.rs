//! `/v1/limits`: to bound what tasks may do.
//!
//! A limit stops nobody who stays within it, so that it opens no incident and pages nobody; what is over
//! it, its guard stops and tells.

use axum::{Json, extract::State, http::StatusCode};
use estoppel_api::{Durable, LimitAccepted, LimitRequest, Problem, Role};
use estoppel_model::{Order, OrderBody};

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
