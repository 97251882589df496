//! The journal of a playbook's run: what is written to the ledger before and after each step.
//!
//! A step's intent is recorded before it is executed, its result after its effect was observed.
//! Each record has an idempotency key made of run, step and attempt, and the ledger keeps the
//! first record of a key: so of two schedulers that mean to execute the same step, the one whose
//! intent was kept executes it (invariant *observe-before-retry*). `playbook` folds these records
//! to what comes next, `incident` to what was done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Actor, IncidentId, NewRecord, RecordKind, RunId, Timestamp};

/// Whether a run has effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Steps have their effects.
    Live,
    /// Steps are walked through; none has an effect outside.
    Drill,
}

/// A run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStarted {
    /// The run.
    pub run: RunId,
    /// The incident that it serves.
    pub incident: IncidentId,
    /// The playbook's name.
    pub playbook: String,
    /// The playbook's text: an edit of the file does not change a run that is under way.
    pub source: String,
    /// The inputs, as text in the form of each one's type.
    pub inputs: BTreeMap<String, String>,
    /// Whether it has effects.
    pub mode: Mode,
    /// Whether it waits for a person's decision before its first step.
    #[serde(default)]
    pub asks: bool,
    /// Who started it.
    pub by: Actor,
}

/// A person let a run that asks begin, or declined it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDecided {
    /// The run.
    pub run: RunId,
    /// Whether it may begin.
    pub approve: bool,
    /// Who.
    pub by: Actor,
    /// Why.
    pub reason: String,
}

/// A step is about to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepIntent {
    /// The run.
    pub run: RunId,
    /// The step's place in the playbook, from 0.
    pub index: usize,
    /// The step's id in the playbook.
    pub step: String,
    /// The action's name.
    pub action: String,
    /// Counts from 1.
    pub attempt: u32,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// The effect was observed.
    Done,
    /// It was tried and did not work.
    Failed,
    /// It may have worked; nobody could tell.
    Indeterminate,
    /// It was not tried.
    Skipped,
}

impl StepOutcome {
    /// The outcome's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Indeterminate => "indeterminate",
            Self::Skipped => "skipped",
        }
    }
}

/// A step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// The run.
    pub run: RunId,
    /// The step's place in the playbook, from 0.
    pub index: usize,
    /// The step's id in the playbook.
    pub step: String,
    /// The action's name.
    pub action: String,
    /// The attempt that this ends, from 1.
    pub attempt: u32,
    /// What it came to.
    pub outcome: StepOutcome,
    /// What was observed, or why it was not tried, for people.
    pub observed: String,
    /// Machine-readable detail, such as a receipt.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// Who may approve a step, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApproverRole {
    /// Approves what is reversible.
    Responder,
    /// Approves what destroys.
    Lead,
    /// Approves everything.
    Admin,
}

/// A person approved a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepApproved {
    /// The run.
    pub run: RunId,
    /// The step's place in the playbook, from 0.
    pub index: usize,
    /// Who.
    pub by: Actor,
    /// In which role, from the token.
    pub role: ApproverRole,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A person ended a step's wait for evidence (`--now`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceWaived {
    /// The run.
    pub run: RunId,
    /// The place of the step that waited, from 0.
    pub index: usize,
    /// Who.
    pub by: Actor,
    /// Why.
    pub reason: String,
}

/// What a run came to: the worst of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOutcome {
    /// Each step is done, or was not to be tried.
    Completed,
    /// Of some step nobody can tell.
    Indeterminate,
    /// Some step failed.
    Failed,
    /// A person declined it before its first step.
    Declined,
}

/// A run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnded {
    /// The run.
    pub run: RunId,
    /// What it came to.
    pub outcome: RunOutcome,
}

macro_rules! journalled {
    ($type:ty, $kind:literal, |$value:ident, $at:ident| $key:expr) => {
        impl $type {
            /// The kind of the record.
            pub const KIND: RecordKind = RecordKind::new($kind);

            /// The record, with its idempotency key.
            ///
            /// # Errors
            /// When the body cannot be written as JSON, which a value of these types always can.
            pub fn record(&self, at: Timestamp) -> Result<NewRecord, serde_json::Error> {
                let ($value, $at) = (self, at);
                NewRecord::json(Self::KIND, Some($key), $at, self)
            }
        }
    };
}

journalled!(RunStarted, "run.started", |it, _at| format!("run/{}/started", it.run));
// The first decision stands.
journalled!(RunDecided, "run.decided", |it, _at| format!("run/{}/decided", it.run));
journalled!(StepIntent, "step.intent", |it, _at| format!(
    "run/{}/{}/{}/intent",
    it.run, it.index, it.attempt
));
journalled!(StepResult, "step.result", |it, _at| format!(
    "run/{}/{}/{}/result",
    it.run, it.index, it.attempt
));
journalled!(StepApproved, "step.approved", |it, at| format!(
    "run/{}/{}/approved/{}/{}",
    it.run,
    it.index,
    it.by,
    at.as_micros()
));
journalled!(EvidenceWaived, "step.evidence_waived", |it, _at| format!(
    "run/{}/{}/evidence_waived",
    it.run, it.index
));
journalled!(RunEnded, "run.ended", |it, _at| format!("run/{}/ended", it.run));
