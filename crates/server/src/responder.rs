//! From an event to a stop: detectors on the stream, and what follows by itself.
//!
//! A halt that follows from a detection is given before anything is written: the events' own
//! durability, the incident and the run of the playbook come behind it (*stop-never-waits*). What
//! may follow by itself, and how wide, `detect` decides (*bounded automation*).
//!
//! The records of incident, detection and run stand with the halt in the order spool, so that a
//! process that ends between the halt and the ledger loses none of them (`resume`). Where a person
//! is asked and no halt is given, the sender of the events gets its answer once they are written.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use estoppel_api::AllowlistSuggestion;
use estoppel_detect::{
    Decision, DetectPolicy, Detection, Detectors, EGRESS_LEARNED, Family, Response, Responses,
    subject_of,
};
use estoppel_extract::Allowlist;
use estoppel_incident::record::{Detected, IncidentKind, Opened, Source};
use estoppel_model::{
    Actor, Destination, Event, IncidentId, Kind, NewRecord, Order, OrderBody, OrderId,
    ReceivedEvent, Record, RunId, Scope, ScopeSet, Untrusted,
};
use estoppel_playbook::{Inputs, Playbook, Run, journal::Mode, journal::RunStarted};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    Server, StartError,
    incidents::{Chosen, Page},
    journal::JournalError,
    watched::Watched,
};

/// Detections that wait to be answered; more are recorded in their events and answered by nobody.
const WAITING_MAX: usize = 4_096;
/// Who acts.
const ACTOR: &str = "estoppel:responder";

/// Detectors and what follows from them.
#[derive(Debug)]
pub(crate) struct Responder {
    detectors: Mutex<Detectors>,
    responses: Mutex<Responses>,
    policy: RwLock<Arc<DetectPolicy>>,
    playbooks: Playbooks,
    actor: Actor,
    /// Incidents whose run is on its way to the ledger.
    starting: Mutex<HashSet<IncidentId>>,
    found: mpsc::Sender<Found>,
    watched: Watched,
}

/// The playbooks that answer.
#[derive(Debug)]
struct Playbooks {
    hijacked: Playbook,
    runaway: Playbook,
}

impl Playbooks {
    const fn of(&self, family: Family) -> &Playbook {
        match family {
            Family::Egress | Family::Injection => &self.hijacked,
            Family::Runaway => &self.runaway,
        }
    }
}

/// A detection that is to be answered.
#[derive(Debug)]
pub(crate) struct Found {
    detection: Detection,
    /// Dropped when what follows is in the ledger, or nothing is to be written.
    recorded: oneshot::Sender<()>,
}

/// What was found in some events.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Findings(Vec<oneshot::Receiver<()>>);

impl Findings {
    /// Resolves when all of what follows is in the ledger, or nobody is at it any more.
    pub(crate) async fn recorded(self) {
        for recorded in self.0 {
            let _ = recorded.await;
        }
    }
}

