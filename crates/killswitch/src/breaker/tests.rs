//! The accounts against a naive model that keeps the whole story, and what the register of them does.

use std::{sync::Barrier, time::Duration};

use estoppel_model::Breaker;
use proptest::prelude::*;

use super::*;

const NOW: Boottime = Boottime::from_nanos(1_000_000_000);

fn at(ms: u64) -> Boottime {
    NOW + Duration::from_millis(ms)
}

fn task(id: &str) -> Subject {
    Subject { task: Some(id.parse().unwrap()), ..Subject::default() }
}

fn well() -> Outcome {
    Outcome { ended: Ended::Well, cost_usd: 0.0, tokens: 0, fingerprint: None }
}

fn halt(scope: &str) -> Order {
    let text = format!(
        r#"{{"id":"{}","scope":"{scope}","reason":"r","issued_by":"alice","issued_at":"2026-02-05T03:00:00Z","kind":"halt"}}"#,
        OrderId::new()
    );
    serde_json::from_str(&text).unwrap()
}

/// Takes one step from its beginning to its end.
fn take(breakers: &Breakers, subject: &Subject, limit: &Limit) -> Result<(), Excess> {
    let entry = breakers.enter(subject, StepKind::Call, limit, NOW);
    let Some(holder) = entry.holder else { return Err(entry.trip.unwrap().excess) };
    match breakers.leave(&holder, subject, StepKind::Call, &well(), limit, NOW) {
        None => Ok(()),
        Some(trip) => Err(trip.excess),
    }
}

fn steps(max: u64) -> Limit {
    Limit { steps_max: Some(max), ..Limit::default() }
}

/// R5: each task has its own account; a subject without a task counts by its session, and those
/// without either count together.
#[test]
fn each_task_counts_for_itself() {
    let breakers = Breakers::default();
    let session = |id: &str| Subject::session(id.parse().unwrap());
    let both = Subject { task: Some("a".parse().unwrap()), ..session("s") };
    for subject in [&task("a"), &task("b"), &session("a"), &Subject::default()] {
        assert!(take(&breakers, subject, &steps(1)).is_ok(), "{subject}");
    }
    for subject in [&task("a"), &both, &session("a"), &Subject::default()] {
        let excess = take(&breakers, subject, &steps(1)).unwrap_err();
        assert_eq!((excess.breaker, excess.value, excess.max), (Breaker::Steps, 2.0, 1.0));
        assert!(breakers.tripped(subject).is_some(), "{subject}");
    }
    assert!(breakers.tripped(&task("b")).is_none());
    assert!(breakers.tripped(&session("s")).is_none());
}

/// R5: what is tripped stays so, whatever becomes of its bounds, until a halt of it is released.
#[test]
fn a_trip_ends_by_the_release_of_a_halt_and_by_nothing_else() {
    let breakers = Breakers::default();
    let subject = task("a");
    let earlier = halt("task:a");
    breakers.halted(&earlier);
    take(&breakers, &subject, &steps(1)).unwrap();
    take(&breakers, &subject, &steps(1)).unwrap_err();
    assert!(take(&breakers, &subject, &Limit::default()).is_err(), "a looser bound");
    let others = [halt("task:b"), halt("session:a"), halt("global")];
    others.iter().for_each(|order| breakers.halted(order));
    breakers.released(&others.map(|order| order.id));
    breakers.released(&[earlier.id]);
    assert!(breakers.tripped(&subject).is_some());
    let (one, two) = (halt("task:a"), halt("task:a"));
    breakers.halted(&one);
    breakers.halted(&two);
    breakers.released(&[one.id]);
    assert!(breakers.tripped(&subject).is_some(), "the other stands");
    breakers.released(&[two.id]);
    assert!(breakers.tripped(&subject).is_none());
    assert!(take(&breakers, &subject, &steps(1)).is_ok(), "it counts anew");
    // Another process's trip had it halted, and here it trips only then: one release ends both.
    let before = halt("task:a");
    breakers.halted(&before);
    take(&breakers, &subject, &steps(1)).unwrap_err();
    breakers.released(&[before.id]);
    assert!(breakers.tripped(&subject).is_none());
}

/// R5: a released task begins anew in every enforcer that counts it, also where it was not over a bound.
#[test]
fn a_release_lets_begin_anew_who_was_not_tripped_here() {
    let breakers = Breakers::default();
    let subject = task("a");
    take(&breakers, &subject, &steps(2)).unwrap();
    take(&breakers, &subject, &steps(2)).unwrap();
    let halt = halt("task:a");
    breakers.halted(&halt);
    breakers.released(&[halt.id]);
    take(&breakers, &subject, &steps(2)).unwrap();
    take(&breakers, &subject, &steps(2)).unwrap();
    take(&breakers, &subject, &steps(2)).unwrap_err();
}

