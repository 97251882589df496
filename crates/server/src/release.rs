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

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use estoppel_api::{ReleaseAccepted, ReleasePending, ReleaseRequest};
use estoppel_incident::record::Noted;
use estoppel_killswitch::{is_drill, server::ReleaseError, server::ReleasePlan};
use estoppel_model::{
    Actor, EntityId, Kind, NewRecord, Order, OrderBody, OrderId, REASON_BYTES_MAX, Record,
    RecordKind, Scope, ScopeSet, Timestamp, Untrusted,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Server,
    http::{kill_switch::summary, problem::Failure},
    order,
    token::Identity,
};

/// Kind of the records of requests.
pub(crate) const REQUESTED: RecordKind = RecordKind::new("release.requested");
const APPROVED: RecordKind = RecordKind::new("release.approved");
/// How long a request waits for its second person.
const EXPIRY: Duration = Duration::from_secs(60 * 60);
/// Most requests that are remembered; the oldest make room.
const REQUESTS_MAX: usize = 256;
/// How long what was released is watched when nobody says otherwise.
const WATCH_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest and longest watch, in seconds.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 60 * 60;

/// Which halts need two persons to be released. By default none does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TwoPersons {
    /// Halts of everything.
    pub global: bool,
    /// Halts of scopes of these kinds.
    pub kinds: BTreeSet<Kind>,
}

impl TwoPersons {
    fn covers(&self, scope: &ScopeSet) -> bool {
        scope.iter().any(|scope| match scope {
            Scope::Global => self.global,
            Scope::Entity { kind, .. } => self.kinds.contains(kind),
            Scope::PluginVersions { .. } => self.kinds.contains(&Kind::Plugin),
        })
    }
}

/// Body of a `release.requested` record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Requested {
    id: Uuid,
    scope: ScopeSet,
    halts: BTreeSet<OrderId>,
    reason: String,
    by: Actor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<EntityId>,
    at: Timestamp,
    expires_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    watch_seconds: Option<u64>,
}

impl Requested {
    fn pending(&self) -> ReleasePending {
        ReleasePending {
            id: self.id,
            scope: self.scope.clone(),
            halts: self.halts.iter().copied().collect(),
            reason: self.reason.clone(),
            requested_by: self.by.clone(),
            requested_at: self.at,
            expires_at: self.expires_at,
        }
    }
}

/// Body of a `release.approved` record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Approved {
    id: Uuid,
    by: Actor,
    reason: String,
    /// The release that follows.
    release: OrderId,
}

/// The requests of the ledger, the latest last.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Requests(VecDeque<Requested>);

impl Requests {
    /// Takes a record in.
    pub(crate) fn apply(&mut self, record: &Record) {
        if record.kind != REQUESTED {
            return;
        }
        match record.parse::<Requested>() {
            Ok(requested) => {
                if self.0.len() == REQUESTS_MAX {
                    self.0.pop_front();
                }
                self.0.push_back(requested);
            }
            Err(error) => tracing::error!(record.seq, %error, "a request cannot be read"),
        }
    }
}

