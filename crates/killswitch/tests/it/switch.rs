//! The server's side by itself, against enforcers that may be late, wrong or hostile.

use std::time::Duration;

use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{
        Confirmation, EnforcerKind, FRAME_BYTES_MAX, Hello, PROTOCOL, Settlement, Stage,
        ToEnforcer, ToServer,
    },
    server::{
        ConnectionId, Effect, EnforcerProgress, EnforcerState, HANDED_BACK_MAX, HaltCount,
        HaltProgress, Identity, Input, Listing, ReleaseError, SubmitError, Submitted, Switch,
        SwitchConfig,
    },
};
use estoppel_model::{
    Actor, EnforcerId, Order, OrderBody, OrderId, ScopeSet, SignedOrder, Subject,
};

use crate::support::{
    Keys, SERVER, at, halt, id, order, order_id, release, scopes, set_of, sign, signed, text,
};

/// What enforcers call their own keys: 64 hex digits.
pub(crate) fn own_key(n: u64) -> String {
    format!("{n:064x}")
}

pub(crate) fn switch() -> Switch {
    Switch::new(SwitchConfig::default(), Box::new(Keys), []).0
}

pub(crate) fn identity(actor: &str, tenant: Option<&str>) -> Identity {
    Identity { actor: Actor::new(actor).unwrap(), tenant: tenant.map(id), scopes: None }
}

pub(crate) fn hello(enforcer: EnforcerId, key: u64, orders: &OrderSet) -> Hello {
    Hello {
        protocol: PROTOCOL,
        enforcer,
        kind: EnforcerKind::Guard,
        name: format!("guard-{key}"),
        subjects: Vec::new(),
        key: own_key(key),
        set: orders.digest(&Audience::Everyone).summary(),
        checkpoint: None,
        gaps: Vec::new(),
    }
}

pub(crate) fn frame(switch: &mut Switch, n: u64, frame: ToServer, millis: u64) -> Vec<Effect> {
    switch.step(Input::Frame { connection: ConnectionId(n), frame }, at(millis))
}

/// Connects an enforcer that has what the switch has, and pings once.
pub(crate) fn join(switch: &mut Switch, n: u64, identity: Identity, millis: u64) -> EnforcerId {
    let enforcer = EnforcerId::new();
    let audience = Audience::of(identity.tenant.as_ref());
    let connection = ConnectionId(n);
    switch.step(Input::Connected { connection, identity: Box::new(identity) }, at(millis));
    let mut greeting = hello(enforcer, n, &OrderSet::default());
    greeting.set = switch.orders().digest(&audience).summary();
    let effects = frame(switch, n, ToServer::Hello(Box::new(greeting)), millis);
    assert!(
        sent(&effects, n).iter().any(|frame| matches!(frame, ToEnforcer::InSync)),
        "{effects:?}"
    );
    frame(switch, n, ToServer::Ping { nonce: 0 }, millis);
    enforcer
}

pub(crate) fn sent(effects: &[Effect], n: u64) -> Vec<&ToEnforcer> {
    let to = ConnectionId(n);
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { connection, frame } if *connection == to => Some(frame),
            Effect::Broadcast { connections, frame } if connections.contains(&to) => Some(frame),
            _ => None,
        })
        .collect()
}

pub(crate) fn orders_sent(effects: &[Effect], n: u64) -> Vec<SignedOrder> {
    let frames = sent(effects, n).into_iter().filter_map(|frame| match frame {
        ToEnforcer::Orders { orders } => Some(orders.clone()),
        _ => None,
    });
    frames.flatten().collect()
}

pub(crate) fn is_refused(effects: &[Effect], n: u64) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Close { connection, .. } if *connection == ConnectionId(n))
    })
}

pub(crate) fn confirm(order: OrderId, stage: Stage, settlement: Settlement) -> ToServer {
    let at = at(5).wall;
    ToServer::Confirm(Box::new(Confirmation { order, stage, at, after_us: 3, settlement }))
}

pub(crate) fn refusing(order: OrderId) -> ToServer {
    confirm(order, Stage::Refusing, Settlement::default())
}

pub(crate) fn settled(order: OrderId) -> ToServer {
    confirm(order, Stage::Settled, Settlement { steps_cancelled: 1, ..Settlement::default() })
}

pub(crate) fn submit(switch: &mut Switch, order: &Order, millis: u64) -> (Submitted, Vec<Effect>) {
    switch.submit(signed(order), at(millis)).unwrap()
}

