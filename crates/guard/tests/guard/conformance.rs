//! The cases of `tests/conformance` against the guard, over a real stream. Every expectation of every
//! case is also turned round once: a case that then still holds would test nothing.

mod case;
mod player;

use std::{fs, path::Path};

use case::{Case, Suite};
use player::play;
use tokio_util::task::TaskTracker;

/// The suites with their file names.
fn suites() -> Vec<(String, Suite)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance");
    let mut suites: Vec<(String, Suite)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let suite = serde_json::from_str(&fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, suite)
        })
        .collect();
    suites.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(suites.iter().all(|(_, suite)| suite.version == 1 && !suite.about.is_empty()));
    suites
}

fn cases() -> impl Iterator<Item = (String, Case)> {
    suites().into_iter().flat_map(|(name, suite)| {
        suite.cases.into_iter().map(move |case| (format!("{name}/{}", case.case), case))
    })
}

/// Plays a case in a task of its own: one that panics is one that failed.
async fn played_apart(case: Case) -> Result<(), String> {
    let played = TaskTracker::new().spawn(async move { play(&case).await });
    played.await.unwrap_or_else(|panic| Err(panic.to_string()))
}

/// K3, K4, K6, K7, K10, S2: the cases hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_cases_hold() {
    let (mut played, mut failed) = (0, Vec::new());
    for (name, case) in cases() {
        assert!(!case.why.is_empty(), "{name}");
        played += 1;
        if let Err(error) = played_apart(case).await {
            failed.push(format!("{name}: {error}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(played >= 40, "only {played} cases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_conformance_case_can_fail() {
    let (mut turned, mut held) = (0, Vec::new());
    for (name, case) in cases() {
        for (place, wrong) in case.turned_round() {
            turned += 1;
            if played_apart(wrong).await.is_ok() {
                held.push(format!("{name}, action {}", place + 1));
            }
        }
    }
    assert!(held.is_empty(), "these hold with a wrong expectation, too: {}", held.join("; "));
    assert!(turned >= 200, "only {turned} expectations");
}
