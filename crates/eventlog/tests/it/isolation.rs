//! The worker's walls, and its death at any moment.

use std::time::Duration;

use libtest_mimic::Trial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::support::{Log, audit, eventually, limited, new_log, options, trial};
use estoppel_eventlog::{Options, SqlError, WorkerCommand};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("isolation::walls_stand_or_are_named", walls_stand_or_are_named),
        trial("isolation::a_killed_worker_costs_one_query", a_killed_worker_costs_one_query),
        trial("isolation::a_stopped_worker_is_killed", a_stopped_worker_is_killed),
        trial("isolation::no_worker_is_an_error_of_queries_only", no_worker),
        trial("isolation::closing_ends_the_worker", closing_ends_the_worker),
    ]
}

const ENDLESS: &str = "SELECT SUM(a.value * b.value % 7) FROM generate_series(1, 10000000) a CROSS JOIN generate_series(1, 10000000) b";

fn pid(log: &Log) -> Pid {
    Pid::from_raw(log.log.status().worker_pid.unwrap().try_into().unwrap())
}

async fn walls_stand_or_are_named() {
    let (_folder, log) = new_log();
    assert_eq!(log.count("audit_log").await, 0);
    let pid = pid(&log);
    let isolation = log.log.status().isolation.unwrap();
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap();
    if isolation.no_network {
        let network = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
        assert_ne!(network(&pid.to_string()), network("self"));
        let devices = String::from_utf8(read("net/dev")).unwrap();
        let devices: Vec<&str> = devices.lines().skip(2).map(str::trim).collect();
        assert!(devices.iter().all(|device| !device.starts_with("eth")), "{devices:?}");
    } else {
        assert!(isolation.gaps.iter().any(|gap| gap.contains("network")), "{isolation:?}");
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "{isolation:?}");
    }
    assert_eq!(isolation.memory_bytes, 2 << 30, "{isolation:?}");
    let limits = String::from_utf8(read("limits")).unwrap();
    let space = limits.lines().find(|line| line.starts_with("Max address space")).unwrap();
    assert!(space.contains(&(2_u64 << 30).to_string()), "{space}");
    assert!(read("environ").is_empty(), "tokens of the server's environment stay there");
    let status = String::from_utf8(read("status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let mut files: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|file| std::fs::read_link(file.unwrap().path()).unwrap().display().to_string())
        .collect();
    files.sort();
    let ours = |file: &String| {
        file.starts_with("pipe:") || file.starts_with("anon_inode:") || file.starts_with("socket:")
    };
    assert!(files.iter().all(ours), "{files:?}");
    log.close().await;
}

async fn a_killed_worker_costs_one_query() {
    let (_folder, log) = new_log();
    log.append(&[audit("2026-02-05T03:00:00Z", json!({"action": "kept"}))]).await;
    assert_eq!(log.count("audit_log").await, 1);
    let first = pid(&log);
    let query = log.log.sql(ENDLESS, limited(|limits| limits.time = Duration::from_secs(60)));
    let killer = async {
        // Under way: it burns its first second.
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(first, Signal::SIGKILL).unwrap();
    };
    let (answer, ()) = tokio::join!(query, killer);
    let error = answer.unwrap_err();
    assert!(matches!(error, SqlError::Worker { .. }), "{error:?}");
    assert!(error.to_string().contains("was killed by signal 9"), "{error}");
    assert_eq!(log.count("audit_log").await, 1);
    assert_ne!(pid(&log), first);
    // Between queries nobody even notices.
    kill(pid(&log), Signal::SIGKILL).unwrap();
    eventually("its end is seen", || log.log.status().worker_pid.is_none()).await;
    assert_eq!(log.count("audit_log").await, 1);
    log.close().await;
}

/// A worker that does not even keep its own time limit any more.
async fn a_stopped_worker_is_killed() {
    let (_folder, log) = new_log();
    assert_eq!(log.count("audit_log").await, 0);
    let first = pid(&log);
    let short = limited(|limits| limits.time = Duration::from_millis(800));
    let query = log.log.sql(ENDLESS, short);
    let stopper = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(first, Signal::SIGSTOP).unwrap();
    };
    let (answer, ()) = tokio::join!(query, stopper);
    let error = answer.unwrap_err();
    assert!(matches!(error, SqlError::Limit { .. }), "{error:?}");
    assert_eq!(log.count("audit_log").await, 0);
    assert_ne!(pid(&log), first);
    log.close().await;
}

async fn no_worker() {
    let folder = tempfile::tempdir().unwrap();
    for (program, args) in
        [("/does/not/exist", vec![]), ("/bin/true", vec![]), ("/bin/echo", vec!["x".into()])]
    {
        let worker = WorkerCommand { program: program.into(), args };
        let log = Log::open(folder.path(), Options { worker, ..options() });
        log.append(&[audit("2026-02-05T03:00:00Z", json!({"action": "kept"}))]).await;
        let error = log.fails("SELECT 1").await;
        assert!(matches!(error, SqlError::Worker { .. }), "{program}: {error:?}");
        log.close().await;
    }
    let log = Log::open(folder.path(), options());
    assert_eq!(log.count("audit_log").await, 3, "ingest does not need a worker");
    log.close().await;
}

async fn closing_ends_the_worker() {
    let (_folder, log) = new_log();
    assert_eq!(log.count("audit_log").await, 0);
    let pid = pid(&log);
    log.close().await;
    eventually("the process is gone", || kill(pid, None).is_err()).await;
}
