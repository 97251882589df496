//! What a real server does not do: it falls silent, or sends what is no frame. The server and the
//! gateway are real; the faults are on the way between them.

use std::{net::Ipv4Addr, time::Duration};

use estoppel_api::HaltRequest;
use estoppel_gateway::Authority as _;
use estoppel_model::{EntityId, Scope, Subject};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::timeout,
};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::support::{
    Answers, Control, Harness, PATIENCE, REASON, Sink, client_hello, config, head, reset,
};

/// Short, and longer than what a busy machine takes between two pings.
const LEASE: Duration = Duration::from_secs(3);
/// A text frame of WebSocket whose text is no frame of ours.
const NO_FRAME: &[u8] = b"\x81\x05hello";

/// The way from a gateway to its server.
struct Way {
    url: Url,
    /// Nothing comes from the server.
    silent: watch::Sender<bool>,
    /// How often the server is to say [`NO_FRAME`].
    garbage: watch::Sender<u32>,
    connections: watch::Sender<usize>,
}

impl Way {
    async fn to(server: &Control) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let way = Self {
            url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            silent: watch::Sender::new(false),
            garbage: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        };
        let server = *server.url().socket_addrs(|| None).unwrap().first().unwrap();
        let (silent, garbage) = (way.silent.clone(), way.garbage.clone());
        let (connections, tasks) = (way.connections.clone(), TaskTracker::new());
        tasks.clone().spawn(async move {
            while let Ok((gateway, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                connections.send_modify(|count| *count += 1);
                let (mut from_gateway, to_gateway) = gateway.into_split();
                let (from_server, mut to_server) = server.into_split();
                tasks.spawn(async move {
                    let _ = tokio::io::copy(&mut from_gateway, &mut to_server).await;
                });
                let (silent, garbage) = (silent.subscribe(), garbage.subscribe());
                tasks.spawn(back(from_server, to_gateway, silent, garbage));
            }
        });
        way
    }
}

/// Carries what the server says, with its faults.
async fn back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut silent: watch::Receiver<bool>,
    mut garbage: watch::Receiver<u32>,
) {
    let mut buffer = vec![0; 16 * 1024];
    garbage.mark_unchanged();
    loop {
        let bytes: &[u8] = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(count @ 1..) => &buffer[..count],
                _ => return,
            },
            Ok(()) = garbage.changed() => NO_FRAME,
        };
        if silent.wait_for(|silent| !silent).await.is_err() || to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn harness() -> (Harness, Way, Sink) {
    let sink = Sink::start(Answers::Nothing).await;
    let server = Control::with(|config| config.lease = LEASE, estoppel_link::Trust::system()).await;
    let way = Way::to(&server).await;
    let config = config(&[("evil.example:443", sink.address)]);
    (server.gateway_by(way.url.clone(), config).await, way, sink)
}

async fn open(harness: &Harness, sink: &Sink) -> TcpStream {
    let mut client = harness.tunnel("evil.example:443").await;
    let (hello, before) = (client_hello("evil.example"), sink.count());
    client.write_all(&hello).await.unwrap();
    sink.received(before + hello.len()).await;
    client
}

/// Invariant *lease*: a server that keeps the connection and says nothing is none; when it speaks
/// again, agents go on, and the halt that it has kept to itself holds.
#[tokio::test]
async fn a_silent_server_ends_the_lease_and_one_that_speaks_brings_it_back() {
    let (harness, way, sink) = harness().await;
    let mut client = open(&harness, &sink).await;
    way.silent.send_replace(true);
    reset(&mut client).await;
    let tunnel = "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n";
    let answer = harness.exchange(tunnel).await;
    assert!(answer.contains("urn:estoppel:problem:lease-lost"), "{answer}");
    let kept_back = HaltRequest {
        scope: "session:other".parse::<Scope>().unwrap().into(),
        reason: REASON.to_owned(),
        id: None,
        until: None,
        incident: None,
    };
    harness.server.client.halt(&kept_back).await.unwrap();
    way.silent.send_replace(false);
    let back = async {
        loop {
            let mut client = harness.connect().await;
            client.write_all(tunnel.as_bytes()).await.unwrap();
            if head(&mut client).await.starts_with("HTTP/1.1 200") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, back).await.unwrap();
    let other = Subject::session(EntityId::new("other").unwrap());
    assert!(harness.orders.check(&other).is_err(), "orders are in step before there is a lease");
}

/// Invariant *lease*: before a server has answered for the first time nothing goes.
#[tokio::test]
async fn nothing_goes_before_the_first_answer() {
    let sink = Sink::start(Answers::Http).await;
    let server = Control::start().await;
    let way = Way::to(&server).await;
    way.silent.send_replace(true);
    let config = config(&[("good.example:80", sink.address)]);
    let harness = server.unready_gateway_by(way.url.clone(), config).await;
    let answer = harness.fetch("good.example").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("urn:estoppel:problem:not-yet-connected"), "{answer}");
    assert_eq!(sink.connections(), 0);
    way.silent.send_replace(false);
    timeout(PATIENCE, harness.link.ready()).await.unwrap();
    assert!(harness.fetch("good.example").await.starts_with("HTTP/1.1 200"));
}

/// What is no frame ends the connection and nothing else: the link comes back within the lease, open
/// flows stay open, and the next halt cuts them.
#[tokio::test]
async fn what_is_no_frame_costs_a_connection_and_no_flow() {
    let (harness, way, sink) = harness().await;
    let mut client = open(&harness, &sink).await;
    let before = *way.connections.borrow();
    way.garbage.send_modify(|count| *count += 1);
    let mut connections = way.connections.subscribe();
    timeout(PATIENCE, connections.wait_for(|count| *count > before)).await.unwrap().unwrap();
    let count = sink.count();
    client.write_all(b"still open").await.unwrap();
    sink.received(count + 10).await;
    let halt = harness.halt("global").await;
    reset(&mut client).await;
    let status = harness.status_when(halt.id, |status| status.settled == 1).await;
    assert_eq!(status.enforcers[0].settlement["connections_cut"], 1, "{status:?}");
}
