//! `/v1/incidents`: to open, list, show, write into, report and close them.

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use estoppel_api::{
    AssignRequest, CloseRequest, IncidentOpened, IncidentSummary, NoteRequest, OpenIncidentRequest,
    Problem, Role,
};
use estoppel_incident::{
    IncidentState, IncidentView,
    record::{Assigned, Closed, IncidentKind, Noted, Opened, RootCause, Source},
};
use estoppel_model::{IncidentId, IncidentNumber, NewRecord, Severity, Untrusted};

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{Server, forensics, incidents::Page};

/// Longest title, in bytes.
const TITLE_BYTES_MAX: usize = 500;
/// Longest note, description or reason, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The incident of a number or an id, as far as the ledger was read.
pub(crate) fn known(server: &Server, name: &str) -> Option<IncidentView> {
    server.journal().read(|state| {
        if let Ok(number) = name.parse::<IncidentNumber>() {
            state.incidents.numbered(number).cloned()
        } else if let Ok(id) = name.parse::<IncidentId>() {
            state.incidents.incident(id).cloned()
        } else {
            None
        }
    })
}

/// The incident of a number or an id.
pub(crate) fn find(server: &Server, name: &str) -> Result<IncidentView, Failure> {
    server.journal().ledger()?;
    known(server, name).ok_or_else(|| {
        Failure::NotFound(format!(
            "there is no incident {}: expected a number such as IR-2026-001, or an id",
            estoppel_model::text::quoted(name)
        ))
    })
}

fn bounded(name: &str, text: &str, bytes_max: usize) -> Result<(), Failure> {
    if text.trim().is_empty() {
        return Err(Failure::Unprocessable(format!("`{name}` is empty")));
    }
    if text.len() > bytes_max {
        return Err(Failure::Unprocessable(format!(
            "`{name}` has {} bytes: at most {bytes_max}",
            text.len()
        )));
    }
    Ok(())
}

/// Opens an incident; a report of a person comes here, too (row P3), and pages.
#[utoipa::path(
    post, path = "/v1/incidents", tag = "incidents", request_body = OpenIncidentRequest,
    responses((status = 201, body = IncidentOpened), (status = 422, body = Problem))
)]
pub(crate) async fn open(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<OpenIncidentRequest>,
) -> Result<(StatusCode, Json<IncidentOpened>), Failure> {
    caller.machine_or(&[Role::Agent, Role::Ingest], Role::Viewer)?;
    bounded("title", &request.title, TITLE_BYTES_MAX)?;
    if let Some(description) = &request.description {
        bounded("description", description, TEXT_BYTES_MAX)?;
    }
    let unprocessable = |error: &dyn std::fmt::Display| Failure::Unprocessable(error.to_string());
    let kind = match &request.kind {
        None => IncidentKind::Other,
        Some(text) => text.parse().map_err(|error| {
            unprocessable(&error as &estoppel_incident::record::IncidentKindError)
        })?,
    };
    let severity = match &request.severity {
        None => Severity::High,
        Some(text) => {
            text.parse().map_err(|error: estoppel_model::SeverityError| unprocessable(&error))?
        }
    };
    let mut subject = request.subject;
    if let Some(tenant) = &caller.0.tenant {
        subject.tenant = Some(tenant.clone());
    }
    let id = request.id.unwrap_or_default();
    let opened = Opened {
        id,
        title: Untrusted::new(request.title),
        kind,
        severity,
        source: if request.report { Source::Report } else { Source::Responder },
        scope: None,
        subject,
        by: caller.0.actor.clone(),
        description: request.description.map(Untrusted::new),
    };
    let record = opened.record(server.clock().now()).map_err(Failure::internal)?;
    let appended = server.journal().commit(record).await?;
    if matches!(appended, estoppel_ledger::Appended::Existing { same_body: false, .. }) {
        return Err(Failure::Conflict(format!("another incident has the id {id}")));
    }
    let view = find(&server, &id.to_string())?;
    if matches!(appended, estoppel_ledger::Appended::New { .. }) {
        server.incidents().page(Page::of(&view));
    }
    Ok((StatusCode::CREATED, Json(IncidentOpened { id, number: view.number })))
}

/// Lists the incidents, newest first.
#[utoipa::path(get, path = "/v1/incidents", tag = "incidents", responses((status = 200, body = [IncidentSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<IncidentSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    server.journal().ledger()?;
    let tenant = caller.0.tenant;
    Ok(Json(server.journal().read(|state| {
        let visible = state
            .incidents
            .iter()
            .rev()
            .filter(|view| tenant.is_none() || view.opened.body.subject.tenant == tenant);
        visible.map(summary).collect()
    })))
}

fn summary(view: &IncidentView) -> IncidentSummary {
    let opened = &view.opened.body;
    IncidentSummary {
        id: opened.id,
        number: view.number,
        title: opened.title.raw().clone(),
        kind: opened.kind.as_str().to_owned(),
        severity: opened.severity.as_str().to_owned(),
        state: view.state().as_str().to_owned(),
        opened_at: view.opened.at,
        assignee: view.assignee().map(|to| to.raw().clone()),
    }
}

