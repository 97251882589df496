//! What a step costs from its check to its record, without limits and with all of them, and what a check
//! costs while some other task is tripped. The events go to a server in this process.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by a panic")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use estoppel_guard::{Guard, Limit, StepSpec};
use estoppel_model::Subject;
use estoppel_testkit::authority::{Authority, timely};

/// Bounds that no run of a benchmark comes near, and all of which are looked at.
fn all() -> Limit {
    Limit {
        steps_max: Some(u64::MAX),
        wall_clock_ms_max: Some(u64::MAX / 2),
        cost_usd_max: Some(1e9),
        tokens_max: Some(u64::MAX),
        concurrency_max: Some(u32::MAX),
        errors_in_a_row_max: Some(u32::MAX),
        identical_calls_max: Some(u32::MAX),
        ..Limit::default()
    }
}

async fn connect(server: &Authority, limit: Limit) -> Guard {
    let guard = Guard::builder().server(&server.url()).unwrap().token("token").limits(limit);
    let guard = guard.connect().unwrap();
    timely(guard.ready()).await;
    guard
}

/// A call of a tool with its arguments and result.
async fn step(guard: &Guard, subject: &Subject) {
    let spec = StepSpec::tool("search").unwrap();
    let spec = spec.params(&serde_json::json!({"query": "quarterly report", "page": 1}));
    let ended = guard.step(subject, spec, async |step| step.record_result(&"12 results")).await;
    black_box(ended).unwrap();
}

fn bench(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(Authority::start());
    let mut group = criterion.benchmark_group("step");
    for (name, limit) in [("without limits", Limit::default()), ("with all limits", all())] {
        let guard = runtime.block_on(connect(&server, limit));
        let subject = guard.subject("task:t").unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(step(&guard, &subject)));
        });
    }
    group.finish();
    let limit = Limit { steps_max: Some(0), ..Limit::default() };
    let guard = runtime.block_on(connect(&server, limit));
    let (tripped, other) = (guard.subject("task:t").unwrap(), guard.subject("task:other").unwrap());
    criterion.bench_function("check, nothing tripped", |bencher| {
        bencher.iter(|| guard.check(black_box(&other)).unwrap());
    });
    let refused = runtime.block_on(guard.step(&tripped, StepSpec::action("x"), async |_| ()));
    refused.unwrap_err();
    criterion.bench_function("check, another task tripped", |bencher| {
        bencher.iter(|| guard.check(black_box(&other)).unwrap());
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
