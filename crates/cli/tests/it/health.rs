//! Health and readiness tell the truth: stops work, or all of it does.

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

fn halts(server: &Server, scope: &str) -> Value {
    let body = json!({ "scope": scope, "reason": "r" }).to_string();
    let (status, halt) = server.send(&server.admin, "POST", "/kill-switch", body.as_bytes());
    assert_eq!(status, 202, "{halt}");
    halt
}

#[test]
fn a_ledger_that_does_not_open_is_not_ready_and_stops_work() {
    let server = Server::start();
    server.ready();
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
    server.ready();
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
    server.ready();
}

/// Invariants stop-never-waits and acknowledged-is-kept: a spool that the disk does not sync keeps no
/// server from starting, and no order is said to be kept in it. A device stands for such a disk: it
/// takes writes, and refuses to sync them.
#[test]
fn a_spool_that_cannot_be_synced_is_not_ready_and_stops_work() {
    let server = Server::start();
    server.ready();
    let data = server.data.clone();
    let folder = server.crash_with(|| {
        std::fs::remove_file(data.join("orders.spool")).unwrap();
        std::os::unix::fs::symlink("/dev/null", data.join("orders.spool")).unwrap();
        std::fs::remove_dir_all(data.join("ledger")).unwrap();
        std::fs::write(data.join("ledger"), b"no folder").unwrap();
    });
    let server = Server::at(&data);
    assert_eq!(part(&server, "order spool"), (503, "orders are not kept".to_owned()));
    assert_eq!(health(&server), 200);
    for scope in ["session:a", "session:b"] {
        let halt = halts(&server, scope);
        assert_eq!(halt["durable"], "no", "{halt}");
        let path = format!("/kill-switch?scope={scope}");
        assert_eq!(server.send(&server.admin, "GET", &path, b"").1["stop"], true);
    }
    let (_, status) = server.send(&server.admin, "GET", "/v1/status", b"");
    assert!(status["warnings"].to_string().contains("mend the disk"), "{status}");
    assert!(server.log().contains("mend the disk"), "{}", server.log());

    // With a good ledger it is the ledger that keeps them, and its word counts.
    drop(server);
    std::fs::remove_file(data.join("ledger")).unwrap();
    let server = Server::at(&data);
    let halt = halts(&server, "session:c");
    wait_for("the ledger", || {
        let path = format!("/v1/halts/{}", halt["id"].as_str().unwrap());
        let (_, status) = server.send(&server.admin, "GET", &path, b"");
        assert_ne!(status["durable"], "node", "{status}");
        (status["durable"] == "ledger").then_some(())
    });
    assert_eq!(part(&server, "order spool").1, "orders are not kept");
    drop(folder);
}
