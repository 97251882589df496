//! All runs, as the fold of the ledger.

use std::{collections::BTreeMap, sync::Arc};

use estoppel_model::{Record, RunId};

use super::{Run, RunError, RunState};
use crate::{
    Playbook,
    journal::{
        EvidenceWaived, RunDecided, RunEnded, RunStarted, StepApproved, StepIntent, StepResult,
    },
};

/// All runs, as the fold of the ledger. Cheap to clone: what does not change afterwards is shared.
///
/// What is serialised is for the version that wrote it, and comes back equal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runs {
    pub(super) runs: BTreeMap<RunId, Arc<Run>>,
    /// Those of the runs, by their text: many runs are of one.
    pub(super) playbooks: BTreeMap<String, Arc<Playbook>>,
    pub(super) unreadable: Vec<(u64, String)>,
}

impl Runs {
    /// Takes a record in; kinds of others are skipped. Of several starts of a run the first stands;
    /// one that does not hold is kept in [`Runs::unreadable`].
    pub fn apply(&mut self, record: &Record) {
        if record.kind == RunStarted::KIND {
            if let Err(error) = self.start(record) {
                self.unreadable.push((record.seq, error.to_string()));
            }
        } else if let Some(run) = run_of(record).and_then(|run| self.runs.get_mut(&run)) {
            Arc::make_mut(run).apply(record);
        }
    }

    fn start(&mut self, record: &Record) -> Result<(), RunError> {
        let started: RunStarted = record.parse()?;
        let run = started.run;
        let playbook = match self.playbooks.get(&started.source) {
            Some(known) => Arc::clone(known),
            None => Arc::new(
                Playbook::parse(&started.source)
                    .map_err(|source| RunError::Playbook { run, source })?,
            ),
        };
        let begun = Run::of(started, playbook, record.at)?;
        if !self.runs.contains_key(&run) {
            self.keep(begun);
        }
        Ok(())
    }

    pub(super) fn keep(&mut self, run: Run) {
        let source = &run.playbook.source;
        if !self.playbooks.contains_key(source) {
            self.playbooks.insert(source.clone(), Arc::clone(&run.playbook));
        }
        self.runs.insert(run.id(), Arc::new(run));
    }

    /// A run.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id).map(Arc::as_ref)
    }

    /// All runs, in order of time.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values().map(Arc::as_ref)
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
