//! Every halt opens an incident or joins the open one of the same scope, whoever gave it.

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

fn halt(server: &Server, scope: &str) -> Value {
    let body = json!({ "scope": scope, "reason": "odd" });
    let (status, halt) = server.admin("POST", "/kill-switch", &body);
    assert_eq!(status, 202, "{halt}");
    halt
}

/// The incident, once it is as it should be.
fn incident(server: &Server, id: &Value, is_whole: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/incidents/{}", id.as_str().unwrap());
    wait_for("the halts in their incident", || {
        let (status, found) = server.admin("GET", &path, &Value::Null);
        (status == 200 && is_whole(&found)).then_some(found)
    })
}

fn len(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

/// Whether these halts are in an incident, and no other; blocks may be.
fn holds(incident: &Value, halts: &[&Value]) -> bool {
    let mut found = incident["halts"].as_array().unwrap().clone();
    found.retain(|entry| entry["what"] == "halt");
    let is_there = |halt: &&Value| found.iter().any(|entry| entry["order"] == halt["id"]);
    found.len() == halts.len() && halts.iter().all(is_there)
}

fn count(server: &Server) -> usize {
    len(&server.json(&["incident", "list"]))
}

/// Rows K8, P4: also when the second comes before any disk has the first, and after a restart; what
/// is closed is over.
#[test]
fn a_second_halt_joins_the_open_incident() {
    let server = Server::start();
    let (first, second) = (halt(&server, "session:a"), halt(&server, "session:a"));
    assert_eq!(first["incident"], second["incident"]);
    let other = halt(&server, "session:b");
    assert_ne!(first["incident"], other["incident"]);
    let found = incident(&server, &first["incident"], |found| {
        holds(found, &[&first, &second]) && len(&found["joined"]) == 1
    });
    assert_eq!(found["joined"][0]["source"], "halt", "{found}");
    incident(&server, &other["incident"], |found| holds(found, &[&other]));
    assert_eq!(count(&server), 2);

    let server = server.crash_and_restart();
    server.ready();
    let third = halt(&server, "session:a");
    assert_eq!(first["incident"], third["incident"]);
    incident(&server, &first["incident"], |found| holds(found, &[&first, &second, &third]));
    assert_eq!(count(&server), 2);

    server.json(&["incident", "close", found["number"].as_str().unwrap(), "--reason", "over"]);
    let fourth = halt(&server, "session:a");
    assert_ne!(first["incident"], fourth["incident"]);
    incident(&server, &fourth["incident"], |found| holds(found, &[&fourth]));
    assert_eq!(count(&server), 3);
}

/// Rows P1, P4: a detector halts, a person halts the same session: one incident with both.
#[test]
fn a_persons_halt_joins_a_detectors_incident() {
    let server = Server::start_with("[egress]\nresponse = \"auto\"");
    server.json(&["allowlist", "set", "api.example.com"]);
    let event = json!([{ "kind": "network", "session_id": "s1", "source_process": "agent",
        "destination": "evil.example", "port": 443, "verdict": "allowed" }]);
    assert_eq!(server.events(event.to_string().as_bytes()).0, 200);
    let detected = wait_for("the detector's halt", || {
        let (_, state) = server.admin("GET", "/kill-switch?scope=session:s1", &Value::Null);
        let halt = state["halts"].get(0)?;
        assert_eq!(halt["activated_by"], "estoppel:responder", "{state}");
        Some(halt.clone())
    });
    let given = halt(&server, "session:s1");
    let by = |list: &Value, who: &str| {
        let is_theirs = |entry: &&Value| entry["by"] == who;
        list.as_array().unwrap().iter().filter(is_theirs).count()
    };
    let found = incident(&server, &given["incident"], |found| {
        holds(found, &[&detected, &given]) && by(&found["joined"], "admin") == 1
    });
    assert_eq!(found["opened"]["source"], "detection", "{found}");
    assert_eq!(by(&found["halts"], "admin"), 1, "{found}");
    assert!(by(&found["halts"], "estoppel:responder") >= 1, "its block may be there, too: {found}");
    assert_eq!(count(&server), 1);
}
