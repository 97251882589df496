//! What the runaway's play tells: its beginning, and at the end each promise with whether it holds.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    super::{
        python::Python,
        services::{MAIL_NAME, MODEL_NAME, Services},
        timeline::Timeline,
    },
    AGENT_NAME, LIMIT, SESSION, Seen, Stage, TASK, given, is_limit, step,
};
use crate::output::{Output, inline};

/// A promise, and whether it holds.
pub(super) struct Check {
    what: String,
    pub(super) holds: bool,
}

pub(super) fn beginning(services: &Services, python: &Python, stage: &Stage, output: &Output) {
    let say = |text: &str| output.note(text);
    say("Estoppel demo: a Python agent retries for ever, and pays a model for each attempt.\n");
    say(&format!("  model     http://{MODEL_NAME} (on {}), bills each call", services.model));
    say(&format!(
        "  mail      http://{MAIL_NAME} (on {}); one reader's box is full",
        services.mail
    ));
    say(&format!("  pager     http://{}", services.pager));
    say(&format!("  limits    agent:{AGENT_NAME}: {LIMIT}, for each of its tasks"));
    match stage {
        Stage::Confined(confined) => {
            let program = confined.program.display();
            say(&format!("  agent     {program} under `estoppel run`, session {SESSION}\n"));
        }
        Stage::Free(why) => {
            let program = python.program.display();
            say(&format!("  agent     {program}, not under `estoppel run`: {why}\n"));
        }
    }
}

/// What must hold, whatever the machine.
pub(super) fn checks(seen: &Seen) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |what: String, holds: bool| checks.push(Check { what, holds });
    let title = seen.view["title"].as_str().unwrap_or_default();
    check(format!("a breaker tripped: {}", inline(title)), title.contains("the same call"));
    check(
        format!("{} is halted, and every enforcer has settled", seen.status.halt.scope),
        seen.status.halt.scope.to_string() == format!("task:{TASK}"),
    );
    let after = seen.bill.calls - seen.at_settled.calls;
    check(
        format!("the model was called {after} times after that; refused steps: {}", seen.refused),
        after == 0 && seen.refused > 0,
    );
    let (calls, tokens, cost_usd) = seen.recorded;
    check(
        format!(
            "the audit log has {calls} calls of the model for {cost_usd:.2} US dollars, the model's own bill \
             {} for {:.2}",
            seen.bill.calls, seen.bill.cost_usd
        ),
        calls == seen.bill.calls
            && tokens == seen.bill.tokens
            && (cost_usd - seen.bill.cost_usd).abs() < 1e-9,
    );
    let of_task = seen.limits.iter().find(|it| it.scope.to_string() == format!("task:{TASK}"));
    check(
        match of_task {
            Some(limit) => format!("limits are set for when it is released: {}", limit.limit),
            None => "no limit is set for when it is released".to_owned(),
        },
        seen.limits.len() == 2
            && of_task.is_some_and(|limit| limit.activated_by.as_str().starts_with("estoppel:"))
            && given(&seen.view).any(|it| it["what"].as_str().is_some_and(is_limit)),
    );
    let parts = ["## Damage", "`send_mail`", "`demo-1`", "Proposed breakers: "];
    check(
        "the report has the damage by tool and by model, and proposes breakers".to_owned(),
        parts.iter().all(|part| seen.report.contains(part)),
    );
    check(
        "somebody was paged".to_owned(),
        step(&seen.run, "page").is_some_and(|page| page.state == "done"),
    );
    let kill = step(&seen.run, "kill");
    let state = kill.map_or("not there", |kill| kill.state.as_str());
    let observed = kill.and_then(|kill| kill.observed.as_deref()).unwrap_or_default();
    if seen.confined {
        check(
            format!(
                "its process was captured, and killed when a lead agreed: {}",
                inline(observed)
            ),
            state == "done" && seen.killed,
        );
    } else {
        check(
            format!("without `estoppel run` no process was captured or killed: {state}"),
            state != "done",
        );
    }
    checks
}

pub(super) fn document(folder: &Path, seen: &Seen, timeline: &Timeline, checks: &[Check]) -> Value {
    let (calls, tokens, cost_usd) = seen.recorded;
    json!({
        "incident": seen.number,
        "folder": folder,
        "confined": seen.confined,
        "halt": seen.status,
        "limits": seen.limits,
        "playbook": seen.run,
        "billed": seen.bill,
        "recorded": { "calls": calls, "tokens": tokens, "cost_usd": cost_usd },
        "calls_after_settled": seen.bill.calls - seen.at_settled.calls,
        "refused_steps": seen.refused,
        "killed": seen.killed,
        "timeline": timeline.document(),
        "checks": checks.iter().map(|it| json!({ "what": it.what, "holds": it.holds })).collect::<Value>(),
        "good": checks.iter().all(|check| check.holds),
    })
}

pub(super) fn closing(folder: &Path, seen: &Seen, checks: &[Check]) -> String {
    let shown = folder.display();
    let lines: Vec<String> = checks
        .iter()
        .map(|check| format!("{} {}", if check.holds { "ok    " } else { "FAILED" }, check.what))
        .collect();
    let proposed = seen.report.lines().find(|line| line.starts_with("Proposed breakers: "));
    format!(
        "{}\n\n{}\n\nreport: {shown}/report.md\n\n\
         Look around:\n  \
         estoppel ledger verify --data {shown}/data\n  \
         estoppel serve --config {shown}/estoppel.toml     (then: estoppel incident show {}, estoppel limit list)\n\
         {}",
        lines.join("\n"),
        inline(proposed.unwrap_or_default()),
        seen.number,
        if checks.iter().all(|check| check.holds) {
            "The runaway was stopped."
        } else {
            "FAILED: not all of this holds; please report this."
        },
    )
}
