//! The address that is connected to is the one that was judged.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use estoppel_gateway::{Mode, Resolve, Resolving};
use estoppel_model::FlowVerdict::{Allowed, Blocked, Failed};

use crate::support::{Answers, Harness, Sink, config, policy};

/// A hostile name server: each answer differs.
struct Rebinding {
    answers: Vec<Vec<SocketAddr>>,
    asked: AtomicUsize,
}

impl Rebinding {
    fn new(answers: Vec<Vec<SocketAddr>>) -> Arc<Self> {
        Arc::new(Self { answers, asked: AtomicUsize::new(0) })
    }
}

impl Resolve for Rebinding {
    fn resolve<'a>(&'a self, _name: &'a str, _port: u16) -> Resolving<'a> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers[asked % self.answers.len()].clone();
        Box::pin(async move { Ok(answer) })
    }
}

/// In every mode, an address that is not public needs an entry that names it with its port.
#[tokio::test]
async fn private_addresses_need_an_entry() {
    let sink = Sink::start(Answers::Http).await;
    let own = sink.address;
    for mode in [Mode::Learn, Mode::Observe, Mode::Enforce] {
        let mut config = config(&[]);
        let port = format!("localhost:{}", own.port());
        config.policy = policy(mode, &[&port, "127.0.0.1:1"]);
        let harness = Harness::start(config).await;
        for authority in [
            own.to_string(),
            format!("localhost:{}", own.port()),
            format!("[::ffff:127.0.0.1]:{}", own.port()),
            format!("[::1]:{}", own.port()),
            format!("0.0.0.0:{}", own.port()),
            "169.254.169.254".to_owned(),
            "[fd00:ec2::254]".to_owned(),
            "10.0.0.1".to_owned(),
            // The gateway itself: a proxy that a client chains to itself.
            harness.gateway.local_addr().to_string(),
        ] {
            let answer = harness.fetch(&authority).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{mode} {authority}: {answer}");
        }
    }
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn an_entry_or_an_override_opens_an_address() {
    let sink = Sink::start(Answers::Http).await;
    let mut config = config(&[("inside.example:80", sink.address)]);
    config.policy = policy(Mode::Enforce, &[&sink.address.to_string(), "inside.example"]);
    let harness = Harness::start(config).await;
    assert!(harness.fetch(&sink.address.to_string()).await.starts_with("HTTP/1.1 200"));
    assert!(harness.fetch("inside.example").await.starts_with("HTTP/1.1 200"));
    assert_eq!(harness.orders.verdicts(2).await, [Allowed, Allowed]);
    // The row names an address as the list does.
    assert_eq!(harness.orders.rows()[0].destination.as_ref().unwrap().raw(), "127.0.0.1");
}

/// Estoppel's own addresses are closed to agents even where they are public.
#[tokio::test]
async fn estoppels_own_addresses_need_an_entry() {
    let mut config = config(&[]);
    config.own_addresses =
        vec!["93.184.216.34:7600".parse().unwrap(), "[::]:7601".parse().unwrap()];
    let harness = Harness::start(config).await;
    for authority in ["93.184.216.34:7600", "93.184.216.35:7601"] {
        let answer = harness.fetch(authority).await;
        assert!(answer.contains("Estoppel's own"), "{answer}");
    }
}

/// Spellings that a resolver would take for an address are refused before anybody is asked.
#[tokio::test]
async fn tricks_with_addresses_are_refused() {
    let sink = Sink::start(Answers::Http).await;
    let resolver = Rebinding::new(vec![vec![sink.address]]);
    let mut config = config(&[]);
    config.resolver = Arc::clone(&resolver) as Arc<dyn Resolve>;
    let harness = Harness::start(config).await;
    let tricks = ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1.", "[::ffff:0x7f.1]"];
    for host in tricks {
        let answer = harness.fetch(&format!("{host}:{}", sink.address.port())).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{host}: {answer}");
    }
    let answer = harness.fetch("user@good.example").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!((resolver.asked.load(Ordering::SeqCst), sink.connections()), (0, 0));
    assert!(harness.orders.verdicts(6).await.iter().all(|verdict| *verdict == Blocked));
}

/// A name that answers with a harmless address first and an inner one next gains nothing.
#[tokio::test]
async fn a_rebinding_name_is_asked_once() {
    let listed = Sink::start_at("127.0.0.2:0".parse().unwrap(), Answers::Http).await;
    let port = listed.address.port();
    let inner = Sink::start_at(([127, 0, 0, 3], port).into(), Answers::Http).await;
    let resolver = Rebinding::new(vec![vec![listed.address], vec![inner.address]]);
    let mut config = config(&[]);
    config.resolver = Arc::clone(&resolver) as Arc<dyn Resolve>;
    config.policy = policy(Mode::Learn, &[&listed.address.to_string()]);
    let harness = Harness::start(config).await;
    let authority = format!("rebind.example:{port}");
    assert!(harness.fetch(&authority).await.starts_with("HTTP/1.1 200"));
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
    // The second answer is judged for itself.
    assert!(harness.fetch(&authority).await.starts_with("HTTP/1.1 403"));
    assert_eq!((listed.connections(), inner.connections()), (1, 0));
    assert_eq!(harness.orders.verdicts(2).await, [Allowed, Blocked]);
}

/// Of several addresses only those are tried that may be reached.
#[tokio::test]
async fn an_inner_address_among_others_is_left_out() {
    let listed = Sink::start_at("127.0.0.2:0".parse().unwrap(), Answers::Http).await;
    let port = listed.address.port();
    let inner = Sink::start_at(([127, 0, 0, 3], port).into(), Answers::Http).await;
    let mut config = config(&[]);
    config.resolver = Rebinding::new(vec![vec![inner.address, listed.address]]);
    config.policy = policy(Mode::Learn, &[&listed.address.to_string()]);
    let harness = Harness::start(config).await;
    assert!(harness.fetch(&format!("both.example:{port}")).await.starts_with("HTTP/1.1 200"));
    assert_eq!((listed.connections(), inner.connections()), (1, 0));
}

/// A name server that does not answer costs its bound and no more.
#[tokio::test]
async fn a_silent_name_server_is_not_waited_for() {
    struct Silent;
    impl Resolve for Silent {
        fn resolve<'a>(&'a self, _name: &'a str, _port: u16) -> Resolving<'a> {
            Box::pin(std::future::pending())
        }
    }
    let mut config = config(&[]);
    config.resolver = Arc::new(Silent);
    config.limits.resolve_timeout = std::time::Duration::from_millis(100);
    let harness = Harness::start(config).await;
    let answer = harness.fetch("good.example").await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("urn:estoppel:problem:destination-silent"), "{answer}");
    assert_eq!(harness.orders.verdicts(1).await, [Failed]);
}
