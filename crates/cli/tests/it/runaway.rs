//! Rows R1, R2, R4, R5, R6: a task runs over its limit in a guard; the server halts it everywhere, opens a
//! runaway incident, bounds what may start again, and tells the damage.

use estoppel_guard::{DeniedReason, Guard, Limit, StepError, StepSpec, Usage, replay};
use estoppel_model::{AuditEvent, Event, Subject};
use serde_json::{Value, json};

use crate::{
    hosted::{Hosted, is_root},
    stage::{Server, wait_for},
};

/// A guard of an agent, and the runtime that it lives in.
struct Agent {
    runtime: tokio::runtime::Runtime,
    guard: Guard,
}

impl Agent {
    fn start(server: &Server, limit: Limit) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let token = server.token("support", "agent", None);
        let guard = runtime.block_on(async {
            let guard = Guard::builder().server(&server.url).unwrap().token(token);
            let guard = guard.agent("support").unwrap().limits(limit).connect().unwrap();
            guard.ready().await;
            guard
        });
        Self { runtime, guard }
    }

    fn subject(&self, task: &str) -> Subject {
        let subject = self.guard.subject(&format!("task:{task}")).unwrap();
        Subject { session: Some("s1".parse().unwrap()), ..subject }
    }

    /// One round of an agent that tries again and again: a model call, and a mail that bounces.
    fn round(&self, subject: &Subject) -> Result<(), StepError> {
        self.runtime.block_on(async {
            let usage = Usage {
                model: Some("m-1".to_owned()),
                input_tokens: Some(100),
                output_tokens: Some(10),
                estimated_cost: Some(0.05),
            };
            let model = StepSpec::action("model_call");
            self.guard.step(subject, model, async |step| step.record_usage(usage)).await?;
            let mail = StepSpec::tool("send_mail").unwrap().params(&json!({"to": "alice"}));
            self.guard
                .step(subject, mail, async |step| step.record_error(&"550 mailbox full"))
                .await
        })
    }
}

