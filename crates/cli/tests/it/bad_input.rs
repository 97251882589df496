//! Bad input, each kind with what happens: a clear error, nothing lost, nothing let through.

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

fn detail(answer: &Value) -> &str {
    answer["detail"].as_str().unwrap_or_default()
}

#[test]
fn a_wrong_halt_is_refused_with_what_to_write_instead() {
    let server = Server::start();
    let check = |body: &[u8], status: u16, expect: &str| {
        let (found, answer) = server.send(&server.admin, "POST", "/kill-switch", body);
        assert_eq!(found, status, "{answer}");
        assert!(detail(&answer).contains(expect), "{answer}");
        assert_eq!(answer["status"], status, "RFC 9457");
    };
    check(b"", 400, "the body is empty");
    check(b"{\"scope\":", 400, "EOF");
    check(b"scope=global", 400, "expected value");
    check(br#"{"scope":"sesion:abc","reason":"r"}"#, 400, "did you mean `session:abc`?");
    check(br#"{"scope":"global","reson":"r"}"#, 400, "did you mean `reason`?");
    check(br#"{"scope":"global"}"#, 400, "missing field `reason`");
    check(br#"{"scope":"global","reason":""}"#, 422, "`reason` is empty");
    check(br#"{"scope":"plugin:x@new","reason":"r"}"#, 400, "not a version comparison");
    check(b"{\"scope\":\"session:\xff\",\"reason\":\"r\"}", 400, "not UTF-8");
    check("[".repeat(100_000).as_bytes(), 400, "");
    let long = json!({ "scope": "global", "reason": "x".repeat(2_001) }).to_string();
    check(long.as_bytes(), 422, "at most 2000");
    check(&vec![b' '; 1024 * 1024 + 1], 413, "larger than 1048576 bytes");
    let many: Vec<String> = (0..65).map(|index| format!("user:{index}")).collect();
    check(json!({ "scope": many, "reason": "r" }).to_string().as_bytes(), 400, "1 to 64");
    let (_, state) = server.admin("GET", "/kill-switch", &Value::Null);
    assert_eq!(state["stop"], false, "nothing of it halted anything");
}

/// An escape code in what a stranger wrote never reaches a terminal.
#[test]
fn errors_and_tables_are_inert_in_a_terminal() {
    let server = Server::start();
    let (status, _) = server.admin(
        "POST",
        "/kill-switch",
        &json!({ "scope": "session:a", "reason": "\u{1b}[2J\u{202e}gone" }),
    );
    assert_eq!(status, 202);
    for args in [
        &["status"][..],
        &["incident", "list"],
        &["incident", "show", "IR-2026-001"],
        &["incident", "show", "\u{1b}[2J"],
    ] {
        let output = server.cli(args);
        let printed = [output.stdout, output.stderr].concat();
        assert!(!printed.contains(&0x1b), "{args:?}: {}", String::from_utf8_lossy(&printed));
    }
}

#[test]
fn wrong_events_are_named_and_their_neighbours_kept() {
    let server = Server::start();
    let deep = format!(
        r#"{{"kind":"audit","session_id":"deep","params":{}{}}}"#,
        "[".repeat(70),
        "]".repeat(70)
    );
    let large =
        format!(r#"{{"kind":"audit","session_id":"large","tool":"{}"}}"#, "x".repeat(1024 * 1024));
    let mut body = Vec::new();
    let lines: [&[u8]; 9] = [
        br#"{"kind":"audit","session_id":"good-1","tool":"a"}"#,
        br#"{"kind":"audit","session_id":"broken"#,
        br#"{"kind":"audit","sesion_id":"typo"}"#,
        b"{\"kind\":\"audit\",\"session_id\":\"\xff\"}",
        br#"{"kind":"audit","timestamp":"2999-01-01T00:00:00Z"}"#,
        br#"{"kind":"audit","timestamp":"1970-01-01T00:00:00Z"}"#,
        deep.as_bytes(),
        large.as_bytes(),
        br#"{"kind":"audit","session_id":"good-2","tool":"b"}"#,
    ];
    for line in lines {
        body.extend_from_slice(line);
        body.push(b'\n');
    }
    let (status, report) = server.events(&body);
    assert_eq!(status, 200, "{report}");
    assert_eq!((&report["accepted"], &report["rejected_count"]), (&json!(2), &json!(7)));
    let errors: Vec<(u64, &str)> = report["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejected| (rejected["index"].as_u64().unwrap(), rejected["error"].as_str().unwrap()))
        .collect();
    let expect = [
        "EOF",
        "did you mean `session_id`?",
        "not UTF-8",
        "sender's clock",
        "sender's clock",
        "64 levels",
        "at most 1048576",
    ];
    for ((index, error), (place, expect)) in errors.iter().zip((1..).zip(expect)) {
        assert_eq!(*index, place);
        assert!(error.contains(expect), "{index}: {error}");
    }
    let kept = server.sql("SELECT session_id FROM audit_log ORDER BY tool");
    assert_eq!(kept, [json!(["good-1"]), json!(["good-2"])]);
}

#[test]
fn a_batch_that_is_repeated_is_kept_once() {
    let server = Server::start();
    let id = uuid::Uuid::now_v7();
    let body = json!([{ "kind": "audit", "id": id, "tool": "once" }]).to_string();
    let (_, first) = server.events(body.as_bytes());
    let (status, again) = server.events(body.as_bytes());
    assert_eq!((status, &first["duplicates"], &again["duplicates"]), (200, &json!(0), &json!(1)));
    assert_eq!(again["accepted"], 1);
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([1])]);
    let server = server.crash_and_restart();
    let (_, third) = server.events(body.as_bytes());
    assert_eq!(third["duplicates"], 1, "also after kill -9");
}

#[test]
fn wholly_wrong_batches_are_refused_whole() {
    let server = Server::start();
    let check = |body: &[u8], status: u16, expect: &str| {
        let (found, answer) = server.events(body);
        assert_eq!(found, status, "{answer}");
        assert!(detail(&answer).contains(expect), "{answer}");
    };
    check(b"", 400, "the body is empty");
    check(b"[{\"kind\":\"audit\"}", 400, "no array of events");
    check(b"not json", 422, "none of the 1 events was taken");
    check(&vec![b' '; 16 * 1024 * 1024 + 1], 413, "larger than 16777216 bytes");
    let many = "{\"kind\":\"audit\"}\n".repeat(50_001);
    check(many.as_bytes(), 400, "at most 50000");
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([0])]);
}

#[test]
fn unknown_addresses_and_methods_are_problems_too() {
    let server = Server::start();
    let (status, answer) = server.admin("GET", "/v1/nothing", &Value::Null);
    assert_eq!((status, &answer["type"]), (404, &json!("urn:estoppel:problem:not-found")));
    let (status, answer) = server.admin("DELETE", "/kill-switch", &Value::Null);
    assert_eq!((status, &answer["type"]), (405, &json!("urn:estoppel:problem:method")));
    assert_eq!(server.admin("GET", "/kill-switch?scope=tsk:x", &Value::Null).0, 400);
    assert_eq!(server.admin("GET", "/kill-switch?skope=global", &Value::Null).0, 400);
    assert_eq!(server.admin("GET", "/v1/halts/not-an-id", &Value::Null).0, 400);
    assert_eq!(
        server.admin("GET", &format!("/v1/halts/{}", uuid::Uuid::nil()), &Value::Null).0,
        404
    );
    assert_eq!(server.admin("GET", "/v1/incidents/IR-2026-999", &Value::Null).0, 404);
}

#[test]
fn a_wrong_allowlist_changes_nothing() {
    let server = Server::start();
    assert_eq!(server.admin("GET", "/v1/allowlist", &Value::Null).1["domains"], Value::Null);
    let (status, _) =
        server.admin("PUT", "/v1/allowlist", &json!({ "domains": ["api.example.com"] }));
    assert_eq!(status, 200);
    let (status, answer) =
        server.admin("PUT", "/v1/allowlist", &json!({ "domains": ["ok.example", "http://x/y"] }));
    assert_eq!(status, 422);
    assert!(detail(&answer).contains("http://x/y"), "{answer}");
    let (_, list) = server.admin("GET", "/v1/allowlist", &Value::Null);
    assert_eq!(list["domains"], json!(["api.example.com"]));
    let server = server.crash_and_restart();
    let (_, list) = server.admin("GET", "/v1/allowlist", &Value::Null);
    assert_eq!(list["domains"], json!(["api.example.com"]));
}

/// Nothing needs to be known to be stopped: a session that nobody has seen is halted, said to be
/// unknown, released and written about without an error.
#[test]
fn an_unknown_session_is_halted_told_and_released() {
    let server = Server::start();
    let event = json!([{ "kind": "audit", "session_id": "abc123", "tool": "fetch" }]);
    assert_eq!(server.events(event.to_string().as_bytes()).0, 200);
    let plan = |scope: &str| server.json(&["halt", scope, "--plan"]);
    wait_for("the session to be seen", || {
        (plan("session:abc123")["unknown"] == false).then_some(())
    });
    let unknown = plan("session:abc132");
    assert_eq!(
        (&unknown["unknown"], &unknown["did_you_mean"]),
        (&json!(true), &json!("session:abc123"))
    );

    let told = |args: &[&str]| {
        let output = server.cli(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        // A disk that is slow is told of, too.
        let mut notes = String::from_utf8(output.stderr).unwrap();
        notes = notes.lines().filter(|line| !line.starts_with("warning: ")).collect();
        (String::from_utf8(output.stdout).unwrap(), notes)
    };
    let (answer, note) = told(&["halt", "session:abc132", "--reason", "odd"]);
    assert!(answer.starts_with("halted session:abc132"), "{answer}");
    assert_eq!(
        note,
        "note: neither sessions nor enforcers know this scope: did you mean `session:abc123`?; \
         whoever comes by that name is halted all the same"
    );
    let (_, note) = told(&["kill-task", "--task-id", "nobodys"]);
    assert!(note.contains("know this scope; whoever"), "{note}");
    assert_eq!(told(&["halt", "session:abc123", "--reason", "odd"]).1, "", "it is known");
    let (answer, note) = told(&["--json", "halt", "user:nobody", "--reason", "odd"]);
    assert_eq!((serde_json::from_str::<Value>(&answer).is_ok(), note.as_str()), (true, ""));
    let stops = || server.admin("GET", "/kill-switch?scope=session:abc132", &Value::Null).1;
    assert_eq!(stops()["stop"], true);

    let list = wait_for("the incidents", || {
        let list = server.json(&["incident", "list"]);
        (list.as_array().unwrap().len() == 4).then_some(list)
    });
    let of = |title: &str| {
        let mut all = list.as_array().unwrap().iter();
        all.find(|it| it["title"].as_str().unwrap().contains(title)).unwrap()["number"].clone()
    };
    let number = of("session:abc132");
    let (report, _) = told(&["incident", "report", number.as_str().unwrap()]);
    assert!(report.contains("session:abc132"), "{report}");
    told(&["report", "it did something odd", "--session", "nobody-saw-it"]);

    told(&["release", "session:abc132", "--reason", "a typing error"]);
    assert_eq!(stops()["stop"], false);
    let again = server.cli(&["release", "session:never-halted", "--reason", "r"]);
    assert_eq!(again.status.code(), Some(5), "there is nothing to end");
}
