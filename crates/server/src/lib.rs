//! The control plane: takes orders from people and detections from the event stream, drives
//! playbooks, keeps the ledger.
//!
//! Start is in the order of what must not wait. The node's key, the tokens and the order spool are
//! read; the switchboard's thread and the API's listener run; only then do the ledger and the event
//! log recover, on another runtime. So a server that comes back enforces first (*stop-never-waits*).
//!
//! Absent here: Docker, processes, proxies. Hosts and gateways do that; the server sends them
//! orders and actions over the stream and links none of their code.

pub mod backup;
mod break_glass;
mod config;
mod credential;
mod drill;
mod expiry;
mod feed;
mod files;
mod forensics;
mod http;
mod incidents;
mod journal;
mod key;
mod longest_lease;
mod metrics;
mod mirror;
mod moment;
mod order;
mod pages;
mod plan;
mod release;
mod responder;
mod resume;
mod roster;
mod runs;
mod spool;
mod switchboard;
mod token;
mod vault;
mod watched;

use std::{
    collections::HashMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use estoppel_detect::DetectPolicy;
use estoppel_eventlog::{AllowedDestination, EventLog, SqlLimits};
use estoppel_extract::Allowlist;
use estoppel_killswitch::{
    frame::CONTACT_BYTES_MAX,
    invariant::{Count, Invariant},
    server::SwitchConfig,
};
use estoppel_model::{Clock, Secret, Timestamp};
use estoppel_playbook::Diagnostics;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use break_glass::{GlassWishError, create_locally as create_break_glass_locally};
pub use config::{EgressResponse, ServerConfig};
pub use http::{
    openapi,
    tls::{TlsError, TlsFiles},
};
pub use key::{NodeKey, verify as verify_order};
pub use mirror::{RedisConfig, RedisConfigError};
pub use moment::{AtMoment, Moment};
pub use pages::site::{PublicUrl, PublicUrlError};
pub use release::TwoPersons;
pub use token::{WishError, create_locally as create_token_locally};

use http::{
    listener::Door,
    problem::Failure,
    tls::{self, Tls},
};
use incidents::Incidents;
use journal::{Journal, JournalError};
use longest_lease::LongestLease;
use metrics::Metrics;
use mirror::MirrorState;
use pages::{Views, Wrong, sessions::Sessions};
use responder::Responder;
use roster::Roster;
use spool::Spool;
use switchboard::{Before, Switchboard};
use token::Tokens;
use vault::Vault;

/// How long work under way may take after a stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long connections may take to end when all work has.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long the kill switch may take to show that it lives.
const PULSE_MAX: Duration = Duration::from_secs(1);
/// How long each log may take to reach the disk then.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Absence never releases: the spool may be lost, an old copy, or may have been full.
const NO_LEASES: &str = "no leases are given, and agents refuse when theirs are over: without the \
                         ledger nobody knows whether halts are missing here; mend it and restart";

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or folder cannot be used.
    #[error("`{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process serves this folder.
    #[error("`{path}` is served by another process: stop that one, or give another data folder")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The key file holds no key. A new one would be a new server, whose orders no enforcer takes.
    #[error("`{path}` holds no key: restore it from a backup")]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The tokens cannot be read or written.
    #[error("`{path}` holds no tokens: restore it from a backup")]
    Tokens {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// There is no table of tokens to add one to.
    #[error("`{path}` holds no tokens: is it the data folder of a server that was started once?")]
    NoServer {
        /// The folder.
        path: PathBuf,
    },
    /// A token cannot be made like this.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// A break-glass file cannot be made like this.
    #[error(transparent)]
    BreakGlass(#[from] GlassWishError),
    /// A break-glass file cannot be written as JSON.
    #[error("the break-glass file cannot be written")]
    BreakGlassText(#[source] serde_json::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A thread cannot be started.
    #[error("a thread cannot be started")]
    Runtime(#[source] std::io::Error),
    /// The switchboard's thread has ended right away.
    #[error("the switchboard's thread has ended")]
    Ended,
    /// A playbook is at fault.
    #[error("playbook `{name}` is at fault:\n{source}")]
    Playbook {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        source: Box<Diagnostics>,
    },
}

/// The server's parts, as handlers and tasks see them. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    config: ServerConfig,
    clock: Arc<dyn Clock>,
    started_at: Timestamp,
    key: NodeKey,
    tokens: Tokens,
    sessions: Sessions,
    wrong_tokens: Wrong,
    views: Views,
    roster: Roster,
    switchboard: Switchboard,
    spool: Spool,
    tls: Option<Arc<Tls>>,
    metrics: Arc<Metrics>,
    journal: Journal,
    events: OnceLock<EventLog>,
    events_failed: OnceLock<String>,
    responder: Responder,
    incidents: Incidents,
    drill_gate: drill::Gate,
    vault: Vault,
    mirror: OnceLock<MirrorState>,
    allowlist: RwLock<Option<Arc<Allowlist>>>,
    warnings: Mutex<Vec<String>>,
    work: tokio::runtime::Handle,
    tasks: TaskTracker,
    draining: CancellationToken,
    /// Work under way has ended; only who asks how it is was still served.
    closing: CancellationToken,
    recovered: CancellationToken,
    /// Where the enforcers' streams are served.
    streams: tokio::runtime::Handle,
    /// One for each stream that may be open.
    stream_places: Arc<Semaphore>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("key", &self.0.key).finish_non_exhaustive()
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    server: Server,
    address: SocketAddr,
    url: String,
    local_url: String,
    metrics_address: Option<SocketAddr>,
    listener: Option<std::thread::JoinHandle<()>>,
    _lock: File,
}

impl Running {
    /// Where the API listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's address as clients write it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The API's address for children of this server: plain HTTP on this machine, where
    /// [`ServerConfig::plain_for_children`] asked for it.
    pub fn local_url(&self) -> &str {
        &self.local_url
    }

    /// How many enforcers have a lease that is not over; `None` when the kill switch does not say so
    /// within a second. Whoever watches this server takes an answer for its heartbeat.
    pub async fn pulse(&self) -> Option<usize> {
        let asked = self.server.0.switchboard.ask(|switch, now| {
            switch.enforcers().filter(|enforcer| enforcer.is_alive(now.boot)).count()
        });
        tokio::time::timeout(PULSE_MAX, asked).await.ok()?.ok()
    }

    /// Reads the certificate again. One that cannot be used replaces none that can; the log and
    /// `status` say so.
    pub async fn reload(&self) {
        let Some(tls) = self.server.0.tls.clone() else { return };
        let reloading = Arc::clone(&tls);
        let reloaded = tokio::task::spawn_blocking(move || reloading.reload()).await;
        if !matches!(reloaded, Ok(Ok(()))) {
            tls::complain(&tls);
        }
    }

    /// Where metrics are told to anybody, if they are.
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where the admin's token is, which the first start wrote.
    pub fn admin_token_file(&self) -> PathBuf {
        self.server.0.config.data.join("admin.token")
    }

    /// The token of a machine that belongs to this server, such as its gateway; kept in the data
    /// folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn machine_token(
        &self,
        name: &str,
        role: estoppel_api::Role,
    ) -> Result<Secret<String>, StartError> {
        self.server.0.tokens.machine(name, role, self.server.0.clock.now())
    }

    /// Resolves when ledger and event log have recovered, or failed to.
    pub async fn recovered(&self) {
        self.server.0.recovered.cancelled().await;
    }

    /// Ends the server: streams first, told to go to another server, then work under way, the logs
    /// last. Enforcers go on until their leases are over, and then refuse.
    ///
    /// Bounded: a disk that hangs costs each part its time, and is then left to itself. What was
    /// acknowledged as durable is on the disk before any of this.
    pub async fn stop(mut self) {
        let inner = &self.server.0;
        inner.draining.cancel();
        inner.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, inner.tasks.wait()).await.is_err() {
            tracing::warn!("some work did not end in time; its journal goes on at the next start");
        }
        if tokio::time::timeout(FLUSH_MAX, inner.spool.flushed()).await.is_err() {
            tracing::warn!(
                "the order spool does not answer; orders that said `durable: no` may be lost"
            );
        }
        inner.closing.cancel();
        if let Some(listener) = self.listener.take() {
            // It ends with the last connection, or at its own bound.
            let _ = tokio::task::spawn_blocking(move || listener.join()).await;
        }
        // The ledger closes with its last handle, and writes what waits before it does.
        let closing = tokio::task::spawn_blocking(move || drop(self));
        if tokio::time::timeout(FLUSH_MAX, closing).await.is_err() {
            tracing::warn!("the ledger does not close; its log is read at the next start");
        }
    }
}

impl Server {
    /// Starts a server. When this returns, orders are taken at [`Running::address`]; recovery of
    /// the ledger and the event log goes on, on the current runtime, which also does all other
    /// work.
    ///
    /// # Errors
    /// When the folder cannot be used, is in use, or the address cannot be listened on.
    pub async fn start(config: ServerConfig) -> Result<Running, StartError> {
        let clock = Arc::clone(&config.clock);
        let now = clock.now();
        let lock = lock_folder(&config.data)?;
        let served_before = NodeKey::is_there(&config.data);
        let key = NodeKey::open(&config.data)?;
        let tokens = Tokens::open(&config.data, now)?;
        let (spool, mut recovered) = Spool::open(&config.data, config.at_moment.clone())?;
        let (longest_lease, lease_before, warning) =
            LongestLease::open(&config.data, served_before, config.lease);
        recovered.warnings.extend(warning);
        let draining = CancellationToken::new();
        let metrics = Arc::new(Metrics::new(config.redis.is_some()));
        // The switchboard outlives the drain: what ends says so on its way out.
        let (switchboard, news) = Switchboard::start(
            SwitchConfig { lease: config.lease, ping: config.lease / 5 },
            order::Notary(key.clone()),
            Arc::clone(&clock),
            spool.clone(),
            Before { orders: recovered.orders.clone(), lease: lease_before },
            Arc::clone(&metrics),
            CancellationToken::new(),
        )?;
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let (listener, address) = bind(config.listen)?;
        let children = match (&tls, config.plain_for_children) {
            (Some(_), true) => Some(bind(SocketAddr::from(([127, 0, 0, 1], 0)))?),
            _ => None,
        };
        let metrics_listener = config.metrics_listen.map(bind).transpose()?;
        let (responder, detections) = Responder::new(
            DetectPolicy {
                egress: config.egress.mode(),
                halts_per_hour_max: config.automatic_halts_per_hour,
                ..DetectPolicy::default()
            },
            &config.playbook()?,
            switchboard.watched(),
        )?;
        let contact = config.contact.clone().filter(|it| it.len() <= CONTACT_BYTES_MAX);
        switchboard.set_contact(contact).await.map_err(|_| StartError::Ended)?;
        let pager = config.pager.clone();
        let tasks = TaskTracker::new();
        let journal = Journal::closed(config.at_moment.clone(), Arc::clone(&metrics));
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let incidents = Incidents::new(
            journal.clone(),
            switchboard.clone(),
            Arc::clone(&clock),
            pager,
            config.public_url.as_ref().map_or_else(|| url.clone(), ToString::to_string),
            tasks.clone(),
            Arc::clone(&metrics),
        );
        let vault = Vault::open(&config.data)?;
        let streams = http::stream::runtime().map_err(StartError::Runtime)?;
        let server = Self(Arc::new(Inner {
            clock,
            started_at: now,
            key,
            tokens,
            sessions: Sessions::open(&config.data),
            wrong_tokens: Wrong::default(),
            views: Views::default(),
            roster: Roster::default(),
            switchboard,
            spool,
            tls,
            metrics,
            journal,
            events: OnceLock::new(),
            events_failed: OnceLock::new(),
            responder,
            incidents,
            drill_gate: drill::Gate::default(),
            vault,
            mirror: OnceLock::new(),
            allowlist: RwLock::new(None),
            warnings: Mutex::new(recovered.warnings),
            work: tokio::runtime::Handle::current(),
            tasks,
            draining,
            closing: CancellationToken::new(),
            recovered: CancellationToken::new(),
            streams: streams.handle().clone(),
            stream_places: Arc::new(Semaphore::new(config.streams_max)),
            config,
        }));
        if let Ok(in_force) = resume::in_force(&server).await {
            server.0.responder.resumed(&in_force);
        }
        let local_url = match &children {
            Some((_, address)) => format!("http://{address}"),
            None => url.clone(),
        };
        let app = http::router(server.clone());
        let draining = http::draining_router(server.clone());
        let door = |listener, tls, app: &axum::Router| {
            let (app, draining) = (app.clone(), draining.clone());
            Door { listener, tls, app, draining }
        };
        let mut doors = vec![door(listener, server.0.tls.clone(), &app)];
        doors.extend(children.map(|(listener, _)| door(listener, None, &app)));
        let metrics_address = metrics_listener.map(|(listener, address)| {
            doors.push(door(listener, None, &http::health_router(server.clone())));
            address
        });
        let listener = server.listen(doors, streams)?;
        if let Some(tls) = server.0.tls.clone() {
            server.0.tasks.spawn(tls::watch(server.clone(), tls));
        }
        server.0.tasks.spawn(feed::take(server.clone(), news));
        if let Some(lease) = lease_before {
            let draining = server.0.draining.clone();
            server.0.tasks.spawn(longest_lease.outlive(lease, draining));
        }
        if let Some(redis) = server.0.config.redis.clone() {
            let orders = server.0.switchboard.follow();
            // Started once, here.
            let _ = server.0.mirror.set(mirror::start(&server, redis, orders));
        }
        server.0.tasks.spawn(responder::answer(
            server.clone(),
            detections,
            server.0.draining.clone(),
        ));
        server.0.tasks.spawn(pages::keep_sessions(server.clone()));
        server.0.tasks.spawn(expiry::run(server.clone(), server.0.draining.clone()));
        server.0.tasks.spawn(http::tokens::keep_last_uses(server.clone()));
        server.0.tasks.spawn(server.clone().recover(recovered.orders, recovered.follows));
        Ok(Running {
            server,
            address,
            url,
            local_url,
            metrics_address,
            listener: Some(listener),
            _lock: lock,
        })
    }

    pub(crate) fn stream_places(&self) -> &Arc<Semaphore> {
        &self.0.stream_places
    }

    pub(crate) fn streams(&self) -> &tokio::runtime::Handle {
        &self.0.streams
    }

    /// Serves the API on a thread and a runtime of its own; the streams' runtime ends with it.
    fn listen(
        &self,
        doors: Vec<Door>,
        streams: tokio::runtime::Runtime,
    ) -> Result<std::thread::JoinHandle<()>, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let (server, tasks) = (self.clone(), TaskTracker::new());
        let serve = async move {
            for door in doors {
                tasks.spawn(http::listener::serve(server.clone(), door, CLOSE_MAX));
            }
            tasks.close();
            tasks.wait().await;
        };
        std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                runtime.block_on(serve);
                drop(streams);
            })
            .map_err(StartError::Runtime)
    }

    /// Opens what may take long, and starts what needs it.
    async fn recover(
        self,
        spooled: Vec<estoppel_model::SignedOrder>,
        follows: HashMap<estoppel_model::OrderId, Vec<estoppel_model::NewRecord>>,
    ) {
        let inner = Arc::clone(&self.0);
        let opened = tokio::task::spawn_blocking(move || {
            inner.journal.open(&inner.config.data.join("ledger"), inner.key.signing().clone())
        });
        let ledger = match opened.await {
            Ok(Ok(begun)) => Some(begun),
            Ok(Err(error)) => {
                tracing::error!(%error, "the ledger is not open; halts are taken all the same");
                self.warn(format!("the ledger is not open: {error}"));
                None
            }
            Err(error) => {
                tracing::error!(%error, "the ledger could not be opened");
                self.warn("the ledger is not open: its recovery ended by a panic".to_owned());
                None
            }
        };
        if let Some(begun) = &ledger {
            if let Some(why) = &begun.ignored {
                tracing::warn!(why, "the ledger's snapshot is not used: all records were read");
                self.warn(format!("the ledger's snapshot is not used: {why}"));
            }
            feed::reconcile(&self, spooled).await;
            // The switchboard ends with the process only.
            let _ = self.switchboard().grant_leases().await;
            http::tokens::reconcile(&self).await;
            // Before anything of a run goes on, and before there are new ones.
            let (draining, journal) = (self.0.draining.clone(), self.0.journal.clone());
            self.0.tasks.spawn(journal.follow(draining));
            resume::take_up(&self, follows).await;
        } else {
            self.warn(NO_LEASES.to_owned());
        }
        let inner = Arc::clone(&self.0);
        let opened = tokio::task::spawn_blocking(move || {
            let _guard = inner.work.enter();
            let syncs = inner.metrics.wal_sync.clone();
            let options = inner
                .config
                .event_log_options(Arc::new(move |took| syncs.observe(took.as_secs_f64())));
            let folder = inner.config.data.join("events");
            EventLog::open(&folder, options, &inner.tasks, inner.draining.clone())
        });
        match opened.await {
            Ok(Ok(log)) => {
                for damage in log.damage() {
                    tracing::error!(?damage, "the event log is damaged");
                    self.warn(format!("the event log is damaged: {damage:?}"));
                }
                // Set once, here.
                let _ = self.0.events.set(log);
            }
            Ok(Err(error)) => self.events_failed(error.to_string()),
            Err(error) => self.events_failed(error.to_string()),
        }
        self.apply_allowlist();
        if let Some(begun) = ledger {
            let (draining, tasks) = (&self.0.draining, &self.0.tasks);
            tasks.spawn(runs::drive(self.clone(), draining.clone()));
            tasks.spawn(feed::checkpoints(self.clone(), draining.clone()));
            tasks.spawn(drill::keep(self.clone(), draining.clone()));
            tasks.spawn(journal::check_what_it_covers(self.clone(), begun.from));
            tasks.spawn(journal::keep_snapshots(self.clone(), begun.from));
        }
        self.0.recovered.cancel();
    }

    fn events_failed(&self, reason: String) {
        tracing::error!(reason, "the event log is not open");
        self.warn(format!("the event log is not open: {reason}"));
        let _ = self.0.events_failed.set(reason);
    }

    /// Hands the allowlist of the ledger to the detectors and the SQL worker.
    pub(crate) fn apply_allowlist(&self) {
        let domains = self.0.journal.read(|state| state.allowlist.clone());
        // The list was parsed before it was written.
        let parsed = domains.and_then(|domains| Allowlist::parse(&domains).ok()).map(Arc::new);
        if let Some(log) = self.0.events.get() {
            let rows = parsed.iter().flat_map(|list| list.iter()).map(|entry| AllowedDestination {
                domain: entry.domain(),
                port: entry.port(),
                entry: entry.to_string(),
            });
            log.set_allowlist(rows.collect());
        }
        self.0.responder.set_allowlist(parsed.clone());
        *self.0.allowlist.write().unwrap_or_else(PoisonError::into_inner) = parsed;
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.0.key
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn wrong_tokens(&self) -> &Wrong {
        &self.0.wrong_tokens
    }

    pub(crate) fn views(&self) -> &Views {
        &self.0.views
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.0.roster
    }

    pub(crate) fn switchboard(&self) -> &Switchboard {
        &self.0.switchboard
    }

    /// How often each invariant of the kill switch was checked since the start, and found broken.
    pub fn invariants(&self) -> [Count; Invariant::ALL.len()] {
        self.0.switchboard.tally().counts()
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.0.spool
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Whether recovery is over.
    pub(crate) fn has_recovered(&self) -> bool {
        self.0.recovered.is_cancelled()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// The event log, once it has recovered.
    pub(crate) fn events(&self) -> Result<&EventLog, Failure> {
        self.0.events.get().ok_or_else(|| {
            let reason = self.0.events_failed.get().map(|reason| format!(": {reason}"));
            Failure::Unavailable(format!(
                "the event log is not open yet{}",
                reason.unwrap_or_default()
            ))
        })
    }

    pub(crate) fn responder(&self) -> &Responder {
        &self.0.responder
    }

    pub(crate) fn incidents(&self) -> &Incidents {
        &self.0.incidents
    }

    pub(crate) fn drill_gate(&self) -> &drill::Gate {
        &self.0.drill_gate
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.0.vault
    }

    /// How the mirror in Redis is, if there is one.
    pub(crate) fn redis(&self) -> Option<estoppel_api::RedisStatus> {
        self.0.mirror.get().map(MirrorState::now)
    }

    pub(crate) fn sql_limits(&self) -> SqlLimits {
        http::sql::limits(self.0.config.sql_time)
    }

    pub(crate) fn work(&self) -> &tokio::runtime::Handle {
        &self.0.work
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(crate) async fn draining(&self) {
        self.0.draining.cancelled().await;
    }

    pub(crate) async fn closing(&self) {
        self.0.closing.cancelled().await;
    }

    /// Waits for something; `false` when the server drains first.
    pub(crate) async fn stays(&self, what: impl Future<Output = ()>) -> bool {
        self.0.draining.run_until_cancelled(what).await.is_some()
    }

    /// Says in `status` from now on that something is not as it should be.
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.0.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let tls = self.0.tls.as_ref().and_then(|tls| tls.problem());
        let warnings = self.0.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.iter().cloned().chain(tls).collect()
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::NotOpen(_) | JournalError::Ledger(_) => {
                Self::Unavailable(error.to_string())
            }
            JournalError::Json(_) => Self::internal(error),
        }
    }
}

/// Connections that may wait to be accepted; the kernel's own limit is 4,096.
const WAITING_MAX: i32 = 4_096;

/// Takes an address, and says which it is.
fn bind(address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), StartError> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        // The library's 128 are too few when every enforcer comes back at once: the others would
        // wait a second for TCP to try again.
        rustix::net::listen(&listener, WAITING_MAX)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|source| StartError::Listen { address, source })
}

/// Makes the folder, and takes it for this process alone.
fn lock_folder(data: &std::path::Path) -> Result<File, StartError> {
    let file = |source| StartError::File { path: data.to_owned(), source };
    files::create_private_dir(data).map_err(file)?;
    let lock = File::create(data.join("serve.lock")).map_err(file)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Locked { path: data.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(file(source)),
    }
}
