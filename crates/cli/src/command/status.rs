//! `status`.

use std::process::ExitCode;

use estoppel_api::{EnforcerProgress, HaltStatus, RedisStatus, Status};
use estoppel_model::Timestamp;

use crate::{
    args::{Connect, StatusArgs},
    error::Result,
    output::{Output, inline, table},
};

/// `estoppel status`.
pub(crate) async fn status(args: &StatusArgs, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    if let Some(halt) = args.halt {
        output.answer(&client.halt_status(halt).await?, halt_lines)?;
    } else {
        output.answer(&client.status().await?, lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A halt with each enforcer's word.
pub(crate) fn halt_lines(status: &HaltStatus) -> String {
    let halt = &status.halt;
    let mut head = format!(
        "{} {}: {:?}, {}\n{} by {} since {}",
        halt.id,
        halt.scope,
        status.state,
        counts(status),
        inline(&halt.reason),
        halt.activated_by,
        halt.timestamp,
    );
    if let Some(until) = status.unknown_until {
        head.push_str(&format!("\n{}", unknown(until)));
    }
    if let Some(until) = status.break_glass_until {
        head.push_str(&format!("\n{}", break_glass(until)));
    }
    let rows: Vec<Vec<String>> = status.enforcers.iter().map(row).collect();
    if rows.is_empty() {
        return format!("{head}\nno enforcer was connected");
    }
    let header = ["enforcer", "kind", "word", "refusing", "settled", "last byte out", "what"];
    let mut lines = vec![head, table(&header, &rows)];
    for enforcer in &status.enforcers {
        lines.extend(stuck(enforcer).map(|what| {
            format!("not interruptible at {}: {}", inline(&enforcer.name), inline(what))
        }));
    }
    lines.join("\n")
}

/// How far a halt is, in numbers.
pub(crate) fn counts(status: &HaltStatus) -> String {
    let HaltStatus { expected, refusing, settled, by_lease, gone, .. } = status;
    let gone = if *gone > 0 { format!(", {gone} gone") } else { String::new() };
    format!("{refusing} of {expected} refuse, {settled} settled, {by_lease} by lease{gone}")
}

/// That a server before this one may have given leases to others.
pub(crate) fn unknown(until: Timestamp) -> String {
    format!("until {until} enforcers of the time before the server's start may be unknown")
}

/// That a lease that is over need not stop an enforcer.
pub(crate) fn break_glass(until: Timestamp) -> String {
    format!("a break-glass file is out until {until}: who is counted by lease may go on by it")
}

/// When an enforcer reached a stage: how long after the halt, else by its own clock.
fn reached(after_us: Option<u64>, at: Option<Timestamp>) -> String {
    match (after_us, at) {
        (Some(after), _) => format!("{:.1} ms", after as f64 / 1000.0),
        (None, Some(at)) => format!("at {at}"),
        (None, None) => "-".to_owned(),
    }
}

fn row(enforcer: &EnforcerProgress) -> Vec<String> {
    let word = if enforcer.witness { "witness" } else { "claim" };
    let last_byte = enforcer.settlement.get("last_byte_at").and_then(serde_json::Value::as_str);
    let mut what = settlement(&enforcer.settlement);
    if enforcer.settled_at.is_none()
        && let Some(until) = enforcer.lease_until
    {
        let lease = match enforcer {
            EnforcerProgress { gone: true, .. } => "gone: not settled, lease over at",
            EnforcerProgress { by_lease: true, .. } => "by lease since",
            _ => "lease settles at",
        };
        what = [what, format!("{lease} {until}")]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
    }
    vec![
        enforcer.name.clone(),
        enforcer.kind.clone(),
        word.to_owned(),
        reached(enforcer.refusing_after_us, enforcer.refusing_at),
        reached(enforcer.settled_after_us, enforcer.settled_at),
        last_byte.unwrap_or("-").to_owned(),
        what,
    ]
}

/// What an enforcer could not interrupt, with the reasons.
fn stuck(enforcer: &EnforcerProgress) -> impl Iterator<Item = &str> {
    let list = enforcer.settlement.get("not_interruptible").and_then(serde_json::Value::as_array);
    list.into_iter().flatten().filter_map(serde_json::Value::as_str)
}

/// What settling came to, in some words.
fn settlement(value: &serde_json::Value) -> String {
    let count = |key: &str, word: &str| {
        value
            .get(key)
            .and_then(serde_json::Value::as_u64)
            .filter(|n| *n > 0)
            .map(|n| format!("{n} {word}"))
    };
    let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let stuck = value.get("not_interruptible").and_then(serde_json::Value::as_array);
    let stuck = stuck.filter(|list| !list.is_empty());
    [
        count("steps_cancelled", "steps cancelled"),
        count("connections_cut", "connections cut"),
        count("processes_frozen", "processes frozen"),
        count("bytes_out", "bytes out"),
        stuck.map(|list| format!("{} not interruptible", list.len())),
        value
            .get("observed_only")
            .and_then(serde_json::Value::as_bool)
            .filter(|observed| *observed)
            .map(|_| "OBSERVED ONLY".to_owned()),
        text("containment"),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

/// The mirror in Redis, in one line.
pub(crate) fn redis_line(redis: &RedisStatus) -> String {
    let state = match (&redis.problem, redis.connected) {
        (Some(problem), _) => inline(problem),
        (None, true) if redis.tracking => "connected".to_owned(),
        (None, _) => "connected, polled".to_owned(),
    };
    let sync =
        redis.last_sync.map_or_else(|| "never in step".to_owned(), |at| format!("in step at {at}"));
    let behind = match redis.behind_since {
        Some(since) => format!("{} keys behind since {since}", redis.behind),
        None => "nothing behind".to_owned(),
    };
    let address = inline(&redis.address);
    format!(
        "redis {address}: {state}, {sync}, {behind}, {} halts from there",
        redis.halts_from_redis
    )
}

/// The last drill and the next.
fn drills(status: &Status) -> String {
    let last = status
        .drills
        .last
        .as_ref()
        .map_or_else(|| "none yet (`estoppel drill kill-switch`)".to_owned(), super::drill::line);
    let every = status.drills.every_seconds.map_or_else(
        || "not by schedule (`drill_every`)".to_owned(),
        |seconds| format!("every {seconds} s"),
    );
    format!("last drill: {last}; {every}\nmay halt: {}", inline(&status.on_call.join(", ")))
}

fn lines(status: &Status) -> String {
    let mut lines = vec![format!("estoppel {} since {}", status.version, status.started_at)];
    if status.halts.is_empty() {
        lines.push("no active halts".to_owned());
    } else {
        let rows: Vec<Vec<String>> = status
            .halts
            .iter()
            .map(|halt| {
                vec![
                    halt.id.to_string(),
                    halt.scope.to_string(),
                    halt.activated_by.to_string(),
                    halt.timestamp.to_string(),
                    halt.reason.clone(),
                ]
            })
            .collect();
        lines.push(table(&["halt", "scope", "by", "since", "reason"], &rows));
    }
    if !status.limits.is_empty() {
        lines.push(super::halt::limit_table(&status.limits));
    }
    for pending in &status.releases_pending {
        lines.push(format!(
            "WAITS for a second person until {}: release of {} asked for by {} ({})\n  `estoppel release --approve {} --reason WHY`",
            pending.expires_at,
            pending.scope,
            pending.requested_by,
            inline(&pending.reason),
            pending.id
        ));
    }
    for watch in &status.watches {
        let until = watch.until.map_or_else(String::new, |at| format!(" until {at}"));
        lines.push(format!("watched closely{until}: {} (order {})", watch.scope, watch.id));
    }
    let rows: Vec<Vec<String>> = status
        .enforcers
        .iter()
        .map(|enforcer| {
            let subjects: Vec<String> = enforcer.subjects.iter().map(ToString::to_string).collect();
            vec![
                enforcer.name.clone(),
                enforcer.kind.clone(),
                if enforcer.connected { "connected" } else { "away" }.to_owned(),
                enforcer.lease_until.map_or_else(|| "-".to_owned(), |at| at.to_string()),
                subjects.join("; "),
                enforcer.gaps.join("; "),
            ]
        })
        .collect();
    if rows.is_empty() {
        lines.push(
            "no enforcers: a halt reaches nobody until a guard, gateway or host connects"
                .to_owned(),
        );
    } else {
        lines.push(table(&["enforcer", "kind", "state", "lease until", "subjects", "gaps"], &rows));
    }
    lines.extend(status.enforcers_unknown_until.map(unknown));
    lines.push(format!(
        "incidents open: {}\nledger: {} ({} records)\nevent log: {}\nSQL worker: {}\npaging: {}\nunlisted egress: {}, gateways {}",
        status.incidents_open,
        status.ledger,
        status.ledger_records,
        status.event_log,
        status.sql_worker,
        status.paging,
        status.egress_response,
        status.gateway_mode,
    ));
    lines.extend(status.redis.as_ref().map(redis_line));
    lines.push(drills(status));
    lines.extend(status.warnings.iter().map(|warning| format!("warning: {}", inline(warning))));
    lines.join("\n")
}
