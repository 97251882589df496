//! The cases of `tests/conformance` against the guard, over a real stream. Every expectation of every
//! case is also turned round once: a case that then still holds would test nothing.

mod case;
mod player;

use std::{fs, path::Path, sync::Arc};

use case::{Case, Suite};
use player::play;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Cases that are played beside each other: most of their time is that of waits for half a second.
const AT_ONCE: usize = 16;

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

/// Plays named cases, several beside each other, each in a task of its own: one that panics is one that
/// failed. Returns how each went.
async fn played(cases: Vec<(String, Case)>) -> Vec<(String, Result<(), String>)> {
    let (tasks, room) = (TaskTracker::new(), Arc::new(Semaphore::new(AT_ONCE)));
    let started = cases.into_iter().map(|(name, case)| {
        let room = Arc::clone(&room);
        let played = tasks.spawn(async move {
            let _room = room.acquire().await;
            play(&case).await
        });
        (name, played)
    });
    let mut ended = Vec::new();
    for (name, played) in started.collect::<Vec<_>>() {
        ended.push((name, played.await.unwrap_or_else(|panic| Err(panic.to_string()))));
    }
    ended
}

/// K3, K4, K6, K7, K10, S2: the cases hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_cases_hold() {
    let cases: Vec<_> = cases().collect();
    assert!(cases.len() >= 110, "only {} cases", cases.len());
    assert!(cases.iter().all(|(_, case)| !case.why.is_empty()));
    let failed: Vec<String> = played(cases)
        .await
        .into_iter()
        .filter_map(|(name, how)| how.err().map(|error| format!("{name}: {error}")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_conformance_case_can_fail() {
    let wrong: Vec<_> = cases()
        .flat_map(|(name, case)| {
            let named = |(place, wrong)| (format!("{name}, action {}", place + 1), wrong);
            case.turned_round().map(named).collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.len() >= 350, "only {} expectations", wrong.len());
    let played = played(wrong).await.into_iter();
    let held: Vec<String> = played.filter_map(|(name, how)| how.is_ok().then_some(name)).collect();
    assert!(held.is_empty(), "these hold with a wrong expectation, too: {}", held.join("; "));
}
