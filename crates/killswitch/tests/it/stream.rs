//! The server's side of the stream, against enforcers that may be late, wrong or hostile.

use std::time::Duration;

use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{EnforcerKind, FRAME_BYTES_MAX, Hello, ToEnforcer, ToServer},
    server::{ConnectionId, Effect, EnforcerState, HANDED_BACK_MAX, Identity, Input, Switch},
};
use estoppel_model::{Actor, EnforcerId, Order, SignedOrder, Subject};
use estoppel_testkit::keys::{own, sign};

use crate::{
    by_hand::{
        frame, hello, identity, is_refused, join, orders_sent, refusing, sent, submit, switch,
    },
    support::{at, halt, id, order_id, release, scopes, set_of, signed, text},
};

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
    let effects = hand_back(sign(&own(1), text(&good)));
    assert_eq!(orders_sent(&effects, 2), [signed(&good)], "signed by the server for the others");
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Persist(order) if *order == signed(&good)))
    );
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::HandedBack { enforcer: by, order } if *by == enforcer && order.id == good.id)
    }));
    assert!(hand_back(sign(&own(1), text(&good))).is_empty(), "it is known");

    let mut refused = |order: SignedOrder, expect: &str| {
        let effects = hand_back(order);
        assert!(
            matches!(&effects[..], [Effect::Rejected { reason, .. }] if reason.contains(expect)),
            "{expect}: {effects:?}"
        );
    };
    refused(sign(&own(1), text(&local(2, &["session:c"]))), "does not permit its scope");
    refused(sign(&own(1), text(&local(2, &["session:a", "global"]))), "does not permit its scope");
    refused(sign(&own(2), text(&local(2, &["session:a"]))), "a stranger's");
    refused(sign(&own(1), text(&Order { tenant: None, ..local(2, &["session:a"]) })), "tenant");
    refused(
        sign(&own(1), text(&Order { tenant: Some(id("other")), ..local(2, &["session:a"]) })),
        "tenant",
    );
    refused(sign(&own(1), text(&local(2, &["tenant:other"]))), "tenant");
    let as_alice = Order { issued_by: Actor::new("alice").unwrap(), ..local(2, &["session:a"]) };
    refused(sign(&own(1), text(&as_alice)), "`local:`");
    let releasing = Order { body: release(2, &[1]).body, ..local(2, &["session:a"]) };
    refused(sign(&own(1), text(&releasing)), "halts only");
    refused(SignedOrder { signature: "00".to_owned(), ..signed(&release(2, &[1])) }, "signature");
    refused(sign(&own(1), text(&local(1, &["session:b"]))), "another text");

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
            sign(&own(1), text(&Order { issued_by: actor.clone(), ..halt(n, &["session:a"]) }))
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
