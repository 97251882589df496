use std::collections::BTreeSet;

use estoppel_model::NewRecord;

use super::*;
use crate::ActionKind;

const DRILL: &str = r"
format: estoppel.playbook/v1
name: t
title: T
inputs:
  s: { type: session }
  d: { type: destination, required: false }
steps:
  - id: capture
    action: capture
    with:
      session: ${s}
    within: 1m
    retry: { attempts: 2, backoff: 10s }
  - id: freeze
    action: freeze
    with:
      session: ${s}
  - id: block
    action: block
    when: { present: d }
    with:
      scope: ${s}
      destination: ${d}
      reason: r
  - id: kill
    action: kill
    requires_evidence: [capture]
    needs: [freeze]
    approval: { role: lead, quorum: 2, not: initiator, expires: 10m }
    with:
      session: ${s}
  - id: tell
    action: notify
    when: { step: kill, is: failed }
    with: { summary: it failed }
";

/// A run with its journal, driven by hand.
pub(crate) struct Driven {
    pub(crate) run: Run,
    seq: u64,
    pub(crate) now: Timestamp,
}

impl Driven {
    fn new(source: &str, inputs: &[(&str, &str)], asks: bool) -> Self {
        let playbook = Playbook::parse(source).unwrap();
        let inputs = Inputs::read(&playbook, inputs.iter().copied()).unwrap();
        let by = Actor::new("alice").unwrap();
        let started =
            playbook.start(RunId::new(), IncidentId::new(), &inputs, Mode::Live, asks, by);
        let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
        let run = Run::started(&placed(0, started.record(now).unwrap())).unwrap();
        Self { run, seq: 0, now }
    }

    fn append(&mut self, record: NewRecord) {
        self.seq += 1;
        self.run.apply(&placed(self.seq, record));
    }

    fn next(&self) -> Vec<Next> {
        self.run.next(self.now, &BTreeSet::new())
    }

    /// What is to be executed now, by step.
    fn ready(&self) -> Vec<String> {
        let step = |next: Next| match next {
            Next::Execute { intent, .. } => Some(intent.step),
            _ => None,
        };
        self.next().into_iter().filter_map(step).collect()
    }

    fn index(&self, step: &str) -> usize {
        self.run.playbook().position(step).unwrap()
    }

    fn begin(&mut self, step: &str) {
        let index = self.index(step);
        let intent = self.next().into_iter().find_map(|next| match next {
            Next::Execute { intent, .. } if intent.index == index => Some(intent),
            _ => None,
        });
        let record = intent.unwrap_or_else(|| panic!("{step}: {:?}", self.next())).record(self.now);
        self.append(record.unwrap());
    }

    fn end(&mut self, step: &str, outcome: StepOutcome) {
        let index = self.index(step);
        let result = self.run.step_result(index, outcome, "seen", serde_json::Value::Null).unwrap();
        self.append(result.record(self.now).unwrap());
    }

    fn does(&mut self, step: &str, outcome: StepOutcome) {
        self.begin(step);
        self.end(step, outcome);
    }

    fn skips(&mut self) -> Vec<(String, String)> {
        let mut skipped = Vec::new();
        for next in self.next() {
            if let Next::Skip(result) = next {
                skipped.push((result.step.clone(), result.observed.clone()));
                let record = result.record(self.now).unwrap();
                self.append(record);
            }
        }
        skipped
    }

    fn approve(&mut self, step: &str, by: &str, role: crate::journal::ApproverRole) {
        let (run, index, by) = (self.run.id(), self.index(step), Actor::new(by).unwrap());
        let record =
            StepApproved { run, index, by, role, reason: String::new() }.record(self.now).unwrap();
        self.append(record);
    }

    fn waits(&self, step: &str) -> Option<WaitReason> {
        let index = self.index(step);
        self.next().into_iter().find_map(|next| match next {
            Next::Wait { reasons, .. } => {
                reasons.into_iter().find(|(at, _)| *at == index).map(|(_, reason)| reason)
            }
            _ => None,
        })
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + std::time::Duration::from_secs(seconds);
    }
}

fn placed(seq: u64, record: NewRecord) -> Record {
    let NewRecord { kind, key, at, body } = record;
    Record { seq, kind, key, at, body }
}

