//! The end of a server: bounded, and nothing that was acknowledged is lost.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::json;

use crate::stage::{Server, signal, wait_for};

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
    // A request without an end: its handler waits for the body.
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 99\r\n\r\n{{",
        server.admin
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    wait_for("the handler", || {
        (server.send(&server.admin, "GET", "/healthz", b"").0 == 200).then_some(())
    });
    signal(server.pid(), "TERM");
    wait_for("the drain", || server.log().contains("ending").then_some(()));
    let begun = Instant::now();
    signal(server.pid(), "TERM");
    assert_eq!(server.ended().code(), Some(1));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(server.log().contains("asked again"), "{}", server.log());
}
