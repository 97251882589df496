//! What a step leaves in the audit log.

use estoppel_link::breaker::Trip;
use estoppel_model::{
    AuditEvent, Boottime, EntityId, Event, Excess, LIMIT_ACTION, OrderId, Subject, Timestamp,
    Untrusted,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use crate::{
    access::Access,
    denied::{Cause, DeniedReason},
    guard::Mode,
    in_flight::{Notes, Running},
};

/// Largest params or result that are recorded whole.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// Deepest that are; the event around them has a bound of its own.
const WHOLE_DEPTH_MAX: usize = 32;
/// How much of larger ones is recorded.
const START_CHARS: usize = 4 * 1024;

/// The `action` of a check that refused.
const CHECK: &str = "estoppel.check";
/// The `action` of blocking work that has come to its end after it was stopped.
const ENDED_LATE: &str = "estoppel.ended_late";

/// How a step ended, for its record.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// By itself.
    Finished,
    /// It never began.
    Denied(Cause),
    /// Its future was dropped for this.
    Cancelled(Cause),
    /// This stopped it, and it could not be interrupted.
    Withheld(Cause),
    /// Its caller gave it up.
    GivenUp,
    /// It panicked.
    Panicked,
}

/// What has no column.
#[derive(Debug, Default, Serialize)]
struct Attributes<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<&'a EntityId>,
    /// Why it was stopped or refused, or would have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<DeniedReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<OrderId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<&'static str>,
    /// The limit that it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a Excess>,
    /// The tool whose call was one too many: no column, since this is no call of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a EntityId>,
    /// Why it failed, in the work's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> Attributes<'a> {
    fn of(subject: &'a Subject, cause: Option<&'a Cause>) -> Self {
        Self {
            component: subject.component.as_ref(),
            reason: cause.map(Cause::reason),
            order: cause.and_then(Cause::order).map(|order| order.id),
            limit: cause.and_then(Cause::excess),
            ..Self::default()
        }
    }

    fn raw(&self) -> Option<Box<RawValue>> {
        to_raw_value(self).ok().filter(|raw| raw.get() != "{}")
    }
}

/// The record of a step.
pub(crate) fn step(running: &Running, end: End, now: Boottime) -> Event {
    let (decision, cause, ended) = match end {
        End::Finished => ("allowed", None, None),
        End::Denied(cause) => ("denied", Some(cause), None),
        End::Cancelled(cause) => ("cancelled", Some(cause), None),
        End::Withheld(cause) => ("cancelled", Some(cause), Some("not_interruptible")),
        End::GivenUp => ("allowed", None, Some("given_up")),
        End::Panicked => ("allowed", None, Some("panicked")),
    };
    let (decision, cause) = match (cause, running.would_stop()) {
        (None, Some(would)) => ("would_stop", Some(would.clone())),
        (cause, _) => (decision, cause),
    };
    let spec = &running.spec;
    let attributes = Attributes {
        destination: spec.destination.as_ref().map(ToString::to_string),
        ended,
        error: running.notes().error.take(),
        ..Attributes::of(&running.subject, cause.as_ref())
    };
    Event::Audit(Box::new(AuditEvent {
        timestamp: Some(running.began_at),
        accessed_tenant_id: spec.accessed_tenant.clone(),
        action: Some(Untrusted::new(spec.action.clone())),
        params: spec.params.clone(),
        decision: Some(Untrusted::new(decision.to_owned())),
        attributes: attributes.raw(),
        ..outcome(running, now)
    }))
}

/// The record of blocking work that came to its end after its step had been recorded as stopped.
pub(crate) fn ended_late(running: &Running, panicked: bool, now: Boottime) -> Event {
    let attributes = Attributes {
        ended: Some(if panicked { "panicked" } else { "late" }),
        ..Attributes::of(&running.subject, running.stopped_by())
    };
    Event::Audit(Box::new(AuditEvent {
        action: Some(Untrusted::new(ENDED_LATE.to_owned())),
        decision: Some(Untrusted::new("cancelled".to_owned())),
        attributes: attributes.raw(),
        ..outcome(running, now)
    }))
}

/// The columns of how it went. What the work noted is taken, so that no cost counts twice.
fn outcome(running: &Running, now: Boottime) -> AuditEvent {
    let Notes { result, usage, .. } = std::mem::take(&mut *running.notes());
    AuditEvent {
        result,
        model: usage.model.map(Untrusted::new),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        // What is no cost must not cost the whole event.
        estimated_cost: usage.estimated_cost.filter(|cost| cost.is_finite() && *cost >= 0.0),
        duration_ms: Some(now.since(running.began).as_secs_f64() * 1e3),
        ..of(&running.subject)
    }
}

