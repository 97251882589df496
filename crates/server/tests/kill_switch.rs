//! A server in this process, with a clock that the test sets: releases by time, drills by schedule,
//! starts from a snapshot.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and polls"
)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use estoppel_eventlog::WorkerCommand;
use estoppel_model::{Boottime, Clock, SystemClock, Timestamp};
use estoppel_server::{Running, Server, ServerConfig};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// The wall clock, set wrong by some seconds.
#[derive(Debug, Default)]
struct Skewed(AtomicI64);

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        let ahead = self.0.load(Ordering::Relaxed) * 1_000_000;
        Timestamp::from_micros(SystemClock.now().as_micros() + ahead)
    }

    fn boottime(&self) -> Boottime {
        SystemClock.boottime()
    }
}

struct Here {
    runtime: tokio::runtime::Runtime,
    running: Option<Running>,
    token: String,
    clock: Arc<Skewed>,
}

impl Here {
    fn start(data: &Path, configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let clock = Arc::new(Skewed::default());
        // Nothing here asks for SQL, and the worker starts with the first query.
        let worker = WorkerCommand { program: "/bin/false".into(), args: Vec::new() };
        let mut config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            clock: Arc::<Skewed>::clone(&clock),
            ..ServerConfig::new(data.to_owned(), worker)
        };
        configure(&mut config);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let running = runtime.block_on(Server::start(config)).unwrap();
        runtime.block_on(running.recovered());
        let token = std::fs::read_to_string(running.admin_token_file()).unwrap();
        Self { runtime, running: Some(running), token, clock }
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let address = self.running.as_ref().unwrap().address();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.token,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn stops(&self, scope: &str) -> bool {
        self.send("GET", &format!("/kill-switch?scope={scope}"), &Value::Null).1["stop"] == true
    }

    fn stop(mut self) {
        if let Some(running) = self.running.take() {
            self.runtime.block_on(running.stop());
        }
    }
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// K8, invariant starting-always-does: the server's wall clock decides and the ledger comes first. A
/// clock that is set back keeps the halt; without a ledger nothing is released, whatever the clock
/// says.
#[test]
fn a_halt_until_a_time_follows_the_servers_clock_and_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let here = Here::start(&data, |_| {});
    let until =
        |here: &Here, seconds: u64| (here.clock.now() + Duration::from_secs(seconds)).to_string();
    let halt = |here: &Here, scope: &str, until: String| {
        let body = json!({ "scope": scope, "reason": "r", "until": until });
        assert_eq!(here.send("POST", "/kill-switch", &body).0, 202);
    };
    halt(&here, "session:back", until(&here, 2));
    here.clock.0.store(-3_600, Ordering::Relaxed);
    halt(&here, "session:canary-of-time", until(&here, 1));
    wait_for("one that is due by the clock as it is", || !here.stops("session:canary-of-time"));
    assert!(here.stops("session:back"), "set back by an hour, it is not due yet");
    here.clock.0.store(3_600, Ordering::Relaxed);
    wait_for("the release, once the clock has passed it", || !here.stops("session:back"));

    halt(&here, "session:kept", until(&here, 60));
    wait_for("the ledger", || {
        let (_, halts) = here.send("GET", "/v1/incidents", &Value::Null);
        halts.as_array().is_some_and(|all| all.len() == 3)
    });
    here.stop();
    for log in ["ledger.db-wal", "ledger.db-shm"] {
        let _ = std::fs::remove_file(data.join("ledger").join(log));
    }
    std::fs::write(data.join("ledger/ledger.db"), b"this is no database").unwrap();
    let here = Here::start(&data, |_| {});
    here.clock.0.store(10 * 3_600, Ordering::Relaxed);
    // One look of the expiry a second: after several it has tried.
    std::thread::sleep(Duration::from_secs(3));
    assert!(here.stops("session:kept"), "a release needs the ledger");
    here.stop();
}

