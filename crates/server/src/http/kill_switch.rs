//! `/kill-switch`, `/v1/halts`, `/v1/blocks`: to stop, to ask, to let go on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use estoppel_api::{
    ApproveReleaseRequest, BlockRequest, Durable, EnforcerProgress, HaltAccepted, HaltPlan,
    HaltRequest, HaltState, HaltStatus, HaltSummary, KillSwitchState, PlanRequest, Problem,
    ReleaseAccepted, ReleasePending, ReleaseRequest, Role,
};
use estoppel_killswitch::{
    frame::EnforcerKind,
    is_drill,
    server::{HaltProgress, SubmitError},
};
use estoppel_model::{
    EntityId, IncidentId, Kind, Order, OrderBody, OrderId, REASON_BYTES_MAX, Scope, ScopeSet,
    Subject,
};
use serde::Deserialize;

use super::{
    extract::{Caller, JsonBody},
    halted,
    problem::Failure,
};
use crate::{
    Server, release,
    switchboard::{Ended, Given},
};

/// How long an answer waits to learn how safely an order is kept. The whole answer has 250 ms.
const DURABLE_WAIT: Duration = Duration::from_millis(100);

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        Self::Unavailable(ended.to_string())
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Conflict(_) => Self::Conflict(error.to_string()),
            SubmitError::TooLarge { .. } | SubmitError::Order(_) => {
                Self::Unprocessable(error.to_string())
            }
            SubmitError::ReleaseNeedsLedger => Self::internal(error),
        }
    }
}

/// Whether a text is a reason: there is one, and it is not too long.
pub(super) fn reason(text: &str) -> Result<(), Failure> {
    if text.trim().is_empty() {
        return Err(Failure::Unprocessable("`reason` is empty: say why".to_owned()));
    }
    if text.len() > REASON_BYTES_MAX {
        return Err(Failure::Unprocessable(format!(
            "`reason` has {} bytes: at most {REASON_BYTES_MAX}",
            text.len()
        )));
    }
    Ok(())
}

/// Whether a caller may halt these scopes.
///
/// # Errors
/// When their role or their tenant forbids it.
pub(crate) fn may_halt(caller: &Caller, scope: &ScopeSet) -> Result<(), Failure> {
    caller.at_least(Role::Responder)?;
    within(caller, scope).map(|_| ())
}

/// A token that is bound to a tenant may stop what is that tenant's, and nothing wider.
pub(super) fn within(caller: &Caller, scope: &ScopeSet) -> Result<Option<EntityId>, Failure> {
    let Some(tenant) = &caller.0.tenant else { return Ok(None) };
    let wide = scope.iter().find(|scope| match scope {
        Scope::Global => true,
        Scope::Entity { kind: Kind::Tenant, id } => id != tenant,
        _ => false,
    });
    match wide {
        Some(wide) => Err(Failure::OtherTenant {
            tenant: tenant.to_string(),
            what: format!("it cannot reach `{wide}`"),
        }),
        None => Ok(Some(tenant.clone())),
    }
}

