//! Who counts as stopped: also enforcers that refused and were gone before they settled, and those to
//! whom a server before this one gave leases. Invariant *confirmed*, row K7.

use std::time::Duration;

use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{Settlement, Stage, ToEnforcer, ToServer},
    server::{ConnectionId, Effect, HaltProgress, Input, Listing, Switch},
};
use estoppel_model::{EnforcerId, Order, OrderId};

use crate::{
    by_hand::{
        assert_counted, confirm, frame, hello, identity, join, refusing, sent, settled, submit,
        switch,
    },
    support::{at, halt, id, order_id},
};

const HALT: u64 = 1;

fn progress(switch: &Switch, millis: u64) -> HaltProgress {
    let progress = switch.progress(order_id(HALT), at(millis)).unwrap();
    assert_counted(switch, order_id(HALT), &progress);
    progress
}

fn is_complete(switch: &Switch) -> bool {
    switch.count(order_id(HALT)).unwrap().is_complete()
}

fn disconnect(switch: &mut Switch, n: u64, millis: u64) {
    switch.step(Input::Disconnected { connection: ConnectionId(n) }, at(millis));
}

fn tick(switch: &mut Switch, millis: u64) -> Vec<Effect> {
    switch.step(Input::Tick, at(millis))
}

/// Connects as `enforcer`, with all orders of the switch; answers no ping.
fn come(switch: &mut Switch, n: u64, key: u64, actor: &str, enforcer: EnforcerId, millis: u64) {
    let connection = ConnectionId(n);
    let identity = Box::new(identity(actor, None));
    switch.step(Input::Connected { connection, identity }, at(millis));
    let mut greeting = hello(enforcer, key, &OrderSet::default());
    greeting.set = switch.orders().digest(&Audience::Everyone).summary();
    let effects = frame(switch, n, ToServer::Hello(Box::new(greeting)), millis);
    assert!(sent(&effects, n).contains(&&ToEnforcer::InSync), "{effects:?}");
}

fn lease_over(effects: &[Effect], enforcer: EnforcerId) -> bool {
    effects.iter().any(|it| matches!(it, Effect::LeaseOver { enforcer: over } if *over == enforcer))
}

/// Invariant *confirmed*, K7: the denominator is every lease alive at the acceptance.
#[test]
fn confirmations_count_for_those_who_were_there() {
    let mut switch = switch();
    let first = join(&mut switch, 1, identity("a", None), 0);
    let silent = join(&mut switch, 2, identity("b", None), 0);
    join(&mut switch, 3, identity("c", Some("other")), 0);
    let halt = Order { tenant: Some(id("acme")), ..halt(1, &["session:a"]) };
    submit(&mut switch, &halt, 1_000);
    let late = join(&mut switch, 4, identity("d", Some("acme")), 2_000);
    let effects = frame(&mut switch, 1, refusing(halt.id), 1_010);
    assert!(matches!(&effects[..], [Effect::Confirmed { enforcer, .. }] if *enforcer == first));
    assert!(frame(&mut switch, 1, refusing(halt.id), 1_020).is_empty(), "a repetition");
    frame(&mut switch, 4, refusing(halt.id), 2_010);
    assert!(
        frame(&mut switch, 3, refusing(halt.id), 2_020).is_empty(),
        "it may not even know of it"
    );
    assert!(frame(&mut switch, 1, refusing(order_id(99)), 2_030).is_empty());

    let progress = switch.progress(halt.id, at(3_000)).unwrap();
    assert_counted(&switch, halt.id, &progress);
    assert_eq!(
        (progress.expected, progress.refusing, progress.settled, progress.by_lease),
        (2, 1, 0, 0)
    );
    let listed: Vec<_> =
        progress.enforcers.iter().map(|word| (word.enforcer, word.expected)).collect();
    assert_eq!(listed, [(first, true), (silent, true), (late, false)]);
    assert_eq!(progress.enforcers[0].refusing.unwrap().after, Duration::from_millis(10));

    frame(&mut switch, 1, settled(halt.id), 3_100);
    // The silent one's lease, given at 0, ends at 15 s.
    let effects = switch.step(Input::Tick, at(15_001));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::LeaseOver { enforcer } if *enforcer == silent))
    );
    let progress = switch.progress(halt.id, at(15_001)).unwrap();
    assert_counted(&switch, halt.id, &progress);
    assert_eq!(
        (progress.expected, progress.refusing, progress.settled, progress.by_lease),
        (2, 1, 1, 1)
    );
    let counted = switch.progress_listing(halt.id, at(15_001), Listing::OpenFirst(0)).unwrap();
    assert_eq!((counted.expected, counted.settled, counted.words), (2, 1, 3));
    assert!(counted.enforcers.is_empty());
    assert_eq!(progress.enforcers[0].settlement.steps_cancelled, 1);
    assert!(progress.enforcers[1].by_lease && !progress.enforcers[1].witness);
    assert_eq!(progress.enforcers[1].lease_until, Some(at(15_000).wall));
    switch.step(Input::Disconnected { connection: ConnectionId(2) }, at(15_002));
    switch.step(Input::Tick, at(16_000));
    assert!(switch.enforcers().all(|state| state.id != silent), "forgotten");
    let later = switch.progress(halt.id, at(60_000)).unwrap();
    assert_counted(&switch, halt.id, &later);
    assert_eq!(later.enforcers[1].lease_until, Some(at(15_000).wall), "but not its lease's end");
}

