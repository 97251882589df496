//! `/halt`: the button. Two actions: say what and why, see what it will hit, confirm.
//!
//! The order's id is made when the form is rendered and goes with it to the end, so that two taps,
//! the back button, a reload or a second try after an outage give one halt. It carries a seal of the
//! session: an address that somebody else made up leads to the form and no further.

use std::sync::Arc;

use askama::Template;
use axum::{Json, extract::State, http::StatusCode, response::Response};
use estoppel_api::{HaltRequest, Role};
use estoppel_model::{Kind, Order, OrderId, Scope, ScopeSet};

use super::{
    Frame,
    follow::may_see,
    form::{Fields, Wish, address},
    hits::{Fact, Hits, Seen, SessionLine, Warning},
    overview::Overview,
    page,
    problem::{self, Link},
    see_other,
    sessions::same,
    view::Shown,
    visitor::{Act, Visitor},
};
use crate::{
    Server,
    http::{extract::JsonBody, kill_switch, problem::Failure},
};

/// Most halts that a page says were just released.
const RELEASED_MAX: usize = 20;

/// A kind to choose.
#[derive(Debug)]
struct Choice {
    word: &'static str,
    label: &'static str,
    chosen: bool,
}

#[derive(Template)]
#[template(path = "halt.html")]
struct Page {
    frame: Frame,
    overview: Overview,
    wish: Wish,
    kinds: Vec<Choice>,
    order: OrderId,
    seal: String,
    problem: Option<Shown>,
    lately: Vec<Seen>,
    released: Vec<Shown>,
    may_halt: bool,
    role: Role,
}

/// `GET /halt`: what is in force, and the form, filled in from the address if that says so.
pub(super) async fn show(State(server): State<Server>, visitor: Visitor) -> Response {
    let wish = Wish::of(&visitor.query);
    form(&server, &visitor, wish, None, StatusCode::OK).await
}

async fn form(
    server: &Server,
    visitor: &Visitor,
    wish: Wish,
    problem: Option<String>,
    status: StatusCode,
) -> Response {
    let overview = match Overview::read(server, visitor).await {
        Ok(overview) => overview,
        Err(ended) => return problem::failure(server, visitor, ended.into(), Vec::new()),
    };
    let chosen = if wish.kind.is_empty() { Kind::Session.as_str() } else { &wish.kind };
    let kinds = [
        ("session", "Session"),
        ("agent", "Agent"),
        ("task", "Task"),
        ("user", "User"),
        ("tenant", "Tenant"),
        ("plugin", "Plugin"),
        ("tool", "Tool"),
        ("component", "Component"),
        ("global", "Everything"),
    ];
    let kinds = kinds
        .into_iter()
        .map(|(word, label)| Choice { word, label, chosen: word == chosen })
        .collect();
    let order = OrderId::new();
    let template = Page {
        frame: Frame::new(server, Some(visitor), "halt", "Halt"),
        overview,
        kinds,
        order,
        seal: visitor.key.seal(order),
        problem: problem.as_deref().map(Shown::text),
        lately: Seen::lately(server, visitor),
        released: released(server, visitor).await,
        may_halt: visitor.may(Role::Responder),
        role: visitor.identity.role,
        wish,
    };
    page(status, &template)
}

/// The scopes of halts that the address says were released, if they were.
async fn released(server: &Server, visitor: &Visitor) -> Vec<Shown> {
    let ids: Vec<OrderId> =
        visitor.query.all("released").filter_map(|id| id.parse().ok()).take(RELEASED_MAX).collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let tenant = visitor.identity.tenant.clone();
    let scopes = server.switchboard().ask(move |switch, _| {
        ids.iter()
            .filter(|id| !switch.orders().is_in_force(**id))
            .filter_map(|id| switch.orders().order(*id))
            .filter(|order| may_see(tenant.as_ref(), order))
            .map(|order| Shown::scope(&order.scope))
            .collect()
    });
    scopes.await.unwrap_or_default()
}

#[derive(Template)]
#[template(path = "review.html")]
struct Review {
    frame: Frame,
    scope: Shown,
    scope_raw: String,
    reason: Shown,
    reason_raw: String,
    facts: Vec<Fact>,
    sessions: Vec<SessionLine>,
    more_sessions: usize,
    gaps: Vec<Shown>,
    warnings: Vec<Warning>,
    form: String,
    order: OrderId,
    seal: String,
    change: String,
    /// The filled form, to be handed on.
    link: String,
}

/// What a form of a halt says, read strictly.
struct Asked {
    scope: Scope,
    reason: String,
    order: OrderId,
    seal: String,
}

