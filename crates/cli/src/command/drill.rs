//! `drill`: a canary through every connected enforcer.

use std::process::ExitCode;

use estoppel_api::{DrillOutcome, DrillSummary, DrilledEnforcer, Spread};

use crate::{
    args::{Connect, DrillCommand},
    error::{Exit, Result},
    output::{Output, inline, table},
};

/// `estoppel drill`.
pub(crate) async fn drill(command: DrillCommand, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    match command {
        DrillCommand::KillSwitch => {
            let drill = client.drill_kill_switch(&serde_json::json!({})).await?;
            let passed = drill.outcome == DrillOutcome::Passed;
            output.answer(&drill, lines)?;
            Ok(if passed { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
        }
        DrillCommand::List => {
            let drills = client.drills().await?;
            output.answer(&drills, |drills| list(drills))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(drills: &[DrillSummary]) -> String {
    if drills.is_empty() {
        return "no drill yet: `estoppel drill kill-switch`".to_owned();
    }
    let rows: Vec<Vec<String>> = drills
        .iter()
        .map(|drill| {
            vec![
                drill.started_at.to_string(),
                word(drill.outcome).to_owned(),
                format!("{} of {}", drill.confirmed, drill.expected),
                drill.settled.map_or_else(|| "-".to_owned(), |it| millis(it.max_us)),
                drill.by.to_string(),
                drill.reasons.join("; "),
            ]
        })
        .collect();
    table(&["started", "outcome", "confirmed", "slowest", "by", "why"], &rows)
}

/// A drill on one line.
pub(super) fn line(drill: &DrillSummary) -> String {
    let time = drill
        .settled
        .map_or_else(String::new, |it| format!(", confirmed stop within {}", millis(it.max_us)));
    let why = if drill.reasons.is_empty() {
        String::new()
    } else {
        format!(": {}", inline(&drill.reasons.join("; ")))
    };
    format!(
        "{} at {}, {} of {} enforcers{time}{why}",
        word(drill.outcome),
        drill.started_at,
        drill.confirmed,
        drill.expected
    )
}

fn lines(drill: &DrillSummary) -> String {
    let mut lines = vec![format!("drill {} {}", drill.id, line(drill))];
    let spread = |name: &str, spread: Option<Spread>| {
        spread.map(|it| {
            format!(
                "{name:9} p50 {}, p99 {}, max {}",
                millis(it.p50_us),
                millis(it.p99_us),
                millis(it.max_us)
            )
        })
    };
    lines.extend(spread("refusing", drill.refusing));
    lines.extend(spread("settled", drill.settled));
    let rows: Vec<Vec<String>> = drill.enforcers.iter().map(row).collect();
    if !rows.is_empty() {
        lines.push(table(&["enforcer", "kind", "refusing", "settled", "canary"], &rows));
    }
    lines.join("\n")
}

fn row(enforcer: &DrilledEnforcer) -> Vec<String> {
    let time = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), millis);
    let canary = match (enforcer.canary_refused, enforcer.lease_until) {
        _ if enforcer.observed_only => "observes only".to_owned(),
        (Some(true), _) => "refused".to_owned(),
        (Some(false), _) => "LET THROUGH".to_owned(),
        (None, Some(until)) => format!("no answer; lease until {until}"),
        (None, None) => "not said".to_owned(),
    };
    vec![
        enforcer.name.clone(),
        enforcer.kind.clone(),
        time(enforcer.refusing_after_us),
        time(enforcer.settled_after_us),
        canary,
    ]
}

const fn word(outcome: DrillOutcome) -> &'static str {
    match outcome {
        DrillOutcome::Running => "running",
        DrillOutcome::Passed => "passed",
        DrillOutcome::Failed => "FAILED",
        DrillOutcome::Interrupted => "INTERRUPTED",
        DrillOutcome::Unknown => "unknown",
    }
}

fn millis(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1_000.0)
}