/// Halts a scope. It is in force and on its way to every enforcer when the answer comes.
#[utoipa::path(
    post, path = "/kill-switch", tag = "kill switch", request_body = HaltRequest,
    responses((status = 202, body = HaltAccepted), (status = 400, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn halt(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<HaltRequest>,
) -> Result<(StatusCode, Json<HaltAccepted>), Failure> {
    caller.at_least(Role::Responder)?;
    if request.until.is_some_and(|until| until <= server.clock().now()) {
        return Err(Failure::Unprocessable("`until` is not in the future".to_owned()));
    }
    let HaltRequest { scope, reason, id, until, incident } = request;
    let body = OrderBody::Halt { until };
    give(&server, caller, Wish { id, scope, reason, incident, body }).await
}

/// What a person wants ordered.
struct Wish {
    id: Option<OrderId>,
    scope: ScopeSet,
    reason: String,
    incident: Option<IncidentId>,
    body: OrderBody,
}

/// Puts an order in force; its incident is opened, paged and followed behind it.
async fn give(
    server: &Server,
    caller: Caller,
    wish: Wish,
) -> Result<(StatusCode, Json<HaltAccepted>), Failure> {
    let begun = Instant::now();
    reason(&wish.reason)?;
    let tenant = within(&caller, &wish.scope)?;
    let subject = Subject::default();
    let chosen = server.incidents().choose(Some(&wish.scope), &subject, wish.incident);
    let order = Order {
        id: wish.id.unwrap_or_default(),
        scope: wish.scope,
        reason: wish.reason,
        issued_by: caller.0.actor,
        issued_at: server.clock().now(),
        incident: Some(chosen.id),
        tenant,
        body: wish.body,
    };
    let follows = server.incidents().follows(&order, &chosen);
    let given = match server.switchboard().give_with(order, follows).await {
        Ok(Ok(given)) => given,
        Ok(Err(error)) => {
            server.incidents().forget(chosen);
            return Err(error.into());
        }
        Err(ended) => return Err(ended.into()),
    };
    server.metrics().order_accept.observe(begun.elapsed().as_secs_f64());
    if given.repeated {
        server.incidents().forget(chosen);
    } else {
        server.incidents().halted_by_person(&given, chosen);
    }
    Ok((StatusCode::ACCEPTED, Json(accepted(given).await)))
}

/// How safely an order is kept by the time an answer is due.
pub(super) async fn durable(given: &mut Given) -> Durable {
    let kept = given.durable.wait_for(|durable| *durable == Durable::Ledger);
    // Whatever was reached by then is what is said.
    let _ = tokio::time::timeout(DURABLE_WAIT, kept).await;
    *given.durable.borrow()
}

async fn accepted(mut given: Given) -> HaltAccepted {
    let durable = durable(&mut given).await;
    let order = &given.order;
    HaltAccepted {
        id: order.id,
        scope: order.scope.clone(),
        durable,
        incident: order.incident.unwrap_or_default(),
        timestamp: order.issued_at,
        enforcers: given.expected,
        repeated: given.repeated,
    }
}

/// Refuses and cuts a destination.
#[utoipa::path(
    post, path = "/v1/blocks", tag = "kill switch", request_body = BlockRequest,
    responses((status = 202, body = HaltAccepted), (status = 403, body = Problem))
)]
pub(crate) async fn block(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<BlockRequest>,
) -> Result<(StatusCode, Json<HaltAccepted>), Failure> {
    caller.at_least(Role::Responder)?;
    let BlockRequest { scope, destination, reason, id, incident } = request;
    let body = OrderBody::Block { destination };
    give(&server, caller, Wish { id, scope, reason, incident, body }).await
}

/// Which scope is asked about.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScopeQuery {
    /// `global` (the default) or `KIND:ID`.
    scope: Option<String>,
}

