//! Drives runs of playbooks: appends what `playbook` says, executes, observes, appends again.
//!
//! Everything that must be remembered is in the ledger, so this may end at any moment: a run goes
//! on after a restart with what its journal says (invariant *observe-before-retry*). Steps of one
//! run go on beside each other; a stop never queues behind a capture.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use estoppel_killswitch::frame::{Action, ActionResult, EnforcerKind, Outcome, Verb};
use estoppel_ledger::Appended;
use estoppel_model::{
    Actor, EnforcerId, EntityId, IncidentId, NewRecord, Order, OrderBody, OrderId, RunId, Scope,
    ScopeSet, Subject, Untrusted,
};
use estoppel_playbook::{
    AfterObservation, Call, Next, Observation, RunState,
    journal::{StepIntent, StepOutcome},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Server, incidents::Page, journal::JournalError};

/// How long the driver sleeps when nothing tells it to wake.
const IDLE: Duration = Duration::from_secs(5);
/// How often an order's confirmations are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How often it is looked whether a host has come back.
const HOST_LOOK: Duration = Duration::from_millis(50);

/// Steps that this process is at.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashMap<RunId, BTreeSet<usize>>>>);

impl InFlight {
    fn of(&self, run: RunId) -> BTreeSet<usize> {
        self.lock().get(&run).cloned().unwrap_or_default()
    }

    fn begin(&self, run: RunId, index: usize) -> bool {
        self.lock().entry(run).or_default().insert(index)
    }

