//! The scenario `runaway`: an agent in Python tries the same thing again and again, and pays a model for
//! each attempt.
//!
//! The breakers of its guard stop the task; what follows is the server's and the playbook's: the halt
//! everywhere, the incident, the limits, the page, the evidence, the damage, and the kill of the process
//! once a lead agrees, whom this play plays. What is told is asked of the server; the model's own bill is
//! held against the records.

mod telling;

use std::path::Path;

use estoppel_api::{
    Allowlist, ApproveRequest, Client, HaltStatus, LimitRequest, LimitSummary, Role, RunStep,
    RunSummary, SqlRequest, TokenRequest,
};
use estoppel_model::{Clock as _, EntityId, Kind, Limit, OrderId, Scope, SystemClock};
use serde_json::Value;

use super::{
    AGENT_PATIENCE, Actor, PATIENCE, Setting, free_address, given,
    python::Python,
    serve,
    services::{Bill, MAIL_NAME, MODEL_NAME, Services},
    settled,
    timeline::Timeline,
    wait,
};
use crate::{
    error::{CommandError, Exit, Result},
    output::Output,
};

/// The agent, as it is read in this repository.
const AGENT: &str = include_str!("runaway_agent.py");
/// Its name, its session, and the task that runs away; the program says the same.
const AGENT_NAME: &str = "newsletter-bot";
const SESSION: &str = "newsletter";
const TASK: &str = "letter-3";
/// Where it finds the services.
const MODEL_URL: &str = "AGENT_MODEL_URL";
const MAIL_URL: &str = "AGENT_MAIL_URL";
/// The limits of the agent's tasks, as an operator sets them beforehand.
const LIMIT: Limit = Limit {
    requests_per_minute: None,
    steps_max: Some(200),
    wall_clock_ms_max: None,
    cost_usd_max: Some(20.0),
    tokens_max: None,
    concurrency_max: None,
    errors_in_a_row_max: None,
    identical_calls_max: Some(5),
    read_only: false,
    tenant_validation_strict: false,
};

/// How the agent is run.
enum Stage {
    /// Under `estoppel run`: its processes can be captured and killed.
    Confined(Python),
    /// As it is, and why.
    Free(&'static str),
}

/// What the server knows at the end, and what the services do.
struct Seen {
    confined: bool,
    number: String,
    status: HaltStatus,
    view: Value,
    limits: Vec<LimitSummary>,
    run: RunSummary,
    /// Whether the agent's process has ended by the kill.
    killed: bool,
    refused: u64,
    /// Calls of the model, tokens and US dollars, by the audit log.
    recorded: (u64, u64, f64),
    /// The model's own, when every enforcer had settled, and at the end.
    at_settled: Bill,
    bill: Bill,
    report: String,
}

/// Plays it.
pub(super) async fn play(python: &Python, folder: &Path, output: &Output) -> Result<bool> {
    let services = Services::open()?;
    let stage = stage(python)?;
    telling::beginning(&services, python, &stage, output);
    let allowlist = Allowlist {
        domains: Some(vec![
            format!("{MODEL_NAME}:{}", services.model.port()),
            format!("{MAIL_NAME}:{}", services.mail.port()),
        ]),
    };
    let (pager, gateway) = (services.pager, free_address()?);
    let setting = Setting { mode: "enforce", pager, allowlist, gateway, resolve: Vec::new() };
    let (mut server, client) = serve(folder, &setting).await?;
    let begun = SystemClock.now();
    limit(&client).await?;
    let mut agent = run_agent(folder, python, &stage, &services, &client).await?;
    let confined = matches!(stage, Stage::Confined(_));
    let seen = watch(&client, &services, &mut agent, confined, output).await?;
    std::fs::write(folder.join("report.md"), &seen.report)?;
    let mut timeline = Timeline::new(begun);
    timeline.runaway(&services, &seen.view, &seen.status, &seen.run, SystemClock.now());
    output.note(&format!("\n{}", timeline.text()));
    agent.end(AGENT_PATIENCE);
    server.end(PATIENCE);
    let checks = telling::checks(&seen);
    let good = checks.iter().all(|check| check.holds);
    let document = telling::document(folder, &seen, &timeline, &checks);
    output.answer(&document, |_| telling::closing(folder, &seen, &checks))?;
    Ok(good)
}

fn stage(python: &Python) -> Result<Stage> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Stage::Free("that needs root: nobody will capture or kill its process"));
    }
    Ok(match python.for_others()? {
        Some(python) => Stage::Confined(python),
        None => Stage::Free(
            "the agent's user can reach no Python that has the package: nobody will capture or kill \
             its process",
        ),
    })
}

