//! The enforcer's side by itself, against a server that may be wrong, silent or hostile.

use std::time::Duration;

use estoppel_killswitch::{
    enforcer::{Effect, Enforcer, Input, Keep, Kept, Profile},
    frame::{
        Action, ActionResult, EnforcerKind, Outcome, PROTOCOL, Settlement, Stage, ToEnforcer,
        ToServer, Verb, Welcome,
    },
};
use estoppel_model::{EnforcerId, IncidentId, Order, Subject};
use estoppel_testkit::keys::{Keys, SERVER, sign};
use uuid::Uuid;

use crate::support::{at, halt, id, order_id, release, signed, text};

const OWN: &str = "0000000000000000000000000000000000000000000000000000000000000001";

pub(crate) fn enforcer(kept: Kept) -> (Enforcer, usize) {
    let profile = Profile {
        id: EnforcerId::new(),
        kind: EnforcerKind::Guard,
        name: "test".to_owned(),
        subjects: Vec::new(),
        key: OWN.to_owned(),
        gaps: Vec::new(),
    };
    Enforcer::new(profile, Box::new(Keys), kept)
}

fn welcome(key: &str) -> ToEnforcer {
    ToEnforcer::Welcome(Box::new(Welcome {
        protocol: PROTOCOL,
        key: key.to_owned(),
        tenant: None,
        lease_ms: 15_000,
        ping_ms: 3_000,
        buckets: None,
        checkpoint: Some("note".to_owned()),
        contact: None,
    }))
}

/// In step with a server at time 0, without a lease yet.
fn in_sync() -> Enforcer {
    let (mut enforcer, _) = enforcer(Kept::default());
    enforcer.step(Input::Connected, at(0));
    enforcer.step(Input::Frame(welcome(SERVER)), at(0));
    enforcer.step(Input::Frame(ToEnforcer::InSync), at(0));
    assert!(enforcer.is_in_sync());
    enforcer
}

fn take(enforcer: &mut Enforcer, orders: &[Order], millis: u64) -> Vec<Effect> {
    let orders = orders.iter().map(signed).collect();
    enforcer.step(Input::Frame(ToEnforcer::Orders { orders }), at(millis))
}

fn stopped_by(enforcer: &Enforcer, session: &str) -> Option<estoppel_model::OrderId> {
    enforcer.verdicts().check(&Subject::session(id(session))).map(|order| order.id)
}

fn confirmations(effects: &[Effect]) -> Vec<(estoppel_model::OrderId, Stage)> {
    let words = effects.iter().filter_map(|effect| match effect {
        Effect::Send(ToServer::Confirm(word)) => Some((word.order, word.stage)),
        _ => None,
    });
    words.collect()
}

/// K8: whom to call comes with the welcome, is kept over a restart, and is bounded.
#[test]
fn whom_to_call_comes_with_the_welcome_and_is_kept() {
    let greeted = |kept: Kept, contact: Option<String>| {
        let (mut enforcer, _) = enforcer(kept);
        enforcer.step(Input::Connected, at(0));
        let ToEnforcer::Welcome(mut welcome) = welcome(SERVER) else { unreachable!() };
        welcome.contact = contact;
        let effects = enforcer.step(Input::Frame(ToEnforcer::Welcome(welcome)), at(0));
        let keeps = effects.iter().filter(|it| matches!(it, Effect::Keep(Keep::Contact(_))));
        let keeps = keeps.count();
        (enforcer, keeps)
    };
    let call = || Some("security on call".to_owned());
    let (first, keeps) = greeted(Kept::default(), call());
    assert_eq!((first.contact(), keeps), (Some("security on call"), 1));
    let (restored, _) = enforcer(first.kept());
    assert_eq!(restored.contact(), Some("security on call"), "also before a server answers");
    let (same, keeps) = greeted(first.kept(), call());
    assert_eq!((same.contact(), keeps), (Some("security on call"), 0), "kept once");
    let (gone, keeps) = greeted(first.kept(), None);
    assert_eq!((gone.contact(), keeps), (None, 1));
    let (huge, _) = greeted(Kept::default(), Some("x".repeat(301)));
    assert_eq!(huge.contact(), None, "longer than it may be, it is nobody's word");
}

/// K7: no new work starts when the confirmation leaves.
#[test]
fn verdicts_are_published_before_anything_is_said() {
    let mut enforcer = in_sync();
    let effects = take(&mut enforcer, &[halt(1, &["session:a"])], 10);
    assert!(matches!(effects[0], Effect::Publish), "{effects:?}");
    assert_eq!(confirmations(&effects), [(order_id(1), Stage::Refusing)]);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Ordered(order) if order.id == order_id(1)))
    );
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Keep(Keep::Order(_)))));
    assert_eq!(stopped_by(&enforcer, "a"), Some(order_id(1)));
    let again = take(&mut enforcer, &[halt(1, &["session:a"])], 11);
    assert!(again.is_empty(), "the same order again is nothing: {again:?}");
}

