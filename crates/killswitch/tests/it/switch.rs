//! Orders as a switch takes them, and what it says of them.

use estoppel_killswitch::server::{Effect, ReleaseError, SubmitError, Submitted, Switch};
use estoppel_model::{Order, OrderBody, OrderId, ScopeSet, SignedOrder};
use estoppel_testkit::keys::{SERVER, sign};

use crate::{
    by_hand::{identity, join, orders_sent, submit, switch},
    support::{at, halt, id, order, order_id, release, scopes, signed, text},
};

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
