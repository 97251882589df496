//! What the playbooks against prompt injection (rows P4, P5, P7, K2) and runaways (R2, R5) would do.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fmt::Write as _;

use estoppel_playbook::{Inputs, PROMPT_INJECTION, Playbook, RUNAWAY};

fn plan(inputs: &[(&str, &str)]) -> String {
    plan_of(PROMPT_INJECTION, inputs)
}

fn plan_of(playbook: &str, inputs: &[(&str, &str)]) -> String {
    let playbook = Playbook::parse(playbook).unwrap();
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

/// R2, R5: what stops waits for nothing; what destroys waits for the evidence and a lead.
#[test]
fn the_playbook_against_runaways_halts_limits_and_kills_when_agreed() {
    let inputs = [
        ("incident.scope", "task:runaway-123"),
        ("incident.session", "abc123"),
        ("incident.title", "task runaway-123 ran away"),
    ];
    let plan = plan_of(RUNAWAY, &inputs);
    for line in [
        "halt: halt task:runaway-123 [reversible, Stop, []]",
        "limit: limit task:runaway-123 to steps_max 100, wall_clock_ms_max 900000, concurrency_max 4, \
         errors_in_a_row_max 5, identical_calls_max 3 [reversible, Stop, []] undo: a lead releases",
        "capture: capture evidence of the processes of session abc123 [none, Work, []]",
        "kill: kill the processes of session abc123 [destructive, Work, [\"capture\"]] undo: -",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let playbook = Playbook::parse(RUNAWAY).unwrap();
    let kill = &playbook.steps[playbook.position("kill").unwrap()];
    assert_eq!(
        kill.approval.as_ref().unwrap().role,
        estoppel_playbook::journal::ApproverRole::Lead
    );
    let without = plan_of(RUNAWAY, &[inputs[0], inputs[2]]);
    assert!(without.contains("kill: nothing: incident.session is not known"), "{without}");
}

/// A limit that bounds nothing, or by what is no number, is found when it is loaded. It may also
/// refuse steps and stop nobody.
#[test]
fn a_limit_needs_a_bound_that_is_one() {
    let broken =
        |from: &str, to: &str| Playbook::parse(&RUNAWAY.replace(from, to)).unwrap_err().to_string();
    let bounds = &RUNAWAY[RUNAWAY.find("      steps_max").unwrap()
        ..RUNAWAY.find("    retry: { attempts: 5, backoff: 500ms }\n\n  - id: page").unwrap()];
    assert!(broken(bounds, "").contains("`limit` needs a bound"));
    assert!(broken("steps_max: \"100\"", "steps_max: \"-1\"").contains("no whole number"));
    assert!(broken("steps_max: \"100\"", "step_max: \"100\"").contains("steps_max"));
    assert!(broken("steps_max: \"100\"", "cost_usd_max: \"five\"").contains("2.50"));
    assert!(broken("steps_max: \"100\"", "read_only: \"yes\"").contains("`true`"));
    assert!(broken(bounds, "      read_only: \"false\"\n").contains("`limit` needs a bound"));
    let refuses =
        RUNAWAY.replace(bounds, "      read_only: \"true\"\n      requests_per_minute: \"6\"\n");
    let plan = plan_of(&refuses, &[("incident.scope", "task:t"), ("incident.title", "t")]);
    let line = "limit: limit task:t to requests_per_minute 6, read_only [reversible, Stop, []]";
    assert!(plan.contains(line), "{plan}");
}
