//! `/release`: ends halts that are named one by one, with a reason.
//!
//! Starting is the guarded direction, so this page is not live: what was ticked is what was read.
//! Halts of several scopes end by one release for each scope, whose ids come from the form's.

use askama::Template;
use axum::{Json, extract::State, http::StatusCode, response::Response};
use estoppel_api::{HaltSummary, ReleasePending, ReleaseRequest, Role};
use estoppel_model::{Order, OrderBody, OrderId, ScopeSet};
use sha2::{Digest as _, Sha256};

use super::{
    Frame, page,
    problem::{self, Link},
    see_other,
    sessions::same,
    view::{HaltView, Shown},
    visitor::{Act, Visitor},
};
use crate::{
    Server,
    http::{extract::JsonBody, kill_switch, problem::Failure},
};

/// Most halts that can be chosen from; the command line reaches the rest.
const HALTS_MAX: usize = 200;

/// A halt to tick.
#[derive(Debug)]
struct Pick {
    halt: HaltView,
    chosen: bool,
}

#[derive(Template)]
#[template(path = "release.html")]
struct Page {
    frame: Frame,
    problem: Option<Shown>,
    may_release: bool,
    role: Role,
    halts: Vec<Pick>,
    more: usize,
    reason: String,
    form: String,
    order: OrderId,
    seal: String,
}

/// `GET /release`.
pub(super) async fn show(State(server): State<Server>, visitor: Visitor) -> Response {
    let chosen: Vec<OrderId> = ids(visitor.query.all("halt"));
    form(&server, &visitor, &chosen, "", None, StatusCode::OK).await
}

fn ids<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<OrderId> {
    texts.filter_map(|id| id.parse().ok()).take(HALTS_MAX).collect()
}

async fn form(
    server: &Server,
    visitor: &Visitor,
    chosen: &[OrderId],
    reason: &str,
    problem: Option<String>,
    status: StatusCode,
) -> Response {
    let active = match kill_switch::active(server, visitor.identity.tenant.clone()).await {
        Ok(active) => active,
        Err(failure) => return problem::failure(server, visitor, failure, Vec::new()),
    };
    let now = server.clock().now();
    let more = active.len().saturating_sub(HALTS_MAX);
    let halts = active
        .iter()
        .rev()
        .take(HALTS_MAX)
        .map(|halt| Pick {
            chosen: chosen.contains(&halt.id),
            halt: HaltView::unconfirmed(&order(halt), true, now),
        })
        .collect();
    let order = OrderId::new();
    let template = Page {
        frame: Frame::new(server, Some(visitor), "release", "Release"),
        problem: problem.as_deref().map(Shown::text),
        may_release: visitor.may(Role::Lead),
        role: visitor.identity.role,
        halts,
        more,
        reason: reason.to_owned(),
        form: visitor.key.form_token(),
        order,
        seal: visitor.key.seal(order),
    };
    page(status, &template)
}

/// `POST /release`.
pub(super) async fn confirm(State(server): State<Server>, act: Act) -> Response {
    let Act { visitor, fields } = act;
    let chosen = ids(fields.all("halt"));
    let reason = fields.one("reason").replace("\r\n", "\n");
    let again = async |problem: String, status: StatusCode| {
        form(&server, &visitor, &chosen, &reason, Some(problem), status).await
    };
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    if chosen.is_empty() {
        return again("tick the halts that shall end".to_owned(), unprocessable).await;
    }
    let sealed = fields.order().filter(|order| same(fields.one("seal"), &visitor.key.seal(*order)));
    let Some(base) = sealed else {
        return again("check what is ticked, then go on".to_owned(), unprocessable).await;
    };
    let groups = match by_scope(&server, &visitor, &chosen).await {
        Ok(groups) => groups,
        Err(failure) => return problem::failure(&server, &visitor, failure, Vec::new()),
    };
    let mut done: Vec<OrderId> = Vec::new();
    for (scope, halts) in groups {
        let request = ReleaseRequest {
            id: Some(part(base, &scope)),
            scope,
            reason: reason.clone(),
            halts: Some(halts.clone()),
            watch_seconds: None,
        };
        let released =
            kill_switch::release(State(server.clone()), visitor.caller(), JsonBody(request)).await;
        match released {
            Ok((_, Json(accepted))) => match accepted.pending {
                None => done.extend(halts),
                Some(pending) => {
                    return again(waiting(&done, &pending), StatusCode::ACCEPTED).await;
                }
            },
            Err(failure @ (Failure::Unprocessable(_) | Failure::WhichHalts { .. })) => {
                return again(partly(&done, &failure), unprocessable).await;
            }
            Err(failure) if done.is_empty() => {
                let back = Link { href: "/release".to_owned(), text: "Back" };
                return problem::failure(&server, &visitor, failure, vec![back]);
            }
            Err(failure) => return again(partly(&done, &failure), unprocessable).await,
        }
    }
    let done: Vec<String> = done.iter().map(|id| format!("released={id}")).collect();
    see_other(&format!("/halt?{}", done.join("&")))
}

