//! From an event to a stop: detectors on the stream, and what follows by itself.
//!
//! A halt that follows from a detection is given before anything is written: the events' own
//! durability, the incident and the run of the playbook come behind it (*stop-never-waits*). What
//! may follow by itself, and how wide, `detect` decides (*bounded automation*).

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use estoppel_api::AllowlistSuggestion;
use estoppel_detect::{
    Decision, DetectPolicy, Detection, Detectors, EGRESS_LEARNED, Response, Responses,
};
use estoppel_extract::Allowlist;
use estoppel_incident::record::{Detected, IncidentKind, Opened, Source};
use estoppel_model::{
    Actor, Destination, Event, IncidentId, Kind, Order, OrderBody, OrderId, ReceivedEvent, Record,
    RunId, Scope, ScopeSet, Untrusted,
};
use estoppel_playbook::{Inputs, Playbook, Run, journal::Mode, journal::RunStarted};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Server, StartError,
    incidents::{Chosen, Page},
    journal::JournalError,
};

/// Detections that wait to be answered; more are recorded in their events and answered by nobody.
const WAITING_MAX: usize = 4_096;
/// The playbook that answers.
const PLAYBOOK: &str = "prompt-injection";
/// Who acts.
const ACTOR: &str = "estoppel:responder";

/// Detectors and what follows from them.
#[derive(Debug)]
pub(crate) struct Responder {
    detectors: Mutex<Detectors>,
    responses: Mutex<Responses>,
    policy: RwLock<Arc<DetectPolicy>>,
    playbook: Playbook,
    actor: Actor,
    found: mpsc::Sender<Detection>,
}

impl Responder {
    /// A responder, and what it finds.
    ///
    /// # Errors
    /// When the playbook is at fault.
    pub(crate) fn new(
        policy: DetectPolicy,
        playbook: &str,
    ) -> Result<(Self, mpsc::Receiver<Detection>), StartError> {
        let playbook = Playbook::parse(playbook)
            .map_err(|source| StartError::Playbook { name: PLAYBOOK, source: Box::new(source) })?;
        let (found, detections) = mpsc::channel(WAITING_MAX);
        let responder = Self {
            detectors: Mutex::new(Detectors::new()),
            responses: Mutex::new(Responses::new()),
            policy: RwLock::new(Arc::new(policy)),
            playbook,
            actor: Actor::new(ACTOR).map_err(|_| StartError::Random)?,
            found,
        };
        Ok((responder, detections))
    }

    /// Lets the detectors see events, before these are written; what they find is written into the
    /// events themselves.
    pub(crate) fn observe(&self, events: &mut [ReceivedEvent]) {
        let policy = self.policy();
        for event in events {
            // A panic of a detector must not take the ones after it along: its state is bounded
            // caches, which are sound after any of their steps.
            let mut detectors = self.detectors.lock().unwrap_or_else(PoisonError::into_inner);
            let found = detectors.observe(event, &policy);
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
                if self.found.try_send(detection).is_err() {
                    tracing::error!(
                        "more detections than can be answered; one stays in its event alone"
                    );
                }
            }
        }
    }

    /// Sets where agents may send to; `None`: egress is learned.
    pub(crate) fn set_allowlist(&self, allowlist: Option<Arc<Allowlist>>) {
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *policy = Arc::new(DetectPolicy { allowlist, ..DetectPolicy::clone(&policy) });
    }

    pub(crate) fn policy(&self) -> Arc<DetectPolicy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what was halted for: a person has released it, and decides anew.
    pub(crate) fn released(&self, order: &Order) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        order.scope.iter().for_each(|scope| responses.released(scope));
    }

    /// What follows from a detection.
    fn respond(&self, detection: &Detection) -> Decision {
        let policy = self.policy();
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
    mut found: mpsc::Receiver<Detection>,
    stop: CancellationToken,
) {
    loop {
        let detection = tokio::select! {
            biased;
            detection = found.recv() => detection,
            () = stop.cancelled() => None,
        };
        let Some(detection) = detection else { return };
        let decision = server.responder().respond(&detection);
        if let Err(error) = respond(&server, &detection, decision).await {
            tracing::error!(detection = %detection.id, %error, "a detection was not answered");
        }
    }
}

