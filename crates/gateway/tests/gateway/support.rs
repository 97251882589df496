//! A gateway under test with a real server behind it, a destination that counts for itself, and a
//! client that speaks bytes.
//!
//! Orders are given to the server over HTTP, come over the real link, and are confirmed to it. What
//! the gateway says on its way there is copied by a [`Tap`], which changes nothing. Actions are told to
//! the gateway by a test instead ([`Harness::tell`]), since no address of the server gives them to one.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use estoppel_api::{
    BlockRequest, Client, HaltAccepted, HaltRequest, HaltStatus, LimitRequest, ReleaseRequest,
    Role, TokenRequest,
};
use estoppel_eventlog::WorkerCommand;
use estoppel_extract::Allowlist;
use estoppel_gateway::{
    Authority, Gateway, GatewayConfig, HostOverride, Identity, Limits, LinkAuthority, Mode, Policy,
    Source, SystemResolver,
};
use estoppel_link::{
    Link, LinkConfig, LinkEvent, Refusal, Trust,
    frame::{EnforcerKind, Outcome, Settlement},
};
use estoppel_model::{
    AuditEvent, EntityId, Event, FlowVerdict, Limit, NetworkEvent, Order, OrderId, Scope, Secret,
    Subject, SystemClock, Untrusted,
};
use estoppel_server::{Running, Server, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// Longest wait for anything in these tests: an event that does not come is a failure, not a delay.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The session of the agent behind a [`Harness::start`]ed gateway.
pub(crate) const SESSION: &str = "abc123";

/// The reason of every order that a test gives.
pub(crate) const REASON: &str = "suspected prompt injection";

/// The link, and a copy of what the gateway says to it.
pub(crate) struct Tap {
    link: LinkAuthority,
    rows: Mutex<Vec<NetworkEvent>>,
    audits: Mutex<Vec<AuditEvent>>,
    settlements: Mutex<Vec<(OrderId, Settlement)>>,
    outcomes: Mutex<Vec<Outcome>>,
    version: watch::Sender<u64>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Tap {
    fn new(link: Link) -> Self {
        Self {
            link: LinkAuthority::new(link),
            rows: Mutex::default(),
            audits: Mutex::default(),
            settlements: Mutex::default(),
            outcomes: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn rows(&self) -> Vec<NetworkEvent> {
        lock(&self.rows).clone()
    }

    /// Waits for so many records of limits that tasks came to be over; returns all that there are.
    pub(crate) async fn audits(&self, count: usize) -> Vec<AuditEvent> {
        let mut version = self.version.subscribe();
        let waiting = version.wait_for(|_| lock(&self.audits).len() >= count);
        timeout(PATIENCE, waiting).await.unwrap().unwrap();
        lock(&self.audits).clone()
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
}

impl Authority for Tap {
    fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        self.link.check(subject)
    }

    fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<Arc<Order>> {
        self.link.blocked(subject, host, port)
    }

    fn limit(&self, subject: &Subject) -> Limit {
        self.link.limit(subject)
    }

    fn contact(&self) -> Option<Untrusted<Arc<str>>> {
        self.link.contact()
    }

    fn settled(&self, order: OrderId, settlement: Settlement) {
        self.link.settled(order, settlement.clone());
        lock(&self.settlements).push((order, settlement));
        self.changed();
    }

    fn outcome(&self, outcome: Outcome) {
        self.link.outcome(outcome.clone());
        lock(&self.outcomes).push(outcome);
        self.changed();
    }

    fn record(&self, event: Event) {
        self.link.record(event.clone());
        match event {
            Event::Network(row) => lock(&self.rows).push(*row),
            Event::Audit(record) => lock(&self.audits).push(*record),
        }
        self.changed();
    }
}

/// A real server in this process, on a free port and a data folder of its own.
pub(crate) struct Control {
    pub(crate) client: Client,
    pub(crate) trust: Trust,
    pub(crate) admin: String,
    running: Option<Running>,
    /// Its own, which nobody waits for: the logs of a server that is not stopped do not end.
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs something of the server where the server runs.
async fn there<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    TaskTracker::new().spawn_on(work, runtime.handle()).await.unwrap()
}

impl Control {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}, Trust::system()).await
    }

    /// Starts one that is configured further, for whom these authorities vouch.
    pub(crate) async fn with(configure: impl FnOnce(&mut ServerConfig), trust: Trust) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Nothing here asks for SQL, and the worker starts with the first query.
        let worker = WorkerCommand { program: "/bin/false".into(), args: Vec::new() };
        let mut config = ServerConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            ..ServerConfig::new(folder.path().join("data"), worker)
        };
        configure(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let running = there(&runtime, Server::start(config)).await.unwrap();
        timeout(PATIENCE, running.recovered()).await.unwrap();
        let admin = std::fs::read_to_string(running.admin_token_file()).unwrap();
        let token = Secret::new(admin.clone());
        let client = Client::trusting(running.url(), token, &trust).unwrap();
        Self {
            client,
            trust,
            admin,
            running: Some(running),
            runtime: Some(runtime),
            _folder: folder,
        }
    }

    pub(crate) fn url(&self) -> Url {
        self.client.url().clone()
    }

    pub(crate) async fn token(&self, name: &str, role: Role) -> String {
        let request = TokenRequest::new(EntityId::new(name).unwrap(), role);
        self.client.mint_token(&request).await.unwrap().token
    }

    /// Starts a gateway that is linked to it.
    pub(crate) async fn gateway(self, config: GatewayConfig) -> Harness {
        let url = self.url();
        self.gateway_by(url, config).await
    }

    /// As [`Control::gateway`], over another way to the server.
    pub(crate) async fn gateway_by(self, url: Url, config: GatewayConfig) -> Harness {
        let harness = self.unready_gateway_by(url, config).await;
        let ready = timeout(PATIENCE, harness.link.ready()).await;
        assert!(ready.is_ok(), "{:?}", harness.link.status());
        harness
    }

    /// As [`Control::gateway_by`], without waiting for a lease.
    pub(crate) async fn unready_gateway_by(self, url: Url, config: GatewayConfig) -> Harness {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let token = Secret::new(self.token("gateway-1", Role::Enforcer).await);
        let link_config = LinkConfig {
            trust: self.trust.clone(),
            ..LinkConfig::new(vec![url], token, EnforcerKind::Gateway, "gateway-1")
        };
        let clock = Arc::new(SystemClock);
        let (link, from_link) = Link::start(link_config, clock, &tasks, stop.clone()).unwrap();
        let (events, receiver) = mpsc::channel(16);
        let (held, arrived) = (watch::Sender::new(false), watch::Sender::new(Vec::new()));
        tasks.spawn(pass_on(from_link, events.clone(), held.subscribe(), arrived.clone()));
        let orders = Arc::new(Tap::new(link.clone()));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let authority = Arc::clone(&orders);
        let gateway =
            Gateway::start(config, authority, receiver, listener, &tasks, stop.clone()).unwrap();
        Harness { gateway, orders, link, server: self, events, held, arrived, stop }
    }
}

