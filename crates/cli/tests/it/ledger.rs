//! `ledger verify` on copies of a data folder: what is cut off or cut out is named.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

/// Halts a session, and waits until the ledger has the halt.
fn halt(server: &Server, scope: &str) {
    let body = json!({ "scope": scope, "reason": "odd" });
    let (status, halt) = server.admin("POST", "/kill-switch", &body);
    assert_eq!(status, 202, "{halt}");
    let path = format!("/v1/halts/{}", halt["id"].as_str().unwrap());
    wait_for("the ledger", || {
        (server.admin("GET", &path, &Value::Null).1["durable"] == "ledger").then_some(())
    });
}

fn copy(data: &Path, name: &str) -> PathBuf {
    let to = data.with_file_name(name);
    let copied = Command::new("cp").arg("-r").args([data, &to]).status().unwrap();
    assert!(copied.success());
    to
}

/// The exit code, and what is said, without any server.
fn verify(data: &Path, checkpoint: Option<&Path>) -> (Option<i32>, Value, String) {
    let run = |json: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_estoppel"));
        command.args(json).args(["ledger", "verify", "--data"]).arg(data);
        if let Some(checkpoint) = checkpoint {
            command.arg("--checkpoint").arg(checkpoint);
        }
        let output = command.env("ESTOPPEL_URL", "http://127.0.0.1:1").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, document) = run(&["--json"]);
    let (again, said) = run(&[]);
    assert_eq!(code, again, "{document}{said}");
    (code, serde_json::from_str(&document).unwrap(), said)
}

/// Invariant tamper-evident, by the binary: a record that is cut out, an end that is cut off, and an
/// older state of the folder that passes for the newest unless a checkpoint was kept elsewhere.
#[test]
fn a_cut_ledger_is_found_and_the_cut_is_named() {
    let server = Server::start();
    halt(&server, "session:a");
    let data = server.data.clone();
    let (server, older) = server.away_while(|| copy(&data, "older"));
    halt(&server, "session:b");
    let shown = server.cli(&["ledger", "checkpoint", "--data", data.to_str().unwrap()]);
    assert!(shown.status.success());
    let kept = data.with_file_name("kept-elsewhere");
    std::fs::write(&kept, shown.stdout).unwrap();
    let mut whole = PathBuf::new();
    let _folder = server.crash_with(|| whole = copy(&data, "whole"));

    let (code, report, said) = verify(&whole, Some(&kept));
    assert_eq!((code, &report["damages_found"]), (Some(0), &json!(0)), "{said}");
    let covered = report["truncation"]["not_before"]["size"].as_u64().unwrap();
    let records = report["records"].as_u64().unwrap();
    assert!(covered > 2 && covered <= records, "{report}");
    assert!(said.contains(&format!("nothing is missing of the {covered} records")), "{said}");

    // An older state is whole in itself: only what was kept elsewhere shows that something is gone.
    let (code, report, said) = verify(&older, None);
    assert_eq!((code, &report["truncation"]), (Some(0), &json!("cannot_be_seen")), "{said}");
    assert!(said.contains("cannot be seen") && said.contains("--checkpoint"), "{said}");
    let left = report["records"].as_u64().unwrap();
    let (code, report, said) = verify(&older, Some(&kept));
    assert_eq!((code, &report["truncation"]), (Some(8), &json!("contradicted")), "{said}");
    let named = |said: &str, parts: &[String]| {
        let is_named = |line: &str| {
            line.starts_with("DAMAGED: ") && parts.iter().all(|part| line.contains(part.as_str()))
        };
        assert!(said.lines().any(is_named), "{parts:?}: {said}");
    };
    named(&said, &[left.to_string(), covered.to_string()]);
    assert!(said.contains("the given checkpoint does not fit this ledger"), "{said}");

    let cut = |name: &str, which: &str| {
        let folder = copy(&whole, name);
        let database = rusqlite::Connection::open(folder.join("ledger/ledger.db")).unwrap();
        assert!(database.execute(&format!("DELETE FROM record WHERE {which}"), []).unwrap() > 0);
        drop(database);
        let (code, report, said) = verify(&folder, Some(&kept));
        assert_eq!((code, &report["truncation"]), (Some(8), &json!("contradicted")), "{said}");
        assert!(!said.contains("intact") && !said.contains("nothing is missing"), "{said}");
        said
    };
    named(&cut("cut-out", "seq = 2"), &["records 2 to 2 are missing".to_owned()]);
    // The first is 0.
    let last = covered - 1;
    let truncated = format!("the given checkpoint signs {covered} records, {last} are stored");
    named(&cut("cut-off", &format!("seq >= {last}")), &[truncated]);
    // What is no checkpoint at all is a wrong argument, and no damage.
    std::fs::write(&kept, "nothing").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["ledger", "verify", "--data", whole.to_str().unwrap(), "--checkpoint"])
        .arg(&kept)
        .status()
        .unwrap();
    assert_eq!(refused.code(), Some(2));
}
