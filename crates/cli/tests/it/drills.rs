//! Row A1: a canary through guard, gateway and host, and nobody is stopped by it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use estoppel_guard::{Guard, StepSpec};
use estoppel_model::Subject;
use serde_json::{Value, json};

use crate::{
    hosted::Hosted,
    stage::{Server, wait_for},
};

/// A process that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0.id().to_string()]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

/// A gateway of the real binary on this port.
pub(crate) fn gateway(server: &Server, port: u16) -> Running {
    let token = server.token("gateway", "enforcer", None);
    let child = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["gateway", "--listen", &format!("127.0.0.1:{port}"), "--state"])
        .arg(server.data.with_file_name("gateway"))
        .env("ESTOPPEL_URL", &server.url)
        .env("ESTOPPEL_TOKEN", token)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A guard in this process; to be used within a runtime.
pub(crate) async fn guard(server: &Server) -> Guard {
    let token = server.token("agent", "agent", None);
    let guard = Guard::builder().server(&server.url).unwrap().token(token).connect().unwrap();
    tokio::time::timeout(Duration::from_secs(60), guard.ready()).await.unwrap();
    guard
}

/// Waits until so many enforcers have a lease.
pub(crate) fn wait_for_enforcers(server: &Server, count: usize) {
    wait_for("the enforcers", || {
        let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
        let alive = status["enforcers"]
            .as_array()?
            .iter()
            .filter(|it| it["connected"] == true && it["lease_until"].is_string());
        (alive.count() == count).then_some(())
    });
}

/// A1: each enforcer's own check refuses the canary; the time is kept; no session, no incident and
/// no list of halts knows of it.
#[test]
fn a_drill_goes_through_every_enforcer_and_stops_nobody() {
    let server = Server::start();
    let runtime = runtime();
    let guard = runtime.block_on(guard(&server));
    let gateway = gateway(&server, free_port());
    wait_for_enforcers(&server, 2);
    let (done, finish) = tokio::sync::oneshot::channel::<()>();
    let subject = Subject::session("at-work".parse().unwrap());
    let (working, watched) = (guard.clone(), subject.clone());
    let step = runtime.spawn(async move {
        working.step(&watched, StepSpec::tool("fetch").unwrap(), |_| finish).await
    });

    let drill = server.json(&["drill", "kill-switch"]);
    assert_eq!((&drill["outcome"], &drill["expected"]), (&json!("passed"), &json!(2)), "{drill}");
    assert_eq!(drill["confirmed"], 2);
    let enforcers = drill["enforcers"].as_array().unwrap();
    let mut kinds: Vec<&str> = enforcers.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["gateway", "guard"]);
    for enforcer in enforcers {
        assert_eq!(enforcer["canary_refused"], true, "{enforcer}");
        assert!(enforcer["settled_after_us"].as_u64() >= enforcer["refusing_after_us"].as_u64());
    }
    let spread = &drill["settled"];
    assert!(spread["max_us"].as_u64() >= spread["p50_us"].as_u64(), "{spread}");

    assert!(!step.is_finished(), "a drill touches no session");
    guard.check(&subject).unwrap();
    let list = |path: &str| server.admin("GET", path, &Value::Null).1;
    assert_eq!(list("/v1/halts"), json!([]));
    assert_eq!(list("/v1/incidents"), json!([]), "it opens no incident and pages nobody");
    let canary = list(&format!("/v1/halts/{}", drill["order"].as_str().unwrap()));
    assert_eq!(canary["state"], "released", "the drill ends its own canary: {canary}");
    assert_eq!(list("/v1/drills")[0]["id"], drill["id"]);
    let status = list("/v1/status");
    assert_eq!(status["drills"]["last"]["outcome"], "passed");
    assert_eq!(status["on_call"], json!(["admin"]));

    let responder = server.token("rita", "responder", None);
    let viewer = server.token("vera", "viewer", None);
    let start = |token: &str| server.send(token, "POST", "/v1/drills/kill-switch", b"").0;
    assert_eq!((start(&viewer), start(&responder)), (403, 200));

    done.send(()).unwrap();
    runtime.block_on(step).unwrap().unwrap().unwrap();
    drop(gateway);
    let server = server.crash_and_restart();
    let again = server.admin("GET", "/v1/drills", &Value::Null).1;
    assert_eq!(again.as_array().unwrap().len(), 2, "drills outlast the server: {again}");
    let verified = server.json(&["ledger", "verify", "--data", server.data.to_str().unwrap()]);
    assert_eq!(verified["damages_found"], 0, "{verified}");
}