/// Tells whether a scope is halted.
#[utoipa::path(
    get, path = "/kill-switch", tag = "kill switch", params(ScopeQuery),
    responses((status = 200, body = KillSwitchState), (status = 400, body = Problem))
)]
pub(crate) async fn state(
    State(server): State<Server>,
    caller: Caller,
    query: Result<Query<ScopeQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<KillSwitchState>, Failure> {
    caller.machine_or(&[Role::Agent, Role::Enforcer], Role::Viewer)?;
    let Query(query) = query.map_err(|error| Failure::Malformed(error.body_text()))?;
    let scope = query.scope.as_deref().unwrap_or("global").parse::<Scope>();
    let scope: ScopeSet = scope.map_err(|error| Failure::Malformed(error.to_string()))?.into();
    let tenant = within_or_global(&caller, &scope)?;
    let (halts, stop) = server
        .switchboard()
        .ask(move |switch, _| (switch.active_halts(&scope), switch.stop(&scope)))
        .await?;
    let halts: Vec<HaltSummary> = halts
        .iter()
        .filter(|order| tenant.is_none() || order.tenant.is_none() || order.tenant == tenant)
        .map(|order| summary(order))
        .collect();
    let first = halts.first();
    Ok(Json(KillSwitchState {
        active: !halts.is_empty(),
        reason: first.map(|halt| halt.reason.clone()),
        activated_by: first.map(|halt| halt.activated_by.clone()),
        timestamp: first.map(|halt| halt.timestamp),
        stop,
        halts,
    }))
}

/// A bound token may ask about everything's state, too: its agents stop by it.
fn within_or_global(caller: &Caller, scope: &ScopeSet) -> Result<Option<EntityId>, Failure> {
    if *scope == ScopeSet::from(Scope::Global) {
        return Ok(caller.0.tenant.clone());
    }
    within(caller, scope)
}

/// A halt for people.
pub(crate) fn summary(order: &Order) -> HaltSummary {
    let until = match order.body {
        OrderBody::Halt { until } | OrderBody::Watch { until } => until,
        _ => None,
    };
    HaltSummary {
        id: order.id,
        scope: order.scope.clone(),
        reason: order.reason.clone(),
        activated_by: order.issued_by.clone(),
        timestamp: order.issued_at,
        until,
        incident: order.incident,
    }
}

/// Ends halts, by name and with a reason. Needs the ledger: what starts agents again is written
/// before it happens.
#[utoipa::path(
    post, path = "/kill-switch/release", tag = "kill switch", request_body = ReleaseRequest,
    responses((status = 200, body = ReleaseAccepted), (status = 202, body = ReleaseAccepted), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem))
)]
pub(crate) async fn release(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<ReleaseRequest>,
) -> Result<(StatusCode, Json<ReleaseAccepted>), Failure> {
    caller.at_least(Role::Lead)?;
    reason(&request.reason)?;
    let bound = within(&caller, &request.scope)?;
    release::by_person(&server, &caller.0, request, bound.as_ref()).await.map(answered)
}

/// 202 while a second person is waited for.
fn answered(accepted: ReleaseAccepted) -> (StatusCode, Json<ReleaseAccepted>) {
    let status = if accepted.pending.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    (status, Json(accepted))
}

/// Approves a release that another person asked for.
#[utoipa::path(
    post, path = "/v1/releases/{id}/approve", tag = "kill switch", request_body = ApproveReleaseRequest,
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = ReleaseAccepted), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(crate) async fn approve_release(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<uuid::Uuid>,
    JsonBody(request): JsonBody<ApproveReleaseRequest>,
) -> Result<(StatusCode, Json<ReleaseAccepted>), Failure> {
    caller.at_least(Role::Lead)?;
    reason(&request.reason)?;
    let may_reach = |scope: &ScopeSet| within(&caller, scope);
    release::approve(&server, &caller.0, id, request.reason, may_reach).await.map(answered)
}

/// Lists the releases that wait for a second person, earliest first.
#[utoipa::path(get, path = "/v1/releases", tag = "kill switch", responses((status = 200, body = [ReleasePending])))]
pub(crate) async fn releases_pending(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<ReleasePending>>, Failure> {
    caller.at_least(Role::Viewer)?;
    server.journal().ledger()?;
    release::pending(&server, caller.0.tenant).await.map(Json)
}

/// Tells what a halt would hit. Changes nothing.
#[utoipa::path(
    post, path = "/v1/halts/plan", tag = "kill switch", request_body = PlanRequest,
    responses((status = 200, body = HaltPlan), (status = 400, body = Problem), (status = 403, body = Problem))
)]
pub(crate) async fn plan(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<PlanRequest>,
) -> Result<Json<HaltPlan>, Failure> {
    caller.at_least(Role::Viewer)?;
    within(&caller, &request.scope)?;
    Ok(Json(crate::plan::plan(&server, &caller.0, request.scope).await?))
}

/// Lists the active halts, earliest first.
#[utoipa::path(get, path = "/v1/halts", tag = "kill switch", responses((status = 200, body = [HaltSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<HaltSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    let tenant = caller.0.tenant;
    Ok(Json(active(&server, tenant).await?))
}