/// Row P4: stops are first, and wait for neither the capture nor its retries.
#[test]
fn stops_start_at_once() {
    let mut run = Driven::new(DRILL, &[("s", "abc"), ("d", "evil.example")], false);
    assert_eq!(run.ready(), ["freeze", "block", "capture"]);
    run.begin("capture");
    run.run.next(run.now, &BTreeSet::from([run.index("capture")]));
    let busy = BTreeSet::from([run.index("capture")]);
    let next = run.run.next(run.now, &busy);
    assert!(matches!(&next[0], Next::Execute { intent, .. } if intent.step == "freeze"));
}

#[test]
fn a_run_that_asks_does_nothing_before_the_answer() {
    let decide = |approve: bool| {
        let mut run = Driven::new(DRILL, &[("s", "abc")], true);
        assert_eq!(run.run.state(), RunState::Asking);
        assert_eq!(run.ready(), [""; 0]);
        let (id, by, reason) = (run.run.id(), Actor::new("bob").unwrap(), "seen".to_owned());
        let record = RunDecided { run: id, approve, by, reason }.record(run.now).unwrap();
        run.append(record);
        run
    };
    assert_eq!(decide(true).ready(), ["freeze", "capture"]);
    let mut declined = decide(false);
    let next = declined.next();
    let [Next::Finished(ended)] = next.as_slice() else { panic!("{next:?}") };
    assert_eq!(ended.outcome, RunOutcome::Declined);
    let record = ended.record(declined.now).unwrap();
    declined.append(record);
    assert_eq!(declined.next(), []);
}

#[test]
fn a_step_whose_condition_does_not_hold_is_skipped() {
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    let skipped = run.skips();
    assert_eq!(skipped, [("block".to_owned(), "d is not known".to_owned())]);
    assert_eq!(run.skips(), []);
}

/// *stops before evidence before destruction*: a kill waits for the capture or its deadline.
#[test]
fn destruction_waits_for_evidence_or_its_deadline() {
    let ready_to_kill = |run: &mut Driven| {
        run.does("freeze", StepOutcome::Done);
        run.approve("kill", "bob", crate::journal::ApproverRole::Lead);
        run.approve("kill", "carol", crate::journal::ApproverRole::Admin);
    };
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    ready_to_kill(&mut run);
    assert_eq!(run.waits("kill"), Some(WaitReason::Evidence));
    run.does("capture", StepOutcome::Done);
    assert_eq!(run.ready(), ["kill"]);

    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    ready_to_kill(&mut run);
    run.does("capture", StepOutcome::Indeterminate);
    assert_eq!(run.waits("kill"), Some(WaitReason::Evidence), "no evidence is no evidence");
    run.pass(59);
    assert_eq!(run.ready(), [""; 0]);
    run.pass(1);
    assert_eq!(run.ready(), ["kill"]);

    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    ready_to_kill(&mut run);
    let (id, index) = (run.run.id(), run.index("kill"));
    let (by, reason) = (Actor::new("bob").unwrap(), "it burns".to_owned());
    let record = EvidenceWaived { run: id, index, by, reason }.record(run.now).unwrap();
    run.append(record);
    assert!(run.ready().contains(&"kill".to_owned()));
}

#[test]
fn approvals_are_counted_by_person_role_and_age() {
    use crate::journal::ApproverRole::{Lead, Responder};
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    run.does("freeze", StepOutcome::Done);
    run.does("capture", StepOutcome::Done);
    let have = |run: &Driven| match run.waits("kill") {
        Some(WaitReason::Approval { have, need: 2 }) => have,
        other => panic!("{other:?}"),
    };
    run.approve("kill", "alice", Lead);
    assert_eq!(have(&run), 0, "whoever started the run does not count");
    run.approve("kill", "bob", Responder);
    assert_eq!(have(&run), 0, "the role is too weak");
    run.approve("kill", "bob", Lead);
    run.approve("kill", "bob", Lead);
    assert_eq!(have(&run), 1, "one person counts once");
    run.pass(601);
    assert_eq!(have(&run), 0, "it has expired");
    run.approve("kill", "bob", Lead);
    run.approve("kill", "carol", Lead);
    assert_eq!(run.ready(), ["kill"]);
}