/// What an operator has set before anything happens.
async fn limit(client: &Client) -> Result<()> {
    let request = LimitRequest {
        scope: Scope::entity(Kind::Agent, name(AGENT_NAME)?).into(),
        limit: LIMIT,
        reason: "what a letter may need, generously".to_owned(),
        id: Some(OrderId::new()),
        incident: None,
    };
    client.limit(&request).await?;
    Ok(())
}

/// Runs the agent as a user would.
async fn run_agent(
    folder: &Path,
    python: &Python,
    stage: &Stage,
    services: &Services,
    client: &Client,
) -> Result<Actor> {
    let token = token(client, AGENT_NAME, Role::Agent).await?;
    let mut command = match stage {
        Stage::Free(_) => {
            let mut command = std::process::Command::new(&python.program);
            for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
                command.env_remove(variable);
            }
            command
                .args(["-c", AGENT])
                .env("ESTOPPEL_TOKEN", token)
                .env(MODEL_URL, format!("http://{}/", services.model))
                .env(MAIL_URL, format!("http://{}/", services.mail));
            command
        }
        Stage::Confined(python) => {
            let token_file = folder.join("guard.token");
            std::fs::write(&token_file, token)?;
            let (model, mail) = (services.model, services.mail);
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command
                .args(["run", "--session", SESSION, "--agent", AGENT_NAME, "--guard-token-file"])
                .arg(token_file)
                .args(["--resolve", &format!("{MODEL_NAME}:{}={model}", model.port())])
                .args(["--resolve", &format!("{MAIL_NAME}:{}={mail}", mail.port())])
                .arg("--state")
                .arg(folder.join("run"))
                .arg("--")
                .arg(&python.program)
                .args(["-c", AGENT])
                .env("ESTOPPEL_TOKEN", self::token(client, "demo-host", Role::Enforcer).await?)
                .env(MODEL_URL, format!("http://{MODEL_NAME}:{}/", model.port()))
                .env(MAIL_URL, format!("http://{MAIL_NAME}:{}/", mail.port()));
            if let Some(packages) = &python.packages {
                command.env("PYTHONPATH", packages.path());
            }
            command
        }
    };
    let child = command
        .env("ESTOPPEL_URL", client.url().as_str())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    Ok(Actor(child))
}

async fn token(client: &Client, of: &str, role: Role) -> Result<String> {
    Ok(client.mint_token(&TokenRequest::new(name(of)?, role)).await?.token)
}

fn name(text: &str) -> Result<EntityId> {
    EntityId::new(text).map_err(|error| CommandError::new(Exit::Failed, error))
}