/// Invariant *stop-never-waits*, K7: the broadcast comes before the disk, once for each audience.
#[test]
fn a_halt_is_broadcast_before_it_is_persisted() {
    let mut switch = switch();
    for n in 0..4 {
        join(&mut switch, n, identity("a", None), 0);
    }
    for n in 4..6 {
        join(&mut switch, n, identity("b", Some("acme")), 0);
    }
    join(&mut switch, 6, identity("c", Some("other")), 0);
    let halt = Order { tenant: Some(id("acme")), ..halt(1, &["session:a"]) };
    let (submitted, effects) = submit(&mut switch, &halt, 1);
    let (
        Effect::Broadcast { connections: first, .. },
        Effect::Broadcast { connections: second, .. },
    ) = (&effects[0], &effects[1])
    else {
        panic!("{effects:?}");
    };
    assert_eq!([first.len(), second.len()], [4, 2]);
    assert!(matches!(&effects[2..], [Effect::Persist(order)] if *order == signed(&halt)));
    assert!(orders_sent(&effects, 6).is_empty(), "another tenant's enforcer");
    assert!(matches!(submitted, Submitted::New { expected: 6, .. }), "{submitted:?}");
    let (submitted, effects) = submit(&mut switch, &halt, 2);
    assert!(matches!(submitted, Submitted::Known(_)) && effects.is_empty());
}

/// Invariant *starting-always-does*.
#[test]
fn a_release_is_taken_from_the_ledger_only() {
    let mut switch = switch();
    join(&mut switch, 1, identity("a", None), 0);
    submit(&mut switch, &halt(1, &["session:a"]), 1);
    let release = signed(&release(2, &[1]));
    let error = switch.submit(release.clone(), at(2)).unwrap_err();
    assert!(matches!(error, SubmitError::ReleaseNeedsLedger));
    assert!(switch.stop(&scopes(&["session:a"])));
    let (submitted, effects) = switch.submit_recorded(release, at(3)).unwrap();
    assert!(matches!(submitted, Submitted::New { ended, .. } if ended == [order_id(1)]));
    assert!(matches!(effects[..], [Effect::Broadcast { .. }]), "{effects:?}");
    assert!(!switch.stop(&scopes(&["session:a"])));
}

