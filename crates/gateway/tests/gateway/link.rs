//! The whole way: a halt given to a server's switch, over the stream, to the reset and back to the
//! confirmation; the rows by the uploader.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::{State, WebSocketUpgrade, ws::Message},
    response::IntoResponse,
    routing::{get, post},
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_gateway::{Gateway, LinkAuthority};
use estoppel_killswitch::{
    Now, Signatures, Signer,
    frame::{EnforcerKind, ToEnforcer, ToServer},
    server::{ConnectionId, Effect, Identity, Input, Switch, SwitchConfig},
};
use estoppel_link::{EventBuffer, Link, LinkConfig, OnLost};
use estoppel_model::{
    Actor, Clock as _, Event, FlowVerdict, NetworkEvent, Order, OrderBody, OrderId, Secret,
    SignedOrder, SystemClock,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{
    Answers, PATIENCE, SESSION, Sink, client_hello, config, head, reset, subject,
};

struct Keys {
    key: SigningKey,
    public: String,
}

impl Keys {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = hex::encode(key.verifying_key().as_bytes());
        Self { key, public }
    }
}

impl Signatures for Keys {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        let (mut key, mut signature) = ([0; 32], [0; 64]);
        hex::decode_to_slice(&order.key, &mut key).is_ok()
            && hex::decode_to_slice(&order.signature, &mut signature).is_ok()
            && VerifyingKey::from_bytes(&key).is_ok_and(|key| {
                let bytes = SignedOrder::signed_bytes(&order.order);
                key.verify_strict(&bytes, &Signature::from_bytes(&signature)).is_ok()
            })
    }
}

impl Signer for Keys {
    fn key(&self) -> &str {
        &self.public
    }

    fn sign(&self, order: String) -> SignedOrder {
        let signature = self.key.sign(&SignedOrder::signed_bytes(&order));
        let signature = hex::encode(signature.to_bytes());
        SignedOrder { order, key: self.public.clone(), signature }
    }
}

/// The server's kill switch behind a real WebSocket, and a place for events.
struct Server {
    switch: Mutex<Switch>,
    outboxes: Mutex<HashMap<ConnectionId, mpsc::Sender<ToEnforcer>>>,
    rows: Mutex<Vec<NetworkEvent>>,
    changed: watch::Sender<u64>,
}

fn now() -> Now {
    Now { wall: SystemClock.now(), boot: SystemClock.boottime() }
}

