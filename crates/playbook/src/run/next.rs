//! What comes next in a run: which steps are ready, which wait and for what, which are skipped.

use std::collections::BTreeSet;

use estoppel_model::{Actor, NewRecord, Timestamp};
use uuid::Uuid;

use super::{Progress, Run, RunState, StepState};
use crate::{
    Approval, Call, Condition, Lane, OnTrouble, Step,
    journal::{RunEnded, RunOutcome, StepIntent, StepOutcome, StepResult},
};

/// Most steps of the work lane at the same time. Stops are not counted and wait for none of them.
pub const WORK_IN_FLIGHT_MAX: usize = 4;

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Append the intent, execute the call, append the result.
    Execute {
        /// To be appended first.
        intent: StepIntent,
        /// What to execute.
        call: Call,
        /// Names the effect; the same over attempts and restarts: an order's id, a page's
        /// deduplication key.
        effect_id: Uuid,
        /// Names this attempt; the same over restarts: a host action's id.
        action_id: Uuid,
        /// How long the attempt may take.
        within: std::time::Duration,
    },
    /// The intent is recorded and the result is not: look, before anything else.
    Observe {
        /// What was recorded.
        intent: StepIntent,
        /// What was to be executed.
        call: Call,
        /// As of [`Next::Execute`].
        effect_id: Uuid,
        /// As of [`Next::Execute`].
        action_id: Uuid,
        /// As of [`Next::Execute`].
        within: std::time::Duration,
    },
    /// Append the result: the step is not to be tried.
    Skip(StepResult),
    /// Nothing can be done for these steps until something is recorded, or a time has come.
    Wait {
        /// The time.
        until: Option<Timestamp>,
        /// Which steps wait, and what for.
        reasons: Vec<(usize, WaitReason)>,
    },
    /// Append the end.
    Finished(RunEnded),
}

/// What a step waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// A person's decision on the run.
    Decision,
    /// It is being executed.
    InFlight,
    /// Other steps, by place.
    Steps(Vec<usize>),
    /// Evidence, or its deadline.
    Evidence,
    /// Approvals: how many there are and how many it takes.
    Approval {
        /// How many count by now.
        have: u32,
        /// How many it takes.
        need: u32,
    },
    /// The time of its next attempt.
    Retry,
    /// A place in the work lane.
    Lane,
}

impl Run {
    /// What to do now. `in_flight` are the places of the steps that this process is executing or
    /// observing; an intent without a result that is not among them was left behind.
    ///
    /// Stops come first. The answer is empty when the run is over.
    pub fn next(&self, now: Timestamp, in_flight: &BTreeSet<usize>) -> Vec<Next> {
        match (self.state(), &self.decided) {
            (RunState::Ended(_), _) => return Vec::new(),
            (RunState::Asking, _) => {
                let reasons = vec![(0, WaitReason::Decision)];
                return vec![Next::Wait { until: None, reasons }];
            }
            (RunState::Running, Some(decided)) if !decided.approve => {
                return vec![self.finished(RunOutcome::Declined)];
            }
            (RunState::Running, _) => {}
        }
        let mut agenda = Agenda::default();
        for lane in [Lane::Stop, Lane::Work] {
            let mut room = WORK_IN_FLIGHT_MAX;
            let in_lane = self.playbook.steps.iter().enumerate().filter(|(_, it)| it.lane == lane);
            for (index, step) in in_lane {
                let busy = self.consider(index, step, now, in_flight, room > 0, &mut agenda);
                if busy && lane == Lane::Work {
                    room = room.saturating_sub(1);
                }
            }
        }
        if agenda.open == 0 {
            return vec![self.finished(self.outcome())];
        }
        if !agenda.reasons.is_empty() {
            agenda.now.push(Next::Wait { until: agenda.until, reasons: agenda.reasons });
        }
        agenda.now
    }

    fn finished(&self, outcome: RunOutcome) -> Next {
        Next::Finished(RunEnded { run: self.id, outcome })
    }

