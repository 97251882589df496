//! The investigators' four queries word for word, and what they rest on.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{Log, audit, network, new_log, options, trial};
use estoppel_eventlog::{AllowedDestination, Options};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("queries::p8_what_the_session_did", p8_what_the_session_did),
        trial("queries::p9_where_bytes_went", p9_where_bytes_went),
        trial("queries::t3_who_saw_another_tenant", t3_who_saw_another_tenant),
        trial("queries::r4_what_the_task_cost", r4_what_the_task_cost),
        trial("queries::the_four_agree_with_a_naive_filter", agree_with_a_naive_filter),
        trial("queries::visible_as_soon_as_acknowledged", visible_as_soon_as_acknowledged),
        trial("queries::values_keep_their_types", values_keep_their_types),
        trial("queries::times_as_people_write_them", times_as_people_write_them),
        trial("queries::a_wrong_name_is_answered_with_the_nearest", wrong_names),
    ]
}

const P8: &str = "SELECT timestamp, action, tool, params, result FROM audit_log WHERE session_id = 'abc123' AND timestamp BETWEEN '2026-02-05 03:00' AND '2026-02-05 03:30' ORDER BY timestamp;";
const P9: &str = "SELECT timestamp, destination, bytes_sent FROM network_log WHERE source_process = 'agent' AND destination NOT IN (SELECT domain FROM allowlist) AND timestamp > '2026-02-05 03:00';";
const T3: &str = "SELECT requester_tenant_id, accessed_tenant_id, action, timestamp FROM audit_log WHERE requester_tenant_id != accessed_tenant_id AND timestamp > '2026-02-01';";
const R4: &str = "SELECT tool, COUNT(*), SUM(estimated_cost) FROM audit_log WHERE task_id = 'runaway-123' GROUP BY tool;";

fn allow(domain: &str) -> AllowedDestination {
    AllowedDestination { domain: domain.to_owned(), port: None, entry: domain.to_owned() }
}

/// Row P8: verbatim, with both ends of the window in it.
async fn p8_what_the_session_did() {
    let (_folder, log) = new_log();
    let step = |at: &str, session: &str, action: &str| {
        audit(
            at,
            json!({
                "session_id": session, "action": action, "tool": "fetch",
                "params": {"url": "https://x.example/"}, "result": "ok",
            }),
        )
    };
    log.append(&[
        step("2026-02-05T03:30:00Z", "abc123", "last"),
        step("2026-02-05T02:59:59.999999Z", "abc123", "before"),
        step("2026-02-05T03:30:00.000001Z", "abc123", "after"),
        step("2026-02-05T03:00:00Z", "abc123", "first"),
        step("2026-02-05T03:15:00Z", "abc124", "another session"),
        step("2026-02-05T04:15:00+01:00", "abc123", "middle"),
    ])
    .await;
    let url = r#"{"url":"https://x.example/"}"#;
    assert_eq!(
        log.rows(P8).await,
        [
            [
                json!("2026-02-05T03:00:00.000000Z"),
                json!("first"),
                json!("fetch"),
                json!(url),
                json!("ok")
            ],
            [
                json!("2026-02-05T03:15:00.000000Z"),
                json!("middle"),
                json!("fetch"),
                json!(url),
                json!("ok")
            ],
            [
                json!("2026-02-05T03:30:00.000000Z"),
                json!("last"),
                json!("fetch"),
                json!(url),
                json!("ok")
            ],
        ]
    );
    log.close().await;
}

