//! Servers that are away, silent, replaced or wrong. Invariant *lease*.

use std::{net::SocketAddr, time::Duration};

use estoppel_link::{LinkConfig, LinkEvent, OnLost, Refusal};
use estoppel_model::Secret;
use tokio::net::TcpListener;

use crate::server::{Deployment, Server, TestLink, config, now, session};

/// An address at which nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// K3: refused until the first hello, unless the owner chose otherwise.
#[tokio::test]
async fn nothing_goes_before_a_server_has_answered() {
    let servers = [nowhere().await];
    let test = TestLink::start(config(&servers));
    assert!(matches!(test.link.view().check(&session("a")), Err(Refusal::NotYetConnected)));
    test.status("the problem", |status| {
        status.problem.as_ref().is_some_and(|problem| problem.contains("refused"))
    })
    .await;
    let allowing = TestLink::start(LinkConfig { on_lost: OnLost::Allow, ..config(&servers) });
    assert!(allowing.link.view().check(&session("a")).is_ok());
    test.stop().await;
}

/// Invariant *lease*: a server that does not answer holds nobody up for longer than that.
#[tokio::test]
async fn a_silent_server_ends_the_lease_and_an_answer_brings_it_back() {
    let mut deployment = Deployment::new(1);
    deployment.config.lease = Duration::from_millis(600);
    deployment.config.ping = Duration::from_millis(50);
    let server = Server::start(&deployment).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    let mut allowing =
        TestLink::ready(LinkConfig { on_lost: OnLost::Allow, ..config(&[server.address]) }).await;
    server.mute(true);
    test.event("the loss", |event| matches!(event, LinkEvent::LeaseLost).then_some(())).await;
    let view = test.link.view();
    assert!(matches!(view.check(&session("a")), Err(Refusal::LeaseLost)));
    assert!(allowing.link.view().check(&session("a")).is_ok(), "the owner's choice");
    server.mute(false);
    test.event("the return", |event| matches!(event, LinkEvent::LeaseRegained).then_some(())).await;
    assert!(view.check(&session("a")).is_ok());
    let first = allowing.events.try_recv();
    assert!(matches!(first, Ok(LinkEvent::LeaseRegained)), "no loss is told: {first:?}");
}

#[tokio::test]
async fn another_server_takes_over_within_the_lease() {
    let deployment = Deployment::new(1);
    let (first, second) = (Server::start(&deployment).await, Server::start(&deployment).await);
    let mut test = TestLink::ready(config(&[nowhere().await, first.address, second.address])).await;
    let connected_to = |port: u16| {
        move |status: &estoppel_link::LinkStatus| {
            status.connected_to.as_ref().is_some_and(|url| url.port() == Some(port))
        }
    };
    test.status("the first", connected_to(first.address.port())).await;
    first.stop().await;
    test.status("the second", connected_to(second.address.port())).await;
    let order = second.halt("session:a");
    test.ordered(order.id).await;
    let view = test.link.view();
    assert!(matches!(view.check(&session("a")), Err(Refusal::Halted(_))));
    assert!(view.check(&session("b")).is_ok(), "the lease of the first still holds");
}

/// Invariant *starting-always-does*: a server that has lost its ledger gets it back from those who
/// obeyed it.
#[tokio::test]
async fn what_a_server_has_lost_is_handed_back() {
    let deployment = Deployment::new(1);
    let server = Server::start(&deployment).await;
    let mut test = TestLink::ready(config(&[server.address])).await;
    let order = server.halt("session:a");
    test.ordered(order.id).await;
    let address = server.stop().await;
    deployment.ledger.lock().unwrap().clear();

    let server = Server::start_at(&deployment, address).await;
    server.until("the halt", |switch| switch.orders().is_in_force(order.id)).await;
    assert!(test.link.view().check(&session("a")).is_err());
    assert_eq!(deployment.ledger.lock().unwrap().len(), 1);
    server
        .until("the word on it", |switch| {
            switch.progress(order.id, now()).is_some_and(|progress| progress.enforcers.len() == 1)
        })
        .await;
}

#[tokio::test]
async fn a_wrong_token_is_named_and_not_shown() {
    let server = Server::start(&Deployment::new(1)).await;
    let token = Secret::new("wrong-token-7".to_owned());
    let test = TestLink::start(LinkConfig { token, ..config(&[server.address]) });
    test.status("the refusal", |status| {
        status.problem.as_ref().is_some_and(|problem| problem.contains("token is not known"))
    })
    .await;
    assert!(!format!("{:?} {:?}", test.link, test.link.status()).contains("wrong-token-7"));
    assert!(matches!(test.link.view().check(&session("a")), Err(Refusal::NotYetConnected)));
}

/// What is no frame ends the connection; the next one is in step again.
#[tokio::test]
async fn malformed_and_oversized_frames_end_the_connection_only() {
    let server = Server::start(&Deployment::new(1)).await;
    let test = TestLink::ready(config(&[server.address])).await;
    let oversized = format!("{{\"frame\":\"refused\",\"reason\":\"{}\"}}", "x".repeat(5 << 20));
    let deep = "[".repeat(100_000);
    let bad = ["", "{}", "{\"frame\":\"pong\"}", "\u{0}", &deep, &oversized];
    for text in bad {
        let order = server.halt("session:a");
        server.send_raw(text);
        server
            .until("the connection's end", |switch| {
                switch.enforcers().all(|enforcer| enforcer.connection.is_none())
            })
            .await;
        server
            .until("the next", |switch| {
                switch.enforcers().any(|enforcer| enforcer.connection.is_some())
            })
            .await;
        assert!(test.link.view().halted_by(&order, &session("a")));
    }
    server.send_raw("{\"frame\":\"of_the_future\",\"x\":1}");
    let order = server.halt("session:b");
    server
        .until("the confirmation", |switch| {
            switch.progress(order.id, now()).is_some_and(|progress| progress.refusing == 1)
        })
        .await;
}

/// `https` reaches for TLS: against a server without it that is an error with a name, no panic and
/// no step down.
#[tokio::test]
async fn there_is_no_step_down_from_tls() {
    let server = Server::start(&Deployment::new(1)).await;
    let mut config = config(&[server.address]);
    config.servers[0].set_scheme("https").unwrap();
    let test = TestLink::start(config);
    test.status("the failure", |status| {
        status.problem.as_ref().is_some_and(|problem| problem.starts_with("https://"))
    })
    .await;
    server.ask(|switch| assert_eq!(switch.enforcers().count(), 0));
    assert!(test.link.view().check(&session("a")).is_err());
}