#[test]
fn what_is_no_order_is_refused() {
    let mut switch = switch();
    submit(&mut switch, &halt(1, &["session:a"]), 1);
    let mut check = |order: SignedOrder, expect: &str| {
        let error = switch.submit(order, at(2)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(sign(SERVER, "{".to_owned()), "not an order");
    check(
        sign(SERVER, text(&halt(2, &["session:a"])).replace("\"halt\"", "\"halt\",\"x\":1")),
        "`x`",
    );
    check(signed(&halt(1, &["session:b"])), "take a new id");
    check(sign(SERVER, " ".repeat(300 * 1024)), "at most 262144");
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

#[test]
fn an_enforcer_id_belongs_to_its_token_and_key() {
    let mut switch = switch();
    let victim = join(&mut switch, 1, identity("a", None), 0);
    for (n, actor, key) in [(2, "mallory", 1), (3, "a", 9)] {
        let connection = ConnectionId(n);
        let identity = Box::new(identity(actor, None));
        switch.step(Input::Connected { connection, identity }, at(1));
        let greeting = Box::new(hello(victim, key, &OrderSet::default()));
        let effects = frame(&mut switch, n, ToServer::Hello(greeting), 1);
        assert!(is_refused(&effects, n), "{effects:?}");
        let effects = frame(&mut switch, n, refusing(order_id(1)), 1);
        assert!(is_refused(&effects, n), "a word before a hello: {effects:?}");
    }
    // The enforcer itself may come back while its old connection still seems to stand.
    let connection = ConnectionId(4);
    switch.step(Input::Connected { connection, identity: Box::new(identity("a", None)) }, at(2));
    let greeting = Box::new(hello(victim, 1, &OrderSet::default()));
    let effects = frame(&mut switch, 4, ToServer::Hello(greeting), 2);
    assert!(is_refused(&effects, 1) && !is_refused(&effects, 4), "{effects:?}");
    let state = switch.enforcers().find(|state| state.id == victim).unwrap();
    assert_eq!(state.connection, Some(connection));
    assert!(state.is_alive(at(14_000).boot), "its lease is what it was");
}

#[test]
fn frames_out_of_place_end_the_connection() {
    let check = |greeted: bool, bad: ToServer| {
        let mut switch = switch();
        if greeted {
            join(&mut switch, 1, identity("a", None), 0);
        } else {
            let connection = ConnectionId(1);
            switch.step(
                Input::Connected { connection, identity: Box::new(identity("a", None)) },
                at(0),
            );
        }
        let effects = frame(&mut switch, 1, bad.clone(), 1);
        assert!(is_refused(&effects, 1), "{bad:?}: {effects:?}");
    };
    let greeting = || hello(EnforcerId::new(), 1, &OrderSet::default());
    check(true, ToServer::Hello(Box::new(greeting())));
    check(true, ToServer::Have { buckets: [].into(), more: false });
    check(false, ToServer::Ping { nonce: 1 });
    check(false, ToServer::Orders { orders: vec![] });
    check(false, ToServer::Hello(Box::new(Hello { protocol: 9, ..greeting() })));
    check(false, ToServer::Hello(Box::new(Hello { name: "x".repeat(257), ..greeting() })));
    check(false, ToServer::Hello(Box::new(Hello { key: "short".to_owned(), ..greeting() })));
    let mut switch = switch();
    assert!(frame(&mut switch, 7, ToServer::Ping { nonce: 1 }, 1).is_empty(), "no such connection");
}

/// What an enforcer hands back: the server's own orders, and halts of its own key within its token.
#[test]
fn only_halts_inside_the_token_are_adopted() {
    let mut switch = switch();
    let scoped = Identity {
        scopes: Some(scopes(&["session:a", "session:b", "tenant:other"])),
        ..identity("a", Some("acme"))
    };
    let enforcer = join(&mut switch, 1, scoped, 0);
    join(&mut switch, 2, identity("b", None), 0);
    let local = |n: u64, texts: &[&str]| Order {
        issued_by: Actor::new("local:root@web-3").unwrap(),
        tenant: Some(id("acme")),
        ..halt(n, texts)
    };
    let mut hand_back =
        |order: SignedOrder| frame(&mut switch, 1, ToServer::Orders { orders: vec![order] }, 5);

    let good = local(1, &["session:a"]);
    let effects = hand_back(sign(&own_key(1), text(&good)));
    assert_eq!(orders_sent(&effects, 2), [signed(&good)], "signed by the server for the others");
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Persist(order) if *order == signed(&good)))
    );
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::HandedBack { enforcer: by, order } if *by == enforcer && order.id == good.id)
    }));
    assert!(hand_back(sign(&own_key(1), text(&good))).is_empty(), "it is known");

    let mut refused = |order: SignedOrder, expect: &str| {
        let effects = hand_back(order);
        assert!(
            matches!(&effects[..], [Effect::Rejected { reason, .. }] if reason.contains(expect)),
            "{expect}: {effects:?}"
        );
    };
    refused(sign(&own_key(1), text(&local(2, &["session:c"]))), "does not permit its scope");
    refused(
        sign(&own_key(1), text(&local(2, &["session:a", "global"]))),
        "does not permit its scope",
    );
    refused(sign(&own_key(2), text(&local(2, &["session:a"]))), "a stranger's");
    refused(sign(&own_key(1), text(&Order { tenant: None, ..local(2, &["session:a"]) })), "tenant");
    refused(
        sign(&own_key(1), text(&Order { tenant: Some(id("other")), ..local(2, &["session:a"]) })),
        "tenant",
    );
    refused(sign(&own_key(1), text(&local(2, &["tenant:other"]))), "tenant");
    let as_alice = Order { issued_by: Actor::new("alice").unwrap(), ..local(2, &["session:a"]) };
    refused(sign(&own_key(1), text(&as_alice)), "`local:`");
    let releasing = Order { body: release(2, &[1]).body, ..local(2, &["session:a"]) };
    refused(sign(&own_key(1), text(&releasing)), "halts only");
    refused(SignedOrder { signature: "00".to_owned(), ..signed(&release(2, &[1])) }, "signature");
    refused(sign(&own_key(1), text(&local(1, &["session:b"]))), "another text");

    // What the server itself once signed comes back after the loss of its disk, releases too.
    let effects = hand_back(signed(&release(3, &[1])));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::HandedBack { .. })));
    assert!(switch.active_halts(&scopes(&["session:a"])).is_empty());
}