/// Row P9: verbatim. What is on the list is left out, the bound itself too, and NULLs are as in SQL.
async fn p9_where_bytes_went() {
    let (_folder, log) = new_log();
    let flow = |at: &str, process: &str, to: Value, bytes: u64| {
        network(at, json!({"source_process": process, "destination": to, "bytes_sent": bytes}))
    };
    log.append(&[
        flow("2026-02-05T03:00:00Z", "agent", json!("evil.example"), 1),
        flow("2026-02-05T03:00:00.000001Z", "agent", json!("evil.example"), 2),
        flow("2026-02-05T04:00:00Z", "agent", json!("good.example"), 3),
        flow("2026-02-05T04:00:00Z", "sshd", json!("evil.example"), 4),
        flow("2026-02-05T04:00:00Z", "agent", Value::Null, 5),
    ])
    .await;
    log.log.set_allowlist(vec![allow("good.example"), allow("fine.example")]);
    let evil = |at: &str, bytes: u64| vec![json!(at), json!("evil.example"), json!(bytes)];
    assert_eq!(log.rows(P9).await, [evil("2026-02-05T03:00:00.000001Z", 2)]);
    // A list that changes counts from the next query on; an empty one lets nothing off.
    log.log.set_allowlist(vec![]);
    assert_eq!(log.rows(P9).await.len(), 3, "with no list a NULL destination is not on it");
    log.close().await;
}

/// Row T3: verbatim. A missing tenant is not another tenant, and the first instant is left out.
async fn t3_who_saw_another_tenant() {
    let (_folder, log) = new_log();
    let access = |at: &str, from: Value, to: Value| {
        audit(at, json!({"requester_tenant_id": from, "accessed_tenant_id": to, "action": "read"}))
    };
    log.append(&[
        access("2026-02-01T00:00:00Z", json!("a"), json!("b")),
        access("2026-02-01T00:00:00.000001Z", json!("a"), json!("b")),
        access("2026-02-02T00:00:00Z", json!("a"), json!("a")),
        access("2026-02-02T00:00:00Z", json!("a"), Value::Null),
        access("2026-02-02T00:00:00Z", Value::Null, json!("b")),
    ])
    .await;
    assert_eq!(
        log.rows(T3).await,
        [[json!("a"), json!("b"), json!("read"), json!("2026-02-01T00:00:00.000001Z")]]
    );
    log.close().await;
}

/// Row R4: verbatim. A step without a cost is counted and adds nothing.
async fn r4_what_the_task_cost() {
    let (_folder, log) = new_log();
    let step = |task: &str, tool: &str, cost: Value| {
        audit(
            "2026-02-05T03:00:00Z",
            json!({"task_id": task, "tool": tool, "estimated_cost": cost}),
        )
    };
    log.append(&[
        step("runaway-123", "search", json!(0.25)),
        step("runaway-123", "search", json!(0.5)),
        step("runaway-123", "search", Value::Null),
        step("runaway-123", "mail", Value::Null),
        step("runaway-124", "search", json!(100)),
    ])
    .await;
    let mut rows = log.rows(R4).await;
    rows.sort_by_key(|row| row[0].to_string());
    assert_eq!(
        rows,
        [[json!("mail"), json!(1), Value::Null], [json!("search"), json!(3), json!(0.75)],]
    );
    log.close().await;
}

