//! One step from its check to its record, whichever way it ends.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use estoppel_model::Subject;

use crate::{
    audit::{self, End},
    denied::Denied,
    guard::{Mode, Shared},
    in_flight::{Leaving, Running, StepId},
    open_step::OnStop,
    step::{StepError, StepHandle, StepSpec},
};

/// A step that has begun. Dropped, it is recorded as given up: a step leaves a record and the
/// register even when its caller forgets it or its work panics.
#[derive(Debug)]
pub(crate) struct Run {
    shared: Arc<Shared>,
    running: Arc<Running>,
    /// Taken when the step has left the register.
    id: Option<StepId>,
}

impl Run {
    /// Enters the step and checks it, in this order: see [`crate::in_flight`].
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        subject: &Subject,
        spec: StepSpec,
        interruptible: bool,
        on_stop: Option<Arc<dyn OnStop>>,
    ) -> Result<Self, StepError> {
        let subject = Subject {
            tool: spec.tool.clone().or_else(|| subject.tool.clone()),
            plugin: spec.plugin.clone().or_else(|| subject.plugin.clone()),
            ..subject.clone()
        };
        let (now, boottime) = (shared.clock.now(), shared.clock.boottime());
        let running = Running::new(subject, spec, interruptible, now, boottime);
        let running = Arc::new(match on_stop {
            Some(on_stop) => running.telling(on_stop),
            None => running,
        });
        let id = shared.in_flight.enter(Arc::clone(&running));
        let mut run = Self { shared: Arc::clone(shared), running, id: Some(id) };
        let refusal =
            run.shared.refusal(&run.running.subject, run.running.spec.destination.as_ref());
        let counted = match refusal {
            // It is not taken.
            Some(_) if shared.mode == Mode::Enforce => None,
            _ => shared.count(&run.running),
        };
        match refusal.or(counted) {
            Some(cause) if shared.mode == Mode::Enforce => {
                run.leave(Leaving::NeverBegan);
                let denied = shared.denied(&cause);
                run.record(End::Denied(cause));
                Err(StepError::Denied(denied))
            }
            Some(cause) => {
                run.running.note_would_stop(cause);
                Ok(run)
            }
            None => Ok(run),
        }
    }

    /// What the work is given.
    pub(crate) fn handle(&self) -> StepHandle {
        StepHandle { running: Arc::clone(&self.running) }
    }

    /// The step's work has come to its end. Its value counts only if nothing stopped it meanwhile.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, StepError> {
        self.leave(Leaving::ByItself);
        match self.running.stopped_by().cloned() {
            None => {
                self.record(End::Finished);
                Ok(value)
            }
            Some(cause) => {
                let denied = self.shared.denied(&cause);
                self.record(End::Withheld(cause));
                Err(StepError::Withheld(denied))
            }
        }
    }

    /// Whether the step is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.running.stopped_by().is_some()
    }

    /// What the step's caller is to be told, if it is stopped.
    pub(crate) fn denied(&self) -> Option<Denied> {
        self.running.stopped_by().map(|cause| self.shared.denied(cause))
    }

    /// The step was stopped, and its work has ended for that already.
    pub(crate) fn cancelled(mut self) -> StepError {
        self.leave(Leaving::Dropped);
        let Some(cause) = self.running.stopped_by().cloned() else {
            return StepError::RuntimeEnded;
        };
        let denied = self.shared.denied(&cause);
        self.record(End::Cancelled(cause));
        StepError::Cancelled(denied)
    }

    fn leave(&mut self, how: Leaving) {
        if let Some(id) = self.id.take() {
            self.shared.settle(self.shared.in_flight.leave(id, how));
            self.shared.counted(&self.running, how);
        }
    }

    fn record(&self, end: End) {
        self.shared.record(&self.running, end);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.id.is_none() {
            return;
        }
        let panicked = std::thread::panicking();
        self.leave(if self.running.interruptible { Leaving::Dropped } else { Leaving::ByItself });
        let end = match self.running.stopped_by() {
            Some(cause) => End::Withheld(cause.clone()),
            None if panicked => End::Panicked,
            None => End::GivenUp,
        };
        if self.running.recorded.load(Relaxed) {
            let now = self.shared.clock.boottime();
            self.shared.uploader.send(audit::ended_late(&self.running, panicked, now));
        } else {
            self.record(end);
        }
    }
}

impl Shared {
    /// Blocking work was stopped: its step is over for its caller, and the work runs on.
    pub(crate) fn withhold(&self, running: &Running) -> StepError {
        let Some(cause) = running.stopped_by().cloned() else { return StepError::RuntimeEnded };
        let denied = self.denied(&cause);
        self.record(running, End::Withheld(cause));
        StepError::Withheld(denied)
    }

    fn record(&self, running: &Running, end: End) {
        running.recorded.store(true, Relaxed);
        self.uploader.send(audit::step(running, end, self.clock.boottime()));
    }
}
