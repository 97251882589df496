//! What an enforcer keeps over a restart, and halts that are given on its host.

use std::fs;

use estoppel_link::{LinkConfig, LinkError, OnLost, Refusal};
use estoppel_model::{Order, OrderBody};

use crate::server::{Deployment, Server, TestLink, config, halt, kept_in, session};

/// Invariant *starting-always-does*: a restart releases nothing, also without a server.
#[tokio::test]
async fn halts_outlast_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&Deployment::new(1)).await;
    let mut test = TestLink::ready(kept_in(dir.path(), &[server.address])).await;
    let (stands, ends) = (server.halt("session:a"), server.halt("session:b"));
    server.release(&[ends.id]);
    let last = server.halt("session:c");
    test.ordered(last.id).await;
    test.stop().await;
    let address = server.stop().await;

    for on_lost in [OnLost::Refuse, OnLost::Allow] {
        let mut test = TestLink::start(LinkConfig { on_lost, ..kept_in(dir.path(), &[address]) });
        let view = test.link.view();
        assert!(
            matches!(view.check(&session("a")), Err(Refusal::Halted(by)) if by.id == stands.id)
        );
        test.ordered(stands.id).await;
        let others = [view.check(&session("b")), view.check(&session("x"))];
        match on_lost {
            OnLost::Allow => assert!(others.iter().all(Result::is_ok)),
            OnLost::Refuse => {
                assert!(others.iter().all(|found| matches!(found, Err(Refusal::NotYetConnected))))
            }
        }
        test.stop().await;
    }
}

/// A damaged file lets nothing go, whatever the owner chose, until a server has answered.
#[tokio::test]
async fn a_damaged_file_lets_nothing_go() {
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::new(1);
    let server = Server::start(&deployment).await;
    let mut test = TestLink::ready(kept_in(dir.path(), &[server.address])).await;
    let order = server.halt("session:a");
    test.ordered(order.id).await;
    test.stop().await;
    let address = server.stop().await;
    let path = dir.path().join("orders");
    let mut content = fs::read(&path).unwrap();
    let middle = content.len() - 40;
    content[middle] ^= 1;
    fs::write(&path, content).unwrap();

    let allowing = || LinkConfig { on_lost: OnLost::Allow, ..kept_in(dir.path(), &[address]) };
    for _ in 0..2 {
        let test = TestLink::start(allowing());
        let found = test.link.view().check(&session("a"));
        assert!(matches!(found, Err(Refusal::NotYetConnected)), "{found:?}");
        test.stop().await;
    }
    let server = Server::start_at(&deployment, address).await;
    let test = TestLink::ready(allowing()).await;
    assert!(test.link.view().check(&session("b")).is_ok());
    assert!(matches!(test.link.view().check(&session("a")), Err(Refusal::Halted(_))));
    test.stop().await;
    server.stop().await;
    let test = TestLink::start(allowing());
    assert!(test.link.view().check(&session("b")).is_ok(), "the file was written anew");
    assert!(matches!(test.link.view().check(&session("a")), Err(Refusal::Halted(_))));
    test.stop().await;
}

/// A server with another key is not obeyed: it could be anybody's.
#[tokio::test]
async fn the_key_that_was_seen_first_stays() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&Deployment::new(1)).await;
    let mut test = TestLink::ready(kept_in(dir.path(), &[server.address])).await;
    let order = server.halt("session:a");
    test.ordered(order.id).await;
    test.stop().await;
    let address = server.stop().await;

    let other = Server::start_at(&Deployment::new(2), address).await;
    let test = TestLink::start(kept_in(dir.path(), &[address]));
    test.status("the problem", |status| {
        status.problem.as_ref().is_some_and(|problem| problem.contains("seen first"))
    })
    .await;
    let view = test.link.view();
    assert!(matches!(view.check(&session("a")), Err(Refusal::Halted(by)) if by.id == order.id));
    assert!(matches!(view.check(&session("b")), Err(Refusal::NotYetConnected)));
    test.stop().await;
    other.stop().await;
}

/// `estoppel halt --local`: in force with every server dead, and everywhere once one is back.
#[tokio::test]
async fn a_local_halt_is_in_force_at_once_and_handed_over_later() {
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment::new(1);
    let server = Server::start(&deployment).await;
    let mut other = TestLink::ready(config(&[server.address])).await;
    let address = server.stop().await;

    let test = TestLink::start(kept_in(dir.path(), &[address]));
    let order = halt("session:a", "local:root@web-3");
    let given = test.link.halt_locally(order.clone()).unwrap();
    assert!(given.durable && given.order == order.id);
    assert!(matches!(test.link.view().check(&session("a")), Err(Refusal::Halted(_))));
    test.stop().await;

    let server = Server::start_at(&deployment, address).await;
    let test = TestLink::ready(kept_in(dir.path(), &[address])).await;
    other.ordered(order.id).await;
    assert!(matches!(other.link.view().check(&session("a")), Err(Refusal::Halted(_))));
    assert!(server.ask(|switch| switch.orders().is_in_force(order.id)));
    let kept = deployment.ledger.lock().unwrap().clone();
    assert_eq!(kept, [deployment.sign(&order)], "the server's signature, the enforcer's text");
    test.stop().await;
}

#[tokio::test]
async fn what_is_no_local_halt_is_refused() {
    let server = Server::start(&Deployment::new(1)).await;
    let test = TestLink::ready(config(&[server.address])).await;
    let order = halt("session:a", "local:root@web-3");
    let releasing = OrderBody::Release { orders: vec![order.id] };
    let refused = |order: Order| test.link.halt_locally(order).unwrap_err();
    assert!(matches!(
        refused(Order { body: releasing, ..order.clone() }),
        LinkError::LocalNoHalt { .. }
    ));
    assert!(matches!(refused(halt("session:a", "alice")), LinkError::LocalActor { .. }));
    let given = test.link.halt_locally(order.clone()).unwrap();
    assert!(!given.durable, "there is no state folder");
    let other = Order { reason: "another text".to_owned(), ..order.clone() };
    // The id is in force already, with the first text.
    assert_eq!(test.link.halt_locally(other).unwrap().order, order.id);
    server.until("the halt", |switch| switch.orders().is_in_force(order.id)).await;
    server.release(&[order.id]);
    server.until("the release", |switch| !switch.orders().is_in_force(order.id)).await;
    test.status("its end here", |status| status.orders_in_force == 0).await;
    assert!(matches!(refused(order), LinkError::LocalNotTaken { .. }));
}