/// The four queries over thousands of rows in memory and in sealed files against a filter written
/// by hand.
async fn agree_with_a_naive_filter() {
    let folder = tempfile::tempdir().unwrap();
    let small = Options { segment_bytes: 256 * 1024, seal_bytes: 512 * 1024, ..options() };
    let log = Log::open(folder.path(), small);
    log.log.set_allowlist(vec![allow("d0.example"), allow("d1.example")]);
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut steps, mut flows) = (Vec::new(), Vec::new());
    for n in 0..8000 {
        let minute = random(90);
        let at =
            format!("2026-02-05T{:02}:{:02}:{:02}Z", 2 + minute / 60, minute % 60, random(2) * 30);
        let tenant = |n: u64| if n == 0 { Value::Null } else { json!(format!("t{n}")) };
        if n % 2 == 0 {
            steps.push(audit(&at, json!({
                "session_id": format!("abc12{}", 3 + random(3)),
                "task_id": if random(2) == 0 { "runaway-123" } else { "calm-1" },
                "tool": format!("tool{}", random(4)),
                "action": "call", "params": {"n": n, "text": "x".repeat(random(200) as usize)},
                "requester_tenant_id": tenant(random(3)), "accessed_tenant_id": tenant(random(3)),
                "estimated_cost": random(100),
            })));
        } else {
            flows.push(network(
                &at,
                json!({
                    "source_process": if random(2) == 0 { "agent" } else { "sshd" },
                    "destination": format!("d{}.example", random(4)), "bytes_sent": random(10_000),
                }),
            ));
        }
    }
    for (steps, flows) in steps.chunks(500).zip(flows.chunks(500)) {
        log.append(steps).await;
        log.append(flows).await;
    }
    crate::support::eventually("two sealed segments", || log.log.status().segments >= 2).await;
    assert!(log.log.status().wal_bytes > 0, "part of the rows is not sealed");

    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let window = "2026-02-05T03:00:00Z"..="2026-02-05T03:30:00Z";
    let p8 = steps.iter().filter(|step| {
        step["session_id"] == "abc123" && window.contains(&text(step, "timestamp").as_str())
    });
    let mut p8: Vec<String> = p8.map(|step| step["params"].to_string()).collect();
    p8.sort();
    let rows = log.rows(P8).await;
    assert!(rows.is_sorted_by_key(|row| row[0].as_str().unwrap().to_owned()));
    let mut found: Vec<String> =
        rows.iter().map(|row| row[3].as_str().unwrap().to_owned()).collect();
    found.sort();
    assert!(found == p8 && found.len() > 100, "{} rows against {}", found.len(), p8.len());

    let p9 = flows.iter().filter(|flow| {
        flow["source_process"] == "agent"
            && !["d0.example", "d1.example"].contains(&text(flow, "destination").as_str())
            && text(flow, "timestamp").as_str() > "2026-02-05T03:00:00Z"
    });
    let p9: Vec<u64> = p9.map(|flow| flow["bytes_sent"].as_u64().unwrap()).collect();
    let found: Vec<u64> = log.rows(P9).await.iter().map(|row| row[2].as_u64().unwrap()).collect();
    assert_eq!((found.len(), found.iter().sum::<u64>()), (p9.len(), p9.iter().sum()));

    let t3 = steps.iter().filter(|step| {
        let (from, to) = (&step["requester_tenant_id"], &step["accessed_tenant_id"]);
        !from.is_null() && !to.is_null() && from != to
    });
    assert_eq!(log.rows(T3).await.len(), t3.count());

    for row in log.rows(R4).await {
        let own =
            steps.iter().filter(|step| step["task_id"] == "runaway-123" && step["tool"] == row[0]);
        let costs: Vec<f64> = own.map(|step| step["estimated_cost"].as_f64().unwrap()).collect();
        assert_eq!(row[1], json!(costs.len()));
        assert_eq!(row[2], json!(costs.iter().sum::<f64>()));
    }
    log.close().await;
}

async fn visible_as_soon_as_acknowledged() {
    let (_folder, log) = new_log();
    for count in 1..=50 {
        log.append(&[audit("2026-02-05T03:00:00Z", json!({"action": "a"}))]).await;
        assert_eq!(log.count("audit_log").await, count);
    }
    log.close().await;
}

