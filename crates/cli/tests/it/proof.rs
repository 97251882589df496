//! Rows K7, K8: what `halt --wait` says and how it ends; what a refused agent is told.

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use estoppel_guard::StepSpec;
use estoppel_killswitch::frame::EnforcerKind;
use estoppel_link::{Link, LinkConfig};
use estoppel_model::{Secret, Subject, SystemClock};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    drills::{free_port, gateway, guard, runtime, wait_for_enforcers},
    stage::{Server, wait_for},
};

fn session(name: &str) -> Subject {
    Subject::session(name.parse().unwrap())
}

/// K7: settled by confirmation, by lease, or but for what cannot be interrupted: each ends with a
/// code of its own.
#[test]
fn a_wait_ends_by_what_became_of_the_halt() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let runtime = runtime();
    let guard = runtime.block_on(guard(&server));
    wait_for_enforcers(&server, 1);
    let settled = server.cli(&["halt", "session:a", "--reason", "r", "--wait"]);
    assert_eq!(settled.status.code(), Some(0));
    let told = String::from_utf8(settled.stdout).unwrap();
    assert!(told.contains("settled: all 1 confirmed, the slowest after"), "{told}");
    let progress = String::from_utf8(settled.stderr).unwrap();
    assert!(
        progress.contains("1 settled, 0 by lease"),
        "plain lines without a terminal: {progress}"
    );
    assert!(!progress.contains('\u{1b}'), "{progress}");

    // Blocking work goes on, whatever is ordered.
    let (release, hold) = std::sync::mpsc::sync_channel::<()>(0);
    let (begun, begins) = std::sync::mpsc::sync_channel::<()>(0);
    let blocking = guard.clone();
    let step = runtime.spawn(async move {
        let subject = session("stuck");
        let work = move |_| {
            begun.send(()).unwrap();
            let _ = hold.recv();
        };
        blocking.step_blocking(&subject, StepSpec::tool("shell").unwrap(), work).await
    });
    begins.recv().unwrap();
    let stuck = server.cli(&["halt", "session:stuck", "--reason", "r", "--wait"]);
    assert_eq!(stuck.status.code(), Some(11));
    let told = String::from_utf8(stuck.stdout).unwrap();
    assert!(told.contains("not interruptible at") && told.contains("tool shell"), "{told}");
    drop(release);
    assert!(runtime.block_on(step).unwrap().is_err());

    // One that is paused cannot confirm: its lease stops it.
    let gateway = gateway(&server, free_port());
    wait_for_enforcers(&server, 2);
    gateway.signal("-STOP");
    let silent = server.cli(&["--json", "halt", "session:b", "--reason", "r", "--wait"]);
    assert_eq!(silent.status.code(), Some(10), "{}", String::from_utf8_lossy(&silent.stdout));
    let status: Value = serde_json::from_slice(&silent.stdout).unwrap();
    assert_eq!((&status["settled"], &status["by_lease"]), (&json!(1), &json!(1)), "{status}");
    let words = status["enforcers"].as_array().unwrap();
    let word = words.iter().find(|it| it["kind"] == "gateway").unwrap();
    assert_eq!(word["by_lease"], true, "{word}");
    assert!(word["lease_until"].is_string(), "{word}");
    let number = server.json(&["incident", "list"]);
    let number = number
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["title"].as_str().unwrap().contains("session:b"));
    let number = number.unwrap()["number"].as_str().unwrap().to_owned();
    let report = wait_for("the silent one in the report", || {
        let output = server.cli(&["incident", "report", &number]);
        let report = String::from_utf8(output.stdout).unwrap();
        report.contains("**silent**").then_some(report)
    });
    assert!(report.contains("## Proof of the stop"), "{report}");
}