/// R5: what names neither task nor session counts by its agent, and begins anew by the release of
/// whatever halts it.
#[test]
fn an_agent_without_tasks_counts_for_itself() {
    let agent = |id: &str| Subject { agent: Some(id.parse().unwrap()), ..Subject::default() };
    for scope in ["agent:a", "global"] {
        let breakers = Breakers::default();
        take(&breakers, &agent("a"), &steps(0)).unwrap_err();
        take(&breakers, &agent("b"), &steps(1)).unwrap();
        take(&breakers, &Subject::default(), &steps(1)).unwrap();
        let halt = halt(scope);
        breakers.halted(&halt);
        breakers.released(&[halt.id]);
        assert!(breakers.tripped(&agent("a")).is_none(), "{scope}");
    }
}

/// R5: while as many are under way as may be, one more need not trip the task at once.
#[test]
fn one_more_may_wait_for_room() {
    let breakers = Breakers::default();
    let limit = Limit { concurrency_max: Some(1), steps_max: Some(2), ..Limit::default() };
    let enter = |subject: &Subject| breakers.enter_if_room(subject, StepKind::Call, &limit, NOW);
    let holder = enter(&task("a")).unwrap().holder.unwrap();
    assert!(enter(&task("a")).is_none());
    assert!(enter(&task("b")).unwrap().holder.is_some(), "another task has room");
    let other = breakers.enter_if_room(&task("a"), StepKind::Other, &limit, NOW).unwrap();
    assert!(other.holder.is_some(), "what is no call needs no room");
    breakers.leave(&holder, &task("a"), StepKind::Call, &well(), &limit, NOW);
    let entry = enter(&task("a")).unwrap();
    assert_eq!(entry.trip.unwrap().excess.breaker, Breaker::Steps, "room is not all that it needs");
    assert!(!enter(&task("a")).unwrap().is_new, "a stopped task waits for nothing");
}

/// R5: who observes counts what is over a bound and says so once; from when it is to be stopped, it is.
#[test]
fn what_was_only_observed_is_stopped_from_then_on() {
    let breakers = Breakers::default();
    take(&breakers, &task("stopped"), &steps(0)).unwrap_err();
    breakers.set_observes(true);
    let subject = task("a");
    let enter = |limit: &Limit| breakers.enter(&subject, StepKind::Call, limit, NOW);
    let first = enter(&steps(0));
    assert!(first.holder.is_some() && first.is_new && !first.trip.unwrap().stops);
    let second = enter(&steps(0));
    assert!(second.holder.is_some() && !second.is_new);
    assert!(breakers.tripped(&task("stopped")).unwrap().stops, "what was stopped stays so");
    breakers.set_observes(true);
    assert!(breakers.tripped(&subject).is_some());
    breakers.set_observes(false);
    assert!(breakers.tripped(&subject).is_none());
    assert_eq!(breakers.next_look(), Some(Boottime::default()));
    let trip = breakers.look(&first.holder.unwrap(), &subject, &steps(0), NOW).unwrap();
    assert!(trip.stops && trip.excess.value == 2.0);
    assert!(enter(&steps(0)).holder.is_none());
    assert!(breakers.tripped(&task("stopped")).is_some());
}

/// R5: a bound that becomes stricter holds from the next look on, and looser ones loosen.
#[test]
fn bounds_may_change_while_a_task_runs() {
    let breakers = Breakers::default();
    let subject = task("a");
    for _ in 0..3 {
        take(&breakers, &subject, &steps(10)).unwrap();
    }
    let entry = breakers.enter(&subject, StepKind::Other, &steps(100), NOW);
    let holder = entry.holder.unwrap();
    assert_eq!(breakers.look(&holder, &subject, &steps(4), NOW), None);
    let trip = breakers.look(&holder, &subject, &steps(3), NOW).unwrap();
    assert_eq!((trip.excess.value, trip.excess.max), (4.0, 3.0));
    assert_eq!(breakers.look(&holder, &subject, &steps(3), NOW), None, "told once");
}

