//! The order set and its fold against the naive model. Rows K3, K6.

use estoppel_killswitch::{Audience, Insert, OrderSet};
use estoppel_model::{OrderBody, Subject};
use estoppel_testkit::keys::sign;
use proptest::prelude::*;

use crate::support::{
    HOSTS, Naive, any_orders, any_scopes, any_subject, halt, id, order_id, release, scopes, set_of,
    signed, text,
};

proptest! {
    /// K6: a subject of any ids is judged by the union of all scopes, as the naive rule judges it.
    #[test]
    fn the_fold_is_the_naive_rule(
        orders in any_orders(40),
        subjects in prop::collection::vec(any_subject(), 1..8),
        asked in any_scopes(),
    ) {
        let set = set_of(&orders);
        let verdicts = set.verdicts();
        for subject in &subjects {
            let naive = Naive(orders.clone());
            prop_assert_eq!(verdicts.check(subject).map(|order| order.id), naive.check(subject));
            prop_assert_eq!(verdicts.watched(subject).map(|order| order.id), naive.watched(subject));
            prop_assert_eq!(verdicts.limit(subject), naive.limit(subject));
            for host in HOSTS {
                for port in 0..4 {
                    let found = verdicts.blocked(subject, host, port).map(|order| order.id);
                    prop_assert_eq!(found, naive.blocked(subject, host, port));
                }
            }
        }
        let naive = Naive(orders.clone());
        prop_assert_eq!(verdicts.in_force(), naive.in_force().count());
        prop_assert_eq!(set.in_force().count(), naive.in_force().count());
        let halts: Vec<_> = verdicts.halts_at(&asked).iter().map(|order| order.id).collect();
        prop_assert_eq!(halts, naive.halts_at(&asked));
        for order in &orders {
            let stops = matches!(order.body, OrderBody::Halt { .. } | OrderBody::Unsupported);
            let in_force = naive.in_force().any(|other| other.id == order.id);
            prop_assert_eq!(verdicts.halts(order), stops && in_force);
            prop_assert_eq!(set.is_in_force(order.id), in_force);
        }
    }

    /// Orders may come in any order and any number of times, a release before what it ends.
    #[test]
    fn arrival_does_not_matter(
        (orders, arrivals) in any_orders(30).prop_flat_map(|orders| {
            let twice: Vec<_> = orders.iter().chain(&orders).cloned().collect();
            (Just(orders), Just(twice).prop_shuffle())
        }),
        subject in any_subject(),
    ) {
        let (one, other) = (set_of(&orders), set_of(&arrivals));
        prop_assert_eq!(one.len(), other.len());
        prop_assert_eq!(one.verdicts().in_force(), other.verdicts().in_force());
        let check = |set: &OrderSet| set.verdicts().check(&subject).map(|order| order.id);
        prop_assert_eq!(check(&one), check(&other));
        for audience in [Audience::Everyone, Audience::Tenant(id("1"))] {
            prop_assert_eq!(one.digest(&audience), other.digest(&audience));
            let seen = set_of(&Naive(orders.clone()).seen_by(&audience).0);
            prop_assert_eq!(one.digest(&audience), seen.digest(&Audience::Everyone));
        }
    }

    /// A clone that a reader holds does not change under it.
    #[test]
    fn published_verdicts_stay_as_they_were(
        orders in any_orders(30),
        more in any_orders(30),
        subject in any_subject(),
    ) {
        let mut set = set_of(&orders);
        let published = set.verdicts().clone();
        for order in more {
            set.insert(signed(&order)).unwrap();
        }
        let naive = Naive(orders);
        prop_assert_eq!(published.check(&subject).map(|order| order.id), naive.check(&subject));
        prop_assert_eq!(published.in_force(), naive.in_force().count());
    }
}

#[test]
fn the_first_text_of_an_id_stays() {
    let mut set = OrderSet::default();
    assert!(matches!(set.insert(signed(&halt(1, &["session:a"]))), Ok(Insert::New(_))));
    assert!(matches!(set.insert(signed(&halt(1, &["session:a"]))), Ok(Insert::Known(_))));
    let Ok(Insert::Conflict(known)) = set.insert(signed(&halt(1, &["session:b"]))) else {
        panic!("another text under the id must be a conflict");
    };
    assert_eq!(known.scope, scopes(&["session:a"]));
    assert!(set.verdicts().check(&Subject::session(id("a"))).is_some());
    assert!(set.verdicts().check(&Subject::session(id("b"))).is_none());
}

#[test]
fn a_release_ends_what_it_names_and_says_so_once() {
    let mut set = set_of(&[halt(1, &["session:a"]), halt(2, &["session:a"])]);
    let mut ended = |order| match set.insert(signed(&order)).unwrap() {
        Insert::New(added) => (added.in_force, added.ended),
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(release(3, &[1, 9])), (false, vec![order_id(1)]));
    assert_eq!(ended(release(4, &[1])), (false, vec![]), "it was over");
    assert_eq!(ended(halt(9, &["global"])), (false, vec![]), "it was over before it came");
    assert_eq!(ended(release(5, &[3])), (false, vec![]), "ending a release brings nothing back");
    let stops = set.verdicts().check(&Subject::session(id("a"))).map(|order| order.id);
    assert_eq!(stops, Some(order_id(2)), "the halt that no release names");
}

#[test]
fn what_is_signed_but_not_understood_refuses_its_scope() {
    let plain = text(&halt(1, &["session:a"]));
    let check = |text: String, session: &str, expect: bool| {
        let mut set = OrderSet::default();
        assert!(set.insert_or_refuse(sign("server", text.clone())).is_ok(), "{text}");
        let found = set.verdicts().check(&Subject::session(id(session)));
        assert_eq!(found.is_some(), expect, "{text}");
    };
    let newer = plain.replace("\"kind\":\"halt\"", "\"kind\":\"halt\",\"how\":\"newer\"");
    assert!(OrderSet::default().insert(sign("server", newer.clone())).is_err());
    check(newer.clone(), "a", true);
    check(newer, "b", false);
    check(plain.replace("session:a", "planet:earth"), "b", true);
    check(plain.replace("\"test\"", &format!("\"{}\"", "x".repeat(2_001))), "a", true);
    let mut set = OrderSet::default();
    for text in [String::new(), "{}".to_owned(), plain.replace("\"id\"", "\"di\"")] {
        assert!(set.insert_or_refuse(sign("server", text)).is_err());
    }
    assert!(set.is_empty());
}
