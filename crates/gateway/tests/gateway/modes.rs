//! What flows in each mode, and what the rows say of it.

use estoppel_gateway::Mode;
use estoppel_model::FlowVerdict::{Allowed, Blocked, Cut, Failed, WouldBlock};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Answers, Harness, Sink, client_hello, config, policy, reset};

async fn harness(mode: Mode, entries: &[&str]) -> (Harness, Sink) {
    let sink = Sink::start(Answers::Http).await;
    let hosts = [("good.example:80", sink.address), ("evil.example:80", sink.address)];
    let mut config = config(&hosts);
    config.policy = policy(mode, entries);
    (Harness::start(config).await, sink)
}

/// Row P1: without a list everything flows, and is reported for a list to be made of it.
#[tokio::test]
async fn learning_lets_everything_through_and_reports_it() {
    let (harness, sink) = harness(Mode::Learn, &[]).await;
    let answer = harness.fetch("Evil.Example.:80").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    assert_eq!(harness.orders.verdicts(1).await, [Allowed]);
    let row = &harness.orders.rows()[0];
    assert_eq!(row.destination.as_ref().unwrap().raw(), "evil.example", "in normal form");
    assert_eq!(row.port, Some(80));
    assert_eq!(row.source_process.as_ref().unwrap().raw(), "agent");
    assert_eq!(row.pid, Some(4711));
    assert_eq!(row.protocol.as_ref().unwrap().raw(), "http");
    assert_eq!(row.session_id.as_ref().unwrap().as_str(), "abc123");
    assert!(row.id.is_some() && row.timestamp.is_some() && row.duration_ms.is_some());
    assert_eq!(row.bytes_sent, Some(sink.count() as u64), "by the sink's own count");
    assert!(row.bytes_received.unwrap() > 0);
    let stats = harness.gateway.stats();
    assert_eq!((stats.totals.flows, stats.totals.bytes_sent), (1, sink.count() as u64));
}

/// Row P1: an unlisted destination is reported before a byte goes out, not when the flow ends.
#[tokio::test]
async fn observing_reports_the_unlisted_at_once_and_lets_it_flow() {
    let (harness, sink) = harness(Mode::Observe, &["good.example"]).await;
    assert!(harness.fetch("evil.example").await.starts_with("HTTP/1.1 200"));
    assert_eq!(harness.orders.verdicts(2).await, [WouldBlock, WouldBlock]);
    let bytes: Vec<_> = harness.orders.rows().iter().map(|row| row.bytes_sent).collect();
    assert_eq!(bytes, [Some(0), Some(sink.count() as u64)]);
    assert!(harness.fetch("good.example").await.starts_with("HTTP/1.1 200"));
    assert_eq!(harness.orders.verdicts(3).await, [WouldBlock, WouldBlock, Allowed]);
    assert_eq!(harness.sent(), sink.count() as u64);
}

/// Row P5: nothing reaches an unlisted destination.
#[tokio::test]
async fn enforcing_refuses_the_unlisted() {
    let (harness, sink) = harness(Mode::Enforce, &["good.example"]).await;
    let answer = harness.fetch("evil.example").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    let json = answer.split("\r\n\r\n").nth(1).unwrap();
    let problem: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(problem["type"], "urn:estoppel:problem:destination-unlisted");
    assert_eq!(problem["destination"], "evil.example:80");
    let answer =
        harness.exchange("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n");
    assert!(answer.await.starts_with("HTTP/1.1 403"));
    assert_eq!(harness.orders.verdicts(2).await, [Blocked, Blocked]);
    assert_eq!((sink.connections(), harness.sent()), (0, 0));
    assert!(harness.fetch("good.example").await.starts_with("HTTP/1.1 200"));
    assert_eq!(harness.gateway.stats().totals.refused, 2);
}

