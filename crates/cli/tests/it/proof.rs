//! Rows K7, K8: what `halt --wait` says and how it ends; what a refused agent is told.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use estoppel_guard::StepSpec;
use estoppel_model::Subject;
use serde_json::{Value, json};

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