async fn values_keep_their_types() {
    let (_folder, log) = new_log();
    log.append(&[
        audit(
            "2026-02-05T03:00:00.123456Z",
            json!({
                "params": "plain \"text\" with \u{1b} and ß", "result": [1, {"a": null}],
                "input_tokens": u64::MAX, "output_tokens": 7, "estimated_cost": 0.1,
                "attributes": 1, "detections": null,
            }),
        ),
        network("2026-02-05T03:00:00Z", json!({"verdict": "would_block", "port": 65535, "pid": 1})),
    ])
    .await;
    let table = log
        .sql("SELECT timestamp, params, result, input_tokens, output_tokens, estimated_cost, attributes, detections, received_at, length(event_id) AS id_chars FROM audit_log")
        .await
        .unwrap();
    assert_eq!(
        table.rows,
        [[
            json!("2026-02-05T03:00:00.123456Z"),
            json!("plain \"text\" with \u{1b} and ß"),
            json!(r#"[1,{"a":null}]"#),
            // No counter of tokens comes near: the table's numbers are signed.
            json!(i64::MAX),
            json!(7),
            json!(0.1),
            json!("1"),
            Value::Null,
            json!("2026-03-01T00:00:00.000000Z"),
            json!(36),
        ]]
    );
    let types: Vec<&str> = table.columns.iter().map(|column| column.type_name.as_str()).collect();
    assert_eq!(types[..6], ["timestamp", "text", "text", "bigint", "bigint", "double"]);
    assert_eq!(
        log.rows("SELECT verdict, port, pid, bytes_sent FROM network_log").await,
        [[json!("would_block"), json!(65535), json!(1), Value::Null]]
    );
    let all = log.sql("SELECT * FROM audit_log").await.unwrap();
    let names: Vec<&str> = all.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!((names[0], names[1], names.len()), ("timestamp", "session_id", 25));
    assert_eq!(names[23..], ["received_at", "event_id"]);
    log.close().await;
}

async fn times_as_people_write_them() {
    let (_folder, log) = new_log();
    log.append(&[
        audit("2026-02-05T02:59:59Z", json!({"action": "before"})),
        audit("2026-02-05T03:00:00Z", json!({"action": "at"})),
        audit("2026-02-05T03:00:01Z", json!({"action": "after"})),
    ])
    .await;
    for (condition, expect) in [
        ("timestamp = '2026-02-05 03:00'", vec!["at"]),
        ("timestamp = '2026-02-05T03:00Z'", vec!["at"]),
        ("timestamp = '2026-02-05T03'", vec!["at"]),
        ("timestamp = '2026-02-05 04:00+01:00'", vec!["at"]),
        ("timestamp >= '2026-02-05 03:00'", vec!["after", "at"]),
        ("'2026-02-05 03:00' > timestamp", vec!["before"]),
        ("timestamp > '2026-02-05'", vec!["after", "at", "before"]),
        ("timestamp < '2026-02'", vec![]),
        ("timestamp IN ('2026-02-05 03:00', '2026-02-05 03:01')", vec!["at"]),
        ("timestamp NOT BETWEEN '2026-02-05 03:00' AND '2026-02-05 03:30'", vec!["before"]),
        ("timestamp = TIMESTAMP '2026-02-05 03:00'", vec!["at"]),
        ("timestamp = '2026-02-05 03:00'::timestamp", vec!["at"]),
        ("received_at > '2026-02-28 23:59'", vec!["after", "at", "before"]),
        (
            "action IN (SELECT action FROM audit_log WHERE timestamp = '2026-02-05 03:00')",
            vec!["at"],
        ),
        ("date_trunc('hour', timestamp) = '2026-02-05 02:00'", vec!["before"]),
        (
            "timestamp > TIMESTAMP '2026-02-05 03:00' - INTERVAL '1 hour' AND action = 'at'",
            vec!["at"],
        ),
    ] {
        let rows =
            log.rows(&format!("SELECT action FROM audit_log WHERE {condition} ORDER BY 1")).await;
        let found: Vec<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
        assert_eq!(found, expect, "{condition}");
    }
    // A text that only looks like a time stays a text.
    let rows = log.rows("SELECT '2026-02-05 03:00' AS text").await;
    assert_eq!(rows, [[json!("2026-02-05 03:00")]]);
    let wrong = log.fails("SELECT 1 FROM audit_log WHERE timestamp > 'yesterday'").await;
    assert!(wrong.to_string().contains("yesterday"), "{wrong}");
    log.close().await;
}

async fn wrong_names() {
    let (_folder, log) = new_log();
    for (query, expect) in [
        (
            "SELECT sesion_id FROM audit_log",
            "unknown column `sesion_id`: did you mean `session_id`?",
        ),
        ("SELECT zzzzzzzz FROM allowlist", "there are domain, port, entry"),
        ("SELECT 1 FROM audit_logs", "unknown table `audit_logs`: did you mean `audit_log`?"),
        ("SELECT 1 FROM zzzzzzzz", "there are audit_log, network_log, allowlist"),
        ("SELECT uper(tool) FROM audit_log", "did you mean 'upper'?"),
        ("SELEC 1", "Expected"),
        ("", "statement"),
        ("SELECT 1; SELECT 2", "statement"),
        ("SELECT _seq FROM audit_log", "unknown column `_seq`"),
    ] {
        let error = log.fails(query).await.to_string();
        assert!(error.contains(expect), "{query}: {error}");
        assert!(error.is_ascii() && !error.contains('\n'), "{query}: {error}");
    }
    log.close().await;
}
