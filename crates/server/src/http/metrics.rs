//! `GET /metrics`: with a token here, without one at `metrics_listen`.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use estoppel_api::Role;
use estoppel_model::OrderBody;
use estoppel_playbook::{RunState, journal::RunOutcome};

use super::{extract::Caller, health, kill_switch, problem::Failure};
use crate::{
    Server,
    metrics::{Kind, Part, Promise, State as RunLabel, classic},
};

/// How long a part may take to say how it is; of one that does not answer the last value stays.
const ASK_MAX: Duration = Duration::from_secs(1);
const RUN_STATES: [&str; 6] =
    ["asking", "running", "completed", "indeterminate", "failed", "declined"];

/// Tells the metrics in Prometheus's text format, or as `OpenMetrics` to who asks for that.
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, body = String)))]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("metrics are the operator's")?;
    Ok(text(&server, &headers).await)
}

/// The same to anybody who reaches `metrics_listen`.
pub(crate) async fn open(State(server): State<Server>, headers: HeaderMap) -> Response {
    text(&server, &headers).await
}

async fn text(server: &Server, headers: &HeaderMap) -> Response {
    refresh(server).await;
    let open_metrics = server.metrics().open_metrics();
    let asks_for_open = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let (kind, body) = if asks_for_open {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", open_metrics)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", classic(&open_metrics))
    };
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

/// Reads what is not counted where it happens.
async fn refresh(server: &Server) {
    let gauges = &server.metrics().gauges;
    let ask = server.switchboard().ask(|switch, now| {
        let halts = switch.orders().in_force();
        let halts = halts.filter(|order| matches!(order.body, OrderBody::Halt { .. })).count();
        let mut connected = HashMap::from([("guard", 0), ("gateway", 0), ("host", 0)]);
        let mut expiring = 0;
        for enforcer in switch.enforcers() {
            if enforcer.connection.is_some() {
                *connected.entry(kill_switch::kind(enforcer.kind)).or_default() += 1;
            } else if enforcer.is_alive(now.boot) {
                expiring += 1;
            }
        }
        (halts, connected, expiring)
    });
    if let Ok(Ok((halts, connected, expiring))) = tokio::time::timeout(ASK_MAX, ask).await {
        gauges.halts_active.set(whole(halts));
        gauges.leases_expiring.set(expiring);
        for (kind, count) in connected {
            gauges.enforcers_connected.get_or_create(&Kind { kind }).set(count);
        }
    }
    let (records, runs) = server.journal().read(|state| {
        let mut runs = HashMap::from(RUN_STATES.map(|state| (state, 0)));
        for run in state.runs.iter() {
            *runs.entry(run_state(run.state())).or_default() += 1;
        }
        (state.applied, runs)
    });
    gauges.ledger_records.set(i64::try_from(records).unwrap_or(i64::MAX));
    for (state, count) in runs {
        gauges.runs.get_or_create(&RunLabel { state }).set(count);
    }
    if let Ok(log) = server.events() {
        let status = log.status();
        gauges.wal_bytes.set(status.wal_bytes as f64);
        let starts = gauges.sql_worker_starts.inner();
        starts.store(status.worker_starts, Ordering::Relaxed);
    }
    for count in server.invariants() {
        let promise = Promise { invariant: count.invariant.name() };
        let checks = gauges.invariant_checks.get_or_create(&promise);
        checks.inner().store(count.checks, Ordering::Relaxed);
        let violations = gauges.invariant_violations.get_or_create(&promise);
        violations.inner().store(count.violations, Ordering::Relaxed);
    }
    if let Some(redis) = server.redis() {
        gauges.redis.set(&redis);
    }
    let soon = server.tokens().ending_soon(server.clock().now());
    gauges.tokens_ending_soon.set(whole(soon.len()));
    let readiness = health::readiness(server).await;
    if let Some(free) = readiness.disk_free_bytes {
        gauges.disk_free_bytes.set(free as f64);
    }
    for part in readiness.parts {
        gauges.part_ready.get_or_create(&Part { part: part.name }).set(i64::from(part.ready));
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Asking => "asking",
        RunState::Running => "running",
        RunState::Ended(RunOutcome::Completed) => "completed",
        RunState::Ended(RunOutcome::Indeterminate) => "indeterminate",
        RunState::Ended(RunOutcome::Failed) => "failed",
        RunState::Ended(RunOutcome::Declined) => "declined",
    }
}