/// A1: who only observes would stop nobody, and a drill says so, of a guard and of a host; the
/// gateway of an observing `run` enforces all the same.
#[test]
fn real_who_only_observes_does_not_pass_a_drill() {
    let server = Server::start();
    let observe = ["--observe"];
    let Some(agent) = Hosted::start(&server, "observed", &observe) else { return };
    let runtime = runtime();
    let guard = runtime.block_on(async {
        let token = server.token("agent", "agent", None);
        let builder = Guard::builder().server(&server.url).unwrap().token(token);
        builder.mode(estoppel_guard::Mode::Observe).connect().unwrap()
    });
    wait_for_enforcers(&server, 3);
    let output = server.cli(&["--json", "drill", "kill-switch"]);
    assert_eq!(output.status.code(), Some(9));
    let drill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&drill["expected"], &drill["confirmed"]), (&json!(3), &json!(1)), "{drill}");
    assert_eq!(drill["outcome"], "failed");
    let mut observing: Vec<&str> = drill["enforcers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["observed_only"] == true)
        .map(|it| it["kind"].as_str().unwrap())
        .collect();
    observing.sort_unstable();
    assert_eq!(observing, ["guard", "host"], "{drill}");
    let reasons = drill["reasons"].as_array().unwrap();
    let said = |it: &&Value| it.as_str().is_some_and(|it| it.contains("observes only"));
    assert_eq!(reasons.iter().filter(said).count(), 2, "{drill}");
    let told = String::from_utf8(server.cli(&["drill", "kill-switch"]).stdout).unwrap();
    assert!(told.matches("observes only").count() >= 2, "{told}");
    assert!(agent.acts(), "a drill touches nobody");
    drop(guard);
}

/// A1: who does not answer is named, and the command, `status` and `doctor` say so.
#[test]
fn a_drill_names_who_does_not_answer() {
    let server = Server::start();
    // A drill is a record, and there is none before the ledger is open.
    server.ready();
    let nobody = server.cli(&["--json", "drill", "kill-switch"]);
    assert_eq!(nobody.status.code(), Some(9), "without enforcers nothing would be stopped");
    let gateway = gateway(&server, free_port());
    wait_for_enforcers(&server, 1);
    gateway.signal("-STOP");
    let output = server.cli(&["--json", "drill", "kill-switch"]);
    assert_eq!(output.status.code(), Some(9));
    let drill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&drill["outcome"], &drill["confirmed"]), (&json!("failed"), &json!(0)), "{drill}");
    assert!(drill["reasons"][0].as_str().unwrap().contains("did not answer"), "{drill}");
    assert!(drill["enforcers"][0]["lease_until"].is_string(), "{drill}");
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    let warned = status["warnings"].to_string();
    assert!(warned.contains("did not pass") && warned.contains("did not answer"), "{warned}");
    let doctor = server.cli(&["--json", "doctor"]);
    let checks: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|it| it["name"] == "kill switch").unwrap();
    assert_eq!(check["level"], "fault", "{check}");
    assert!(check["found"].as_str().unwrap().contains("may halt: admin"), "{check}");
}