#[test]
fn a_failed_step_is_tried_again_after_its_backoff() {
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    run.does("capture", StepOutcome::Failed);
    assert_eq!(run.waits("capture"), Some(WaitReason::Retry));
    run.pass(10);
    run.does("capture", StepOutcome::Failed);
    run.pass(100_000);
    assert!(!run.ready().contains(&"capture".to_owned()), "two attempts are two");
    let first = run.run.action_id(0, 1);
    assert_ne!(first, run.run.action_id(0, 2), "each attempt has its own action");
    assert_eq!(run.run.effect_id(0), run.run.effect_id(0), "and one effect");
    assert_ne!(run.run.effect_id(0), run.run.effect_id(1));
}

#[test]
fn trouble_goes_where_the_playbook_says() {
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    run.skips();
    run.does("capture", StepOutcome::Done);
    run.does("freeze", StepOutcome::Indeterminate);
    let skipped = run.skips();
    assert_eq!(skipped[0].0, "kill", "{skipped:?}");
    assert!(skipped[0].1.contains("`freeze`"), "{skipped:?}");
    assert_eq!(run.skips()[0].1, "`kill` did not end as failed");
    let next = run.next();
    let [Next::Finished(ended)] = next.as_slice() else { panic!("{next:?}") };
    assert_eq!(ended.outcome, RunOutcome::Indeterminate);
}

/// *observe-before-retry*, for each answer and both kinds of action.
#[test]
fn an_intent_without_a_result_is_observed() {
    let mut run = Driven::new(DRILL, &[("s", "abc")], false);
    run.begin("freeze");
    let next = run.next();
    let Next::Observe { intent, call, .. } = &next[0] else { panic!("{next:?}") };
    assert_eq!((intent.step.as_str(), call.kind()), ("freeze", ActionKind::Freeze));
    let freeze = run.index("freeze");
    let after = |run: &Driven, index, observation| {
        run.run.after_observation(index, observation, "seen").unwrap()
    };
    assert_eq!(after(&run, freeze, Observation::NotDone), AfterObservation::Execute);
    assert_eq!(after(&run, freeze, Observation::Unknown), AfterObservation::Execute);
    let AfterObservation::Record(done) = after(&run, freeze, Observation::Done) else { panic!() };
    assert_eq!(done.outcome, StepOutcome::Done);
    run.append(done.record(run.now).unwrap());
    assert_eq!(run.run.after_observation(freeze, Observation::Done, ""), None);

    run.does("capture", StepOutcome::Done);
    run.approve("kill", "bob", crate::journal::ApproverRole::Lead);
    run.approve("kill", "carol", crate::journal::ApproverRole::Lead);
    run.begin("kill");
    let kill = run.index("kill");
    let AfterObservation::Record(unknown) = after(&run, kill, Observation::Unknown) else {
        panic!("a kill that nobody can see must not be repeated")
    };
    assert_eq!(unknown.outcome, StepOutcome::Indeterminate);
}

#[test]
fn the_fold_of_all_runs_takes_what_it_knows() {
    let run = Driven::new(DRILL, &[("s", "abc")], false);
    let inputs = Inputs::read(run.run.playbook(), [("s", "abc")]).unwrap();
    let (id, by) = (RunId::new(), Actor::new("alice").unwrap());
    let started = run.run.playbook().start(id, IncidentId::new(), &inputs, Mode::Live, false, by);
    let mut runs = Runs::default();
    runs.apply(&placed(0, started.record(run.now).unwrap()));
    runs.apply(&placed(1, started.record(run.now).unwrap()));
    let other = estoppel_model::RecordKind::new("something.else");
    runs.apply(&placed(2, NewRecord::json(other, None, run.now, &"x").unwrap()));
    let broken = NewRecord::json(StepIntent::KIND, None, run.now, &"x").unwrap();
    runs.apply(&placed(3, broken));
    assert_eq!((runs.iter().count(), runs.open().count()), (1, 1));
    let mut wrong = started;
    wrong.source = "no playbook".to_owned();
    runs.apply(&placed(4, wrong.record(run.now).unwrap()));
    assert_eq!(runs.unreadable().len(), 1);
    let ended = RunEnded { run: id, outcome: RunOutcome::Completed };
    runs.apply(&placed(5, ended.record(run.now).unwrap()));
    assert_eq!(
        (runs.run(id).unwrap().state(), runs.open().count()),
        (RunState::Ended(RunOutcome::Completed), 0)
    );
}