async fn respond(
    server: &Server,
    detection: &Detection,
    decision: Decision,
) -> Result<(), JournalError> {
    let scope = decision.scope.map(ScopeSet::from);
    let chosen = server.incidents().choose(scope.as_ref(), &detection.subject, None);
    // What is merely learned, or reported once more, opens no incident of its own.
    let quiet = detection.rule == EGRESS_LEARNED.name || decision.response == Response::Report;
    if quiet && chosen.new {
        server.incidents().forget(chosen);
        return Ok(());
    }
    let incident = chosen.id;
    let run = RunId::new();
    let begun = match (&decision.response, &scope) {
        (Response::Act | Response::Ask, Some(scope)) => {
            begin(server, detection, scope, incident, run)
        }
        _ => None,
    };
    if decision.response == Response::Act
        && let (Some(scope), Some((_, halt))) = (&scope, &begun)
    {
        stop(server, detection, scope.clone(), incident, *halt).await;
    }
    let opened = Opened {
        id: incident,
        title: Untrusted::new(title(detection)),
        kind: IncidentKind::PromptInjection,
        severity: detection.severity,
        source: Source::Detection,
        scope,
        subject: detection.subject.clone(),
        by: server.responder().actor.clone(),
        description: decision
            .held_back
            .map(|why| Untrusted::new(format!("No halt was given: {why}."))),
    };
    let server = server.clone();
    let detected = detected(incident, detection);
    let asks = decision.response == Response::Ask;
    // The ledger may be slow or away; the next detection must not wait for it.
    server.tasks().clone().spawn(async move {
        if let Err(error) =
            write(&server, chosen, opened, detected, begun.map(|(started, _)| started), asks).await
        {
            tracing::error!(%incident, %error, "an incident could not be written");
        }
    });
    Ok(())
}

/// The run's first record, and the id of the halt that its first step gives.
fn begin(
    server: &Server,
    detection: &Detection,
    scope: &ScopeSet,
    incident: IncidentId,
    run: RunId,
) -> Option<(RunStarted, Option<OrderId>)> {
    let responder = server.responder();
    let session = scope.iter().find_map(|scope| match scope {
        Scope::Entity { kind: Kind::Session, id } => Some(id.to_string()),
        _ => None,
    })?;
    let destination = detection.destination.as_ref().map(Destination::to_string);
    let texts = [
        Some(("incident.session", session)),
        destination.map(|destination| ("incident.destination", destination)),
        Some(("incident.title", title(detection))),
    ];
    let texts: Vec<(&str, String)> = texts.into_iter().flatten().collect();
    let texts = texts.iter().map(|(name, text)| (*name, text.as_str()));
    let inputs = Inputs::read(&responder.playbook, texts)
        .inspect_err(|error| tracing::error!(%error, "the playbook cannot be run"))
        .ok()?;
    let by = responder.actor.clone();
    let started = responder.playbook.start(run, incident, &inputs, Mode::Live, false, by);
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

async fn stop(
    server: &Server,
    detection: &Detection,
    scope: ScopeSet,
    incident: IncidentId,
    halt: Option<OrderId>,
) {
    let order = Order {
        id: halt.unwrap_or_default(),
        scope,
        reason: title(detection),
        issued_by: server.responder().actor.clone(),
        issued_at: server.clock().now(),
        incident: Some(incident),
        tenant: None,
        body: OrderBody::Halt { until: None },
    };
    match server.switchboard().give(order).await {
        Ok(Ok(given)) => server.incidents().ordered(&given),
        Ok(Err(error)) => tracing::error!(%error, "a halt by detection was not taken"),
        Err(error) => tracing::error!(%error, "a halt by detection came too late"),
    }
}

async fn write(
    server: &Server,
    chosen: Chosen,
    opened: Opened,
    detected: Detected,
    started: Option<RunStarted>,
    asks: bool,
) -> Result<(), JournalError> {
    let incident = chosen.id;
    let page = Page::ahead(&opened, asks);
    server.incidents().open(chosen, opened).await?;
    server.incidents().page(page);
    let now = server.clock().now();
    // When it was found, rather than when the ledger came to it.
    let record = detected.record(detected.received_at)?;
    server.journal().append(record).await?;
    if let Some(started) = started {
        // One run of the playbook for an incident at a time.
        let running =
            server.journal().read(|state| state.runs.open().any(|run| run.incident() == incident));
        if !running {
            server.journal().commit(RunStarted { asks, ..started }.record(now)?).await?;
        }
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
