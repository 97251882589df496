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
pub mod bundle;
mod config;
mod credential;
mod custody;
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
mod pipe;
mod plan;
mod release;
mod responder;
mod resume;
mod roster;
mod running;
mod runs;
mod spool;
mod start;
mod switchboard;
mod token;
mod vault;
mod watched;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use estoppel_eventlog::{AllowedDestination, EventLog, SqlLimits};
use estoppel_extract::Allowlist;
use estoppel_killswitch::invariant::{Count, Invariant};
use estoppel_model::{Clock, Timestamp};
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
pub use running::Running;
pub use start::StartError;
pub use token::{WishError, create_locally as create_token_locally};

use http::{problem::Failure, tls::Tls};
use incidents::Incidents;
use journal::{Journal, JournalError};
use metrics::Metrics;
use mirror::MirrorState;
use pages::{Views, Wrong, sessions::Sessions};
use responder::Responder;
use roster::Roster;
use spool::Spool;
use switchboard::Switchboard;
use token::Tokens;
use vault::Vault;

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

impl Server {
    pub(crate) fn stream_places(&self) -> &Arc<Semaphore> {
        &self.0.stream_places
    }

    pub(crate) fn streams(&self) -> &tokio::runtime::Handle {
        &self.0.streams
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
