//! A disk that is really full, under a server with a guard and an SQL worker: stops go out and say
//! that they are not kept, all else is refused in plain words, and nothing acknowledged is missing
//! once there is room.

use std::{fs::File, io::Write as _, path::PathBuf, process::Command};

use estoppel_link::Refusal;
use estoppel_model::{EntityId, Subject};
use serde_json::{Value, json};

use crate::{
    guards::Guards,
    stage::{Server, wait_for},
};

/// Most requests that may find room in what is left of a page, or was taken beforehand: the event log
/// takes 64 MiB for each file of its own.
const LEFTOVERS_MAX: usize = 256;
/// Events of a request that shall use up that room.
const BATCH: usize = 1_000;
/// Halts beforehand, of which one is to be refused its release.
const BEFORE: usize = 16;

/// A small disk of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(mib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "estoppel-test"])
            .arg(folder.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "a test disk needs root");
            eprintln!("skipped: nobody but root mounts a disk");
            return None;
        }
        Some(Self(folder))
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Takes all the room there is.
    fn fill(&self) -> Ballast {
        let path = self.0.path().join("full");
        let mut ballast = Ballast { file: File::create(&path).unwrap(), path };
        ballast.top_up();
        ballast
    }
}

/// What keeps a disk full.
struct Ballast {
    file: File,
    path: PathBuf,
}

impl Ballast {
    /// Takes what became free: a server that replaces a file gives a page back.
    fn top_up(&mut self) {
        for bytes in [1 << 20, 1 << 12, 1] {
            let chunk = vec![7; bytes];
            while self.file.write_all(&chunk).is_ok() {}
        }
    }

