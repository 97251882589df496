//! What the hot path costs: `check` with nothing ordered, and with 100,000 halts and a subject of
//! six ids. Beside them one reading of `CLOCK_BOOTTIME`, which a check in an enforcer adds, and
//! what putting one more halt in force takes while readers hold the old verdicts.

#![expect(clippy::expect_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use estoppel_killswitch::OrderSet;
use estoppel_model::{
    Actor, Clock as _, EntityId, Kind, Order, OrderBody, OrderId, PluginRef, Scope, SignedOrder,
    Subject, SystemClock, Timestamp,
};
use uuid::Uuid;

const ORDERS: u64 = 100_000;

fn id(text: &str) -> EntityId {
    EntityId::new(text).expect("a well-formed id")
}

/// Halts of sessions, users, tasks and tenants in turn, none of which reaches [`subject`].
fn halt(n: u64) -> SignedOrder {
    let kinds = [Kind::Session, Kind::User, Kind::Task, Kind::Tenant, Kind::Agent, Kind::Tool];
    let kind = kinds[usize::try_from(n).expect("fits") % kinds.len()];
    let order = Order {
        id: OrderId::from_uuid(Uuid::from_u64_pair(1, n)),
        scope: Scope::entity(kind, id(&format!("halted-{n}"))).into(),
        reason: "bench".to_owned(),
        issued_by: Actor::new("bench").expect("a well-formed name"),
        issued_at: Timestamp::from_micros(0),
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    };
    let order = serde_json::to_string(&order).expect("an order is JSON");
    SignedOrder { order, key: String::new(), signature: String::new() }
}

fn subject() -> Subject {
    Subject {
        agent: Some(id("support-agent")),
        session: Some(id("session-0123456789abcdef")),
        user: Some(id("alice@example.com")),
        task: Some(id("task-0123456789abcdef")),
        tenant: Some(id("acme")),
        plugin: Some(PluginRef { name: id("scraper"), version: Some(id("2.1.0")) }),
        ..Subject::default()
    }
}

fn bench(criterion: &mut Criterion) {
    let subject = subject();
    let empty = OrderSet::default();
    let mut full = OrderSet::default();
    for n in 0..ORDERS {
        full.insert(halt(n)).expect("an order");
    }
    let mut group = criterion.benchmark_group("check");
    group.bench_function("boottime", |bencher| bencher.iter(|| SystemClock.boottime()));
    group.bench_function("empty, six ids", |bencher| {
        bencher.iter(|| empty.verdicts().check(black_box(&subject)).is_some());
    });
    group.bench_function("100,000 halts, six ids", |bencher| {
        bencher.iter(|| full.verdicts().check(black_box(&subject)).is_some());
    });
    let mut next = ORDERS;
    group.bench_function("100,000 halts, one more", |bencher| {
        bencher.iter(|| {
            let published = full.verdicts().clone();
            full.insert(halt(next)).expect("an order");
            next += 1;
            published
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
