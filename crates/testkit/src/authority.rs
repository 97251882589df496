//! A server of the stream and of events in the test's own process: the real switch of
//! `killswitch::server` behind real sockets, with real signatures; only ledger and tokens are missing.
//!
//! It gives orders that the product's own interface has no way to give, falls silent and forgets, as a
//! test says. What guards in other languages need of it is in [`part`].

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what serves tests fails as tests do"
)]

pub mod part;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
    routing::{get, post},
    serve::ListenerExt as _,
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_killswitch::{
    Now, Signatures, Signer,
    frame::{ToEnforcer, ToServer},
    server::{ConnectionId, Effect, HaltProgress, Identity, Input, Switch, SwitchConfig},
};
use estoppel_model::{
    Actor, Clock as _, EntityId, Order, OrderBody, OrderId, SignedOrder, SystemClock, Timestamp,
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

struct Keys(SigningKey, String);

impl Signatures for Keys {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        let valid = || {
            let mut key = [0; 32];
            let mut signature = [0; 64];
            hex::decode_to_slice(&order.key, &mut key).ok()?;
            hex::decode_to_slice(&order.signature, &mut signature).ok()?;
            let signed = SignedOrder::signed_bytes(&order.order);
            let key = VerifyingKey::from_bytes(&key).ok()?;
            key.verify_strict(&signed, &Signature::from_bytes(&signature)).ok()
        };
        valid().is_some()
    }
}

impl Signer for Keys {
    fn key(&self) -> &str {
        &self.1
    }

    fn sign(&self, order: String) -> SignedOrder {
        let signature = self.0.sign(&SignedOrder::signed_bytes(&order));
        SignedOrder { key: self.1.clone(), signature: hex::encode(signature.to_bytes()), order }
    }
}

fn keys() -> Keys {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = hex::encode(key.verifying_key().as_bytes());
    Keys(key, public)
}

struct Shared {
    inner: Mutex<Inner>,
    /// Counts the effects, so that a test can wait for one.
    changed: watch::Sender<u64>,
    events: watch::Sender<Vec<Value>>,
    stop: CancellationToken,
    config: SwitchConfig,
    /// The tenant to which the guard's token is bound.
    tenant: Option<EntityId>,
}

struct Inner {
    switch: Switch,
    connections: u64,
    senders: HashMap<ConnectionId, mpsc::Sender<String>>,
}

/// A server for one enforcer; it is gone when this is dropped.
pub struct Authority {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn now() -> Now {
    Now { wall: SystemClock.now(), boot: SystemClock.boottime() }
}

/// The value of a future that is there within half a minute.
///
/// # Panics
/// When it is not.
pub async fn timely<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("within half a minute")
}

impl Authority {
    /// Starts one with the usual lease.
    pub async fn start() -> Self {
        Self::start_with(SwitchConfig::default()).await
    }

    /// Starts one with another lease.
    pub async fn start_with(config: SwitchConfig) -> Self {
        Self::start_for(config, None).await
    }

