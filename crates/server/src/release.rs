//! Ending halts: what is named, with a reason, in the ledger first (*starting-always-does*).
//!
//! By policy some scopes need two persons. The first one's request is a record of the ledger and
//! ends nothing; the release of the same halts by another person, or that person's approval, ends
//! them. A request is forgotten after an hour, and outlasts a restart until then. Two tokens of one
//! name are one person. So that nobody becomes two by minting a token, the second one's must be
//! older than the request; who may mint tokens beforehand is an admin, and the ledger says so.
//!
//! What was released is watched closely for a day, unless somebody says otherwise: see
//! `DetectPolicy::tightened`.

mod two_persons;
mod watch;

use std::{collections::BTreeSet, sync::Arc};

use estoppel_api::{ReleaseAccepted, ReleaseRequest};
use estoppel_killswitch::server::{ReleaseError, ReleasePlan};
use estoppel_model::{
    Actor, EntityId, Order, OrderBody, OrderId, REASON_BYTES_MAX, Scope, ScopeSet,
};

pub use self::two_persons::TwoPersons;
pub(crate) use self::two_persons::{REQUESTED, Requests, approve, pending};
use crate::{
    Server,
    http::{kill_switch::summary, problem::Failure},
    order,
    token::Identity,
};

/// A release as it would be written.
struct Planned {
    plan: ReleasePlan,
    orders: Vec<Arc<Order>>,
}

async fn planned(
    server: &Server,
    request: &ReleaseRequest,
    bound: Option<&EntityId>,
) -> Result<Planned, Failure> {
    watch::check(request.watch_seconds)?;
    let (scope, named) = (request.scope.clone(), request.halts.clone());
    let planned = server.switchboard().ask(move |switch, _| {
        let plan = switch.plan_release(&scope, named.as_deref())?;
        let orders =
            plan.orders.iter().filter_map(|id| switch.orders().order(*id).cloned()).collect();
        Ok::<_, ReleaseError>(Planned { plan, orders })
    });
    let planned = planned.await?.map_err(which)?;
    if let Some(tenant) = bound
        && planned.orders.iter().any(|order| order.tenant.as_ref() != Some(tenant))
    {
        return Err(Failure::OtherTenant {
            tenant: tenant.to_string(),
            what: "a halt that somebody else gave is not its to end".to_owned(),
        });
    }
    Ok(planned)
}

/// A person wants halts released: ends them, or writes down that a second person is needed.
///
/// # Errors
/// When the ledger does not answer, or it is not clear which halts are meant.
pub(crate) async fn by_person(
    server: &Server,
    caller: &Identity,
    request: ReleaseRequest,
    bound: Option<&EntityId>,
) -> Result<ReleaseAccepted, Failure> {
    // Who has asked before stands there; until it is open, nobody knows.
    server.journal().ledger()?;
    let id = request.id.unwrap_or_default();
    if let Some(accepted) = repeated(server, id).await? {
        return Ok(accepted);
    }
    let planned = planned(server, &request, bound).await?;
    let policy = &server.config().two_persons;
    let is_halt = |order: &Arc<Order>| matches!(order.body, OrderBody::Halt { .. });
    let needs_two =
        planned.orders.iter().any(|order| is_halt(order) && policy.covers(&order.scope));
    if !needs_two {
        return end(server, id, request, planned, caller.actor.clone()).await;
    }
    let halts: BTreeSet<OrderId> = planned.plan.orders.iter().copied().collect();
    let known = two_persons::waiting_for(server, &halts);
    if let Some(first) =
        known.iter().find(|first| two_persons::is_other_person(server, caller, first))
    {
        return two_persons::approved(server, caller, first, id, &request.reason, planned).await;
    }
    let waiting = match known.into_iter().next_back() {
        Some(own) => own,
        None => {
            two_persons::ask_for_second(server, caller, &request, halts, planned.plan.tenant)
                .await?
        }
    };
    let mut accepted = still_active(server, id, Vec::new(), request.scope).await?;
    accepted.pending = Some(waiting.pending());
    Ok(accepted)
}

