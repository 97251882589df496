//! Events: what agents did (`audit`) and where bytes went (`network`), as the two tables have them.
//!
//! An event is a JSON object with `kind`, an optional `id` and the table's column names as keys. It
//! comes from strangers: unknown fields are refused with a suggestion (what has no column goes into
//! `attributes`), sizes and depth are bounded, and a bad event never takes its neighbours along.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{EntityId, Timestamp, Untrusted, text::quoted};

/// Largest event, in bytes of JSON.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of objects and arrays in an event.
pub const EVENT_DEPTH_MAX: usize = 64;

/// What a gateway or a host decided about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowVerdict {
    /// Listed, or nothing is listed yet.
    Allowed,
    /// Not listed, and let through: the gateway observes or learns.
    WouldBlock,
    /// Refused before a byte went out.
    Blocked,
    /// Cut while it was open.
    Cut,
    /// The destination did not answer.
    Failed,
}

impl FlowVerdict {
    /// The verdict's word in `network_log.verdict`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::WouldBlock => "would_block",
            Self::Blocked => "blocked",
            Self::Cut => "cut",
            Self::Failed => "failed",
        }
    }
}

/// One row of `audit_log`: a step of an agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name, described in docs/events.md"
)]
pub struct AuditEvent {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester_tenant_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accessed_tenant_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_version: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_id: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detections: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Box<RawValue>>,
}

/// One row of `network_log`: bytes of a flow since the flow's last row, so that sums are right.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name, described in docs/events.md"
)]
pub struct NetworkEvent {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<EntityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_process: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Untrusted<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<FlowVerdict>,
}

/// What someone observed.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Event {
    /// A step of an agent.
    Audit(Box<AuditEvent>),
    /// Bytes of a flow.
    Network(Box<NetworkEvent>),
}

/// An event that the server has accepted: it has an id, a time, and a time of arrival.
#[derive(Debug, Clone)]
pub struct ReceivedEvent {
    /// The sender's id, or one that the server gave.
    pub id: Uuid,
    /// When it happened, by the sender's clock; the arrival where the sender gave none.
    pub timestamp: Timestamp,
    /// When it arrived, by the server's clock.
    pub received_at: Timestamp,
    /// The event, with `id` and `timestamp` filled in.
    pub event: Event,
}

/// Why an event cannot be taken. The message names the field, and the bound or a suggestion.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The text is not a JSON object of the right shape.
    #[error("{message}")]
    Shape {
        /// What is wrong, with a suggestion where there is one.
        message: String,
    },
    /// An event has a largest size.
    #[error("the event has {bytes} bytes: at most {EVENT_BYTES_MAX}")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// An event has a deepest nesting.
    #[error("the event nests deeper than {EVENT_DEPTH_MAX} levels")]
    TooDeep,
    /// A time that no clock of an agent at work shows.
    #[error("timestamp {timestamp} lies outside {earliest} to {latest}: check the sender's clock")]
    Timestamp {
        /// The event's time.
        timestamp: Timestamp,
        /// Earliest time that is taken.
        earliest: Timestamp,
        /// Latest time that is taken.
        latest: Timestamp,
    },
    /// A number that cannot be.
    #[error("{field} must be a finite number of at least 0")]
    Number {
        /// The field.
        field: &'static str,
    },
}

/// Times that are taken: an event dated outside is refused, since it would hide from every window
/// that an investigator asks for.
#[derive(Debug, Clone, Copy)]
pub struct EventLimits {
    /// Earliest time.
    pub earliest: Timestamp,
    /// Latest time.
    pub latest: Timestamp,
}

impl EventLimits {
    /// What is taken at `now`: from the year 2000 to one day ahead, for clocks that are wrong.
    pub fn at(now: Timestamp) -> Self {
        const YEAR_2000: Timestamp = Timestamp::from_micros(946_684_800_000_000);
        Self { earliest: YEAR_2000, latest: now + std::time::Duration::from_secs(86_400) }
    }
}

