//! A run as the fold of its journal, and what comes next.
//!
//! Whoever drives a run asks [`Run::next`], and for each answer:
//! - [`Next::Execute`]: appends the intent; only if the ledger kept it, executes the call; appends
//!   the result.
//! - [`Next::Observe`]: an intent has no result, because some process ended between the two. Looks
//!   at the world, hands what it saw to [`Run::after_observation`], and does what that says.
//! - [`Next::Skip`]: appends the result that it holds.
//! - [`Next::Finished`]: appends the end.
//!
//! and asks again. Everything that it must remember is in the ledger, so it may end at any moment.

use std::collections::{BTreeMap, BTreeSet};

use estoppel_model::{Actor, IncidentId, NewRecord, Record, RunId, Timestamp};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Approval, Call, Condition, Diagnostics, Effect, InputError, Inputs, Lane, OnTrouble, Playbook,
    Repetition, Step,
    journal::{
        EvidenceWaived, Mode, RunDecided, RunEnded, RunOutcome, RunStarted, StepApproved,
        StepIntent, StepOutcome, StepResult,
    },
};

/// Most steps of the work lane at the same time. Stops are not counted and wait for none of them.
pub const WORK_IN_FLIGHT_MAX: usize = 4;

/// One run of a playbook.
#[derive(Debug, Clone)]
pub struct Run {
    id: RunId,
    incident: IncidentId,
    playbook: Playbook,
    inputs: Inputs,
    mode: Mode,
    by: Actor,
    started_at: Timestamp,
    asks: bool,
    decided: Option<RunDecided>,
    ended: Option<RunOutcome>,
    steps: Vec<Progress>,
}

/// What the journal says of one step.
#[derive(Debug, Clone, Default)]
struct Progress {
    first_intent_at: Option<Timestamp>,
    state: StepState,
    approvals: Vec<(StepApproved, Timestamp)>,
    evidence_waived: bool,
}

/// How far a step is.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum StepState {
    /// Nothing is recorded.
    #[default]
    Waiting,
    /// It is about to be executed, or was when a process ended.
    Intended {
        /// Which attempt, from 1.
        attempt: u32,
        /// When the intent was recorded.
        at: Timestamp,
    },
    /// An attempt ended.
    Ended {
        /// Which attempt, from 1.
        attempt: u32,
        /// When the result was recorded.
        at: Timestamp,
        /// What it came to.
        outcome: StepOutcome,
        /// What was observed.
        observed: String,
    },
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It waits for a person to let it begin.
    Asking,
    /// It goes on.
    Running,
    /// It is over.
    Ended(RunOutcome),
}

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

/// What was seen of a step whose intent has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The effect is there.
    Done,
    /// The effect is not there, and is not on its way.
    NotDone,
    /// Nobody can tell.
    Unknown,
}

/// What to do after an observation.
#[derive(Debug, Clone, PartialEq)]
pub enum AfterObservation {
    /// Append this result.
    Record(StepResult),
    /// Execute the call under the recorded intent, with the same ids, and append the result.
    Execute,
}

/// A step and how far it is, for people.
#[derive(Debug, Clone, Copy)]
pub struct StepView<'a> {
    /// The step.
    pub step: &'a Step,
    /// How far it is.
    pub state: &'a StepState,
}

/// Why a record starts no run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The body is not that of a start.
    #[error("the start of a run cannot be read")]
    Body(#[from] serde_json::Error),
    /// The playbook that it keeps does not hold.
    #[error("run {run}: its playbook is at fault:\n{source}")]
    Playbook {
        /// The run.
        run: RunId,
        /// What is wrong.
        source: Diagnostics,
    },
    /// Its inputs do not fit.
    #[error("run {run}: {source}")]
    Inputs {
        /// The run.
        run: RunId,
        /// What is wrong.
        source: InputError,
    },
}

impl Playbook {
    /// The first record of a run of this playbook.
    pub fn start(
        &self,
        run: RunId,
        incident: IncidentId,
        inputs: &Inputs,
        mode: Mode,
        asks: bool,
        by: Actor,
    ) -> RunStarted {
        RunStarted {
            run,
            incident,
            playbook: self.name.clone(),
            source: self.source.clone(),
            inputs: inputs.to_texts(),
            mode,
            asks,
            by,
        }
    }
}

