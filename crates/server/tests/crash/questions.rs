//! What only raises a question: no halt carries it, so the events' sender waits for the ledger.

use crate::{
    Test,
    play::{Kill, Play, wait_for},
    server::{ACTS, Policy},
};

pub(crate) fn tests() -> Vec<Test> {
    let name = "a_question_outlasts_a_crash_after_the_events_were_acknowledged";
    vec![(
        name.to_owned(),
        Box::new(a_question_outlasts_a_crash_after_the_events_were_acknowledged),
    )]
}

/// No halt is given, so no spool has it: the sender's answer waits for the ledger instead.
fn a_question_outlasts_a_crash_after_the_events_were_acknowledged() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let asks = Policy { egress: "ask", ..ACTS };
    for moment in [
        "incident.opened due 1",
        "incident.opened kept 1",
        "run.started due 1",
        "run.started kept 1",
    ] {
        let mut play = Play::begin(Kill::AmidOthers, asks, moment);
        let acknowledged = play.send_event();
        wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
        assert!(!acknowledged, "acknowledged at `{moment}`, before the question was written");
        play.restart();
        assert!(play.send_event(), "the sender sends again");
        let run = wait_for("the question", || play.run_in(&["asking"]));
        assert_eq!(run["incident"], play.incident().unwrap()["id"], "crash at `{moment}`");
        assert_eq!(play.ask("/v1/runs").unwrap().as_array().unwrap().len(), 1);
        wait_for("a page", || (!play.pages.lock().unwrap().is_empty()).then_some(()));
    }
}