#[test]
fn adopted_halts_are_bounded() {
    let mut switch = switch();
    join(&mut switch, 1, identity("a", None), 0);
    let actor = Actor::new("local:x").unwrap();
    let orders: Vec<SignedOrder> = (0..=u64::try_from(HANDED_BACK_MAX).unwrap())
        .map(|n| {
            sign(&own_key(1), text(&Order { issued_by: actor.clone(), ..halt(n, &["session:a"]) }))
        })
        .collect();
    let effects = frame(&mut switch, 1, ToServer::Orders { orders }, 1);
    let rejected =
        effects.iter().filter(|effect| matches!(effect, Effect::Rejected { .. })).count();
    assert_eq!((rejected, switch.orders().len()), (1, HANDED_BACK_MAX));
}

/// A large set is sent in frames that each stay below the bound, and listed in several.
#[test]
fn large_sets_go_in_bounded_frames() {
    let mut switch = switch();
    let reason = "\"\\".repeat(900);
    for n in 0..3_000 {
        let halt = Order { reason: reason.clone(), ..halt(n, &["session:a"]) };
        submit(&mut switch, &halt, 1);
    }
    let connection = ConnectionId(1);
    switch.step(Input::Connected { connection, identity: Box::new(identity("a", None)) }, at(2));
    let greeting = hello(EnforcerId::new(), 1, &OrderSet::default());
    let effects = frame(&mut switch, 1, ToServer::Hello(Box::new(greeting)), 2);
    let [ToEnforcer::Welcome(welcome)] = sent(&effects, 1)[..] else { panic!("{effects:?}") };
    let differing = OrderSet::default()
        .digest(&Audience::Everyone)
        .differing(welcome.buckets.as_ref().unwrap());
    assert!(differing.len() > 250);
    let (half, rest) = differing.split_at(100);
    let have = |buckets: &[u8], more| ToServer::Have {
        buckets: buckets.iter().map(|bucket| (*bucket, vec![])).collect(),
        more,
    };
    let mut effects = frame(&mut switch, 1, have(half, true), 3);
    assert!(!sent(&effects, 1).contains(&&ToEnforcer::InSync), "more is to come");
    effects.extend(frame(&mut switch, 1, have(rest, false), 3));
    assert_eq!(orders_sent(&effects, 1).len(), 3_000);
    assert_eq!(sent(&effects, 1).last(), Some(&&ToEnforcer::InSync));
    for frame in sent(&effects, 1) {
        let bytes = serde_json::to_string(frame).unwrap().len();
        assert!(bytes <= FRAME_BYTES_MAX, "{bytes}");
    }
}

#[test]
fn a_tenants_enforcer_cannot_find_out_about_others_orders() {
    let mut switch = switch();
    submit(&mut switch, &Order { tenant: Some(id("other")), ..halt(1, &["session:a"]) }, 1);
    let connection = ConnectionId(1);
    let identity = Box::new(identity("a", Some("acme")));
    switch.step(Input::Connected { connection, identity }, at(2));
    let greeting = hello(EnforcerId::new(), 1, &set_of(&[halt(2, &["session:b"])]));
    let effects = frame(&mut switch, 1, ToServer::Hello(Box::new(greeting)), 2);
    let [ToEnforcer::Welcome(welcome)] = sent(&effects, 1)[..] else { panic!("{effects:?}") };
    assert_eq!(welcome.tenant, Some(id("acme")));
    let nothing = OrderSet::default().digest(&Audience::Everyone).buckets();
    assert_eq!(welcome.buckets.as_ref(), Some(&nothing));
    let all = (0..=255).map(|bucket| (bucket, vec![order_id(1), order_id(2)])).collect();
    let effects = frame(&mut switch, 1, ToServer::Have { buckets: all, more: false }, 3);
    assert!(orders_sent(&effects, 1).is_empty());
    for frame in sent(&effects, 1) {
        if let ToEnforcer::Want { orders } = frame {
            assert!(!orders.contains(&order_id(1)), "asking for it, or not, must not depend on it");
        }
    }
}

