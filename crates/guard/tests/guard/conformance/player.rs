//! Plays a case: the orders through a real switch and a real stream, the steps through a guard.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use estoppel_guard::{Denied, Guard, KillSwitch, Mode, OnLost, StepError, StepHandle, StepSpec};
use estoppel_killswitch::server::{HaltProgress, SwitchConfig};
use estoppel_model::{Clock, OrderId, Scope, Subject, Timestamp};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::case::{Action, Case, Refusal, State, Verdict};
use crate::{
    Jumping,
    server::{Server, timely},
};

/// The instant from which a case's times count.
const BASE_MICROS: i64 = 1_770_260_400_000_000;
/// When orders are given that do not say when, in seconds from there: later than those that do.
const UNTIMED_S: i64 = 1_000;
/// Often, so that a new lease is soon there.
const PING: Duration = Duration::from_millis(20);

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
    server: Server,
    guard: Guard,
    kill_switch: KillSwitch,
    clock: Arc<Jumping>,
    ids: HashMap<String, OrderId>,
    given: i64,
    steps: HashMap<String, Step>,
}

impl Player {
    async fn start(case: &Case) -> Self {
        let config = SwitchConfig { lease: Duration::from_secs(15), ping: PING };
        let server = Server::start_for(config, case.guard.tenant.clone()).await;
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
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .connect()
            .unwrap();
        timely(guard.ready()).await;
        server.until_enforced().await;
        let kill_switch = guard.kill_switch();
        let (ids, steps) = (HashMap::new(), HashMap::new());
        Self { server, guard, kill_switch, clock, ids, given: 0, steps }
    }

    async fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Order { .. } => self.order(action).await,
            Action::Check { subject, verdict } => {
                return self.is_verdict(verdict, self.guard.check(subject).err().as_ref());
            }
            Action::Begin { step, verdict, .. } => return self.begin(step, action, verdict).await,
            Action::End { step } => {
                // Who was stopped hears it no more.
                let _ = self.step(step).end.take().unwrap().send(());
            }
            Action::Expect { step, state, order, reason, message } => {
                let found = self.state(step, *state).await;
                let ended = found.as_ref().and_then(|ended| ended.as_ref().err());
                let is = state_of(found.as_ref());
                expect("the step's state", state, &is)?;
                if let Some(denied) = ended.and_then(StepError::denied) {
                    let reason = reason.as_deref().unwrap_or("halted").to_owned();
                    let (order, message) = (order.clone(), message.clone());
                    let expected =
                        Refusal { reason, order, message, why: None, by: None, since: None };
                    return self.is_refusal(&expected, denied);
                }
            }
            Action::Settled { order, cancelled, not_interruptible, observed_only } => {
                let id = self.ids[order];
                let progress = self.server.until(id, has_settled).await;
                let settlement = &progress.enforcers[0].settlement;
                let named: Vec<&str> = settlement
                    .not_interruptible
                    .iter()
                    .map(|name| name.split_once(':').unwrap().0)
                    .collect();
                expect("steps cancelled", cancelled, &settlement.steps_cancelled)?;
                expect("not interruptible", &not_interruptible.as_slice(), &named.as_slice())?;
                expect("observed only", observed_only, &settlement.observed_only)?;
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
            Action::Reconnect {} => {
                self.server.cut();
                self.has_arrived().await;
            }
            Action::Forget {} => {
                self.server.forget();
                self.server.until_enforced().await;
                self.has_arrived().await;
            }
        }
        Ok(())
    }

    /// Waits until the guard has all that was ordered: frames keep their order.
    async fn has_arrived(&self) {
        let last = self.server.halt(&format!("session:conformance-{}", OrderId::new()));
        self.server.until(last, has_settled).await;
    }

    fn id(&mut self, name: &str) -> OrderId {
        *self.ids.entry(name.to_owned()).or_default()
    }

    async fn order(&mut self, action: &Action) {
        let Action::Order { name, kind, scope, at, reason, by, tenant, destination, ends } = action
        else {
            return;
        };
        self.given += 1;
        let at = at.unwrap_or(UNTIMED_S + self.given);
        let mut order = json!({
            "id": self.id(name),
            "scope": scope,
            "reason": reason.as_deref().unwrap_or("conformance"),
            "issued_by": by.as_deref().unwrap_or("alice"),
            "issued_at": timestamp(at),
            "kind": kind,
        });
        if let Some(tenant) = tenant {
            order["tenant"] = json!(tenant);
        }
        if let Some(destination) = destination {
            order["destination"] = json!(destination);
        }
        if let Some(ends) = ends {
            order["orders"] = ends.iter().map(|name| json!(self.id(name))).collect();
        }
        self.server.give(order.to_string());
        self.has_arrived().await;
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
        let id = expected.order.as_ref().map(|name| self.ids.get(name).copied());
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
        match expected.since {
            Some(at) => expect("since", &Some(timestamp(at)), &order.map(|order| order.issued_at)),
            None => Ok(()),
        }
    }
}

/// Whether the guard has said its last word; one that only observes settles nothing.
fn has_settled(progress: &HaltProgress) -> bool {
    progress.settled + progress.observing == 1
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

const fn timestamp(at: i64) -> Timestamp {
    Timestamp::from_micros(BASE_MICROS + at * 1_000_000)
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
