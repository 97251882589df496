//! Actions: what a playbook or a person asks of this host, each done once and observed afterwards.

use std::io;

use estoppel_link::frame::{Action, ActionResult, Outcome, Verb};
use estoppel_model::Subject;
use serde_json::{Value, json};

use super::{DEFERRED_MAX, KILL_WITHIN, Mode, REMEMBERED_MAX, Supervisor, blocking};
use crate::Orders;

/// What an action came to: the result, in words, for a machine.
type Came = (ActionResult, String, Value);

fn done(observed: String) -> Came {
    (ActionResult::Done, observed, Value::Null)
}

fn failed(observed: String) -> Came {
    (ActionResult::Failed, observed, Value::Null)
}

impl<O: Orders> Supervisor<O> {
    /// Does an action, or says again what it came to.
    pub(super) async fn action(&mut self, action: Action) {
        if let Some(outcome) = self.outcomes.get(&action.id) {
            return self.orders.outcome(outcome.clone());
        }
        if self.captures.serve(action.id) || self.deferred.iter().any(|it| it.id == action.id) {
            return;
        }
        let came = if !is_of(&action.subject, &self.config.subject) {
            let own = format!("this agent is {}", self.config.subject);
            Some((ActionResult::NoSuchSubject, own, Value::Null))
        } else if self.must_wait(action.verb) {
            if self.deferred.len() == DEFERRED_MAX {
                Some(failed(format!("{DEFERRED_MAX} actions wait for a capture already")))
            } else {
                return self.deferred.push_back(action);
            }
        } else {
            self.act(&action).await
        };
        // Without a word: the capture answers when it is done.
        if let Some((result, observed, detail)) = came {
            self.answer(Outcome { action: action.id, result, observed, detail });
        }
    }

    /// Whether it would change what is being captured. What runs is changed by itself.
    fn must_wait(&self, verb: Verb) -> bool {
        matches!(verb, Verb::Thaw | Verb::Kill)
            && self.captures.are_running()
            && self.frozen.is_some()
    }

    pub(super) fn answer(&mut self, outcome: Outcome) {
        if self.outcomes.len() == REMEMBERED_MAX {
            // Ids are in order of time: the first is the oldest.
            self.outcomes.pop_first();
        }
        self.outcomes.insert(outcome.action, outcome.clone());
        self.orders.outcome(outcome);
    }

    async fn act(&mut self, action: &Action) -> Option<Came> {
        let observes = self.config.mode == Mode::Observe;
        Some(match action.verb {
            Verb::Freeze | Verb::Kill if observes => {
                failed("the host only observes: nothing was done".to_owned())
            }
            Verb::Observe => self.look(),
            Verb::Freeze => self.freeze_as_asked().await,
            Verb::Thaw => self.thaw_as_asked().await,
            Verb::Kill => self.kill_as_asked().await,
            Verb::Capture => {
                let state = self.state();
                failed(self.captures.of_action(action, state, &self.containment).err()?)
            }
        })
    }

    fn look(&self) -> Came {
        match self.agent.processes.count() {
            Ok(count) => {
                let state = if self.frozen.is_some() { "frozen" } else { "running" };
                let held_by = self.reason_to_hold();
                let detail = json!({ "processes": count, "state": state, "held_by": held_by });
                (ActionResult::Done, format!("{count} processes {state}"), detail)
            }
            Err(error) => failed(format!("its processes cannot be seen: {error}")),
        }
    }

    async fn freeze_as_asked(&mut self) -> Came {
        // Under a halt it is the halt that holds; a release of it is enough then.
        self.asked |= self.orders.check(&self.config.subject).is_ok();
        let not_stopped = self.freeze().await;
        if not_stopped.is_empty() {
            done(format!("{} processes frozen", self.frozen.map_or(0, |report| report.processes)))
        } else {
            (ActionResult::Indeterminate, not_stopped.join("; "), Value::Null)
        }
    }

    async fn thaw_as_asked(&mut self) -> Came {
        if let Err(refusal) = self.orders.check(&self.config.subject) {
            return failed(format!("not thawed: {refusal}"));
        }
        self.asked = false;
        match (self.reason_to_hold(), self.frozen) {
            (Some(reason), _) => failed(format!("not thawed: {reason}")),
            (None, None) => done("it was not frozen".to_owned()),
            (None, Some(report)) => match self.thaw().await {
                Ok(()) => done(format!("{} processes go on", report.processes)),
                Err(error) => failed(error.to_string()),
            },
        }
    }

    async fn kill_as_asked(&self) -> Came {
        let processes = &self.agent.processes;
        let killed: io::Result<u64> = blocking(processes, |processes| {
            let count = processes.count()?;
            processes.kill(KILL_WITHIN).map(|()| count)
        })
        .await;
        match killed {
            Ok(count) => done(format!("{count} processes killed")),
            Err(error) => failed(format!("some are left: {error}")),
        }
    }
}

/// Whether an action for `wanted` means the agent `own`: whatever it names, we are.
fn is_of(wanted: &Subject, own: &Subject) -> bool {
    let mut named = wanted.ids().peekable();
    named.peek().is_some() && named.all(|(kind, id)| own.id(kind) == Some(id))
}
