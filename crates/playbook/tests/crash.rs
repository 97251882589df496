//! A run that is interrupted at any moment, any number of times, comes to its end and does nothing
//! twice that must be done once (invariants *verified-effect* and *observe-before-retry*).
//!
//! The world here counts the effects of each step. A process drives the run by the rules of
//! `Run::next` and dies after a number of moves that the test chooses; then the next one starts,
//! with nothing but the journal.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::{BTreeMap, BTreeSet};

use estoppel_model::{Actor, IncidentId, NewRecord, Record, RunId, Timestamp};
use estoppel_playbook::{
    AfterObservation, Inputs, Next, Observation, Playbook, Repetition, Run, RunState,
    journal::{ApproverRole, Mode, StepApproved, StepOutcome},
};
use proptest::prelude::*;
use uuid::Uuid;

const PLAYBOOK: &str = r"
format: estoppel.playbook/v1
name: t
title: T
inputs:
  s: { type: session }
steps:
  - id: halt
    action: halt
    with:
      scope: ${s}
      reason: r
    retry: { attempts: 3, backoff: 1s }
  - id: freeze
    action: freeze
    needs: [halt]
    with:
      session: ${s}
    on_failure: continue
    on_indeterminate: continue
  - id: capture
    action: capture
    needs: [freeze]
    with:
      session: ${s}
    retry: { attempts: 2, backoff: 1s }
  - id: page
    action: notify
    with: { summary: x }
    retry: { attempts: 3, backoff: 1s }
  - id: kill
    action: kill
    needs: [freeze]
    requires_evidence: [capture]
    approval: { role: lead, quorum: 1 }
    with:
      session: ${s}
    retry: { attempts: 2, backoff: 1s }
  - id: thaw
    action: thaw
    when: { step: kill, is: failed }
    with:
      session: ${s}
";

static PARSED: std::sync::LazyLock<Playbook> =
    std::sync::LazyLock::new(|| Playbook::parse(PLAYBOOK).unwrap());

/// The ledger: records in order, the first of a key kept.
struct Journal {
    /// What the first record says; a new process reads it anew, which is the same each time.
    started: Run,
    records: Vec<Record>,
    keys: BTreeSet<String>,
}

impl Journal {
    /// Whether the record was kept.
    fn append(&mut self, record: NewRecord) -> bool {
        let NewRecord { kind, key, at, body } = record;
        if key.clone().is_some_and(|key| !self.keys.insert(key)) {
            return false;
        }
        let seq = 1 + self.records.len() as u64;
        self.records.push(Record { seq, kind, key, at, body });
        true
    }

    fn fold(&self) -> Run {
        let mut run = self.started.clone();
        self.records.iter().for_each(|record| run.apply(record));
        run
    }
}

/// Everything outside.
struct World {
    /// Times that each effect was brought about, by the id that its receiver knows it by.
    effects: BTreeMap<(usize, Uuid), u32>,
    /// Effects by step, however they were called.
    times: BTreeMap<usize, u32>,
    /// Whether a step's effect can be seen afterwards.
    observable: BTreeMap<usize, bool>,
    /// What executing a step comes to, one after the other.
    outcomes: Vec<StepOutcome>,
    executed: usize,
}

impl World {
    fn execute(&mut self, index: usize, id: Uuid) -> StepOutcome {
        let outcome = self.outcomes[self.executed % self.outcomes.len()];
        self.executed += 1;
        if outcome != StepOutcome::Failed {
            *self.effects.entry((index, id)).or_default() += 1;
            *self.times.entry(index).or_default() += 1;
        }
        outcome
    }

    fn observe(&self, index: usize) -> Observation {
        if !self.observable.get(&index).copied().unwrap_or(false) {
            Observation::Unknown
        } else if self.times.get(&index).copied().unwrap_or(0) > 0 {
            Observation::Done
        } else {
            Observation::NotDone
        }
    }
}

/// Moves that one process makes before it dies; `None`: it lives.
type Life = Option<usize>;