impl Run {
    /// The run that a record starts.
    ///
    /// # Errors
    /// When the body, the playbook or the inputs in it do not hold, which a start made by
    /// [`Playbook::start`] does.
    pub fn started(record: &Record) -> Result<Self, RunError> {
        let RunStarted { run, incident, source, inputs, mode, asks, by, .. } = record.parse()?;
        let playbook =
            Playbook::parse(&source).map_err(|source| RunError::Playbook { run, source })?;
        let texts = inputs.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let inputs =
            Inputs::read(&playbook, texts).map_err(|source| RunError::Inputs { run, source })?;
        let steps = vec![Progress::default(); playbook.steps.len()];
        let started_at = record.at;
        let (decided, ended) = (None, None);
        Ok(Self {
            id: run,
            incident,
            playbook,
            inputs,
            mode,
            by,
            started_at,
            asks,
            decided,
            ended,
            steps,
        })
    }

    /// Takes a record of this run's journal in; others, and what cannot be read, change nothing.
    pub fn apply(&mut self, record: &Record) {
        let at = record.at;
        if record.kind == StepIntent::KIND {
            let Ok(intent) = record.parse::<StepIntent>() else { return };
            if let Some(progress) = self.progress_mut(intent.run, intent.index) {
                progress.first_intent_at.get_or_insert(at);
                progress.state = StepState::Intended { attempt: intent.attempt, at };
            }
        } else if record.kind == StepResult::KIND {
            let Ok(result) = record.parse::<StepResult>() else { return };
            let StepResult { run, index, attempt, outcome, observed, .. } = result;
            if let Some(progress) = self.progress_mut(run, index) {
                progress.state = StepState::Ended { attempt, at, outcome, observed };
            }
        } else if record.kind == StepApproved::KIND {
            let Ok(approval) = record.parse::<StepApproved>() else { return };
            if let Some(progress) = self.progress_mut(approval.run, approval.index) {
                progress.approvals.push((approval, at));
            }
        } else if record.kind == EvidenceWaived::KIND {
            let Ok(waived) = record.parse::<EvidenceWaived>() else { return };
            if let Some(progress) = self.progress_mut(waived.run, waived.index) {
                progress.evidence_waived = true;
            }
        } else if record.kind == RunDecided::KIND {
            let Ok(decided) = record.parse::<RunDecided>() else { return };
            if decided.run == self.id {
                self.decided.get_or_insert(decided);
            }
        } else if record.kind == RunEnded::KIND {
            let Ok(ended) = record.parse::<RunEnded>() else { return };
            if ended.run == self.id {
                self.ended.get_or_insert(ended.outcome);
            }
        }
    }

    fn progress_mut(&mut self, run: RunId, index: usize) -> Option<&mut Progress> {
        if run == self.id { self.steps.get_mut(index) } else { None }
    }

    /// The run's id.
    pub const fn id(&self) -> RunId {
        self.id
    }

    /// The incident that it serves.
    pub const fn incident(&self) -> IncidentId {
        self.incident
    }

    /// The playbook, as it was when the run started.
    pub const fn playbook(&self) -> &Playbook {
        &self.playbook
    }

    /// The inputs.
    pub const fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Whether it has effects outside.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Who started it.
    pub const fn by(&self) -> &Actor {
        &self.by
    }

