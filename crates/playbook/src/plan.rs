//! What a run would do, without doing it.

use std::time::Duration;

use estoppel_model::Timestamp;

use crate::{
    Approval, Call, Condition, Effect, Inputs, Lane, Playbook, Step, Undo, playbook::Argument,
};

/// What a run with some inputs would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The playbook.
    pub playbook: String,
    /// Its steps, in its order.
    pub steps: Vec<PlannedStep>,
}

/// What one step would do.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedStep {
    /// The step's id.
    pub id: String,
    /// The action with its parameters; absent when the step would be skipped.
    pub call: Option<Call>,
    /// What it does, in words, or why it would be skipped.
    pub does: String,
    /// What it does to the world outside.
    pub effect: Effect,
    /// How that is taken back; absent when it cannot be, or there is nothing to take back.
    pub undo: Option<String>,
    /// Which queue it waits in.
    pub lane: Lane,
    /// The steps that it waits for, by id.
    pub waits_for: Vec<String>,
    /// Who must agree.
    pub approval: Option<Approval>,
    /// How long an attempt may take.
    pub within: Duration,
}

impl Playbook {
    /// Says what a run with these inputs would do.
    pub fn plan(&self, inputs: &Inputs) -> Plan {
        let steps = self.steps.iter().map(|step| self.planned(step, inputs)).collect();
        Plan { playbook: self.name.clone(), steps }
    }

    fn planned(&self, step: &Step, inputs: &Inputs) -> PlannedStep {
        let call = match &step.when {
            Some(Condition::Present(name)) if inputs.value(name).is_none() => None,
            _ => step.call(inputs),
        };
        let mut does = call.as_ref().map_or_else(
            || format!("nothing: {}", step.absent(inputs)),
            std::string::ToString::to_string,
        );
        if let Some(Condition::Ended { step: other, outcome }) = &step.when {
            let other = self.steps.get(*other).map_or("?", |other| other.id.as_str());
            does.push_str(&format!(", if `{other}` ended as {}", outcome.as_str()));
        }
        let mut waits: Vec<usize> =
            step.waits_for().chain(step.requires_evidence.iter().copied()).collect();
        waits.sort_unstable();
        waits.dedup();
        PlannedStep {
            id: step.id.clone(),
            does,
            effect: step.effect,
            undo: step.undo_text(inputs),
            lane: step.lane,
            waits_for: waits
                .into_iter()
                .filter_map(|index| self.steps.get(index))
                .map(|other| other.id.clone())
                .collect(),
            approval: step.approval.clone(),
            within: step.within,
            call,
        }
    }
}

impl Step {
    /// The action with the run's inputs; `None` when an input is absent.
    pub fn call(&self, inputs: &Inputs) -> Option<Call> {
        self.action.call(|name| value(self.with.get(name)?, inputs))
    }

    /// The action that takes the effect back, where the step names one.
    pub fn undo_call(&self, inputs: &Inputs) -> Option<Call> {
        let Undo { action, with } = self.undo.as_ref()?;
        action.call(|name| value(with.get(name)?, inputs))
    }

    fn undo_text(&self, inputs: &Inputs) -> Option<String> {
        self.undo_call(inputs)
            .map(|call| call.to_string())
            .or_else(|| self.action.undo().map(str::to_owned))
    }

    /// Why the step has no call with these inputs.
    pub(crate) fn absent(&self, inputs: &Inputs) -> String {
        let names = self
            .with
            .values()
            .filter_map(|argument| match argument {
                Argument::Input(name) if inputs.value(name).is_none() => Some(name.as_str()),
                _ => None,
            })
            .chain(match &self.when {
                Some(Condition::Present(name)) if inputs.value(name).is_none() => {
                    Some(name.as_str())
                }
                _ => None,
            })
            .collect::<std::collections::BTreeSet<_>>();
        format!("{} is not known", names.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// When others that need this step's evidence stop waiting for it.
    pub(crate) fn evidence_deadline(&self, begun: Timestamp) -> Timestamp {
        begun + self.within
    }
}

fn value(argument: &Argument, inputs: &Inputs) -> Option<crate::Value> {
    match argument {
        Argument::Literal(value) => Some(value.clone()),
        Argument::Input(name) => inputs.value(name).cloned(),
    }
}
