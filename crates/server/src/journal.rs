//! The ledger with the folds that the server reads: incidents, runs, the allowlist.
//!
//! The ledger opens after the server has begun to take orders; until then, and whenever the disk
//! fails, appends fail with a reason while halts go on. A record is folded once it is durable,
//! never before, so that nobody acts upon what a crash could take back.

use std::{
    path::Path,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Instant,
};

use ed25519_dalek::SigningKey;
use estoppel_incident::Incidents;
use estoppel_ledger::{Appended, Ledger, LedgerError, Options};
use estoppel_model::{NewRecord, Record, RecordKind};
use estoppel_playbook::Runs;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{AtMoment, Moment, metrics::Metrics};

/// Records that are folded under one lock.
const BATCH: usize = 512;

/// Body of an `allowlist.set` record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AllowlistSet {
    /// The entries; `None`: egress is learned.
    pub domains: Option<Vec<String>>,
    /// Who set it.
    pub by: estoppel_model::Actor,
}

impl AllowlistSet {
    pub(crate) const KIND: RecordKind = RecordKind::new("allowlist.set");
}

/// What the records amount to.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The incidents.
    pub incidents: Incidents,
    /// The runs of playbooks.
    pub runs: Runs,
    /// The allowlist's entries, `None` while egress is learned.
    pub allowlist: Option<Vec<String>>,
    /// Releases that wait, or waited, for a second person.
    pub release_requests: crate::release::Requests,
    /// Drills of the kill switch.
    pub drills: crate::drill::Drills,
    /// Orders that the ledger has.
    pub orders: std::collections::HashSet<estoppel_model::OrderId>,
    /// How many records are folded in.
    pub applied: u64,
}

impl State {
    fn apply(&mut self, record: &Record) {
        self.incidents.apply(record);
        self.runs.apply(record);
        self.release_requests.apply(record);
        self.drills.apply(record);
        if record.kind == AllowlistSet::KIND {
            match record.parse::<AllowlistSet>() {
                Ok(set) => self.allowlist = set.domains,
                Err(error) => tracing::error!(record.seq, %error, "an allowlist cannot be read"),
            }
        } else if record.kind == crate::order::ORDER
            && let Some(id) = record.key.as_deref().and_then(crate::order::id_of_key)
        {
            self.orders.insert(id);
        }
        self.applied = record.seq + 1;
    }
}

/// Why a record was not kept.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JournalError {
    /// The ledger is still recovering, or could not be opened.
    #[error("the ledger is not open yet{0}")]
    NotOpen(String),
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The value cannot be written as JSON.
    #[error("a record cannot be written: {0}")]
    Json(Arc<serde_json::Error>),
}

impl From<serde_json::Error> for JournalError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(Arc::new(error))
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Inner>);

struct Inner {
    ledger: OnceLock<Ledger>,
    failed: OnceLock<String>,
    state: RwLock<State>,
    applied: watch::Sender<u64>,
    at_moment: Option<AtMoment>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Journal").field(&*self.0.applied.borrow()).finish()
    }
}

impl Journal {
    /// A journal that is not open yet.
    pub(crate) fn closed(at_moment: Option<AtMoment>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            ledger: OnceLock::new(),
            failed: OnceLock::new(),
            state: RwLock::new(State::default()),
            applied: watch::Sender::new(0),
            at_moment,
            metrics,
        }))
    }

    /// Opens the ledger and folds it; takes as long as recovery takes.
    ///
    /// # Errors
    /// When the ledger cannot be opened or read. The journal then stays closed and says why.
    pub(crate) fn open(&self, dir: &Path, signer: SigningKey) -> Result<(), LedgerError> {
        let opened = Ledger::open(dir, signer, Options::default()).and_then(|ledger| {
            self.fold(&ledger)?;
            Ok(ledger)
        });
        match opened {
            Ok(ledger) => {
                // Opened once, by the server's start.
                let _ = self.0.ledger.set(ledger);
                self.0.applied.send_modify(|_| {});
                Ok(())
            }
            Err(error) => {
                let _ = self.0.failed.set(error.to_string());
                Err(error)
            }
        }
    }

    /// Folds what becomes durable, until the server stops.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let Some(ledger) = self.0.ledger.get() else { return };
        let mut durable = ledger.subscribe();
        loop {
            if let Err(error) = self.fold(ledger) {
                tracing::error!(%error, "the ledger cannot be read; what it decides stands still");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = durable.changed() => if changed.is_err() { return },
            }
        }
    }

    fn fold(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        loop {
            let from = self.read(|state| state.applied);
            let records = ledger.read(from, BATCH)?;
            if records.is_empty() {
                return Ok(());
            }
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            for record in records.iter().filter(|record| record.seq >= from) {
                state.apply(record);
            }
            let applied = state.applied;
            drop(state);
            self.0.applied.send_replace(applied);
        }
    }

    /// The ledger, once it is open.
    pub(crate) fn ledger(&self) -> Result<&Ledger, JournalError> {
        self.0.ledger.get().ok_or_else(|| {
            let reason = self.0.failed.get().map(|reason| format!(": {reason}"));
            JournalError::NotOpen(reason.unwrap_or_default())
        })
    }

    /// Appends a record; resolves when it is durable.
    pub(crate) async fn append(&self, record: NewRecord) -> Result<Appended, JournalError> {
        let kind = record.kind.clone();
        self.pass(Moment::RecordDue(&kind));
        let begun = Instant::now();
        let appended = self.ledger()?.append(record).await?;
        self.0.metrics.ledger_append.observe(begun.elapsed().as_secs_f64());
        self.pass(Moment::RecordKept(&kind));
        Ok(appended)
    }

    fn pass(&self, moment: Moment<'_>) {
        if let Some(at_moment) = &self.0.at_moment {
            at_moment(moment);
        }
    }

    /// Appends a record and waits until the state has it.
    pub(crate) async fn commit(&self, record: NewRecord) -> Result<Appended, JournalError> {
        let appended = self.append(record).await?;
        self.folded(appended.seq()).await;
        Ok(appended)
    }

    /// Resolves when the record of this place is folded in.
    pub(crate) async fn folded(&self, seq: u64) {
        // The sender lives as long as `self`.
        let _ = self.0.applied.subscribe().wait_for(|applied| *applied > seq).await;
    }

    /// Tells when the state has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// Wakes those who follow [`Journal::changes`].
    pub(crate) fn nudge(&self) {
        self.0.applied.send_modify(|_| {});
    }

    /// Reads the state. Short: appends are folded behind the same lock.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// `ok`, or what is wrong.
    pub(crate) fn health(&self) -> String {
        match self.ledger() {
            Err(error) => error.to_string(),
            Ok(ledger) => match ledger.poisoned() {
                Some(cause) => format!("takes no more records: {cause}"),
                None => "ok".to_owned(),
            },
        }
    }
}
