//! Row K5, tokens: personal and machine, their end, their last use, and the way back in.

use std::{process::Command, time::Instant};

use estoppel_link::Refusal;
use estoppel_model::{EntityId, Subject};
use serde_json::{Value, json};

use crate::{
    guards::Guards,
    stage::{Server, ledger_holds, wait_for},
};

fn summary(server: &Server, id: &Value) -> Value {
    let (_, list) = server.admin("GET", "/v1/tokens", &Value::Null);
    list.as_array().unwrap().iter().find(|token| token["id"] == *id).unwrap().clone()
}

/// Its stream is closed within a second, and it refuses when its lease is over: it fails closed.
#[test]
fn an_enforcer_whose_token_is_revoked_is_cut_off_and_refuses() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let body = json!({ "name": "bot", "role": "agent", "lifetime_seconds": 3600 });
    let (status, minted) = server.admin("POST", "/v1/tokens", &body);
    assert_eq!(status, 201, "{minted}");
    let guards = Guards::connect(&server, minted["token"].as_str().unwrap(), 1);
    let guard = guards.first();
    let subject = Subject { session: Some(EntityId::new("s").unwrap()), ..Subject::default() };
    assert!(guard.view().check(&subject).is_ok());

    let revoked = Instant::now();
    let path = format!("/v1/tokens/{}", minted["id"].as_str().unwrap());
    assert_eq!(server.admin("DELETE", &path, &Value::Null).0, 204);
    let connected = || {
        let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
        let enforcers = status["enforcers"].as_array().unwrap().clone();
        enforcers.iter().any(|enforcer| enforcer["connected"] == true)
    };
    wait_for("the end of the stream", || (!connected()).then_some(()));
    assert!(revoked.elapsed().as_secs_f64() < 1.0, "{:?}", revoked.elapsed());
    wait_for("the end of the lease", || {
        matches!(guard.view().check(&subject), Err(Refusal::LeaseLost)).then_some(())
    });
    // At most a lease, and the machine's slowness.
    assert!(revoked.elapsed().as_secs() < 10, "{:?}", revoked.elapsed());
    assert!(guard.status().problem.unwrap().contains("token"), "it says why");
    guards.end();
}

/// Kinds, ends and last use, over HTTP and on the command line.
#[test]
fn tokens_have_a_kind_an_end_and_a_last_use() {
    let server = Server::start();
    let person = server.json(&["token", "create", "alice", "--role", "responder"]);
    let machine = server.json(&["token", "create", "bot", "--role", "agent", "--expires", "3d"]);
    let forever = server.json(&["token", "mint", "gw", "--role", "enforcer", "--expires", "never"]);
    let (alice, bot, gw) = (
        summary(&server, &person["id"]),
        summary(&server, &machine["id"]),
        summary(&server, &forever["id"]),
    );
    assert_eq!((&alice["kind"], &bot["kind"]), (&json!("personal"), &json!("machine")));
    assert!(alice["expires_at"].is_string() && bot["expires_at"].is_string());
    assert_eq!((&gw["expires_at"], &alice["last_used_at"]), (&Value::Null, &Value::Null));
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("the token of bot (agent) ends at"), "{warnings}");
    assert!(!warnings.contains("alice"), "{warnings}");

    let token = person["token"].as_str().unwrap();
    assert_eq!(server.send(token, "GET", "/v1/halts", b"").0, 200);
    let used = summary(&server, &person["id"])["last_used_at"].clone();
    assert!(used.as_str().unwrap().contains(":00"), "to the minute: {used}");
    // Kept each minute and at an orderly end.
    let server = server.stop_and_restart();
    assert_eq!(summary(&server, &person["id"])["last_used_at"], used);

    for wrong in ["soon", "-1d", "0d"] {
        let made = server.cli(&["token", "create", "x", "--role", "viewer", "--expires", wrong]);
        assert!(!made.status.success(), "{wrong}");
    }
    let twice =
        json!({ "name": "x", "role": "viewer", "never_expires": true, "lifetime_seconds": 9 });
    let (status, problem) = server.admin("POST", "/v1/tokens", &twice);
    assert_eq!(status, 422, "{problem}");
}

/// The last admin token is gone: whoever owns the data folder makes another, and the ledger says so.
#[test]
fn the_owner_of_the_data_folder_gets_back_in() {
    let server = Server::start();
    let (_, list) = server.admin("GET", "/v1/tokens", &Value::Null);
    let path = format!("/v1/tokens/{}", list[0]["id"].as_str().unwrap());
    assert_eq!(server.send(&server.admin, "DELETE", &path, b"").0, 204);
    assert_eq!(server.send(&server.admin, "GET", "/v1/tokens", b"").0, 401);
    let create = |data: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["token", "create", "owner", "--role", "admin", "--data"])
            .arg(data)
            .output()
            .unwrap()
    };
    let refused = create(&server.data);
    assert_eq!(refused.status.code(), Some(6), "a running server owns its folder");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"));
    let mut made = None;
    let data = server.data.clone();
    let folder = server.crash_with(|| made = Some(create(&data)));
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let server = Server::at(&data);
    assert_eq!(server.send(&token, "GET", "/v1/tokens", b"").0, 200);
    wait_for("the ledger's record", || ledger_holds(&server.data, "local:uid-").then_some(()));
    assert!(ledger_holds(&server.data, "token.revoked"));
    drop(folder);
}
