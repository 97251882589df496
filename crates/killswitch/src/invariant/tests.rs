use std::{collections::BTreeSet, sync::Arc};

use uuid::Uuid;

use super::*;
use crate::{
    frame::ToEnforcer,
    server::{ConnectionId, Effect, Submitted, Switch, SwitchConfig},
    tests::{Keys, halt, signed},
};

const LEASE: Duration = Duration::from_secs(15);

fn id(n: u64) -> OrderId {
    OrderId::from_uuid(Uuid::from_u64_pair(7, n))
}

const fn at(seconds: u64) -> Boottime {
    Boottime::from_nanos(seconds * 1_000_000_000)
}

/// Each invariant has something that is right and something that is wrong, by the one registry.
#[test]
fn each_invariant_tells_right_from_wrong() {
    let answer = Answer { sent: at(100), lease: LEASE, staleness: Duration::from_secs(4) };
    let moved = |from, until, answer| Observation::LeaseMoved { from, until, answer };
    let acts = |after, bound| Observation::Acts { halt: id(1), after, bound };
    let counted = |refusing, settled, by_lease, gone| Observation::Counted {
        expected: 5,
        refusing,
        settled,
        by_lease,
        gone,
    };
    let second = Duration::from_secs(1);
    let went_on =
        |until, now, lease_until, paid| Observation::WentOn { until, now, lease_until, paid };
    let right = [
        Observation::Taken { order: id(1), waited_for: None },
        Observation::Ended { order: id(1), named: true },
        Observation::InForce { before: 3, came: 1, ended: 2, after: 2 },
        moved(None, Some(at(111)), Some(answer)),
        moved(Some(at(111)), None, None),
        acts(LEASE, LEASE),
        went_on(at(112), at(100), Some(at(110)), false),
        went_on(at(110), at(100), None, true),
        Observation::Spent { used: LEASE, allowed: LEASE },
        Observation::Said { order: id(1), refuses: true },
        counted(3, 2, 2, 1),
        Observation::AllRefuse { order: id(1), acting: 0 },
        Observation::Sought { acknowledged: 9, missing: 0 },
    ];
    let wrong = [
        Observation::Taken { order: id(1), waited_for: Some("the disk") },
        Observation::Ended { order: id(1), named: false },
        Observation::InForce { before: 3, came: 1, ended: 2, after: 1 },
        moved(None, Some(at(112)), Some(answer)),
        moved(Some(at(111)), Some(at(112)), None),
        acts(LEASE + second, LEASE),
        went_on(at(113), at(100), Some(at(110)), false),
        went_on(at(101), at(100), None, false),
        went_on(at(101), at(100), Some(at(100)), false),
        went_on(at(111), at(100), Some(at(110)), true),
        Observation::Spent { used: LEASE + second, allowed: LEASE },
        Observation::Said { order: id(1), refuses: false },
        counted(3, 4, 0, 0),
        counted(3, 3, 3, 0),
        counted(3, 3, 0, 1),
        Observation::AllRefuse { order: id(1), acting: 1 },
        Observation::Sought { acknowledged: 9, missing: 1 },
    ];
    let about = |seen: &[Observation]| -> BTreeSet<Invariant> {
        seen.iter().map(|seen| seen.invariant()).collect()
    };
    assert_eq!(about(&right), Invariant::ALL.into());
    assert_eq!(about(&wrong), Invariant::ALL.into());
    let tally = Tally::default();
    for seen in right {
        assert_eq!(tally.observe(seen), Ok(()), "{seen:?}");
    }
    for seen in wrong {
        let violation = tally.observe(seen).unwrap_err();
        assert_eq!(violation.invariant, seen.invariant());
        assert!(violation.to_string().contains(seen.invariant().name()), "{violation}");
    }
    let seen = [&right[..], &wrong[..]].concat();
    for count in tally.counts() {
        let of = |seen: &[Observation]| {
            seen.iter().filter(|seen| seen.invariant() == count.invariant).count() as u64
        };
        assert_eq!((count.checks, count.violations), (of(&seen), of(&wrong)));
    }
}

/// The longest lease that an enforcer takes bounds what an answer can be worth.
#[test]
fn no_answer_is_worth_more_than_the_longest_lease() {
    let answer = Answer { sent: at(0), lease: Duration::MAX, staleness: Duration::ZERO };
    let moved = |until| Observation::LeaseMoved { from: None, until, answer: Some(answer) };
    assert!(moved(Some(Boottime::default() + LEASE_MAX)).check().is_ok());
    assert!(moved(Some(Boottime::default() + LEASE_MAX + LEASE)).check().is_err());
}

#[test]
fn names_are_those_of_pages_and_metrics() {
    let json = serde_json::to_value(Tally::default().counts()).unwrap();
    for (count, invariant) in json.as_array().unwrap().iter().zip(Invariant::ALL) {
        assert_eq!(count["invariant"], invariant.name());
        assert_eq!(count["checks"], 0);
        assert!(invariant.promise().ends_with('.'));
    }
}

/// A watch that is shown effects in another order than a machine gives them.
#[test]
fn a_watch_sees_what_is_out_of_order() {
    let order = Arc::new(halt(1, &["global"], None));
    let broadcast = Effect::Broadcast {
        connections: vec![ConnectionId(1)],
        frame: ToEnforcer::Orders { orders: vec![signed(&order)] },
    };
    let persist = Effect::Persist(signed(&order));
    let kept = [signed(&order)];
    let (switch, _) = Switch::new(SwitchConfig::default(), Box::new(Keys), kept);
    let watch = ServerWatch::default();
    let submitted = |ended| Submitted::New { order: Arc::clone(&order), expected: 0, ended };
    let told = [broadcast.clone(), persist.clone()];
    assert_eq!(watch.submitted(&switch, 0, &submitted(Vec::new()), &told), []);
    let late = watch.submitted(&switch, 0, &submitted(Vec::new()), &[persist, broadcast]);
    assert_eq!(late[0].invariant, Invariant::StopNeverWaits, "{late:?}");
    // What is no release ends nothing.
    let ended = watch.submitted(&switch, 0, &submitted(vec![id(5)]), &told);
    assert_eq!(ended[0].invariant, Invariant::StartingAlwaysDoes, "{ended:?}");
    let gone = watch.submitted(&switch, 9, &submitted(Vec::new()), &told);
    assert_eq!(gone[0].invariant, Invariant::StartingAlwaysDoes, "{gone:?}");
}