/// Finds an incident that the caller may see.
fn visible(server: &Server, caller: &Caller, name: &str) -> Result<IncidentView, Failure> {
    let view = find(server, name)?;
    if caller.0.tenant.is_some() && view.opened.body.subject.tenant != caller.0.tenant {
        return Err(Failure::NotFound(format!(
            "there is no incident {} of the token's tenant",
            estoppel_model::text::quoted(name)
        )));
    }
    Ok(view)
}

/// Shows all that is known of an incident.
#[utoipa::path(
    get, path = "/v1/incidents/{id}", tag = "incidents", params(("id" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = Problem))
)]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    caller.at_least(Role::Viewer)?;
    let view = visible(&server, &caller, &name)?;
    let mut value = serde_json::to_value(&view).map_err(Failure::internal)?;
    let head = serde_json::to_value(summary(&view)).map_err(Failure::internal)?;
    if let (Some(value), Some(head)) = (value.as_object_mut(), head.as_object()) {
        value.extend(head.clone());
    }
    Ok(Json(value))
}

/// Writes the forensic report as it stands now, in Markdown (row F1).
#[utoipa::path(
    get, path = "/v1/incidents/{id}/report", tag = "incidents", params(("id" = String, Path)),
    responses((status = 200, content_type = "text/markdown"), (status = 404, body = Problem))
)]
pub(crate) async fn report(
    State(server): State<Server>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    caller.at_least(Role::Viewer)?;
    let view = visible(&server, &caller, &name)?;
    let markdown = forensics::report(&server, &view, caller.0.tenant.clone()).await;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], markdown).into_response())
}

async fn append(
    server: &Server,
    record: Result<NewRecord, serde_json::Error>,
    name: &str,
) -> Result<Json<serde_json::Value>, Failure> {
    let appended = server.journal().commit(record.map_err(Failure::internal)?).await?;
    Ok(Json(serde_json::json!({ "incident": name, "record": appended.seq() })))
}

/// Writes a note into an incident.
#[utoipa::path(
    post, path = "/v1/incidents/{id}/notes", tag = "incidents", params(("id" = String, Path)),
    request_body = NoteRequest, responses((status = 200, body = Object), (status = 404, body = Problem))
)]
pub(crate) async fn note(
    State(server): State<Server>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<NoteRequest>,
) -> Result<Json<serde_json::Value>, Failure> {
    caller.at_least(Role::Responder)?;
    bounded("text", &request.text, TEXT_BYTES_MAX)?;
    let incident = visible(&server, &caller, &name)?.id();
    let noted = Noted { incident, text: Untrusted::new(request.text), by: caller.0.actor };
    append(&server, noted.record(server.clock().now()), &name).await
}

/// Gives an incident to somebody.
#[utoipa::path(
    post, path = "/v1/incidents/{id}/assign", tag = "incidents", params(("id" = String, Path)),
    request_body = AssignRequest, responses((status = 200, body = Object), (status = 404, body = Problem))
)]
pub(crate) async fn assign(
    State(server): State<Server>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<AssignRequest>,
) -> Result<Json<serde_json::Value>, Failure> {
    caller.at_least(Role::Responder)?;
    bounded("to", &request.to, TITLE_BYTES_MAX)?;
    let incident = visible(&server, &caller, &name)?.id();
    let assigned = Assigned { incident, to: Untrusted::new(request.to), by: caller.0.actor };
    append(&server, assigned.record(server.clock().now()), &name).await
}

/// Closes an incident. What it halted stays halted: that ends by a release alone.
#[utoipa::path(
    post, path = "/v1/incidents/{id}/close", tag = "incidents", params(("id" = String, Path)),
    request_body = CloseRequest, responses((status = 200, body = Object), (status = 409, body = Problem))
)]
pub(crate) async fn close(
    State(server): State<Server>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<CloseRequest>,
) -> Result<Json<serde_json::Value>, Failure> {
    caller.at_least(Role::Lead)?;
    bounded("reason", &request.reason, TEXT_BYTES_MAX)?;
    let view = visible(&server, &caller, &name)?;
    if view.state() == IncidentState::Closed {
        return Err(Failure::Conflict(format!("{} is closed already", view.number)));
    }
    let (incident, by) = (view.id(), caller.0.actor);
    let now = server.clock().now();
    if let Some(text) = request.root_cause {
        bounded("root_cause", &text, TEXT_BYTES_MAX)?;
        let cause = RootCause { incident, text: Untrusted::new(text), by: by.clone() };
        let record = cause.record(now).map_err(Failure::internal)?;
        server.journal().commit(record).await?;
    }
    let closed = Closed { incident, reason: Untrusted::new(request.reason), by };
    append(&server, closed.record(now), &name).await
}
