//! What a halt would hit, before it is given: sessions seen lately, enforcers that would get it,
//! halts that stand already. Asking changes nothing and waits for no disk.

use std::{collections::BTreeSet, time::Duration};

use estoppel_api::{HaltPlan, PlannedEnforcers, PlannedGap, PlannedSession};
use estoppel_killswitch::{Audience, frame::EnforcerKind, server::Switch};
use estoppel_model::{
    EntityId, Kind, Order, OrderBody, OrderId, Scope, ScopeSet, Subject, Timestamp,
};

use crate::{Server, http::kill_switch, roster::Sighting, switchboard::Ended, token::Identity};

/// How far back a session counts as seen lately.
pub(crate) const LATELY: Duration = Duration::from_secs(900);
/// Most sessions that are listed.
const SESSIONS_MAX: usize = 50;
/// Most gaps that are listed.
const GAPS_MAX: usize = 20;
/// Most sessions among which a name is looked for that was misspelt.
const NAMES_MAX: usize = 5_000;

/// What a halt of this scope by this caller would hit.
///
/// # Errors
/// When the server is ending.
pub(crate) async fn plan(
    server: &Server,
    caller: &Identity,
    scope: ScopeSet,
) -> Result<HaltPlan, Ended> {
    let now = server.clock().now();
    let lately = i64::try_from(LATELY.as_micros()).unwrap_or(i64::MAX);
    let since = Timestamp::from_micros(now.as_micros().saturating_sub(lately));
    let tenant = caller.tenant.as_ref();
    let theirs = |seen: &Sighting| tenant.is_none() || seen.subject.tenant.as_ref() == tenant;
    let reached = server.roster().since(since, |seen| theirs(seen) && seen.reached_by(&scope));
    let order = Order {
        id: OrderId::new(),
        scope: scope.clone(),
        reason: String::new(),
        issued_by: caller.actor.clone(),
        issued_at: now,
        incident: None,
        tenant: caller.tenant.clone(),
        body: OrderBody::Halt { until: None },
    };
    let ours = caller.tenant.clone();
    let seen = server.switchboard().ask(move |switch, _| look(switch, &order, ours.as_ref()));
    let Looked { enforcers, gaps, active, subjects } = seen.await?;
    let distinct = |id: fn(&Subject) -> Option<&EntityId>| {
        reached.iter().filter_map(|seen| id(&seen.subject)).collect::<BTreeSet<_>>().len()
    };
    let known = subjects.iter().any(|subject| scope.reaches(subject));
    let named = scope.iter().any(|scope| *scope != Scope::Global);
    let unknown = named && reached.is_empty() && !known;
    let did_you_mean = match scope.iter().next() {
        Some(scope) if unknown => {
            let mut names: Vec<Subject> = subjects;
            let all = server.roster().since(since, theirs);
            names.extend(all.into_iter().take(NAMES_MAX).map(|seen| seen.subject));
            nearest(scope, &names)
        }
        _ => None,
    };
    Ok(HaltPlan {
        session_count: reached.len(),
        agent_count: distinct(|subject| subject.agent.as_ref()),
        user_count: distinct(|subject| subject.user.as_ref()),
        tenant_count: distinct(|subject| subject.tenant.as_ref()),
        sessions: reached
            .into_iter()
            .take(SESSIONS_MAX)
            .map(|seen| PlannedSession {
                subject: seen.subject,
                last_seen: seen.last_seen,
                events: seen.events,
            })
            .collect(),
        scope,
        enforcers,
        gaps,
        active,
        unknown,
        did_you_mean,
        window_seconds: LATELY.as_secs(),
        watched_since: server.started_at(),
    })
}

struct Looked {
    enforcers: Vec<PlannedEnforcers>,
    gaps: Vec<PlannedGap>,
    active: Vec<estoppel_api::HaltSummary>,
    /// Whom enforcers say that they enforce.
    subjects: Vec<Subject>,
}

fn look(switch: &Switch, order: &Order, tenant: Option<&EntityId>) -> Looked {
    let audience = Audience::of(tenant);
    let mut looked = Looked {
        enforcers: Vec::new(),
        gaps: Vec::new(),
        active: Vec::new(),
        subjects: Vec::new(),
    };
    let mut counts = [0; 3];
    let kinds = [EnforcerKind::Guard, EnforcerKind::Gateway, EnforcerKind::Host];
    // Whose enforcers others have is not a tenant's to know.
    let visible = |own: &Audience| tenant.is_none() || *own == audience;
    for state in switch.enforcers() {
        let gets = state.connection.is_some() && state.audience.admits(order);
        if !gets || !visible(&state.audience) {
            continue;
        }
        for (count, kind) in counts.iter_mut().zip(kinds) {
            *count += usize::from(state.kind == kind);
        }
        let room = GAPS_MAX - looked.gaps.len();
        looked.gaps.extend(
            state
                .gaps
                .iter()
                .take(room)
                .map(|gap| PlannedGap { enforcer: state.name.to_string(), gap: gap.clone() }),
        );
        let room = NAMES_MAX - looked.subjects.len();
        looked.subjects.extend(state.subjects.iter().take(room).cloned());
    }
    looked.enforcers = kinds
        .into_iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| PlannedEnforcers { kind: kill_switch::kind(kind).to_owned(), count })
        .collect();
    let mut active = switch.active_halts(&order.scope);
    for global in switch.active_halts(&Scope::Global.into()) {
        if !active.iter().any(|known| known.id == global.id) {
            active.push(global);
        }
    }
    looked.active = active
        .iter()
        .filter(|halt| tenant.is_none() || halt.tenant.is_none() || halt.tenant.as_ref() == tenant)
        .map(|halt| kill_switch::summary(halt))
        .collect();
    looked
}

/// What was probably meant: the same name as something else, or a name that is spelt nearly so.
fn nearest(scope: &Scope, known: &[Subject]) -> Option<Scope> {
    let (kind, name) = match scope {
        Scope::Global => return None,
        Scope::Entity { kind, id } => (*kind, id),
        Scope::PluginVersions { name, .. } => (Kind::Plugin, name),
    };
    let ids = || known.iter().flat_map(Subject::ids);
    if let Some((kind, id)) = ids().find(|(_, id)| *id == name) {
        return Some(Scope::entity(kind, id.clone()));
    }
    ids()
        .filter(|(own, _)| *own == kind)
        .map(|(_, id)| (strsim::damerau_levenshtein(name.as_str(), id.as_str()), id))
        .min()
        .filter(|(distance, id)| *distance <= (id.as_str().len() / 3).min(3))
        .map(|(_, id)| Scope::entity(kind, id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_gets_a_suggestion() {
        let id = |text: &str| EntityId::new(text).unwrap();
        let known = [
            Subject { agent: Some(id("crm")), ..Subject::session(id("abc123")) },
            Subject::session(id("xyz789")),
        ];
        let check = |scope: &str, expect: Option<&str>| {
            let found = nearest(&scope.parse().unwrap(), &known);
            assert_eq!(found.map(|scope| scope.to_string()).as_deref(), expect, "{scope}");
        };
        check("session:abc132", Some("session:abc123"));
        check("session:crm", Some("agent:crm"));
        check("session:somebody-else", None);
        check("agent:cr", Some("agent:crm"));
        check("global", None);
    }
}
