//! `/halts/{id}`: one halt, and how far each enforcer has carried it out.

use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use estoppel_api::Role;
use estoppel_killswitch::server::Listing;
use estoppel_model::{EntityId, IncidentNumber, Order, OrderBody, OrderId};

use super::{
    Frame, page,
    problem::{self, Link},
    short::short_address,
    view::{HaltView, Moment, Shown, Tone, durable},
    visitor::Visitor,
};
use crate::{Server, http::problem::Failure};

/// Most enforcers that are listed; those that are still waited for come first.
const ENFORCERS_MAX: usize = 200;
/// Most other halts of the same scope that are named.
const OTHERS_MAX: usize = 5;

/// Who let it go.
#[derive(Debug, Clone)]
struct ReleaseView {
    by: Shown,
    at: Moment,
    reason: Shown,
}

/// Another halt that reaches the same.
#[derive(Debug, Clone)]
struct Other {
    id: OrderId,
    scope: Shown,
    by: Shown,
}

/// The incident that the halt belongs to.
#[derive(Debug)]
struct Belongs {
    number: IncidentNumber,
    /// Its lasting address, to be handed on.
    link: String,
}

/// What is known of the halt by now.
#[derive(Debug)]
struct Known {
    halt: HaltView,
    others: Vec<Other>,
    release: Option<ReleaseView>,
    incident: Option<Belongs>,
    durable: &'static str,
    /// Nothing more is to be expected soon.
    settled: bool,
    now_millis: i64,
}

impl Known {
    async fn read(server: &Server, visitor: &Visitor, id: &str) -> Result<Self, Failure> {
        let id: OrderId = id
            .parse()
            .map_err(|error: estoppel_model::IdError| Failure::Malformed(error.to_string()))?;
        let tenant = visitor.identity.tenant.clone();
        let seen = server.switchboard().ask(move |switch, now| {
            let order = switch.orders().order(id).cloned()?;
            let sees = |order: &Order| may_see(tenant.as_ref(), order);
            if !sees(&order) || !matches!(order.body, OrderBody::Halt { .. }) {
                return None;
            }
            let progress = switch.progress_listing(id, now, Listing::OpenFirst(ENFORCERS_MAX));
            let mut others = switch.active_halts(&order.scope);
            others.retain(|other| other.id != id && sees(other));
            others.truncate(OTHERS_MAX);
            Some((order, progress, switch.orders().is_in_force(id), others))
        });
        let (order, progress, in_force, others) =
            seen.await?.ok_or_else(|| Failure::NotFound(format!("there is no halt {id}")))?;
        let now = server.clock().now();
        let halt = match progress {
            Some(progress) => HaltView::new(&progress, now),
            None => HaltView::unconfirmed(&order, in_force, now),
        };
        let (incident, release) = server.journal().read(|state| {
            let Some(view) = order.incident.and_then(|id| state.incidents.incident(id)) else {
                return (None, None);
            };
            let released = view.releases.iter().find(|entry| entry.body.orders.contains(&id));
            let release = released.map(|entry| ReleaseView {
                by: Shown::name(&entry.body.by),
                at: Moment::new(entry.at, now),
                reason: Shown::text(entry.body.reason.raw()),
            });
            (Some(view.number), release)
        });
        let incident = incident.map(|number| {
            let link = visitor.whole(server, &short_address(&number.to_string()));
            Belongs { number, link }
        });
        let others = others
            .iter()
            .map(|order| Other {
                id: order.id,
                scope: Shown::scope(&order.scope),
                by: Shown::name(&order.issued_by),
            })
            .collect();
        let durable = durable(server.switchboard().durability(id).await?);
        let settled = halt.tone != Tone::Going;
        let now_millis = now.as_micros() / 1_000;
        Ok(Self { halt, others, release, incident, durable, settled, now_millis })
    }
}

#[derive(Template)]
#[template(path = "follow.html")]
struct Follow {
    frame: Frame,
    known: Known,
    may_release: bool,
}

#[derive(Template)]
#[template(path = "follow_part.html")]
struct Part {
    known: Known,
}

/// `GET /halts/{id}`.
pub(super) async fn show(
    State(server): State<Server>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Response {
    match Known::read(&server, &visitor, &id).await {
        Ok(known) => {
            let frame = Frame::new(&server, Some(&visitor), "follow", "Halt");
            let may_release = visitor.may(Role::Lead);
            page(StatusCode::OK, &Follow { frame, known, may_release })
        }
        Err(failure) => lost(&server, &visitor, failure),
    }
}

/// `GET /halts/{id}/live`.
pub(super) async fn live(
    State(server): State<Server>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Response {
    match Known::read(&server, &visitor, &id).await {
        Ok(known) => page(StatusCode::OK, &Part { known }),
        Err(failure) => lost(&server, &visitor, failure),
    }
}

fn lost(server: &Server, visitor: &Visitor, failure: Failure) -> Response {
    let all = Link { href: "/halts".to_owned(), text: "All halts in force" };
    problem::failure(server, visitor, failure, vec![all])
}

/// Whether somebody of a tenant may know of an order.
pub(super) fn may_see(tenant: Option<&EntityId>, order: &Order) -> bool {
    tenant.is_none() || order.tenant.is_none() || order.tenant.as_ref() == tenant
}
