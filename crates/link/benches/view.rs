//! What `View::check` costs as a whole, as enforcement code calls it: the published verdicts, the
//! boot clock, the lease. With nothing ordered, and with 100,000 halts and a subject of six ids,
//! none of which is halted, over a link whose lease a server renews meanwhile.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark fails by a panic"
)]

#[path = "../tests/it/server.rs"]
#[expect(dead_code, reason = "a benchmark needs less of it than the tests do")]
mod server;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use estoppel_link::View;
use estoppel_model::{EntityId, PluginRef, Subject};

use crate::server::{Deployment, Server, TestLink, config, halt};

const ORDERS: usize = 100_000;
/// Kinds of scopes that the subject has ids of, too.
const KINDS: [&str; 5] = ["session", "user", "task", "tenant", "agent"];

fn id(text: &str) -> EntityId {
    EntityId::new(text).unwrap()
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

/// A server with so many halts, and a link that has all of them and a lease.
async fn linked(orders: usize) -> (Server, TestLink) {
    let deployment = Deployment::new(1);
    let halts = (0..orders).map(|n| {
        let scope = format!("{}:halted-{n}", KINDS[n % KINDS.len()]);
        deployment.sign(&halt(&scope, "bench"))
    });
    deployment.ledger.lock().unwrap().extend(halts.collect::<Vec<_>>());
    let server = Server::start(&deployment).await;
    let link = TestLink::ready(config(&[server.address])).await;
    assert_eq!(link.link.status().orders_in_force, orders);
    (server, link)
}

fn bench(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let subject = subject();
    let (_empty_server, empty) = runtime.block_on(linked(0));
    let (_full_server, full) = runtime.block_on(linked(ORDERS));
    let mut group = criterion.benchmark_group("view");
    let mut check = |name: &str, view: &View| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| view.check(black_box(&subject)).is_ok());
        });
        // A lease that was over would have measured a refusal.
        view.check(&subject).unwrap();
    };
    check("empty, six ids", &empty.link.view());
    check("100,000 halts, six ids", &full.link.view());
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
