//! Limits at a step's beginning and end: the bounds that hold for it, and what follows when its task
//! is over one.
//!
//! Two bounds stop no task and only refuse a step: so many steps each minute, and none but those that
//! are declared to change nothing. What they refuse has not been, and counts nowhere.
//!
//! A task that trips is stopped here first: its steps under way are stopped as by a halt, its further
//! ones refused. Then the server is told, by an audit event: it halts the task everywhere and opens an
//! incident. Nothing of the stop waits for that.

use std::sync::Arc;

use estoppel_link::breaker::{Ended, Outcome, StepKind, Trip};
use estoppel_model::{EntityId, Limit, Subject};

use crate::{
    audit,
    denied::{Cause, DeniedReason},
    fingerprint::Call,
    guard::{Mode, Shared},
    in_flight::{Leaving, Notes, Running},
    step::StepSpec,
};

impl Shared {
    /// The bounds on the subject: of those of the code and those of orders the stricter.
    pub(crate) fn limit(&self, subject: &Subject) -> Limit {
        self.view.limit(subject).strictest(&self.own_limit)
    }

    /// Counts a step that is in the register and that nothing else refuses. Returns why it must not
    /// begin, or in observe mode, should not.
    pub(crate) fn count(&self, running: &Running) -> Option<Cause> {
        let limit = self.limit(&running.subject);
        let refuses = self.mode == Mode::Enforce;
        let may_change = (limit.read_only && !running.spec.changes_nothing())
            .then_some(Cause::Want(DeniedReason::ReadOnly));
        if may_change.is_some() && refuses {
            return may_change;
        }
        let subject = &running.subject;
        let entry = self.breakers.enter(subject, kind(running), &limit, running.began);
        if entry.next_look_changed {
            self.look_changed.notify_one();
        }
        if let Some(holder) = entry.holder {
            running.counts_in(holder);
        }
        if let Some(trip) = &entry.trip
            && entry.is_new
        {
            self.tripped(trip);
        }
        let trip = entry.trip.map(|trip| Cause::Limit { trip, order: None });
        trip.or(entry.too_soon.map(Cause::TooSoon)).or(may_change)
    }

    /// Counts a step as ended that has left the register, before its notes are taken.
    pub(crate) fn counted(&self, running: &Running, how: Leaving) {
        let Some(holder) = running.holder() else { return };
        let limit = self.limit(&running.subject);
        let outcome = self.outcome(running, how, &limit);
        let (subject, now) = (&running.subject, self.clock.boottime());
        let kind = kind(running);
        if let Some(trip) = self.breakers.leave(holder, subject, kind, &outcome, &limit, now) {
            self.tripped(&trip);
        }
    }

    fn outcome(&self, running: &Running, how: Leaving, limit: &Limit) -> Outcome {
        let notes = running.notes();
        let failed = notes.error.is_some() || std::thread::panicking();
        let ended = match how {
            _ if running.stopped_by().is_some() => Ended::Stopped,
            Leaving::NeverBegan => Ended::Stopped,
            Leaving::ByItself if !failed => Ended::Well,
            // It failed, or its caller gave it up, as after too long a time.
            Leaving::ByItself | Leaving::Dropped => Ended::InError,
        };
        let of_interest = limit.identical_calls_max.is_some() && kind(running) == StepKind::Call;
        let fingerprint =
            of_interest.then(|| call(&running.spec, &notes).fingerprint(&self.prints));
        let usage = &notes.usage;
        let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
        Outcome {
            ended,
            cost_usd: usage.estimated_cost.unwrap_or(0.0),
            tokens: input.saturating_add(output),
            fingerprint: fingerprint.flatten(),
        }
    }

    /// Looks at the tasks whose steps are under way: their time may be over, or their bounds may have
    /// become stricter.
    pub(crate) fn look_at_limits(&self) {
        self.breakers.looking();
        let now = self.clock.boottime();
        for running in self.in_flight.running() {
            let Some(holder) = running.holder() else { continue };
            let limit = self.limit(&running.subject);
            if let Some(trip) = self.breakers.look(holder, &running.subject, &limit, now) {
                self.tripped(&trip);
            }
        }
    }

    /// Stops what a tripped task has under way, and tells the server.
    #[cold]
    fn tripped(&self, trip: &Arc<Trip>) {
        self.in_flight.stop_where(self.mode, |running| {
            (running.holder() == Some(&trip.holder))
                .then(|| Cause::Limit { trip: Arc::clone(trip), order: None })
        });
        tracing::warn!(excess = %trip.excess, subject = %trip.subject, "a task is over a limit");
        self.uploader.send(audit::limit(trip, self.mode, self.clock.now()));
    }
}

fn call<'a>(spec: &'a StepSpec, notes: &'a Notes) -> Call<'a> {
    Call {
        tool: spec.tool.as_ref().map_or("", EntityId::as_str),
        plugin: spec.plugin.as_ref().map_or("", |plugin| plugin.name.as_str()),
        action: &spec.action,
        params: spec.params.as_deref(),
        result: notes.result.as_deref(),
        error: notes.error.as_deref(),
    }
}

fn kind(running: &Running) -> StepKind {
    if running.subject.tool.is_some() { StepKind::Call } else { StepKind::Other }
}