/// R6: what the report proposes is held against the records by the breakers themselves: each bound alone
/// would have stopped this task, and all together none of the other's steps.
fn held_against_the_records(server: &Server, report: &str) {
    let proposed = report.split("Proposed breakers: `").nth(1).unwrap();
    let proposed = proposed.split('`').next().unwrap();
    let limits: Vec<Limit> = proposed
        .split(", ")
        .map(|bound| {
            let (name, max) = bound.split_once(' ').unwrap();
            serde_json::from_str(&format!(r#"{{"{name}":{max}}}"#)).unwrap()
        })
        .collect();
    let (own, calm) = (records(server, "runaway-123"), records(server, "calm-1"));
    for limit in &limits {
        assert!(replay(&own, limit).is_some(), "{limit} would not have stopped it");
    }
    let all = limits.iter().fold(Limit::default(), |all, limit| all.strictest(limit));
    assert_eq!(replay(&calm, &all), None);
}

fn order_of(runs: &Value, step: &str) -> Option<String> {
    let steps = runs[0]["steps"].as_array()?;
    let step = steps.iter().find(|it| it["id"] == step)?;
    (step["state"] == "done").then(|| step["observed"].to_string())
}

/// R1, R2, R4, R5: from the trip to the incident, the halt, the limits, the damage, and the release.
#[test]
fn a_runaway_is_halted_told_bounded_and_released() {
    let server = Server::start();
    let limit = Limit { identical_calls_max: Some(3), ..Limit::default() };
    let agent = Agent::start(&server, limit);
    let calm = agent.subject("calm-1");
    (0..2).for_each(|_| agent.round(&calm).unwrap());
    let runaway = agent.subject("runaway-123");
    let error = (0..100).find_map(|_| agent.round(&runaway).err()).unwrap();
    let denied = error.denied().unwrap();
    assert_eq!(denied.reason, DeniedReason::Limit);
    assert_eq!(
        (denied.limit.as_ref().unwrap().value, denied.limit.as_ref().unwrap().max),
        (4.0, 3.0)
    );

    let halts = wait_for("the halt of the task", || {
        let halts = server.admin("GET", "/kill-switch?scope=task:runaway-123", &Value::Null).1;
        halts["halts"].as_array().is_some_and(|halts| !halts.is_empty()).then_some(halts)
    });
    let halt = &halts["halts"][0];
    assert_eq!(halt["activated_by"], "estoppel:responder");
    let reason = halt["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("task runaway-123 ran away: the same call with the same result 4 times"),
        "{reason}"
    );
    let incident = wait_for("the incident", || {
        let incidents = server.admin("GET", "/v1/incidents", &Value::Null).1;
        incidents.as_array()?.iter().find(|it| it["kind"] == "runaway").cloned()
    });
    let runs = wait_for("the run of the playbook", || {
        let runs = server.admin("GET", "/v1/runs", &Value::Null).1;
        (order_of(&runs, "halt").is_some() && order_of(&runs, "limit").is_some()).then_some(runs)
    });
    assert_eq!(runs[0]["playbook"], "runaway");
    assert_eq!(runs.as_array().unwrap().len(), 1);

    let number = incident["number"].as_str().unwrap();
    let report = wait_for("the report", || {
        let report = String::from_utf8(server.cli(&["incident", "report", number]).stdout).unwrap();
        let is_whole = ["limit to steps_max", "| `send_mail` | 4 |"];
        is_whole.iter().all(|part| report.contains(part)).then_some(report)
    });
    for part in [
        "runaway agent",
        "## Damage",
        "SELECT tool, COUNT(*), SUM(estimated_cost) FROM audit_log WHERE task_id = 'runaway-123' GROUP BY tool;",
        "| `send_mail` | 4 |",
        "| `m-1` | 4 | 440 | 0.2000 |",
        "Proposed breakers: `steps_max 7, cost_usd_max 0.15, tokens_max 439, errors_in_a_row_max 3, \
         identical_calls_max 3`",
        "none of the 1 other tasks",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    held_against_the_records(&server, &report);

    // The refusal names the order now; another task goes on; a lead's release lets it begin anew, within
    // the limits of the playbook.
    wait_for("the order in the refusal", || {
        agent.guard.check(&runaway).unwrap_err().order.map(|order| order.incident)
    });
    agent.round(&calm).unwrap();
    let released =
        server.cli(&["release", "task:runaway-123", "--reason", "the mailbox was emptied"]);
    assert!(released.status.success(), "{released:?}");
    wait_for("the release", || agent.guard.check(&runaway).is_ok().then_some(()));
    (0..3).for_each(|_| agent.round(&runaway).unwrap());
    let again = (0..100).find_map(|_| agent.round(&runaway).err()).unwrap();
    assert_eq!(again.denied().unwrap().reason, DeniedReason::Limit, "a second time");
}

/// The records of a task, as the event log keeps them.
fn records(server: &Server, task: &str) -> Vec<AuditEvent> {
    const COLUMNS: [&str; 11] = [
        "timestamp",
        "task_id",
        "action",
        "tool",
        "params",
        "result",
        "input_tokens",
        "output_tokens",
        "estimated_cost",
        "decision",
        "attributes",
    ];
    let columns = COLUMNS.join(", ");
    let rows = server.sql(&format!(
        "SELECT {columns} FROM audit_log WHERE task_id = '{task}' ORDER BY timestamp"
    ));
    let record = |row: &Value| {
        let mut event = json!({"kind": "audit"});
        for (column, value) in COLUMNS.iter().zip(row.as_array().unwrap()) {
            event[column] = match (*column, value) {
                ("params" | "result" | "attributes", Value::String(text)) => {
                    serde_json::from_str(text).unwrap()
                }
                _ => value.clone(),
            };
        }
        match Event::parse(&event.to_string()).unwrap() {
            Event::Audit(record) => *record,
            Event::Network(_) => unreachable!(),
        }
    };
    rows.iter().map(record).collect()
}

/// R6: the incident's records, as the event log keeps them, are the case that the loop detector is held
/// against; those of a calm task are the case that it lets pass.
#[test]
fn the_incidents_records_are_a_regression_case() {
    let server = Server::start();
    let agent = Agent::start(&server, Limit::default());
    let (runaway, calm) = (agent.subject("runaway-123"), agent.subject("calm-1"));
    (0..20).for_each(|_| agent.round(&runaway).unwrap());
    (0..2).for_each(|_| agent.round(&calm).unwrap());
    let incident = wait_for("all records", || {
        Some(records(&server, "runaway-123")).filter(|it| it.len() == 40)
    });
    let calm =
        wait_for("all records", || Some(records(&server, "calm-1")).filter(|it| it.len() == 4));
    let limit = Limit { identical_calls_max: Some(3), ..Limit::default() };
    let stopped = replay(&incident, &limit).unwrap();
    assert_eq!((stopped.at, stopped.excess.value), (7, 4.0), "the fourth mail");
    assert_eq!(replay(&calm, &limit), None);
}

/// R5: a limit by hand bounds every task of an agent, and its release by the order's id ends it.
#[test]
fn a_limit_by_hand_holds_until_it_is_released() {
    let server = Server::start();
    let agent = Agent::start(&server, Limit::default());
    let limit = ["limit", "agent:support", "--steps", "4", "--cost", "5", "--reason", "a drill"];
    let accepted = server.json(&limit);
    assert_eq!(accepted["limit"], json!({"steps_max": 4, "cost_usd_max": 5.0}));
    let order = accepted["id"].as_str().unwrap();
    let listed = server.json(&["limit", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let one = &listed[0];
    assert_eq!((&one["id"], &one["limit"]), (&accepted["id"], &accepted["limit"]));
    assert_eq!((&one["scope"], &one["reason"]), (&json!("agent:support"), &json!("a drill")));
    let table = String::from_utf8(server.cli(&["limit", "list"]).stdout).unwrap();
    let status = String::from_utf8(server.cli(&["status"]).stdout).unwrap();
    for text in [&table, &status] {
        assert!(text.contains("steps_max 4, cost_usd_max 5") && text.contains(order), "{text}");
    }
    let bound = server.token("bob", "viewer", Some("acme"));
    let (code, seen) = server.send(&bound, "GET", "/v1/limits", b"");
    assert_eq!(
        (code, seen.as_array().map(Vec::len)),
        (200, Some(1)),
        "it reaches everybody: {seen}"
    );
    wait_for("the limit at the guard", || {
        (agent.guard.status().orders_in_force == 1).then_some(())
    });
    let one = agent.subject("one");
    (0..2).for_each(|_| agent.round(&one).unwrap());
    agent.round(&one).unwrap_err();
    let release =
        server.cli(&["release", "agent:support", "--halt", order, "--reason", "it is over"]);
    assert!(release.status.success(), "{release:?}");
    let table = String::from_utf8(server.cli(&["limit", "list"]).stdout).unwrap();
    assert_eq!(table.trim(), "no limits in force");
    let two = agent.subject("two");
    wait_for("the release at the guard", || {
        (agent.guard.status().orders_in_force < 2).then_some(())
    });
    wait_for("the limit's end", || {
        let task = agent.subject(&uuid::Uuid::now_v7().to_string());
        (0..4).all(|_| agent.round(&task).is_ok()).then_some(())
    });
    (0..10).for_each(|_| agent.round(&two).unwrap());
    let wrong = server.cli(&["limit", "agent:support", "--reason", "no bound"]);
    assert!(!wrong.status.success());
    let (status, answer) = server.admin(
        "POST",
        "/v1/limits",
        &json!({"scope": "agent:support", "limit": {}, "reason": "no bound"}),
    );
    assert_eq!(status, 422, "{answer}");
    let viewer = server.token("ann", "viewer", None);
    let body = json!({"scope": "global", "limit": {"steps_max": 1}, "reason": "r"}).to_string();
    assert_eq!(server.send(&viewer, "POST", "/v1/limits", body.as_bytes()).0, 403);
}

/// R2: the processes of a runaway's session are captured at once and killed when a lead agrees, and not before;
/// a responder may decline, and not approve.
#[test]
fn real_a_runaways_processes_are_killed_when_a_lead_agrees() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let Some(mut hosted) = Hosted::start(&server, "s1", &[]) else { return };
    let limit = Limit { errors_in_a_row_max: Some(3), ..Limit::default() };
    let agent = Agent::start(&server, limit);
    let runaway = agent.subject("runaway-123");
    (0..100).find_map(|_| agent.round(&runaway).err()).unwrap();
    let run = wait_for("the capture", || {
        let runs = server.admin("GET", "/v1/runs", &Value::Null).1;
        order_of(&runs, "capture")?;
        Some(runs[0].clone())
    });
    let kill = |run: &Value| {
        run["steps"].as_array().unwrap().iter().find(|it| it["id"] == "kill").cloned().unwrap()
    };
    assert_eq!(kill(&run)["state"], "waiting");
    assert!(kill(&run)["observed"].as_str().unwrap().contains("at least a lead"), "{run}");
    assert!(hosted.acts(), "the halt is the task's alone, and nobody has agreed to a kill");
    let id = run["id"].as_str().unwrap();
    let path = format!("/v1/runs/{id}/steps/kill/approve");
    let agree = json!({"approve": true, "reason": "it still burns CPU"});
    let responder = server.token("rob", "responder", None);
    let by_responder = server.send(&responder, "POST", &path, agree.to_string().as_bytes());
    assert_eq!(by_responder.0, 403, "{by_responder:?}");
    let of_halt = format!("/v1/runs/{id}/steps/halt/approve");
    assert_eq!(server.admin("POST", &of_halt, &agree).0, 409);
    let of_none = format!("/v1/runs/{id}/steps/teapot/approve");
    assert_eq!(server.admin("POST", &of_none, &agree).0, 404);
    let approved = server.cli(&[
        "playbook",
        "approve",
        id,
        "--step",
        "kill",
        "--reason",
        "it still burns CPU",
    ]);
    assert!(approved.status.success(), "{approved:?}");
    wait_for("the kill", || {
        let runs = server.admin("GET", "/v1/runs", &Value::Null).1;
        (kill(&runs[0])["state"] == "done").then_some(())
    });
    wait_for("the end of the session", || hosted.has_ended().then_some(()));
    assert_eq!(server.admin("POST", &path, &agree).0, 409, "it is over");
}

/// R5, end to end: under a limit of steps each minute a guard refuses and says when to try again; under one to what
/// changes nothing it refuses what is not declared so. Neither trips, and the server says who enforces what.
#[test]
fn a_rate_and_read_only_refuse_and_stop_nobody() {
    let server = Server::start();
    let agent = Agent::start(&server, Limit::default());
    let subject = agent.subject("busy");
    let limit = ["limit", "agent:support", "--requests-per-minute", "2", "--reason", "a drill"];
    let rate = server.json(&limit);
    let settled = |order: &Value| {
        let path = format!("/v1/halts/{}", order["id"].as_str().unwrap());
        wait_for("the guard's word", || {
            let status = server.admin("GET", &path, &Value::Null).1;
            (status["settled"] == 1).then_some(status)
        })
    };
    assert_eq!(settled(&rate)["enforcers"][0]["settlement"], Value::Null, "all of it is enforced");
    agent.round(&subject).unwrap();
    let error = agent.round(&subject).unwrap_err();
    let denied = error.denied().unwrap();
    assert_eq!(denied.reason, DeniedReason::TooManyRequests);
    assert!(denied.retry_after_ms.unwrap().get() <= 30_000);
    agent.guard.check(&subject).unwrap();
    let id = rate["id"].as_str().unwrap();
    let release = server.cli(&["release", "agent:support", "--halt", id, "--reason", "over"]);
    assert!(release.status.success(), "{release:?}");

    let read_only =
        server.json(&["limit", "task:busy", "--read-only", "--reason", "look, don't touch"]);
    assert_eq!(read_only["limit"], json!({"read_only": true}));
    settled(&read_only);
    let ask =
        |spec: StepSpec| agent.runtime.block_on(agent.guard.step(&subject, spec, async |_| ()));
    wait_for("the release", || ask(StepSpec::action("model_call")).is_ok().then_some(()));
    ask(StepSpec::tool("search").unwrap().read_only()).unwrap();
    let error = ask(StepSpec::tool("send_mail").unwrap()).unwrap_err();
    assert_eq!(error.denied().unwrap().reason, DeniedReason::ReadOnly);
    let other = agent.subject("other");
    agent.round(&other).unwrap();

    let refused = wait_for("the refusals in the audit log", || {
        let rows = server.sql("SELECT attributes FROM audit_log WHERE decision = 'denied'");
        let reasons: Vec<String> = rows.iter().map(|row| row[0].to_string()).collect();
        (reasons.len() >= 2).then_some(reasons)
    });
    assert!(refused.iter().any(|it| it.contains("too_many_requests")), "{refused:?}");
    let incidents = server.admin("GET", "/v1/incidents", &Value::Null).1;
    assert_eq!(incidents, json!([]), "nobody ran away");
}
