//! A tenant's own people see their rows, and learn nothing of others'.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{Log, audit, eventually, network, new_log, options, tenant, trial};
use estoppel_eventlog::{Options, SqlError};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("tenants::each_sees_only_its_own_rows", each_sees_only_its_own_rows),
        trial("tenants::errors_tell_nothing_of_others", errors_tell_nothing_of_others),
        trial("tenants::plans_are_not_shown", plans_are_not_shown),
    ]
}

fn rows() -> Vec<Value> {
    let at = "2026-02-05T03:00:00Z";
    let mut rows = Vec::new();
    for n in 0..300 {
        let [own, other] = [["a", "b"], ["b", "a"]][n % 2];
        let padding = "x".repeat(400);
        rows.push(audit(
            at,
            json!({
                "requester_tenant_id": own, "accessed_tenant_id": other, "tool": "42",
                "action": if own == "a" { "7" } else { "secret-of-b" }, "attributes": padding,
            }),
        ));
        rows.push(network(at, json!({"tenant_id": own, "destination": format!("{own}.example")})));
    }
    rows.push(audit(at, json!({"action": "nobody's"})));
    rows
}

/// Some rows sealed, some in memory.
async fn filled() -> (tempfile::TempDir, Log) {
    let folder = tempfile::tempdir().unwrap();
    let small = Options { segment_bytes: 64 * 1024, seal_bytes: 64 * 1024, ..options() };
    let log = Log::open(folder.path(), small);
    for rows in rows().chunks(100) {
        log.append(rows).await;
    }
    eventually("a sealed segment", || log.log.status().segments >= 1).await;
    (folder, log)
}

async fn each_sees_only_its_own_rows() {
    let (_folder, log) = filled().await;
    let run = |query: &'static str, of: &str| {
        let access = tenant(of);
        let log = log.log.clone();
        async move { log.sql(query, access).await.unwrap().rows }
    };
    assert_eq!(log.count("audit_log").await, 301);
    for of in ["a", "b"] {
        assert_eq!(run("SELECT COUNT(*) FROM audit_log", of).await, [[json!(150)]]);
        assert_eq!(
            run("SELECT DISTINCT requester_tenant_id FROM audit_log", of).await,
            [[json!(of)]]
        );
        assert_eq!(
            run("SELECT DISTINCT destination FROM network_log", of).await,
            [[json!(format!("{of}.example"))]]
        );
        // Even when the query says that it wants others, or hides the column behind an alias.
        for query in [
            "SELECT COUNT(*) FROM audit_log WHERE requester_tenant_id IS NULL OR true",
            "SELECT COUNT(*) FROM (SELECT 'z' AS requester_tenant_id FROM audit_log)",
            "WITH audit AS (SELECT * FROM audit_log) SELECT COUNT(*) FROM audit",
            "SELECT COUNT(*) FROM audit_log x LEFT JOIN allowlist y ON x.tool = y.domain",
        ] {
            assert_eq!(run(query, of).await, [[json!(150)]], "{query}");
        }
    }
    assert_eq!(run("SELECT COUNT(*) FROM audit_log", "c").await, [[json!(0)]]);
    // Only someone who sees all sees what is nobody's.
    let nobody = "SELECT COUNT(*) FROM audit_log WHERE requester_tenant_id IS NULL";
    assert_eq!(log.rows(nobody).await, [[json!(1)]]);
    log.close().await;
}

/// The engine must not run a query's own expressions over other tenants' rows, whose values its
/// errors would repeat.
async fn errors_tell_nothing_of_others() {
    let (_folder, log) = filled().await;
    for query in [
        "SELECT SUM(CAST(action AS INT)) FROM audit_log",
        "SELECT COUNT(*) FROM audit_log WHERE CAST(action AS INT) = 7",
        "SELECT COUNT(*) FROM audit_log WHERE CAST(action AS INT) = 7 AND attributes LIKE 'x%'",
        "SELECT attributes FROM audit_log WHERE CAST(action AS INT) = 8",
        "SELECT COUNT(*) FROM audit_log WHERE 1 / (CASE WHEN action = '7' THEN 1 ELSE 0 END) = 1",
    ] {
        let own = log.log.sql(query, tenant("a")).await;
        assert!(own.is_ok(), "{query}: {own:?}");
        let all = log.sql(query).await;
        assert!(all.is_err(), "the query must be one that fails on others' rows: {query}");
    }
    log.close().await;
}

async fn plans_are_not_shown() {
    let (_folder, log) = new_log();
    for query in ["EXPLAIN SELECT * FROM audit_log", "EXPLAIN ANALYZE SELECT * FROM audit_log"] {
        let error = log.log.sql(query, tenant("a")).await.unwrap_err();
        assert!(matches!(error, SqlError::Forbidden { .. }), "{query}: {error:?}");
    }
    log.close().await;
}