/// K7: however many there are, who is still waited for is listed first.
#[test]
fn those_who_are_waited_for_are_listed_first() {
    let mut switch = switch();
    let all: Vec<_> = (1..=9)
        .map(|n| join(&mut switch, n, identity(&format!("enforcer-{n}"), None), 0))
        .collect();
    let halt = halt(1, &["session:a"]);
    submit(&mut switch, &halt, 1_000);
    for n in (1..=9).filter(|n| *n != 4 && *n != 8) {
        frame(&mut switch, n, refusing(halt.id), 1_010);
        frame(&mut switch, n, settled(halt.id), 1_020);
    }
    let listed = |most| {
        let progress =
            switch.progress_listing(halt.id, at(2_000), Listing::OpenFirst(most)).unwrap();
        assert_eq!((progress.expected, progress.settled, progress.words), (9, 7, 9));
        progress.enforcers.iter().map(|word| word.enforcer).collect::<Vec<_>>()
    };
    assert_eq!(listed(1), [all[3]]);
    assert_eq!(listed(3)[..2], [all[3], all[7]]);
    assert_eq!((listed(3).len(), listed(20).len()), (3, 9));
    assert_eq!(switch.progress(halt.id, at(2_000)).unwrap().enforcers[0].enforcer, all[0]);
}

#[test]
fn an_enforcer_that_only_observes_refuses_nothing() {
    let mut switch = switch();
    join(&mut switch, 1, identity("a", None), 0);
    submit(&mut switch, &halt(1, &["session:a"]), 1);
    frame(&mut switch, 1, refusing(order_id(1)), 2);
    let observed = Settlement { observed_only: true, ..Settlement::default() };
    frame(&mut switch, 1, confirm(order_id(1), Stage::Settled, observed), 3);
    let progress = switch.progress(order_id(1), at(4)).unwrap();
    assert_counted(&switch, order_id(1), &progress);
    assert_eq!((progress.refusing, progress.settled, progress.observing), (0, 0, 1));
}