/// A1: drills take place by schedule, are records, and one that is missed is said to be.
#[test]
fn drills_run_by_schedule_and_outlast_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let here = Here::start(&data, |config| {
        config.lease = Duration::from_millis(200);
        config.drill_every = Some(Duration::from_secs(3_600));
    });
    let drills = |here: &Here| here.send("GET", "/v1/drills", &Value::Null).1;
    wait_for("the first one", || drills(&here)[0]["outcome"] == "failed");
    let first = drills(&here)[0].clone();
    assert_eq!(first["by"], "estoppel:drill");
    assert!(first["reasons"][0].as_str().unwrap().contains("no enforcer"), "{first}");
    let status = |here: &Here| here.send("GET", "/v1/status", &Value::Null).1;
    assert_eq!(status(&here)["drills"]["overdue"], false);
    here.stop();

    // Without a schedule none takes place; a schedule that is not kept is overdue.
    let here = Here::start(&data, |config| {
        config.lease = Duration::from_secs(300);
        config.drill_every = Some(Duration::from_secs(3_600));
    });
    assert_eq!(drills(&here)[0]["id"], first["id"]);
    here.clock.0.store(2 * 3_600, Ordering::Relaxed);
    let told = status(&here);
    assert_eq!(told["drills"]["overdue"], true, "{told}");
    assert!(told["warnings"].to_string().contains("overdue"), "{told}");
    here.stop();
}

/// What people are told of the past: incidents, runs, drills, the allowlist.
fn told(here: &Here) -> Vec<Value> {
    let ask = |path: &str| here.send("GET", path, &Value::Null).1;
    let incidents = ask("/v1/incidents");
    let each = incidents.as_array().unwrap().iter();
    let each = each.map(|one| ask(&format!("/v1/incidents/{}", one["number"].as_str().unwrap())));
    let each: Vec<Value> = each.collect();
    let rest = ["/v1/runs", "/v1/drills", "/v1/allowlist"].map(ask);
    [vec![incidents], each, rest.to_vec()].concat()
}

/// Invariant starting-always-does: whatever became of the snapshot, and of the spool beside it, a
/// start has each halt of the ledger, releases none, and tells the same story.
#[test]
fn a_start_from_a_snapshot_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let here = Here::start(&data, |config| config.lease = Duration::from_millis(200));
    let post = |here: &Here, path: &str, body: Value| {
        let (status, answer) = here.send("POST", path, &body);
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    };
    let scopes = ["session:a", "session:b", "session:over"];
    for scope in scopes {
        post(&here, "/kill-switch", json!({ "scope": scope, "reason": "r" }));
    }
    let is_written = |here: &Here| {
        let incidents = here.send("GET", "/v1/incidents", &Value::Null).1;
        incidents.as_array().is_some_and(|all| {
            let halts = |one: &Value| {
                let path = format!("/v1/incidents/{}", one["number"].as_str().unwrap());
                here.send("GET", &path, &Value::Null).1["halts"].as_array().map_or(0, Vec::len)
            };
            all.len() == scopes.len() && all.iter().all(|one| halts(one) == 1)
        })
    };
    wait_for("the incidents", || is_written(&here));
    let release = json!({ "scope": "session:over", "reason": "r", "watch_seconds": 0 });
    post(&here, "/kill-switch/release", release);
    post(&here, "/v1/drills/kill-switch", json!({}));
    assert_eq!(here.send("PUT", "/v1/allowlist", &json!({ "domains": ["a.example"] })).0, 200);
    let number = here.send("GET", "/v1/incidents", &Value::Null).1[0]["number"].clone();
    let notes = format!("/v1/incidents/{}/notes", number.as_str().unwrap());
    post(&here, &notes, json!({ "text": "seen" }));
    let story = told(&here);
    here.stop();

    let snapshot = data.join("ledger/snapshots/story.snapshot");
    let written = std::fs::read(&snapshot).unwrap();
    let flipped = || {
        let mut bytes = written.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    for (what, content) in [
        ("the snapshot", Some(written.clone())),
        ("no snapshot", None),
        ("a flipped one", Some(flipped())),
        ("an empty one", Some(Vec::new())),
    ] {
        // What only the ledger has must come from it.
        std::fs::remove_file(data.join("orders.spool")).unwrap();
        match &content {
            Some(bytes) => std::fs::write(&snapshot, bytes).unwrap(),
            None => std::fs::remove_file(&snapshot).unwrap(),
        }
        let here = Here::start(&data, |config| config.lease = Duration::from_millis(200));
        for scope in scopes {
            assert_eq!(here.stops(scope), scope != "session:over", "{what}: {scope}");
        }
        assert_eq!(told(&here), story, "{what}");
        let warnings = here.send("GET", "/v1/status", &Value::Null).1["warnings"].to_string();
        let doubtful = content.is_some_and(|bytes| bytes != written);
        assert_eq!(warnings.contains("snapshot is not used"), doubtful, "{what}: {warnings}");
        here.stop();
    }
}
