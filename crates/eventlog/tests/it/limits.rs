//! People's queries cannot write, read files, or outrun their limits; each refusal says which.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;

use crate::support::{audit, eventually, limited, new_log, trial, truncating};
use estoppel_eventlog::{SqlError, SqlLimit};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("limits::a_query_only_reads", a_query_only_reads),
        trial("limits::a_query_reaches_no_file_and_no_address", no_file_and_no_address),
        trial("limits::rows_and_bytes", rows_and_bytes),
        trial("limits::time", time),
        trial("limits::memory", memory),
        trial("limits::text_and_depth", text_and_depth),
        trial("limits::too_many_at_once", too_many_at_once),
        trial("limits::a_caller_who_leaves_ends_the_query", a_caller_who_leaves),
    ]
}

/// A query that would run for hours.
const ENDLESS: &str = "SELECT SUM(a.value * b.value % 7) FROM generate_series(1, 10000000) a CROSS JOIN generate_series(1, 10000000) b";

async fn a_query_only_reads() {
    let (folder, log) = new_log();
    log.append(&[audit("2026-02-05T03:00:00Z", json!({"action": "kept"}))]).await;
    let out = folder.path().join("out");
    let out = out.display();
    for query in [
        "DELETE FROM audit_log".to_owned(),
        "UPDATE audit_log SET action = 'x'".to_owned(),
        "INSERT INTO allowlist VALUES ('evil.example', NULL, 'evil.example')".to_owned(),
        "TRUNCATE TABLE audit_log".to_owned(),
        "DROP TABLE audit_log".to_owned(),
        "CREATE TABLE t AS SELECT * FROM audit_log".to_owned(),
        "CREATE VIEW v AS SELECT * FROM audit_log".to_owned(),
        "CREATE OR REPLACE TABLE audit_log AS SELECT 1".to_owned(),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "CREATE FUNCTION f() RETURNS INT RETURN 1".to_owned(),
        "CREATE SCHEMA s".to_owned(),
        format!("COPY audit_log TO '{out}' STORED AS CSV"),
        format!("COPY (SELECT 1) TO '{out}' STORED AS PARQUET"),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "RESET datafusion.execution.batch_size".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        "EXECUTE p".to_owned(),
        "BEGIN".to_owned(),
        "EXPLAIN ANALYZE DELETE FROM audit_log".to_owned(),
    ] {
        let error = log.fails(&query).await;
        // What the engine cannot even plan is refused by it, all else by us.
        assert!(
            matches!(error, SqlError::Forbidden { .. } | SqlError::Query { .. }),
            "{query}: {error:?}"
        );
    }
    for query in ["DELETE FROM audit_log", "DROP TABLE audit_log", "CREATE VIEW v AS SELECT 1"] {
        let error = log.fails(query).await;
        assert!(matches!(error, SqlError::Forbidden { .. }), "{query}: {error:?}");
        assert!(error.to_string().contains("only read the tables"), "{error}");
    }
    assert!(!folder.path().join("out").exists());
    assert_eq!(log.rows("SELECT action FROM audit_log").await, [[json!("kept")]]);
    assert!(!log.rows("EXPLAIN SELECT * FROM audit_log").await.is_empty());
    log.close().await;
}

async fn no_file_and_no_address() {
    let (_folder, log) = new_log();
    for query in [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM '/etc/passwd.csv'",
        "SELECT * FROM \"file:///etc/passwd\"",
        "SELECT * FROM 'https://example.com/x.parquet'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT getenv('PATH')",
        "SELECT current_setting('datafusion.execution.batch_size')",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM information_schema.df_settings",
        "SHOW ALL",
        "SHOW TABLES",
    ] {
        let error = log.fails(query).await;
        assert!(
            matches!(error, SqlError::Forbidden { .. } | SqlError::Query { .. }),
            "{query}: {error:?}"
        );
        assert!(!error.to_string().contains("root:"), "{error}");
    }
    log.close().await;
}

async fn rows_and_bytes() {
    let (_folder, log) = new_log();
    let series = "SELECT value FROM generate_series(1, 100) ORDER BY value";
    let run = |rows| log.log.sql(series, limited(move |limits| limits.rows = rows));
    assert_eq!(run(100).await.unwrap().rows.len(), 100);
    let error = run(99).await.unwrap_err();
    assert!(matches!(error, SqlError::Limit { limit: SqlLimit::Rows, .. }), "{error:?}");
    assert!(
        error.to_string().contains("99 rows") && error.to_string().contains("LIMIT"),
        "{error}"
    );

    let part = log.log.sql(series, truncating(99)).await.unwrap();
    assert_eq!((part.rows.len(), part.truncated), (99, true));
    assert!(!log.log.sql(series, truncating(100)).await.unwrap().truncated);

    let long = "SELECT repeat('x', 1000) FROM generate_series(1, 100)";
    let error = log.log.sql(long, limited(|limits| limits.bytes = 50_000)).await.unwrap_err();
    assert!(matches!(error, SqlError::Limit { limit: SqlLimit::Bytes, .. }), "{error:?}");
    assert!(error.to_string().contains("50000 bytes"), "{error}");
    log.close().await;
}