/// K7: an enforcer that refused and died before it settled is waited for until its lease is over,
/// and not for ever; it is counted as what it is.
#[test]
fn who_refused_and_is_gone_is_not_waited_for() {
    let mut switch = switch();
    let dies = join(&mut switch, 1, identity("a", None), 0);
    join(&mut switch, 2, identity("b", None), 0);
    submit(&mut switch, &halt(HALT, &["session:a"]), 1_000);
    frame(&mut switch, 1, refusing(order_id(HALT)), 1_010);
    frame(&mut switch, 2, refusing(order_id(HALT)), 1_010);
    frame(&mut switch, 2, settled(order_id(HALT)), 1_020);
    disconnect(&mut switch, 1, 1_100);
    tick(&mut switch, 14_900);
    assert!(progress(&switch, 14_900).all_refuse() && !progress(&switch, 14_900).is_over());
    assert!(!is_complete(&switch));

    assert!(lease_over(&tick(&mut switch, 15_001), dies));
    let told = progress(&switch, 15_001);
    let counts = (told.expected, told.refusing, told.settled, told.by_lease, told.gone);
    assert_eq!(counts, (2, 2, 1, 0, 1));
    assert!(told.is_over() && is_complete(&switch));
    let word = told.enforcers.iter().find(|word| word.enforcer == dies).unwrap();
    assert!(word.gone && !word.by_lease && word.settled.is_none());
    assert_eq!(word.refusing.unwrap().after, Duration::from_millis(10));
    assert_eq!(word.lease_until, Some(at(15_000).wall));
}

/// A lease that is over proves nothing of who comes back: it is waited for again, until it settles
/// or is gone for good.
#[test]
fn who_comes_back_is_waited_for_again() {
    let mut switch = switch();
    let stalls = join(&mut switch, 1, identity("a", None), 0);
    submit(&mut switch, &halt(HALT, &["session:a"]), 1_000);
    frame(&mut switch, 1, refusing(order_id(HALT)), 1_010);
    tick(&mut switch, 15_001);
    assert_eq!(progress(&switch, 15_001).gone, 1, "its connection stands, and it says nothing");

    // On the same connection.
    frame(&mut switch, 1, ToServer::Ping { nonce: 7 }, 16_000);
    assert_eq!(progress(&switch, 16_000).gone, 0);
    assert!(!is_complete(&switch));
    tick(&mut switch, 31_001);
    assert!(is_complete(&switch));

    // On a new one: a word alone may be its last, and with a lease it is waited for.
    disconnect(&mut switch, 1, 32_000);
    come(&mut switch, 2, 1, "a", stalls, 33_000);
    frame(&mut switch, 2, refusing(order_id(HALT)), 33_010);
    assert!(is_complete(&switch), "it has no lease");
    frame(&mut switch, 2, ToServer::Ping { nonce: 8 }, 33_015);
    assert!(!is_complete(&switch));
    disconnect(&mut switch, 2, 33_020);
    assert!(lease_over(&tick(&mut switch, 48_100), stalls), "whoever waits must learn of it");
    assert!(is_complete(&switch) && progress(&switch, 48_100).gone == 1);

    // And at last it settles.
    come(&mut switch, 3, 1, "a", stalls, 50_000);
    frame(&mut switch, 3, refusing(order_id(HALT)), 50_010);
    frame(&mut switch, 3, settled(order_id(HALT)), 50_020);
    let told = progress(&switch, 50_030);
    assert_eq!((told.settled, told.gone), (1, 0));
    assert!(told.is_over());
    disconnect(&mut switch, 3, 51_000);
    tick(&mut switch, 80_000);
    assert_eq!(progress(&switch, 80_000).gone, 0, "what has settled stays so");
}