/// The record of a check that refused, or would have.
pub(crate) fn check(subject: &Subject, cause: &Cause, decision: &str, now: Timestamp) -> Event {
    Event::Audit(Box::new(AuditEvent {
        timestamp: Some(now),
        action: Some(Untrusted::new(CHECK.to_owned())),
        decision: Some(Untrusted::new(decision.to_owned())),
        attributes: Attributes::of(subject, Some(cause)).raw(),
        ..of(subject)
    }))
}

/// The record that a task is over a limit, by which the server learns of it.
pub(crate) fn limit(trip: &Trip, mode: Mode, now: Timestamp) -> Event {
    let decision = match mode {
        Mode::Enforce => "denied",
        Mode::Observe => "would_stop",
    };
    let attributes = Attributes {
        reason: Some(DeniedReason::Limit),
        limit: Some(&trip.excess),
        tool: trip.subject.tool.as_ref(),
        ..Attributes::of(&trip.subject, None)
    };
    Event::Audit(Box::new(AuditEvent {
        timestamp: Some(now),
        action: Some(Untrusted::new(LIMIT_ACTION.to_owned())),
        decision: Some(Untrusted::new(decision.to_owned())),
        attributes: attributes.raw(),
        tool: None,
        plugin: None,
        plugin_version: None,
        ..of(&trip.subject)
    }))
}

/// The record of an access to a tenant's data.
pub(crate) fn access(
    subject: &Subject,
    access: Access,
    decision: &str,
    cause: Option<&Cause>,
    now: Timestamp,
) -> Event {
    Event::Audit(Box::new(AuditEvent {
        timestamp: Some(now),
        accessed_tenant_id: access.accessed,
        action: Some(Untrusted::new(access.action)),
        params: access.params,
        decision: Some(Untrusted::new(decision.to_owned())),
        attributes: Attributes::of(subject, cause).raw(),
        ..of(subject)
    }))
}

/// The columns that name the subject.
fn of(subject: &Subject) -> AuditEvent {
    let text = |id: &EntityId| Untrusted::new(id.as_str().to_owned());
    AuditEvent {
        session_id: subject.session.clone(),
        user_id: subject.user.clone(),
        task_id: subject.task.clone(),
        agent_id: subject.agent.clone(),
        requester_tenant_id: subject.tenant.clone(),
        tool: subject.tool.as_ref().map(text),
        plugin: subject.plugin.as_ref().map(|plugin| text(&plugin.name)),
        plugin_version: subject
            .plugin
            .as_ref()
            .and_then(|plugin| plugin.version.as_ref())
            .map(text),
        ..AuditEvent::default()
    }
}

/// A value as JSON, or its start where it is too large or too deep for an event: one huge result
/// must not cost the record of the step.
pub(crate) fn summary(value: &impl Serialize) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Shortened {
        truncated: bool,
        bytes: usize,
        /// Of the whole: two values are the same or not by this.
        sha256: String,
        start: String,
    }
    let whole = to_raw_value(value).unwrap_or_else(|error| {
        // Maps whose keys are no texts; a `Serialize` that fails.
        tracing::debug!(%error, "a value of a step cannot be written as JSON");
        RawValue::NULL.to_owned()
    });
    let json = whole.get();
    if json.len() <= WHOLE_BYTES_MAX && depth(json) <= WHOLE_DEPTH_MAX {
        return whole;
    }
    let start = json.chars().take(START_CHARS).collect();
    let sha256 = hex::encode(Sha256::digest(json));
    to_raw_value(&Shortened { truncated: true, bytes: json.len(), sha256, start })
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The deepest nesting of a JSON text.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_or_too_deep_is_shortened() {
        assert_eq!(summary(&serde_json::json!({"q": "[[["})).get(), r#"{"q":"[[["}"#);
        let large = summary(&"é".repeat(WHOLE_BYTES_MAX));
        let large: serde_json::Value = serde_json::from_str(large.get()).unwrap();
        assert_eq!(large["bytes"], 2 * WHOLE_BYTES_MAX + 2);
        let text = |last: &str| summary(&format!("{}{last}", "é".repeat(WHOLE_BYTES_MAX)));
        assert_eq!(text("a").get(), text("a").get());
        assert_ne!(text("a").get(), text("b").get(), "what is cut off makes a difference");
        assert_eq!(large["start"].as_str().unwrap().chars().count(), START_CHARS);
        let deep = (0..40).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
        assert!(summary(&deep).get().starts_with(r#"{"truncated":true"#));
        let no_json = std::collections::HashMap::from([(vec![1], 1)]);
        assert_eq!(summary(&no_json).get(), "null");
    }
}
