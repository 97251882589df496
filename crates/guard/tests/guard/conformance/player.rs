//! Plays a case: the orders through a real switch and a real stream, the steps through a guard.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use estoppel_guard::{
    Access, Denied, Guard, KillSwitch, Mode, OnLost, StepError, StepHandle, StepSpec, Usage,
};
use estoppel_model::{Clock, Excess, Scope, Subject};
use estoppel_testkit::authority::part::{EPOCH, LastWord, Part};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::case::{Action, Case, Over, Refusal, State, Verdict};
use crate::{Jumping, server::timely};

/// Plays a case to its end.
///
/// # Errors
/// With the action, what was expected and what was found.
pub(super) async fn play(case: &Case) -> Result<(), String> {
    let mut player = Player::start(case).await;
    for (place, action) in case.play.iter().enumerate() {
        let played = player.act(action).await;
        played.map_err(|error| format!("action {}, {action:?}: {error}", place + 1))?;
    }
    Ok(())
}

struct Step {
    end: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), StepError>>>,
    ended: Option<Result<(), StepError>>,
}

struct Player {
    server: Part,
    guard: Guard,
    kill_switch: KillSwitch,
    clock: Arc<Jumping>,
    steps: HashMap<String, Step>,
}

impl Player {
    async fn start(case: &Case) -> Self {
        let server = Part::start(case.guard.tenant.clone()).await;
        let clock = Arc::new(Jumping::default());
        let mode = match case.guard.mode.as_deref() {
            None => Mode::Enforce,
            Some("observe") => Mode::Observe,
            Some(other) => panic!("no mode: {other}"),
        };
        let on_lost = match case.guard.on_lost.as_deref() {
            None => OnLost::Refuse,
            Some("allow") => OnLost::Allow,
            Some(other) => panic!("no choice: {other}"),
        };
        let guard = Guard::builder()
            .server(&server.url())
            .unwrap()
            .token("token")
            .mode(mode)
            .on_lost(on_lost)
            .limits(case.guard.limits.clone())
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .connect()
            .unwrap();
        timely(guard.ready()).await;
        server.enforced().await;
        let kill_switch = guard.kill_switch();
        Self { server, guard, kill_switch, clock, steps: HashMap::new() }
    }

