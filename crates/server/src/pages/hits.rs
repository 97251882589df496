//! What a halt will hit, in words for the page before it.

use estoppel_api::{HaltPlan, HaltSummary, PlannedSession};
use estoppel_model::{EntityId, Scope, ScopeSet, Subject, Timestamp};

use super::{
    form::{Wish, address},
    view::{Moment, Shown, counted},
    visitor::Visitor,
};
use crate::{
    Server,
    http::{kill_switch, problem::Failure},
    plan::{LATELY, plan},
};

/// Most sessions that are named; the rest is counted.
const SESSIONS_MAX: usize = 8;
/// Most gaps that are shown.
const GAPS_MAX: usize = 6;
/// Most things seen lately that are offered.
const LATELY_MAX: usize = 8;

/// Something to tap instead of typing its name.
#[derive(Debug)]
pub(super) struct Seen {
    pub scope: Shown,
    pub href: String,
    pub ago: String,
}

impl Seen {
    /// The sessions seen last, as far as the visitor may know of them.
    pub(super) fn lately(server: &Server, visitor: &Visitor) -> Vec<Self> {
        let now = server.clock().now();
        let lately = i64::try_from(LATELY.as_micros()).unwrap_or(i64::MAX);
        let since = Timestamp::from_micros(now.as_micros().saturating_sub(lately));
        let tenant = visitor.identity.tenant.as_ref();
        let seen = server
            .roster()
            .since(since, |seen| tenant.is_none() || seen.subject.tenant.as_ref() == tenant);
        seen.iter()
            .filter_map(|seen| Some((seen.subject.session.as_ref()?, seen.last_seen)))
            .take(LATELY_MAX)
            .map(|(session, last_seen)| {
                let scope = format!("session:{session}");
                Self {
                    href: address("/halt", &[("scope", &scope)]),
                    scope: Shown::name(&scope),
                    ago: Moment::new(last_seen, now).ago,
                }
            })
            .collect()
    }
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Fact {
    pub name: &'static str,
    pub value: String,
    pub detail: String,
}

/// A session that will be hit.
#[derive(Debug)]
pub(super) struct SessionLine {
    pub name: Shown,
    pub who: Shown,
    pub ago: String,
}

/// What somebody should read before they go on.
#[derive(Debug)]
pub(super) struct Warning {
    pub text: Shown,
    pub link: Option<WarningLink>,
}

#[derive(Debug)]
pub(super) struct WarningLink {
    pub href: String,
    pub text: Shown,
}

/// What a halt will hit.
#[derive(Debug)]
pub(super) struct Hits {
    pub facts: Vec<Fact>,
    pub sessions: Vec<SessionLine>,
    pub more_sessions: usize,
    pub gaps: Vec<Shown>,
    pub warnings: Vec<Warning>,
}

impl Hits {
    /// Asks what a halt will hit.
    ///
    /// # Errors
    /// When the visitor may not give it.
    pub(super) async fn read(
        server: &Server,
        visitor: &Visitor,
        scope: &Scope,
        reason: &str,
    ) -> Result<Self, Failure> {
        let caller = visitor.caller();
        let scopes = ScopeSet::from(scope.clone());
        kill_switch::may_halt(&caller, &scopes)?;
        let plan = plan(server, &visitor.identity, scopes).await?;
        Ok(Self::of(&plan, scope, reason, server.clock().now()))
    }

