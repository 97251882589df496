//! Row K8: two persons by policy, releases by time, and the watch afterwards.

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

fn stops(server: &Server, scope: &str) -> bool {
    let (_, state) = server.admin("GET", &format!("/kill-switch?scope={scope}"), &Value::Null);
    state["stop"] == true
}

fn post(server: &Server, token: &str, path: &str, body: &Value) -> (u16, Value) {
    server.send(token, "POST", path, body.to_string().as_bytes())
}

/// K8: what policy names needs two persons; the first one's request ends nothing, outlasts a
/// restart, and is approved by nobody who could be the same person.
#[test]
fn a_release_by_policy_needs_two_persons() {
    let server = Server::start_with("[serve]\ntwo_persons = [\"global\", \"tenant\"]");
    let alice = server.token("alice", "lead", None);
    let alice_too = server.token("Alice", "lead", None);
    let bob = server.token("bob", "lead", None);
    let rita = server.token("rita", "responder", None);
    let halt = |scope: &str| {
        let body = json!({ "scope": scope, "reason": "r" });
        let (status, halt) = server.admin("POST", "/kill-switch", &body);
        assert_eq!(status, 202, "{halt}");
    };
    halt("session:s");
    halt("global");
    let one = json!({ "scope": "session:s", "reason": "narrow" });
    assert_eq!(post(&server, &alice, "/kill-switch/release", &one).0, 200, "one person is enough");

    let release = json!({ "scope": "global", "reason": "all clear" });
    let (status, first) = post(&server, &alice, "/kill-switch/release", &release);
    assert_eq!((status, &first["halts"]), (202, &json!([])), "{first}");
    let id = first["pending"]["id"].as_str().unwrap().to_owned();
    assert!(stops(&server, "global"));
    for same in [&alice, &alice_too] {
        let (status, again) = post(&server, same, "/kill-switch/release", &release);
        assert_eq!((status, again["pending"]["id"].as_str()), (202, Some(id.as_str())), "{again}");
    }

    let server = server.crash_and_restart();
    wait_for("the request, once the ledger is open", || {
        let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
        (status["releases_pending"][0]["id"] == id.as_str()).then_some(())
    });
    let approve = format!("/v1/releases/{id}/approve");
    let reason = json!({ "reason": "checked the logs" });
    let (status, problem) = post(&server, &alice_too, &approve, &reason);
    assert_eq!((status, &problem["type"]), (403, &json!("urn:estoppel:problem:second-person")));
    let mallory = server.token("mallory", "lead", None);
    let (status, problem) = post(&server, &mallory, &approve, &reason);
    assert_eq!(status, 403, "a token that was minted for it is no second person: {problem}");
    assert_eq!(post(&server, &rita, &approve, &reason).0, 403, "a responder may not");
    assert_eq!(post(&server, &bob, &approve, &json!({ "reason": " " })).0, 422);
    let unknown = format!("/v1/releases/{}/approve", uuid::Uuid::now_v7());
    assert_eq!(post(&server, &bob, &unknown, &reason).0, 404);
    assert!(stops(&server, "global"));

    let (status, done) = post(&server, &bob, &approve, &reason);
    assert_eq!((status, done["halts"].as_array().unwrap().len()), (200, 1), "{done}");
    assert!(!stops(&server, "global"));
    assert_eq!(post(&server, &bob, &approve, &reason).0, 409, "what has ended ends once");
    let (_, pending) = server.admin("GET", "/v1/releases", &Value::Null);
    assert_eq!(pending, json!([]));
}