/// Hands the link's events to the gateway, unless they are held; notes the orders at once.
async fn pass_on(
    mut from: mpsc::Receiver<LinkEvent>,
    to: mpsc::Sender<LinkEvent>,
    mut held: watch::Receiver<bool>,
    arrived: watch::Sender<Vec<OrderId>>,
) {
    while let Some(event) = from.recv().await {
        if let LinkEvent::Ordered(order) = &event {
            arrived.send_modify(|orders| orders.push(order.id));
        }
        if held.wait_for(|held| !held).await.is_err() || to.send(event).await.is_err() {
            return;
        }
    }
}

/// A running gateway and its server.
pub(crate) struct Harness {
    pub(crate) gateway: Gateway,
    pub(crate) orders: Arc<Tap>,
    pub(crate) link: Link,
    pub(crate) server: Control,
    events: mpsc::Sender<LinkEvent>,
    held: watch::Sender<bool>,
    arrived: watch::Sender<Vec<OrderId>>,
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
        control: None,
        resolver: Arc::new(SystemResolver),
        clock: Arc::new(SystemClock),
    }
}

impl Harness {
    /// A gateway with a server of its own.
    pub(crate) async fn start(config: GatewayConfig) -> Self {
        Control::start().await.gateway(config).await
    }

    pub(crate) async fn tell(&self, event: LinkEvent) {
        self.events.send(event).await.unwrap();
    }

