//! Rows P3, P8, P9, T3, R4, F1: events in, the four queries verbatim out, incidents and reports.

use serde_json::{Value, json};

use crate::stage::{Server, wait_for};

fn event(at: &str, fields: Value) -> Value {
    let mut event = json!({ "kind": "audit", "timestamp": at, "session_id": "abc123" });
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    event
}

/// The investigator's four queries, as the runbook has them, through the command line.
#[test]
fn the_four_queries_run_verbatim() {
    let server = Server::start();
    let network = |at: &str, destination: &str, bytes: u64| json!({ "kind": "network", "timestamp": at, "source_process": "agent", "destination": destination, "bytes_sent": bytes });
    let batch = json!([
        event("2026-02-05T02:59:59.999999Z", json!({ "tool": "before" })),
        event(
            "2026-02-05T03:00:00Z",
            json!({ "tool": "first", "action": "fetch", "params": { "url": "x" }, "result": "ok" })
        ),
        event(
            "2026-02-05T03:30:00Z",
            json!({ "tool": "last", "requester_tenant_id": "a", "accessed_tenant_id": "b" })
        ),
        event(
            "2026-02-05T03:30:00.000001Z",
            json!({ "tool": "after", "requester_tenant_id": "a", "accessed_tenant_id": "a" })
        ),
        event(
            "2026-02-06T00:00:00Z",
            json!({ "task_id": "runaway-123", "tool": "search", "estimated_cost": 0.25 })
        ),
        event(
            "2026-02-06T00:00:01Z",
            json!({ "task_id": "runaway-123", "tool": "search", "estimated_cost": 0.5 })
        ),
        network("2026-02-05T03:00:00.5Z", "evil.example", 4096),
        network("2026-02-05T03:00:01Z", "api.example.com", 10),
    ]);
    assert_eq!(server.events(batch.to_string().as_bytes()).0, 200);
    assert_eq!(
        server.admin("PUT", "/v1/allowlist", &json!({ "domains": ["api.example.com"] })).0,
        200
    );
    let rows = |query: &str| server.json(&["sql", query])["rows"].clone();

    let found = rows(
        "SELECT timestamp, action, tool, params, result FROM audit_log WHERE session_id = 'abc123' AND timestamp BETWEEN '2026-02-05 03:00' AND '2026-02-05 03:30' ORDER BY timestamp;",
    );
    assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
    assert_eq!(found[0][2], "first");
    assert_eq!((&found[0][3], &found[0][4]), (&json!(r#"{"url":"x"}"#), &json!("ok")));
    assert_eq!(found[1][2], "last", "the end is within");

    let found = rows(
        "SELECT timestamp, destination, bytes_sent FROM network_log WHERE source_process = 'agent' AND destination NOT IN (SELECT domain FROM allowlist) AND timestamp > '2026-02-05 03:00';",
    );
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found[0][1], &found[0][2]), (&json!("evil.example"), &json!(4096)));

    let found = rows(
        "SELECT requester_tenant_id, accessed_tenant_id, action, timestamp FROM audit_log WHERE requester_tenant_id != accessed_tenant_id AND timestamp > '2026-02-01';",
    );
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found[0][0], &found[0][1]), (&json!("a"), &json!("b")));

    let found = rows(
        "SELECT tool, COUNT(*), SUM(estimated_cost) FROM audit_log WHERE task_id = 'runaway-123' GROUP BY tool;",
    );
    assert_eq!(found, json!([["search", 2, 0.75]]));
}

/// People's queries read the tables and nothing else.
#[test]
fn a_query_cannot_write_read_files_or_run_away() {
    let server = Server::start();
    let refused = |query: &str| {
        let (status, answer) = server.admin("POST", "/v1/sql", &json!({ "query": query }));
        assert!((400..500).contains(&status), "{query}: {status} {answer}");
    };
    for query in [
        "DELETE FROM audit_log",
        "INSERT INTO audit_log (tool) VALUES ('x')",
        "DROP TABLE audit_log",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "COPY audit_log TO '/tmp/out.csv'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT 1; SELECT 2",
        "SET datafusion.execution.batch_size = 1",
        "",
        "SELECT * FROM generate_series(1, 100000)",
    ] {
        refused(query);
    }
    assert_eq!(
        server.sql("SELECT COUNT(*) FROM audit_log"),
        [json!([0])],
        "it answers the next one"
    );
}