/// All active halts that somebody of this tenant may see; a drill's canary is none.
pub(crate) async fn active(
    server: &Server,
    tenant: Option<EntityId>,
) -> Result<Vec<HaltSummary>, Failure> {
    let halts = server
        .switchboard()
        .ask(|switch, _| {
            let mut halts: Vec<Arc<Order>> = switch
                .orders()
                .in_force()
                .filter(|order| matches!(order.body, OrderBody::Halt { .. }) && !is_drill(order))
                .cloned()
                .collect();
            halts.sort_by_key(|order| (order.issued_at, order.id));
            halts
        })
        .await?;
    let visible =
        |order: &&Arc<Order>| tenant.is_none() || order.tenant.is_none() || order.tenant == tenant;
    Ok(halts.iter().filter(visible).map(|order| summary(order)).collect())
}

/// Tells how far a halt has been carried out, enforcer by enforcer.
#[utoipa::path(
    get, path = "/v1/halts/{id}", tag = "kill switch", params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = HaltStatus), (status = 404, body = Problem))
)]
pub(crate) async fn status(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<HaltStatus>, Failure> {
    caller.at_least(Role::Viewer)?;
    let id: OrderId = id
        .parse()
        .map_err(|error: estoppel_model::IdError| Failure::Malformed(error.to_string()))?;
    let nobody = || Failure::NotFound(format!("there is no order {id}"));
    let (known, in_force) = server
        .switchboard()
        .ask(move |switch, _| (switch.orders().order(id).cloned(), switch.orders().is_in_force(id)))
        .await?;
    let order = known.ok_or_else(nobody)?;
    if caller.0.tenant.is_some() && order.tenant.is_some() && order.tenant != caller.0.tenant {
        return Err(nobody());
    }
    let mut status = match server.switchboard().progress(id).await? {
        Some((progress, durable)) => progress_status(&progress, durable),
        // Given before this server's start: its words are in the incident.
        None => {
            let durable = server.switchboard().durability(id).await?;
            server.journal().read(|state| {
                let incident = order.incident.and_then(|id| state.incidents.incident(id));
                halted::status(&order, incident, in_force, durable)
            })
        }
    };
    if status.by_lease > 0 && in_force {
        let now = server.clock().now();
        status.break_glass_until =
            server.journal().read(|state| state.break_glasses.good_until(now));
    }
    Ok(Json(status))
}

fn progress_status(progress: &HaltProgress, durable: Durable) -> HaltStatus {
    let state = if !progress.in_force {
        HaltState::Released
    } else if progress.is_over() && progress.gone > 0 {
        HaltState::Unsettled
    } else if progress.is_over() {
        HaltState::Settled
    } else if progress.all_refuse() {
        HaltState::Refusing
    } else {
        HaltState::Sent
    };
    let micros = |after: Duration| u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
    let enforcers = progress
        .enforcers
        .iter()
        .map(|word| EnforcerProgress {
            name: word.name.to_string(),
            kind: kind(word.kind).to_owned(),
            witness: word.witness,
            expected: word.expected,
            refusing_at: word.refusing.map(|reached| reached.at),
            refusing_after_us: word.refusing.map(|reached| micros(reached.after)),
            settled_at: word.settled.map(|reached| reached.at),
            settled_after_us: word.settled.map(|reached| micros(reached.after)),
            settlement: if word.settlement.is_empty() {
                serde_json::Value::Null
            } else {
                serde_json::to_value(&word.settlement).unwrap_or_default()
            },
            unsupported: word.unsupported,
            by_lease: word.by_lease,
            gone: word.gone,
            lease_until: word.lease_until,
        })
        .collect();
    HaltStatus {
        halt: summary(&progress.order),
        state,
        expected: progress.expected,
        refusing: progress.refusing,
        settled: progress.settled,
        by_lease: progress.by_lease,
        gone: progress.gone,
        unknown_until: progress.unknown_until,
        break_glass_until: None,
        durable,
        enforcers,
    }
}

/// The enforcement point's word.
pub(crate) const fn kind(kind: EnforcerKind) -> &'static str {
    match kind {
        EnforcerKind::Guard => "guard",
        EnforcerKind::Gateway => "gateway",
        EnforcerKind::Host => "host",
    }
}
