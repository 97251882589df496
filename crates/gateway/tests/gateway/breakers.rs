//! Row R5: the bounds that stop a task, at a gateway before an agent that has no guard.

use std::time::{Duration, Instant};

use estoppel_gateway::{Identity, Mode};
use estoppel_link::Trust;
use estoppel_model::{AuditEvent, Breaker, EntityId, Excess, Limit, OrderId, Subject};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::support::{
    Answers, Control, Harness, PATIENCE, SESSION, Sink, client_hello, config, policy, reset,
};

/// Whom people are to ask.
const CONTACT: &str = "oncall@example.com";

/// A gateway that leads to a destination which answers requests, and to one which keeps tunnels open.
async fn harness() -> (Harness, Sink, Sink) {
    let (web, open) = (Sink::start(Answers::Http).await, Sink::start(Answers::Nothing).await);
    let contact = |server: &mut estoppel_server::ServerConfig| {
        server.contact = Some(CONTACT.to_owned());
    };
    let config = config(&[("web.example:80", web.address), ("open.example:443", open.address)]);
    let harness = Control::with(contact, Trust::system()).await.gateway(config).await;
    (harness, web, open)
}

fn scope() -> String {
    format!("session:{SESSION}")
}

fn steps(max: u64) -> Limit {
    Limit { steps_max: Some(max), ..Limit::default() }
}

async fn is_served(harness: &Harness) -> bool {
    harness.fetch("web.example").await.starts_with("HTTP/1.1 200")
}

/// A tunnel whose ClientHello has arrived at the destination, as the first that does so.
async fn tunnel(harness: &Harness, open: &Sink) -> TcpStream {
    let mut client = harness.tunnel("open.example:443").await;
    let hello = client_hello("open.example");
    client.write_all(&hello).await.unwrap();
    open.received(hello.len()).await;
    client
}

const CONNECT: &str = "CONNECT open.example:443 HTTP/1.1\r\nHost: open.example:443\r\n\r\n";

/// The problem document of a refusal for a limit.
fn over(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let problem: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(problem["type"], "urn:estoppel:problem:limit-exceeded", "{problem}");
    problem
}

/// What a record says of a limit, and what was done.
fn told(record: &AuditEvent) -> (String, Excess) {
    let action = record.action.as_ref().unwrap();
    assert_eq!(action.raw(), estoppel_model::LIMIT_ACTION);
    let attributes: Value =
        serde_json::from_str(record.attributes.as_ref().unwrap().get()).unwrap();
    assert_eq!(attributes["enforcer"], "gateway");
    let excess = serde_json::from_value(attributes["limit"].clone()).unwrap();
    (record.decision.as_ref().unwrap().raw().clone(), excess)
}

/// Waits until the playbook has halted and limited the session; returns the halts.
async fn halts(harness: &Harness) -> Vec<OrderId> {
    let client = &harness.server.client;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let limited = async {
        loop {
            looks.tick().await;
            let runs = client.runs().await.unwrap();
            let mut steps = runs.iter().flat_map(|run| &run.steps);
            if steps.any(|step| step.action == "limit" && step.state == "done") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, limited).await.unwrap();
    let state = client.kill_switch(&scope()).await.unwrap();
    assert!(!state.halts.is_empty(), "{state:?}");
    state.halts.iter().map(|halt| halt.id).collect()
}

/// R5: when a task's time is over, an open stream on which nothing moves is cut, further requests are
/// refused with the limit and whom to ask, and the server is told once.
#[tokio::test]
async fn the_time_of_a_task_cuts_an_open_stream_and_refuses_what_comes_after() {
    const MAX: Duration = Duration::from_millis(1_500);
    let (harness, _web, open) = harness().await;
    let began = Instant::now();
    let mut client = tunnel(&harness, &open).await;
    let limit = Limit { wall_clock_ms_max: Some(1_500), ..Limit::default() };
    harness.limit(&scope(), limit).await;
    reset(&mut client).await;
    assert!(began.elapsed() > MAX, "its time was not over");
    open.ended(1).await;

    for _ in 0..3 {
        let problem = over(&harness.fetch("web.example").await);
        assert_eq!(problem["limit"]["breaker"], "wall_clock");
        assert_eq!(problem["limit"]["max"], 1_500.0);
        assert_eq!(problem["contact"], CONTACT);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with("session abc123: "), "{detail}");
        assert!(detail.contains(" s since its first step, of at most 1.5 s; "), "{detail}");
    }
    let audits = harness.orders.audits(1).await;
    assert_eq!(audits.len(), 1, "told once");
    let (decision, excess) = told(&audits[0]);
    assert_eq!((decision.as_str(), excess.breaker), ("denied", Breaker::WallClock));
    assert_eq!(audits[0].session_id.as_ref().unwrap().as_str(), SESSION);
}

/// R5: a bound that comes, or becomes stricter, while a stream is open holds for it, too.
#[tokio::test]
async fn a_limit_that_comes_later_holds_for_what_is_open() {
    let (harness, _web, open) = harness().await;
    let mut client = tunnel(&harness, &open).await;
    assert!(is_served(&harness).await);
    harness.limit(&scope(), steps(2)).await;
    harness.limit("session:other", steps(0)).await;
    client.write_all(b"still open").await.unwrap();
    harness.limit(&scope(), steps(1)).await;
    reset(&mut client).await;
    let problem = over(&harness.fetch("web.example").await);
    assert_eq!(
        problem["limit"],
        json!({ "breaker": "steps", "value": 2.0, "max": 1.0 }),
        "{problem}"
    );
}

