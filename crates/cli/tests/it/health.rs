//! Health and readiness tell the truth: stops work, or all of it does.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::stage::{Server, all_children, wait_for};

fn health(server: &Server) -> u16 {
    server.send("", "GET", "/healthz", b"").0
}

/// The status of `/readyz` and the state of a part.
fn part(server: &Server, name: &str) -> (u16, String) {
    let (status, document) = server.send("", "GET", "/readyz", b"");
    let parts = document["parts"].as_array().unwrap();
    let part = parts.iter().find(|part| part["name"] == name).unwrap();
    let all = parts.iter().all(|part| part["ready"] == true);
    assert_eq!((document["ready"] == true, status == 200), (all, all), "{document}");
    let state = part["state"].as_str().unwrap();
    assert_eq!(part["ready"] == true, matches!(state, "ok" | "starts with the first query"));
    (status, state.to_owned())
}

fn ready(server: &Server) {
    wait_for("readiness", || (part(server, "server").0 == 200).then_some(()));
}

fn halts(server: &Server, scope: &str) -> Value {
    let body = json!({ "scope": scope, "reason": "r" }).to_string();
    let (status, halt) = server.send(&server.admin, "POST", "/kill-switch", body.as_bytes());
    assert_eq!(status, 202, "{halt}");
    halt
}

#[test]
fn a_ledger_that_does_not_open_is_not_ready_and_stops_work() {
    let server = Server::start();
    ready(&server);
    let data = server.data.clone();
    let folder = server.crash_with(|| {
        std::fs::remove_dir_all(data.join("ledger")).unwrap();
        std::fs::write(data.join("ledger"), b"no folder").unwrap();
    });
    let server = Server::at(&data);
    let state = wait_for("the end of the recovery", || {
        let (status, state) = part(&server, "ledger");
        assert_eq!(status, 503, "never ready");
        (state != "recovering").then_some(state)
    });
    assert_eq!(state, "not open");
    assert_eq!(health(&server), 200);
    halts(&server, "session:a");
    let text = server.send("", "GET", "/readyz", b"").1.to_string();
    assert!(!text.contains(data.to_str().unwrap()), "nothing of the machine: {text}");
    drop(folder);
}

#[test]
fn an_sql_worker_that_was_killed_is_down_until_it_is_back() {
    let server = Server::start();
    ready(&server);
    assert_eq!(part(&server, "sql worker").1, "starts with the first query");
    assert_eq!(server.events(br#"{"kind":"audit","tool":"a"}"#).0, 200);
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([1])]);
    assert_eq!(part(&server, "sql worker"), (200, "ok".to_owned()));
    for pid in all_children(server.pid()) {
        crate::stage::signal(pid, "KILL");
    }
    wait_for("the truth about the worker", || {
        (part(&server, "sql worker") == (503, "down".to_owned())).then_some(())
    });
    assert_eq!(health(&server), 200);
    // It comes back by itself, for nobody may send a query to a server that is not ready.
    wait_for("another worker", || (part(&server, "sql worker").1 == "ok").then_some(()));
    ready(&server);
}

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

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Invariant stop-never-waits: with the disk full, stops work, say that they are not kept, and are
/// in the ledger once there is room.
#[test]
fn real_a_full_disk_is_not_ready_and_stops_work() {
    let Some(disk) = Disk::mount(320) else { return };
    let server = Server::at(&disk.path().join("data"));
    ready(&server);
    assert_eq!(part(&server, "disk").1, "ok");
    let full = disk.path().join("full");
    let file = std::fs::File::create(&full).unwrap();
    let mut writer = std::io::BufWriter::new(file);
    let chunk = vec![7; 1 << 20];
    while std::io::Write::write_all(&mut writer, &chunk).is_ok() {}
    drop(writer);
    assert_eq!(part(&server, "disk"), (503, "less than 256 MiB are free".to_owned()));
    let halt = halts(&server, "session:full");
    assert_eq!(halt["durable"], "no", "{halt}");
    assert_eq!(part(&server, "order spool").1, "orders are not kept");
    assert_eq!(health(&server), 200);
    let (_, state) = server.send(&server.admin, "GET", "/kill-switch?scope=session:full", b"");
    assert_eq!(state["stop"], true, "{state}");
    assert_eq!(server.send(&server.admin, "POST", "/v1/events", b"{\"kind\":\"audit\"}").0, 503);

    std::fs::remove_file(&full).unwrap();
    wait_for("the ledger", || {
        let path = format!("/v1/halts/{}", halt["id"].as_str().unwrap());
        let (_, status) = server.send(&server.admin, "GET", &path, b"");
        (status["durable"] == "ledger").then_some(())
    });
    halts(&server, "session:room");
    ready(&server);
}
