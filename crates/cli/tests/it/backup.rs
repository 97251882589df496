//! Backups: made of a live server, verified, restored; a restored one releases nothing.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use estoppel_link::Refusal;
use estoppel_model::{EntityId, Subject};
use serde_json::json;

use crate::{
    guards::Guards,
    stage::{Server, wait_for},
};

fn estoppel(args: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estoppel"));
    let mut paths = paths.iter();
    for arg in args {
        match *arg {
            "PATH" => command.arg(paths.next().unwrap()),
            arg => command.arg(arg),
        };
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().iter().map(|byte| char::from(*byte)).collect()
}

fn halt(server: &Server, scope: &str) {
    let body = json!({ "scope": scope, "reason": "r" });
    assert_eq!(server.admin("POST", "/kill-switch", &body).0, 202);
}

fn stops(server: &Server, scope: &str) -> bool {
    let path = format!("/kill-switch?scope={scope}");
    server.send(&server.admin, "GET", &path, b"").1["stop"] == true
}

/// Invariant starting-always-does: a halt that was given after the backup is in force again as soon
/// as an enforcer that has it comes back, and until then no enforcer that has it lets go.
#[test]
fn a_restored_backup_releases_nothing() {
    let listen = crate::guards::free_address();
    let variables = [(crate::stage::LISTEN, listen.as_str())];
    let server = Server::start_in("[serve]\nlease_seconds = 2", &variables);
    let guards = Guards::connect(&server, &server.token("bot", "agent", None), 1);
    halt(&server, "session:before");
    assert_eq!(server.events(br#"{"kind":"audit","tool":"a"}"#).0, 200);
    let backup = server.data.with_file_name("backup");
    let made = estoppel(&["backup", "--data", "PATH", "--to", "PATH"], &[&server.data, &backup]);
    assert!(made.status.success(), "{}", said(&made));
    halt(&server, "session:after");
    let subject =
        |session| Subject { session: Some(EntityId::new(session).unwrap()), ..Subject::default() };
    let refused =
        |session| matches!(guards.first().view().check(&subject(session)), Err(Refusal::Halted(_)));
    wait_for("the guard", || (refused("before") && refused("after")).then_some(()));

    let data = server.data.clone();
    let folder = server.crash_with(|| {
        std::fs::rename(&data, data.with_file_name("lost")).unwrap();
        let restored =
            estoppel(&["restore", "--from", "PATH", "--data", "PATH"], &[&backup, &data]);
        assert!(restored.status.success(), "{}", said(&restored));
    });
    assert!(refused("after"), "an absent server releases nothing");
    let server = Server::at_in(&data, &variables);
    assert!(stops(&server, "session:before"), "the backup has it");
    wait_for("the halt that came back", || stops(&server, "session:after").then_some(()));
    assert!(refused("before") && refused("after"));
    wait_for("the guard's lease", || guards.first().view().check(&subject("x")).ok());
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([1])]);
    let verified = server.json(&["ledger", "verify", "--data", data.to_str().unwrap()]);
    assert_eq!(verified["damages_found"], 0, "{verified}");
    guards.end();
    drop(folder);
}

/// Made again and again while halts and events come; each is whole.
#[test]
fn a_backup_of_a_busy_server_is_whole_and_a_changed_one_is_not() {
    let server = Server::start();
    assert_eq!(server.events(br#"{"kind":"audit","tool":"a"}"#).0, 200);
    let folder = server.data.parent().unwrap().to_owned();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0.. {
                if over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                halt(&server, &format!("session:s{count}"));
                server.events(br#"{"kind":"audit","tool":"b"}"#);
            }
        });
        for count in 0..5 {
            let backup = folder.join(format!("backup{count}"));
            let made =
                estoppel(&["backup", "--data", "PATH", "--to", "PATH"], &[&server.data, &backup]);
            let verified = estoppel(&["backup", "verify", "PATH"], &[&backup]);
            if !made.status.success() || !verified.status.success() {
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            assert!(made.status.success(), "{}", said(&made));
            assert!(verified.status.success(), "{}", said(&verified));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let backup = folder.join("backup4");
    for file in ["", "node.key", "BACKUP.json", "ledger/ledger.db", "orders.spool"] {
        let mode = std::fs::metadata(backup.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others can read {file}");
    }
    let again = estoppel(&["backup", "--data", "PATH", "--to", "PATH"], &[&server.data, &backup]);
    assert_eq!(again.status.code(), Some(6), "{}", said(&again));
    let onto = estoppel(&["restore", "--from", "PATH", "--data", "PATH"], &[&backup, &server.data]);
    assert_eq!(onto.status.code(), Some(6), "{}", said(&onto));

    let verify = || estoppel(&["backup", "verify", "PATH"], &[&backup]);
    for file in ["node.key", "ledger/ledger.db", "orders.spool", "tokens.json"] {
        let path = backup.join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let found = verify();
        assert_eq!(found.status.code(), Some(8), "{}", said(&found));
        assert!(said(&found).contains(&format!("{file} has changed")), "{}", said(&found));
        let empty = folder.join("restored");
        let restored =
            estoppel(&["restore", "--from", "PATH", "--data", "PATH"], &[&backup, &empty]);
        assert_eq!(restored.status.code(), Some(8));
        assert!(!empty.exists(), "a damaged backup leaves nothing behind");
        std::fs::write(&path, good).unwrap();
    }
    let list = backup.join("BACKUP.json");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, text.replace("\"node.key\"", "\"../node.key\"")).unwrap();
    assert_eq!(verify().status.code(), Some(8), "a place outside of the folder");
    std::fs::remove_file(&list).unwrap();
    let none = verify();
    assert_eq!(none.status.code(), Some(5), "{}", said(&none));
    assert!(said(&none).contains("no whole backup"));
}