/// R5: never more under way than may be, and one more stops the task; requests one after the other are
/// never more than one.
#[tokio::test]
async fn requests_and_tunnels_under_way_are_bounded() {
    let (harness, _web, open) = harness().await;
    let limit = Limit { concurrency_max: Some(1), ..Limit::default() };
    harness.limit(&scope(), limit).await;
    for _ in 0..30 {
        assert!(is_served(&harness).await);
    }
    let mut client = tunnel(&harness, &open).await;
    let problem = over(&harness.exchange(CONNECT).await);
    assert_eq!(problem["limit"], json!({ "breaker": "concurrency", "value": 2.0, "max": 1.0 }));
    assert_eq!(problem["destination"], "open.example:443");
    reset(&mut client).await;
    assert_eq!(open.connections(), 1, "nothing of the second went out");
    assert_eq!(harness.orders.audits(1).await.len(), 1);
}

/// R5: each request and each tunnel is a step. A trip ends by the release of a halt and by nothing else;
/// then the task begins anew.
#[tokio::test]
async fn a_trip_ends_by_the_release_of_its_halt() {
    let (harness, _web, open) = harness().await;
    let order = harness.limit(&scope(), steps(3)).await;
    assert!(is_served(&harness).await && is_served(&harness).await);
    let mut client = tunnel(&harness, &open).await;
    let problem = over(&harness.fetch("web.example").await);
    assert_eq!(problem["limit"], json!({ "breaker": "steps", "value": 4.0, "max": 3.0 }));
    reset(&mut client).await;

    // The server, which was told, halts the session. Without the limit it is still stopped.
    harness.release(&scope(), order).await;
    let halts = halts(&harness).await;
    let problem = over(&harness.fetch("web.example").await);
    assert_eq!(problem["limit"]["value"], 4.0);
    for halt in halts {
        harness.release(&scope(), halt).await;
    }
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let released = async {
        while !is_served(&harness).await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, released).await.unwrap();
    assert!(is_served(&harness).await && is_served(&harness).await && is_served(&harness).await);
    assert_eq!(harness.orders.audits(1).await.len(), 1);
}

/// R5: in the mode `observe` it is recorded what would have been stopped; in `enforce` it is then stopped.
#[tokio::test]
async fn an_observing_gateway_only_records_what_is_over_a_limit() {
    let (harness, _web, open) = harness().await;
    let listed = ["web.example", "open.example"];
    harness.gateway.set_policy(policy(Mode::Observe, &listed));
    let limit = Limit { concurrency_max: Some(0), ..steps(1) };
    let order = harness.limit(&scope(), limit).await;
    let settlement = harness.orders.settlement(order).await;
    assert_eq!(
        settlement.containment.as_deref(),
        Some(
            "steps_max 1, concurrency_max 0, a request or a tunnel as one step and one call, which in \
             the mode `observe` is only recorded"
        )
    );
    let mut client = tunnel(&harness, &open).await;
    for _ in 0..3 {
        assert!(is_served(&harness).await);
    }
    client.write_all(b"still open").await.unwrap();
    open.received(client_hello("open.example").len() + 10).await;
    let audits = harness.orders.audits(1).await;
    assert_eq!(audits.len(), 1, "told once");
    assert_eq!(told(&audits[0]).0, "would_stop");

    harness.gateway.set_policy(policy(Mode::Enforce, &listed));
    reset(&mut client).await;
    over(&harness.fetch("web.example").await);
    let audits = harness.orders.audits(2).await;
    assert_eq!(audits.len(), 2);
    assert_eq!(told(&audits[1]).0, "denied");
}

/// R5: of two sessions behind one gateway each counts for itself.
#[tokio::test]
async fn one_session_over_its_limit_stops_no_other() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let web = Sink::start(Answers::Http).await;
    let server = Control::start().await;
    let mut config = config(&[("web.example:80", web.address)]);
    let server_key = server.client.gateway_policy().await.unwrap().key;
    config.identity = Identity::Credential { server_key };
    let harness = server.gateway(config).await;
    harness.limit("global", steps(2)).await;
    let request = async |session: &str| {
        let subject = Subject::session(EntityId::new(session).unwrap());
        let request = estoppel_api::CredentialRequest { subject, seconds: Some(600) };
        let minted = harness.server.client.mint_credential(&request).await.unwrap();
        let basic = STANDARD.encode(format!("estoppel:{}", minted.credential));
        format!(
            "GET http://web.example/ HTTP/1.1\r\nHost: web.example\r\n\
             Proxy-Authorization: Basic {basic}\r\nConnection: close\r\n\r\n"
        )
    };
    let (one, two) = (request("one").await, request("two").await);
    for _ in 0..2 {
        assert!(harness.exchange(&one).await.starts_with("HTTP/1.1 200"));
    }
    over(&harness.exchange(&one).await);
    for _ in 0..2 {
        assert!(harness.exchange(&two).await.starts_with("HTTP/1.1 200"));
    }
    over(&harness.exchange(&one).await);
    over(&harness.exchange(&two).await);
    let who: Vec<_> = harness.orders.audits(2).await.into_iter().map(|it| it.session_id).collect();
    assert_eq!(who, [Some("one".parse().unwrap()), Some("two".parse().unwrap())]);
}