/// Two reasons and two names may be longer than one reason; the records before have all of it.
fn shortened(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        let cut = (0..=REASON_BYTES_MAX - 3).rev().find(|at| reason.is_char_boundary(*at));
        reason.truncate(cut.unwrap_or_default());
        reason.push_str("...");
    }
    reason
}

/// Writes a release into the ledger and then gives it, for the server itself: no second person is
/// asked.
pub(crate) async fn by_server(
    server: &Server,
    request: ReleaseRequest,
    by: Actor,
) -> Result<ReleaseAccepted, Failure> {
    let id = request.id.unwrap_or_default();
    let planned = planned(server, &request, None).await?;
    end(server, id, request, planned, by).await
}

async fn end(
    server: &Server,
    id: OrderId,
    request: ReleaseRequest,
    planned: Planned,
    by: Actor,
) -> Result<ReleaseAccepted, Failure> {
    let Planned { plan, orders } = planned;
    let now = server.clock().now();
    let release = Order {
        id,
        scope: plan.scope,
        reason: request.reason.clone(),
        issued_by: by.clone(),
        issued_at: now,
        incident: orders.iter().find_map(|order| order.incident),
        tenant: plan.tenant,
        body: OrderBody::Release { orders: plan.orders.clone() },
    };
    let text = serde_json::to_string(&release).map_err(Failure::internal)?;
    let signed = server.switchboard().sign(text).await?;
    let record = order::record(id, &signed, now).map_err(Failure::internal)?;
    server.journal().append(record).await?;
    // Before the release: nothing that starts again acts unwatched.
    let watch = watch::begin(server, request.watch_seconds, &release, &orders).await;
    server.switchboard().give_recorded(signed).await??;
    let halts = orders.iter().filter(|order| matches!(order.body, OrderBody::Halt { .. }));
    halts.for_each(|order| server.responder().released(order));
    server.incidents().released(&orders, &request.reason, &by).await?;
    let mut accepted = still_active(server, id, plan.orders, request.scope).await?;
    accepted.watch = watch.map(|order| summary(&order));
    Ok(accepted)
}

/// The answer to a release that was given before under the same id.
async fn repeated(server: &Server, id: OrderId) -> Result<Option<ReleaseAccepted>, Failure> {
    let known =
        server.switchboard().ask(move |switch, _| switch.orders().order(id).cloned()).await?;
    let Some(order) = known else { return Ok(None) };
    match &order.body {
        OrderBody::Release { orders } => {
            still_active(server, id, orders.clone(), order.scope.clone()).await.map(Some)
        }
        _ => Err(Failure::Conflict(format!("order {id} is no release: take a new id"))),
    }
}

async fn still_active(
    server: &Server,
    id: OrderId,
    halts: Vec<OrderId>,
    scope: ScopeSet,
) -> Result<ReleaseAccepted, Failure> {
    let still = server.switchboard().ask(move |switch, _| {
        let mut still = switch.active_halts(&scope);
        for order in switch.active_halts(&Scope::Global.into()) {
            if !still.iter().any(|known| known.id == order.id) {
                still.push(order);
            }
        }
        still
    });
    let still_active = still.await?.iter().map(|order| summary(order)).collect();
    Ok(ReleaseAccepted { id, halts, still_active, pending: None, watch: None })
}

fn which(error: ReleaseError) -> Failure {
    let detail = error.to_string();
    match error {
        ReleaseError::NothingActive { .. } => Failure::NotFound(detail),
        ReleaseError::Ambiguous { active, .. } | ReleaseError::NotActive { active, .. } => {
            Failure::WhichHalts {
                detail,
                halts: active.iter().map(|order| summary(order)).collect(),
            }
        }
        ReleaseError::SeveralTenants | ReleaseError::TooMany { .. } => {
            Failure::Unprocessable(detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reasons_fit_where_one_does() {
        assert_eq!(shortened("ok".to_owned()), "ok");
        let long = shortened("ü".repeat(REASON_BYTES_MAX));
        assert!(long.len() <= REASON_BYTES_MAX && long.ends_with("ü..."), "{}", long.len());
    }
}
