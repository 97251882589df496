//! A dying server pages before its leases are over.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc::{Receiver, sync_channel},
    time::{Duration, Instant},
};

use estoppel_link::{OnLost, Refusal, Trust};
use estoppel_model::{Clock as _, EntityId, Subject, SystemClock};
use serde_json::{Value, json};

use crate::{
    guards::Guards,
    stage::{Server, signal, wait_for},
};

const LEASE: Duration = Duration::from_secs(6);

/// A channel that takes every page and hands it on.
pub(crate) fn channel() -> (String, Receiver<Value>) {
    channel_answering("202 Accepted", "")
}

/// A channel that hands every page on and answers it so.
pub(crate) fn channel_answering(
    status: &'static str,
    body: &'static str,
) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (pages, taken) = sync_channel(100);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(100) {
            let mut reader = BufReader::new(stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut page = vec![0; length];
            if reader.read_exact(&mut page).is_err() {
                continue;
            }
            let length = body.len();
            let head = format!("content-length: {length}\r\nconnection: close");
            let answer = format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}");
            let _ = reader.get_mut().write_all(answer.as_bytes());
            let _ = pages.send(serde_json::from_slice(&page).unwrap());
        }
    });
    (url, taken)
}

fn start() -> (Server, Guards, Receiver<Value>) {
    let (url, pages) = channel();
    let config = format!("[serve]\nlease_seconds = {}\n[paging]\nurl = \"{url}\"", LEASE.as_secs());
    let server = Server::start_with(&config);
    let guards = Guards::connect(&server, &server.token("bot", "agent", None), 3);
    // Two heartbeats, so that the watchdog knows of them.
    std::thread::park_timeout(Duration::from_secs(1));
    (server, guards, pages)
}

fn expiry_page(pages: &Receiver<Value>) -> String {
    let page = pages.recv_timeout(LEASE * 10).unwrap().to_string();
    assert!(page.contains("leases expire at 20") && page.contains("3 enforcers"), "{page}");
    page
}

/// Killed, as by the kernel for want of memory.
#[test]
fn a_killed_server_pages_before_its_leases_are_over() {
    let (server, guards, pages) = start();
    let killed = Instant::now();
    let folder = server.crash_with(|| {});
    expiry_page(&pages);
    let took = killed.elapsed();
    assert!(took < LEASE, "paged after {took:?}, too late");
    assert!(took > LEASE / 5, "a restart must have some time: {took:?}");
    guards.end();
    drop(folder);
}

/// Invariant lease, and its owner's other choice: the way to go on without any server is chosen
/// beforehand, seen in `status`, and lets no halt go that is in force.
#[test]
fn an_enforcer_that_goes_on_without_a_server_says_so_and_keeps_its_halts() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let token = server.token("bot", "agent", None);
    let guards = Guards::start(&server.url, &token, 1, &Trust::system(), OnLost::Allow);
    let status = server.json(&["status"]);
    let gaps = status["enforcers"][0]["gaps"].to_string();
    assert!(gaps.contains("when its lease is over"), "{gaps}");
    let halt = json!({ "scope": "session:halted", "reason": "r" });
    assert_eq!(server.admin("POST", "/kill-switch", &halt).0, 202);
    let subject =
        |session| Subject { session: Some(EntityId::new(session).unwrap()), ..Subject::default() };
    let link = guards.first();
    let halted =
        || matches!(link.view().check(&subject("halted")), Err(Refusal::Halted(_))).then_some(());
    wait_for("the halt", halted);
    let folder = server.crash_with(|| {});
    wait_for("the end of the lease", || {
        let until = link.status().lease_until.unwrap();
        (SystemClock.boottime() > until).then_some(())
    });
    assert!(link.view().check(&subject("other")).is_ok());
    assert_eq!(halted(), Some(()));
    guards.end();
    drop(folder);
}

/// Stuck, and then back: the page is resolved.
#[test]
fn a_stuck_server_pages_and_resolves_when_it_is_back() {
    let (server, guards, pages) = start();
    signal(server.pid(), "STOP");
    let trigger = expiry_page(&pages);
    signal(server.pid(), "CONT");
    let resolved = pages.recv_timeout(LEASE * 10).unwrap().to_string();
    assert!(resolved.contains("answers again"), "{resolved}");
    assert_ne!(trigger, resolved);
    guards.end();
}

/// Killed and back at once, as by systemd: nobody is called for what mends itself.
#[test]
fn a_quick_restart_pages_nobody() {
    let (server, guards, pages) = start();
    let (server, ()) = server.away_while(|| {});
    // The watchdog of the first would have paged after a third of a lease, and before its end.
    let page = pages.recv_timeout(LEASE * 3 / 2);
    assert!(page.is_err(), "{page:?}");
    for link in guards.all() {
        assert!(link.status().connected_to.is_some(), "they are back");
    }
    // The second one has a watchdog, too.
    let folder = server.crash_with(|| {});
    expiry_page(&pages);
    guards.end();
    drop(folder);
}