    /// When it started.
    pub const fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Its steps, in the playbook's order.
    pub fn steps(&self) -> impl Iterator<Item = StepView<'_>> {
        self.playbook
            .steps
            .iter()
            .zip(&self.steps)
            .map(|(step, progress)| StepView { step, state: &progress.state })
    }

    /// How far it is.
    pub fn state(&self) -> RunState {
        match (self.ended, &self.decided) {
            (Some(outcome), _) => RunState::Ended(outcome),
            (None, None) if self.asks => RunState::Asking,
            _ => RunState::Running,
        }
    }

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

    /// What to do about a step whose intent has no result, after it was observed.
    ///
    /// `observed` says for people what was seen. `None` when the step is not in that state.
    pub fn after_observation(
        &self,
        index: usize,
        observation: Observation,
        observed: &str,
    ) -> Option<AfterObservation> {
        let step = self.playbook.steps.get(index)?;
        let StepState::Intended { attempt, .. } = self.steps.get(index)?.state else {
            return None;
        };
        let outcome = match (observation, step.action.repetition()) {
            (Observation::Done, _) => StepOutcome::Done,
            (Observation::NotDone, _) | (Observation::Unknown, Repetition::Idempotent) => {
                return Some(AfterObservation::Execute);
            }
            (Observation::Unknown, Repetition::Once) => StepOutcome::Indeterminate,
        };
        Some(AfterObservation::Record(self.result(index, step, attempt, outcome, observed)))
    }

    /// The result of an attempt, to be appended.
    ///
    /// `None` when there is no such step or it was not begun.
    pub fn step_result(
        &self,
        index: usize,
        outcome: StepOutcome,
        observed: &str,
        detail: serde_json::Value,
    ) -> Option<StepResult> {
        let step = self.playbook.steps.get(index)?;
        let StepState::Intended { attempt, .. } = self.steps.get(index)?.state else {
            return None;
        };
        Some(StepResult { detail, ..self.result(index, step, attempt, outcome, observed) })
    }

    fn result(
        &self,
        index: usize,
        step: &Step,
        attempt: u32,
        outcome: StepOutcome,
        observed: &str,
    ) -> StepResult {
        StepResult {
            run: self.id,
            index,
            step: step.id.clone(),
            action: step.action.as_str().to_owned(),
            attempt,
            outcome,
            observed: observed.to_owned(),
            detail: serde_json::Value::Null,
        }
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

    /// Names the effect of a step: the same over attempts and restarts.
    pub fn effect_id(&self, index: usize) -> Uuid {
        derived(&format!("estoppel effect v1\n{}\n{index}", self.id))
    }

    /// Names one attempt of a step: the same over restarts.
    pub fn action_id(&self, index: usize, attempt: u32) -> Uuid {
        derived(&format!("estoppel action v1\n{}\n{index}\n{attempt}", self.id))
    }

    /// Whether any step of the run destroys something.
    pub fn destroys(&self) -> bool {
        self.playbook.steps.iter().any(|step| step.effect == Effect::Destructive)
    }
}

/// A UUID (version 8) from a hash, so that whoever computes it anew gets the same.
fn derived(name: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(name.as_bytes())[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
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

/// All runs, as the fold of the ledger.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    runs: BTreeMap<RunId, Run>,
    unreadable: Vec<(u64, String)>,
}

impl Runs {
    /// Takes a record in; kinds of others are skipped. A start that does not hold is kept in
    /// [`Runs::unreadable`].
    pub fn apply(&mut self, record: &Record) {
        if record.kind == RunStarted::KIND {
            match Run::started(record) {
                Ok(run) => {
                    self.runs.entry(run.id()).or_insert(run);
                }
                Err(error) => self.unreadable.push((record.seq, error.to_string())),
            }
        } else if let Some(run) = run_of(record).and_then(|run| self.runs.get_mut(&run)) {
            run.apply(record);
        }
    }

    /// A run.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// All runs, in order of time.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// The runs that are not over.
    pub fn open(&self) -> impl Iterator<Item = &Run> {
        self.iter().filter(|run| !matches!(run.state(), RunState::Ended(_)))
    }

    /// Places of starts in the ledger that could not be read, with the reason.
    pub fn unreadable(&self) -> &[(u64, String)] {
        &self.unreadable
    }
}

fn run_of(record: &Record) -> Option<RunId> {
    #[derive(serde::Deserialize)]
    struct Of {
        run: RunId,
    }
    let journal = [
        StepIntent::KIND,
        StepResult::KIND,
        StepApproved::KIND,
        EvidenceWaived::KIND,
        RunDecided::KIND,
        RunEnded::KIND,
    ];
    journal.contains(&record.kind).then(|| record.parse::<Of>().ok())?.map(|of| of.run)
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

#[cfg(test)]
mod tests;
