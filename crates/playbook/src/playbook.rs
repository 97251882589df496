//! A playbook as a value: what the linter has found no fault with.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::{
    action::{ActionKind, Effect, Lane},
    diagnostic::{Code, Diagnostic, Diagnostics},
    input::{InputType, Value},
    journal::{ApproverRole, StepOutcome},
    lint, syntax,
};

/// Longest text of a playbook, in bytes.
pub const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Most steps of a playbook.
pub const STEPS_MAX: usize = 64;

/// A playbook without a fault that could be found beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Playbook {
    /// Its name: lower-case words with hyphens.
    pub name: String,
    /// What it is for, in a line.
    pub title: String,
    /// What it is for, at length.
    pub description: Option<String>,
    /// What a run needs to be given.
    pub inputs: BTreeMap<String, InputSpec>,
    /// The steps, in the order in which they are numbered and shown.
    pub steps: Vec<Step>,
    /// The text that it was read from.
    pub source: String,
}

/// An input of a playbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// What it is.
    pub of: InputType,
    /// Whether a run must have it.
    pub required: bool,
    /// What it means.
    pub description: Option<String>,
}

/// A step of a playbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its id within the playbook.
    pub id: String,
    /// What it does.
    pub action: ActionKind,
    pub(crate) with: BTreeMap<String, Argument>,
    /// The steps that must have ended before it, by place.
    pub needs: Vec<usize>,
    /// When it is tried at all.
    pub when: Option<Condition>,
    /// What it does to the world outside.
    pub effect: Effect,
    /// How its effect is taken back.
    pub undo: Option<Undo>,
    /// The captures that it waits for, by place.
    pub requires_evidence: Vec<usize>,
    /// Who must agree.
    pub approval: Option<Approval>,
    /// How long an attempt may take; others wait for evidence of this step no longer, either.
    pub within: Duration,
    /// How often it is tried.
    pub retry: Retry,
    /// What becomes of the rest when it failed.
    pub on_failure: OnTrouble,
    /// What becomes of the rest when nobody can tell whether it worked.
    pub on_indeterminate: OnTrouble,
    /// Which queue it waits in.
    pub lane: Lane,
}

/// What a parameter is filled with: a literal, or one whole input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Argument {
    Literal(Value),
    Input(String),
}

/// An action that takes a step's effect back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// What it does.
    pub action: ActionKind,
    pub(crate) with: BTreeMap<String, Argument>,
}

/// When a step is tried at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The run has this input.
    Present(String),
    /// Another step ended in this way.
    Ended {
        /// The other step, by place.
        step: usize,
        /// The way.
        outcome: StepOutcome,
    },
}

/// Who must agree to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The weakest role that may.
    pub role: ApproverRole,
    /// How many people.
    pub quorum: u32,
    /// Whether whoever started the run may be one of them.
    pub initiator_may: bool,
    /// How long an approval counts.
    pub expires: Option<Duration>,
}

/// How often a step is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, from 1.
    pub attempts: u32,
    /// Time between the first two; it doubles each time.
    pub backoff: Duration,
}

/// What becomes of the rest of a run after trouble with a step. Stops go on in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTrouble {
    /// The steps that need it are skipped.
    #[default]
    SkipDependents,
    /// The steps that need it are tried all the same.
    Continue,
    /// No further work is begun.
    End,
}

impl Playbook {
    /// Reads a playbook.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(source: &str) -> Result<Self, Diagnostics> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Diagnostics(vec![Diagnostic {
                code: Code::TooLarge,
                line: 0,
                column: 0,
                message: format!("the text has {} bytes: at most {SOURCE_BYTES_MAX}", source.len()),
                hint: None,
            }]));
        }
        let text = syntax::read(source).map_err(|diagnostic| Diagnostics(vec![diagnostic]))?;
        lint::playbook(&text, source)
    }

    /// The place of the step with this id.
    pub fn position(&self, step: &str) -> Option<usize> {
        self.steps.iter().position(|known| known.id == step)
    }
}

impl Step {
    /// All steps that must have ended before this one is tried, by place.
    pub(crate) fn waits_for(&self) -> impl Iterator<Item = usize> + '_ {
        let condition = match self.when {
            Some(Condition::Ended { step, .. }) => Some(step),
            _ => None,
        };
        self.needs.iter().copied().chain(condition)
    }
}
