//! A server of one deployment, small but real: WebSockets, tokens, signatures, the switch.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_killswitch::{
    Now, Signatures, Signer,
    frame::{Action, EnforcerKind, Outcome, ToEnforcer},
    server::{ConnectionId, Effect, Identity, Input, Switch, SwitchConfig},
};
use estoppel_link::{Link, LinkConfig, LinkEvent};
use estoppel_model::{
    Actor, Clock as _, EntityId, Order, OrderBody, OrderId, Scope, ScopeSet, Secret, SignedOrder,
    Subject, SystemClock,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) const TOKEN: &str = "test-token-1";
/// Longest time that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the servers of one deployment share: the key and the ledger.
#[derive(Clone)]
pub(crate) struct Deployment {
    key: SigningKey,
    pub(crate) ledger: Arc<Mutex<Vec<SignedOrder>>>,
    pub(crate) config: SwitchConfig,
}

struct Keys(SigningKey, String);

impl Signatures for Keys {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        let mut key = [0; 32];
        let mut signature = [0; 64];
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
        &self.1
    }

    fn sign(&self, order: String) -> SignedOrder {
        let signature = self.0.sign(&SignedOrder::signed_bytes(&order));
        SignedOrder { order, key: self.1.clone(), signature: hex::encode(signature.to_bytes()) }
    }
}

impl Deployment {
    pub(crate) fn new(seed: u8) -> Self {
        let config =
            SwitchConfig { lease: Duration::from_secs(15), ping: Duration::from_millis(200) };
        Self { key: SigningKey::from_bytes(&[seed; 32]), ledger: Arc::default(), config }
    }

    fn keys(&self) -> Keys {
        Keys(self.key.clone(), hex::encode(self.key.verifying_key().as_bytes()))
    }

    pub(crate) fn sign(&self, order: &Order) -> SignedOrder {
        self.keys().sign(serde_json::to_string(order).unwrap())
    }
}

struct Shared {
    deployment: Deployment,
    switch: Mutex<Switch>,
    senders: Mutex<HashMap<ConnectionId, mpsc::Sender<Message>>>,
    outcomes: Mutex<Vec<Outcome>>,
    next: AtomicU64,
    /// Nothing is answered.
    mute: AtomicBool,
    changed: Notify,
    stop: CancellationToken,
}