    /// Starts one whose enforcer's token is bound to a tenant.
    ///
    /// # Panics
    /// When no port of this machine is free.
    pub async fn start_for(config: SwitchConfig, tenant: Option<EntityId>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (switch, wrong) = Switch::new(config, Box::new(keys()), []);
        assert_eq!(wrong, 0);
        let inner = Inner { switch, connections: 0, senders: HashMap::new() };
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
            events: watch::Sender::default(),
            stop: stop.clone(),
            config,
            tenant,
        });
        let router = Router::new()
            .route("/v1/stream", get(stream))
            .route("/v1/events", post(events))
            .with_state(Arc::clone(&shared));
        TaskTracker::new().spawn(async move {
            // A frame that waits for the acknowledgement of another would be late.
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
            stop.run_until_cancelled(async { axum::serve(listener, router).await }).await
        });
        Self { address, shared }
    }

    /// Its address, for an enforcer.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Gives an order, as the server does on a person's word.
    ///
    /// # Panics
    /// When the text is no scope.
    pub fn order(&self, scope: &str, body: OrderBody) -> OrderId {
        let order = Order {
            id: OrderId::new(),
            scope: scope.parse::<estoppel_model::Scope>().unwrap().into(),
            reason: "suspected prompt injection".into(),
            issued_by: Actor::new("alice").unwrap(),
            issued_at: Timestamp::from_micros(1_770_260_400_000_000),
            incident: None,
            tenant: None,
            body,
        };
        self.give(serde_json::to_string(&order).unwrap());
        order.id
    }

    /// Gives an order of this text.
    ///
    /// # Panics
    /// When no order can be read of it.
    pub fn give(&self, order: String) {
        let signed = keys().sign(order);
        let mut inner = self.shared.lock();
        // A release is in the ledger first; there is none here.
        let (_, effects) = inner.switch.submit_recorded(signed, now()).unwrap();
        self.shared.carry_out(&mut inner, effects);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.shared.lock().senders.clear();
    }

    /// Cuts all connections and forgets every order and enforcer.
    pub fn forget(&self) {
        let mut inner = self.shared.lock();
        (inner.switch, _) = Switch::new(self.shared.config, Box::new(keys()), []);
        inner.senders.clear();
    }

    /// Answers no ping from now on.
    pub fn fall_silent(&self) {
        self.shared.lock().switch.hold_leases();
    }

    /// Answers pings again, those that wait first.
    pub fn answer(&self) {
        let mut inner = self.shared.lock();
        let effects = inner.switch.grant_leases(now());
        self.shared.carry_out(&mut inner, effects);
    }

    /// Waits until an enforcer has a connection and a lease.
    ///
    /// # Panics
    /// When none has within half a minute.
    pub async fn until_enforced(&self) {
        let mut changed = self.shared.changed.subscribe();
        timely(async {
            let enforced = |switch: &Switch| {
                let boot = now().boot;
                switch.enforcers().any(|one| one.connection.is_some() && one.is_alive(boot))
            };
            while !enforced(&self.shared.lock().switch) {
                changed.changed().await.unwrap();
            }
        })
        .await;
    }

    /// Gives a halt without an end.
    pub fn halt(&self, scope: &str) -> OrderId {
        self.order(scope, OrderBody::Halt { until: None })
    }

    /// Waits until an order's progress is as wanted.
    ///
    /// # Panics
    /// When it is not within half a minute, or there is no such order.
    pub async fn until(
        &self,
        order: OrderId,
        wanted: impl Fn(&HaltProgress) -> bool,
    ) -> HaltProgress {
        let mut changed = self.shared.changed.subscribe();
        timely(async {
            loop {
                let progress = self.shared.lock().switch.progress(order, now()).unwrap();
                if wanted(&progress) {
                    return progress;
                }
                changed.changed().await.unwrap();
            }
        })
        .await
    }

    /// Waits until the events are as wanted.
    ///
    /// # Panics
    /// When they are not within half a minute.
    pub async fn events_until(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut events = self.shared.events.subscribe();
        timely(events.wait_for(|events| wanted(events))).await.unwrap().clone()
    }

    /// Waits for an event with this decision.
    ///
    /// # Panics
    /// When there is none within half a minute.
    pub async fn event(&self, decision: &str) -> Value {
        let is_it = |event: &Value| event["decision"] == decision;
        let events = self.events_until(|events| events.iter().any(is_it)).await;
        events.into_iter().find(is_it).unwrap()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, input: Input) {
        let mut inner = self.lock();
        let effects = inner.switch.step(input, now());
        self.carry_out(&mut inner, effects);
    }

    fn carry_out(&self, inner: &mut Inner, effects: Vec<Effect>) {
        let send = |connection: ConnectionId, frame: &ToEnforcer| {
            if let Some(sender) = inner.senders.get(&connection) {
                let _ = sender.try_send(serde_json::to_string(frame).unwrap());
            }
        };
        for effect in effects {
            match effect {
                Effect::Broadcast { connections, frame } => {
                    connections.iter().for_each(|connection| send(*connection, &frame));
                }
                Effect::Send { connection, frame } => send(connection, &frame),
                Effect::Close { reason, .. } | Effect::Rejected { reason, .. } => {
                    panic!("the guard misbehaved: {reason}")
                }
                _ => {}
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

async fn stream(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |socket| {
        shared.stop.clone().run_until_cancelled(serve(shared, socket)).await;
    })
}

async fn serve(shared: Arc<Shared>, socket: WebSocket) {
    let (mut sink, mut frames) = socket.split();
    let (sender, mut outbound) = mpsc::channel::<String>(1_024);
    let connection = {
        let mut inner = shared.lock();
        inner.connections += 1;
        let connection = ConnectionId(inner.connections);
        inner.senders.insert(connection, sender);
        connection
    };
    let tenant = shared.tenant.clone();
    let identity = Identity { actor: Actor::new("agent").unwrap(), tenant, scopes: None };
    shared.step(Input::Connected { connection, identity: Box::new(identity) });
    loop {
        tokio::select! {
            text = outbound.recv() => match text {
                Some(text) => {
                    if sink.send(Message::text(text)).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            frame = frames.next() => match frame {
                Some(Ok(Message::Text(text))) => {
                    let frame: ToServer = serde_json::from_str(&text).unwrap();
                    shared.step(Input::Frame { connection, frame });
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            },
        }
    }
    shared.step(Input::Disconnected { connection });
}

async fn events(State(shared): State<Arc<Shared>>, body: String) -> Json<Value> {
    let events: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let accepted = events.len();
    for event in &events {
        // What the real server would refuse must not come from a guard.
        estoppel_model::Event::parse(&event.to_string()).unwrap();
    }
    shared.events.send_modify(|all| all.extend(events));
    Json(serde_json::json!({"accepted": accepted, "duplicates": 0, "rejected_count": 0}))
}
