//! From the text of a playbook to a [`Playbook`], or to everything that is wrong with it.
//!
//! What a run would find too late is found here: the types say that a [`Playbook`] knows its
//! actions and parameters, has no cycle, and that none of its stops waits for anything but stops.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use estoppel_model::text::quoted;
use serde_saphyr::Spanned;

use crate::{
    action::{ActionKind, Effect, Lane},
    diagnostic::{Code, Diagnostic, Diagnostics, did_you_mean},
    input::InputType,
    playbook::{Approval, Argument, Condition, InputSpec, Playbook, Retry, STEPS_MAX, Step, Undo},
    syntax::{self, ApprovalText, ConditionText, NotText, PlaybookText, StepText},
};

const INPUTS_MAX: usize = 32;
const ATTEMPTS_MAX: u32 = 10;
const QUORUM_MAX: u32 = 10;
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const FORMAT: &str = "estoppel.playbook/v1";

/// From what was read to a playbook.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn playbook(text: &PlaybookText, source: &str) -> Result<Playbook, Diagnostics> {
    Linter::new(text).playbook(source)
}

/// Collects what is wrong while it reads.
struct Linter<'a> {
    text: &'a PlaybookText,
    /// Place of each step, by id.
    places: BTreeMap<&'a str, usize>,
    found: Vec<Diagnostic>,
}

impl<'a> Linter<'a> {
    fn new(text: &'a PlaybookText) -> Self {
        Self { text, places: BTreeMap::new(), found: Vec::new() }
    }

    fn report<T>(&mut self, code: Code, at: &Spanned<T>, message: String, hint: Option<String>) {
        let (line, column) = (at.referenced.line(), at.referenced.column());
        self.found.push(Diagnostic { code, line, column, message, hint });
    }