/// K8: the same release by another person is the approval; the command says what is missing.
#[test]
fn the_same_release_by_another_person_approves_it() {
    let server = Server::start_with("[serve]\ntwo_persons = [\"session\"]");
    let alice = server.token("alice", "lead", None);
    let bob = server.token("bob", "lead", None);
    server.json(&["halt", "session:s", "--reason", "r"]);
    let release = |token: &str, more: &[&str]| {
        let args = [&["--token", token, "release", "session:s", "--reason", "ok"], more].concat();
        server.cli(&args)
    };
    let first = release(&alice, &["--watch", "2d"]);
    assert_eq!(first.status.code(), Some(12));
    let told = String::from_utf8(first.stdout).unwrap();
    assert!(told.contains("NOT RELEASED") && told.contains("--approve"), "{told}");
    assert!(stops(&server, "session:s"));
    let listed = String::from_utf8(server.cli(&["status"]).stdout).unwrap();
    assert!(listed.contains("WAITS for a second person"), "{listed}");
    let second = release(&bob, &[]);
    assert_eq!(second.status.code(), Some(0), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(!stops(&server, "session:s"));
    let told = String::from_utf8(second.stdout).unwrap();
    assert!(told.contains("watched closely until"), "the first person's watch holds: {told}");
}

/// What was released is watched closely: unlisted egress alone stops it again, and does not stop
/// who was not released or whose watch was declined.
#[test]
fn what_was_released_is_watched_closely() {
    let server = Server::start();
    server.admin("PUT", "/v1/allowlist", &json!({ "domains": ["good.example"] }));
    for session in ["watched", "trusted"] {
        server.json(&["halt", &format!("session:{session}"), "--reason", "r"]);
    }
    let released = server.json(&["release", "session:watched", "--reason", "ok"]);
    assert_eq!(released["watch"]["scope"], "session:watched", "{released}");
    let declined = server.json(&["release", "session:trusted", "--reason", "ok", "--no-watch"]);
    assert!(declined["watch"].is_null(), "{declined}");
    let leak = |session: &str| {
        let event = json!({
            "kind": "network", "session_id": session, "destination": "evil.example", "port": 443,
            "bytes_sent": 10, "verdict": "would_block"
        });
        let (status, taken) = server.events(event.to_string().as_bytes());
        assert_eq!(status, 200, "{taken}");
    };
    for session in ["trusted", "never-halted", "watched"] {
        leak(session);
    }
    wait_for("the watched session's halt", || stops(&server, "session:watched").then_some(()));
    // Each of the others has a run of the playbook that asks a person.
    wait_for("the questions", || {
        let (_, runs) = server.admin("GET", "/v1/runs", &Value::Null);
        let asking = runs.as_array()?.iter().filter(|run| run["state"] == "asking").count();
        (asking == 2).then_some(())
    });
    for session in ["trusted", "never-halted"] {
        assert!(!stops(&server, &format!("session:{session}")), "{session} is only asked about");
    }
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert_eq!(status["watches"].as_array().unwrap().len(), 1, "{status}");
    let wrong = json!({ "scope": "session:watched", "reason": "r", "watch_seconds": 5 });
    let (status, problem) = server.admin("POST", "/kill-switch/release", &wrong);
    assert_eq!(status, 422, "{problem}");

    let server = server.crash_and_restart();
    let watch = released["watch"]["id"].as_str().unwrap();
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert_eq!(status["watches"][0]["id"], watch, "a watch outlasts a restart");
    server.json(&["release", "session:watched", "--halt", watch, "--reason", "enough"]);
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert_eq!(status["watches"], json!([]), "a watch ends by its name");
}

/// K8: a plan says what a wide halt would hit, and halts nothing.
#[test]
fn a_plan_tells_what_a_halt_would_hit_and_halts_nothing() {
    let server = Server::start();
    for (session, agent, tenant) in
        [("a", "crm", "acme"), ("b", "crm", "acme"), ("c", "x", "other")]
    {
        let event = json!({
            "kind": "audit", "session_id": session, "agent_id": agent,
            "requester_tenant_id": tenant, "action": "step"
        });
        assert_eq!(server.events(event.to_string().as_bytes()).0, 200);
    }
    let plan = |scope: &str| server.json(&["halt", scope, "--plan"]);
    let all = plan("global");
    let counts = |plan: &Value| {
        ["session_count", "agent_count", "tenant_count"].map(|key| plan[key].as_u64().unwrap())
    };
    assert_eq!(counts(&all), [3, 2, 2], "{all}");
    assert_eq!(counts(&plan("tenant:acme")), [2, 1, 1]);
    assert_eq!(plan("session:zzz")["unknown"], true);
    let told = String::from_utf8(server.cli(&["halt", "global", "--plan"]).stdout).unwrap();
    assert!(told.starts_with("PLAN, nothing is halted") && told.contains("3 sessions"), "{told}");
    for scope in ["global", "tenant:acme", "session:zzz"] {
        assert!(!stops(&server, scope), "{scope}");
    }
    assert_eq!(server.cli(&["halt", "global"]).status.code(), Some(2), "a halt needs a reason");
}

/// A release of everything is not watched, unless somebody says so.
#[test]
fn everything_is_watched_only_when_asked() {
    let server = Server::start();
    server.json(&["halt", "global", "--reason", "r"]);
    assert!(server.json(&["release", "global", "--reason", "ok"])["watch"].is_null());
    server.json(&["halt", "global", "--reason", "r"]);
    let asked = server.json(&["release", "global", "--reason", "ok", "--watch", "1h"]);
    assert_eq!(asked["watch"]["scope"], "global", "{asked}");
}

/// `--until`: a server that comes back after the time has passed releases by itself; the halt stays
/// while the server is away.
#[test]
fn a_time_that_passes_while_the_server_is_away_releases_after_it_is_back() {
    use estoppel_model::Clock as _;
    let server = Server::start();
    let until = estoppel_model::SystemClock.now() + std::time::Duration::from_secs(2);
    let body = json!({ "scope": "session:a", "reason": "r", "until": until.to_string() });
    assert_eq!(server.admin("POST", "/kill-switch", &body).0, 202);
    let server = server.crash_and_restart();
    wait_for("the release", || (!stops(&server, "session:a")).then_some(()));
    assert!(estoppel_model::SystemClock.now() >= until, "not before its time");
    let (_, halts) = server.admin("GET", "/v1/incidents", &Value::Null);
    assert_eq!(halts.as_array().unwrap().len(), 1, "{halts}");
}