impl Server {
    async fn start(tasks: &TaskTracker) -> (Arc<Self>, url::Url) {
        let (switch, _) = Switch::new(SwitchConfig::default(), Box::new(Keys::new()), []);
        let server = Arc::new(Self {
            switch: Mutex::new(switch),
            outboxes: Mutex::default(),
            rows: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/v1/stream", get(stream))
            .route("/v1/events", post(events))
            .with_state(Arc::clone(&server));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tasks.spawn(async move { axum::serve(listener, router).await });
        (server, url)
    }

    /// Does what the switch says: only sending matters here.
    fn carry_out(&self, effects: Vec<Effect>) {
        let outboxes = self.outboxes.lock().unwrap();
        let send = |connection: ConnectionId, frame: ToEnforcer| {
            if let Some(outbox) = outboxes.get(&connection) {
                outbox.try_send(frame).unwrap();
            }
        };
        for effect in effects {
            match effect {
                Effect::Send { connection, frame } => send(connection, frame),
                Effect::Broadcast { connections, frame } => {
                    for connection in connections {
                        send(connection, frame.clone());
                    }
                }
                _ => {}
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn step(&self, input: Input) {
        let effects = self.switch.lock().unwrap().step(input, now());
        self.carry_out(effects);
    }

    fn halt(&self) -> OrderId {
        let order = Order {
            id: OrderId::new(),
            scope: format!("session:{SESSION}").parse::<estoppel_model::Scope>().unwrap().into(),
            reason: "suspected prompt injection".to_owned(),
            issued_by: Actor::new("alice").unwrap(),
            issued_at: SystemClock.now(),
            incident: None,
            tenant: None,
            body: OrderBody::Halt { until: None },
        };
        let signed = Keys::new().sign(serde_json::to_string(&order).unwrap());
        let (_, effects) = self.switch.lock().unwrap().submit(signed, now()).unwrap();
        self.carry_out(effects);
        order.id
    }

    async fn wait(&self, until: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        timeout(PATIENCE, changed.wait_for(|_| until(self))).await.unwrap().unwrap();
    }
}

async fn stream(State(server): State<Arc<Server>>, upgrade: WebSocketUpgrade) -> impl IntoResponse {
    upgrade.on_upgrade(async move |mut socket| {
        let connection = ConnectionId(1);
        let (outbox, mut frames) = mpsc::channel(64);
        server.outboxes.lock().unwrap().insert(connection, outbox);
        let actor = Actor::new("gateway-1").unwrap();
        let identity = Box::new(Identity { actor, tenant: None, scopes: None });
        server.step(Input::Connected { connection, identity });
        loop {
            tokio::select! {
                Some(frame) = frames.recv() => {
                    let text = serde_json::to_string(&frame).unwrap();
                    if socket.send(Message::Text(text.into())).await.is_err() {
                        break;
                    }
                }
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => {
                        let frame: ToServer = serde_json::from_str(&text).unwrap();
                        server.step(Input::Frame { connection, frame });
                    }
                    Some(Ok(_)) => {}
                    _ => break,
                },
            }
        }
    })
}

async fn events(State(server): State<Arc<Server>>, body: String) -> impl IntoResponse {
    let mut accepted = 0;
    for line in body.lines() {
        accepted += 1;
        if let Event::Network(row) = Event::parse(line).unwrap() {
            server.rows.lock().unwrap().push(*row);
        }
    }
    server.changed.send_modify(|count| *count += 1);
    let report = serde_json::json!({ "accepted": accepted, "duplicates": 0, "rejected_count": 0 });
    ([("content-type", "application/json")], report.to_string())
}

/// Rows K7, P4, P5: from the halt to both confirmations and the last row, with one count of bytes.
#[tokio::test]
async fn a_halt_travels_from_the_server_to_the_reset_and_back() {
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let (server, url) = Server::start(&tasks).await;
    let link_config = LinkConfig {
        servers: vec![url],
        token: Secret::new("token".to_owned()),
        kind: EnforcerKind::Gateway,
        name: "gateway-1".to_owned(),
        subjects: vec![subject()],
        state_dir: None,
        on_lost: OnLost::Refuse,
        gaps: Vec::new(),
        events: EventBuffer::default(),
        trust: estoppel_link::Trust::system(),
    };
    let clock = Arc::new(SystemClock);
    let (link, events) = Link::start(link_config, clock, &tasks, stop.clone()).unwrap();
    let sink = Sink::start(Answers::Nothing).await;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gateway = Gateway::start(
        config(&[("evil.example:443", sink.address)]),
        Arc::new(LinkAuthority::new(link.clone())),
        events,
        listener,
        &tasks,
        stop.clone(),
    )
    .unwrap();
    timeout(PATIENCE, link.ready()).await.unwrap();

    let mut client = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let request = "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    let hello = client_hello("evil.example");
    client.write_all(&hello).await.unwrap();
    sink.received(hello.len()).await;

    let order = server.halt();
    reset(&mut client).await;
    sink.ended(1).await;
    let confirmed = |server: &Server| {
        let progress = server.switch.lock().unwrap().progress(order, now()).unwrap();
        (progress.expected, progress.refusing, progress.settled) == (1, 1, 1)
    };
    server.wait(confirmed).await;
    let progress = server.switch.lock().unwrap().progress(order, now()).unwrap();
    let settlement = &progress.enforcers[0].settlement;
    assert_eq!(settlement.connections_cut, 1);
    assert_eq!(settlement.bytes_out, sink.count() as u64);
    server.wait(|server| !server.rows.lock().unwrap().is_empty()).await;
    let rows = server.rows.lock().unwrap().clone();
    assert_eq!(rows[0].verdict, Some(FlowVerdict::Cut));
    assert_eq!(rows[0].bytes_sent, Some(sink.count() as u64));
    stop.cancel();
}
