//! Invariant stop-never-waits: what is broken beside the kill switch does not stop a stop.

use serde_json::{Value, json};

use crate::stage::{Server, all_children, wait_for};

/// A ledger that cannot be opened takes no halt along.
#[test]
fn halts_are_taken_while_the_ledger_is_broken() {
    let server = Server::start();
    let (status, _) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "session:before", "reason": "r" }));
    assert_eq!(status, 202);
    let database = server.data.join("ledger/ledger.db");
    wait_for("the ledger", || database.exists().then_some(()));
    let data = server.data.clone();
    let folder = data.parent().unwrap().to_owned();
    let copy = tempfile::tempdir().unwrap();
    drop(server.crash_with(|| {
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(&folder)
            .arg(copy.path().join("f"))
            .status()
            .unwrap();
        assert!(status.success());
    }));
    let data = copy.path().join("f/data");
    // SQLite would recover the file from its log.
    for log in ["ledger/ledger.db-wal", "ledger/ledger.db-shm"] {
        let _ = std::fs::remove_file(data.join(log));
    }
    std::fs::write(data.join("ledger/ledger.db"), b"this is no database").unwrap();
    let server = Server::at(&data);
    assert_eq!(
        server.send(&server.admin, "GET", "/kill-switch?scope=session:before", b"").1["stop"],
        true,
        "the spool has it"
    );
    let (status, halt) = server.send(
        &server.admin,
        "POST",
        "/kill-switch",
        br#"{"scope":"session:now","reason":"r"}"#,
    );
    assert_eq!((status, &halt["durable"]), (202, &json!("node")), "{halt}");
    assert_eq!(
        server.send(&server.admin, "GET", "/kill-switch?scope=session:now", b"").1["stop"],
        true
    );
    let release = br#"{"scope":"session:now","reason":"r"}"#;
    assert_eq!(
        server.send(&server.admin, "POST", "/kill-switch/release", release).0,
        503,
        "a release needs the ledger"
    );
    let (_, status) = server.send(&server.admin, "GET", "/v1/status", b"");
    assert!(status["ledger"].as_str().unwrap().contains("not open"), "{status}");
    assert!(!status["warnings"].as_array().unwrap().is_empty());
}

/// Two servers on one folder would be two histories.
#[test]
fn a_data_folder_has_one_server() {
    let server = Server::start();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["serve", "--no-gateway", "--listen", "127.0.0.1:0", "--data"])
        .arg(&server.data)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("served by another process"));
}

/// A worker that is killed costs one query at most.
#[test]
fn the_sql_worker_comes_back() {
    let server = Server::start();
    assert_eq!(server.events(br#"{"kind":"audit","tool":"a"}"#).0, 200);
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([1])]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid()));
    let workers: Vec<u32> = all_children(server.pid());
    assert!(!workers.is_empty(), "{children:?}");
    for pid in workers {
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    wait_for("another worker", || {
        let body = json!({ "query": "SELECT COUNT(*) FROM audit_log" }).to_string();
        let (status, table) = server.send(&server.admin, "POST", "/v1/sql", body.as_bytes());
        (status == 200).then(|| assert_eq!(table["rows"], json!([[1]])))
    });
    assert_eq!(server.admin("GET", "/kill-switch", &Value::Null).0, 200);
}
