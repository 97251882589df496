//! The captures of one agent: one at a time, in a queue, one per incident and freeze.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use estoppel_evidence::ProcessState;
use estoppel_link::frame::{Action, ActionResult};
use estoppel_model::{Actor, Clock, IncidentId, Order, Subject};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

use super::SuperviseConfig;
use crate::{CaptureError, CaptureLimits, CaptureRequest, Captured, Processes, capture};

/// Most captures that wait.
const QUEUE_MAX: usize = 16;
/// Longest manifest that goes into an action's outcome, which is one frame of the stream.
const MANIFEST_IN_OUTCOME_BYTES_MAX: usize = 1024 * 1024;

/// What a capture came to, and for which actions.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) actions: Vec<Uuid>,
    pub(super) result: ActionResult,
    pub(super) observed: String,
    pub(super) detail: Value,
}

#[derive(Debug)]
struct Job {
    request: CaptureRequest,
    actions: Vec<Uuid>,
}

#[derive(Debug)]
struct Running {
    case: Option<IncidentId>,
    /// Whether the processes are frozen, so that a second capture would find the same.
    frozen: bool,
    actions: Vec<Uuid>,
    task: JoinHandle<Result<Captured, CaptureError>>,
}

/// The queue.
pub(super) struct Captures {
    processes: Arc<Processes>,
    captured: mpsc::Sender<Captured>,
    clock: Arc<dyn Clock>,
    subject: Subject,
    operator: Actor,
    evidence: PathBuf,
    limits: CaptureLimits,
    running: Option<Running>,
    queue: VecDeque<Job>,
    /// Those of frozen processes since they were frozen: nothing has changed since.
    finished: Vec<(Option<IncidentId>, Done)>,
    /// Answers that are ready without a capture.
    ready: VecDeque<Done>,
}

impl Captures {
    pub(super) fn new(
        processes: Arc<Processes>,
        captured: mpsc::Sender<Captured>,
        clock: Arc<dyn Clock>,
        config: &SuperviseConfig,
    ) -> Self {
        Self {
            processes,
            captured,
            clock,
            subject: config.subject.clone(),
            operator: config.operator.clone(),
            evidence: config.evidence.clone(),
            limits: config.limits,
            running: None,
            queue: VecDeque::new(),
            finished: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Whether one is under way or waits.
    pub(super) fn are_running(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty() || !self.ready.is_empty()
    }

    /// The processes go on: what was captured of them is no longer what they are.
    pub(super) fn forget(&mut self) {
        self.finished.clear();
    }

    /// Captures for a halt.
    pub(super) fn of_order(&mut self, order: &Order, state: ProcessState, containment: &str) {
        let request = CaptureRequest {
            case: order.incident,
            order: Some(order.id),
            subject: self.subject.clone(),
            operator: self.operator.clone(),
            authority: format!("halt by {}: {}", order.issued_by, order.reason),
            state,
            containment: containment.to_owned(),
        };
        if let Err(why) = self.add(Job { request, actions: Vec::new() }) {
            tracing::error!(order = %order.id, %why, "no evidence is captured");
        }
    }

    /// Captures for an action.
    pub(super) fn of_action(
        &mut self,
        action: &Action,
        state: ProcessState,
        containment: &str,
    ) -> Result<(), String> {
        let request = CaptureRequest {
            case: Some(action.incident),
            order: None,
            subject: self.subject.clone(),
            operator: self.operator.clone(),
            authority: format!("action {}", action.id),
            state,
            containment: containment.to_owned(),
        };
        self.add(Job { request, actions: vec![action.id] })
    }

    /// Whether a capture that will answer for this action is under way.
    pub(super) fn serve(&self, action: Uuid) -> bool {
        self.running.iter().any(|running| running.actions.contains(&action))
            || self.queue.iter().any(|job| job.actions.contains(&action))
    }

    fn add(&mut self, job: Job) -> Result<(), String> {
        let case = job.request.case;
        if job.request.state == ProcessState::Frozen {
            if let Some((_, done)) = self.finished.iter().find(|(of, _)| *of == case) {
                self.ready.push_back(Done { actions: job.actions, ..done.clone() });
                return Ok(());
            }
            if let Some(running) = self.running.as_mut().filter(|it| it.frozen && it.case == case) {
                running.actions.extend(job.actions);
                return Ok(());
            }
        }
        if self.queue.len() == QUEUE_MAX {
            return Err(format!("{QUEUE_MAX} captures wait already"));
        }
        self.queue.push_back(job);
        self.start_next();
        Ok(())
    }

    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(Job { request, actions }) = self.queue.pop_front() else { return };
        let (case, frozen) = (request.case, request.state == ProcessState::Frozen);
        let (processes, clock) = (Arc::clone(&self.processes), Arc::clone(&self.clock));
        let (limits, evidence) = (self.limits, self.evidence.clone());
        let task = tokio::task::spawn_blocking(move || {
            let list = processes
                .list()
                .map_err(|source| CaptureError::Folder { path: "/proc".into(), source })?;
            capture(list, &request, &limits, &evidence, &*clock)
        });
        self.running = Some(Running { case, frozen, actions, task });
    }

    /// The end of the capture under way; never, if there is none. Cancel safe.
    pub(super) async fn done(&mut self) -> Done {
        if let Some(done) = self.ready.pop_front() {
            return done;
        }
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = (&mut running.task).await;
        let (case, frozen, actions) = self
            .running
            .take()
            .map(|running| (running.case, running.frozen, running.actions))
            .unwrap_or_default();
        let done = match result {
            Ok(Ok(captured)) => {
                let done = Done {
                    actions,
                    result: ActionResult::Done,
                    observed: format!(
                        "{} items, {} bytes, {} gaps captured",
                        captured.items, captured.bytes, captured.gaps
                    ),
                    detail: detail(&captured),
                };
                tracing::info!(
                    capture = %captured.id, manifest = %captured.manifest.digest(),
                    items = captured.items, gaps = captured.gaps, "evidence is captured"
                );
                if frozen {
                    self.finished.push((case, done.clone()));
                }
                if self.captured.try_send(captured).is_err() {
                    tracing::error!("the capture is not delivered: it stays on this host");
                }
                done
            }
            Ok(Err(error)) => failed(actions, error.to_string()),
            Err(error) => failed(actions, error.to_string()),
        };
        self.start_next();
        done
    }
}

fn failed(actions: Vec<Uuid>, why: String) -> Done {
    tracing::error!(%why, "no evidence is captured");
    Done { actions, result: ActionResult::Failed, observed: why, detail: Value::Null }
}

/// The manifest for a machine: whole, or its digest alone where it is too long for a frame.
fn detail(captured: &Captured) -> Value {
    let text = captured.manifest.text();
    let manifest = (text.len() <= MANIFEST_IN_OUTCOME_BYTES_MAX).then_some(text);
    json!({
        "capture": captured.id,
        "manifest_sha256": captured.manifest.digest(),
        "items": captured.items,
        "gaps": captured.gaps,
        "bytes": captured.bytes,
        // As text, since its digest is that of these very bytes.
        "manifest": manifest,
    })
}
