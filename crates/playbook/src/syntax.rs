//! The YAML of a playbook as it is written, with the place of each value; nothing is judged here.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

use crate::{
    action::{Effect, Lane},
    diagnostic::{Code, Diagnostic, did_you_mean},
    input::InputType,
    journal::{ApproverRole, StepOutcome},
    playbook::OnTrouble,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlaybookText {
    pub(crate) format: Spanned<String>,
    pub(crate) name: Spanned<String>,
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) description: Option<String>,
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, Spanned<InputText>>,
    pub(crate) steps: Spanned<Vec<Spanned<StepText>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputText {
    #[serde(rename = "type")]
    pub(crate) of: InputType,
    #[serde(default = "yes")]
    pub(crate) required: bool,
    #[serde(default)]
    pub(crate) description: Option<String>,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StepText {
    pub(crate) id: Spanned<String>,
    pub(crate) action: Spanned<String>,
    #[serde(default)]
    pub(crate) with: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(crate) needs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) when: Option<Spanned<ConditionText>>,
    #[serde(default)]
    pub(crate) effect: Option<Spanned<Effect>>,
    #[serde(default)]
    pub(crate) undo: Option<Spanned<UndoText>>,
    #[serde(default)]
    pub(crate) requires_evidence: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) approval: Option<ApprovalText>,
    #[serde(default)]
    pub(crate) within: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) retry: Option<Spanned<RetryText>>,
    #[serde(default)]
    pub(crate) on_failure: OnTrouble,
    #[serde(default)]
    pub(crate) on_indeterminate: OnTrouble,
    #[serde(default)]
    pub(crate) lane: Option<Spanned<Lane>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConditionText {
    #[serde(default)]
    pub(crate) present: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) step: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) is: Option<StepOutcome>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UndoText {
    pub(crate) action: Spanned<String>,
    #[serde(default)]
    pub(crate) with: BTreeMap<String, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApprovalText {
    pub(crate) role: ApproverRole,
    pub(crate) quorum: Spanned<u32>,
    #[serde(default)]
    pub(crate) not: Option<NotText>,
    #[serde(default)]
    pub(crate) expires: Option<Spanned<String>>,
}

/// Who may not approve.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NotText {
    Initiator,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryText {
    pub(crate) attempts: u32,
    pub(crate) backoff: Spanned<String>,
}

/// Reads the text. Budgets bound what a hostile text can cost; aliases are refused, since nothing
/// in a playbook needs them.
pub(crate) fn read(source: &str) -> Result<PlaybookText, Diagnostic> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            max_nodes: 8_192,
            max_documents: 1,
            max_aliases: 0,
            max_anchors: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(source, options).map_err(|error| diagnose(&error))
}

fn diagnose(error: &serde_saphyr::Error) -> Diagnostic {
    use serde_saphyr::Error;
    let location = error.location();
    let (code, message, hint) = match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => (
            Code::UnknownField,
            format!("unknown field {}", estoppel_model::text::quoted(field)),
            did_you_mean(field, expected.iter().copied())
                .or_else(|| Some(format!("the fields here are {}", expected.join(", ")))),
        ),
        Error::SerdeUnknownVariant { variant, expected, .. } => (
            Code::UnknownValue,
            format!("unknown value {}", estoppel_model::text::quoted(variant)),
            did_you_mean(variant, expected.iter().copied())
                .or_else(|| Some(format!("write {}", expected.join(" or ")))),
        ),
        Error::SerdeMissingField { field, .. } => {
            (Code::MissingField, format!("the field `{field}` is missing"), None)
        }
        other => {
            // The place is in the diagnostic; the parser's text may repeat a stranger's.
            let text = other.to_string();
            let text = text.lines().next().unwrap_or_default();
            let text = text.split_once(" at line ").map_or(text, |(what, _place)| what);
            (Code::Syntax, estoppel_model::Untrusted::new(text).inline(200), None)
        }
    };
    Diagnostic {
        code,
        line: location.map_or(0, |location| location.line()),
        column: location.map_or(0, |location| location.column()),
        message,
        hint,
    }
}
