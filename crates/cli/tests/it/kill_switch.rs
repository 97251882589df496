//! Rows K1 (without Redis), K3, K6, K8, K9, K10: the kill switch over HTTP and on the command line.

use std::{io::Write as _, net::TcpStream, process::Command};

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

fn halt(server: &Server, scope: &str) -> String {
    let (status, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": scope, "reason": "test" }));
    assert_eq!(status, 202, "{halt}");
    halt["id"].as_str().unwrap().to_owned()
}

fn state(server: &Server, scope: &str) -> Value {
    server.admin("GET", &format!("/kill-switch?scope={scope}"), &Value::Null).1
}

/// Row K9, to the letter: `curl -d` sends a form's content type.
#[test]
fn the_curl_of_the_runbook_works_literally() {
    let server = Server::start();
    let script = r#"curl -s -w '\n%{http_code}' -X POST http://$HOST/kill-switch -H "Authorization: Bearer $TOKEN" -d '{"scope": "session:abc123", "reason": "suspected prompt injection"}'"#;
    let output = Command::new("sh")
        .args(["-c", script])
        .env("HOST", server.address())
        .env("TOKEN", &server.admin)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    assert_eq!(status, "202", "{text}");
    let answer: Value = serde_json::from_str(body).unwrap();
    assert!(answer["id"].as_str().unwrap().parse::<uuid::Uuid>().is_ok());
    assert_eq!(answer["scope"], "session:abc123");
    let found = state(&server, "session:abc123");
    assert_eq!((&found["active"], &found["stop"]), (&json!(true), &json!(true)));
    assert_eq!(found["reason"], "suspected prompt injection");
    assert_eq!(found["activated_by"], "admin");
    assert_eq!(found["halts"][0]["id"], answer["id"]);
}

/// Rows K1, K3, K6: `active` is for exactly the scope, `stop` includes a global halt.
#[test]
fn active_is_exact_and_stop_includes_global() {
    let server = Server::start();
    let quiet = state(&server, "user:alice");
    assert_eq!(
        (&quiet["active"], &quiet["stop"], &quiet["reason"]),
        (&json!(false), &json!(false), &Value::Null)
    );
    halt(&server, "global");
    let found = state(&server, "user:alice");
    assert_eq!((&found["active"], &found["stop"]), (&json!(false), &json!(true)));
    assert_eq!(server.admin("GET", "/kill-switch", &Value::Null).1["active"], true);
    for scope in [
        "session:s",
        "user:u",
        "task:t",
        "tenant:x",
        "plugin:p@%3E=2.1",
        "agent:a",
        "tool:shell",
        "component:vector_search",
    ] {
        let plain = scope.replace("%3E", ">");
        let id = halt(&server, &plain);
        assert_eq!(state(&server, scope)["halts"][0]["id"], id.as_str(), "{scope}");
    }
}

/// Invariant starting-always-does: a release names what it ends; absence of a name never widens it.
#[test]
fn a_release_ends_what_it_names_and_nothing_else() {
    let server = Server::start();
    let (first, second) = (halt(&server, "session:a"), halt(&server, "session:a"));
    let release = |body: Value| server.admin("POST", "/kill-switch/release", &body);

    let (status, problem) = release(json!({ "scope": "session:a", "reason": "ok" }));
    assert_eq!(status, 409, "{problem}");
    let listed: Vec<_> =
        problem["halts"].as_array().unwrap().iter().map(|halt| halt["id"].clone()).collect();
    assert_eq!(listed, [json!(first), json!(second)]);

    let (status, answer) =
        release(json!({ "scope": "session:a", "reason": "ok", "halts": [first] }));
    assert_eq!((status, &answer["halts"]), (200, &json!([first])), "{answer}");
    assert_eq!(state(&server, "session:a")["stop"], true);
    assert_eq!(
        server.admin("GET", &format!("/v1/halts/{first}"), &Value::Null).1["state"],
        "released"
    );

    let id = uuid::Uuid::now_v7();
    let last = json!({ "scope": "session:a", "reason": "ok", "id": id });
    assert_eq!(release(last.clone()).0, 200, "one alone need not be named");
    assert_eq!(release(last).0, 200, "the same release again is the same release");
    assert_eq!(state(&server, "session:a")["stop"], false);
    assert_eq!(release(json!({ "scope": "session:a", "reason": "ok" })).0, 404);
    assert_eq!(release(json!({ "scope": "session:a", "reason": " " })).0, 422);
}

#[test]
fn the_same_id_is_the_same_halt() {
    let server = Server::start();
    let id = uuid::Uuid::now_v7();
    let body = json!({ "scope": "session:a", "reason": "r", "id": id });
    let (_, first) = server.admin("POST", "/kill-switch", &body);
    let (status, again) = server.admin("POST", "/kill-switch", &body);
    assert_eq!(
        (status, &first["repeated"], &again["repeated"]),
        (202, &json!(false), &json!(true))
    );
    assert_eq!(first["incident"], again["incident"]);
    assert_eq!(state(&server, "session:a")["halts"].as_array().unwrap().len(), 1);
    let other = json!({ "scope": "session:b", "reason": "r", "id": id });
    assert_eq!(server.admin("POST", "/kill-switch", &other).0, 409);
}

/// A client that hangs up has halted all the same.
#[test]
fn a_halt_survives_its_client() {
    let server = Server::start();
    let body = r#"{"scope":"session:gone","reason":"the client hangs up"}"#;
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(
        stream,
        "POST /kill-switch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        server.admin,
        body.len()
    )
    .unwrap();
    drop(stream);
    wait_for("the halt", || (state(&server, "session:gone")["stop"] == true).then_some(()));
    // It runs to its end: the incident is there, too.
    wait_for("its incident", || {
        let (_, list) = server.admin("GET", "/v1/incidents", &Value::Null);
        list.as_array()?
            .iter()
            .any(|incident| incident["title"].as_str().unwrap().contains("session:gone"))
            .then_some(())
    });
}

/// Row K8, invariant acknowledged-is-kept: kill -9 takes nothing back.
#[test]
fn halts_and_their_history_outlast_kill_nine() {
    let server = Server::start();
    let kept = halt(&server, "session:kept");
    let ended = halt(&server, "session:ended");
    let (status, _) = server.admin(
        "POST",
        "/kill-switch/release",
        &json!({ "scope": "session:ended", "reason": "ok", "halts": [ended] }),
    );
    assert_eq!(status, 200);
    let server = server.crash_and_restart();
    let found = state(&server, "session:kept");
    assert_eq!((&found["stop"], &found["halts"][0]["id"]), (&json!(true), &json!(kept)));
    // A release that the spool did not yet have comes from the ledger, which opens after the start.
    wait_for("the release", || (state(&server, "session:ended")["stop"] == false).then_some(()));
    wait_for("the incident", || {
        let (_, list) = server.admin("GET", "/v1/incidents", &Value::Null);
        (list.as_array()?.len() == 2).then_some(())
    });
    let verified = server.json(&["ledger", "verify", "--data", server.data.to_str().unwrap()]);
    assert_eq!(verified["damages_found"], 0, "{verified}");
    assert_eq!(verified["truncation"], "cannot_be_seen");
}

/// Row K10, and the exit codes that scripts rely on.
#[test]
fn kill_task_halts_one_task() {
    let server = Server::start();
    let answer = server.json(&["kill-task", "--task-id", "runaway-123"]);
    assert_eq!(answer["scope"], "task:runaway-123");
    assert_eq!(state(&server, "task:runaway-123")["stop"], true);
    assert_eq!(state(&server, "task:other")["stop"], false);

    let code = |args: &[&str]| server.cli(args).status.code().unwrap();
    assert_eq!(
        code(&["halt", "task:x", "--reason", "r", "--wait"]),
        0,
        "nobody is connected, so all have settled"
    );
    assert_eq!(code(&["halt", "tsk:x", "--reason", "r"]), 2);
    assert_eq!(code(&["release", "task:none", "--reason", "r"]), 5);
    assert_eq!(code(&["incident", "show", "IR-1999-001"]), 5);
    assert_eq!(code(&["--url", "http://127.0.0.1:9", "status"]), 3);
    assert_eq!(code(&["--token", "est_admin_0", "status"]), 4);
    server.json(&["kill-task", "--task-id", "runaway-123"]);
    assert_eq!(code(&["release", "task:runaway-123", "--reason", "r"]), 6);
}

/// Roles: anyone on call may stop; starting is the guarded direction.
#[test]
fn roles_and_tenants_hold() {
    let server = Server::start();
    let viewer = server.token("vera", "viewer", None);
    let responder = server.token("rita", "responder", None);
    let agent = server.token("bot", "agent", None);
    let acme = server.token("ann", "responder", Some("acme"));
    let send = |token: &str, path: &str, body: Value| {
        server.send(token, "POST", path, body.to_string().as_bytes())
    };
    let halt = json!({ "scope": "session:a", "reason": "r" });
    let release = json!({ "scope": "session:a", "reason": "r" });

    for (token, expect) in [(&viewer, 403), (&agent, 403), (&responder, 202)] {
        assert_eq!(send(token, "/kill-switch", halt.clone()).0, expect);
    }
    assert_eq!(send(&responder, "/kill-switch/release", release).0, 403);
    assert_eq!(send(&responder, "/v1/tokens", json!({ "name": "x", "role": "admin" })).0, 403);
    assert_eq!(send(&viewer, "/v1/events", json!([])).0, 403);
    assert_eq!(send("", "/kill-switch", halt.clone()).0, 401);
    let (status, problem) = send("est_admin_wrong", "/kill-switch", halt);
    assert_eq!(status, 401);
    assert!(!problem.to_string().contains("est_admin_wrong"), "an error never repeats a token");

    assert_eq!(send(&acme, "/kill-switch", json!({ "scope": "global", "reason": "r" })).0, 403);
    assert_eq!(
        send(&acme, "/kill-switch", json!({ "scope": "tenant:other", "reason": "r" })).0,
        403
    );
    assert_eq!(
        send(&acme, "/kill-switch", json!({ "scope": "session:theirs", "reason": "r" })).0,
        202
    );
    let events = json!([{ "kind": "audit", "requester_tenant_id": "other" }]);
    let agent_of_acme = server.token("bot-of-acme", "agent", Some("acme"));
    let (status, problem) = send(&agent_of_acme, "/v1/events", events);
    assert_eq!(status, 422);
    assert!(problem["detail"].as_str().unwrap().contains("tenant `acme`"), "{problem}");
}

/// A token that is revoked is nobody's at once.
#[test]
fn a_revoked_token_is_nobodys() {
    let server = Server::start();
    let (_, minted) =
        server.admin("POST", "/v1/tokens", &json!({ "name": "rita", "role": "responder" }));
    let token = minted["token"].as_str().unwrap();
    assert_eq!(server.send(token, "GET", "/v1/halts", b"").0, 200);
    let (status, _) = server.admin(
        "DELETE",
        &format!("/v1/tokens/{}", minted["id"].as_str().unwrap()),
        &Value::Null,
    );
    assert_eq!(status, 204);
    assert_eq!(server.send(token, "GET", "/v1/halts", b"").0, 401);
    let list = server.json(&["token", "list"]);
    assert!(!list.to_string().contains(token));
}

/// `--until`: the server releases by itself, and the record names the halt.
#[test]
fn a_halt_until_a_time_is_released_by_the_server() {
    let server = Server::start();
    let soon = jiff_now_plus(2);
    let (status, halt) = server.admin(
        "POST",
        "/kill-switch",
        &json!({ "scope": "session:a", "reason": "r", "until": soon }),
    );
    assert_eq!(status, 202, "{halt}");
    assert_eq!(state(&server, "session:a")["stop"], true);
    wait_for("the release", || (state(&server, "session:a")["stop"] == false).then_some(()));
    let past = json!({ "scope": "session:a", "reason": "r", "until": "2020-01-01T00:00:00Z" });
    assert_eq!(server.admin("POST", "/kill-switch", &past).0, 422);
}

fn jiff_now_plus(seconds: u64) -> String {
    use estoppel_model::Clock as _;
    (estoppel_model::SystemClock.now() + std::time::Duration::from_secs(seconds)).to_string()
}

/// What the server mints, a gateway takes: the two do not link each other.
#[test]
fn a_minted_credential_is_good_at_a_gateway() {
    use estoppel_model::Clock as _;
    let server = Server::start();
    let (status, policy) = server.admin("GET", "/v1/gateway/policy", &Value::Null);
    assert_eq!(status, 200, "{policy}");
    let subject = json!({ "session": "abc123", "user": "alice" });
    let (status, minted) =
        server.admin("POST", "/v1/gateway/credentials", &json!({ "subject": subject }));
    assert_eq!(status, 201, "{minted}");
    let verifier =
        estoppel_gateway::credential::Verifier::new(policy["key"].as_str().unwrap()).unwrap();
    let credential = minted["credential"].as_str().unwrap();
    let now = estoppel_model::SystemClock.now();
    let found = verifier.verify(credential, now).unwrap();
    assert_eq!(serde_json::to_value(found).unwrap(), subject);
    assert!(verifier.verify(&format!("{credential}x"), now).is_err());
    let later = now + std::time::Duration::from_secs(2 * 86_400);
    assert!(verifier.verify(credential, later).is_err());
    let nobody = server.admin("POST", "/v1/gateway/credentials", &json!({ "subject": {} }));
    assert_eq!(nobody.0, 422);
}