    /// From now on the gateway is told nothing, or told what was held.
    pub(crate) fn hold_events(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until an order is in the view.
    async fn in_view(&self, order: HaltAccepted) -> HaltAccepted {
        self.arrived(order.id).await;
        order
    }

    async fn arrived(&self, order: OrderId) {
        let mut arrived = self.arrived.subscribe();
        let waiting = arrived.wait_for(|orders| orders.contains(&order));
        timeout(PATIENCE, waiting).await.unwrap().unwrap();
    }

    /// Limits a scope at the server, as [`Harness::halt`] halts.
    pub(crate) async fn limit(&self, scope: &str, limit: Limit) -> OrderId {
        let scope: Scope = scope.parse().unwrap();
        let reason = REASON.to_owned();
        let request = LimitRequest { scope: scope.into(), limit, reason, id: None, incident: None };
        let accepted = self.server.client.limit(&request).await.unwrap();
        self.arrived(accepted.id).await;
        accepted.id
    }

    /// Releases an order at the server.
    pub(crate) async fn release(&self, scope: &str, order: OrderId) {
        let scope: Scope = scope.parse().unwrap();
        let request = ReleaseRequest {
            scope: scope.into(),
            reason: REASON.to_owned(),
            halts: Some(vec![order]),
            id: None,
            watch_seconds: Some(0),
        };
        self.server.client.release(&request).await.unwrap();
    }

    /// Halts a scope at the server; returns once the order is in the gateway's view.
    pub(crate) async fn halt(&self, scope: &str) -> HaltAccepted {
        let scope: Scope = scope.parse().unwrap();
        let request = HaltRequest {
            scope: scope.into(),
            reason: REASON.to_owned(),
            id: None,
            until: None,
            incident: None,
        };
        self.in_view(self.server.client.halt(&request).await.unwrap()).await
    }

    /// Blocks a destination for a scope at the server, as [`Harness::halt`] halts.
    pub(crate) async fn block(&self, scope: &str, destination: &str) -> HaltAccepted {
        let scope: Scope = scope.parse().unwrap();
        let request = BlockRequest {
            scope: scope.into(),
            destination: destination.parse().unwrap(),
            reason: REASON.to_owned(),
            id: None,
            incident: None,
        };
        self.in_view(self.server.client.block(&request).await.unwrap()).await
    }

    /// What the server knows of a halt, once it is as expected.
    pub(crate) async fn status_when(
        &self,
        halt: OrderId,
        expected: impl Fn(&HaltStatus) -> bool,
    ) -> HaltStatus {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let looking = async {
            loop {
                looks.tick().await;
                let status = self.server.client.halt_status(halt).await.unwrap();
                if expected(&status) {
                    return status;
                }
            }
        };
        timeout(PATIENCE, looking).await.unwrap()
    }

    /// Waits until the server has taken so many events.
    pub(crate) async fn delivered(&self, events: u64) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let looking = async {
            while self.link.status().events.delivered < events {
                looks.tick().await;
            }
        };
        let delivered = timeout(PATIENCE, looking).await;
        assert!(delivered.is_ok(), "{:?}", self.link.status());
    }

    /// Ends the server as an orderly stop does; the link finds nobody from then on.
    pub(crate) async fn end_server(&mut self) {
        let running = self.server.running.take().unwrap();
        there(self.server.runtime.as_ref().unwrap(), running.stop()).await;
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
