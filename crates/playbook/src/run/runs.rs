//! All runs, as the fold of the ledger.

use std::collections::BTreeMap;

use estoppel_model::{Record, RunId};

use super::{Run, RunState};
use crate::journal::{
    EvidenceWaived, RunDecided, RunEnded, RunStarted, StepApproved, StepIntent, StepResult,
};

/// All runs, as the fold of the ledger.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    runs: BTreeMap<RunId, Run>,
    unreadable: Vec<(u64, String)>,
}

impl Runs {
    /// Takes a record in; kinds of others are skipped. A start that does not hold is kept in
    /// [`Runs::unreadable`].
    pub fn apply(&mut self, record: &Record) {
        if record.kind == RunStarted::KIND {
            match Run::started(record) {
                Ok(run) => {
                    self.runs.entry(run.id()).or_insert(run);
                }
                Err(error) => self.unreadable.push((record.seq, error.to_string())),
            }
        } else if let Some(run) = run_of(record).and_then(|run| self.runs.get_mut(&run)) {
            run.apply(record);
        }
    }

    /// A run.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// All runs, in order of time.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// The runs that are not over.
    pub fn open(&self) -> impl Iterator<Item = &Run> {
        self.iter().filter(|run| !matches!(run.state(), RunState::Ended(_)))
    }

    /// Places of starts in the ledger that could not be read, with the reason.
    pub fn unreadable(&self) -> &[(u64, String)] {
        &self.unreadable
    }
}

fn run_of(record: &Record) -> Option<RunId> {
    #[derive(serde::Deserialize)]
    struct Of {
        run: RunId,
    }
    let journal = [
        StepIntent::KIND,
        StepResult::KIND,
        StepApproved::KIND,
        EvidenceWaived::KIND,
        RunDecided::KIND,
        RunEnded::KIND,
    ];
    journal.contains(&record.kind).then(|| record.parse::<Of>().ok())?.map(|of| of.run)
}
