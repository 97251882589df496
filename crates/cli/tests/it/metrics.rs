//! Metrics, read by Prometheus's own parser.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
};

use estoppel_link::{Link, LinkConfig, frame::EnforcerKind};
use estoppel_model::{Secret, SystemClock};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::stage::{Server, wait_for};

/// What an agent could try: to end the label, the line, the type.
const HOSTILE: &str = "x\"} 1\n# TYPE evil counter\nevil_total 7\n";
const HOSTILE_NAME: &str = "evil-agent";

fn scrape(server: &Server) -> String {
    match server.send(&server.admin, "GET", "/metrics", b"") {
        (200, Value::String(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The value of a sample, with its labels as they are written.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
}

/// Runs `promtool check metrics`; `None` where there is none, which fails under `ESTOPPEL_REAL=1`.
fn promtool(text: &str) -> Option<std::process::Output> {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "promtool is missing (prometheus)");
        eprintln!("skipped: there is no promtool here");
        return None;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

/// A run with a halt that an enforcer confirms, events good and bad, a page that fails.
#[test]
fn prometheus_reads_what_happened() {
    let server = Server::start_with("[paging]\nurl = \"http://127.0.0.1:1/\"");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let token = Secret::new(server.token(HOSTILE_NAME, "agent", None));
    let servers = vec![server.url.parse().unwrap()];
    let config = LinkConfig::new(servers, token, EnforcerKind::Guard, HOSTILE);
    let (guard, mut said) = {
        let _inside = runtime.enter();
        Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap()
    };
    runtime.block_on(guard.ready());
    let (status, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "session:a", "reason": HOSTILE }));
    assert_eq!(status, 202, "{halt}");
    let order = runtime.block_on(async {
        loop {
            if let Some(estoppel_link::LinkEvent::Ordered(order)) = said.recv().await {
                return order;
            }
        }
    });
    guard.settled(order.id, estoppel_link::frame::Settlement::default());
    let event = json!({ "kind": "audit", "tool": "evil-tool", "result": HOSTILE }).to_string();
    assert_eq!(server.events(format!("{event}\nnot json\n").as_bytes()).0, 200);
    assert_eq!(server.sql("SELECT COUNT(*) FROM audit_log"), [json!([1])]);

    let text = wait_for("the measures", || {
        let text = scrape(&server);
        let settled = value(&text, "estoppel_halt_settled_seconds_count") >= 1.0;
        (settled && value(&text, "estoppel_orders_behind") == 0.0).then_some(text)
    });
    for (sample, expect) in [
        ("estoppel_halts_active", 1.0),
        ("estoppel_halt_accept_seconds_count", 1.0),
        ("estoppel_halt_refusing_seconds_count", 1.0),
        ("estoppel_enforcers_connected{kind=\"guard\"}", 1.0),
        ("estoppel_enforcers_connected{kind=\"host\"}", 0.0),
        ("estoppel_leases_expiring", 0.0),
        ("estoppel_events_accepted_total", 1.0),
        ("estoppel_events_rejected_total", 1.0),
        ("estoppel_sql_worker_starts_total", 1.0),
        ("estoppel_runs{state=\"running\"}", 0.0),
        ("estoppel_part_ready{part=\"ledger\"}", 1.0),
        ("estoppel_invariant_violations_total{invariant=\"lease\"}", 0.0),
    ] {
        assert_eq!(value(&text, sample), expect, "{sample}");
    }
    for sample in [
        "estoppel_ledger_append_seconds_count",
        "estoppel_wal_sync_seconds_count",
        "estoppel_ledger_records",
        "estoppel_disk_free_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "estoppel_invariant_checks_total{invariant=\"stop-never-waits\"}",
    ] {
        assert!(value(&text, sample) > 0.0, "{sample}");
    }
    assert!(!text.contains("evil") && !text.contains("session:a"), "{text}");

    stop.cancel();
    tasks.close();
    runtime.block_on(tasks.wait());
    wait_for("a lease without its enforcer", || {
        (value(&scrape(&server), "estoppel_leases_expiring") == 1.0).then_some(())
    });
    if let Some(checked) = promtool(&text) {
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.success(), "{said}");
        assert_eq!(said, "", "promtool has nothing to complain of");
        let broken = promtool("estoppel_x{a=\"b} 1\n").unwrap();
        assert!(!broken.status.success(), "promtool would find something");
    }
}

/// With a token here; without one only at an address that was set for it, and nothing else there.
#[test]
fn metrics_need_a_token_or_their_own_address() {
    let server = Server::start_with("[serve]\nmetrics_listen = \"127.0.0.1:0\"");
    assert_eq!(server.send("", "GET", "/metrics", b"").0, 401);
    let agent = server.token("bot", "agent", None);
    assert_eq!(server.send(&agent, "GET", "/metrics", b"").0, 403);
    let viewer = server.token("vera", "viewer", None);
    assert_eq!(server.send(&viewer, "GET", "/metrics", b"").0, 200);
    let open = server.metrics.clone().unwrap();
    let curl = |args: &[&str]| {
        let output = Command::new("curl").arg("-s").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(curl(&[&open]).contains("\nestoppel_build_info{version="));
    let asked = curl(&["-H", "Accept: application/openmetrics-text; version=1.0.0", &open]);
    assert!(asked.ends_with("# EOF\n"), "{asked}");
    let halt = open.replace("/metrics", "/kill-switch");
    let refused = curl(&["-o", "/dev/null", "-w", "%{http_code}", "-d", "{}", &halt]);
    assert_eq!(refused, "404");
}