    fn remove(self) {
        std::fs::remove_file(self.path).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn part(server: &Server, name: &str) -> String {
    let (_, document) = server.send("", "GET", "/readyz", b"");
    let parts = document["parts"].as_array().unwrap();
    let part = parts.iter().find(|part| part["name"] == name).unwrap();
    part["state"].as_str().unwrap().to_owned()
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    server.send(&server.admin, "POST", path, body.to_string().as_bytes())
}

fn halts(server: &Server, scope: &str) -> Value {
    let (status, halt) = post(server, "/kill-switch", &json!({ "scope": scope, "reason": "r" }));
    assert_eq!(status, 202, "{halt}");
    halt
}

fn halt_status(server: &Server, halt: &Value) -> Value {
    let path = format!("/v1/halts/{}", halt["id"].as_str().unwrap());
    server.send(&server.admin, "GET", &path, b"").1
}

fn in_ledger(server: &Server, halt: &Value) {
    wait_for("the ledger", || (halt_status(server, halt)["durable"] == "ledger").then_some(()));
}

fn events_kept(server: &Server) -> Value {
    let query = json!({ "query": "SELECT COUNT(*) FROM audit_log" });
    let (status, table) = post(server, "/v1/sql", &query);
    assert_eq!(status, 200, "{table}");
    table["rows"][0][0].clone()
}

/// Asks until the disk is full to the last byte for this.
fn until_refused(ask: impl FnMut() -> Option<Value>) -> Value {
    let refused = std::iter::repeat_with(ask).take(LEFTOVERS_MAX).flatten().next();
    refused.unwrap_or_else(|| panic!("the disk never was full"))
}

/// Says what is the matter and what to do.
fn is_clear(problem: &Value, words: &str) {
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(words), "{problem}");
    assert!(
        problem["hint"].as_str().is_some_and(|hint| hint.contains("halts are taken")),
        "{problem}"
    );
}

/// Invariants stop-never-waits, starting-always-does, acknowledged-is-kept.
#[test]
fn real_a_full_disk_is_not_ready_and_stops_work() {
    let Some(disk) = Disk::mount(512) else { return };
    let server = Server::at(&disk.data());
    let token = server.token("guard", "agent", None);
    let guards = Guards::connect(&server, &token, 1);
    let goes = |session: &str| {
        let subject = Subject::session(EntityId::new(session).unwrap());
        match guards.first().view().check(&subject) {
            Ok(()) => true,
            Err(Refusal::Halted(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    };
    server.ready();
    let event = br#"{"kind":"audit","tool":"a"}"#;
    let mut acknowledged = 0;
    for _ in 0..10 {
        assert_eq!(server.events(event).0, 200);
        acknowledged += 1;
    }
    assert_eq!(events_kept(&server), acknowledged);
    for number in 0..BEFORE {
        let before = halts(&server, &format!("session:before-{number}"));
        in_ledger(&server, &before);
        assert!(!goes(&format!("before-{number}")) && goes("other"));
    }

    // As somebody keeps it elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let checkpoint = elsewhere.path().join("checkpoint");
    std::fs::copy(disk.data().join("ledger/checkpoint"), &checkpoint).unwrap();

    let mut full = disk.fill();
    assert_eq!(part(&server, "disk"), "less than 256 MiB are free");
    // Halts go out; as soon as not even a line of the spool has room, they say so.
    let mut given = Vec::new();
    until_refused(|| {
        full.top_up();
        let scope = format!("session:full-{}", given.len());
        let halt = halts(&server, &scope);
        given.push((scope, halt.clone()));
        let unkept = halt["durable"] == "no"
            && halt_status(&server, &halt)["durable"] == "no"
            && part(&server, "order spool") == "orders are not kept";
        unkept.then_some(halt)
    });
    for (scope, halt) in &given {
        wait_for("the guard", || (!goes(scope.strip_prefix("session:").unwrap())).then_some(()));
        wait_for("its word", || (halt_status(&server, halt)["refusing"] == 1).then_some(()));
    }
    assert!(goes("other"), "nothing else is stopped");
    assert_eq!(server.send("", "GET", "/healthz", b"").0, 200);

    // A release needs the ledger: what was halted stays so.
    let mut sessions = (0..BEFORE).map(|number| format!("before-{number}"));
    let mut release = Value::Null;
    let mut halted = String::new();
    let refused = until_refused(|| {
        full.top_up();
        halted = sessions.next().unwrap();
        release = json!({ "scope": format!("session:{halted}"), "reason": "r" });
        let (status, answer) = post(&server, "/kill-switch/release", &release);
        assert!(status == 200 || status == 503, "{status}: {answer}");
        (status == 503).then_some(answer)
    });
    is_clear(&refused, "disk full");
    assert!(!goes(&halted));

    // Events are refused, and those that were acknowledged are there. What the log then moves into a
    // segment may leave some room.
    let line = json!({ "kind": "audit", "tool": "a", "params": { "text": "x".repeat(1_000) } });
    let batch = format!("{line}\n").repeat(BATCH);
    let refused = until_refused(|| {
        full.top_up();
        let (status, answer) = server.send(&server.admin, "POST", "/v1/events", batch.as_bytes());
        match status {
            200 => {
                assert_eq!(answer["accepted"], BATCH, "{answer}");
                acknowledged += BATCH;
                None
            }
            503 => Some(answer),
            _ => panic!("{status}: {answer}"),
        }
    });
    is_clear(&refused, "the disk is full");
    assert_eq!(events_kept(&server), acknowledged);

    full.remove();
    for (_, halt) in &given {
        in_ledger(&server, halt);
    }
    wait_for("room for events", || {
        let (status, answer) = server.send(&server.admin, "POST", "/v1/events", event);
        assert!(status == 200 || status == 503, "{status}: {answer}");
        (status == 200).then_some(())
    });
    acknowledged += 1;
    assert_eq!(events_kept(&server), acknowledged);
    assert_eq!(post(&server, "/kill-switch/release", &release).0, 200);
    wait_for("the guard's way", || goes(&halted).then_some(()));
    server.ready();

    guards.end();
    let incidents = |server: &Server| server.admin("GET", "/v1/incidents", &Value::Null).1;
    wait_for("an incident for each halt", || {
        (incidents(&server).as_array().unwrap().len() == given.len() + BEFORE).then_some(())
    });
    let server = server.stop_and_restart();
    assert_eq!(incidents(&server).as_array().unwrap().len(), given.len() + BEFORE);
    for (scope, halt) in &given {
        let (_, state) = server.admin("GET", &format!("/kill-switch?scope={scope}"), &Value::Null);
        assert_eq!(state["halts"][0]["id"], halt["id"], "{state}");
    }
    wait_for("the event log", || {
        let (status, table) =
            post(&server, "/v1/sql", &json!({ "query": "SELECT COUNT(*) FROM audit_log" }));
        (status == 200).then(|| assert_eq!(table["rows"][0][0], acknowledged))
    });
    let data = disk.data();
    let (data, checkpoint) = (data.to_str().unwrap(), checkpoint.to_str().unwrap());
    let verified = server.json(&["ledger", "verify", "--data", data, "--checkpoint", checkpoint]);
    assert_eq!(verified["damages_found"], 0, "{verified}");
    assert!(verified["truncation"]["not_before"]["size"].as_u64() > Some(0), "{verified}");
}
