//! What the playbook against prompt injection would do (rows P4, P5, P7, K2).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fmt::Write as _;

use estoppel_playbook::{Inputs, PROMPT_INJECTION, Playbook};

fn plan(inputs: &[(&str, &str)]) -> String {
    let playbook = Playbook::parse(PROMPT_INJECTION).unwrap();
    let inputs = Inputs::read(&playbook, inputs.iter().copied()).unwrap();
    let mut out = String::new();
    for step in playbook.plan(&inputs).steps {
        let undo = step.undo.as_deref().unwrap_or("-");
        let (lane, effect) = (step.lane, step.effect.as_str());
        writeln!(
            out,
            "{}: {} [{effect}, {lane:?}, {:?}] undo: {undo}",
            step.id, step.does, step.waits_for
        )
        .unwrap();
    }
    out
}

#[test]
fn a_plan_says_what_each_step_does_and_how_it_is_undone() {
    insta::assert_snapshot!(plan(&[
        ("incident.session", "abc123"),
        ("incident.destination", "collector.example:443"),
        ("incident.title", "data went to collector.example"),
    ]));
}

#[test]
fn without_a_destination_nothing_is_blocked() {
    let plan = plan(&[("incident.session", "abc123"), ("incident.title", "t")]);
    assert!(plan.contains("block: nothing: incident.destination is not known"), "{plan}");
}