/// K8, invariant *starting-always-does*: what a release ends is named, or plain.
#[test]
fn releases_are_planned() {
    let mut switch = switch();
    for order in [
        halt(1, &["session:a"]),
        halt(2, &["session:b"]),
        halt(3, &["session:b", "user:u"]),
        halt(4, &["session:c", "user:u"]),
        order(5, scopes(&["session:d"]), OrderBody::Watch { until: None }),
        Order { tenant: Some(id("acme")), ..halt(6, &["session:b"]) },
    ] {
        submit(&mut switch, &order, 1);
    }
    let ids = |numbers: &[u64]| -> Vec<OrderId> { numbers.iter().map(|n| order_id(*n)).collect() };
    let plan = |scope: &str, named: Option<&[u64]>| {
        switch.plan_release(&scopes(&[scope]), named.map(&ids).as_deref())
    };
    let one = plan("session:a", None).unwrap();
    assert_eq!((one.orders, one.scope), (ids(&[1]), scopes(&["session:a"])));
    let two = plan("session:b", Some(&[2, 3])).unwrap();
    assert_eq!((two.orders, two.scope), (ids(&[2, 3]), scopes(&["session:b", "user:u"])));
    assert_eq!(plan("session:b", Some(&[6])).unwrap().tenant, Some(id("acme")));
    assert_eq!(plan("session:d", Some(&[5])).unwrap().orders, ids(&[5]));

    let active = |result| match result {
        Err(ReleaseError::Ambiguous { active, .. } | ReleaseError::NotActive { active, .. }) => {
            active.iter().map(|order: &std::sync::Arc<Order>| order.id).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let mut at_b = active(plan("session:b", None));
    at_b.sort();
    assert_eq!(at_b, ids(&[2, 3, 6]), "several stand there");
    assert_eq!(active(plan("session:c", None)), ids(&[4]), "it stands elsewhere, too");
    assert_eq!(active(plan("session:a", Some(&[]))), ids(&[1]));
    let Err(error @ ReleaseError::NotActive { .. }) = plan("session:a", Some(&[1, 2, 99])) else {
        panic!("99 is not known, 2 stands elsewhere");
    };
    let message = error.to_string();
    assert!(
        message.contains(&order_id(2).to_string()) && message.contains(&order_id(99).to_string())
    );
    assert!(!message.contains(&order_id(1).to_string()), "{message}");
    assert!(matches!(plan("session:b", Some(&[2, 6])), Err(ReleaseError::SeveralTenants)));
    assert!(matches!(plan("session:z", None), Err(ReleaseError::NothingActive { .. })));
    assert!(matches!(plan("global", None), Err(ReleaseError::NothingActive { .. })));
}

/// K9's `active` and `stop`: exactly that scope, and that or everything.
#[test]
fn active_is_exact_and_stop_includes_global() {
    let mut switch = switch();
    submit(&mut switch, &halt(1, &["session:a", "user:u"]), 1);
    let check = |switch: &Switch, scope: &[&str], active: usize, stop: bool| {
        let scope: ScopeSet = scopes(scope);
        assert_eq!(switch.active_halts(&scope).len(), active, "{scope}");
        assert_eq!(switch.stop(&scope), stop, "{scope}");
    };
    check(&switch, &["session:a"], 1, true);
    check(&switch, &["session:a", "user:u"], 1, true);
    check(&switch, &["session:b"], 0, false);
    check(&switch, &["global"], 0, false);
    submit(&mut switch, &halt(2, &["global"]), 1);
    check(&switch, &["session:b"], 0, true);
    check(&switch, &["global"], 1, true);
}

#[test]
fn hosts_are_found_by_the_subjects_that_they_enforce() {
    let mut switch = switch();
    let connection = ConnectionId(1);
    switch.step(Input::Connected { connection, identity: Box::new(identity("h", None)) }, at(0));
    let subject = Subject { user: Some(id("u")), ..Subject::session(id("a")) };
    let greeting = Hello {
        kind: EnforcerKind::Host,
        subjects: vec![subject.clone(), Subject::session(id("b"))],
        ..hello(EnforcerId::new(), 1, &OrderSet::default())
    };
    frame(&mut switch, 1, ToServer::Hello(Box::new(greeting)), 0);
    let found = |switch: &Switch, kind, texts: &[&str]| -> Vec<Subject> {
        let order = halt(1, texts);
        switch
            .enforcing(kind, &order)
            .map(|(_, subject): (&EnforcerState, _)| subject.clone())
            .collect()
    };
    assert_eq!(found(&switch, EnforcerKind::Host, &["user:u"]), [subject]);
    assert_eq!(found(&switch, EnforcerKind::Host, &["global"]).len(), 2);
    assert!(found(&switch, EnforcerKind::Host, &["session:c"]).is_empty());
    assert!(found(&switch, EnforcerKind::Guard, &["global"]).is_empty());
    switch.step(Input::Disconnected { connection }, at(1));
    assert!(found(&switch, EnforcerKind::Host, &["global"]).is_empty());
}

#[test]
fn a_stale_node_gives_shorter_leases() {
    let mut switch = switch();
    switch.set_staleness(Duration::from_secs(4));
    let enforcer = join(&mut switch, 1, identity("a", None), 1_000);
    let effects = frame(&mut switch, 1, ToServer::Ping { nonce: 7 }, 2_000);
    assert_eq!(sent(&effects, 1), [&ToEnforcer::Pong { nonce: 7, staleness_ms: 4_000 }]);
    let state = switch.enforcers().find(|state| state.id == enforcer).unwrap();
    assert!(state.is_alive(at(12_999).boot) && !state.is_alive(at(13_000).boot));
}

/// The numbers that are kept up to date are those that counting the words gives.
pub(crate) fn assert_counted(switch: &Switch, order: OrderId, progress: &HaltProgress) {
    let counted = |of: fn(&&EnforcerProgress) -> bool| {
        progress.enforcers.iter().filter(|word| word.expected).filter(of).count()
    };
    let refuses: fn(&&EnforcerProgress) -> bool =
        |word| word.refusing.is_some() && !word.settlement.observed_only;
    let settled: fn(&&EnforcerProgress) -> bool =
        |word| word.refusing.is_some() && !word.settlement.observed_only && word.settled.is_some();
    let expect = HaltCount {
        expected: counted(|_| true),
        refusing: counted(refuses),
        settled: counted(settled),
        by_lease: progress.by_lease,
        gone: counted(|word| word.gone),
        unknown: progress.unknown_until.is_some(),
    };
    assert_eq!(switch.count(order), Some(expect));
}

/// Invariant *starting-always-does*: a node that may lack what the ledger has lets nobody go, and
/// takes orders all the same. The answer comes behind them.
#[test]
fn leases_wait_for_the_ledger_and_halts_do_not() {
    let mut switch = switch();
    switch.hold_leases();
    let enforcer = join(&mut switch, 1, identity("a", None), 1_000);
    let alive =
        |switch: &Switch, millis| switch.enforcer(enforcer).unwrap().is_alive(at(millis).boot);
    assert!(sent(&frame(&mut switch, 1, ToServer::Ping { nonce: 7 }, 2_000), 1).is_empty());
    assert!(!alive(&switch, 2_000));
    let (_, effects) = switch.submit(signed(&halt(1, &["global"])), at(2_500)).unwrap();
    assert_eq!(orders_sent(&effects, 1), [signed(&halt(1, &["global"]))]);

    // Of two pings the last is answered, once; who has gone is not.
    let gone = join(&mut switch, 2, identity("b", None), 2_600);
    switch.step(Input::Disconnected { connection: ConnectionId(2) }, at(2_700));
    assert!(sent(&frame(&mut switch, 1, ToServer::Ping { nonce: 8 }, 3_000), 1).is_empty());
    let effects = switch.grant_leases(at(4_000));
    assert_eq!(sent(&effects, 1), [&ToEnforcer::Pong { nonce: 8, staleness_ms: 0 }]);
    assert_eq!(effects.len(), 1, "{effects:?}");
    assert!(alive(&switch, 18_999) && !alive(&switch, 19_000));
    assert!(!switch.enforcer(gone).unwrap().is_alive(at(4_000).boot));
    assert!(switch.grant_leases(at(5_000)).is_empty());
    let effects = frame(&mut switch, 1, ToServer::Ping { nonce: 9 }, 6_000);
    assert_eq!(sent(&effects, 1), [&ToEnforcer::Pong { nonce: 9, staleness_ms: 0 }]);
}

/// A part of a millisecond is rounded so that leases are shorter, never longer.
#[test]
fn staleness_is_rounded_up() {
    let mut switch = switch();
    join(&mut switch, 1, identity("a", None), 1_000);
    switch.set_staleness(Duration::from_micros(1_001));
    let effects = frame(&mut switch, 1, ToServer::Ping { nonce: 7 }, 2_000);
    assert_eq!(sent(&effects, 1), [&ToEnforcer::Pong { nonce: 7, staleness_ms: 2 }]);
}