/// The requests that still wait for a second person and that somebody of this tenant may see.
pub(crate) async fn pending(
    server: &Server,
    tenant: Option<EntityId>,
) -> Result<Vec<ReleasePending>, Failure> {
    let now = server.clock().now();
    let waiting: Vec<Requested> = server.journal().read(|state| {
        let waits =
            |it: &&Requested| it.expires_at > now && (tenant.is_none() || it.tenant == tenant);
        state.release_requests.0.iter().filter(waits).cloned().collect()
    });
    // What was released otherwise waits for nobody.
    let waiting = server.switchboard().ask(move |switch, _| {
        let stands = |it: &Requested| it.halts.iter().all(|id| switch.orders().is_in_force(*id));
        waiting.into_iter().filter(stands).collect::<Vec<_>>()
    });
    Ok(waiting.await?.iter().map(Requested::pending).collect())
}

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
    if let Some(seconds) = request.watch_seconds
        && seconds != 0
        && !WATCH_SECONDS.contains(&seconds)
    {
        return Err(Failure::Unprocessable(format!(
            "`watch_seconds` is {seconds}: expected 0, or {} to {}",
            WATCH_SECONDS.start(),
            WATCH_SECONDS.end()
        )));
    }
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
    let now = server.clock().now();
    let known: Vec<Requested> = server.journal().read(|state| {
        let same = |it: &&Requested| it.expires_at > now && it.halts == halts;
        state.release_requests.0.iter().filter(same).cloned().collect()
    });
    if let Some(first) = known.iter().find(|first| is_other_person(server, caller, first)) {
        return approved(server, caller, first, id, &request.reason, planned).await;
    }
    let waiting = match known.into_iter().next_back() {
        Some(own) => own,
        None => ask_for_second(server, caller, &request, halts, planned.plan.tenant).await?,
    };
    let mut accepted = still_active(server, id, Vec::new(), request.scope).await?;
    accepted.pending = Some(waiting.pending());
    Ok(accepted)
}

/// A second person approves a request.
///
/// # Errors
/// When there is none of this id that waits, or the first person asks.
pub(crate) async fn approve(
    server: &Server,
    caller: &Identity,
    id: Uuid,
    reason: String,
    may_reach: impl FnOnce(&ScopeSet) -> Result<Option<EntityId>, Failure>,
) -> Result<ReleaseAccepted, Failure> {
    server.journal().ledger()?;
    let now = server.clock().now();
    let request = server.journal().read(|state| {
        let mut all = state.release_requests.0.iter();
        all.find(|it| it.id == id && it.expires_at > now).cloned()
    });
    let nobody =
        || Failure::NotFound(format!("no release {id} waits for a second person (any more)"));
    let first = request.ok_or_else(nobody)?;
    if caller.tenant.is_some() && caller.tenant != first.tenant {
        return Err(nobody());
    }
    let bound = may_reach(&first.scope)?;
    if !is_other_person(server, caller, &first) {
        return Err(Failure::SecondPerson(format!(
            "{} asked for this release: another person must approve it, with a token that was \
             minted before {}",
            first.by, first.at
        )));
    }
    let request = ReleaseRequest {
        scope: first.scope.clone(),
        reason: first.reason.clone(),
        halts: Some(first.halts.iter().copied().collect()),
        id: None,
        watch_seconds: first.watch_seconds,
    };
    let planned = planned(server, &request, bound.as_ref()).await?;
    approved(server, caller, &first, OrderId::new(), &reason, planned).await
}

/// Whether the caller is somebody else than who asked first.
fn is_other_person(server: &Server, caller: &Identity, first: &Requested) -> bool {
    let folded = |actor: &Actor| actor.as_str().to_lowercase();
    let older = || {
        let tokens = server.tokens().list();
        tokens.iter().any(|token| token.id == caller.token && token.created_at <= first.at)
    };
    folded(&caller.actor) != folded(&first.by) && older()
}

async fn ask_for_second(
    server: &Server,
    caller: &Identity,
    request: &ReleaseRequest,
    halts: BTreeSet<OrderId>,
    tenant: Option<EntityId>,
) -> Result<Requested, Failure> {
    let at = server.clock().now();
    let requested = Requested {
        id: Uuid::now_v7(),
        scope: request.scope.clone(),
        halts,
        reason: request.reason.clone(),
        by: caller.actor.clone(),
        tenant,
        at,
        expires_at: at + EXPIRY,
        watch_seconds: request.watch_seconds,
    };
    let record = NewRecord::json(REQUESTED, None, at, &requested).map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    Ok(requested)
}