/// R5: the time of a task is looked at when it is over, also while a step is under way.
#[test]
fn time_is_looked_at_when_it_is_over() {
    let breakers = Breakers::default();
    let limit = |ms| Limit { wall_clock_ms_max: Some(ms), ..Limit::default() };
    let (long, short) = (task("long"), task("short"));
    let enter = |subject: &Subject, limit: &Limit| {
        breakers.enter(subject, StepKind::Other, limit, NOW).holder.unwrap()
    };
    assert_eq!(breakers.next_look(), None);
    let long_holder = enter(&long, &limit(5_000));
    assert_eq!(breakers.next_look(), Some(at(5_001)));
    let short_holder = enter(&short, &limit(100));
    assert_eq!(breakers.next_look(), Some(at(101)));
    breakers.looking();
    assert_eq!(breakers.look(&long_holder, &long, &limit(5_000), at(101)), None);
    let trip = breakers.look(&short_holder, &short, &limit(100), at(101)).unwrap();
    assert_eq!(trip.excess.breaker, Breaker::WallClock);
    assert_eq!(breakers.next_look(), Some(at(5_001)));
    breakers.looking();
    assert_eq!(breakers.look(&long_holder, &long, &Limit::default(), at(9_000)), None);
    assert_eq!(breakers.next_look(), None, "the bound was released");
}

/// R5: 200 threads at once, and never more calls under way than the bound says.
#[test]
#[expect(clippy::disallowed_methods, reason = "the callers' threads, not the crate's")]
fn the_concurrency_limit_holds_under_200_threads() {
    const THREADS: usize = 200;
    const MAX: u32 = 7;
    let limit = Limit { concurrency_max: Some(MAX), ..Limit::default() };
    let breakers = Breakers::default();
    let (now, peak, trips) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (start, all_tried) = (Barrier::new(THREADS), Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                let entry = breakers.enter(&task("a"), StepKind::Call, &limit, NOW);
                trips.fetch_add(usize::from(entry.is_new), Relaxed);
                if entry.holder.is_some() {
                    peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                } else {
                    assert_eq!(entry.trip.unwrap().excess.breaker, Breaker::Concurrency);
                }
                all_tried.wait();
            });
        }
    });
    assert_eq!(peak.into_inner(), MAX as usize, "as many as may, and not one more");
    assert_eq!(trips.into_inner(), 1, "the task trips once");
}

/// Very many tasks cost bounded memory; a tripped one is never forgotten, nor is one under way.
#[test]
fn what_is_idle_is_forgotten_and_what_is_tripped_is_not() {
    let breakers = Breakers::default();
    take(&breakers, &task("tripped"), &steps(0)).unwrap_err();
    let entry = breakers.enter(&task("running"), StepKind::Call, &steps(9), NOW);
    assert!(entry.holder.is_some());
    for n in 0..ACCOUNTS_MAX * 2 {
        take(&breakers, &task(&format!("t{n}")), &steps(9)).unwrap();
        assert!(breakers.lock().tasks.len() <= ACCOUNTS_MAX);
    }
    assert!(breakers.tripped(&task("tripped")).is_some());
    assert!(breakers.lock().tasks.contains_key(&"running".parse::<EntityId>().unwrap()));
}

/// Where nothing can be forgotten, new tasks count together: refused sooner, never later.
#[test]
fn without_room_new_tasks_count_together() {
    let breakers = Breakers::default();
    for n in 0..ACCOUNTS_MAX {
        take(&breakers, &task(&format!("t{n}")), &steps(0)).unwrap_err();
    }
    take(&breakers, &task("new"), &steps(1)).unwrap();
    take(&breakers, &task("newer"), &steps(1)).unwrap_err();
    assert!(breakers.tripped(&task("newest")).is_some());
    assert_eq!(breakers.lock().tasks.len(), ACCOUNTS_MAX);
}

/// A step of the naive model.
#[derive(Debug, Clone)]
struct Told {
    call: bool,
    ended: Ended,
    cost: f64,
    tokens: u64,
    print: Option<u64>,
    after_ms: u64,
}

fn told() -> impl Strategy<Value = Told> {
    let ended = prop_oneof![
        4 => Just(Ended::Well),
        2 => Just(Ended::InError),
        1 => Just(Ended::Stopped)
    ];
    let cost = prop_oneof![4 => 0.0..1.0, 1 => Just(f64::NAN), 2 => Just(0.25),
        1 => Just(-3.0), 1 => Just(f64::INFINITY)];
    let print = proptest::option::weighted(0.9, 0_u64..2);
    (any::<bool>(), ended, cost, 0_u64..50, print, 0_u64..20).prop_map(
        |(call, ended, cost, tokens, print, after_ms)| Told {
            call,
            ended,
            cost,
            tokens,
            print,
            after_ms,
        },
    )
}