/// What to say when a second person must approve.
fn waiting(done: &[OrderId], pending: &ReleasePending) -> String {
    let before = if done.is_empty() { String::new() } else { format!("{} released. ", done.len()) };
    format!(
        "{before}A second person must approve what is ticked: whoever it is releases the same halts, \
         or runs `estoppel release --approve {}`",
        pending.id
    )
}

/// What to say when not all of it was done.
fn partly(done: &[OrderId], failure: &Failure) -> String {
    if done.is_empty() {
        format!("Nothing was released: {failure}")
    } else {
        format!("{} released, the rest was not: {failure}", done.len())
    }
}

/// The chosen halts by their scopes, in the order in which they were chosen. One that is no longer
/// in force stays in its group: the release itself says so, or knows itself as a repetition.
async fn by_scope(
    server: &Server,
    visitor: &Visitor,
    chosen: &[OrderId],
) -> Result<Vec<(ScopeSet, Vec<OrderId>)>, Failure> {
    let (wanted, tenant) = (chosen.to_vec(), visitor.identity.tenant.clone());
    let orders: Vec<(ScopeSet, OrderId)> = server
        .switchboard()
        .ask(move |switch, _| {
            wanted
                .iter()
                .filter_map(|id| switch.orders().order(*id))
                .filter(|order| super::follow::may_see(tenant.as_ref(), order))
                .filter(|order| matches!(order.body, OrderBody::Halt { .. }))
                .map(|order| (order.scope.clone(), order.id))
                .collect()
        })
        .await?;
    let mut groups: Vec<(ScopeSet, Vec<OrderId>)> = Vec::new();
    for (scope, id) in orders {
        match groups.iter_mut().find(|(own, _)| *own == scope) {
            Some((_, halts)) => halts.push(id),
            None => groups.push((scope, vec![id])),
        }
    }
    if groups.is_empty() {
        return Err(Failure::NotFound("none of these halts is known".to_owned()));
    }
    Ok(groups)
}

/// The id of the release of one scope: the same form gives the same ids again.
fn part(base: OrderId, scope: &ScopeSet) -> OrderId {
    let digest = Sha256::digest(format!("{base}\n{scope}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    // The time of the form stays in front, as in every id of an order.
    bytes[..6].copy_from_slice(&base.as_bytes()[..6]);
    OrderId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// The order that a summary is of, as far as it is shown.
fn order(halt: &HaltSummary) -> Order {
    Order {
        id: halt.id,
        scope: halt.scope.clone(),
        reason: halt.reason.clone(),
        issued_by: halt.activated_by.clone(),
        issued_at: halt.timestamp,
        incident: halt.incident,
        tenant: None,
        body: OrderBody::Halt { until: halt.until },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_gives_the_same_releases_again() {
        let (base, other) = (OrderId::new(), OrderId::new());
        let scope = |text: &str| ScopeSet::from(text.parse::<estoppel_model::Scope>().unwrap());
        let one = part(base, &scope("session:a"));
        assert_eq!(one, part(base, &scope("session:a")));
        assert_ne!(one, part(base, &scope("session:b")));
        assert_ne!(one, part(other, &scope("session:a")));
    }
}
