//! Who was seen lately: the sessions of the last events, for people who are about to halt something.
//!
//! A hint and nothing more: what is not in here is halted all the same, and nothing is decided by it.
//! Names come from agents, who could fill it with invented sessions; it is bounded, and the newest
//! make room by pushing out the oldest. It lives in memory and is empty after a restart.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use estoppel_model::{
    EntityId, Event, PluginRef, ReceivedEvent, Scope, ScopeSet, Subject, Timestamp,
};

/// Most sessions that are kept.
const SESSIONS_MAX: usize = 20_000;
/// How many go at once when there are more.
const DROPPED: usize = SESSIONS_MAX / 10;
/// Most tools and plugins that are kept of a session.
const PARTS_MAX: usize = 16;

/// A session as its events showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// Who acts in it, by the latest event that said so.
    pub subject: Subject,
    /// When its last event came, by the server's clock.
    pub last_seen: Timestamp,
    /// How many events came.
    pub events: u64,
    tools: BTreeSet<EntityId>,
    plugins: BTreeSet<PluginRef2>,
}

/// A plugin in use, in an order.
type PluginRef2 = (EntityId, Option<EntityId>);

impl Sighting {
    /// Whether a halt of the scopes would reach it.
    pub(crate) fn reached_by(&self, scopes: &ScopeSet) -> bool {
        scopes.iter().any(|scope| self.in_scope(scope))
    }

    fn in_scope(&self, scope: &Scope) -> bool {
        let by_part = || {
            self.tools.iter().any(|tool| {
                scope.reaches(&Subject { tool: Some(tool.clone()), ..Subject::default() })
            }) || self.plugins.iter().any(|(name, version)| {
                let plugin = PluginRef { name: name.clone(), version: version.clone() };
                scope.reaches(&Subject { plugin: Some(plugin), ..Subject::default() })
            })
        };
        scope.reaches(&self.subject) || by_part()
    }
}

/// The sessions seen lately, by their names.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<HashMap<EntityId, Sighting>>);

impl Roster {
    /// Takes note of events that came.
    pub(crate) fn saw(&self, events: &[ReceivedEvent]) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            let Some((session, seen)) = sighting(event) else { continue };
            match sessions.get_mut(session) {
                Some(known) => known.join(seen),
                None => {
                    if sessions.len() >= SESSIONS_MAX {
                        forget_oldest(&mut sessions);
                    }
                    sessions.insert(session.clone(), seen);
                }
            }
        }
    }

    /// The sessions since an instant for which a question is answered with yes, the latest first.
    pub(crate) fn since(
        &self,
        instant: Timestamp,
        is: impl Fn(&Sighting) -> bool,
    ) -> Vec<Sighting> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Sighting> = sessions
            .values()
            .filter(|seen| seen.last_seen >= instant && is(seen))
            .cloned()
            .collect();
        drop(sessions);
        found.sort_by(|one, other| {
            other
                .last_seen
                .cmp(&one.last_seen)
                .then_with(|| one.subject.session.cmp(&other.subject.session))
        });
        found
    }
}

impl Sighting {
    /// Takes in what a later event says; what it leaves out stays.
    fn join(&mut self, later: Self) {
        self.last_seen = self.last_seen.max(later.last_seen);
        self.events += later.events;
        let (own, new) = (&mut self.subject, later.subject);
        for (own, new) in [
            (&mut own.agent, new.agent),
            (&mut own.user, new.user),
            (&mut own.task, new.task),
            (&mut own.tenant, new.tenant),
        ] {
            if new.is_some() {
                *own = new;
            }
        }
        for tool in later.tools {
            if self.tools.len() < PARTS_MAX {
                self.tools.insert(tool);
            }
        }
        for plugin in later.plugins {
            if self.plugins.len() < PARTS_MAX {
                self.plugins.insert(plugin);
            }
        }
    }
}