    fn end(&self, run: RunId, index: usize) {
        let mut steps = self.lock();
        if let Some(of_run) = steps.get_mut(&run) {
            of_run.remove(&index);
            if of_run.is_empty() {
                steps.remove(&run);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, BTreeSet<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What executing a call came to.
#[derive(Debug)]
struct Done {
    outcome: StepOutcome,
    observed: String,
    detail: serde_json::Value,
}

impl Done {
    fn new(outcome: StepOutcome, observed: impl Into<String>) -> Self {
        Self { outcome, observed: observed.into(), detail: serde_json::Value::Null }
    }
}

/// One step at work.
#[derive(Debug, Clone)]
struct Step {
    run: RunId,
    incident: IncidentId,
    by: Actor,
    intent: StepIntent,
    call: Call,
    effect_id: Uuid,
    action_id: Uuid,
    within: Duration,
}

/// Drives all runs until the server stops.
pub(crate) async fn drive(server: Server, stop: CancellationToken) {
    let steps = InFlight::default();
    let mut changes = server.journal().changes();
    loop {
        changes.mark_unchanged();
        let until = advance(&server, &steps).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(until) => {}
        }
    }
}

/// Does for each open run what is to be done now; returns when to look again at the latest.
async fn advance(server: &Server, steps: &InFlight) -> Duration {
    let now = server.clock().now();
    let agenda: Vec<_> = server.journal().read(|state| {
        let open = state.runs.open().map(|run| {
            (run.id(), run.incident(), run.by().clone(), run.next(now, &steps.of(run.id())))
        });
        open.collect()
    });
    let mut until = IDLE;
    for (run, incident, by, nexts) in agenda {
        for next in nexts {
            let record = match next.record(now).transpose() {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%run, %error, "a run's record cannot be written");
                    continue;
                }
            };
            let (observe, step) = match next {
                Next::Execute { intent, call, effect_id, action_id, within } => {
                    let by = by.clone();
                    (false, Step { run, incident, by, intent, call, effect_id, action_id, within })
                }
                Next::Observe { intent, call, effect_id, action_id, within } => {
                    let by = by.clone();
                    (true, Step { run, incident, by, intent, call, effect_id, action_id, within })
                }
                Next::Skip(_) | Next::Finished(_) => {
                    if let Some(record) = record
                        && let Err(error) = server.journal().commit(record).await
                    {
                        tracing::error!(%run, %error, "a run stands still");
                    }
                    continue;
                }
                Next::Wait { until: at, .. } => {
                    if let Some(at) = at {
                        until = until.min(at.since(now).max(LOOK));
                    }
                    continue;
                }
            };
            if steps.begin(run, step.intent.index) {
                let (server, steps) = (server.clone(), steps.clone());
                server.tasks().clone().spawn(async move {
                    let index = step.intent.index;
                    if let Err(error) = take(&server, &step, record, observe).await {
                        tracing::error!(run = %step.run, step = step.intent.step, %error, "a step stands still");
                        // Not at once again: what failed is the ledger.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    steps.end(step.run, index);
                    server.journal().nudge();
                });
            }
        }
    }
    until
}

/// Takes a step from its intent to its result.
async fn take(
    server: &Server,
    step: &Step,
    intent: Option<NewRecord>,
    observe: bool,
) -> Result<(), JournalError> {
    if let Some(intent) = intent {
        let appended = server.journal().commit(intent).await?;
        if matches!(appended, Appended::Existing { .. }) {
            // Another scheduler's intent came first, and it executes.
            return Ok(());
        }
    }
    let index = step.intent.index;
    let done = if observe {
        let (observation, observed) = look(server, step).await;
        let after = server.journal().read(|state| {
            state.runs.run(step.run)?.after_observation(index, observation, &observed)
        });
        match after {
            None => return Ok(()),
            Some(AfterObservation::Record(result)) => {
                let record = result.record(server.clock().now())?;
                server.journal().commit(record).await?;
                return Ok(());
            }
            Some(AfterObservation::Execute) => execute(server, step).await,
        }
    } else {
        execute(server, step).await
    };
    let result = server.journal().read(|state| {
        state.runs.run(step.run)?.step_result(index, done.outcome, &done.observed, done.detail)
    });
    if let Some(result) = result {
        server.journal().commit(result.record(server.clock().now())?).await?;
    }
    Ok(())
}

async fn execute(server: &Server, step: &Step) -> Done {
    let work = async {
        match &step.call {
            Call::Halt { scope, reason } => {
                let body = OrderBody::Halt { until: None };
                order(server, step, scope.clone().into(), reason, body).await
            }
            Call::Block { scope, destination, reason } => {
                let body = OrderBody::Block { destination: destination.clone() };
                order(server, step, scope.clone().into(), reason, body).await
            }
            Call::Limit { scope, limit, reason } => {
                let body = OrderBody::Limit { limit: limit.as_ref().clone() };
                order(server, step, scope.clone().into(), reason, body).await
            }
            Call::Freeze { session } => act(server, step, session, Verb::Freeze).await,
            Call::Capture { session } => act(server, step, session, Verb::Capture).await,
            Call::Kill { session } => act(server, step, session, Verb::Kill).await,
            Call::Thaw { session } => act(server, step, session, Verb::Thaw).await,
            Call::Notify { summary, .. } => notify(server, step, summary).await,
        }
    };
    let late = || {
        Done::new(
            StepOutcome::Indeterminate,
            "it took too long; whether it had its effect is not known",
        )
    };
    tokio::time::timeout(step.within, work).await.unwrap_or_else(|_| late())
}

/// What can be seen of a step whose result is missing.
async fn look(server: &Server, step: &Step) -> (Observation, String) {
    match &step.call {
        Call::Halt { .. } | Call::Block { .. } | Call::Limit { .. } => {
            let id = OrderId::from_uuid(step.effect_id);
            let known =
                server.switchboard().ask(move |switch, _| switch.orders().order(id).is_some());
            match known.await {
                // Whether everybody carries it out is for the execution to say, which repeats
                // nothing: the order's id is the same.
                Ok(true | false) => {
                    (Observation::NotDone, "the order's effect is looked at anew".to_owned())
                }
                Err(_) => (Observation::Unknown, "the server is ending".to_owned()),
            }
        }
        Call::Kill { session } => {
            match host_word(server, step, session, Verb::Observe, Uuid::now_v7()).await {
                Ok(outcome) if outcome.result == ActionResult::NoSuchSubject => {
                    (Observation::Done, outcome.observed)
                }
                Ok(outcome) => (Observation::NotDone, outcome.observed),
                Err(reason) => (Observation::Unknown, reason),
            }
        }
        // The host knows the action by its id and says what it came to, once or again; a page's
        // channel knows the deduplication key.
        Call::Freeze { .. } | Call::Capture { .. } | Call::Thaw { .. } | Call::Notify { .. } => {
            (Observation::Unknown, "a process ended between the intent and the result".to_owned())
        }
    }
}

/// Gives an order and waits until every enforcer refuses by it, or its lease is over.
async fn order(
    server: &Server,
    step: &Step,
    scope: ScopeSet,
    reason: &str,
    body: OrderBody,
) -> Done {
    let id = OrderId::from_uuid(step.effect_id);
    let order = Order {
        id,
        scope,
        reason: reason.chars().take(500).collect(),
        issued_by: step.by.clone(),
        issued_at: server.clock().now(),
        incident: Some(step.incident),
        tenant: None,
        body,
    };
    let given = match server.switchboard().give(order).await {
        Ok(Ok(given)) => given,
        Ok(Err(error)) => return Done::new(StepOutcome::Failed, error.to_string()),
        Err(error) => return Done::new(StepOutcome::Indeterminate, error.to_string()),
    };
    if !given.repeated {
        server.incidents().ordered(&given);
        server.responder().resumed([&given.order]);
    }
    loop {
        match server.switchboard().progress(id).await {
            Ok(Some((progress, _))) => {
                if progress.refusing + progress.by_lease >= progress.expected {
                    let observed = format!(
                        "in force; {} of {} enforcers refuse, {} by lease",
                        progress.refusing, progress.expected, progress.by_lease
                    );
                    let detail = serde_json::json!({ "order": id });
                    return Done { detail, ..Done::new(StepOutcome::Done, observed) };
                }
            }
            Ok(None) => {
                return Done::new(StepOutcome::Done, "in force since before the server's start");
            }
            Err(error) => return Done::new(StepOutcome::Indeterminate, error.to_string()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Lets the hosts that enforce a session do something.
async fn act(server: &Server, step: &Step, session: &EntityId, verb: Verb) -> Done {
    match host_word(server, step, session, verb, step.action_id).await {
        Ok(Outcome { result, observed, detail, .. }) => {
            let outcome = match (result, verb) {
                (ActionResult::Done, _) | (ActionResult::NoSuchSubject, Verb::Kill) => {
                    StepOutcome::Done
                }
                (ActionResult::Failed | ActionResult::NoSuchSubject, _) => StepOutcome::Failed,
                (ActionResult::Indeterminate, _) => StepOutcome::Indeterminate,
            };
            Done { outcome, observed, detail }
        }
        Err(reason) => Done::new(StepOutcome::Failed, reason),
    }
}

/// The connected hosts that run a session. After a start, and while one is away whose lease still
/// holds, it is waited for: hosts come back within their lease.
async fn hosts_of(server: &Server, session: &EntityId) -> Result<Vec<EnforcerId>, String> {
    let lease = server.config().lease;
    loop {
        let scope = Scope::entity(estoppel_model::Kind::Session, session.clone());
        let hosts = server.switchboard().ask(move |switch, _| {
            let of_session = switch.enforcers().filter(|state| {
                state.kind == EnforcerKind::Host
                    && state.subjects.iter().any(|subject| scope.reaches(subject))
            });
            of_session.map(|state| (state.id, state.connection.is_some())).collect::<Vec<_>>()
        });
        let hosts = hosts.await.map_err(|error| error.to_string())?;
        if !hosts.is_empty() && hosts.iter().all(|(_, connected)| *connected) {
            return Ok(hosts.into_iter().map(|(id, _)| id).collect());
        }
        let just_started = server.clock().now().since(server.started_at()) < lease;
        if hosts.is_empty() && !just_started {
            return Err(format!(
                "no connected host runs session {session} (`estoppel run` starts one)"
            ));
        }
        tokio::time::sleep(HOST_LOOK).await;
    }
}

/// Sends an action to every connected host of a session; the worst of their words.
async fn host_word(
    server: &Server,
    step: &Step,
    session: &EntityId,
    verb: Verb,
    action: Uuid,
) -> Result<Outcome, String> {
    let hosts = hosts_of(server, session).await?;
    let mut answers = Vec::new();
    for host in hosts {
        let subject = Subject::session(session.clone());
        let action = Action { id: action, incident: step.incident, subject, verb };
        match server.switchboard().act(host, action).await.map_err(|error| error.to_string())? {
            Some(answer) => answers.push(answer),
            None => return Err("a host left before it was asked".to_owned()),
        }
    }
    let mut worst: Option<Outcome> = None;
    for answer in answers {
        let outcome = answer.await.map_err(|_| "a host left before it answered".to_owned())?;
        let badness = |outcome: &Outcome| match outcome.result {
            ActionResult::Done => 0,
            ActionResult::NoSuchSubject => 1,
            ActionResult::Indeterminate => 2,
            ActionResult::Failed => 3,
        };
        if worst.as_ref().is_none_or(|worst| badness(&outcome) >= badness(worst)) {
            worst = Some(outcome);
        }
    }
    worst.ok_or_else(|| "no host answered".to_owned())
}

/// Pages. The deduplication key is the incident's: the channel knows a repetition by it.
async fn notify(server: &Server, step: &Step, summary: &str) -> Done {
    let view = server.journal().read(|state| state.incidents.incident(step.incident).cloned());
    let Some(view) = view else {
        return Done::new(StepOutcome::Failed, "the incident is not in the ledger");
    };
    let summary = Untrusted::new(summary.to_owned());
    let page = Page { summary, ..Page::of(&view) };
    match server.incidents().deliver(page).await {
        Ok(receipt) => Done::new(StepOutcome::Done, receipt),
        Err((outcome, reason)) => Done::new(outcome, reason),
    }
}

/// The state's word for people.
pub(crate) const fn word(state: RunState) -> &'static str {
    use estoppel_playbook::journal::RunOutcome;
    match state {
        RunState::Asking => "asking",
        RunState::Running => "running",
        RunState::Ended(RunOutcome::Completed) => "completed",
        RunState::Ended(RunOutcome::Declined) => "declined",
        RunState::Ended(RunOutcome::Indeterminate) => "indeterminate",
        RunState::Ended(RunOutcome::Failed) => "failed",
    }
}