/// A token of a tenant sees that tenant's rows alone.
#[test]
fn a_tenants_token_sees_its_own_rows() {
    let server = Server::start();
    let batch = json!([
        { "kind": "audit", "requester_tenant_id": "acme", "tool": "a" },
        { "kind": "audit", "requester_tenant_id": "other", "tool": "b" },
    ]);
    server.events(batch.to_string().as_bytes());
    let acme = server.token("ann", "viewer", Some("acme"));
    let body = json!({ "query": "SELECT tool FROM audit_log" }).to_string();
    let (status, table) = server.send(&acme, "POST", "/v1/sql", body.as_bytes());
    assert_eq!((status, &table["rows"]), (200, &json!([["a"]])));
}

/// Row P3: a person's report opens an incident; the rest of its life on the command line.
#[test]
fn a_report_opens_an_incident_that_can_be_worked_on() {
    let server = Server::start();
    wait_for("the ledger", || {
        (server.admin("GET", "/v1/incidents", &Value::Null).0 == 200).then_some(())
    });
    let opened = server.json(&[
        "report",
        "it showed me another customer's invoice",
        "--kind",
        "tenant_leak",
        "--session",
        "abc123",
    ]);
    let number = opened["number"].as_str().unwrap();
    assert!(number.starts_with("IR-20") && number.ends_with("-001"), "{number}");
    server.json(&["incident", "note", number, "called the customer | <script>alert(1)</script>"]);
    server.json(&["incident", "assign", number, "alice"]);
    let shown = server.json(&["incident", "show", number]);
    assert_eq!(
        (&shown["state"], &shown["kind"], &shown["assignee"]),
        (&json!("open"), &json!("tenant_leak"), &json!("alice"))
    );
    server.json(&[
        "incident",
        "close",
        number,
        "--reason",
        "explained",
        "--root-cause",
        "a cache key without tenant",
    ]);
    assert_eq!(server.json(&["incident", "list"])[0]["state"], "closed");
    assert_eq!(
        server.cli(&["incident", "close", number, "--reason", "again"]).status.code(),
        Some(6)
    );

    let report = server.cli(&["incident", "report", number]);
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(report.starts_with(&format!("# {number}")), "{report}");
    assert!(report.contains("a cache key without tenant"));
    assert!(!report.contains("<script>alert(1)</script> "), "{report}");
    let wrong = server.cli(&["report", "x", "--kind", "tenant_leek"]);
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("tenant_leak"),
        "the error names what to write"
    );
}

/// Row P1 with no allowlist: egress is learned and stops nobody; with one, unlisted egress asks.
#[test]
fn egress_is_learned_then_asked_about() {
    let server = Server::start();
    let flow = |destination: &str| {
        let event = json!([{ "kind": "network", "session_id": "s1", "source_process": "agent", "destination": destination, "port": 443, "verdict": "allowed" }]);
        assert_eq!(server.events(event.to_string().as_bytes()).0, 200);
    };
    flow("api.example.com");
    wait_for("the suggestion", || {
        let (_, list) = server.admin("GET", "/v1/allowlist/suggest", &Value::Null);
        (list[0]["domain"].as_str()?.starts_with("api.example.com")).then_some(())
    });
    assert_eq!(server.json(&["incident", "list"]), json!([]));
    server.json(&["allowlist", "set", "api.example.com"]);
    flow("api.example.com");
    flow("evil.example");
    let runs = wait_for("the run that asks", || {
        let runs = server.json(&["playbook", "runs"]);
        (runs.as_array()?.len() == 1).then_some(runs)
    });
    assert_eq!(runs[0]["state"], "asking");
    assert_eq!(server.admin("GET", "/kill-switch?scope=session:s1", &Value::Null).1["stop"], false);
    let run = runs[0]["id"].as_str().unwrap();
    server.json(&["playbook", "approve", run, "--reason", "I do not know this destination"]);
    wait_for("the halt", || {
        (server.admin("GET", "/kill-switch?scope=session:s1", &Value::Null).1["stop"] == true)
            .then_some(())
    });
}
