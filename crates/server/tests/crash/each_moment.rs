//! No run is lost, and nothing that destroys comes twice, wherever the server dies.

use std::collections::BTreeSet;

use crate::{
    Test,
    play::{Kill, Play, SESSION, wait_for},
    server::{ACTS, Policy},
};

/// The moments are dealt to so many tests, which go on beside each other.
const HANDS: usize = 8;

pub(crate) fn tests() -> Vec<Test> {
    let dealt = (1..=HANDS).map(|hand| -> Test {
        let name = format!("a_run_outlasts_a_crash_at_each_moment_{hand}_of_{HANDS}");
        (name, Box::new(move || a_run_outlasts_a_crash_at_each_moment(hand)))
    });
    let unknown: Test = (
        "what_can_be_neither_observed_nor_repeated_ends_indeterminate".to_owned(),
        Box::new(what_can_be_neither_observed_nor_repeated_ends_indeterminate),
    );
    dealt.chain([unknown]).collect()
}

/// Moments that a play has at least: five steps, two pages.
const MOMENTS: [&str; 18] = [
    "spool due 1",
    "spool kept 1",
    "order due 1",
    "order kept 1",
    "incident.opened due 1",
    "incident.opened kept 1",
    "incident.halted due 1",
    "incident.detection due 1",
    "run.started due 1",
    "run.started kept 1",
    "step.intent due 5",
    "step.intent kept 5",
    "step.result due 5",
    "step.result kept 5",
    "incident.page due 2",
    "incident.page kept 2",
    "run.ended due 1",
    "run.ended kept 1",
];

fn a_run_outlasts_a_crash_at_each_moment(hand: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let play = Play::begin(Kill::AmidOthers, ACTS, "-");
    assert!(play.send_event());
    wait_for("the end without a crash", || play.is_over().then_some(()));
    // What is durable may be seen by others before its writer comes to say so.
    let moments = wait_for("all moments", || {
        let moments = play.moments();
        let has = |moment: &&str| moments.iter().any(|seen| seen == moment);
        MOMENTS.iter().all(has).then_some(moments)
    });
    drop(play);
    for moment in moments.iter().skip(hand - 1).step_by(HANDS) {
        crash_at(moment);
    }
}

/// Plays the whole of it with a crash at a moment.
fn crash_at(moment: &str) {
    let mut play = Play::begin(Kill::AmidOthers, ACTS, moment);
    let acknowledged = play.send_event();
    wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
    let is_kept = play
        .moments()
        .iter()
        .any(|moment| ["spool kept 1", "run.started kept 1"].contains(&moment.as_str()));
    play.restart();
    play.connect_host();
    // Until the spool has the halt, or the ledger the run (they do not wait for each other), both may
    // be lost with the process, and the events' sender has no answer: a guard or gateway sends again.
    // From then on nobody needs to.
    if !is_kept {
        assert!(!acknowledged, "crash at `{moment}`: acknowledged before anything was on the disk");
        assert!(play.send_event());
    }
    let run = wait_for(&format!("the end of the run after a crash at `{moment}`"), || {
        play.run_in(&["completed", "failed", "indeterminate"])
    });
    assert_eq!(run["state"], "completed", "crash at `{moment}`: {run}");
    let incident = wait_for("the page", || {
        play.incident()
            .filter(|incident| incident["pages"].as_array().is_some_and(|p| !p.is_empty()))
    });
    // The sender that has no answer sends the same again: nothing comes of it a second time.
    assert!(play.send_event());
    let runs = play.ask("/v1/runs").unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1, "crash at `{moment}`: no second run: {runs}");
    let halted = play.ask(&format!("/kill-switch?scope=session:{SESSION}")).unwrap();
    assert_eq!(halted["halts"].as_array().unwrap().len(), 1, "crash at `{moment}`: {halted}");
    let count = |list: &str| incident[list].as_array().map_or(0, Vec::len);
    // The ledger may have the incident's word of a halt that was given, and was lost before the slower
    // spool had it: it stays in the history, beside the one that is in force.
    let given = if is_kept { 1..=1 } else { 1..=2 };
    assert!(given.contains(&count("halts")), "crash at `{moment}`: {incident}");
    assert_eq!(count("detections"), 1, "crash at `{moment}`: {incident}");
    let world = play.world.lock().unwrap();
    assert_eq!(world.kills, 1, "crash at `{moment}`: killed once: {run}");
    assert!(world.frozen && world.captures >= 1, "crash at `{moment}`");
    let keys: BTreeSet<String> = play.pages.lock().unwrap().iter().cloned().collect();
    assert_eq!(keys.len(), 1, "crash at `{moment}`: one key for all pages: {keys:?}");
    let id = incident["id"].as_str().unwrap();
    assert!(keys.contains(&format!("estoppel/{id}")), "crash at `{moment}`: {keys:?}");
}

/// The server dies around a kill and the host never comes back: whether the processes are dead
/// cannot be seen, and a kill is not repeated in the dark (*verified-effect*).
fn what_can_be_neither_observed_nor_repeated_ends_indeterminate() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let policy = Policy { lease_s: 2, ..ACTS };
    for (moment, kills) in [("step.intent kept 4", 0), ("step.result due 4", 1)] {
        let mut play = Play::begin(Kill::Last, policy, moment);
        play.send_event();
        wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
        play.restart();
        let run = wait_for("the end", || play.run_in(&["completed", "failed", "indeterminate"]));
        assert_eq!(run["state"], "indeterminate", "crash at `{moment}`: {run}");
        let steps = run["steps"].as_array().unwrap();
        let kill =
            steps.iter().find(|step| step["step"] == "kill" || step["id"] == "kill").unwrap();
        assert_eq!(kill["state"], "indeterminate", "crash at `{moment}`: {kill}");
        // A host that comes back later finds nothing to do.
        play.connect_host();
        wait_for("the host", || play.is_host_connected().then_some(()));
        assert_eq!(play.world.lock().unwrap().kills, kills, "crash at `{moment}`");
    }
}