    /// Puts what is to be done about a step on the agenda; whether the step takes up a place.
    fn consider(
        &self,
        index: usize,
        step: &Step,
        now: Timestamp,
        in_flight: &BTreeSet<usize>,
        room: bool,
        agenda: &mut Agenda,
    ) -> bool {
        let Some(progress) = self.steps.get(index) else { return false };
        let attempt = match &progress.state {
            StepState::Ended { .. } if self.is_over(index) => return false,
            _ if in_flight.contains(&index) => {
                agenda.wait(index, WaitReason::InFlight, None);
                return true;
            }
            StepState::Intended { attempt, .. } => {
                agenda.open += 1;
                agenda.now.push(self.observe(index, step, *attempt));
                return true;
            }
            StepState::Ended { attempt, at, .. } => {
                let due = retry_at(step, *attempt, *at);
                if now < due {
                    agenda.wait(index, WaitReason::Retry, Some(due));
                    return false;
                }
                attempt + 1
            }
            StepState::Waiting => 1,
        };
        match self.readiness(index, step, progress, now) {
            Readiness::Skip(why) => {
                agenda.open += 1;
                let result = self.result(index, step, attempt, StepOutcome::Skipped, &why);
                agenda.now.push(Next::Skip(result));
                false
            }
            Readiness::Wait(reason, until) => {
                agenda.wait(index, reason, until);
                false
            }
            Readiness::Go(_) if !room => {
                agenda.wait(index, WaitReason::Lane, None);
                false
            }
            Readiness::Go(call) => {
                agenda.open += 1;
                agenda.now.push(self.execute(index, step, attempt, call));
                true
            }
        }
    }

    fn readiness(
        &self,
        index: usize,
        step: &Step,
        progress: &Progress,
        now: Timestamp,
    ) -> Readiness {
        let unfinished: Vec<usize> =
            step.waits_for().filter(|other| !self.is_over(*other)).collect();
        if !unfinished.is_empty() {
            return Readiness::Wait(WaitReason::Steps(unfinished), None);
        }
        if let Some(cause) = self.barred_by(index) {
            let cause = self.playbook.steps.get(cause).map_or("?", |cause| cause.id.as_str());
            return Readiness::Skip(format!("it needs `{cause}`, which is not done"));
        }
        if let Some(Condition::Ended { step: other, outcome }) = &step.when
            && self.outcome_of(*other) != Some(*outcome)
        {
            let other = self.playbook.steps.get(*other).map_or("?", |other| other.id.as_str());
            return Readiness::Skip(format!("`{other}` did not end as {}", outcome.as_str()));
        }
        if step.lane == Lane::Work && self.ended_by_trouble() {
            return Readiness::Skip("an earlier step ended the run's work".to_owned());
        }
        let absent = matches!(&step.when, Some(Condition::Present(name)) if self.inputs.value(name).is_none());
        let call = if absent { None } else { step.call(&self.inputs) };
        let Some(call) = call else { return Readiness::Skip(step.absent(&self.inputs)) };
        if !progress.evidence_waived
            && let Some(until) = self.evidence_pending(step, now)
        {
            return Readiness::Wait(WaitReason::Evidence, Some(until));
        }
        if let Some(approval) = &step.approval {
            let have = self.approvals(approval, progress, now);
            if have < approval.quorum {
                let reason = WaitReason::Approval { have, need: approval.quorum };
                return Readiness::Wait(reason, None);
            }
        }
        Readiness::Go(call)
    }

    /// Until when the step waits for evidence that is not there, if it does.
    fn evidence_pending(&self, step: &Step, now: Timestamp) -> Option<Timestamp> {
        step.requires_evidence
            .iter()
            .filter(|index| self.outcome_of(**index) != Some(StepOutcome::Done))
            .filter_map(|index| {
                let begun = self.steps.get(*index)?.first_intent_at.unwrap_or(self.started_at);
                Some(self.playbook.steps.get(*index)?.evidence_deadline(begun))
            })
            .filter(|deadline| now < *deadline)
            .max()
    }

    fn approvals(&self, approval: &Approval, progress: &Progress, now: Timestamp) -> u32 {
        let people: BTreeSet<&Actor> = progress
            .approvals
            .iter()
            .filter(|(given, _)| given.role >= approval.role)
            .filter(|(given, _)| approval.initiator_may || given.by != self.by)
            .filter(|(_, at)| approval.expires.is_none_or(|expires| now < *at + expires))
            .map(|(given, _)| &given.by)
            .collect();
        u32::try_from(people.len()).unwrap_or(u32::MAX)
    }

    /// How a step ended for good.
    fn outcome_of(&self, index: usize) -> Option<StepOutcome> {
        match &self.steps.get(index)?.state {
            StepState::Ended { outcome, .. } if self.is_over(index) => Some(*outcome),
            _ => None,
        }
    }

