//! How a server starts, in the order of what must not wait.

use std::{
    collections::HashMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, RwLock},
    time::Duration,
};

use estoppel_detect::DetectPolicy;
use estoppel_eventlog::EventLog;
use estoppel_killswitch::{frame::CONTACT_BYTES_MAX, server::SwitchConfig};
use estoppel_playbook::Diagnostics;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    GlassWishError, Inner, NodeKey, Running, Server, ServerConfig, TlsError, WishError, drill,
    expiry, feed, files,
    http::{
        self,
        listener::Door,
        tls::{self, Tls},
    },
    incidents::Incidents,
    journal::{self, Journal},
    longest_lease::LongestLease,
    metrics::Metrics,
    mirror, order,
    pages::{self, Views, Wrong, sessions::Sessions},
    responder::{self, Responder},
    resume,
    roster::Roster,
    runs,
    spool::Spool,
    switchboard::{Before, Switchboard},
    token::Tokens,
    vault::Vault,
};

/// How long connections may take to end when all work has.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted; the kernel's own limit is 4,096.
const WAITING_MAX: i32 = 4_096;

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
            |name| config.playbook(name),
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
        let vault = Vault::open(&config.data, config.evidence_bytes_max)?;
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
}

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
pub(crate) fn lock_folder(data: &std::path::Path) -> Result<File, StartError> {
    let file = |source| StartError::File { path: data.to_owned(), source };
    files::create_private_dir(data).map_err(file)?;
    let lock = File::create(data.join("serve.lock")).map_err(file)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Locked { path: data.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(file(source)),
    }
}
