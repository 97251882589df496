//! Orders arrive, are in force, confirmed, and end. Rows K3, K6, K7.

use std::sync::{Arc, Mutex, OnceLock};

use estoppel_killswitch::invariant::{Count, Invariant};
use estoppel_link::{
    LinkConfig, LinkEvent, Refusal, View, WorkInFlight,
    frame::{Action, ActionResult, Outcome, Settlement, Verb},
};
use estoppel_model::{Destination, IncidentId, Limit, Order, OrderBody, OrderId};
use uuid::Uuid;

use crate::server::{Deployment, Server, TestLink, config, halt, now, session};

/// K3, K7: from the order to both stages of its confirmation and its release; the invariants were
/// checked on the way.
#[tokio::test]
async fn a_halt_is_in_force_confirmed_settled_and_released() {
    let server = Server::start(&Deployment::new(1)).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    let view = test.link.view();
    assert!(view.check(&session("a")).is_ok());

    let order = server.halt("session:a");
    test.ordered(order.id).await;
    assert!(matches!(view.check(&session("a")), Err(Refusal::Halted(by)) if by.id == order.id));
    assert!(view.check(&session("b")).is_ok());
    assert!(view.halted_by(&order, &session("a")));
    assert!(!view.halted_by(&order, &session("b")));
    let progress = |server: &Server| server.ask(|switch| switch.progress(order.id, now())).unwrap();
    server
        .until("the first stage", |switch| {
            switch.progress(order.id, now()).is_some_and(|progress| progress.refusing == 1)
        })
        .await;
    assert_eq!((progress(&server).expected, progress(&server).settled), (1, 0));

    test.link.settled(order.id, Settlement { steps_cancelled: 3, ..Settlement::default() });
    server
        .until("the second stage", |switch| {
            switch.progress(order.id, now()).is_some_and(|progress| progress.settled == 1)
        })
        .await;
    assert_eq!(progress(&server).enforcers[0].settlement.steps_cancelled, 3);

    server.release(&[order.id]);
    let ended = test.event("the release", |event| match event {
        LinkEvent::Released { orders } => Some(orders),
        _ => None,
    });
    assert_eq!(ended.await, [order.id]);
    assert!(view.check(&session("a")).is_ok());
    assert!(!view.halted_by(&order, &session("a")));
    for Count { invariant, checks, violations } in test.link.invariants() {
        // What a crash takes is seen by nobody who is still there.
        let seen_here = invariant != Invariant::AcknowledgedIsKept;
        assert_eq!((checks > 0, violations), (seen_here, 0), "{invariant}");
    }
    test.stop().await;
}

/// Work that is stopped on the spot, but for that of one session.
#[derive(Default)]
struct Work {
    view: OnceLock<View>,
    /// Each order that came, and whether new work was refused by then.
    stopped: Mutex<Vec<(OrderId, bool)>>,
}

impl WorkInFlight for Work {
    fn stop(&self, order: &Arc<Order>) -> Option<Settlement> {
        let slow = session("slow");
        let refused = |subject| self.view.get().unwrap().check(subject).is_err();
        let is_slow = refused(&slow);
        self.stopped.lock().unwrap().push((order.id, is_slow || refused(&session("a"))));
        (!is_slow).then(|| Settlement { steps_cancelled: 1, ..Settlement::default() })
    }
}

/// K7: who stops its work as soon as an order arrives hears of no order otherwise, and says one word
/// where nothing is left.
#[tokio::test]
async fn work_that_is_stopped_on_the_spot_is_settled_with_one_word() {
    let server = Server::start(&Deployment::new(1)).await;
    let work = Arc::new(Work::default());
    let in_flight: Arc<dyn WorkInFlight> = Arc::clone(&work) as _;
    let config = LinkConfig { in_flight: Some(in_flight), ..config(&[server.address]) };
    let mut test = TestLink::ready(config).await;
    assert!(work.view.set(test.link.view()).is_ok());
    let word = |order: OrderId, stage: &'static str| {
        server.until(stage, move |switch| {
            let progress = switch.progress(order, now()).unwrap();
            if stage == "settled" { progress.settled == 1 } else { progress.refusing == 1 }
        })
    };

    let at_once = server.halt("session:a");
    word(at_once.id, "settled").await;
    let progress = server.ask(|switch| switch.progress(at_once.id, now())).unwrap();
    let [only] = &progress.enforcers[..] else { panic!("{progress:?}") };
    assert_eq!(only.settlement.steps_cancelled, 1);
    // Heard in the same moment: it was one frame.
    assert_eq!(only.refusing.unwrap().after, only.settled.unwrap().after);

    let later = server.halt("session:slow");
    word(later.id, "refusing").await;
    assert_eq!(server.ask(|switch| switch.progress(later.id, now()).unwrap().settled), 0);
    test.link.settled(later.id, Settlement::default());
    word(later.id, "settled").await;

    assert_eq!(*work.stopped.lock().unwrap(), [(at_once.id, true), (later.id, true)]);
    server.release(&[later.id]);
    let next = test.event("the release", |event| match event {
        LinkEvent::Ordered(order) => panic!("{order:?}"),
        LinkEvent::Released { orders } => Some(orders),
        _ => None,
    });
    assert_eq!(next.await, [later.id]);
    for Count { invariant, violations, .. } in test.link.invariants() {
        assert_eq!(violations, 0, "{invariant}");
    }
    test.stop().await;
}