/// Waits for what is to happen, and plays the lead who agrees to the kill.
async fn watch(
    client: &Client,
    services: &Services,
    agent: &mut Actor,
    confined: bool,
    output: &Output,
) -> Result<Seen> {
    let number = wait("the incident", || async {
        let incidents = client.incidents().await.ok()?;
        Some(incidents.iter().find(|it| it.kind == "runaway")?.number.to_string())
    })
    .await?;
    let status = settled(client, &number).await?;
    // What has settled must stay settled: the model must not be asked any more.
    let at_settled = services.bill();
    // The agent goes on trying: that is to be seen before its process is gone.
    wait("a refused step in the audit log", || async {
        counted(client).await.ok().filter(|(refused, _)| *refused > 0)
    })
    .await?;
    let run = agreed(client, output).await?;
    let killed = confined && agent.ended_within(PATIENCE);
    let view = wait("the page and the limits in the incident", || async {
        let view = client.incident(&number).await.ok()?;
        let limited = given(&view).any(|it| it["what"].as_str().is_some_and(is_limit));
        let paged = !view["pages"].as_array()?.is_empty() && !services.pages().is_empty();
        (limited && paged).then_some(view)
    })
    .await?;
    let bill = services.bill();
    // A record comes a moment after its step.
    wait("the records of all mails", || async {
        let mails =
            "SELECT COUNT(*) FROM audit_log WHERE tool = 'send_mail' AND decision <> 'denied'";
        let recorded = row(client, mails).await.ok()?.first()?.as_u64()?;
        (recorded >= bill.mails_sent + bill.mails_refused).then_some(())
    })
    .await?;
    let limits = client.limits().await?;
    let report = client.text(&format!("/v1/incidents/{number}/report")).await?;
    let (refused, recorded) = counted(client).await?;
    let bill = services.bill();
    Ok(Seen {
        confined,
        number,
        status,
        view,
        limits,
        run,
        killed,
        refused,
        recorded,
        at_settled,
        bill,
        report,
    })
}

/// Plays the lead who agrees to the kill, where there is something to kill; the run at its end.
async fn agreed(client: &Client, output: &Output) -> Result<RunSummary> {
    let found = wait("the playbook to wait for a lead, or to end", || async {
        let run = runaway(client).await?;
        let waits = step(&run, "kill").is_some_and(|kill| kill.state == "waiting");
        let captured = step(&run, "capture").is_some_and(|capture| capture.state == "done");
        ((captured && waits) || run.state != "running").then_some(run)
    })
    .await?;
    if step(&found, "kill").is_some_and(|kill| kill.state == "waiting") {
        output.note("\n  lead      agrees to the kill of the session's processes\n");
        let request = ApproveRequest {
            approve: true,
            reason: "it takes no stop for an answer, and burns a processor".to_owned(),
        };
        client.approve_step(found.id, "kill", &request).await?;
    }
    wait("the end of the playbook", || async {
        runaway(client).await.filter(|run| run.state != "running")
    })
    .await
}

/// Of the audit log: the refused steps of the task; and all calls of the model, with tokens and US dollars.
async fn counted(client: &Client) -> Result<(u64, (u64, u64, f64))> {
    let of_task = format!("FROM audit_log WHERE task_id = '{TASK}' AND decision = 'denied'");
    let refused = row(client, &format!("SELECT COUNT(*) {of_task}")).await?;
    let refused = refused.first().and_then(Value::as_u64).unwrap_or(0);
    let used = "SELECT COUNT(*), SUM(input_tokens + output_tokens), SUM(estimated_cost) \
                FROM audit_log WHERE model IS NOT NULL";
    let recorded = match row(client, used).await?.as_slice() {
        [calls, tokens, cost] => (
            calls.as_u64().unwrap_or(0),
            tokens.as_u64().unwrap_or(0),
            cost.as_f64().unwrap_or(0.0),
        ),
        _ => (0, 0, 0.0),
    };
    Ok((refused, recorded))
}

fn is_limit(what: &str) -> bool {
    what.starts_with("limit to ")
}

async fn runaway(client: &Client) -> Option<RunSummary> {
    client.runs().await.ok()?.into_iter().find(|run| run.playbook == "runaway")
}

fn step<'a>(run: &'a RunSummary, id: &str) -> Option<&'a RunStep> {
    run.steps.iter().find(|step| step.id == id)
}

/// The only row of a query.
async fn row(client: &Client, query: &str) -> Result<Vec<Value>> {
    let table = client.sql(&SqlRequest { query: query.to_owned() }).await?;
    Ok(table.rows.into_iter().next().unwrap_or_default())
}
