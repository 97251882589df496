//! From the switchboard to the disk: orders become records, words of enforcers reach incidents.

use std::collections::HashSet;

use estoppel_api::Durable;
use estoppel_killswitch::invariant::Observation;
use estoppel_ledger::{Checkpoint, LedgerError, Standing};
use estoppel_model::{OrderId, SignedOrder};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Server, break_glass,
    order::{self, ORDER},
    resume,
    switchboard::{Accepted, News},
};

/// How long an order waits before the ledger is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Takes the switchboard's news until the server stops.
pub(crate) async fn take(server: Server, mut news: mpsc::Receiver<News>) {
    loop {
        let next = tokio::select! {
            biased;
            next = news.recv() => next,
            () = server.draining() => None,
        };
        match next {
            None => return,
            Some(News::Accepted(accepted)) => {
                server.tasks().spawn(keep(server.clone(), accepted));
            }
            Some(News::Confirmed(word)) => {
                let incidents = server.incidents().clone();
                server.tasks().spawn(async move { incidents.confirmed(*word).await });
            }
            Some(News::LeasesOver) => {
                let incidents = server.incidents().clone();
                server.tasks().spawn(async move { incidents.leases_over().await });
            }
            Some(News::BreakGlass(told)) => {
                server.tasks().spawn(break_glass::told(server.clone(), *told));
            }
            Some(News::HandedBack { order }) => {
                // A crash may have taken it before the spool had it.
                server.responder().resumed([&order]);
                server.incidents().handed_back(&order);
            }
            Some(News::Joined { enforcer, checkpoint }) => compare(&server, enforcer, &checkpoint),
        }
    }
}

/// Follows an order to the disk and into the ledger.
async fn keep(server: Server, accepted: Accepted) {
    let Accepted { id, signed, kept, durable } = accepted;
    let _behind = server.metrics().behind();
    match kept.await {
        Ok(Ok(())) => {
            durable.send_replace(Durable::Node);
        }
        Ok(Err(error)) => server.warn(error.to_string()),
        Err(_) => server.warn(format!("order {id} is in force, but the order spool has ended")),
    }
    while !to_ledger(&server, id, &signed).await {
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            // The spool feeds it at the next start.
            () = server.draining() => return,
        }
    }
    durable.send_replace(Durable::Ledger);
}

async fn to_ledger(server: &Server, id: OrderId, signed: &SignedOrder) -> bool {
    let record = match order::record(id, signed, server.clock().now()) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(order = %id, %error, "an order cannot be written");
            return true;
        }
    };
    match server.journal().append(record).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(order = %id, %error, "an order waits for the ledger");
            false
        }
    }
}

/// At start: what the spool has and the ledger lacks is fed to it, and the other way round.
pub(crate) async fn reconcile(server: &Server, spooled: Vec<SignedOrder>) {
    let in_ledger: HashSet<OrderId> = server.journal().read(|state| state.orders.clone());
    let mut known = HashSet::new();
    for signed in spooled {
        let Ok(order) = signed.parse() else { continue };
        known.insert(order.id);
        if !in_ledger.contains(&order.id) && !to_ledger(server, order.id, &signed).await {
            server.warn(format!("order {} is in force, but not in the ledger", order.id));
        }
    }
    if in_ledger.is_subset(&known) {
        return;
    }
    let Ok(ledger) = server.journal().ledger() else { return };
    let records = ledger.records(0).filter_map(Result::ok).filter(|record| record.kind == ORDER);
    let missing: Vec<SignedOrder> = records
        .filter(|record| {
            let id = record.key.as_deref().and_then(order::id_of_key);
            id.is_some_and(|id| !known.contains(&id))
        })
        .filter_map(|record| record.parse().ok())
        .collect();
    if !missing.is_empty() {
        server.warn(format!(
            "{} orders were missing in the order spool and came from the ledger",
            missing.len()
        ));
    }
    for signed in missing {
        match server.switchboard().give_recorded(signed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "an order of the ledger cannot be put in force")
            }
            Err(_) => return,
        }
    }
    if let Ok(in_force) = resume::in_force(server).await {
        server.responder().resumed(&in_force);
    }
}

/// Gives enforcers the ledger's newest checkpoint, at most once a second: they remember it.
pub(crate) async fn checkpoints(server: Server, stop: CancellationToken) {
    let mut changes = server.journal().changes();
    loop {
        if let Ok(ledger) = server.journal().ledger() {
            let note = ledger.checkpoint().to_string();
            if server.switchboard().set_checkpoint(note).await.is_err() {
                return;
            }
        }
        let changed = async {
            // The journal's sender lives as long as the server.
            let _ = changes.changed().await;
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
    }
}

/// An enforcer remembers a checkpoint: if the ledger does not hold it, it was rolled back or
/// rewritten.
fn compare(server: &Server, enforcer: estoppel_model::EnforcerId, note: &str) {
    let (Ok(ledger), Ok(kept)) = (server.journal().ledger(), Checkpoint::parse(note)) else {
        return;
    };
    let standing = ledger.compare(&kept);
    sought(server, &kept, &standing);
    let finding = match standing {
        Ok(Standing::Continues) => return,
        Ok(Standing::RolledBack { missing }) => {
            format!(
                "the ledger was rolled back: enforcer {enforcer} remembers {missing} more records"
            )
        }
        Ok(Standing::Rewritten) => {
            format!("the ledger was rewritten: enforcer {enforcer} remembers another history")
        }
        Err(error) => {
            tracing::warn!(%enforcer, %error, "an enforcer's checkpoint cannot be compared");
            return;
        }
    };
    tracing::error!(finding, "the ledger contradicts an enforcer");
    server.warn(finding);
}

/// A checkpoint is given out for what the ledger has acknowledged: it is there, or was lost.
fn sought(server: &Server, kept: &Checkpoint, standing: &Result<Standing, LedgerError>) {
    let acknowledged = kept.head().size;
    let missing = match standing {
        Ok(Standing::Continues) => 0,
        Ok(Standing::RolledBack { missing }) => *missing,
        Ok(Standing::Rewritten) => acknowledged,
        Err(_) => return,
    };
    let seen = Observation::Sought { acknowledged, missing };
    if let Err(violation) = server.switchboard().tally().observe(seen) {
        tracing::error!(%violation, "restore what is missing from a backup");
    }
}
