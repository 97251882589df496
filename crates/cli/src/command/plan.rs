//! What a halt would hit (`halt --plan`); what a wide one has hit, and that a name is not known.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

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

/// Whether people want to know what was hit.
fn is_wide(scope: &ScopeSet) -> bool {
    scope
        .iter()
        .any(|scope| matches!(scope, Scope::Global | Scope::Entity { kind: Kind::Tenant, .. }))
}

/// Whether each scope names somebody whom events and enforcers would name, too.
fn names_somebody(scope: &ScopeSet) -> bool {
    use Kind::{Agent, Session, Task, Tenant, User};
    scope.iter().all(|scope| {
        matches!(scope, Scope::Entity { kind: Agent | Session | Task | Tenant | User, .. })
    })
}

/// Says of a halt that is in force what people want to know: on a terminal, what a wide one has hit;
/// of a name that nobody knows, that it may be misspelt. Scripts ask for the plan. Asked for after
/// the stop and its answer, which never wait for it; that it cannot be had is nobody's trouble.
pub(super) async fn afterwards(client: &Client, scope: ScopeSet, output: &Output) {
    let wide = is_wide(&scope) && std::io::stderr().is_terminal();
    let named = names_somebody(&scope);
    if output.is_json() || !(wide || named) {
        return;
    }
    let asked = tokio::time::timeout(AFTERWARDS, client.plan_halt(&PlanRequest { scope })).await;
    let Ok(Ok(plan)) = asked else { return };
    if named && plan.unknown {
        output.note(&format!(
            "note: {}; whoever comes by that name is halted all the same",
            unknown(&plan)
        ));
    } else if wide {
        output.note(&format!("reached: {}", counts(&plan)));
    }
}

/// That nobody knows what the scope names, and what was probably meant.
fn unknown(plan: &HaltPlan) -> String {
    let meant = plan
        .did_you_mean
        .as_ref()
        .map_or_else(String::new, |scope| format!(": did you mean `{scope}`?"));
    format!("neither sessions nor enforcers know this scope{meant}")
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
        lines.push(unknown(plan));
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
