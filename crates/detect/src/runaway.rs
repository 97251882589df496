//! A guard or a gateway says that a task is over one of its limits (row R1).
//!
//! It has stopped the task in its own process by then; what follows here stops it everywhere.
//! The event is only as good as its sender: whoever may send events of a tenant can name any task of it,
//! as with every other detection, and reaches by that one task, so often an hour.

use estoppel_model::{
    AuditEvent, Excess, GATEWAY_ENFORCER, LIMIT_ACTION, ReceivedEvent, Severity, Subject,
    text::quoted,
};
use serde::Deserialize;

use crate::{Detection, detection::RUNAWAY};

/// What is looked at of such an event's `attributes`.
#[derive(Deserialize)]
struct Attributes {
    limit: Excess,
    #[serde(default)]
    tool: Option<String>,
    #[serde(default)]
    enforcer: Option<String>,
}

/// What an event says of a limit; `None` when it says nothing of one, or nothing that can be.
pub(crate) fn observe(
    event: &ReceivedEvent,
    audit: &AuditEvent,
    subject: &Subject,
) -> Option<Detection> {
    let says = |word: &Option<estoppel_model::Untrusted<String>>, expected: &str| {
        word.as_ref().is_some_and(|word| word.raw() == expected)
    };
    // Who only observes has stopped nothing, and nothing is stopped for it.
    if !says(&audit.action, LIMIT_ACTION) || !says(&audit.decision, "denied") {
        return None;
    }
    let attributes: Attributes = serde_json::from_str(audit.attributes.as_ref()?.get()).ok()?;
    let excess = Some(attributes.limit).filter(Excess::is_possible)?;
    let who = match (&subject.task, &subject.session) {
        (Some(task), _) => format!("task {task}"),
        (None, Some(session)) => format!("session {session}"),
        (None, None) => "an agent without task and session".to_owned(),
    };
    let tool = attributes.tool.as_deref();
    let tool = tool.map_or_else(String::new, |tool| format!(" (last tool {})", quoted(tool)));
    let at_gateway = attributes.enforcer.as_deref() == Some(GATEWAY_ENFORCER);
    let counted = if at_gateway { ", as its gateway counts requests and tunnels" } else { "" };
    let summary = format!("{who} ran away: {excess}{counted}{tool}");
    Some(Detection::new(RUNAWAY, Severity::High, subject.clone(), event, summary))
}

#[cfg(test)]
mod tests {
    use estoppel_model::{Event, EventLimits, Timestamp};
    use serde_json::json;

    use crate::{DetectPolicy, Detection, Detectors, Response, Responses};

    fn observe(fields: &serde_json::Value) -> Vec<Detection> {
        let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
        let mut event = json!({
            "kind": "audit", "action": "estoppel.limit", "decision": "denied", "task_id": "runaway-123",
            "session_id": "s",
            "attributes": {"reason": "limit", "tool": "fetch", "limit": {"breaker": "cost", "value": 5.2, "max": 5.0}},
        });
        for (key, value) in fields.as_object().unwrap() {
            event[key] = value.clone();
        }
        let event = Event::parse(&event.to_string()).unwrap();
        let event = event.receive(now, EventLimits::at(now)).unwrap();
        Detectors::new().observe(&event, &DetectPolicy::default())
    }

    /// R1: a task over a limit is a runaway: it is halted, alone, whether or not an allowlist is set.
    #[test]
    fn a_limit_that_is_broken_is_a_runaway_and_halts_its_task() {
        let found = observe(&json!({})).remove(0);
        assert_eq!(found.rule, "runaway.limit");
        assert_eq!(
            found.summary,
            "task runaway-123 ran away: a cost of 5.2000 US dollars of at most 5 (last tool `fetch`)"
        );
        let policy = DetectPolicy { halts_per_hour_max: 1, ..DetectPolicy::default() };
        let mut responses = Responses::new();
        let decision = responses.respond(&found, &policy);
        assert_eq!(decision.response, Response::Act);
        assert_eq!(decision.scope.unwrap().to_string(), "task:runaway-123");
        let again = responses.respond(&found, &policy);
        assert_eq!(again.response, Response::Report, "it is halted");
        let other = observe(&json!({"task_id": "t2"})).remove(0);
        assert_eq!(
            responses.respond(&other, &policy).response,
            Response::Ask,
            "the hour's are used up"
        );
        responses.released(&"task:runaway-123".parse().unwrap());

        let at_gateway = json!({"attributes": {
            "limit": {"breaker": "steps", "value": 3, "max": 2}, "enforcer": "gateway",
        }});
        assert_eq!(
            observe(&at_gateway).remove(0).summary,
            "task runaway-123 ran away: 3 steps of at most 2, as its gateway counts requests and tunnels"
        );
        let of_session = observe(&json!({"task_id": null})).remove(0);
        let decision = Responses::new().respond(&of_session, &policy);
        assert_eq!(decision.scope.unwrap().to_string(), "session:s");
        let of_nobody =
            observe(&json!({"task_id": null, "session_id": null, "plugin": "web"})).remove(0);
        let decision = Responses::new().respond(&of_nobody, &policy);
        assert_eq!((decision.response, decision.scope), (Response::Ask, None));
    }

    #[test]
    fn what_is_no_limit_that_was_broken_is_nothing() {
        for fields in [
            json!({"decision": "would_stop"}),
            json!({"action": "estoppel.check"}),
            json!({"attributes": null}),
            json!({"attributes": {"limit": {"breaker": "teapot", "value": 2, "max": 1}}}),
            json!({"attributes": {"limit": {"breaker": "cost", "value": 1, "max": 2}}}),
            json!({"attributes": {"limit": {"breaker": "cost", "value": 1, "max": -2}}}),
            json!({"attributes": [1, 2]}),
        ] {
            assert!(observe(&fields).is_empty(), "{fields}");
        }
        let hostile = observe(&json!({"attributes": {
            "limit": {"breaker": "cost", "value": 2, "max": 1}, "tool": "\u{1b}[2J\u{202e}x",
        }}))
        .remove(0);
        assert!(hostile.summary.is_ascii(), "{}", hostile.summary);
    }
}
