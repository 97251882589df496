//! Steps whose work is the caller's own; plugins, tenants, and halts without a server.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use estoppel_guard::{Access, DeniedReason, Guard, Mode, OnLost, OnStop, Work};
use estoppel_model::{Actor, Limit, Order, OrderBody, OrderId, Timestamp};
use tokio::sync::Notify;

use crate::{
    connect, connect_as, fetch,
    server::{Server, timely},
};

/// Counts how often it is told, and says so.
#[derive(Default)]
struct Told {
    times: AtomicU64,
    told: Notify,
}

impl OnStop for Told {
    fn stopped(&self) {
        self.times.fetch_add(1, Relaxed);
        self.told.notify_one();
    }
}

/// Waits until this many orders are in force at each of the guards.
async fn in_force(guards: &[&Guard], orders: usize) {
    timely(async {
        while guards.iter().any(|guard| guard.status().orders_in_force < orders) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn told() -> Arc<Told> {
    Arc::default()
}

/// K7: the caller is told, and what it says is what the confirmation says.
#[tokio::test]
async fn a_caller_is_told_of_a_stop_and_says_how_it_went() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let stops = [told(), told(), told()];
    let begin = |stop: &Arc<Told>, work| {
        let stop: Arc<dyn OnStop> = Arc::<Told>::clone(stop);
        guard.begin(&subject, fetch(), work, stop).unwrap()
    };
    let gave_way = begin(&stops[0], Work::Interruptible);
    let went_on = begin(&stops[1], Work::Interruptible);
    let blocking = begin(&stops[2], Work::Blocking);
    assert!(!gave_way.is_stopped() && gave_way.stopped_by().is_none());

    let halt = server.halt("session:abc123");
    server.halt("global");
    for stop in &stops {
        timely(stop.told.notified()).await;
        assert_eq!(stop.times.load(Relaxed), 1);
    }
    let denied = gave_way.stopped_by().unwrap();
    assert_eq!(denied.order.as_ref().unwrap().id, halt);
    assert_eq!(gave_way.gave_way(), Some(denied.clone()));
    went_on.handle().record_error("ValueError");
    assert_eq!(went_on.finish(), Err(denied.clone()));
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    let settlement = &progress.enforcers[0].settlement;
    assert_eq!(settlement.steps_cancelled, 1);
    let mut named = settlement.not_interruptible.clone();
    named.sort();
    assert_eq!(
        named,
        [
            "tool fetch: blocking work, its result is withheld",
            "tool fetch: ended by itself, its result is withheld"
        ]
    );
    assert_eq!(blocking.finish(), Err(denied));
    let failed = |event: &serde_json::Value| event["attributes"]["error"] == "ValueError";
    server.events_until(|events| events.iter().any(failed)).await;

    let refused = told();
    let stop: Arc<dyn OnStop> = Arc::<Told>::clone(&refused);
    let denied = guard.begin(&subject, fetch(), Work::Interruptible, stop).unwrap_err();
    assert_eq!(denied.reason, DeniedReason::Halted);
    assert_eq!(refused.times.load(Relaxed), 0, "it never began");
}

#[tokio::test]
async fn a_caller_whose_step_is_not_stopped_hears_nothing() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let stop = told();
    let begin = || {
        let stop: Arc<dyn OnStop> = Arc::<Told>::clone(&stop);
        guard.begin(&subject, fetch(), Work::Interruptible, stop).unwrap()
    };
    assert_eq!(begin().finish(), Ok(()));
    assert_eq!(begin().gave_way(), None);
    drop(begin());
    let given_up = |event: &serde_json::Value| event["attributes"]["ended"] == "given_up";
    let events = server
        .events_until(|events| events.iter().filter(|event| given_up(event)).count() == 2)
        .await;
    assert!(events.iter().any(|event| event["attributes"]["ended"].is_null()));
    let halt = server.halt("session:abc123");
    server.until(halt, |progress| progress.settled == 1).await;
    assert_eq!(stop.times.load(Relaxed), 0);
}

/// S2: a plugin is refused by its name and by a range of versions, where it is loaded.
#[tokio::test]
async fn a_halted_plugin_is_not_loaded() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let loads = |name: &str, version: Option<&str>| {
        guard.load_plugin(&subject, name, version).unwrap().is_ok()
    };
    assert!(loads("scraper", Some("2.2")));
    let halt = server.halt("plugin:scraper@>=2.1");
    server.until(halt, |progress| progress.settled == 1).await;
    assert!(loads("scraper", Some("2.0")));
    assert!(loads("other", Some("2.2")));
    assert!(!loads("scraper", Some("2.2")));
    assert!(!loads("scraper", None), "a range reaches what has no version");
    assert!(guard.load_plugin(&subject, "", None).is_err());
    let denied = server.event("denied").await;
    assert_eq!((&denied["action"], &denied["plugin"]), (&"plugin_load".into(), &"scraper".into()));
}