#[test]
fn a_release_ends_what_it_names_only() {
    let mut enforcer = in_sync();
    take(&mut enforcer, &[halt(1, &["session:a"]), halt(2, &["session:a"])], 10);
    let effects = take(&mut enforcer, &[release(3, &[1])], 20);
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::Released { orders } if *orders == [order_id(1)])
    }));
    assert_eq!(stopped_by(&enforcer, "a"), Some(order_id(2)));
}

#[test]
fn it_obeys_the_key_that_it_saw_first_and_nobody_else() {
    let mut enforcer = in_sync();
    take(&mut enforcer, &[halt(1, &["session:a"])], 10);
    let forged = [
        sign("mallory", text(&release(2, &[1]))),
        sign(OWN, text(&release(2, &[1]))),
        estoppel_model::SignedOrder {
            key: SERVER.to_owned(),
            ..sign("mallory", text(&release(2, &[1])))
        },
        estoppel_model::SignedOrder {
            order: text(&release(2, &[1])),
            ..signed(&halt(3, &["global"]))
        },
    ];
    for order in forged {
        let frame = ToEnforcer::Orders { orders: vec![order.clone()] };
        let effects = enforcer.step(Input::Frame(frame), at(20));
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Rejected { .. })),
            "{order:?}: {effects:?}"
        );
        assert_eq!(stopped_by(&enforcer, "a"), Some(order_id(1)));
    }
    enforcer.step(Input::Disconnected, at(30));
    enforcer.step(Input::Connected, at(31));
    let effects = enforcer.step(Input::Frame(welcome("mallory")), at(32));
    assert!(
        effects.iter().any(|effect| {
            matches!(effect, Effect::Disconnect { reason } if reason.contains("seen first"))
        }),
        "{effects:?}"
    );
    assert!(!enforcer.is_in_sync());
}

/// Invariant *lease*, as the enforcer's effects show it.
#[test]
fn it_has_no_lease_before_it_is_in_step_and_loses_it_in_silence() {
    let (mut enforcer, _) = enforcer(Kept::default());
    enforcer.step(Input::Connected, at(0));
    enforcer.step(Input::Frame(welcome(SERVER)), at(0));
    enforcer.step(Input::Frame(ToEnforcer::Pong { nonce: 0, staleness_ms: 0 }), at(1));
    assert_eq!(enforcer.lease_until(), None, "an answer without a question, before InSync");
    let effects = enforcer.step(Input::Frame(ToEnforcer::InSync), at(1_000));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Send(ToServer::Ping { nonce: 0 })))
    );
    let pong = Input::Frame(ToEnforcer::Pong { nonce: 0, staleness_ms: 0 });
    let effects = enforcer.step(pong, at(1_500));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::LeaseRegained)));
    let until = at(1_000).boot + Duration::from_secs(15);
    assert_eq!(enforcer.lease_until(), Some(until), "from the ping's sending");
    let mut hung_up = 0;
    while enforcer.next_tick() < until {
        let boot = enforcer.next_tick();
        let now = estoppel_killswitch::Now { boot, ..at(0) };
        let effects = enforcer.step(Input::Tick, now);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::LeaseLost)));
        if effects.iter().any(|effect| matches!(effect, Effect::Disconnect { .. })) {
            hung_up += 1;
            enforcer.step(Input::Disconnected, now);
        }
    }
    assert_eq!(hung_up, 1, "a silent server is given up while there is time to try another");
    assert_eq!(enforcer.next_tick(), until);
    let effects = enforcer.step(Input::Tick, estoppel_killswitch::Now { boot: until, ..at(0) });
    assert!(matches!(effects[..], [Effect::LeaseLost]), "{effects:?}");
}

#[test]
fn an_order_of_an_unknown_kind_stops_and_says_so() {
    let mut enforcer = in_sync();
    let unknown = text(&halt(1, &["session:a"])).replace("\"halt\"", "\"teleport\"");
    let frame = ToEnforcer::Orders { orders: vec![sign(SERVER, unknown)] };
    let effects = enforcer.step(Input::Frame(frame), at(5));
    assert_eq!(confirmations(&effects), [(order_id(1), Stage::Unsupported)]);
    assert_eq!(stopped_by(&enforcer, "a"), Some(order_id(1)));
}