impl Responder {
    /// A responder, and what it finds. `playbook` reads the text of one by its name.
    ///
    /// # Errors
    /// When a playbook cannot be read, or is at fault.
    pub(crate) fn new(
        policy: DetectPolicy,
        playbook: impl Fn(&'static str) -> Result<String, StartError>,
        watched: Watched,
    ) -> Result<(Self, mpsc::Receiver<Found>), StartError> {
        let parse = |name| {
            Playbook::parse(&playbook(name)?)
                .map_err(|source| StartError::Playbook { name, source: Box::new(source) })
        };
        let playbooks =
            Playbooks { hijacked: parse("prompt-injection")?, runaway: parse("runaway")? };
        let (found, detections) = mpsc::channel(WAITING_MAX);
        let responder = Self {
            detectors: Mutex::new(Detectors::new()),
            responses: Mutex::new(Responses::new()),
            policy: RwLock::new(Arc::new(policy)),
            playbooks,
            actor: Actor::new(ACTOR).map_err(|_| StartError::Random)?,
            starting: Mutex::default(),
            found,
            watched,
        };
        Ok((responder, detections))
    }

    /// Lets the detectors see events, before these are written; what they find is written into the
    /// events themselves.
    pub(crate) fn observe(&self, events: &mut [ReceivedEvent]) -> Findings {
        let (policy, watched) = (self.policy(), self.watched.now());
        let tightened = watched.watches().then(|| policy.tightened());
        let mut findings = Findings::default();
        for event in events {
            let policy = match &tightened {
                Some(tightened) if watched.watched(&subject_of(&event.event)).is_some() => {
                    tightened
                }
                _ => &*policy,
            };
            // A panic of a detector must not take the ones after it along: its state is bounded
            // caches, which are sound after any of their steps.
            let mut detectors = self.detectors.lock().unwrap_or_else(PoisonError::into_inner);
            let found = detectors.observe(event, policy);
            drop(detectors);
            if found.is_empty() {
                continue;
            }
            if let Event::Audit(audit) = &mut event.event {
                let rules: Vec<_> = found
                    .iter()
                    .map(|found| serde_json::json!({ "id": found.id, "rule": found.rule }))
                    .collect();
                let text = serde_json::Value::from(rules).to_string();
                audit.detections = RawValue::from_string(text).ok();
            }
            for detection in found {
                let (recorded, follow) = oneshot::channel();
                if self.found.try_send(Found { detection, recorded }).is_err() {
                    tracing::error!(
                        "more detections than can be answered; one stays in its event alone"
                    );
                }
                findings.0.push(follow);
            }
        }
        findings
    }

    /// Sets where agents may send to; `None`: egress is learned.
    pub(crate) fn set_allowlist(&self, allowlist: Option<Arc<Allowlist>>) {
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *policy = Arc::new(DetectPolicy { allowlist, ..DetectPolicy::clone(&policy) });
    }

    pub(crate) fn policy(&self) -> Arc<DetectPolicy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Knows the halts of before this process's start: what is halted is not halted anew.
    pub(crate) fn resumed<'o>(&self, in_force: impl IntoIterator<Item = &'o Arc<Order>>) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        let own = in_force.into_iter().filter(|order| {
            order.issued_by == self.actor && matches!(order.body, OrderBody::Halt { .. })
        });
        own.flat_map(|order| order.scope.iter()).for_each(|scope| responses.halted(scope));
    }

    /// Whether a run may start for an incident: one at a time. Who is told so starts it, and says
    /// [`Responder::started`] then.
    fn may_start(&self, server: &Server, incident: IncidentId) -> bool {
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        !is_running(server, incident) && starting.insert(incident)
    }

    fn started(&self, incident: IncidentId) {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner).remove(&incident);
    }

    /// Forgets what was halted for: a person has released it, and decides anew.
    pub(crate) fn released(&self, order: &Order) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        order.scope.iter().for_each(|scope| responses.released(scope));
    }

    /// What follows from a detection.
    fn respond(&self, detection: &Detection) -> Decision {
        let policy = if self.watched.covers(&detection.subject) {
            Arc::new(self.policy().tightened())
        } else {
            self.policy()
        };
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).respond(detection, &policy)
    }

    /// Where agents went while egress was learned.
    pub(crate) fn suggestions(&self) -> Vec<AllowlistSuggestion> {
        let detectors = self.detectors.lock().unwrap_or_else(PoisonError::into_inner);
        let suggestions = detectors.learned().suggest();
        suggestions
            .into_iter()
            .map(|line| AllowlistSuggestion {
                domain: line.entry,
                flows: line.flows,
                sessions: line.sessions,
            })
            .collect()
    }
}

