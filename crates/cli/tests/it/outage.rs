//! Invariant stop-never-waits: what is broken beside the kill switch does not stop a stop.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::stage::{PATIENCE, Server, all_children, break_ledger, wait_for};

/// A ledger that cannot be opened takes no halt along.
#[test]
fn halts_are_taken_while_the_ledger_is_broken() {
    let server = Server::start();
    let (status, _) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "session:before", "reason": "r" }));
    assert_eq!(status, 202);
    server.ready();
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
    break_ledger(&data);
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

/// More enforcers than the process has file descriptors: those who come too late are refused in words,
/// and people still get in.
#[test]
fn enforcers_leave_room_for_people() {
    // Less than what is kept for people: streams get a quarter.
    let server = Server::with_descriptors(256);
    let token = server.token("agent", "agent", None);
    let knock = || {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /v1/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            server.address()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 1_024];
        let read = stream.read(&mut answer).unwrap();
        (String::from_utf8_lossy(&answer[..read]).into_owned(), stream)
    };
    let mut streams = Vec::new();
    let refused = loop {
        let (answer, stream) = knock();
        if !answer.starts_with("HTTP/1.1 101") {
            break answer;
        }
        streams.push(stream);
        assert!(streams.len() <= 64, "nothing is left for people");
    };
    assert_eq!(streams.len(), 64);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("ulimit -n"), "{refused}");
    let halt = br#"{"scope":"session:s","reason":"r"}"#;
    let (status, _) = server.send(&server.admin, "POST", "/kill-switch", halt);
    assert_eq!(status, 202);
    // Who leaves makes room.
    streams.pop();
    wait_for("a free place", || knock().0.starts_with("HTTP/1.1 101").then_some(()));
}
