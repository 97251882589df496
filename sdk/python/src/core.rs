//! What runs behind a `Guard` of Python's: the guard, one runtime thread, one thread that interrupts.
//!
//! The runtime's thread never takes Python's lock: a busy interpreter is told what to do, refused and
//! counted as any other. Only the interrupter takes it, to end what runs in Python.
//!
//! After a fork none of these threads exists in the child, and any lock of theirs may be held for
//! ever. So a child never touches the core of its parent, not even to drop it: [`Core::is_of_here`]
//! is asked first, and what is not is left lying ([`std::mem::forget`]).

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use estoppel_guard::{ConnectError, EventBuffer, Guard, Limit, Mode, OnLost, Texts};
use estoppel_model::{Clock, EntityId, Secret};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::interrupt::Interrupter;

/// How long the runtime's threads may take to end after the guard has.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

/// How many forks lie between the process that imported the package and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Notes that this process is the child of a fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Relaxed);
}

/// What a guard is started with; kept for the children of a fork.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) servers: Vec<String>,
    pub(crate) token: Option<Secret<String>>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) agent: Option<EntityId>,
    pub(crate) name: Option<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) mode: Mode,
    pub(crate) limit: Limit,
    pub(crate) on_lost: OnLost,
    pub(crate) events: EventBuffer,
    pub(crate) texts: Texts,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Why a guard cannot be started.
#[derive(Debug)]
pub(crate) enum StartError {
    Connect(ConnectError),
    Thread(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "{error}"),
            Self::Thread(error) => write!(f, "the guard's threads cannot be started: {error}"),
        }
    }
}

/// A running guard.
pub(crate) struct Core {
    pub(crate) guard: Guard,
    pub(crate) interrupter: Arc<Interrupter>,
    handle: Handle,
    /// Taken when the guard is closed.
    runtime: Mutex<Option<Runtime>>,
    /// In which process it runs.
    forks: u32,
}

impl Core {
    pub(crate) fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("estoppel")
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let interrupter = Interrupter::start().map_err(StartError::Thread)?;
        let guard = {
            let _inside = runtime.enter();
            settings.connect().map_err(StartError::Connect)?
        };
        Ok(Arc::new(Self {
            guard,
            interrupter,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            forks: FORKS.load(Relaxed),
        }))
    }

    /// Whether this process is the one that started it.
    #[inline]
    pub(crate) fn is_of_here(&self) -> bool {
        self.forks == FORKS.load(Relaxed)
    }

    /// Waits for the guard to be ready; whether it is, within `at_most`. Python's lock must not be
    /// held.
    pub(crate) fn ready_within(&self, at_most: Duration) -> bool {
        let ready = self.guard.ready();
        self.handle.block_on(async { tokio::time::timeout(at_most, ready).await.is_ok() })
    }

    /// Refuses from now on, sends or spools the last events, ends all threads. Again: nothing.
    /// Python's lock must not be held.
    pub(crate) fn close(&self) {
        let Some(runtime) = self.take_runtime() else { return };
        runtime.block_on(self.guard.clone().close());
        self.interrupter.end();
        runtime.shutdown_timeout(SHUTDOWN_MAX);
    }

    fn take_runtime(&self) -> Option<Runtime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Never closed: only an interpreter that ends without its `atexit` comes here.
        if let Some(runtime) = self.take_runtime() {
            // Python's lock may be held here, for which the interrupter may be waiting.
            self.interrupter.end_soon();
            runtime.shutdown_background();
        }
    }
}

impl Settings {
    fn connect(self) -> Result<Guard, ConnectError> {
        let mut builder = Guard::builder()
            .mode(self.mode)
            .limits(self.limit)
            .clock(self.clock)
            .on_lost(self.on_lost)
            .events(self.events)
            .texts(self.texts);
        for server in &self.servers {
            builder = builder.server(server)?;
        }
        if let Some(token) = self.token {
            builder = builder.token(token.expose().clone());
        }
        if let Some(ca) = &self.ca {
            builder = builder.ca_file(ca)?;
        }
        if let Some(agent) = &self.agent {
            builder = builder.agent(agent.as_str())?;
        }
        if let Some(name) = self.name {
            builder = builder.name(name);
        }
        if let Some(dir) = self.state_dir {
            builder = builder.state_dir(dir);
        }
        builder.connect()
    }
}
