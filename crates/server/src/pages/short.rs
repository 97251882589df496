//! `/i/IR-2026-001`: an incident's lasting and short address, for a chat or a telephone.
//!
//! It leads to the incident's halt that was given last, one in force before one that was released; to
//! the form, filled in, when there is none. Like every address it changes nothing, and whoever opens it
//! signs in first. It reads what is in memory: it works while the ledger hangs.

use axum::{
    extract::{Path, State},
    response::Response,
};
use estoppel_model::{OrderId, text::quoted};

use super::{
    follow::may_see,
    problem::{self, Link},
    see_other,
    visitor::Visitor,
};
use crate::{
    Server,
    http::{incidents::known, problem::Failure},
    incidents::form_to_halt,
};

/// The short address of an incident's number.
pub(crate) fn short_address(number: &str) -> String {
    format!("/i/{number}")
}

/// `GET /i/{incident}`: a number or an id.
pub(super) async fn lead(
    State(server): State<Server>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Response {
    let Some(view) = known(&server, &name) else { return lost(&server, &visitor, &name) };
    let opened = &view.opened.body;
    let tenant = visitor.identity.tenant.clone();
    let own = tenant.is_none() || tenant == opened.subject.tenant;
    let form = form_to_halt(opened).place;
    let halts = view.halts.iter().rev().map(|entry| &entry.body);
    let halts: Vec<OrderId> =
        halts.filter(|halted| halted.what == "halt").map(|halted| halted.order).collect();
    let last = server.switchboard().ask(move |switch, _| {
        let orders = switch.orders();
        let sees =
            |id: &OrderId| orders.order(*id).is_some_and(|order| may_see(tenant.as_ref(), order));
        let seen: Vec<OrderId> = halts.into_iter().filter(sees).collect();
        seen.iter().find(|id| orders.is_in_force(**id)).or_else(|| seen.first()).copied()
    });
    match last.await {
        Ok(Some(halt)) => see_other(&format!("/halts/{halt}")),
        Ok(None) if own => see_other(&form),
        Ok(None) => lost(&server, &visitor, &name),
        Err(ended) => problem::failure(&server, &visitor, ended.into(), Vec::new()),
    }
}

fn lost(server: &Server, visitor: &Visitor, name: &str) -> Response {
    let failure = Failure::NotFound(format!(
        "no incident {} is known here: it may have another number, or be on its way to the ledger",
        quoted(name)
    ));
    let links = vec![
        Link { href: "/halts".to_owned(), text: "All halts in force" },
        Link { href: "/halt".to_owned(), text: "Halt something" },
    ];
    problem::failure(server, visitor, failure, links)
}