async fn time() {
    let (_folder, log) = new_log();
    log.append(&[audit("2026-02-05T03:00:00Z", json!({}))]).await;
    let short = || limited(|limits| limits.time = Duration::from_millis(300));
    let error = log.log.sql(ENDLESS, short()).await.unwrap_err();
    assert!(matches!(error, SqlError::Limit { limit: SqlLimit::Time, .. }), "{error:?}");
    assert!(error.to_string().contains("300 ms"), "{error}");
    assert_eq!(log.count("audit_log").await, 1);
    log.close().await;
}

async fn memory() {
    let (_folder, log) = new_log();
    log.append(&[audit("2026-02-05T03:00:00Z", json!({}))]).await;
    // More than the query's pool.
    let sorted = "SELECT repeat(CAST(a.value AS VARCHAR), 50) AS x FROM generate_series(1, 1000000) a ORDER BY x DESC";
    let small = || limited(|limits| limits.memory_bytes = 20_000_000);
    let error = log.log.sql(sorted, small()).await.unwrap_err();
    assert!(matches!(error, SqlError::Limit { limit: SqlLimit::Memory, .. }), "{error:?}");
    assert!(error.to_string().contains("20000000 bytes of memory"), "{error}");
    // More than the process, past every account that the engine keeps.
    let error = log.fails("SELECT length(repeat(repeat('x', 1000000), 4000))").await;
    assert!(
        matches!(error, SqlError::Worker { .. } | SqlError::Limit { .. } | SqlError::Query { .. }),
        "{error:?}"
    );
    assert_eq!(log.count("audit_log").await, 1, "the next query works");
    log.close().await;
}

async fn text_and_depth() {
    let (_folder, log) = new_log();
    let long = format!("SELECT '{}'", "x".repeat(64 * 1024));
    let error = log.fails(&long).await;
    assert!(matches!(error, SqlError::Limit { limit: SqlLimit::Text, .. }), "{error:?}");
    for deep in [
        format!("SELECT {}1{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("SELECT 1{}", "+1".repeat(30_000)),
        format!("SELECT {}1", "- ".repeat(30_000)),
        format!("SELECT 1 WHERE {}true", "NOT ".repeat(15_000)),
        format!("SELECT 1 FROM {}audit_log{}", "(SELECT * FROM ".repeat(3000), ")".repeat(3000)),
    ] {
        // Whether it is refused, calculated or ends the worker: the server and the next query live.
        if let Err(error) = log.sql(&deep).await {
            assert!(
                matches!(
                    error,
                    SqlError::Query { .. }
                        | SqlError::Worker { .. }
                        | SqlError::Limit { .. }
                        | SqlError::Engine { .. }
                ),
                "{error:?}"
            );
        }
        assert_eq!(log.count("audit_log").await, 0, "{}", &deep[..40]);
    }
    log.close().await;
}

async fn too_many_at_once() {
    let (_folder, log) = new_log();
    let queries = (0..60).map(|_| {
        let log = log.log.clone();
        let access = limited(|limits| limits.time = Duration::from_millis(300));
        async move { log.sql(ENDLESS, access).await.unwrap_err() }
    });
    let errors = futures_util::future::join_all(queries).await;
    let busy = errors.iter().filter(|error| **error == SqlError::Busy).count();
    // On a machine that starves the worker it may have to be killed; each query is answered still.
    let over =
        |error: &&SqlError| matches!(error, SqlError::Limit { .. } | SqlError::Worker { .. });
    let over = errors.iter().filter(over).count();
    assert!(busy > 0 && over >= 4 && busy + over == 60, "{busy} busy, {over} over: {errors:?}");
    log.close().await;
}

async fn a_caller_who_leaves() {
    let (_folder, log) = new_log();
    let long = || limited(|limits| limits.time = Duration::from_secs(300));
    for _ in 0..8 {
        let query = log.log.sql(ENDLESS, long());
        assert!(tokio::time::timeout(Duration::from_millis(200), query).await.is_err());
    }
    // All places would be taken for minutes if the queries had not ended.
    let pid = log.log.status().worker_pid.unwrap();
    assert_eq!(log.count("audit_log").await, 0);
    assert_eq!(log.log.status().worker_pid, Some(pid), "none of them had to be killed");
    eventually("the worker is idle", || {
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let used = |stat: String| -> u64 {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let before = used(stat());
        for _ in 0..200 {
            std::thread::yield_now();
        }
        used(stat()) == before
    })
    .await;
    log.close().await;
}