    fn of(plan: &HaltPlan, scope: &Scope, reason: &str, now: Timestamp) -> Self {
        let minutes = plan.window_seconds / 60;
        let count: usize = plan.enforcers.iter().map(|kind| kind.count).sum();
        let kinds: Vec<String> =
            plan.enforcers.iter().map(|kind| counted(kind.count, &kind.kind)).collect();
        let mut behind = Vec::new();
        for (count, one) in
            [(plan.agent_count, "agent"), (plan.user_count, "user"), (plan.tenant_count, "tenant")]
        {
            if count > 0 {
                behind.push(counted(count, one));
            }
        }
        let lately = if behind.is_empty() {
            format!("seen in the last {minutes} minutes")
        } else {
            format!("seen in the last {minutes} minutes, of {}", behind.join(", "))
        };
        let facts = vec![
            Fact { name: "Refused", value: refused(scope), detail: String::new() },
            Fact { name: "Reaches", value: counted(plan.session_count, "session"), detail: lately },
            Fact {
                name: "Told at once",
                value: counted(count, "enforcer"),
                detail: kinds.join(", "),
            },
        ];
        let sessions: Vec<SessionLine> =
            plan.sessions.iter().take(SESSIONS_MAX).map(|session| line(session, now)).collect();
        let gap = |gap: &estoppel_api::PlannedGap| {
            Shown::name(format_args!("{}: {}", gap.enforcer, gap.gap))
        };
        Self {
            facts,
            more_sessions: plan.session_count - sessions.len(),
            sessions,
            gaps: plan.gaps.iter().take(GAPS_MAX).map(gap).collect(),
            warnings: warnings(plan, count, reason, now),
        }
    }
}

/// Who is refused, in words.
fn refused(scope: &Scope) -> String {
    let what = match scope {
        Scope::Global => "every step of every agent",
        Scope::Entity { kind, .. } => match kind.as_str() {
            "session" => "each next step of this session",
            "agent" => "each next step of this agent, in all its sessions",
            "task" => "each next step of this task",
            "user" => "whatever agents do for this user",
            "tenant" => "whatever agents do for this tenant",
            "plugin" => "each step that uses this plugin",
            "tool" => "each call of this tool",
            _ => "this part of your product",
        },
        Scope::PluginVersions { .. } => "each step that uses these versions of the plugin",
    };
    what.to_owned()
}

fn line(session: &PlannedSession, now: Timestamp) -> SessionLine {
    let Subject { agent, user, tenant, .. } = &session.subject;
    let word = |word: &str, id: &Option<EntityId>| id.as_ref().map(|id| format!("{word} {id}"));
    let who: Vec<String> = [word("agent", agent), word("user", user), word("tenant", tenant)]
        .into_iter()
        .flatten()
        .collect();
    let name = session.subject.session.as_ref().map(ToString::to_string).unwrap_or_default();
    SessionLine {
        name: Shown::name(name),
        who: Shown::name(who.join(", ")),
        ago: Moment::new(session.last_seen, now).ago,
    }
}

fn warnings(plan: &HaltPlan, enforcers: usize, reason: &str, now: Timestamp) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if plan.unknown {
        let minutes = plan.window_seconds / 60;
        let watched = Moment::new(plan.watched_since, now);
        let text = format!(
            "Nothing of this name was seen in the last {minutes} minutes (the server watches since {}). It can be halted all the same.",
            watched.clock
        );
        let link = plan.did_you_mean.as_ref().map(|scope| {
            let scope = scope.to_string();
            let wish = Wish { reason: reason.to_owned(), ..Wish::of_scope(&scope) };
            WarningLink {
                href: wish.href(),
                text: Shown::name(format_args!("Did you mean {scope}?")),
            }
        });
        warnings.push(Warning { text: Shown::name(text), link });
    }
    if enforcers == 0 {
        let text = "No enforcer is connected: this stops nobody now. It will be in force for every one that connects.";
        warnings.push(Warning { text: Shown::name(text), link: None });
    }
    for halt in plan.active.iter().take(3) {
        let HaltSummary { id, scope, activated_by, timestamp, .. } = halt;
        let ago = Moment::new(*timestamp, now).ago;
        let text = format!("Halted already: {scope}, by {activated_by}, {ago}.");
        let link = WarningLink { href: format!("/halts/{id}"), text: Shown::name("Look at it") };
        warnings.push(Warning { text: Shown::name(text), link: Some(link) });
    }
    warnings
}