/// T2: under strict tenant validation an access needs two tenants that are the same; without it,
/// each is on record.
#[tokio::test]
async fn strict_tenant_validation_refuses_what_differs_or_is_missing() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let observing = connect_as(&server, Mode::Observe).await;
    let subject = guard.subject("session:abc123").unwrap();
    let access = |guard: &Guard, requester: Option<&str>, accessed: Option<&str>| {
        let tenant = |tenant: Option<&str>| tenant.map(|tenant| tenant.parse().unwrap());
        let access = Access::new("search", tenant(requester), tenant(accessed)).params(&"q");
        guard.access(&subject, access).map_err(|denied| denied.reason)
    };
    assert_eq!(access(&guard, Some("acme"), Some("globex")), Ok(()));
    let event = server.event("allowed").await;
    for (column, value) in [
        ("action", "search"),
        ("requester_tenant_id", "acme"),
        ("accessed_tenant_id", "globex"),
        ("session_id", "abc123"),
        ("params", "q"),
    ] {
        assert_eq!(event[column], value, "{column}: {event}");
    }

    let strict = Limit { tenant_validation_strict: true, ..Limit::default() };
    server.order("tenant:globex", OrderBody::Limit { limit: strict.clone() });
    in_force(&[&guard, &observing], 1).await;
    let refused = Err(DeniedReason::TenantValidation);
    assert_eq!(access(&guard, Some("acme"), Some("globex")), refused, "globex's data");
    assert_eq!(access(&guard, Some("globex"), Some("acme")), refused, "for globex");
    assert_eq!(access(&guard, Some("globex"), None), refused);
    assert_eq!(access(&guard, Some("globex"), Some("globex")), Ok(()));
    assert_eq!(access(&guard, Some("acme"), Some("initech")), Ok(()), "of neither");
    assert_eq!(access(&observing, Some("globex"), None), Ok(()));
    server.event("would_stop").await;

    server.order("global", OrderBody::Limit { limit: strict });
    in_force(&[&guard], 2).await;
    assert_eq!(access(&guard, Some("acme"), Some("initech")), refused);
    assert_eq!(access(&guard, None, Some("initech")), refused);
    assert_eq!(access(&guard, None, None), refused);
    assert_eq!(access(&guard, Some("acme"), Some("acme")), Ok(()));
    server.halt("session:abc123");
    in_force(&[&guard], 3).await;
    assert_eq!(access(&guard, Some("acme"), Some("acme")), Err(DeniedReason::Halted));
}

/// K7: a process halts itself without a server, in flight and from then on.
#[tokio::test]
async fn a_process_halts_itself_without_a_server() {
    let guard = Guard::builder()
        .server("http://127.0.0.1:9")
        .unwrap()
        .token("token")
        .on_lost(OnLost::Allow)
        .connect()
        .unwrap();
    let subject = guard.subject("session:abc123").unwrap();
    let stop = told();
    let told: Arc<dyn OnStop> = Arc::<Told>::clone(&stop);
    let step = guard.begin(&subject, fetch(), Work::Interruptible, told).unwrap();
    let halt = |by: &str| Order {
        id: OrderId::new(),
        scope: "session:abc123".parse::<estoppel_model::Scope>().unwrap().into(),
        reason: "by hand".into(),
        issued_by: Actor::new(by).unwrap(),
        issued_at: Timestamp::from_micros(1_770_260_400_000_000),
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    };
    assert!(
        guard.halt_locally(halt("alice")).is_err(),
        "a person's name is for the server to give"
    );
    let given = guard.halt_locally(halt("local:alice@host")).unwrap();
    assert!(!given.durable, "there is no folder");
    assert_eq!(stop.times.load(Relaxed), 1);
    assert_eq!(step.gave_way().unwrap().order.unwrap().id, given.order);
    assert_eq!(guard.check(&subject).unwrap_err().order.unwrap().id, given.order);
    assert!(guard.check(&guard.subject("session:other").unwrap()).is_ok());
    guard.close().await;
}
