//! `POST /v1/events`: audit and network events, acknowledged when they are on disk.

use std::time::Duration;

use axum::{Json, body::Body, extract::State};
use estoppel_api::{EVENTS_BYTES_MAX, IngestReport, Problem, Rejected, Role};
use estoppel_eventlog::AppendError;
use estoppel_model::{EntityId, Event, EventLimits, ReceivedEvent, Timestamp};
use serde_json::value::RawValue;

use super::{
    extract::{Caller, read_body},
    problem::Failure,
};
use crate::{Server, token::Identity};

/// Most events of one request.
const EVENTS_MAX: usize = 50_000;
/// Most refusals that an answer lists; all are counted.
const REJECTED_MAX: usize = 100;
/// How long an answer waits for what was detected to be in the ledger.
const FOUND_WAIT: Duration = Duration::from_secs(1);

/// Takes events: a JSON array, or one JSON object a line (NDJSON).
///
/// Good events are kept whatever their neighbours are. Detectors see them before the disk does, so
/// that a stop does not wait for it.
#[utoipa::path(
    post, path = "/v1/events", tag = "events", request_body(content = String, description = "an array, or NDJSON"),
    responses((status = 200, body = IngestReport), (status = 400, body = Problem), (status = 413, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn post(
    State(server): State<Server>,
    caller: Caller,
    body: Body,
) -> Result<Json<IngestReport>, Failure> {
    caller.machine_or(&[Role::Ingest, Role::Agent, Role::Enforcer], Role::Responder)?;
    let bytes = read_body(body, EVENTS_BYTES_MAX).await?;
    let texts = split(&bytes)?;
    if texts.len() > EVENTS_MAX {
        return Err(Failure::Malformed(format!(
            "{} events: at most {EVENTS_MAX} in a request",
            texts.len()
        )));
    }
    let now = server.clock().now();
    let mut report = IngestReport::default();
    let mut events = Vec::with_capacity(texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        match text.and_then(|text| receive(text, &caller.0, now)) {
            Ok(event) => events.push(event),
            Err(error) => {
                report.rejected_count += 1;
                if report.rejected.len() < REJECTED_MAX {
                    let error = estoppel_model::Untrusted::new(error).inline(300);
                    report.rejected.push(Rejected { index, error });
                }
            }
        }
    }
    server.metrics().events_rejected.inc_by(report.rejected_count as u64);
    if events.is_empty() && report.rejected_count > 0 {
        let Rejected { index, error } = &report.rejected[0];
        return Err(Failure::Unprocessable(format!(
            "none of the {} events was taken; event {index}: {error}",
            report.rejected_count
        )));
    }
    let found = server.responder().observe(&mut events);
    server.roster().saw(&events);
    let log = server.events()?;
    let kept = log.append(events).await.map_err(|error| match error {
        AppendError::Full
        | AppendError::Unavailable { .. }
        | AppendError::Closed
        | AppendError::Poisoned { .. } => Failure::Unavailable(error.to_string()),
        AppendError::Encode { .. } => Failure::internal(error),
    })?;
    // What was detected is in memory alone until its incident is in the ledger: a sender that has
    // its answer does not send again. A ledger that does not answer holds up nobody's events.
    let _ = tokio::time::timeout(FOUND_WAIT, found.recorded()).await;
    report.accepted = kept.accepted + kept.duplicates;
    report.duplicates = kept.duplicates;
    server.metrics().events_accepted.inc_by(kept.accepted as u64);
    server.metrics().events_duplicate.inc_by(kept.duplicates as u64);
    Ok(Json(report))
}

/// The events' texts; a line that is not UTF-8 is an error of its own.
fn split(bytes: &[u8]) -> Result<Vec<Result<&str, String>>, Failure> {
    let utf8 =
        |error: std::str::Utf8Error| format!("not UTF-8 (from byte {})", error.valid_up_to());
    match bytes.trim_ascii_start().first() {
        None => Err(Failure::Malformed(
            "the body is empty: expected an array or one event a line".to_owned(),
        )),
        Some(b'[') => {
            let text = std::str::from_utf8(bytes)
                .map_err(|error| Failure::Malformed(format!("the body is {}", utf8(error))))?;
            let events: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
                Failure::Malformed(format!("the body is no array of events: {error}"))
            })?;
            Ok(events.into_iter().map(|event| Ok(event.get())).collect())
        }
        Some(_) => Ok(bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .map(|line| std::str::from_utf8(line).map_err(utf8))
            .collect()),
    }
}

fn receive(text: &str, sender: &Identity, now: Timestamp) -> Result<ReceivedEvent, String> {
    let mut event = Event::parse(text).map_err(|error| error.to_string())?;
    if let Some(tenant) = &sender.tenant {
        match &mut event {
            Event::Audit(event) => {
                bind(&mut event.requester_tenant_id, "requester_tenant_id", tenant)?
            }
            Event::Network(event) => bind(&mut event.tenant_id, "tenant_id", tenant)?,
        }
    }
    event.receive(now, EventLimits::at(now)).map_err(|error| error.to_string())
}

/// Binds an event's tenant to that of the token that sends it.
fn bind(field: &mut Option<EntityId>, name: &str, tenant: &EntityId) -> Result<(), String> {
    match field {
        Some(claimed) if claimed != tenant => {
            Err(format!("{name} is `{claimed}`, but the token is bound to tenant `{tenant}`"))
        }
        _ => {
            *field = Some(tenant.clone());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_lines_are_split_alike() {
        let texts = |body: &str| -> Vec<String> {
            split(body.as_bytes())
                .unwrap()
                .into_iter()
                .map(|text| text.unwrap().to_owned())
                .collect()
        };
        assert_eq!(texts(" [{\"a\":1}, {\"b\":2}]"), ["{\"a\":1}", "{\"b\":2}"]);
        assert_eq!(texts("{\"a\":1}\n\n  {\"b\":2}\r\n"), ["{\"a\":1}", "{\"b\":2}"]);
        assert!(texts("[]").is_empty());
    }

    #[test]
    fn a_broken_line_is_its_own_fault_alone() {
        let found = split(b"{\"a\":1}\n\xff\xfe\n{\"b\":2}").unwrap();
        assert_eq!(found.iter().filter(|text| text.is_ok()).count(), 2);
        assert!(split(b"[{\"a\":1}, \xff]").is_err());
        assert!(split(b"[{\"a\":1}").is_err());
        assert!(split(b"  \n ").is_err());
    }
}