async fn approved(
    server: &Server,
    caller: &Identity,
    first: &Requested,
    release: OrderId,
    reason: &str,
    planned: Planned,
) -> Result<ReleaseAccepted, Failure> {
    let by = caller.actor.clone();
    let approved = Approved { id: first.id, by: by.clone(), reason: reason.to_owned(), release };
    let record = NewRecord::json(APPROVED, None, server.clock().now(), &approved)
        .map_err(Failure::internal)?;
    server.journal().append(record).await?;
    let both = format!("{} (asked for by {}, approved by {by}: {reason})", first.reason, first.by);
    let request = ReleaseRequest {
        scope: first.scope.clone(),
        reason: shortened(both),
        halts: None,
        id: Some(release),
        watch_seconds: first.watch_seconds,
    };
    end(server, release, request, planned, by).await
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
    let watch = watch(server, request.watch_seconds, &release, &orders).await;
    server.switchboard().give_recorded(signed).await??;
    let halts = orders.iter().filter(|order| matches!(order.body, OrderBody::Halt { .. }));
    halts.for_each(|order| server.responder().released(order));
    server.incidents().released(&orders, &request.reason, &by).await?;
    let mut accepted = still_active(server, id, plan.orders, request.scope).await?;
    accepted.watch = watch.map(|order| summary(&order));
    Ok(accepted)
}

/// Puts what is released under watch.
async fn watch(
    server: &Server,
    wished: Option<u64>,
    release: &Order,
    orders: &[Arc<Order>],
) -> Option<Arc<Order>> {
    let is_halt = |order: &Arc<Order>| matches!(order.body, OrderBody::Halt { .. });
    if !orders.iter().any(is_halt) || orders.iter().any(|order| is_drill(order)) {
        return None;
    }
    let everything = release.scope.iter().any(|scope| *scope == Scope::Global);
    let duration = match wished {
        Some(0) => return None,
        Some(seconds) => Duration::from_secs(seconds),
        None if everything => return None,
        None => WATCH_DEFAULT,
    };
    let until = release.issued_at + duration;
    let order = Order {
        id: OrderId::new(),
        scope: release.scope.clone(),
        reason: shortened(format!("watched closely after a release: {}", release.reason)),
        issued_by: release.issued_by.clone(),
        issued_at: release.issued_at,
        incident: release.incident,
        tenant: release.tenant.clone(),
        body: OrderBody::Watch { until: Some(until) },
    };
    let given = match server.switchboard().give(order).await {
        Ok(Ok(given)) => given,
        Ok(Err(error)) => {
            tracing::error!(%error, "what is released is not watched");
            return None;
        }
        Err(_) => return None,
    };
    if let Some(incident) = release.incident {
        let text = format!("{} is watched closely until {until}", release.scope);
        let noted = Noted { incident, text: Untrusted::new(text), by: release.issued_by.clone() };
        match noted.record(release.issued_at) {
            Ok(record) => {
                if let Err(error) = server.journal().append(record).await {
                    tracing::error!(%error, "a note about a watch could not be written");
                }
            }
            Err(error) => tracing::error!(%error, "a note about a watch cannot be written"),
        }
    }
    Some(given.order)
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
    fn the_policy_covers_what_it_names() {
        let check = |policy: &TwoPersons, scope: &str, expect: bool| {
            let scopes: Vec<Scope> = scope.split(' ').map(|scope| scope.parse().unwrap()).collect();
            assert_eq!(policy.covers(&ScopeSet::new(scopes).unwrap()), expect, "{scope}");
        };
        let none = TwoPersons::default();
        check(&none, "global", false);
        let policy =
            TwoPersons { global: true, kinds: BTreeSet::from([Kind::Tenant, Kind::Plugin]) };
        check(&policy, "global", true);
        check(&policy, "tenant:acme", true);
        check(&policy, "plugin:x@>=2", true);
        check(&policy, "session:a", false);
        check(&policy, "session:a tenant:acme", true);
    }

    #[test]
    fn two_reasons_fit_where_one_does() {
        assert_eq!(shortened("ok".to_owned()), "ok");
        let long = shortened("ü".repeat(REASON_BYTES_MAX));
        assert!(long.len() <= REASON_BYTES_MAX && long.ends_with("ü..."), "{}", long.len());
    }
}