/// A person who halts a session of a canary's name has halted it: the name hides nothing.
#[test]
fn a_name_alone_makes_no_canary() {
    let server = Server::start();
    let name = "session:estoppel-canary-0197f3a0-5b8e-7c11-9c55-0b1f2d3c4e5a";
    let body = json!({ "scope": name, "reason": "a hostile name" });
    assert_eq!(server.admin("POST", "/kill-switch", &body).0, 202);
    let (_, halts) = server.admin("GET", "/v1/halts", &Value::Null);
    assert_eq!(halts.as_array().unwrap().len(), 1);
    let token = json!({ "name": "estoppel:drill", "role": "responder" });
    assert_eq!(server.admin("POST", "/v1/tokens", &token).0, 422);
}

/// A1, K7, F1: a host's agent is not frozen by a drill, and is by a halt; the halt's proof stands in
/// `--wait`, in `GET /v1/halts/{id}`, after a restart too, and in the report.
#[test]
fn real_a_halt_is_proved_at_host_gateway_and_guard() {
    let root = std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t");
    if !root {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "this test needs root");
        eprintln!("skipped: an agent is confined by root alone");
        return;
    }
    let server = Server::start();
    let runtime = runtime();
    let guard = runtime.block_on(guard(&server));
    let mut agent = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["run", "--session", "abc123", "--state"])
        .arg(server.data.with_file_name("run"))
        .args(["--", "bash", "-c", "echo x >/dev/udp/127.0.0.1/3128; echo sent; exec sleep 600"])
        .env("ESTOPPEL_URL", &server.url)
        .env("ESTOPPEL_TOKEN", server.token("host", "enforcer", None))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "sent\n");
    let agent = Running(agent);
    wait_for_enforcers(&server, 3);
    let drill = server.json(&["drill", "kill-switch"]);
    assert_eq!((&drill["outcome"], &drill["expected"]), (&json!("passed"), &json!(3)), "{drill}");

    let halted = server.json(&["halt", "session:abc123", "--reason", "test", "--wait"]);
    let proof = |halted: &Value| {
        assert_eq!((&halted["expected"], &halted["settled"]), (&json!(3), &json!(3)), "{halted}");
        let words = halted["enforcers"].as_array().unwrap();
        for word in words {
            for field in ["refusing_at", "settled_at"] {
                assert!(!word[field].is_null(), "{field}: {word}");
            }
        }
        let host = words.iter().find(|it| it["kind"] == "host").unwrap();
        assert!(host["settlement"]["processes_frozen"].as_u64() >= Some(1), "{host}");
        // By the kernel's count: nothing went out after the cut.
        let last = host["settlement"]["last_byte_at"].as_str().unwrap();
        assert!(last < host["settled_at"].as_str().unwrap(), "{host}");
    };
    proof(&halted);
    assert_eq!(halted["state"], "settled");
    for word in halted["enforcers"].as_array().unwrap() {
        let after = [&word["refusing_after_us"], &word["settled_after_us"]];
        assert!(after.iter().all(|after| after.is_u64()), "{word}");
    }
    guard.check(&Subject::session("abc123".parse().unwrap())).unwrap_err();

    let id = halted["id"].as_str().unwrap();
    let report = wait_for("the proof in the report", || {
        let output = server.cli(&["incident", "report", "IR-2026-001"]);
        let number = server.json(&["incident", "list"])[0]["number"].as_str()?.to_owned();
        let output = if output.status.success() {
            output
        } else {
            server.cli(&["incident", "report", &number])
        };
        let report = String::from_utf8(output.stdout).unwrap();
        (report.matches("| witnesses |").count() >= 2).then_some(report)
    });
    let section = report.split("## Proof of the stop").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    for part in ["Refusing at", "Last byte out", "Lease settles at", "`host`", "`guard`", id] {
        assert!(section.contains(part), "{part} is missing:\n{section}");
    }
    let server = server.crash_and_restart();
    let after = wait_for("the ledger", || {
        let (status, after) = server.admin("GET", &format!("/v1/halts/{id}"), &Value::Null);
        (status == 200 && after["expected"] == 3).then_some(after)
    });
    proof(&after);
    drop(agent);
}
