//! The report of what was lost, an event like others.

use estoppel_model::{AuditEvent, Event, Timestamp, Untrusted};
use serde::Serialize;
use serde_json::value::to_raw_value;
use uuid::Uuid;

use crate::spool::{Line, Loss};

/// The `action` of the report.
const ACTION: &str = "estoppel.gap";

#[derive(Serialize)]
struct Attributes {
    lost: u64,
    from: Timestamp,
    to: Timestamp,
}

/// A report under its id. It stays as it is until a server has it: were it to grow, a repeated
/// request would either hide the growth or count twice. What is lost meanwhile is the next report.
#[derive(Debug)]
pub(super) struct Gap {
    /// The report, ready to be sent.
    pub(super) line: Line,
}

impl Gap {
    /// The report of a loss.
    pub(super) fn new(loss: Loss, now: Timestamp) -> Result<Self, super::LineError> {
        let Loss { events: lost, from, to } = loss;
        let event = Event::Audit(Box::new(AuditEvent {
            id: Some(Uuid::now_v7()),
            timestamp: Some(now),
            action: Some(Untrusted::new(ACTION.to_owned())),
            attributes: Some(to_raw_value(&Attributes { lost, from, to })?),
            ..AuditEvent::default()
        }));
        Ok(Self { line: Line { at: now, json: super::line(event)? } })
    }
}
