//! `/v1/runs`: runs of playbooks, and the decision on those that ask.

use axum::{
    Json,
    extract::{Path, State},
};
use estoppel_api::{ApproveRequest, Problem, Role, RunStep, RunSummary};
use estoppel_model::{
    RunId,
    journal::{ApproverRole, RunDecided, StepApproved},
};
use estoppel_playbook::{Run, RunState, Step, StepState};

use super::{
    extract::{Caller, JsonBody},
    kill_switch::reason,
    problem::Failure,
};
use crate::{Server, runs};

/// Lists the runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "playbooks", responses((status = 200, body = [RunSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<RunSummary>>, Failure> {
    caller.at_least(Role::Viewer)?;
    caller.unbound("runs are the operator's")?;
    server.journal().ledger()?;
    let mut runs: Vec<_> = server.journal().read(|state| state.runs.iter().map(summary).collect());
    runs.reverse();
    Ok(Json(runs))
}

/// Lets a run that asks begin, or declines it.
#[utoipa::path(
    post, path = "/v1/runs/{id}/approve", tag = "playbooks", params(("id" = uuid::Uuid, Path)),
    request_body = ApproveRequest,
    responses((status = 200, body = RunSummary), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn approve(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<ApproveRequest>,
) -> Result<Json<RunSummary>, Failure> {
    caller.at_least(Role::Responder)?;
    caller.unbound("runs are the operator's")?;
    if request.reason.trim().is_empty() {
        return Err(Failure::Unprocessable("`reason` is empty: say why".to_owned()));
    }
    let id: RunId = id
        .parse()
        .map_err(|error: estoppel_model::IdError| Failure::Malformed(error.to_string()))?;
    let asks = server.journal().read(|state| {
        let run = state.runs.run(id)?;
        Some((run.state() == RunState::Asking, run.destroys()))
    });
    match asks {
        None => return Err(Failure::NotFound(format!("there is no run {id}"))),
        Some((false, _)) => return Err(Failure::Conflict("the run does not ask".to_owned())),
        Some((true, true)) if request.approve => caller.at_least(Role::Lead)?,
        Some((true, _)) => {}
    }
    let decided = RunDecided {
        run: id,
        approve: request.approve,
        by: caller.0.actor,
        reason: request.reason,
    };
    let record = decided.record(server.clock().now()).map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    let run = server.journal().read(|state| state.runs.run(id).map(summary));
    run.map(Json).ok_or_else(|| Failure::NotFound(format!("there is no run {id}")))
}

/// Approves one step that waits for people, or declines it: it is skipped then.
#[utoipa::path(
    post, path = "/v1/runs/{run}/steps/{step}/approve", tag = "playbooks",
    params(("run" = uuid::Uuid, Path), ("step" = String, Path)), request_body = ApproveRequest,
    responses((status = 200, body = RunSummary), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(crate) async fn approve_step(
    State(server): State<Server>,
    caller: Caller,
    Path((id, step)): Path<(String, String)>,
    JsonBody(request): JsonBody<ApproveRequest>,
) -> Result<Json<RunSummary>, Failure> {
    caller.at_least(Role::Responder)?;
    caller.unbound("runs are the operator's")?;
    reason(&request.reason)?;
    let id: RunId = id
        .parse()
        .map_err(|error: estoppel_model::IdError| Failure::Malformed(error.to_string()))?;
    let run = server.journal().read(|state| state.runs.run(id).cloned());
    let run = run.ok_or_else(|| Failure::NotFound(format!("there is no run {id}")))?;
    let index = run.playbook().position(&step).ok_or_else(|| {
        Failure::NotFound(format!("run {id} has no step {}", estoppel_model::text::quoted(&step)))
    })?;
    let ApproveRequest { approve, reason } = request;
    let by = caller.0.actor.clone();
    let why = format!("declined by {by}: {reason}");
    let declined = (run.state() == RunState::Running).then(|| run.declined(index, &why)).flatten();
    let (Some(declined), Some(approval)) =
        (declined, run.playbook().steps.get(index).and_then(|step| step.approval.as_ref()))
    else {
        return Err(Failure::Conflict(format!("step `{step}` waits for nobody's approval")));
    };
    let record = if approve {
        caller.at_least(match approval.role {
            ApproverRole::Responder => Role::Responder,
            ApproverRole::Lead => Role::Lead,
            ApproverRole::Admin => Role::Admin,
        })?;
        if !approval.initiator_may && by == *run.by() {
            return Err(Failure::Conflict("whoever started the run must not approve".to_owned()));
        }
        let role = match caller.0.role {
            Role::Admin => ApproverRole::Admin,
            Role::Lead => ApproverRole::Lead,
            _ => ApproverRole::Responder,
        };
        let approved = StepApproved { run: id, index, by, role, reason };
        approved.record(server.clock().now()).map_err(Failure::internal)?
    } else {
        declined.record(server.clock().now()).map_err(Failure::internal)?
    };
    server.journal().commit(record).await?;
    let run = server.journal().read(|state| state.runs.run(id).map(summary));
    run.map(Json).ok_or_else(|| Failure::NotFound(format!("there is no run {id}")))
}

fn summary(run: &Run) -> RunSummary {
    let steps = run
        .steps()
        .map(|view| {
            let (state, observed, ended_at) = match view.state {
                StepState::Waiting => ("waiting", waits_for_people(view.step), None),
                StepState::Intended { .. } => ("intended", None, None),
                StepState::Ended { outcome, observed, at, .. } => {
                    (outcome.as_str(), Some(observed.clone()), Some(*at))
                }
            };
            RunStep {
                id: view.step.id.clone(),
                action: view.step.action.as_str().to_owned(),
                state: state.to_owned(),
                observed,
                ended_at,
            }
        })
        .collect();
    RunSummary {
        id: run.id(),
        playbook: run.playbook().name.clone(),
        incident: run.incident(),
        state: runs::word(run.state()).to_owned(),
        started_at: run.started_at(),
        steps,
    }
}

/// What a step says that waits for people, where it is one that does.
fn waits_for_people(step: &Step) -> Option<String> {
    let approval = step.approval.as_ref()?;
    let role = match approval.role {
        ApproverRole::Responder => "responder",
        ApproverRole::Lead => "lead",
        ApproverRole::Admin => "admin",
    };
    Some(format!("needs the approval of {} people, each at least a {role}", approval.quorum))
}