impl Asked {
    fn read(fields: &Fields, visitor: &Visitor) -> Result<Self, String> {
        let wish = Wish::of(fields);
        let scope = wish.scope()?;
        if wish.reason.is_empty() {
            return Err("say why, in a few words".to_owned());
        }
        if wish.reason.len() > estoppel_model::REASON_BYTES_MAX {
            return Err(format!(
                "the reason has {} bytes: at most {}",
                wish.reason.len(),
                estoppel_model::REASON_BYTES_MAX
            ));
        }
        let order =
            fields.order().filter(|order| same(fields.one("seal"), &visitor.key.seal(*order)));
        // Not a form of ours: what it says is shown once more, and nothing is done.
        let order = order.ok_or("check what the link filled in, then go on")?;
        Ok(Self { scope, reason: wish.reason, order, seal: fields.one("seal").to_owned() })
    }
}

/// `GET /halt/review`: what it will hit. Changes nothing, so it may be reloaded and gone back to.
pub(super) async fn review(State(server): State<Server>, visitor: Visitor) -> Response {
    let asked = match Asked::read(&visitor.query, &visitor) {
        Ok(asked) => asked,
        Err(problem) => {
            let wish = Wish::of(&visitor.query);
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return form(&server, &visitor, wish, Some(problem), status).await;
        }
    };
    match known(&server, asked.order).await {
        Ok(None) => {}
        Ok(Some(order)) => return used(&server, &visitor, &order, &Wish::of(&visitor.query)),
        Err(failure) => return problem::failure(&server, &visitor, failure, Vec::new()),
    }
    let hits = match Hits::read(&server, &visitor, &asked.scope, &asked.reason).await {
        Ok(hits) => hits,
        Err(failure) => return problem::failure(&server, &visitor, failure, Vec::new()),
    };
    let Hits { facts, sessions, more_sessions, gaps, warnings } = hits;
    let scope_raw = asked.scope.to_string();
    let change = address("/halt", &[("scope", &scope_raw), ("reason", &asked.reason)]);
    let template = Review {
        frame: Frame::new(&server, Some(&visitor), "review", "Halt?"),
        scope: Shown::name(&scope_raw),
        reason: Shown::text(&asked.reason),
        facts,
        sessions,
        more_sessions,
        gaps,
        warnings,
        form: visitor.key.form_token(),
        order: asked.order,
        seal: asked.seal,
        link: visitor.whole(&server, &change),
        change,
        scope_raw,
        reason_raw: asked.reason,
    };
    page(StatusCode::OK, &template)
}

/// `POST /halt`: gives the halt.
pub(super) async fn confirm(State(server): State<Server>, act: Act) -> Response {
    let Act { visitor, fields } = act;
    let asked = match Asked::read(&fields, &visitor) {
        Ok(asked) => asked,
        Err(problem) => {
            let wish = Wish::of(&fields);
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return form(&server, &visitor, wish, Some(problem), status).await;
        }
    };
    let mut request = HaltRequest::new(ScopeSet::from(asked.scope), asked.reason);
    request.id = Some(asked.order);
    let given = kill_switch::halt(State(server.clone()), visitor.caller(), JsonBody(request)).await;
    match given {
        Ok((_, Json(accepted))) => see_other(&format!("/halts/{}", accepted.id)),
        Err(failure @ Failure::Conflict(_)) => match known(&server, asked.order).await {
            Ok(Some(order)) => used(&server, &visitor, &order, &Wish::of(&fields)),
            _ => problem::failure(&server, &visitor, failure, Vec::new()),
        },
        Err(failure) => {
            let again = Link { href: Wish::of(&fields).href(), text: "Change it" };
            problem::failure(&server, &visitor, failure, vec![again])
        }
    }
}

/// The order that was given under an id.
async fn known(server: &Server, id: OrderId) -> Result<Option<Arc<Order>>, Failure> {
    Ok(server.switchboard().ask(move |switch, _| switch.orders().order(id).cloned()).await?)
}

/// A form that gave a halt is used up.
fn used(server: &Server, visitor: &Visitor, order: &Order, wish: &Wish) -> Response {
    let detail = format!(
        "This form gave the halt of {} at {} UTC. Nothing more was done.",
        order.scope,
        order.issued_at.time_of_day()
    );
    let links = vec![
        Link { href: format!("/halts/{}", order.id), text: "Look at that halt" },
        Link { href: wish.href(), text: "Begin a new one" },
    ];
    let title = "This halt was given already";
    problem::said(server, visitor, StatusCode::CONFLICT, title, detail, links)
}