/// A list that becomes narrower also ends what is under way.
#[tokio::test]
async fn a_new_policy_holds_for_open_flows() {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = Harness::start(config(&[
        ("good.example:443", sink.address),
        ("evil.example:443", sink.address),
    ]))
    .await;
    let mut good = harness.tunnel("good.example:443").await;
    let mut evil = harness.tunnel("evil.example:443").await;
    let (first, second) = (client_hello("good.example"), client_hello("evil.example"));
    good.write_all(&first).await.unwrap();
    evil.write_all(&second).await.unwrap();
    sink.received(first.len() + second.len()).await;
    harness.gateway.set_policy(policy(Mode::Enforce, &["good.example"]));
    reset(&mut evil).await;
    good.write_all(b"more").await.unwrap();
    sink.received(first.len() + second.len() + 4).await;
    assert_eq!(harness.orders.verdicts(1).await, [Cut]);
    assert_eq!(harness.gateway.policy().mode, Mode::Enforce);
    assert_eq!(harness.gateway.stats().flows_open, 1);
}

#[tokio::test]
async fn a_destination_that_does_not_answer_has_failed() {
    let sink = Sink::start(Answers::Nothing).await;
    // A port that was just free and that nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let mut config = config(&[("closed.example:80", closed), ("silent.example:80", sink.address)]);
    config.limits.idle_timeout = std::time::Duration::from_millis(200);
    let harness = Harness::start(config).await;
    assert!(harness.fetch("closed.example").await.starts_with("HTTP/1.1 502"));
    assert!(harness.fetch("nowhere.invalid").await.starts_with("HTTP/1.1 50"));
    assert_eq!(harness.orders.verdicts(2).await, [Failed, Failed]);
    // Silence ends a flow; the client is reset.
    let mut client = harness.connect().await;
    client
        .write_all(b"GET http://silent.example/ HTTP/1.1\r\nHost: silent.example\r\n\r\n")
        .await
        .unwrap();
    reset(&mut client).await;
    let rows = harness.orders.rows_when(|rows| rows.len() == 3).await;
    assert_eq!(rows[2].bytes_sent, Some(sink.count() as u64));
}

/// A destination that takes the connection and then says what is no HTTP, or nothing at all.
#[tokio::test]
async fn a_destination_that_breaks_the_protocol_gave_no_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = async {
        for said in [&b"SSH-2.0-OpenSSH_9\r\n"[..], b""] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(said).await;
        }
    };
    let harness = Harness::start(config(&[("rude.example:80", address)])).await;
    let fetching = async {
        for _ in 0..2 {
            let answer = harness.fetch("rude.example").await;
            assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
            assert!(answer.contains("urn:estoppel:problem:no-answer"), "{answer}");
        }
    };
    tokio::join!(answering, fetching);
}

/// An open flow reports its bytes as they come; the rows' sum is the sum.
#[tokio::test]
async fn rows_carry_what_is_new() {
    let sink = Sink::start(Answers::Nothing).await;
    let mut config = config(&[("good.example:443", sink.address)]);
    config.limits.report_every = std::time::Duration::from_millis(20);
    let harness = Harness::start(config).await;
    let mut client = harness.tunnel("good.example:443").await;
    let hello = client_hello("good.example");
    client.write_all(&hello).await.unwrap();
    sink.received(hello.len()).await;
    harness.orders.rows_when(|rows| !rows.is_empty()).await;
    client.write_all(&[7; 1_000]).await.unwrap();
    sink.received(hello.len() + 1_000).await;
    let sum = |rows: &[estoppel_model::NetworkEvent]| {
        rows.iter().filter_map(|row| row.bytes_sent).sum::<u64>()
    };
    harness.orders.rows_when(|rows| sum(rows) == sink.count() as u64).await;
    drop(client);
    let rows = harness
        .orders
        .rows_when(|rows| rows.last().is_some_and(|row| row.bytes_sent == Some(0)))
        .await;
    assert_eq!(sum(&rows), sink.count() as u64);
    assert!(rows.iter().all(|row| row.verdict == Some(Allowed)), "{rows:#?}");
}
