//! What a halt would hit (`halt --plan`), and what a wide one has hit.

use std::{process::ExitCode, time::Duration};

use estoppel_api::{Client, HaltPlan, PlanRequest, PlannedEnforcers};
use estoppel_model::{Kind, Scope, ScopeSet};

use crate::{
    error::Result,
    output::{Output, inline, table},
};

/// How long the numbers of a halt that is in force already are waited for.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Most sessions that are listed.
const SESSIONS_MAX: usize = 20;

/// `estoppel halt --plan`. Halts nothing.
pub(super) async fn plan(client: &Client, scope: ScopeSet, output: &Output) -> Result {
    let plan = client.plan_halt(&PlanRequest { scope }).await?;
    output.answer(&plan, lines)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether people want to know afterwards what was hit.
pub(super) fn is_wide(scope: &ScopeSet) -> bool {
    scope
        .iter()
        .any(|scope| matches!(scope, Scope::Global | Scope::Entity { kind: Kind::Tenant, .. }))
}

/// What a wide halt has hit, in one line. Asked for after the stop, which never waits for it; that
/// it cannot be had is nobody's trouble.
pub(super) async fn afterwards(client: &Client, scope: ScopeSet, output: &Output) {
    let request = PlanRequest { scope };
    let asked = tokio::time::timeout(AFTERWARDS, client.plan_halt(&request)).await;
    if let Ok(Ok(plan)) = asked {
        output.note(&format!("reached: {}", counts(&plan)));
    }
}

fn counts(plan: &HaltPlan) -> String {
    format!(
        "{} sessions of {} agents, {} users and {} tenants, seen within {} min; {}",
        plan.session_count,
        plan.agent_count,
        plan.user_count,
        plan.tenant_count,
        plan.window_seconds / 60,
        enforcers(&plan.enforcers)
    )
}

fn enforcers(enforcers: &[PlannedEnforcers]) -> String {
    if enforcers.is_empty() {
        return "no enforcer is connected".to_owned();
    }
    let kinds: Vec<String> =
        enforcers.iter().map(|it| format!("{} {}", it.count, it.kind)).collect();
    format!("enforcers: {}", kinds.join(", "))
}

fn lines(plan: &HaltPlan) -> String {
    let mut lines = vec![
        format!("PLAN, nothing is halted: {} would reach", plan.scope),
        counts(plan),
        format!("seen since {}; what was never seen is reached all the same", plan.watched_since),
    ];
    if plan.unknown {
        let meant = plan
            .did_you_mean
            .as_ref()
            .map_or_else(String::new, |scope| format!(": did you mean `{scope}`?"));
        lines.push(format!("neither sessions nor enforcers know this scope{meant}"));
    }
    for halt in &plan.active {
        lines.push(format!(
            "already halted: {} by {} since {} ({})",
            halt.scope,
            halt.activated_by,
            halt.timestamp,
            inline(&halt.reason)
        ));
    }
    for gap in &plan.gaps {
        lines.push(format!("gap at {}: {}", inline(&gap.enforcer), inline(&gap.gap)));
    }
    let rows: Vec<Vec<String>> = plan
        .sessions
        .iter()
        .take(SESSIONS_MAX)
        .map(|it| vec![it.subject.to_string(), it.last_seen.to_string(), it.events.to_string()])
        .collect();
    if !rows.is_empty() {
        lines.push(table(&["session", "last seen", "events"], &rows));
    }
    if plan.session_count > rows.len() {
        lines.push(format!("and {} more sessions", plan.session_count - rows.len()));
    }
    lines.join("\n")
}