/// K7: confirmations and outcomes are said again after a reconnect.
#[test]
fn words_are_repeated_after_a_reconnect() {
    let mut enforcer = in_sync();
    take(&mut enforcer, &[halt(1, &["session:a"]), halt(2, &["session:b"])], 10);
    enforcer.step(Input::Disconnected, at(20));
    let settlement = Settlement { steps_cancelled: 2, ..Settlement::default() };
    let settled = Input::Settled { order: order_id(1), settlement };
    assert!(confirmations(&enforcer.step(settled, at(30))).is_empty(), "there is no connection");
    let outcome = Outcome {
        action: Uuid::from_u128(5),
        result: ActionResult::Done,
        observed: "frozen".to_owned(),
        detail: serde_json::Value::Null,
    };
    enforcer.step(Input::Outcome(outcome.clone()), at(30));
    enforcer.step(Input::Connected, at(40));
    enforcer.step(Input::Frame(welcome(SERVER)), at(41));
    let effects = enforcer.step(Input::Frame(ToEnforcer::InSync), at(42));
    assert_eq!(
        confirmations(&effects),
        [
            // What has settled refuses.
            (order_id(1), Stage::Settled),
            (order_id(2), Stage::Refusing)
        ]
    );
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::Send(ToServer::Outcome(word)) if **word == outcome)
    }));
    let after = effects.iter().find_map(|effect| match effect {
        Effect::Send(ToServer::Confirm(word)) if word.stage == Stage::Settled => {
            Some(word.after_us)
        }
        _ => None,
    });
    assert_eq!(after, Some(20_000), "from the order's arrival to its settling");
}

#[test]
fn what_was_kept_stops_before_any_server_answers() {
    let mut before = in_sync();
    take(&mut before, &[halt(1, &["session:a"]), halt(2, &["session:b"]), release(3, &[2])], 1);
    let mut kept = before.kept();
    kept.orders.push(sign("mallory", text(&release(4, &[1]))));
    let (mut after, wrong) = enforcer(kept);
    assert_eq!(wrong, 1, "the forged release");
    assert_eq!(stopped_by(&after, "a"), Some(order_id(1)));
    assert_eq!(stopped_by(&after, "b"), None);
    assert_eq!(after.lease_until(), None);
    let effects = after.step(Input::Tick, at(0));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Ordered(order) if order.id == order_id(1)))
    );
}

#[test]
fn a_local_halt_is_in_force_at_once_and_handed_over() {
    let mut enforcer = in_sync();
    let halt = sign(OWN, text(&halt(1, &["session:a"])));
    let effects = enforcer.step(Input::Local(halt.clone()), at(5));
    assert!(matches!(effects[0], Effect::Publish));
    assert_eq!(stopped_by(&enforcer, "a"), Some(order_id(1)));
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::Send(ToServer::Orders { orders }) if *orders == [halt.clone()])
    }));
}

/// Found by the simulation: the hello's digest does not count such a halt, so a server that finds
/// the sets equal would never ask for it; and a word on an order that the server does not know yet
/// would be lost.
#[test]
fn a_local_halt_during_the_greeting_is_handed_over_before_the_word_on_it() {
    let (mut enforcer, _) = enforcer(Kept::default());
    enforcer.step(Input::Connected, at(0));
    let halt = sign(OWN, text(&halt(1, &["session:a"])));
    let mut effects = enforcer.step(Input::Local(halt.clone()), at(1));
    effects.extend(enforcer.step(Input::Frame(welcome(SERVER)), at(2)));
    effects.extend(enforcer.step(Input::Frame(ToEnforcer::InSync), at(3)));
    let sent: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send(ToServer::Orders { orders }) => Some(orders[..] == [halt.clone()]),
            Effect::Send(ToServer::Confirm(_)) => Some(false),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [true, false], "{effects:?}");
}

#[test]
fn actions_pass_and_other_protocols_do_not() {
    let mut enforcer = in_sync();
    let action = Action {
        id: Uuid::from_u128(1),
        incident: IncidentId::new(),
        subject: Subject::session(id("a")),
        verb: Verb::Freeze,
    };
    let effects = enforcer.step(Input::Frame(ToEnforcer::Action(Box::new(action.clone()))), at(1));
    assert!(matches!(&effects[..], [Effect::Act(found)] if **found == action));
    assert!(enforcer.step(Input::Frame(ToEnforcer::Unknown), at(1)).is_empty());
    let ToEnforcer::Welcome(mut other) = welcome(SERVER) else { unreachable!() };
    other.protocol = PROTOCOL + 1;
    enforcer.step(Input::Disconnected, at(2));
    enforcer.step(Input::Connected, at(2));
    let effects = enforcer.step(Input::Frame(ToEnforcer::Welcome(other)), at(2));
    assert!(matches!(&effects[..], [Effect::Disconnect { reason }] if reason.contains("protocol")));
}
