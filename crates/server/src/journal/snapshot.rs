//! Snapshots of the story that the ledger tells, so that a start need not read all of it.
//!
//! A snapshot is signed, bound to the Merkle root of the records that it covers, and of one version
//! of the folds: any other is ignored, and all records are read. Before one is written it is read
//! back and compared with the state that it was made from. What decides is never in one
//! ([`super::state`]).
//!
//! It is made beside everything else: the state is cloned under its lock, which shares what does not
//! change and takes microseconds; encoding and writing hold no lock. A start that uses one has the
//! records that it covers checked behind it.

use std::path::Path;

use estoppel_incident::Incidents;
use estoppel_ledger::{Ledger, LedgerError, Snapshot};
use estoppel_playbook::Runs;
use serde::{Deserialize, Serialize};

use super::{BATCH, Journal, State, state::DECIDING};
use crate::{Server, drill::Drills, files, http::health::FREE_BYTES_MIN, order};

/// Its name in the ledger's folder.
const NAME: &str = "story";
/// Counts the folds of the story and what they are written as: to be counted up with each change to
/// one of them. A test notices.
const VERSION: u32 = 1;
/// Fewest records between two snapshots.
const RECORDS_BETWEEN_MIN: u64 = 10_000;
/// Records between two snapshots are this part of all: writing them stays a constant share.
const PART_BETWEEN: u64 = 8;

/// Largest snapshot: in memory it is there twice while it is made, and a server that is killed for its
/// appetite stops nobody.
const BYTES_MAX: usize = 256 << 20;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Story {
    incidents: Incidents,
    runs: Runs,
    drills: Drills,
}

/// Why a state cannot be had from a snapshot's bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoryError {
    /// Another version of the server made it.
    #[error("another version of the server made it")]
    Version,
    /// The bytes are not what this version writes.
    #[error("it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Story {
    pub(super) fn of(state: &State) -> Self {
        let State { incidents, runs, drills, .. } = state;
        Self { incidents: incidents.clone(), runs: runs.clone(), drills: drills.clone() }
    }

    /// A line that names the version, and JSON.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = version().into_bytes();
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoryError> {
        let json = bytes.strip_prefix(version().as_bytes()).ok_or(StoryError::Version)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The state after the first `size` records, but for what decides.
    pub(super) fn state(self, size: u64) -> State {
        let Self { incidents, runs, drills } = self;
        State { incidents, runs, drills, applied: size, ..State::default() }
    }
}

fn version() -> String {
    format!("estoppel story {VERSION} of {}\n", env!("CARGO_PKG_VERSION"))
}

/// The state to go on from: that of a snapshot, with what decides read from the records; else the
/// empty one, and why where there was a snapshot.
pub(super) fn restore(ledger: &Ledger) -> Result<(State, Option<String>), LedgerError> {
    let ignored = match ledger.snapshot_get(NAME)? {
        Snapshot::Absent => None,
        Snapshot::Doubtful(doubt) => Some(doubt.to_string()),
        Snapshot::Kept { size, state } => match Story::decode(&state) {
            Ok(story) => {
                let mut state = story.state(size);
                for record in ledger.select(size, &DECIDING, order::KEYS)? {
                    state.decide(&record?);
                }
                return Ok((state, None));
            }
            // As after every update.
            Err(StoryError::Version) => None,
            Err(error) => Some(error.to_string()),
        },
    };
    Ok((State::default(), ignored))
}

/// Keeps a snapshot up to date until the server stops, and once more then. `from` is how many
/// records the one that is there covers.
pub(crate) async fn keep_snapshots(server: Server, from: u64) {
    let journal = server.journal().clone();
    let mut changes = journal.changes();
    let mut covered = from;
    let mut due = next_after(from);
    loop {
        let goes_on = server
            .stays(async {
                // The sender lives as long as the journal.
                let _ = changes.wait_for(|applied| *applied >= due).await;
            })
            .await;
        let applied = journal.read(|state| state.applied);
        if applied > covered {
            match write(&journal, &server.config().data).await {
                Ok(size) => covered = size,
                // It is a cache: the next one is tried when it is due.
                Err(error) => tracing::warn!(error, "no snapshot of the ledger was written"),
            }
        }
        if !goes_on {
            return;
        }
        due = next_after(applied);
    }
}

const fn next_after(size: u64) -> u64 {
    let part = size / PART_BETWEEN;
    size + if part > RECORDS_BETWEEN_MIN { part } else { RECORDS_BETWEEN_MIN }
}

/// Writes a snapshot of the state as it is; how many records it covers.
pub(super) async fn write(journal: &Journal, data: &Path) -> Result<u64, String> {
    let ledger = journal.ledger().map_err(|error| error.to_string())?.clone();
    let (size, story) = journal.read(|state| (state.applied, Story::of(state)));
    let data = data.to_owned();
    let written = tokio::task::spawn_blocking(move || {
        let bytes = story.encode().map_err(|error| error.to_string())?;
        if bytes.len() > BYTES_MAX {
            return Err(format!("{} bytes are too many: starts read all records", bytes.len()));
        }
        if Story::decode(&bytes).map_err(|error| error.to_string())? != story {
            return Err("it does not come back as it was: please report this".to_owned());
        }
        // Orders and records need the room more.
        let free = files::free_bytes(&data).map_err(|error| error.to_string())?;
        if free < FREE_BYTES_MIN.saturating_add(bytes.len() as u64) {
            return Err(format!("{free} bytes are free: the snapshot has {}", bytes.len()));
        }
        ledger.snapshot_put(NAME, size, &bytes).map_err(|error| error.to_string())
    });
    written.await.map_err(|error| error.to_string())??;
    Ok(size)
}

/// Reads the records that a snapshot spared the start, each against its leaf, and tells of damage. It
/// takes no lease away: what decides was read, and is checked again here.
pub(crate) async fn check_what_it_covers(server: Server, size: u64) {
    let journal = server.journal().clone();
    let Ok(ledger) = journal.ledger().cloned() else { return };
    let mut next = 0;
    while next < size && !server.is_draining() {
        let reading = ledger.clone();
        let read = tokio::task::spawn_blocking(move || reading.read(next, BATCH));
        match read.await {
            Ok(Ok(records)) => next += records.len() as u64,
            Ok(Err(error)) => {
                tracing::error!(%error, "the ledger is damaged: see `estoppel ledger verify`");
                server.warn(format!("see `estoppel ledger verify`: {error}"));
                // Set once, here.
                let _ = journal.0.damaged.set(error.to_string());
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the ledger's older records are not checked");
                return;
            }
        }
    }
}