const AUDIT_FIELDS: &[&str] = &[
    "kind",
    "id",
    "timestamp",
    "session_id",
    "user_id",
    "task_id",
    "agent_id",
    "requester_tenant_id",
    "accessed_tenant_id",
    "action",
    "tool",
    "plugin",
    "plugin_version",
    "params",
    "result",
    "model",
    "input_tokens",
    "output_tokens",
    "estimated_cost",
    "duration_ms",
    "decision",
    "trace_id",
    "span_id",
    "detections",
    "attributes",
];
const NETWORK_FIELDS: &[&str] = &[
    "kind",
    "id",
    "timestamp",
    "session_id",
    "agent_id",
    "task_id",
    "tenant_id",
    "source_process",
    "pid",
    "plugin",
    "destination",
    "port",
    "protocol",
    "bytes_sent",
    "bytes_received",
    "duration_ms",
    "verdict",
];

impl Event {
    /// Reads an event from its JSON text.
    ///
    /// # Errors
    /// When the text is too large or too deep, no object, of an unknown kind, or has a field that
    /// is unknown or of the wrong type.
    pub fn parse(json: &str) -> Result<Self, EventError> {
        if json.len() > EVENT_BYTES_MAX {
            return Err(EventError::TooLarge { bytes: json.len() });
        }
        check_depth(json)?;
        let shape = |error: serde_json::Error| EventError::Shape { message: error.to_string() };
        let mut fields: std::collections::BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(json).map_err(shape)?;
        let kind = fields.remove("kind").ok_or_else(|| EventError::Shape {
            message: "the event has no `kind`: `audit` or `network`".to_owned(),
        })?;
        let known = match kind.get() {
            "\"audit\"" => AUDIT_FIELDS,
            "\"network\"" => NETWORK_FIELDS,
            other => {
                let message = format!("kind {} is unknown: `audit` or `network`", quoted(other));
                return Err(EventError::Shape { message });
            }
        };
        if let Some(unknown) = fields.keys().find(|field| !known.contains(&field.as_str())) {
            return Err(EventError::Shape { message: unknown_field(unknown, known) });
        }
        // `kind` is taken out of the map, so the rest is exactly the struct's fields.
        let rest = serde_json::to_string(&fields).map_err(shape)?;
        if known == AUDIT_FIELDS {
            serde_json::from_str(&rest)
                .map(Self::Audit)
                .map_err(|error| wrong_field(&fields, &error, true))
        } else {
            serde_json::from_str(&rest)
                .map(Self::Network)
                .map_err(|error| wrong_field(&fields, &error, false))
        }
    }

    /// Completes the event on arrival.
    ///
    /// # Errors
    /// When its time lies outside `limits`, or a cost or duration is negative or not finite.
    pub fn receive(
        mut self,
        now: Timestamp,
        limits: EventLimits,
    ) -> Result<ReceivedEvent, EventError> {
        let (id, timestamp) = match &mut self {
            Self::Audit(event) => {
                check_number("estimated_cost", event.estimated_cost)?;
                check_number("duration_ms", event.duration_ms)?;
                (&mut event.id, &mut event.timestamp)
            }
            Self::Network(event) => {
                check_number("duration_ms", event.duration_ms)?;
                (&mut event.id, &mut event.timestamp)
            }
        };
        let id = *id.get_or_insert_with(Uuid::now_v7);
        let timestamp = *timestamp.get_or_insert(now);
        let EventLimits { earliest, latest } = limits;
        if timestamp < earliest || timestamp > latest {
            return Err(EventError::Timestamp { timestamp, earliest, latest });
        }
        Ok(ReceivedEvent { id, timestamp, received_at: now, event: self })
    }

    /// The session that the event belongs to.
    pub fn session(&self) -> Option<&EntityId> {
        match self {
            Self::Audit(event) => event.session_id.as_ref(),
            Self::Network(event) => event.session_id.as_ref(),
        }
    }
}

fn check_number(field: &'static str, number: Option<f64>) -> Result<(), EventError> {
    match number {
        Some(number) if !number.is_finite() || number < 0.0 => Err(EventError::Number { field }),
        _ => Ok(()),
    }
}

