//! The ledger with the folds that the server reads: incidents, runs, the allowlist.
//!
//! The ledger opens after the server has begun to take orders; until then, and whenever the disk
//! fails, appends fail with a reason while halts go on. A record is folded once it is durable,
//! never before, so that nobody acts upon what a crash could take back.

mod snapshot;
mod state;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Instant,
};

use ed25519_dalek::SigningKey;
use estoppel_ledger::{Appended, Ledger, LedgerError, Options};
use estoppel_model::NewRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{AtMoment, Moment, metrics::Metrics};
pub(crate) use snapshot::{check_what_it_covers, keep_snapshots};
pub(crate) use state::AllowlistSet;
use state::State;

/// Records that are folded under one lock.
const BATCH: usize = 512;

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

/// How the fold of the ledger began.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// Records that a snapshot spared it.
    pub from: u64,
    /// Why a snapshot that was there was not used.
    pub ignored: Option<String>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Inner>);

struct Inner {
    ledger: OnceLock<Ledger>,
    failed: OnceLock<String>,
    /// What is wrong with records that the last start did not read.
    damaged: OnceLock<String>,
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
            damaged: OnceLock::new(),
            state: RwLock::new(State::default()),
            applied: watch::Sender::new(0),
            at_moment,
            metrics,
        }))
    }

    /// Opens the ledger and folds it, from the snapshot on where there is a good one; takes as long
    /// as recovery takes.
    ///
    /// # Errors
    /// When the ledger cannot be opened or read. The journal then stays closed and says why.
    pub(crate) fn open(&self, dir: &Path, signer: SigningKey) -> Result<Begun, LedgerError> {
        let begun = Instant::now();
        let opened = Ledger::open(dir, signer, Options::default()).and_then(|ledger| {
            let (state, ignored) = snapshot::restore(&ledger)?;
            let from = state.applied;
            *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = state;
            self.0.applied.send_replace(from);
            self.fold(&ledger)?;
            Ok((ledger, Begun { from, ignored }))
        });
        match opened {
            Ok((ledger, started)) => {
                let (records, from, took) = (ledger.head().size, started.from, begun.elapsed());
                tracing::info!(records, from, ?took, "the ledger is open");
                // Opened once, by the server's start.
                let _ = self.0.ledger.set(ledger);
                self.0.applied.send_modify(|_| {});
                Ok(started)
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
            Ok(ledger) => match (ledger.poisoned(), self.damaged()) {
                (Some(cause), _) => format!("takes no more records: {cause}"),
                (None, Some(damage)) => format!("damaged: {damage}"),
                (None, None) => "ok".to_owned(),
            },
        }
    }

    /// What is wrong with records that the start did not read.
    pub(crate) fn damaged(&self) -> Option<&str> {
        self.0.damaged.get().map(String::as_str)
    }
}
