//! Runs as a snapshot keeps them, so that a start need not read their journals again.
//!
//! The text of each playbook is kept once, and linted again on the way back: what this version would
//! not run does not come back as a run.

use std::{collections::BTreeMap, sync::Arc};

use estoppel_model::{Actor, IncidentId, RunId, Timestamp, journal::RunStarted};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{Progress, Run, Runs};
use crate::{
    Playbook,
    journal::{Mode, RunDecided, RunOutcome},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRuns {
    playbooks: Vec<String>,
    runs: Vec<KeptRun>,
    unreadable: Vec<(u64, String)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRun {
    id: RunId,
    incident: IncidentId,
    /// Its place among the playbooks.
    playbook: usize,
    inputs: BTreeMap<String, String>,
    mode: Mode,
    by: Actor,
    started_at: Timestamp,
    asks: bool,
    decided: Option<RunDecided>,
    ended: Option<RunOutcome>,
    steps: Vec<Progress>,
}

impl Serialize for Runs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let places: BTreeMap<&str, usize> =
            self.playbooks.keys().enumerate().map(|(place, text)| (text.as_str(), place)).collect();
        let kept = |run: &Arc<Run>| KeptRun {
            id: run.id,
            incident: run.incident,
            // Each run's playbook is among them; one that was not would not come back.
            playbook: places.get(run.playbook.source.as_str()).copied().unwrap_or(usize::MAX),
            inputs: run.inputs.to_texts(),
            mode: run.mode,
            by: run.by.clone(),
            started_at: run.started_at,
            asks: run.asks,
            decided: run.decided.clone(),
            ended: run.ended,
            steps: run.steps.clone(),
        };
        KeptRuns {
            playbooks: self.playbooks.keys().cloned().collect(),
            runs: self.runs.values().map(kept).collect(),
            unreadable: self.unreadable.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Runs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kept = KeptRuns::deserialize(deserializer)?;
        let parse = |text: &String| Playbook::parse(text).map(Arc::new);
        let playbooks: Vec<Arc<Playbook>> =
            kept.playbooks.iter().map(parse).collect::<Result<_, _>>().map_err(D::Error::custom)?;
        let mut runs = Self { unreadable: kept.unreadable, ..Self::default() };
        for kept in kept.runs {
            runs.keep(restored(kept, &playbooks).map_err(D::Error::custom)?);
        }
        Ok(runs)
    }
}

fn restored(kept: KeptRun, playbooks: &[Arc<Playbook>]) -> Result<Run, String> {
    let id = kept.id;
    let playbook = playbooks
        .get(kept.playbook)
        .ok_or_else(|| format!("run {id}: there is no playbook {}", kept.playbook))?;
    if kept.steps.len() != playbook.steps.len() {
        return Err(format!("run {id}: {} steps of {}", kept.steps.len(), playbook.steps.len()));
    }
    let started = RunStarted {
        run: id,
        incident: kept.incident,
        playbook: playbook.name.clone(),
        source: String::new(),
        inputs: kept.inputs,
        mode: kept.mode,
        asks: kept.asks,
        by: kept.by,
    };
    let run = Run::of(started, Arc::clone(playbook), kept.started_at)
        .map_err(|error| error.to_string())?;
    Ok(Run { decided: kept.decided, ended: kept.ended, steps: kept.steps, ..run })
}
