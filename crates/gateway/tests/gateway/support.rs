//! A gateway under test, a destination that counts for itself, and a client that speaks bytes.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use estoppel_extract::Allowlist;
use estoppel_gateway::{
    Authority, Gateway, GatewayConfig, HostOverride, Identity, Limits, Mode, Policy, Source,
    SystemResolver,
};
use estoppel_killswitch::{Insert, OrderSet};
use estoppel_link::{
    LinkEvent, Refusal,
    frame::{Outcome, Settlement},
};
use estoppel_model::{
    Actor, Clock as _, Destination, EntityId, Event, FlowVerdict, NetworkEvent, Order, OrderBody,
    OrderId, SignedOrder, Subject, SystemClock,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest wait for anything in these tests: an event that does not come is a failure, not a delay.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The session of the agent behind a [`Harness::start`]ed gateway.
pub(crate) const SESSION: &str = "abc123";

/// Orders as the kill switch folds them, and the records that the gateway makes.
#[derive(Default)]
pub(crate) struct Orders {
    set: Mutex<OrderSet>,
    lease_is_over: Mutex<bool>,
    rows: Mutex<Vec<NetworkEvent>>,
    settlements: Mutex<Vec<(OrderId, Settlement)>>,
    outcomes: Mutex<Vec<Outcome>>,
    version: watch::Sender<u64>,
}

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Orders")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Orders {
    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn rows(&self) -> Vec<NetworkEvent> {
        lock(&self.rows).clone()
    }

    /// Waits until the rows are as expected.
    pub(crate) async fn rows_when(
        &self,
        expected: impl Fn(&[NetworkEvent]) -> bool,
    ) -> Vec<NetworkEvent> {
        let mut version = self.version.subscribe();
        let waiting = version.wait_for(|_| expected(&lock(&self.rows)));
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!("rows: {:#?}", self.rows());
        }
        self.rows()
    }

    /// Waits for the last row of as many flows.
    pub(crate) async fn verdicts(&self, count: usize) -> Vec<FlowVerdict> {
        let rows = self.rows_when(|rows| rows.len() >= count).await;
        rows.iter().filter_map(|row| row.verdict).collect()
    }

    pub(crate) async fn settlement(&self, order: OrderId) -> Settlement {
        let find = || {
            let settlements = lock(&self.settlements);
            settlements.iter().find(|(id, _)| *id == order).map(|(_, found)| found.clone())
        };
        let mut version = self.version.subscribe();
        timeout(PATIENCE, version.wait_for(|_| find().is_some())).await.unwrap().unwrap();
        find().unwrap()
    }

    pub(crate) async fn outcome(&self) -> Outcome {
        let mut version = self.version.subscribe();
        let waiting = version.wait_for(|_| !lock(&self.outcomes).is_empty());
        timeout(PATIENCE, waiting).await.unwrap().unwrap();
        lock(&self.outcomes)[0].clone()
    }

    /// Puts an order in force without telling the gateway.
    pub(crate) fn put(&self, scope: &str, body: OrderBody) -> Arc<Order> {
        let order = Order {
            id: OrderId::new(),
            scope: estoppel_model::ScopeSet::new([scope.parse().unwrap()]).unwrap(),
            reason: "suspected prompt injection".to_owned(),
            issued_by: Actor::new("alice").unwrap(),
            issued_at: SystemClock.now(),
            incident: None,
            tenant: None,
            body,
        };
        let order = serde_json::to_string(&order).unwrap();
        // Signatures are the link's matter.
        let signed = SignedOrder { order, key: String::new(), signature: String::new() };
        match lock(&self.set).insert(signed).unwrap() {
            Insert::New(added) => added.order,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lose_lease(&self) {
        *lock(&self.lease_is_over) = true;
    }
}

impl Authority for Orders {
    fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        if let Some(order) = lock(&self.set).verdicts().check(subject) {
            return Err(Refusal::Halted(Arc::clone(order)));
        }
        if *lock(&self.lease_is_over) { Err(Refusal::LeaseLost) } else { Ok(()) }
    }

    fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<Arc<Order>> {
        lock(&self.set).verdicts().blocked(subject, host, port).cloned()
    }

    fn settled(&self, order: OrderId, settlement: Settlement) {
        lock(&self.settlements).push((order, settlement));
        self.changed();
    }

    fn outcome(&self, outcome: Outcome) {
        lock(&self.outcomes).push(outcome);
        self.changed();
    }

    fn record(&self, event: Event) {
        let Event::Network(row) = event else { panic!("{event:?}") };
        lock(&self.rows).push(*row);
        self.changed();
    }
}

/// A running gateway.
pub(crate) struct Harness {
    pub(crate) gateway: Gateway,
    pub(crate) orders: Arc<Orders>,
    events: mpsc::Sender<LinkEvent>,
    stop: CancellationToken,
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn subject() -> Subject {
    Subject::session(EntityId::new(SESSION).unwrap())
}

pub(crate) fn policy(mode: Mode, entries: &[&str]) -> Policy {
    Policy { mode, allowlist: Arc::new(Allowlist::parse(entries).unwrap()) }
}

/// What most tests start from: the agent of [`SESSION`], everything learned, names led to places.
pub(crate) fn config(hosts: &[(&str, SocketAddr)]) -> GatewayConfig {
    let hosts = hosts
        .iter()
        .map(|(name, address)| format!("{name}={address}").parse::<HostOverride>().unwrap())
        .collect();
    GatewayConfig {
        identity: Identity::Fixed(Source {
            subject: subject(),
            pid: Some(4711),
            ..Source::default()
        }),
        policy: Policy::default(),
        hosts,
        own_addresses: Vec::new(),
        limits: Limits::default(),
        resolver: Arc::new(SystemResolver),
        clock: Arc::new(SystemClock),
    }
}

impl Harness {
    pub(crate) fn start(config: GatewayConfig) -> Self {
        let orders = Arc::new(Orders::default());
        let (events, receiver) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let authority = Arc::clone(&orders);
        let tasks = TaskTracker::new();
        let gateway =
            Gateway::start(config, authority, receiver, listener, &tasks, stop.clone()).unwrap();
        Self { gateway, orders, events, stop }
    }