/// Ctrl-C ends the wait and not the halt, and says so.
#[test]
fn breaking_off_the_wait_leaves_the_halt_in_force() {
    let server = Server::start_with("[serve]\nlease_seconds = 120");
    let gateway = gateway(&server, free_port());
    wait_for_enforcers(&server, 1);
    gateway.signal("-STOP");
    let waiting = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["halt", "session:a", "--reason", "r", "--wait", "--timeout", "100"])
        .env("ESTOPPEL_URL", &server.url)
        .env("ESTOPPEL_TOKEN", &server.admin)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let state = || server.admin("GET", "/kill-switch?scope=session:a", &Value::Null).1;
    wait_for("the halt", || (state()["active"] == true).then_some(()));
    // Its handler is there once it waits; until then the signal ends it as any program.
    std::thread::sleep(Duration::from_millis(500));
    let pid = waiting.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = waiting.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("the halt stays in force"), "{told}");
    assert_eq!(state()["active"], true);
}

/// K4, K8: a refused step and a refused request say who, why, since when, which incident, and whom
/// to call; the agent's user still sees the one sentence.
#[test]
fn a_refusal_says_whom_to_call() {
    let server = Server::start_with("[serve]\ncontact = \"security on call, +49 30 1234\"");
    let runtime = runtime();
    let guard = runtime.block_on(guard(&server));
    let port = free_port();
    let _gateway = gateway(&server, port);
    wait_for_enforcers(&server, 2);
    let halted =
        server.json(&["halt", "session:a", "--reason", "suspected prompt injection", "--wait"]);

    let denied = guard.check(&session("a")).unwrap_err();
    assert_eq!(denied.to_string(), "Your agent session has been suspended.");
    let said = format!("{denied:#}");
    let incident = halted["incident"].as_str().unwrap();
    for part in ["Halted by admin since 2", "suspected prompt injection", incident, "+49 30 1234"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let subject = json!({ "subject": { "session": "a" } });
    let (_, minted) = server.admin("POST", "/v1/gateway/credentials", &subject);
    let proxy =
        format!("http://estoppel:{}@127.0.0.1:{port}", minted["credential"].as_str().unwrap());
    let output = Command::new("curl")
        .args(["-s", "--noproxy", "", "-x", &proxy, "http://service.example/"])
        .output()
        .unwrap();
    let problem: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&problem["status"], &problem["contact"]),
        (&json!(403), &json!("security on call, +49 30 1234")),
        "{problem}"
    );
    assert_eq!(problem["order"]["issued_by"], "admin", "{problem}");
    assert_eq!(problem["order"]["incident"], incident);
    assert_eq!(problem["order"]["reason"], "suspected prompt injection");
    assert!(problem["order"]["issued_at"].is_string() && problem["order"]["scope"] == "session:a");
}

/// An enforcer that refuses and never settles, until it is told to go.
fn unsettling(runtime: &tokio::runtime::Runtime, server: &Server) -> CancellationToken {
    let servers = vec![server.url.parse().unwrap()];
    let token = Secret::new(server.token("agent", "agent", None));
    let config = LinkConfig::new(servers, token, EnforcerKind::Guard, "guard that dies");
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let _runtime = runtime.enter();
    let (link, mut events) =
        Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap();
    runtime.block_on(link.ready());
    runtime.spawn(async move { while events.recv().await.is_some() {} });
    stop
}

fn status_of(server: &Server, halt: &Value) -> Value {
    server.admin("GET", &format!("/v1/halts/{}", halt["id"].as_str().unwrap()), &Value::Null).1
}

/// K7: an enforcer that refused and died before it settled keeps nobody waiting for ever: the wait
/// ends with a code of its own, and wait and report say what is known of it.
#[test]
fn who_dies_before_it_settles_is_named() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let runtime = runtime();
    let dies = unsettling(&runtime, &server);
    wait_for_enforcers(&server, 1);
    let waited = std::thread::scope(|scope| {
        let wait = || server.cli(&["halt", "session:a", "--reason", "r", "--wait"]);
        let wait = scope.spawn(wait);
        wait_for("its word", || {
            let (_, halts) = server.admin("GET", "/v1/halts", &Value::Null);
            (status_of(&server, halts.get(0)?)["refusing"] == 1).then_some(())
        });
        dies.cancel();
        wait.join().unwrap()
    });
    let told = String::from_utf8(waited.stdout).unwrap();
    assert_eq!(waited.status.code(), Some(13), "{told}");
    assert!(told.contains("1 of 1 refuse, 0 settled, 0 by lease, 1 gone"), "{told}");
    assert!(told.contains("gone: not settled, lease over at 2"), "{told}");
    assert!(told.contains("what became of their work in flight is not known"), "{told}");

    let (_, halts) = server.admin("GET", "/v1/halts", &Value::Null);
    let status = status_of(&server, &halts[0]);
    assert_eq!((&status["state"], &status["gone"]), (&json!("unsettled"), &json!(1)), "{status}");
    let word = &status["enforcers"][0];
    assert!(word["gone"] == true && word["refusing_at"].is_string(), "{word}");
    assert!(word["lease_until"].is_string() && word["settled_at"].is_null(), "{word}");
    let number = wait_for("the incident to be contained", || {
        let incident = server.json(&["incident", "list"])[0].clone();
        (incident["state"] == "contained").then(|| incident["number"].as_str().unwrap().to_owned())
    });
    let report = String::from_utf8(server.cli(&["incident", "report", &number]).stdout).unwrap();
    assert!(report.contains("**gone**"), "{report}");
    assert!(report.contains("were gone before they settled"), "{report}");
}

