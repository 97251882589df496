//! At start: what a process that ended left undone behind its orders.
//!
//! An order is in force before anything is written. What follows from it (its incident, the
//! detection, the run of a playbook, the page) stands in its line of the order spool; here the
//! ledger gets of it what it lacks. Keys make that harmless to repeat. A run is taken up only while
//! its halt is in force, and never beside another run of the incident.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use estoppel_incident::record::{Detected, Opened};
use estoppel_killswitch::is_drill;
use estoppel_model::{NewRecord, Order, OrderBody, OrderId, journal::RunStarted};

use crate::{Server, incidents::Page, journal::JournalError, responder::is_running};

/// Incidents that were opened longer ago are not paged any more: a channel that is configured
/// late must not ring for the past.
const PAGE_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Feeds the ledger what follows from the orders in force, and pages for incidents for which
/// nobody was paged. The ledger is open, and has the orders.
pub(crate) async fn take_up(server: &Server, mut follows: HashMap<OrderId, Vec<NewRecord>>) {
    let Ok(orders) = in_force(server).await else { return };
    // The ledger may have had halts that the spool lacked.
    server.responder().resumed(&orders);
    let known: HashSet<OrderId> = server.journal().read(|state| {
        let halts = state.incidents.iter().flat_map(|incident| &incident.halts);
        halts.map(|entry| entry.body.order).collect()
    });
    for order in orders {
        let follows = follows.remove(&order.id).unwrap_or_default();
        if let Err(error) = behind(server, &order, follows, known.contains(&order.id)).await {
            tracing::error!(order = %order.id, %error, "what follows from an order is not written");
            server.warn(format!(
                "what follows from order {} is not in the ledger: {error}",
                order.id
            ));
        }
    }
    page(server);
}

/// The halts, blocks and limits in force.
pub(crate) async fn in_force(
    server: &Server,
) -> Result<Vec<Arc<Order>>, crate::switchboard::Ended> {
    let question = server.switchboard().ask(|switch, _| {
        let stops = switch
            .orders()
            .in_force()
            .filter(|order| {
                matches!(
                    order.body,
                    OrderBody::Halt { .. } | OrderBody::Block { .. } | OrderBody::Limit { .. }
                )
            })
            // A canary that a crash left behind concerns nobody: the drills end it.
            .filter(|order| !is_drill(order));
        stops.cloned().collect()
    });
    question.await
}

async fn behind(
    server: &Server,
    order: &Arc<Order>,
    follows: Vec<NewRecord>,
    known: bool,
) -> Result<(), JournalError> {
    let has_incident = server
        .journal()
        .read(|state| order.incident.is_some_and(|id| state.incidents.incident(id).is_some()));
    if follows.is_empty() && !has_incident {
        // It came from an enforcer, and the process ended before it had an incident.
        if !known {
            server.incidents().handed_back(order);
        }
        return Ok(());
    }
    for record in follows {
        if record.kind == RunStarted::KIND {
            let started: RunStarted = serde_json::from_str(&record.body)?;
            let has = server.journal().read(|state| state.runs.run(started.run).is_some());
            if !has && !is_running(server, started.incident) {
                tracing::warn!(order = %order.id, run = %started.run, "a run is taken up");
                server.journal().commit(record).await?;
            }
        } else if !known || !is_written(server, &record) {
            server.journal().commit(record).await?;
        }
    }
    if known { Ok(()) } else { server.incidents().take_up(order).await }
}

/// Whether the incident of a record has it.
fn is_written(server: &Server, record: &NewRecord) -> bool {
    if record.kind == Opened::KIND {
        return true;
    }
    let Ok(detected) = serde_json::from_str::<Detected>(&record.body) else { return true };
    server.journal().read(|state| {
        state.incidents.incident(detected.incident).is_some_and(|incident| {
            incident.detections.iter().any(|entry| entry.body.detection == detected.detection)
        })
    })
}

fn page(server: &Server) {
    let now = server.clock().now();
    let unpaged: Vec<Page> = server.journal().read(|state| {
        let open = state.incidents.iter().filter(|incident| {
            incident.closed.is_none()
                && incident.pages.is_empty()
                && now.since(incident.opened.at) < PAGE_AGE_MAX
        });
        open.map(Page::of).collect()
    });
    for page in unpaged {
        server.incidents().page(page);
    }
}