/// K6, and orders other than halts.
#[tokio::test]
async fn blocks_limits_and_unknown_kinds_reach_the_view() {
    let deployment = Deployment::new(1);
    let server = Server::start(&deployment).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    let view = test.link.view();
    let destination: Destination = "attacker.example".parse().unwrap();
    let block = Order { body: OrderBody::Block { destination }, ..halt("session:a", "alice") };
    let bounds = Limit { concurrency_max: Some(2), ..Limit::default() };
    let limit =
        Order { body: OrderBody::Limit { limit: bounds.clone() }, ..halt("session:a", "alice") };
    for order in [&block, &limit] {
        server.give(order);
        test.ordered(order.id).await;
    }
    let blocked =
        |id: &str, host: &str| view.blocked(&session(id), host, 443).map(|order| order.id);
    assert_eq!(blocked("a", "attacker.example"), Some(block.id));
    assert_eq!(blocked("b", "attacker.example"), None);
    assert_eq!(blocked("a", "example.com"), None);
    assert_eq!(view.limit(&session("a")), bounds);
    assert_eq!(view.limit(&session("b")), Limit::default());
    assert!(view.check(&session("a")).is_ok());

    let unknown = Order { body: OrderBody::Unsupported, ..halt("session:u", "alice") };
    server.give(&unknown);
    test.ordered(unknown.id).await;
    assert!(
        matches!(view.check(&session("u")), Err(Refusal::Unsupported(by)) if by.id == unknown.id)
    );
    server
        .until("the word on it", |switch| {
            switch
                .progress(unknown.id, now())
                .is_some_and(|progress| progress.enforcers[0].unsupported)
        })
        .await;
}

/// K7: whoever does not read its events is halted all the same.
#[tokio::test]
async fn a_consumer_that_does_not_read_holds_up_nothing() {
    let server = Server::start(&Deployment::new(1)).await;
    let test = TestLink::ready(config(&[server.address])).await;
    let orders: Vec<Order> = (0..500).map(|n| server.halt(&format!("session:{n}"))).collect();
    let last = orders.last().unwrap().id;
    server
        .until("the last confirmation", |switch| {
            switch.progress(last, now()).is_some_and(|progress| progress.refusing == 1)
        })
        .await;
    let view = test.link.view();
    assert!((0..500).all(|n| view.check(&session(&n.to_string())).is_err()));
    assert_eq!(test.link.status().orders_in_force, 500);
}

#[tokio::test]
async fn an_action_is_done_once_and_its_outcome_told() {
    let server = Server::start(&Deployment::new(1)).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    let action = Action {
        id: Uuid::now_v7(),
        incident: IncidentId::new(),
        subject: session("a"),
        verb: Verb::Freeze,
    };
    server.act(&action);
    let found = test.event("the action", |event| match event {
        LinkEvent::Action(action) => Some(action),
        _ => None,
    });
    assert_eq!(*found.await, action);
    let outcome = Outcome {
        action: action.id,
        result: ActionResult::Done,
        observed: "1 process frozen".to_owned(),
        detail: serde_json::Value::Null,
    };
    test.link.outcome(outcome.clone());
    assert_eq!(server.outcome().await, outcome);
}

/// An enforcer that has stopped acting does not leave the server waiting.
#[tokio::test]
async fn an_action_for_nobody_fails_at_once() {
    let server = Server::start(&Deployment::new(1)).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    test.events.close();
    let incident = IncidentId::new();
    let action = Action { id: Uuid::now_v7(), incident, subject: session("a"), verb: Verb::Kill };
    // An action that comes before the link has noticed is lost with the receiver; the next fails.
    let outcome = async {
        loop {
            server.act(&Action { id: Uuid::now_v7(), ..action.clone() });
            tokio::select! {
                outcome = server.outcome() => return outcome,
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
            }
        }
    };
    assert_eq!(outcome.await.result, ActionResult::Failed);
}