/// K7: an enforcer that stays and does not settle: the wait ends with a code of its own, and the halt
/// does not.
#[test]
fn a_wait_that_is_over_says_who_has_not_settled() {
    // A lease that no slow machine outlasts.
    let server = Server::start_with("[serve]\nlease_seconds = 120");
    let runtime = runtime();
    let stays = unsettling(&runtime, &server);
    wait_for_enforcers(&server, 1);
    let waited = server.cli(&["halt", "session:a", "--reason", "r", "--wait", "--timeout", "1"]);
    let told = String::from_utf8(waited.stdout).unwrap();
    assert_eq!(waited.status.code(), Some(7), "{told}");
    assert!(told.contains("NOT SETTLED: 1 of 1 enforcers have not settled"), "{told}");
    let waited =
        server.cli(&["--json", "halt", "session:b", "--reason", "r", "--wait", "--timeout", "0"]);
    assert_eq!(waited.status.code(), Some(7));
    let status: Value = serde_json::from_slice(&waited.stdout).unwrap();
    assert_eq!((&status["expected"], &status["settled"]), (&json!(1), &json!(0)), "{status}");
    let (_, halts) = server.admin("GET", "/v1/halts", &Value::Null);
    assert_eq!(halts.as_array().unwrap().len(), 2, "both stay in force: {halts}");
    stays.cancel();
}

/// K7: a server that was started again does not know to whom the one before it gave leases. It says
/// so, and calls no halt confirmed by all before the last of them is over. Of a halt of before it
/// tells the enforcers' own moments, and no difference of two machines' clocks.
#[test]
fn after_a_restart_others_may_act_for_a_lease() {
    let server = Server::start_with("[serve]\nlease_seconds = 5");
    let runtime = runtime();
    let guard = runtime.block_on(guard(&server));
    wait_for_enforcers(&server, 1);
    let before = server.json(&["halt", "session:a", "--reason", "r", "--wait"]);
    let word = &before["enforcers"][0];
    assert!(before["unknown_until"].is_null() && word["settled_after_us"].is_u64(), "{before}");
    wait_for("its record", || {
        let incident = server.json(&["incident", "list"])[0].clone();
        (incident["state"] == "contained").then_some(())
    });

    let (server, ()) = server.away_while(|| ());
    wait_for_enforcers(&server, 1);
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert!(status["enforcers_unknown_until"].is_string(), "{status}");
    let output = server.cli(&["halt", "session:b", "--reason", "r", "--wait"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}{progress}");
    let meanwhile = "1 of 1 refuse, 1 settled, 0 by lease; until 2";
    assert!(progress.contains(meanwhile) && progress.contains("may be unknown"), "{progress}");
    assert!(told.contains("settled: all 1 confirmed"), "{told}");
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert!(status["enforcers_unknown_until"].is_null(), "{status}");

    let status = wait_for("the ledger", || {
        let status = status_of(&server, &before);
        status["enforcers"][0]["settled_at"].is_string().then_some(status)
    });
    assert_eq!(status["state"], "settled", "{status}");
    let word = &status["enforcers"][0];
    assert!(word["refusing_after_us"].is_null() && word["settled_after_us"].is_null(), "{word}");
    drop(guard);
}
