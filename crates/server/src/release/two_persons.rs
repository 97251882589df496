//! Releases that need two persons by policy: the first one's request, and the second one's approval.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use estoppel_api::{ReleaseAccepted, ReleasePending, ReleaseRequest};
use estoppel_model::{
    Actor, EntityId, Kind, NewRecord, OrderId, Record, RecordKind, Scope, ScopeSet, Timestamp,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Planned, end, planned, shortened};
use crate::{Server, http::problem::Failure, token::Identity};

/// Kind of the records of requests.
pub(crate) const REQUESTED: RecordKind = RecordKind::new("release.requested");
const APPROVED: RecordKind = RecordKind::new("release.approved");
/// How long a request waits for its second person.
const EXPIRY: Duration = Duration::from_secs(60 * 60);
/// Most requests that are remembered; the oldest make room.
const REQUESTS_MAX: usize = 256;
/// Which halts need two persons to be released. By default none does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TwoPersons {
    /// Halts of everything.
    pub global: bool,
    /// Halts of scopes of these kinds.
    pub kinds: BTreeSet<Kind>,
}

impl TwoPersons {
    pub(super) fn covers(&self, scope: &ScopeSet) -> bool {
        scope.iter().any(|scope| match scope {
            Scope::Global => self.global,
            Scope::Entity { kind, .. } => self.kinds.contains(kind),
            Scope::PluginVersions { .. } => self.kinds.contains(&Kind::Plugin),
        })
    }
}

/// Body of a `release.requested` record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Requested {
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
    pub(super) fn pending(&self) -> ReleasePending {
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

/// The requests that wait for a second person to release exactly these halts, the latest last.
pub(super) fn waiting_for(server: &Server, halts: &BTreeSet<OrderId>) -> Vec<Requested> {
    let now = server.clock().now();
    server.journal().read(|state| {
        let same = |it: &&Requested| it.expires_at > now && it.halts == *halts;
        state.release_requests.0.iter().filter(same).cloned().collect()
    })
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
pub(super) fn is_other_person(server: &Server, caller: &Identity, first: &Requested) -> bool {
    let folded = |actor: &Actor| actor.as_str().to_lowercase();
    let older = || {
        let tokens = server.tokens().list();
        tokens.iter().any(|token| token.id == caller.token && token.created_at <= first.at)
    };
    folded(&caller.actor) != folded(&first.by) && older()
}

pub(super) async fn ask_for_second(
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

pub(super) async fn approved(
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
}
