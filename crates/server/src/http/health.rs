//! `/healthz` and `/readyz`: for load balancers and supervisors, who have no token.
//!
//! They tell two things apart. *Health* is that stops work: it stays good with a full disk, a dead
//! ledger, a dead worker, while the server recovers and while it drains, so that nobody restarts a
//! server that still stops agents. *Readiness* is that everything works, part by part. Both say it
//! in words of ours alone: reasons, which may name files, are in `/v1/status`.

use std::{path::Path, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use estoppel_api::{Health, PartState, Readiness};

use crate::{Server, files};

/// How long the kill switch or the disk may take to say how it is.
const ASK_MAX: Duration = Duration::from_secs(1);
/// Less room than this is not ready: the logs would end within minutes.
pub(crate) const FREE_BYTES_MIN: u64 = 256 << 20;

/// What is known of the parts.
pub(crate) struct Found {
    pub(crate) parts: Vec<PartState>,
    pub(crate) disk_free_bytes: Option<u64>,
}

/// Tells that orders are taken. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "server",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(crate) async fn live(State(server): State<Server>) -> (StatusCode, Json<Health>) {
    let (code, status) = if takes_orders(&server).await {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the kill switch does not answer")
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    (code, Json(Health { status: status.to_owned(), version }))
}

/// Tells whether each part is ready, part by part. Needs no token.
#[utoipa::path(
    get, path = "/readyz", tag = "server",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness))
)]
pub(crate) async fn ready(State(server): State<Server>) -> (StatusCode, Json<Readiness>) {
    let parts = readiness(&server).await.parts;
    let ready = parts.iter().all(|part| part.ready);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { ready, parts }))
}

async fn takes_orders(server: &Server) -> bool {
    let asked = server.switchboard().ask(|_, _| ());
    matches!(tokio::time::timeout(ASK_MAX, asked).await, Ok(Ok(())))
}

/// Asks each part.
pub(crate) async fn readiness(server: &Server) -> Found {
    let recovering = !server.has_recovered();
    let free = free_bytes(&server.config().data).await;
    let disk = match free {
        None => Err("does not answer"),
        Some(bytes) if bytes < FREE_BYTES_MIN => Err("less than 256 MiB are free"),
        Some(_) => Ok("ok"),
    };
    let kill_switch = if takes_orders(server).await { Ok("ok") } else { Err("does not answer") };
    let spool = if server.spool().is_failing() { Err("orders are not kept") } else { Ok("ok") };
    let ledger = match server.journal().ledger() {
        Ok(ledger) if ledger.poisoned().is_some() => Err("takes no more records"),
        Ok(_) if server.journal().damaged().is_some() => Err("damaged"),
        Ok(_) => Ok("ok"),
        Err(_) if recovering => Err("recovering"),
        Err(_) => Err("not open"),
    };
    let (event_log, sql_worker) = match server.events() {
        Err(_) if recovering => (Err("recovering"), Err("recovering")),
        Err(_) => (Err("not open"), Err("not started")),
        Ok(log) => {
            let status = log.status();
            let log = match status.poisoned {
                Some(_) => Err("takes no more events"),
                None => Ok("ok"),
            };
            let worker = match (status.worker_failed, status.worker_pid) {
                (Some(_), _) => Err("down"),
                (None, Some(_)) => Ok("ok"),
                (None, None) => Ok("starts with the first query"),
            };
            (log, worker)
        }
    };
    let draining = if server.is_draining() { Err("draining") } else { Ok("ok") };
    let parts = [
        ("kill switch", kill_switch),
        ("order spool", spool),
        ("ledger", ledger),
        ("event log", event_log),
        ("sql worker", sql_worker),
        ("disk", disk),
        ("server", draining),
    ];
    let parts = parts.into_iter().map(|(name, found)| PartState {
        name: name.to_owned(),
        ready: found.is_ok(),
        state: found.unwrap_or_else(|why| why).to_owned(),
    });
    Found { parts: parts.collect(), disk_free_bytes: free }
}

/// Room on the data folder's disk for this process; `None` when the disk does not say.
async fn free_bytes(data: &Path) -> Option<u64> {
    let data = data.to_owned();
    let asked = tokio::task::spawn_blocking(move || files::free_bytes(&data));
    tokio::time::timeout(ASK_MAX, asked).await.ok()?.ok()?.ok()
}