fn unknown_field(field: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(field, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    match nearest {
        Some((_, known)) => format!("unknown field {}: did you mean `{known}`?", quoted(field)),
        None => {
            format!("unknown field {}: what has no column goes into `attributes`", quoted(field))
        }
    }
}

/// Finds the field that an error is about, by reading each alone: serde's own message has only a
/// column in a text that the sender never saw.
fn wrong_field(
    fields: &std::collections::BTreeMap<String, Box<RawValue>>,
    whole: &serde_json::Error,
    audit: bool,
) -> EventError {
    for (field, value) in fields {
        let alone = format!("{{{}:{}}}", serde_json::Value::from(field.as_str()), value.get());
        let error = if audit {
            serde_json::from_str::<AuditEvent>(&alone).err()
        } else {
            serde_json::from_str::<NetworkEvent>(&alone).err()
        };
        if let Some(error) = error {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            return EventError::Shape { message: format!("field `{field}`: {}", clean(reason)) };
        }
    }
    EventError::Shape { message: clean(&whole.to_string()) }
}

/// serde repeats a stranger's text in its messages.
fn clean(message: &str) -> String {
    Untrusted::new(message).inline(200)
}

/// Bounds the nesting before any recursive parser sees the text.
fn check_depth(json: &str) -> Result<(), EventError> {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                if depth > EVENT_DEPTH_MAX {
                    return Err(EventError::TooDeep);
                }
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(json: &str, expect: &str) {
        let message = Event::parse(json).unwrap_err().to_string();
        assert!(message.contains(expect), "{json}: {message}");
    }

    #[test]
    fn an_event_is_read_by_its_kind() {
        let event = Event::parse(
            r#"{"kind":"audit","session_id":"abc123","params":{"q":[1,"x"]},"estimated_cost":0.5}"#,
        );
        let Ok(Event::Audit(event)) = event else { panic!("{event:?}") };
        assert_eq!(event.params.unwrap().get(), r#"{"q":[1,"x"]}"#);
        let event = Event::parse(
            r#"{"kind":"network","destination":"x.example","verdict":"would_block","pid":1}"#,
        );
        assert!(matches!(event, Ok(Event::Network(_))), "{event:?}");
    }

    #[test]
    fn a_wrong_event_is_refused_by_name() {
        fails("[]", "expected a map");
        fails("{\"kind\":\"audit\"", "EOF");
        fails("{}", "no `kind`");
        fails(r#"{"kind":"metric"}"#, "`audit` or `network`");
        fails(r#"{"kind":"audit","sesion_id":"a"}"#, "did you mean `session_id`?");
        fails(r#"{"kind":"audit","temperature_of_the_room":1}"#, "goes into `attributes`");
        fails(r#"{"kind":"audit","input_tokens":-1}"#, "field `input_tokens`: invalid value");
        fails(r#"{"kind":"network","port":70000}"#, "field `port`");
        fails(r#"{"kind":"audit","session_id":"a b"}"#, "field `session_id`");
        fails(r#"{"kind":"audit","timestamp":"2026-02-05 03:00"}"#, "2026-02-05T03:00:00Z");
        fails(
            &format!(r#"{{"kind":"audit","params":{}{}}}"#, "[".repeat(64), "]".repeat(64)),
            "64 levels",
        );
        fails(
            &format!(r#"{{"kind":"audit","tool":"{}"}}"#, "x".repeat(EVENT_BYTES_MAX)),
            "at most 1048576",
        );
    }

    #[test]
    fn brackets_inside_texts_are_no_depth() {
        let json = format!(r#"{{"kind":"audit","tool":"{}\""}}"#, "[".repeat(100));
        assert!(Event::parse(&json).is_ok());
    }

    #[test]
    fn a_time_that_no_clock_shows_is_refused() {
        let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
        let receive = |at: &str| {
            Event::parse(&format!(r#"{{"kind":"audit","timestamp":"{at}"}}"#))
                .unwrap()
                .receive(now, EventLimits::at(now))
        };
        assert!(receive("2026-02-06T02:59:59Z").is_ok());
        assert!(
            receive("2026-02-06T03:00:01Z").unwrap_err().to_string().contains("sender's clock")
        );
        assert!(receive("1999-12-31T23:59:59Z").is_err());
        let event = Event::parse(r#"{"kind":"audit","estimated_cost":-1}"#).unwrap();
        assert!(
            event
                .receive(now, EventLimits::at(now))
                .unwrap_err()
                .to_string()
                .contains("estimated_cost")
        );
    }

    #[test]
    fn what_is_missing_is_filled_in_on_arrival() {
        let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
        let event = Event::parse(r#"{"kind":"audit"}"#)
            .unwrap()
            .receive(now, EventLimits::at(now))
            .unwrap();
        assert_eq!((event.timestamp, event.received_at), (now, now));
        let Event::Audit(audit) = &event.event else { panic!() };
        assert_eq!(audit.id, Some(event.id));
    }
}