/// A running server; it is gone when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Server {
    pub(crate) async fn start(deployment: &Deployment) -> Self {
        Self::start_at(deployment, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(deployment: &Deployment, address: SocketAddr) -> Self {
        let kept = deployment.ledger.lock().unwrap().clone();
        let (switch, wrong) = Switch::new(deployment.config, Box::new(deployment.keys()), kept);
        assert_eq!(wrong, 0);
        let shared = Arc::new(Shared {
            deployment: deployment.clone(),
            switch: Mutex::new(switch),
            senders: Mutex::default(),
            outcomes: Mutex::default(),
            next: AtomicU64::new(0),
            mute: AtomicBool::new(false),
            changed: Notify::new(),
            stop: CancellationToken::new(),
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/stream", get(upgrade)).with_state(Arc::clone(&shared));
        let tasks = TaskTracker::new();
        let stop = shared.stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(async { axum::serve(listener, app).await }).await;
        });
        Self { address, shared, tasks }
    }

    /// Stops at once; connections break. Returns when the address is free.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.shared.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.address
    }

    pub(crate) fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::SeqCst);
    }

    pub(crate) fn give(&self, order: &Order) {
        let signed = self.shared.deployment.sign(order);
        let mut switch = self.shared.switch.lock().unwrap();
        let (_, effects) = match order.body {
            OrderBody::Release { .. } => {
                self.shared.deployment.ledger.lock().unwrap().push(signed.clone());
                switch.submit_recorded(signed, now()).unwrap()
            }
            _ => switch.submit(signed, now()).unwrap(),
        };
        self.shared.carry_out(effects);
    }

    pub(crate) fn halt(&self, scope: &str) -> Order {
        let order = halt(scope, "alice");
        self.give(&order);
        order
    }

    pub(crate) fn release(&self, orders: &[OrderId]) {
        let body = OrderBody::Release { orders: orders.to_vec() };
        self.give(&Order { body, ..halt("global", "alice") });
    }

    pub(crate) fn act(&self, action: &Action) {
        let switch = self.shared.switch.lock().unwrap();
        let enforcer = switch.enforcers().next().unwrap().id;
        self.shared.carry_out(switch.act(enforcer, action.clone()));
    }

    /// Sends a text as it stands to every connection.
    pub(crate) fn send_raw(&self, text: &str) {
        for sender in self.shared.senders.lock().unwrap().values() {
            sender.try_send(Message::text(text)).unwrap();
        }
    }

    /// Waits until the switch says so.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&Switch) -> bool) {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                if is(&self.shared.switch.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "waited for {what}");
    }

    pub(crate) async fn outcome(&self) -> Outcome {
        let first = || self.shared.outcomes.lock().unwrap().first().cloned();
        self.until("an outcome", |_| first().is_some()).await;
        first().unwrap()
    }

    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Switch) -> T) -> T {
        question(&self.shared.switch.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

pub(crate) fn now() -> Now {
    Now { wall: SystemClock.now(), boot: SystemClock.boottime() }
}

impl Shared {
    fn step(&self, input: Input) {
        let mut switch = self.switch.lock().unwrap();
        let effects = switch.step(input, now());
        self.carry_out(effects);
    }

    fn carry_out(&self, effects: impl IntoIterator<Item = Effect>) {
        let mut senders = self.senders.lock().unwrap();
        for effect in effects {
            match effect {
                Effect::Broadcast { connections, frame } => {
                    let text = serde_json::to_string(&frame).unwrap();
                    for connection in connections {
                        senders[&connection].try_send(Message::text(text.clone())).unwrap();
                    }
                }
                Effect::Send { connection, frame } => {
                    let muted = self.mute.load(Ordering::SeqCst)
                        && matches!(frame, ToEnforcer::Pong { .. } | ToEnforcer::Welcome(_));
                    if let Some(sender) = senders.get(&connection).filter(|_| !muted) {
                        let text = serde_json::to_string(&frame).unwrap();
                        sender.try_send(Message::text(text)).unwrap();
                    }
                }
                Effect::Persist(order) => self.deployment.ledger.lock().unwrap().push(order),
                Effect::Close { connection, .. } => {
                    senders.remove(&connection);
                }
                Effect::Outcome { outcome, .. } => self.outcomes.lock().unwrap().push(*outcome),
                _ => {}
            }
        }
        self.changed.notify_waiters();
    }
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    if bearer != Some(&format!("Bearer {TOKEN}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    upgrade.on_upgrade(move |socket| async move {
        let stop = shared.stop.clone();
        stop.run_until_cancelled(serve(shared, socket)).await;
    })
}

async fn serve(shared: Arc<Shared>, mut socket: WebSocket) {
    let connection = ConnectionId(shared.next.fetch_add(1, Ordering::SeqCst));
    let (sender, mut frames) = mpsc::channel(10_000);
    shared.senders.lock().unwrap().insert(connection, sender);
    let actor = Actor::new("test").unwrap();
    let identity = Box::new(Identity { actor, tenant: None, scopes: None });
    shared.step(Input::Connected { connection, identity });
    loop {
        tokio::select! {
            frame = frames.recv() => {
                let Some(frame) = frame else { break };
                if socket.send(frame).await.is_err() {
                    break;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = serde_json::from_str(&text).unwrap();
                    shared.step(Input::Frame { connection, frame });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => break,
            },
        }
    }
    shared.senders.lock().unwrap().remove(&connection);
    shared.step(Input::Disconnected { connection });
}

pub(crate) fn halt(scope: &str, actor: &str) -> Order {
    Order {
        id: OrderId::new(),
        scope: ScopeSet::from(scope.parse::<Scope>().unwrap()),
        reason: "suspected prompt injection".to_owned(),
        issued_by: Actor::new(actor).unwrap(),
        issued_at: SystemClock.now(),
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    }
}

pub(crate) fn session(id: &str) -> Subject {
    Subject::session(EntityId::new(id).unwrap())
}

/// A link under test, which ends with this.
pub(crate) struct TestLink {
    pub(crate) link: Link,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

pub(crate) fn config(servers: &[SocketAddr]) -> LinkConfig {
    let servers = servers.iter().map(|at| format!("http://{at}").parse().unwrap()).collect();
    LinkConfig::new(servers, Secret::new(TOKEN.to_owned()), EnforcerKind::Guard, "test")
}

pub(crate) fn kept_in(dir: &Path, servers: &[SocketAddr]) -> LinkConfig {
    LinkConfig { state_dir: Some(dir.to_owned()), ..config(servers) }
}

impl TestLink {
    pub(crate) fn start(config: LinkConfig) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let clock = Arc::new(SystemClock);
        let (link, events) = Link::start(config, clock, &tasks, stop.clone()).unwrap();
        Self { link, events, stop, tasks }
    }

    pub(crate) async fn ready(config: LinkConfig) -> Self {
        let this = Self::start(config);
        let ready = tokio::time::timeout(PATIENCE, this.link.ready()).await;
        assert!(ready.is_ok(), "{:?}", this.link.status());
        this
    }

    /// The next event that `pick` takes; others are passed over.
    pub(crate) async fn event<T>(
        &mut self,
        what: &str,
        pick: impl Fn(LinkEvent) -> Option<T>,
    ) -> T {
        let waiting = async {
            loop {
                let event = self.events.recv().await.expect("the link goes on");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("waited for {what}: {:?}", self.link.status()),
        }
    }

    pub(crate) async fn ordered(&mut self, order: OrderId) {
        self.event("an order", |event| match event {
            LinkEvent::Ordered(found) if found.id == order => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until the link's status says so, which no event tells.
    pub(crate) async fn status(&self, what: &str, is: impl Fn(&estoppel_link::LinkStatus) -> bool) {
        let waiting = async {
            while !is(&self.link.status()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(found.is_ok(), "waited for {what}: {:?}", self.link.status());
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        assert!(tokio::time::timeout(PATIENCE, self.tasks.wait()).await.is_ok(), "it does not end");
    }
}

impl Drop for TestLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