fn limits() -> impl Strategy<Value = Limit> {
    let small = || proptest::option::of(0_u32..6);
    (
        proptest::option::of(0_u64..30),
        proptest::option::of(0_u64..200),
        proptest::option::of(0.0..5.0),
        proptest::option::of(0_u64..400),
        small(),
        small(),
    )
        .prop_map(
            |(steps_max, wall_clock_ms_max, cost_usd_max, tokens_max, errors, identical)| Limit {
                steps_max,
                wall_clock_ms_max,
                cost_usd_max,
                tokens_max,
                errors_in_a_row_max: errors,
                identical_calls_max: identical,
                ..Limit::default()
            },
        )
}

/// Which breakers the whole story is over.
fn naive(story: &[Told], elapsed_ms: u64, limit: &Limit) -> Vec<Breaker> {
    let rows = |call: bool| {
        let of_kind = story.iter().rev().filter(move |told| told.call == call);
        let in_a_row = of_kind.filter(|told| told.ended != Ended::Stopped);
        in_a_row.take_while(|told| told.ended == Ended::InError).count() as u64
    };
    let calls: Vec<u64> = story
        .iter()
        .rev()
        .filter(|told| told.call)
        .map_while(|told| told.print)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let times = |period: usize| {
        let Some(last) = calls.len().checked_sub(period) else { return 0 };
        calls.rchunks(period).take_while(|chunk| *chunk == &calls[last..]).count() as u64
    };
    let identical = (1..=cycle::PERIOD_MAX).map(times).max().unwrap();
    // To the billionth, so that no sum of doubles is in the way.
    let nano = |usd: f64| format!("{usd:.9}").replace('.', "").parse::<u64>().unwrap();
    let costs = story.iter().map(|told| told.cost);
    let cost: u64 = costs.filter(|cost| cost.is_finite() && *cost > 0.0).map(nano).sum();
    let tokens: u64 = story.iter().map(|told| told.tokens).sum();
    let over = |value: u64, max: Option<u64>| max.is_some_and(|max| value > max);
    let (errors_max, identical_max) =
        (limit.errors_in_a_row_max.map(u64::from), limit.identical_calls_max.map(u64::from));
    [
        (Breaker::IdenticalCalls, over(identical, identical_max)),
        (Breaker::ErrorsInARow, over(rows(true).max(rows(false)), errors_max)),
        (Breaker::Cost, limit.cost_usd_max.is_some_and(|max| cost > nano(max))),
        (Breaker::Tokens, over(tokens, limit.tokens_max)),
        (Breaker::Steps, over(story.len() as u64, limit.steps_max)),
        (Breaker::WallClock, !story.is_empty() && over(elapsed_ms, limit.wall_clock_ms_max)),
    ]
    .into_iter()
    .filter_map(|(breaker, over)| over.then_some(breaker))
    .collect()
}

proptest! {
    /// R5, R6: at each moment of any story, the account says what the whole story says.
    #[test]
    fn an_account_agrees_with_the_whole_story(
        story in proptest::collection::vec(told(), 0..60),
        limit in limits(),
    ) {
        let mut account = Account::default();
        let mut elapsed = 0;
        for (index, told) in story.iter().enumerate() {
            let so_far = &story[..index];
            let kind = if told.call { StepKind::Call } else { StepKind::Other };
            let before = naive(so_far, elapsed, &limit);
            let may = account.enter(kind, &limit, at(elapsed));
            let with_it = naive(&story[..=index], elapsed, &Limit { steps_max: limit.steps_max, ..Limit::default() });
            match may {
                Ok(()) => prop_assert!(before.is_empty() && with_it.is_empty()),
                Err(excess) => {
                    let first = before.first().or(with_it.first());
                    prop_assert_eq!(Some(&excess.breaker), first);
                    prop_assert!(excess.is_possible());
                    return Ok(());
                }
            }
            elapsed += told.after_ms;
            let outcome = Outcome {
                ended: told.ended,
                cost_usd: told.cost,
                tokens: told.tokens,
                fingerprint: told.print,
            };
            let found = account.leave(kind, &outcome, &limit, at(elapsed));
            let expected = naive(&story[..=index], elapsed, &limit);
            prop_assert_eq!(found.map(|excess| excess.breaker), expected.first().copied());
            prop_assert!(account.is_idle());
            if found.is_some() {
                return Ok(());
            }
        }
    }
}
