//! What a limit would have done to a task of the past: the breakers over its records.
//!
//! After an incident its own calls are the test of the limits that are to prevent the next one (row
//! R6), and the records of tasks that were well are the test that they stop nobody else.

use std::time::Duration;

use estoppel_link::breaker::{Account, Ended, Outcome, StepKind};
use estoppel_model::{AuditEvent, Boottime, Excess, LIMIT_ACTION, Limit, Timestamp, Untrusted};
use serde::Deserialize;

use crate::fingerprint::{Call, Fingerprints};

/// Where a task of the past would have been stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stopped {
    /// The record of the step that was one too many: its place among those given, from 0.
    pub at: usize,
    /// The limit that it would have been over.
    pub excess: Excess,
}

/// What of a record's `attributes` is looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes {
    error: Option<String>,
    ended: Option<String>,
}

/// Puts the records of one task, in the order of their `timestamp`, through its breakers. Returns the
/// first step that these would have stopped, or by which the task would have come over the limit.
///
/// Steps that were refused did not happen. The records are of steps one after the other, so that calls at
/// once are not judged; nor is what only refuses a step ([`Limit::requests_per_minute`],
/// [`Limit::read_only`]). What a record lacks counts as nothing; one without a result is no part of a
/// cycle.
pub fn replay<'a>(
    records: impl IntoIterator<Item = &'a AuditEvent>,
    limit: &Limit,
) -> Option<Stopped> {
    let prints = Fingerprints::default();
    let mut account = Account::default();
    let mut first: Option<Timestamp> = None;
    let mut last = Boottime::default();
    for (at, record) in records.into_iter().enumerate() {
        let is = |field: &Option<Untrusted<String>>, word: &str| {
            field.as_ref().is_some_and(|text| text.raw() == word)
        };
        if is(&record.decision, "denied") || is(&record.action, LIMIT_ACTION) {
            continue;
        }
        if let Some(began) = record.timestamp {
            let first = *first.get_or_insert(began);
            // A clock that was set back stands still.
            last = last.max(Boottime::default() + began.since(first));
        }
        let kind = if record.tool.is_some() { StepKind::Call } else { StepKind::Other };
        if let Err(excess) = account.enter(kind, limit, last) {
            return Some(Stopped { at, excess });
        }
        let took = record.duration_ms.filter(|took| took.is_finite() && *took >= 0.0);
        let ended_at =
            last + Duration::try_from_secs_f64(took.unwrap_or(0.0) / 1e3).unwrap_or_default();
        if let Some(excess) = account.leave(kind, &outcome(record, &prints), limit, ended_at) {
            return Some(Stopped { at, excess });
        }
    }
    None
}

fn outcome(record: &AuditEvent, prints: &Fingerprints) -> Outcome {
    let attributes = record.attributes.as_ref();
    let attributes: Attributes =
        attributes.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let cancelled = record.decision.as_ref().is_some_and(|word| word.raw() == "cancelled");
    let ended = match attributes.ended.as_deref() {
        _ if cancelled => Ended::Stopped,
        Some("given_up" | "panicked") => Ended::InError,
        _ if attributes.error.is_some() => Ended::InError,
        _ => Ended::Well,
    };
    let call = Call {
        tool: name(record.tool.as_ref()),
        plugin: name(record.plugin.as_ref()),
        action: name(record.action.as_ref()),
        params: record.params.as_deref(),
        result: record.result.as_deref(),
        error: attributes.error.as_deref(),
    };
    let (input, output) = (record.input_tokens.unwrap_or(0), record.output_tokens.unwrap_or(0));
    Outcome {
        ended,
        cost_usd: record.estimated_cost.unwrap_or(0.0),
        tokens: input.saturating_add(output),
        fingerprint: call.fingerprint(prints),
    }
}

fn name(field: Option<&Untrusted<String>>) -> &str {
    field.map_or("", |name| name.raw().as_str())
}