/// Answers what is found, until the server stops.
pub(crate) async fn answer(
    server: Server,
    mut found: mpsc::Receiver<Found>,
    stop: CancellationToken,
) {
    loop {
        let found = tokio::select! {
            biased;
            found = found.recv() => found,
            () = stop.cancelled() => None,
        };
        let Some(Found { detection, recorded }) = found else { return };
        let decision = server.responder().respond(&detection);
        respond(&server, &detection, decision, recorded).await;
    }
}

async fn respond(
    server: &Server,
    detection: &Detection,
    decision: Decision,
    recorded: oneshot::Sender<()>,
) {
    let scope = decision.scope.map(ScopeSet::from);
    let chosen = server.incidents().choose(scope.as_ref(), &detection.subject, None);
    // What is merely learned, or reported once more, opens no incident of its own.
    let quiet = detection.rule == EGRESS_LEARNED.name || decision.response == Response::Report;
    if quiet && chosen.new {
        server.incidents().forget(chosen);
        return;
    }
    let incident = chosen.id;
    let asks = decision.response == Response::Ask;
    let begun = match (&decision.response, &scope) {
        (Response::Act | Response::Ask, Some(scope)) => {
            begin(server, detection, scope, incident, asks)
        }
        _ => None,
    };
    let (started, halt) = begun.unzip();
    let answer = Answer {
        opened: Opened {
            id: incident,
            title: Untrusted::new(title(detection)),
            kind: match detection.family {
                Family::Egress | Family::Injection => IncidentKind::PromptInjection,
                Family::Runaway => IncidentKind::Runaway,
            },
            severity: detection.severity,
            source: Source::Detection,
            scope: scope.clone(),
            subject: detection.subject.clone(),
            by: server.responder().actor.clone(),
            description: decision
                .held_back
                .map(|why| Untrusted::new(format!("No halt was given: {why}."))),
        },
        chosen,
        detected: detected(incident, detection),
        started: started.filter(|_| server.responder().may_start(server, incident)),
        asks,
    };
    if decision.response == Response::Act
        && let (Some(scope), Some(halt)) = (scope, halt)
    {
        stop(server, scope, halt, &answer).await;
    }
    let server = server.clone();
    // The ledger may be slow or away; the next detection must not wait for it.
    server.tasks().clone().spawn(async move {
        let starts = answer.started.is_some();
        if let Err(error) = write(&server, answer).await {
            tracing::error!(%incident, %error, "an incident could not be written");
        }
        if starts {
            server.responder().started(incident);
        }
        drop(recorded);
    });
}

/// What is to be written about a detection.
struct Answer {
    chosen: Chosen,
    opened: Opened,
    detected: Detected,
    /// The run that begins.
    started: Option<RunStarted>,
    asks: bool,
}

impl Answer {
    /// Everything of it, as it is kept with the halt.
    fn records(&self, server: &Server) -> Result<Vec<NewRecord>, JournalError> {
        let incident = server.incidents().first_record(&self.chosen, self.opened.clone())?;
        // When it was found, rather than when the ledger came to it.
        let detected = self.detected.record(self.detected.received_at)?;
        let now = server.clock().now();
        let started = self.started.as_ref().map(|started| started.record(now)).transpose()?;
        Ok([Some(incident), Some(detected), started].into_iter().flatten().collect())
    }
}

/// Whether a run of an incident is not over.
pub(crate) fn is_running(server: &Server, incident: IncidentId) -> bool {
    server.journal().read(|state| state.runs.open().any(|run| run.incident() == incident))
}