    /// Whether a step ended and will not be tried again.
    fn is_over(&self, index: usize) -> bool {
        let (Some(step), Some(progress)) = (self.playbook.steps.get(index), self.steps.get(index))
        else {
            return true;
        };
        match &progress.state {
            StepState::Ended { outcome: StepOutcome::Failed, attempt, .. } => {
                *attempt >= step.retry.attempts
            }
            StepState::Ended { .. } => true,
            StepState::Waiting | StepState::Intended { .. } => false,
        }
    }

    /// The step because of whose end this one must not be tried.
    fn barred_by(&self, index: usize) -> Option<usize> {
        let step = self.playbook.steps.get(index)?;
        // A step that asks how another ended is not barred by that end.
        let asked = match step.when {
            Some(Condition::Ended { step, .. }) => Some(step),
            _ => None,
        };
        step.needs.iter().copied().filter(|need| Some(*need) != asked).find(|need| {
            let Some(other) = self.playbook.steps.get(*need) else { return false };
            match self.outcome_of(*need) {
                Some(StepOutcome::Failed) => other.on_failure != OnTrouble::Continue,
                Some(StepOutcome::Indeterminate) => other.on_indeterminate != OnTrouble::Continue,
                // Skipped since it was barred itself, rather than since it did not apply.
                Some(StepOutcome::Skipped) => self.barred_by(*need).is_some(),
                Some(StepOutcome::Done) | None => false,
            }
        })
    }

    fn ended_by_trouble(&self) -> bool {
        self.playbook.steps.iter().enumerate().any(|(index, step)| match self.outcome_of(index) {
            Some(StepOutcome::Failed) => step.on_failure == OnTrouble::End,
            Some(StepOutcome::Indeterminate) => step.on_indeterminate == OnTrouble::End,
            _ => false,
        })
    }

    fn outcome(&self) -> RunOutcome {
        (0..self.steps.len())
            .filter_map(|index| self.outcome_of(index))
            .map(|outcome| match outcome {
                StepOutcome::Done | StepOutcome::Skipped => RunOutcome::Completed,
                StepOutcome::Indeterminate => RunOutcome::Indeterminate,
                StepOutcome::Failed => RunOutcome::Failed,
            })
            .max()
            .unwrap_or(RunOutcome::Completed)
    }

    fn intent(&self, index: usize, step: &Step, attempt: u32) -> StepIntent {
        let action = step.action.as_str().to_owned();
        StepIntent { run: self.id, index, step: step.id.clone(), action, attempt }
    }

    fn execute(&self, index: usize, step: &Step, attempt: u32, call: Call) -> Next {
        Next::Execute {
            intent: self.intent(index, step, attempt),
            call,
            effect_id: self.effect_id(index),
            action_id: self.action_id(index, attempt),
            within: step.within,
        }
    }

    fn observe(&self, index: usize, step: &Step, attempt: u32) -> Next {
        match step.call(&self.inputs) {
            Some(call) => Next::Observe {
                intent: self.intent(index, step, attempt),
                call,
                effect_id: self.effect_id(index),
                action_id: self.action_id(index, attempt),
                within: step.within,
            },
            // An intent that no version of this code records: nothing can be said of it.
            None => Next::Skip(self.result(
                index,
                step,
                attempt,
                StepOutcome::Indeterminate,
                &step.absent(&self.inputs),
            )),
        }
    }
}

fn retry_at(step: &Step, attempt: u32, ended_at: Timestamp) -> Timestamp {
    ended_at + step.retry.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16))
}

enum Readiness {
    Go(Call),
    Skip(String),
    Wait(WaitReason, Option<Timestamp>),
}

/// What [`Run::next`] collects.
#[derive(Default)]
struct Agenda {
    now: Vec<Next>,
    reasons: Vec<(usize, WaitReason)>,
    until: Option<Timestamp>,
    open: usize,
}

impl Agenda {
    fn wait(&mut self, index: usize, reason: WaitReason, until: Option<Timestamp>) {
        self.open += 1;
        self.reasons.push((index, reason));
        self.until = match (self.until, until) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// The record of a journal's value, for whoever appends what [`Run::next`] says.
impl Next {
    /// The record that this asks to append, if it asks for one.
    pub fn record(&self, at: Timestamp) -> Option<Result<NewRecord, serde_json::Error>> {
        match self {
            Self::Execute { intent, .. } => Some(intent.record(at)),
            Self::Skip(result) => Some(result.record(at)),
            Self::Finished(ended) => Some(ended.record(at)),
            Self::Observe { .. } | Self::Wait { .. } => None,
        }
    }
}