/// A server that was started again calls nothing confirmed by all before the leases are over that
/// the one before it may have given, also where it knows of nobody.
#[test]
fn after_a_restart_a_lease_must_pass() {
    let mut switch = switch();
    switch.expect_unknown(at(15_000).boot);
    submit(&mut switch, &halt(HALT, &["session:a"]), 1_000);
    let told = progress(&switch, 1_010);
    assert_eq!((told.expected, told.unknown_until), (0, Some(at(15_000).wall)));
    assert!(!told.all_refuse() && !told.is_over());
    assert_eq!(switch.unknown_until(at(1_010)), Some(at(15_000).wall));

    let comes = join(&mut switch, 1, identity("a", None), 2_000);
    frame(&mut switch, 1, refusing(order_id(HALT)), 2_010);
    frame(&mut switch, 1, settled(order_id(HALT)), 2_020);
    let told = progress(&switch, 2_030);
    assert_eq!((told.expected, told.settled), (1, 1), "it may have held a lease when it was given");
    assert!(told.enforcers.iter().any(|word| word.enforcer == comes && word.expected));
    assert!(!told.all_refuse() && !is_complete(&switch), "others may");

    let has_all_known = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::AllKnown)).count()
    };
    assert_eq!(has_all_known(&tick(&mut switch, 14_900)), 0);
    assert!(!is_complete(&switch));
    assert_eq!(has_all_known(&tick(&mut switch, 15_100)), 1);
    assert!(is_complete(&switch) && progress(&switch, 15_100).is_over());
    assert_eq!(has_all_known(&tick(&mut switch, 15_200)), 0, "said once");
    assert_eq!(switch.unknown_until(at(15_100)), None);

    // From then on only those count that have a lease of this server.
    submit(&mut switch, &halt(2, &["session:b"]), 15_300);
    let late = join(&mut switch, 2, identity("b", None), 15_400);
    let told = switch.progress(order_id(2), at(15_500)).unwrap();
    assert_eq!((told.expected, told.unknown_until), (1, None));
    assert!(told.enforcers.iter().all(|word| word.enforcer != late));
}

/// Whoever says hello soon after a restart may hold an old lease: it is expected of what is given
/// then, before this server has given it any; one that goes again counts by that lease.
#[test]
fn who_returns_after_a_restart_counts_until_its_old_lease_is_over() {
    let mut switch = switch();
    switch.expect_unknown(at(15_000).boot);
    switch.hold_leases();
    let [stays, goes] = [EnforcerId::new(), EnforcerId::new()];
    come(&mut switch, 1, 1, "a", stays, 500);
    come(&mut switch, 2, 2, "b", goes, 500);
    let other = join(&mut switch, 3, identity("c", Some("other")), 600);
    let halt = Order { tenant: Some(id("acme")), ..halt(HALT, &["session:a"]) };
    submit(&mut switch, &halt, 1_000);
    assert_eq!(progress(&switch, 1_010).expected, 2, "and not the other tenant's");
    come(&mut switch, 4, 4, "d", EnforcerId::new(), 1_100);
    join(&mut switch, 5, identity("e", Some("other")), 1_100);
    assert_eq!(progress(&switch, 1_200).expected, 3);
    disconnect(&mut switch, 2, 1_300);
    for n in [1, 4] {
        frame(&mut switch, n, refusing(order_id(HALT)), 1_400);
        frame(&mut switch, n, settled(order_id(HALT)), 1_410);
    }
    tick(&mut switch, 14_900);
    let told = progress(&switch, 14_900);
    assert_eq!((told.settled, told.by_lease), (2, 0));
    assert!(switch.enforcer(goes).unwrap().is_alive(at(14_900).boot));
    tick(&mut switch, 15_100);
    let told = progress(&switch, 15_100);
    assert_eq!((told.expected, told.settled, told.by_lease), (3, 2, 1));
    assert!(is_complete(&switch));
    assert!(told.enforcers.iter().all(|word| word.enforcer != other));
}

/// However many orders and enforcers there are after a restart, what is tracked is bounded.
#[test]
fn what_is_tracked_after_a_restart_is_bounded() {
    let mut switch = switch();
    switch.expect_unknown(at(15_000).boot);
    for n in 0..300 {
        submit(&mut switch, &halt(n, &["session:a"]), 1_000);
    }
    for n in 0..1_300 {
        come(&mut switch, n, n, "a", EnforcerId::new(), 2_000);
    }
    let tracked = (0..300).map(order_id).filter_map(|order: OrderId| switch.count(order));
    let members: Vec<usize> = tracked.map(|count| count.expected).collect();
    assert!(members.iter().sum::<usize>() <= 300_000, "{members:?}");
    assert_eq!(members.last(), Some(&1_300));
}