    pub(crate) async fn tell(&self, event: LinkEvent) {
        self.events.send(event).await.unwrap();
    }

    /// Gives an order, as the link would: in force first, then told.
    pub(crate) async fn order(&self, scope: &str, body: OrderBody) -> Arc<Order> {
        let order = self.orders.put(scope, body);
        self.tell(LinkEvent::Ordered(Arc::clone(&order))).await;
        order
    }

    pub(crate) async fn halt(&self, scope: &str) -> Arc<Order> {
        self.order(scope, OrderBody::Halt { until: None }).await
    }

    pub(crate) async fn block(&self, scope: &str, destination: &str) -> Arc<Order> {
        let destination: Destination = destination.parse().unwrap();
        self.order(scope, OrderBody::Block { destination }).await
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gateway.local_addr()).await.unwrap()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        answer(&mut client).await
    }

    /// A GET in absolute form, closed behind the answer.
    pub(crate) async fn fetch(&self, authority: &str) -> String {
        let request = format!(
            "GET http://{authority}/path?q=1 HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        );
        self.exchange(&request).await
    }

    /// A tunnel that was answered with 200.
    pub(crate) async fn tunnel(&self, authority: &str) -> TcpStream {
        let mut client = self.connect().await;
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        client
    }

    /// Bytes sent by the rows so far.
    pub(crate) fn sent(&self) -> u64 {
        self.orders.rows().iter().filter_map(|row| row.bytes_sent).sum()
    }
}

/// Reads all that comes until the connection is closed.
pub(crate) async fn answer(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads the head of an answer and not a byte more.
pub(crate) async fn head(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, client.read_u8()).await.unwrap();
        bytes.push(
            byte.unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&bytes))
            }),
        );
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads until the connection ends, and says how.
pub(crate) async fn ending(client: &mut TcpStream) -> std::io::Result<()> {
    let mut bytes = vec![0; 4_096];
    loop {
        match timeout(PATIENCE, client.read(&mut bytes)).await.unwrap() {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for a reset.
pub(crate) async fn reset(client: &mut TcpStream) {
    let kind = ending(client).await.map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::ConnectionReset));
}

/// What a sink answers to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// To the head of a request, with `ok`.
    Http,
    /// To nothing.
    Nothing,
}

/// The attacker, or any other destination: keeps and counts what it gets.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
    count: watch::Sender<usize>,
    connections: watch::Sender<usize>,
    ended: watch::Sender<usize>,
}

impl Sink {
    pub(crate) async fn start(answers: Answers) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), answers).await
    }

    pub(crate) async fn start_at(address: SocketAddr, answers: Answers) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let sink = Self {
            address: listener.local_addr().unwrap(),
            bytes: Arc::default(),
            count: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            ended: watch::Sender::new(0),
        };
        let tasks = TaskTracker::new();
        let serving = sink.clone();
        tasks.clone().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                serving.connections.send_modify(|count| *count += 1);
                tasks.spawn(serving.clone().receive(socket, answers));
            }
        });
        sink
    }

    async fn receive(self, mut socket: TcpStream, answers: Answers) {
        let mut buffer = vec![0; 64 * 1024];
        let mut head = Vec::new();
        while let Ok(count @ 1..) = socket.read(&mut buffer).await {
            lock(&self.bytes).extend_from_slice(&buffer[..count]);
            self.count.send_modify(|sum| *sum += count);
            head.extend_from_slice(&buffer[..count.min(8_192)]);
            if answers == Answers::Http && head.windows(4).any(|four| four == b"\r\n\r\n") {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: x\r\n\r\nok";
                let _ = socket.write_all(answer).await;
                break;
            }
            if answers == Answers::Nothing {
                head.clear();
            }
        }
        self.ended.send_modify(|count| *count += 1);
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.bytes)).into_owned()
    }

    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until so many bytes have come.
    pub(crate) async fn received(&self, bytes: usize) {
        let mut count = self.count.subscribe();
        timeout(PATIENCE, count.wait_for(|count| *count >= bytes)).await.unwrap().unwrap();
    }

    /// Waits until so many connections have ended.
    pub(crate) async fn ended(&self, connections: usize) {
        let mut ended = self.ended.subscribe();
        timeout(PATIENCE, ended.wait_for(|count| *count >= connections)).await.unwrap().unwrap();
    }
}

/// What a TLS client sends first to a server of this name.
pub(crate) fn client_hello(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    tls_client(name).write_tls(&mut bytes).unwrap();
    bytes
}

/// A TLS client that trusts the test's own certificate.
pub(crate) fn tls_client(name: &str) -> rustls::ClientConnection {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    let certificate = include_bytes!("../data/secure.example.crt");
    roots.add(CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap()
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