/// The session of an event, if it names one.
fn sighting(event: &ReceivedEvent) -> Option<(&EntityId, Sighting)> {
    let name = |text: Option<&estoppel_model::Untrusted<String>>| {
        text.and_then(|text| EntityId::new(text.raw()).ok())
    };
    let (session, subject, tool, plugin) = match &event.event {
        Event::Audit(audit) => {
            let subject = Subject {
                agent: audit.agent_id.clone(),
                session: audit.session_id.clone(),
                user: audit.user_id.clone(),
                task: audit.task_id.clone(),
                tenant: audit.requester_tenant_id.clone(),
                ..Subject::default()
            };
            let version = name(audit.plugin_version.as_ref());
            let plugin = name(audit.plugin.as_ref()).map(|plugin| (plugin, version));
            (audit.session_id.as_ref(), subject, name(audit.tool.as_ref()), plugin)
        }
        Event::Network(flow) => {
            let subject = Subject {
                agent: flow.agent_id.clone(),
                session: flow.session_id.clone(),
                task: flow.task_id.clone(),
                tenant: flow.tenant_id.clone(),
                ..Subject::default()
            };
            let plugin = name(flow.plugin.as_ref()).map(|plugin| (plugin, None));
            (flow.session_id.as_ref(), subject, None, plugin)
        }
    };
    let seen = Sighting {
        subject,
        last_seen: event.received_at,
        events: 1,
        tools: tool.into_iter().collect(),
        plugins: plugin.into_iter().collect(),
    };
    Some((session?, seen))
}

fn forget_oldest(sessions: &mut HashMap<EntityId, Sighting>) {
    let mut ages: Vec<Timestamp> = sessions.values().map(|seen| seen.last_seen).collect();
    let (_, limit, _) = ages.select_nth_unstable(DROPPED);
    let limit = *limit;
    sessions.retain(|_, seen| seen.last_seen > limit);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use estoppel_model::EventLimits;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_770_000_000_000_000) + Duration::from_secs(seconds)
    }

    fn event(json: &str, seconds: u64) -> ReceivedEvent {
        let now = at(seconds);
        Event::parse(json).unwrap().receive(now, EventLimits::at(now)).unwrap()
    }

    fn scopes(text: &str) -> ScopeSet {
        text.parse::<Scope>().unwrap().into()
    }

    #[test]
    fn a_session_is_found_by_all_that_its_events_said() {
        let roster = Roster::default();
        roster.saw(&[
            event(r#"{"kind":"audit","session_id":"a","user_id":"bob","tool":"mail"}"#, 1),
            event(r#"{"kind":"audit","session_id":"a","agent_id":"crm","plugin":"scraper","plugin_version":"2.0"}"#, 2),
            event(r#"{"kind":"network","session_id":"b","tenant_id":"acme"}"#, 3),
            event(r#"{"kind":"audit","user_id":"nobody"}"#, 4),
        ]);
        let names = |scope: &str, since: u64| -> Vec<String> {
            let scope = scopes(scope);
            let found = roster.since(at(since), |seen| seen.reached_by(&scope));
            found.iter().map(|seen| seen.subject.session.as_ref().unwrap().to_string()).collect()
        };
        assert_eq!(names("global", 0), ["b", "a"]);
        assert_eq!(names("global", 3), ["b"]);
        for scope in [
            "session:a",
            "user:bob",
            "agent:crm",
            "tool:mail",
            "plugin:scraper",
            "plugin:scraper@>=2",
        ] {
            assert_eq!(names(scope, 0), ["a"], "{scope}");
        }
        assert_eq!(names("tenant:acme", 0), ["b"]);
        assert!(names("plugin:scraper@<2", 0).is_empty());
        assert!(names("session:c", 0).is_empty());
        let all = roster.since(at(0), |_| true);
        assert_eq!(all[1].events, 2);
    }

    #[test]
    fn invented_sessions_push_out_the_oldest_and_no_more() {
        let roster = Roster::default();
        let many: Vec<ReceivedEvent> = (0..SESSIONS_MAX as u64 + 1)
            .map(|n| event(&format!(r#"{{"kind":"audit","session_id":"s{n}"}}"#), n))
            .collect();
        roster.saw(&many);
        let kept = roster.since(at(0), |_| true);
        assert!(
            kept.len() <= SESSIONS_MAX && kept.len() > SESSIONS_MAX - DROPPED - 2,
            "{}",
            kept.len()
        );
        assert_eq!(kept[0].subject.session.as_ref().unwrap().as_str(), format!("s{SESSIONS_MAX}"));
    }
}