/// The run's first record, and the id of the halt that its first step gives.
fn begin(
    server: &Server,
    detection: &Detection,
    scope: &ScopeSet,
    incident: IncidentId,
    asks: bool,
) -> Option<(RunStarted, Option<OrderId>)> {
    let responder = server.responder();
    let playbook = responder.playbooks.of(detection.family);
    let scope = scope.iter().next()?;
    let texts = match detection.family {
        Family::Egress | Family::Injection => {
            let Scope::Entity { kind: Kind::Session, id } = scope else { return None };
            let destination = detection.destination.as_ref().map(Destination::to_string);
            [
                Some(("incident.session", id.to_string())),
                destination.map(|destination| ("incident.destination", destination)),
            ]
        }
        Family::Runaway => {
            let session = detection.subject.session.as_ref();
            [
                Some(("incident.scope", scope.to_string())),
                session.map(|session| ("incident.session", session.to_string())),
            ]
        }
    };
    let title = Some(("incident.title", title(detection)));
    let texts: Vec<(&str, String)> = texts.into_iter().chain([title]).flatten().collect();
    // The operator's own playbook need not ask for everything that is known.
    let asked_for = texts.iter().filter(|(name, _)| playbook.inputs.contains_key(*name));
    let inputs = Inputs::read(playbook, asked_for.map(|(name, text)| (*name, text.as_str())))
        .inspect_err(|error| tracing::error!(%error, "the playbook cannot be run"))
        .ok()?;
    let by = responder.actor.clone();
    let started = playbook.start(RunId::new(), incident, &inputs, Mode::Live, asks, by);
    let halt = halt_of(server, &started);
    Some((started, halt))
}

/// The id under which a run's first halt will be given, so that it can be given ahead of its step.
fn halt_of(server: &Server, started: &RunStarted) -> Option<OrderId> {
    let new = started.record(server.clock().now()).ok()?;
    let record = Record { seq: 0, kind: new.kind, key: new.key, at: new.at, body: new.body };
    let run = Run::started(&record).ok()?;
    let halt = estoppel_playbook::ActionKind::Halt;
    let index = run.steps().position(|view| view.step.action == halt)?;
    Some(OrderId::from_uuid(run.effect_id(index)))
}

async fn stop(server: &Server, scope: ScopeSet, halt: Option<OrderId>, answer: &Answer) {
    let order = Order {
        id: halt.unwrap_or_default(),
        scope,
        reason: answer.opened.title.raw().clone(),
        issued_by: server.responder().actor.clone(),
        issued_at: server.clock().now(),
        incident: Some(answer.opened.id),
        tenant: None,
        body: OrderBody::Halt { until: None },
    };
    let follows = answer.records(server).unwrap_or_else(|error| {
        tracing::error!(order = %order.id, %error, "what follows from a halt is not kept with it");
        Vec::new()
    });
    match server.switchboard().give_with(order, follows).await {
        Ok(Ok(given)) => server.incidents().ordered(&given),
        Ok(Err(error)) => tracing::error!(%error, "a halt by detection was not taken"),
        Err(error) => tracing::error!(%error, "a halt by detection came too late"),
    }
}

async fn write(server: &Server, answer: Answer) -> Result<(), JournalError> {
    let Answer { chosen, opened, detected, started, asks } = answer;
    let incident = chosen.id;
    let page = Page::ahead(&opened, asks);
    server.incidents().open(chosen, opened).await?;
    server.incidents().page(page);
    server.journal().append(detected.record(detected.received_at)?).await?;
    // Before the ledger was open, nobody could tell what was running.
    if let Some(started) = started
        && !is_running(server, incident)
    {
        server.journal().commit(started.record(server.clock().now())?).await?;
    }
    Ok(())
}

fn title(detection: &Detection) -> String {
    // The summary is our own words, inert on one line; a reason has a bound. Quotation marks of code
    // would be escaped wherever the title stands in code itself.
    detection.summary.chars().filter(|c| *c != '`').take(400).collect()
}

fn detected(incident: IncidentId, detection: &Detection) -> Detected {
    Detected {
        incident,
        detection: detection.id.to_string(),
        rule: detection.rule.clone(),
        severity: detection.severity,
        subject: detection.subject.clone(),
        evidence: detection.evidence.clone(),
        summary: detection.summary.clone(),
        destination: detection.destination.clone(),
        event_at: detection.at,
        received_at: detection.received_at,
    }
}