    fn playbook(mut self, source: &str) -> Result<Playbook, Diagnostics> {
        let text = self.text;
        if text.format.value != FORMAT {
            let message = format!("format {} is not known", quoted(&text.format.value));
            self.report(
                Code::UnknownValue,
                &text.format,
                message,
                Some(format!("write `{FORMAT}`")),
            );
        }
        self.name(&text.name, "the playbook's name");
        self.counts();
        self.step_ids();
        let inputs = text
            .inputs
            .iter()
            .map(|(name, input)| {
                let syntax::InputText { of, required, description } = &input.value;
                let (of, required, description) = (*of, *required, description.clone());
                (name.clone(), InputSpec { of, required, description })
            })
            .collect();
        let steps: Vec<Option<Step>> =
            text.steps.value.iter().map(|step| self.step(step)).collect();
        if let Some(steps) = steps.into_iter().collect::<Option<Vec<Step>>>() {
            self.cycle(&steps);
            self.stops(&steps);
            if self.found.is_empty() {
                return Ok(Playbook {
                    name: text.name.value.clone(),
                    title: text.title.clone(),
                    description: text.description.clone(),
                    inputs,
                    steps,
                    source: source.to_owned(),
                });
            }
        }
        self.found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column, diagnostic.code));
        Err(Diagnostics(self.found))
    }

    fn name(&mut self, name: &Spanned<String>, what: &str) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=64).contains(&name.value.len()) || !name.value.chars().all(plain) {
            let message = format!("{what} {} is not a name", quoted(&name.value));
            let hint = "1 to 64 lower-case letters, digits and hyphens".to_owned();
            self.report(Code::Syntax, name, message, Some(hint));
        }
    }

    fn counts(&mut self) {
        let (steps, inputs) = (self.text.steps.value.len(), self.text.inputs.len());
        if !(1..=STEPS_MAX).contains(&steps) {
            let message = format!("{steps} steps: a playbook has 1 to {STEPS_MAX}");
            self.report(Code::TooLarge, &self.text.steps, message, None);
        }
        if inputs > INPUTS_MAX {
            let message = format!("{inputs} inputs: a playbook has at most {INPUTS_MAX}");
            self.report(Code::TooLarge, &self.text.steps, message, None);
        }
    }

    fn step_ids(&mut self) {
        let text = self.text;
        for (index, step) in text.steps.value.iter().enumerate() {
            let id = &step.value.id;
            self.name(id, "the step's id");
            if self.places.insert(&id.value, index).is_some() {
                let message = format!("two steps have the id {}", quoted(&id.value));
                self.report(Code::DuplicateStep, id, message, None);
            }
        }
    }

    /// `None` when something is wrong that the later checks would stumble over.
    fn step(&mut self, spanned: &'a Spanned<StepText>) -> Option<Step> {
        let text = &spanned.value;
        let action = self.action(&text.action);
        let needs = self.steps_named(&text.needs);
        let evidence = self.steps_named(&text.requires_evidence);
        let when = text.when.as_ref().map(|when| self.condition(when));
        let approval = text.approval.as_ref().map(|approval| self.approval(approval));
        let within = text.within.as_ref().and_then(|within| self.duration(within));
        let retry = self.retry(text);
        let action = action?;
        let with = self.arguments(action, &text.action, &text.with);
        let undo = text.undo.as_ref().and_then(|undo| {
            let undone_by = self.action(&undo.value.action)?;
            let with = self.arguments(undone_by, &undo.value.action, &undo.value.with);
            Some(Undo { action: undone_by, with })
        });
        let effect = text.effect.as_ref().map_or(action.effect(), |effect| effect.value);
        if let Some(declared) = text.effect.as_ref().filter(|it| it.value < action.effect()) {
            let message = format!("`{action}` is {}", action.effect().as_str());
            self.report(Code::Effect, declared, message, None);
        }
        let when = when.unwrap_or(Some(None))?;
        let (needs, requires_evidence) = (needs?, evidence?);
        self.absent_inputs(text, &with, when.as_ref());
        self.evidence(text, effect, &requires_evidence);
        Some(Step {
            id: text.id.value.clone(),
            action,
            with,
            needs,
            when,
            effect,
            undo,
            requires_evidence,
            approval,
            within: within.unwrap_or_else(|| default_within(action)),
            retry,
            on_failure: text.on_failure,
            on_indeterminate: text.on_indeterminate,
            lane: text.lane.as_ref().map_or(action.lane(), |lane| lane.value),
        })
    }

    fn action(&mut self, name: &Spanned<String>) -> Option<ActionKind> {
        let action = ActionKind::named(&name.value);
        if action.is_none() {
            let all = ActionKind::ALL.map(ActionKind::as_str);
            let hint = did_you_mean(&name.value, all)
                .or_else(|| Some(format!("the actions are {}", all.join(", "))));
            let message = format!("unknown action {}", quoted(&name.value));
            self.report(Code::UnknownAction, name, message, hint);
        }
        action
    }

    fn steps_named(&mut self, names: &[Spanned<String>]) -> Option<Vec<usize>> {
        names.iter().map(|name| self.step_named(name)).collect()
    }

    fn step_named(&mut self, name: &Spanned<String>) -> Option<usize> {
        let place = self.places.get(name.value.as_str()).copied();
        if place.is_none() {
            let hint = did_you_mean(&name.value, self.places.keys().copied());
            let message = format!("no step has the id {}", quoted(&name.value));
            self.report(Code::UnknownStep, name, message, hint);
        }
        place
    }

    fn input_named<T>(&mut self, name: &str, at: &Spanned<T>) -> Option<&'a syntax::InputText> {
        let input = self.text.inputs.get(name);
        if input.is_none() {
            let hint = did_you_mean(name, self.text.inputs.keys().map(String::as_str))
                .or_else(|| Some("declare it under `inputs`".to_owned()));
            self.report(Code::UnknownInput, at, format!("unknown input {}", quoted(name)), hint);
        }
        input.map(|input| &input.value)
    }

    /// The outer `None` says that something is wrong.
    fn condition(&mut self, spanned: &Spanned<ConditionText>) -> Option<Option<Condition>> {
        match &spanned.value {
            ConditionText { present: Some(input), step: None, is: None } => {
                self.input_named(&input.value, input)?;
                Some(Some(Condition::Present(input.value.clone())))
            }
            ConditionText { present: None, step: Some(step), is: Some(outcome) } => {
                let step = self.step_named(step)?;
                Some(Some(Condition::Ended { step, outcome: *outcome }))
            }
            _ => {
                let message = "a condition is either `present` or `step` with `is`".to_owned();
                self.report(Code::Syntax, spanned, message, None);
                None
            }
        }
    }

    fn approval(&mut self, text: &ApprovalText) -> Approval {
        let expires = text.expires.as_ref().and_then(|expires| self.duration(expires));
        if !(1..=QUORUM_MAX).contains(&text.quorum.value) {
            let message = format!("a quorum of {}: 1 to {QUORUM_MAX}", text.quorum.value);
            self.report(Code::TooLarge, &text.quorum, message, None);
        }
        Approval {
            role: text.role,
            quorum: text.quorum.value,
            initiator_may: !matches!(text.not, Some(NotText::Initiator)),
            expires,
        }
    }

    fn retry(&mut self, text: &StepText) -> Retry {
        let Some(spanned) = &text.retry else {
            return Retry { attempts: 1, backoff: Duration::ZERO };
        };
        let attempts = spanned.value.attempts;
        if !(1..=ATTEMPTS_MAX).contains(&attempts) {
            let message = format!("{attempts} attempts: 1 to {ATTEMPTS_MAX}");
            self.report(Code::TooLarge, spanned, message, None);
        }
        let backoff = self.duration(&spanned.value.backoff).unwrap_or_default();
        Retry { attempts: attempts.clamp(1, ATTEMPTS_MAX), backoff }
    }

    fn duration(&mut self, text: &Spanned<String>) -> Option<Duration> {
        let duration = parse_duration(&text.value).filter(|duration| *duration <= DURATION_MAX);
        if duration.is_none() {
            let message = format!("{} is not a duration", quoted(&text.value));
            let hint = "write `500ms`, `30s`, `5m` or `2h`, at most `24h`".to_owned();
            self.report(Code::Type, text, message, Some(hint));
        }
        duration
    }

    fn arguments(
        &mut self,
        action: ActionKind,
        named: &Spanned<String>,
        with: &BTreeMap<String, Spanned<String>>,
    ) -> BTreeMap<String, Argument> {
        let parameters = action.parameters();
        for parameter in parameters.iter().filter(|it| it.required && !with.contains_key(it.name)) {
            let message =
                format!("`{action}` needs `{}`, of type {}", parameter.name, parameter.of);
            self.report(Code::Parameter, named, message, None);
        }
        let bounds = |(name, text): (&String, &Spanned<String>)| {
            !["scope", "reason"].contains(&name.as_str()) && text.value != "false"
        };
        if action == ActionKind::Limit && !with.iter().any(bounds) {
            let message = "`limit` needs a bound, such as `steps_max`".to_owned();
            self.report(Code::Parameter, named, message, None);
        }
        let mut arguments = BTreeMap::new();
        for (name, text) in with {
            let Some(parameter) = parameters.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<_> = parameters.iter().map(|parameter| parameter.name).collect();
                let hint = did_you_mean(name, names.iter().copied())
                    .or_else(|| Some(format!("its parameters are {}", names.join(", "))));
                let message = format!("`{action}` has no parameter {}", quoted(name));
                self.report(Code::Parameter, text, message, hint);
                continue;
            };
            if let Some(argument) = self.argument(parameter.of, text) {
                arguments.insert(name.clone(), argument);
            }
        }
        arguments
    }

    fn argument(&mut self, wanted: InputType, text: &Spanned<String>) -> Option<Argument> {
        let value = text.value.as_str();
        if let Some(name) = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
            && !name.contains(['$', '{', '}'])
        {
            let of = self.input_named(name, text)?.of;
            if !of.fits(wanted) {
                let message = format!("`{name}` is a {of}, and a {wanted} is needed");
                self.report(Code::Type, text, message, None);
                return None;
            }
            return Some(Argument::Input(name.to_owned()));
        }
        if value.contains("${") {
            let message = "a reference inside a text".to_owned();
            let hint = "a parameter is a literal or one whole `${input}`".to_owned();
            self.report(Code::Interpolation, text, message, Some(hint));
            return None;
        }
        match wanted.parse(value) {
            Ok(literal) => Some(Argument::Literal(literal)),
            Err(message) => {
                self.report(Code::Type, text, message, None);
                None
            }
        }
    }

    fn absent_inputs(
        &mut self,
        text: &StepText,
        with: &BTreeMap<String, Argument>,
        when: Option<&Condition>,
    ) {
        for (parameter, argument) in with {
            let Argument::Input(name) = argument else { continue };
            let required = self.text.inputs.get(name).is_none_or(|input| input.value.required);
            let asked = matches!(when, Some(Condition::Present(asked)) if asked == name);
            if !required
                && !asked
                && let Some(at) = text.with.get(parameter)
            {
                let message = format!("a run may lack the input `{name}`");
                let hint = format!("add `when: {{present: {name}}}` or make the input required");
                self.report(Code::AbsentInput, at, message, Some(hint));
            }
        }
    }

    fn evidence(&mut self, text: &StepText, effect: Effect, requires: &[usize]) {
        if effect == Effect::Destructive && requires.is_empty() {
            let message =
                "a step that destroys must name the evidence that it waits for".to_owned();
            let hint = "add `requires_evidence` with the id of a capture".to_owned();
            self.report(Code::Evidence, &text.id, message, Some(hint));
        }
        for name in &text.requires_evidence {
            let capture = self
                .places
                .get(name.value.as_str())
                .and_then(|place| self.text.steps.value.get(*place))
                .is_none_or(|step| step.value.action.value == ActionKind::Capture.as_str());
            if !capture {
                let message = format!("{} is not a capture", quoted(&name.value));
                self.report(Code::Evidence, name, message, None);
            }
        }
    }

    fn cycle(&mut self, steps: &[Step]) {
        // Takes away what waits for nothing that is left, until nothing more can be.
        let mut left: BTreeSet<usize> = (0..steps.len()).collect();
        while let Some(free) = left.iter().copied().find(|index| {
            let step = steps.get(*index);
            step.is_none_or(|step| {
                step.waits_for()
                    .chain(step.requires_evidence.iter().copied())
                    .all(|other| !left.contains(&other))
            })
        }) {
            left.remove(&free);
        }
        if let Some(first) = left.first().and_then(|index| self.text.steps.value.get(*index)) {
            let ids: Vec<_> = left
                .iter()
                .filter_map(|index| steps.get(*index))
                .map(|step| format!("`{}`", step.id))
                .collect();
            let message = format!("steps wait for each other: {}", ids.join(", "));
            self.report(Code::Cycle, &first.value.id, message, None);
        }
    }

    fn stops(&mut self, steps: &[Step]) {
        let text = self.text;
        for (step, spanned) in steps.iter().zip(&text.steps.value) {
            if step.lane != Lane::Stop {
                continue;
            }
            if step.effect == Effect::None {
                let message = format!("`{}` is no stop", step.action);
                let hint = Some("leave `lane` out".to_owned());
                self.report(Code::StopWaits, &spanned.value.id, message, hint);
            }
            if step.approval.is_some() {
                let message = "a stop waits for nobody's approval".to_owned();
                let hint = Some("put it into `lane: work`".to_owned());
                self.report(Code::StopWaits, &spanned.value.id, message, hint);
            }
            let waits = step.waits_for().chain(step.requires_evidence.iter().copied());
            for other in waits.filter_map(|other| steps.get(other)) {
                if other.lane != Lane::Stop {
                    let message = format!("the stop `{}` waits for `{}`", step.id, other.id);
                    let hint = Some("a stop needs nothing but stops".to_owned());
                    self.report(Code::StopWaits, &spanned.value.id, message, hint);
                }
            }
        }
    }
}

const fn default_within(action: ActionKind) -> Duration {
    Duration::from_secs(match action {
        ActionKind::Halt | ActionKind::Block | ActionKind::Limit => 10,
        ActionKind::Freeze | ActionKind::Thaw | ActionKind::Kill => 30,
        ActionKind::Notify => 120,
        ActionKind::Capture => 300,
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3_600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
