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

mod kept;
mod next;
mod runs;

use std::sync::Arc;

use estoppel_model::{Actor, IncidentId, Record, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use next::{Next, WORK_IN_FLIGHT_MAX, WaitReason};
pub use runs::Runs;

use crate::{
    Diagnostics, Effect, InputError, Inputs, Playbook, Repetition, Step,
    journal::{
        EvidenceWaived, Mode, RunDecided, RunEnded, RunOutcome, RunStarted, StepApproved,
        StepIntent, StepOutcome, StepResult,
    },
};

/// One run of a playbook.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    id: RunId,
    incident: IncidentId,
    playbook: Arc<Playbook>,
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    first_intent_at: Option<Timestamp>,
    state: StepState,
    approvals: Vec<(StepApproved, Timestamp)>,
    evidence_waived: bool,
}

/// How far a step is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
        let started: RunStarted = record.parse()?;
        let run = started.run;
        let playbook = Playbook::parse(&started.source)
            .map_err(|source| RunError::Playbook { run, source })?;
        Self::of(started, Arc::new(playbook), record.at)
    }

    /// The run that a start begins, of the playbook that the start holds.
    fn of(
        started: RunStarted,
        playbook: Arc<Playbook>,
        started_at: Timestamp,
    ) -> Result<Self, RunError> {
        let RunStarted { run, incident, inputs, mode, asks, by, .. } = started;
        let texts = inputs.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let inputs =
            Inputs::read(&playbook, texts).map_err(|source| RunError::Inputs { run, source })?;
        let steps = vec![Progress::default(); playbook.steps.len()];
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
    pub fn playbook(&self) -> &Playbook {
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

    /// The result of a step that somebody declined to approve, to be appended: it is not tried.
    ///
    /// `None` when there is no such step, it needs nobody's approval, or it was begun.
    pub fn declined(&self, index: usize, why: &str) -> Option<StepResult> {
        let step = self.playbook.steps.get(index)?;
        let waits = self.steps.get(index)?.state == StepState::Waiting;
        (waits && step.approval.is_some())
            .then(|| self.result(index, step, 1, StepOutcome::Skipped, why))
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

#[cfg(test)]
mod tests;
