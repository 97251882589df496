//! `/v1/status`: for people.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use estoppel_api::{EnforcerStatus, RedisStatus, Role, Status};
use estoppel_incident::IncidentState;
use estoppel_model::{Order, OrderBody};

use super::{extract::Caller, kill_switch, limits, problem::Failure};
use crate::{Server, break_glass, drill};

/// Tells how the server and its enforcers are, and what is not as it should be.
#[utoipa::path(get, path = "/v1/status", tag = "server", responses((status = 200, body = Status)))]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Status>, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("the server's state is the operator's")?;
    let halts = kill_switch::active(&server, None).await?;
    let limits = limits::active(&server, None).await?;
    let watches = server.switchboard().ask(|switch, _| {
        let watch = |order: &&Arc<Order>| matches!(order.body, OrderBody::Watch { .. });
        let mut watches: Vec<_> = switch
            .orders()
            .in_force()
            .filter(watch)
            .map(|order| kill_switch::summary(order))
            .collect();
        watches.sort_by_key(|watch| (watch.timestamp, watch.id));
        watches
    });
    let watches = watches.await?;
    let releases_pending = crate::release::pending(&server, None).await?;
    let drills = drill::status(&server);
    let enforcers = server.switchboard().ask(|switch, now| {
        let enforcers = switch
            .enforcers()
            .map(|state| EnforcerStatus {
                name: state.name.to_string(),
                kind: kill_switch::kind(state.kind).to_owned(),
                connected: state.connection.is_some(),
                lease_until: state.lease_until.map(|until| now.wall + until.since(now.boot)),
                subjects: state.subjects.clone(),
                gaps: state.gaps.clone(),
            })
            .collect();
        (enforcers, switch.unknown_until(now))
    });
    let (enforcers, enforcers_unknown_until) = enforcers.await?;
    let (incidents_open, ledger_records, allowlist) = server.journal().read(|state| {
        let open = state.incidents.iter().filter(|view| view.state() != IncidentState::Closed);
        (open.count(), state.applied, state.allowlist.is_some())
    });
    let (event_log, sql_worker) = match server.events() {
        Err(error) => (error.to_string(), "not started".to_owned()),
        Ok(log) => {
            let status = log.status();
            let damage = log.damage().len();
            let log =
                if damage == 0 { "ok".to_owned() } else { format!("{damage} damaged places") };
            let log = match &status.poisoned {
                Some(reason) => format!("takes no more events: {reason}"),
                None => log,
            };
            let worker = match status.isolation {
                None if status.worker_failed.is_some() => {
                    format!("down: {}", status.worker_failed.unwrap_or_default())
                }
                None => "starts with the first query".to_owned(),
                Some(isolation) if isolation.gaps.is_empty() => {
                    format!("ok: no network, {} MiB", isolation.memory_bytes >> 20)
                }
                Some(isolation) => format!("runs without: {}", isolation.gaps.join("; ")),
            };
            (log, worker)
        }
    };
    let config = server.config();
    let paging = server.incidents().paging();
    let mut warnings = server.warnings();
    warnings.extend(drill::warnings(&drills));
    warnings.extend(break_glass::warnings(&server));
    if paging == "none" {
        warnings.push("nobody is paged: configure `[paging]` in estoppel.toml".to_owned());
    }
    warnings.extend(server.tokens().ending_soon(server.clock().now()));
    if !allowlist {
        warnings
            .push("no allowlist is set: unlisted egress is learned and stops nobody".to_owned());
    }
    let redis = server.redis();
    if let Some(redis) = &redis {
        warnings.extend(redis_warnings(redis));
    }
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: server.started_at(),
        halts,
        limits,
        watches,
        releases_pending,
        drills,
        on_call: on_call(&server),
        enforcers,
        enforcers_unknown_until,
        incidents_open,
        ledger: server.journal().health(),
        ledger_records,
        event_log,
        sql_worker,
        paging,
        egress_response: config.egress_response().to_owned(),
        gateway_mode: config.gateway_mode.clone(),
        redis,
        warnings,
    }))
}

/// What people should know of the mirror.
fn redis_warnings(redis: &RedisStatus) -> Vec<String> {
    let RedisStatus { address, .. } = redis;
    let mut warnings = Vec::new();
    if let Some(problem) = &redis.problem {
        let behind = redis.behind;
        let means = if redis.connected {
            "halts do not need it"
        } else {
            "loops that read it learn nothing new, and what is written to it halts nobody until it answers"
        };
        warnings.push(format!("Redis at {address}: {problem}; {behind} keys are behind; {means}"));
    }
    if redis.connected && !redis.tracking {
        warnings.push(format!(
            "Redis at {address} tells of no changes, so its keys are polled: a halt that is written there may take more than a second among very many keys"
        ));
    }
    if redis.halts_waiting > 0 {
        warnings.push(format!(
            "{} scopes are written as halted in Redis and wait, since too many came at once: if that is an attack, halt `global`",
            redis.halts_waiting
        ));
    }
    if !redis.insisted.is_empty() {
        warnings.push(format!(
            "somebody keeps these active in Redis although they are released here, and loops that read it stay stopped: {}",
            redis.insisted.join(", ")
        ));
    }
    if let Some(example) = &redis.ignored_key {
        warnings.push(format!(
            "{} keys under `kill_switch:` in Redis name no scope and halt nobody, such as: {example}",
            redis.ignored_keys
        ));
    }
    if redis.not_written > 0 {
        warnings.push(format!(
            "{} halts of tenants' own tokens are not written to Redis, whose keys are everybody's",
            redis.not_written
        ));
    }
    warnings
}

/// Who may halt: names of people whose token is good for it now (row A1).
fn on_call(server: &Server) -> Vec<String> {
    let now = server.clock().now();
    let may_halt = |token: &estoppel_api::TokenSummary| {
        token.role.is_personal()
            && token.role >= Role::Responder
            && token.revoked_at.is_none()
            && token.expires_at.is_none_or(|at| at > now)
    };
    let tokens = server.tokens().list();
    let names: BTreeSet<String> =
        tokens.into_iter().filter(may_halt).map(|token| token.name).collect();
    names.into_iter().collect()
}