    async fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Order(given) => {
                self.server.give(given).await;
            }
            Action::Check { subject, verdict } => {
                return self.is_verdict(verdict, self.guard.check(subject).err().as_ref());
            }
            Action::Begin { step, verdict, .. } => return self.begin(step, action, verdict).await,
            Action::End { step } => {
                // Who was stopped hears it no more.
                let _ = self.step(step).end.take().unwrap().send(());
            }
            Action::Call { times, verdict, .. } => {
                for turn in 1..=*times {
                    let called = self.call(action).await;
                    let denied = called.as_ref().err().and_then(StepError::denied);
                    let is = self.is_verdict(verdict, denied);
                    is.map_err(|error| format!("call {turn}: {error}"))?;
                }
            }
            Action::Access { subject, requester, accessed, verdict } => {
                let access = Access::new("read", requester.clone(), accessed.clone());
                let denied = self.guard.access(subject, access).err();
                return self.is_verdict(verdict, denied.as_ref());
            }
            Action::Expect { step, state, order, reason, message, limit } => {
                let found = self.state(step, *state).await;
                let ended = found.as_ref().and_then(|ended| ended.as_ref().err());
                let is = state_of(found.as_ref());
                expect("the step's state", state, &is)?;
                if let Some(denied) = ended.and_then(StepError::denied) {
                    let reason = reason.as_deref().unwrap_or("halted").to_owned();
                    let expected = Refusal {
                        reason,
                        order: order.clone(),
                        message: message.clone(),
                        limit: limit.clone(),
                        why: None,
                        by: None,
                        since: None,
                        retry_within: None,
                    };
                    return self.is_refusal(&expected, denied);
                }
            }
            Action::Settled { order, cancelled, not_interruptible, observed_only } => {
                let found = self.server.last_word(order).await?;
                let expected = LastWord {
                    cancelled: *cancelled,
                    not_interruptible: not_interruptible.clone(),
                    observed_only: *observed_only,
                };
                return expect("the last word", &expected, &found);
            }
            Action::Scope { text, valid } => {
                return expect("validity", valid, &text.parse::<Scope>().is_ok());
            }
            Action::ScopeCheck { scope, stop } => {
                return expect("stop", stop, &self.kill_switch.check(scope));
            }
            Action::Silence { seconds } => {
                self.server.fall_silent();
                self.clock.0.fetch_add(*seconds, Relaxed);
            }
            Action::Answer {} => {
                self.server.answer();
                let lost = || self.guard.status().lease_until <= Some(self.clock.boottime());
                timely(async {
                    while lost() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            Action::Pass { seconds } => {
                self.clock.0.fetch_add(*seconds, Relaxed);
            }
            Action::Reconnect {} => self.server.reconnect().await,
            Action::Forget {} => self.server.forget().await,
        }
        Ok(())
    }

    async fn begin(
        &mut self,
        name: &str,
        action: &Action,
        verdict: &Verdict,
    ) -> Result<(), String> {
        let (subject, spec, interruptible) = step_of(action);
        let guard = self.guard.clone();
        let (began, begun) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let task = TaskTracker::new().spawn(async move {
            if interruptible {
                let work = async |_: StepHandle| {
                    began.send(()).unwrap();
                    // The case is over when the sender is gone.
                    let _ = ended.await;
                };
                guard.step(&subject, spec, work).await
            } else {
                let work = move |_: StepHandle| {
                    began.send(()).unwrap();
                    let _ = ended.blocking_recv();
                };
                guard.step_blocking(&subject, spec, work).await
            }
        });
        if timely(begun).await.is_ok() {
            let step = Step { end: Some(end), task: Some(task), ended: None };
            self.steps.insert(name.to_owned(), step);
            return self.is_verdict(verdict, None);
        }
        match timely(task).await.unwrap() {
            Err(StepError::Denied(denied)) => self.is_verdict(verdict, Some(&denied)),
            other => Err(format!("the step ended before its work began: {other:?}")),
        }
    }

    /// A step whose work is over at once.
    async fn call(&self, action: &Action) -> Result<(), StepError> {
        let Action::Call { subject, tool, read_only, params, result, error, tokens, cost, .. } =
            action
        else {
            unreachable!("only this action is a call")
        };
        let mut spec = match tool {
            Some(tool) => StepSpec::tool(tool).unwrap(),
            None => StepSpec::action("model_call"),
        };
        if *read_only {
            spec = spec.read_only();
        }
        if let Some(params) = params {
            spec = spec.params(params);
        }
        let work = async |step: StepHandle| {
            if let Some(result) = result {
                step.record_result(result);
            }
            if let Some(error) = error {
                step.record_error(error);
            }
            step.record_usage(Usage {
                output_tokens: Some(*tokens),
                estimated_cost: Some(*cost),
                ..Usage::default()
            });
        };
        self.guard.step(subject, spec, work).await
    }

    fn step(&mut self, name: &str) -> &mut Step {
        self.steps.get_mut(name).unwrap()
    }

    /// How the step ended; waits for it unless it is expected to be running.
    async fn state(&mut self, name: &str, expected: State) -> Option<Result<(), StepError>> {
        let step = self.step(name);
        if let Some(task) = step.task.take() {
            if expected == State::Running && !task.is_finished() {
                step.task = Some(task);
                return None;
            }
            step.ended = Some(timely(task).await.unwrap());
        }
        step.ended.clone()
    }

    fn is_verdict(&self, verdict: &Verdict, denied: Option<&Denied>) -> Result<(), String> {
        match (verdict, denied) {
            (Verdict::Allowed(_), None) => Ok(()),
            (Verdict::Denied(refusal), Some(denied)) => self.is_refusal(refusal, denied),
            (_, found) => Err(format!("found {found:?}")),
        }
    }

    fn is_refusal(&self, expected: &Refusal, denied: &Denied) -> Result<(), String> {
        let order = denied.order.as_deref();
        expect("reason", &expected.reason.as_str(), &denied.reason.as_str())?;
        let id = expected.order.as_ref().map(|name| self.server.id(name));
        expect("order", &id, &order.map(|order| Some(order.id)))?;
        if let Some(message) = &expected.message {
            expect("message", &message.as_str(), &denied.message.as_ref())?;
        }
        if let Some(why) = &expected.why {
            expect("why", &Some(why.as_str()), &order.map(|order| order.reason.as_str()))?;
        }
        if let Some(by) = &expected.by {
            expect("by", &Some(by.as_str()), &order.map(|order| order.issued_by.as_str()))?;
        }
        if let Some(at) = expected.since {
            let since = EPOCH + Duration::from_secs(at);
            expect("since", &Some(since), &order.map(|order| order.issued_at))?;
        }
        let wait = denied.retry_after_ms.map(|ms| Duration::from_millis(ms.get()));
        let longest = expected.retry_within.map(Duration::from_secs);
        if wait.is_some() != longest.is_some() || wait > longest {
            return Err(format!("retry: expected within {longest:?}, found {wait:?}"));
        }
        match (&expected.limit, denied.limit.as_deref()) {
            (None, None) => Ok(()),
            (Some(expected), Some(found)) => is_over(expected, found),
            (_, found) => Err(format!("limit: found {found:?}")),
        }
    }
}

fn is_over(expected: &Over, found: &Excess) -> Result<(), String> {
    expect("breaker", &expected.breaker, &found.breaker)?;
    expect("max", &expected.max, &found.max)?;
    expect("period", &expected.period, &found.period)?;
    expected.value.map_or(Ok(()), |value| expect("value", &value, &found.value))
}

fn step_of(action: &Action) -> (Subject, StepSpec, bool) {
    let Action::Begin { subject, tool, plugin, destination, interruptible, .. } = action else {
        unreachable!("only this action begins a step")
    };
    let mut spec = StepSpec::tool(tool).unwrap();
    if let Some(plugin) = plugin {
        let version = plugin.version.as_ref().map(estoppel_model::EntityId::as_str);
        spec = spec.plugin(plugin.name.as_str(), version).unwrap();
    }
    if let Some(destination) = destination {
        spec = spec.destination(destination).unwrap();
    }
    (subject.clone(), spec, interruptible.unwrap_or(true))
}

fn state_of(ended: Option<&Result<(), StepError>>) -> State {
    match ended {
        None => State::Running,
        Some(Ok(())) => State::Finished,
        Some(Err(StepError::Cancelled(_))) => State::Cancelled,
        Some(Err(StepError::Withheld(_))) => State::Withheld,
        Some(Err(other)) => panic!("no state: {other:?}"),
    }
}

/// An error unless what was found is what was expected.
fn expect<T: PartialEq<U> + std::fmt::Debug + ?Sized, U: std::fmt::Debug + ?Sized>(
    what: &str,
    expected: &T,
    found: &U,
) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}
