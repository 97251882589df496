//! The end of a server: bounded, and nothing that was acknowledged is lost.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::json;

use estoppel_link::{OnLost, Trust};
use estoppel_model::{Clock as _, SystemClock};

use crate::{
    guards::Guards,
    stage::{Server, signal, wait_for},
};

/// A request whose handler waits for its body: a server that drains waits for it.
fn unfinished(server: &Server) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 99\r\n\r\n{{",
        server.admin
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    wait_for("the handler", || {
        (server.send(&server.admin, "GET", "/healthz", b"").0 == 200).then_some(())
    });
    stream
}

/// Invariant acknowledged-is-kept: halts and events are given without a pause while it ends.
#[test]
fn an_orderly_end_loses_nothing_that_was_acknowledged() {
    let server = Server::start();
    assert_eq!(server.events(br#"{"kind":"audit","tool":"a"}"#).0, 200);
    let (halts, events, over) =
        (Mutex::new(Vec::new()), AtomicUsize::new(1), AtomicBool::new(false));
    let took = std::thread::scope(|scope| {
        for worker in 0..4 {
            let (server, halts, events, over) = (&server, &halts, &events, &over);
            scope.spawn(move || {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    let name = format!("session:s{worker}-{count}");
                    let body = json!({ "scope": name, "reason": "r" }).to_string();
                    let given =
                        server.try_send(&server.admin, "POST", "/kill-switch", body.as_bytes());
                    if matches!(given, Some((202, _))) {
                        halts.lock().unwrap().push(name);
                    }
                    let event = br#"{"kind":"audit","tool":"b"}"#;
                    let sent = server.try_send(&server.admin, "POST", "/v1/events", event);
                    if matches!(sent, Some((200, _))) {
                        events.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        wait_for("some load", || (halts.lock().unwrap().len() > 20).then_some(()));
        let begun = Instant::now();
        signal(server.pid(), "TERM");
        wait_for("the end", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).ok();
            stat.is_none_or(|stat| stat.contains(") Z ")).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        begun.elapsed()
    });
    assert!(took.as_secs() < 30, "{took:?}");
    let server = server.crash_and_restart();
    for scope in halts.into_inner().unwrap() {
        let path = format!("/kill-switch?scope={scope}");
        assert_eq!(server.send(&server.admin, "GET", &path, b"").1["active"], true, "{scope}");
    }
    let kept = server.sql("SELECT COUNT(*) FROM audit_log")[0][0].as_u64().unwrap();
    // One that was taken may have lost its answer.
    assert!(kept >= events.load(Ordering::Relaxed) as u64, "{kept} of {events:?}");
}

/// A client that keeps the first end waiting does not keep the second.
#[test]
fn a_second_signal_ends_at_once() {
    let mut server = Server::start();
    let _stream = unfinished(&server);
    signal(server.pid(), "TERM");
    wait_for("the drain", || server.log().contains("ending").then_some(()));
    let begun = Instant::now();
    signal(server.pid(), "TERM");
    assert_eq!(server.ended().code(), Some(1));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(server.log().contains("asked again"), "{}", server.log());
}

/// A server that drains is healthy and not ready, to its last answer: nobody restarts it, nobody
/// sends it work.
#[test]
fn who_asks_during_a_drain_is_told_so() {
    let mut server = Server::start_with("[serve]\nmetrics_listen = \"127.0.0.1:0\"");
    server.ready();
    let stream = unfinished(&server);
    signal(server.pid(), "TERM");
    wait_for("the drain", || server.log().contains("ending").then_some(()));
    let part = wait_for("the truth about the drain", || {
        let (status, document) = server.try_send("", "GET", "/readyz", b"")?;
        let parts = document["parts"].as_array()?.clone();
        (status == 503).then(|| parts.into_iter().find(|part| part["name"] == "server").unwrap())
    });
    assert_eq!((&part["ready"], &part["state"]), (&json!(false), &json!("draining")));
    let halt = br#"{"scope":"session:s","reason":"r"}"#;
    let (status, refused) = server.try_send(&server.admin, "POST", "/kill-switch", halt).unwrap();
    assert_eq!(status, 503, "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("ask another"), "{refused}");
    let metrics = server.metrics.clone().unwrap().replace("/metrics", "/readyz");
    let told = std::process::Command::new("curl").args(["-s", &metrics]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("draining"), "{told:?}");
    // What it waited for is given up; from now on it may end at any moment.
    drop(stream);
    let mut answers = 0;
    while let Some((status, health)) = server.try_send("", "GET", "/healthz", b"") {
        assert_eq!(status, 200, "{health}");
        answers += 1;
        assert!(answers < 100_000, "it does not end");
    }
    assert!(server.ended().success(), "{}", server.log());
}

/// Invariant lease: enforcers that are told to go are at the second address while the first server
/// still drains, and no lease is over in between.
#[test]
fn enforcers_go_to_the_second_address_at_once() {
    let config = "[serve]\nlease_seconds = 5";
    let mut first = Server::start_with(config);
    let token = first.token("bot", "agent", None);
    let folder = tempfile::tempdir().unwrap();
    let (copy, data) = (folder.path().join("copy"), folder.path().join("data"));
    std::fs::write(folder.path().join("estoppel.toml"), config).unwrap();
    let (to, at) = (copy.to_str().unwrap(), data.to_str().unwrap());
    let own = first.data.to_str().unwrap();
    let backup = ["backup", "--to", to, "--data", own];
    let restore = ["restore", "--from", to, "--data", at];
    for args in [backup, restore] {
        let done = first.cli(&args);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    // Of the same deployment: the same key, the same tokens.
    let second = Server::at(&data);
    let both = format!("{},{}", first.url, second.url);
    let guards = Guards::start(&both, &token, 3, &Trust::system(), OnLost::Refuse);
    let connected = |url: &str| {
        let at = |link: &estoppel_link::Link| {
            link.status().connected_to.is_some_and(|to| to.as_str().starts_with(url))
        };
        guards.all().iter().all(at)
    };
    assert!(connected(&first.url));
    let leased = || {
        let now = SystemClock.boottime();
        assert!(guards.all().iter().all(|it| it.status().lease_until.is_some_and(|it| it > now)));
    };
    let stream = unfinished(&first);
    signal(first.pid(), "TERM");
    wait_for("the second server", || {
        leased();
        connected(&second.url).then_some(())
    });
    // It was the word of the first, not its end.
    assert_eq!(first.try_send("", "GET", "/healthz", b"").unwrap().0, 200);
    leased();
    drop(stream);
    assert!(first.ended().success(), "{}", first.log());
    let halt = json!({ "scope": "session:s", "reason": "r" });
    assert_eq!(second.admin("POST", "/kill-switch", &halt).0, 202);
    wait_for("the second server's halt", || {
        guards.all().iter().all(|it| it.status().orders_in_force == 1).then_some(())
    });
    guards.end();
}