/// Makes moves until the process dies or the run is over. A move is one append or one effect, so
/// that a death falls between any two of them.
fn live(journal: &mut Journal, world: &mut World, now: &mut Timestamp, life: Life) -> bool {
    let mut left = life.unwrap_or(usize::MAX);
    let mut step = || {
        let alive = left > 0;
        left = left.saturating_sub(1);
        alive
    };
    for _turn in 0..10_000 {
        let run = journal.fold();
        let Some(next) = run.next(*now, &BTreeSet::new()).into_iter().next() else { return true };
        let (index, action_id, observed) = match &next {
            Next::Execute { intent, action_id, .. } => {
                if !step() {
                    return false;
                }
                assert!(journal.append(intent.record(*now).unwrap()), "one intent an attempt");
                (intent.index, *action_id, None)
            }
            Next::Observe { intent, action_id, .. } => {
                (intent.index, *action_id, Some(world.observe(intent.index)))
            }
            Next::Skip(result) => {
                if !step() {
                    return false;
                }
                assert!(journal.append(result.record(*now).unwrap()));
                continue;
            }
            Next::Wait { until, .. } => {
                *now = until.expect("nothing here waits for ever").max(*now);
                continue;
            }
            Next::Finished(ended) => {
                if !step() {
                    return false;
                }
                assert!(journal.append(ended.record(*now).unwrap()));
                continue;
            }
        };
        let run = journal.fold();
        let decided = observed.map(|seen| run.after_observation(index, seen, "seen").unwrap());
        let result = if let Some(AfterObservation::Record(result)) = decided {
            result
        } else {
            if !step() {
                return false;
            }
            let outcome = world.execute(index, action_id);
            run.step_result(index, outcome, "done", serde_json::Value::Null).unwrap()
        };
        if !step() {
            return false;
        }
        assert!(journal.append(result.record(*now).unwrap()), "one result an attempt");
    }
    panic!("the run does not come to its end");
}

fn begin() -> (Journal, Timestamp) {
    let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
    let playbook = &*PARSED;
    let inputs = Inputs::read(playbook, [("s", "abc")]).unwrap();
    let (run, alice) = (RunId::new(), Actor::new("alice").unwrap());
    let started = playbook.start(run, IncidentId::new(), &inputs, Mode::Live, false, alice);
    let NewRecord { kind, key, at, body } = started.record(now).unwrap();
    let started = Run::started(&Record { seq: 0, kind, key, at, body }).unwrap();
    let mut journal = Journal { started, records: Vec::new(), keys: BTreeSet::new() };
    let (index, by) = (playbook.position("kill").unwrap(), Actor::new("bob").unwrap());
    let approved = StepApproved { run, index, by, role: ApproverRole::Lead, reason: String::new() };
    journal.append(approved.record(now).unwrap());
    (journal, now)
}

fn check(lives: &[usize], observable: BTreeMap<usize, bool>, outcomes: Vec<StepOutcome>) {
    let (mut journal, mut now) = begin();
    let (effects, times) = (BTreeMap::new(), BTreeMap::new());
    let mut world = World { effects, times, observable, outcomes, executed: 0 };
    for life in lives {
        if live(&mut journal, &mut world, &mut now, Some(*life)) {
            break;
        }
    }
    assert!(live(&mut journal, &mut world, &mut now, None));
    let run = journal.fold();
    assert!(matches!(run.state(), RunState::Ended(_)), "{:?}", run.state());
    for (index, view) in run.steps().enumerate() {
        let times = world.times.get(&index).copied().unwrap_or(0);
        if view.step.action.repetition() == Repetition::Once {
            assert!(times <= 1, "`{}` had its effect {times} times", view.step.id);
        }
    }
}

fn any_outcome() -> impl Strategy<Value = StepOutcome> {
    prop_oneof![
        4 => Just(StepOutcome::Done),
        2 => Just(StepOutcome::Failed),
        1 => Just(StepOutcome::Indeterminate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_run_survives_any_deaths(
        lives in prop::collection::vec(0_usize..12, 0..12),
        observable in prop::collection::vec(any::<bool>(), 6),
        outcomes in prop::collection::vec(any_outcome(), 1..12),
    ) {
        check(&lives, observable.into_iter().enumerate().collect(), outcomes);
    }
}

/// Each single place to die, with nothing and with everything observable.
#[test]
fn a_run_survives_a_death_at_every_boundary() {
    for moves in 0..40 {
        for seen in [false, true] {
            let observable = (0..6).map(|index| (index, seen)).collect();
            check(&[moves], observable, vec![StepOutcome::Done]);
        }
    }
}

/// An effect that its receiver knows by its id is sent again under the same id only.
#[test]
fn a_repetition_carries_the_same_ids() {
    let ids = |run: &Run| -> Vec<(String, Uuid, Uuid)> {
        run.next("2026-02-05T03:00:00Z".parse().unwrap(), &BTreeSet::new())
            .into_iter()
            .filter_map(|next| match next {
                Next::Execute { intent, effect_id, action_id, .. }
                | Next::Observe { intent, effect_id, action_id, .. } => {
                    Some((intent.step, effect_id, action_id))
                }
                _ => None,
            })
            .collect()
    };
    let (mut journal, now) = begin();
    let before = ids(&journal.fold());
    let intents: Vec<_> = journal
        .fold()
        .next(now, &BTreeSet::new())
        .into_iter()
        .filter_map(|next| match next {
            Next::Execute { intent, .. } => Some(intent),
            _ => None,
        })
        .collect();
    for intent in intents {
        journal.append(intent.record(now).unwrap());
    }
    assert_eq!(before, ids(&journal.fold()), "after the crash, to be observed");
}
