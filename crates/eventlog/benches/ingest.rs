//! Durable ingest (acknowledged after fsync) and the time from a query to its result.
//!
//! This program is its own SQL worker, as the tests are.

use std::{hint::black_box, process::ExitCode, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use estoppel_eventlog::{Access, EventLog, Options, WorkerCommand, worker};
use estoppel_model::{Event, EventLimits, ReceivedEvent, SystemClock};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const WORKER: &str = "sql-worker";
/// Rows that the queries run over.
const ROWS: usize = 100_000;

/// An event of some 500 bytes, as a tool call has.
fn events(count: usize) -> Vec<ReceivedEvent> {
    let now = estoppel_model::Clock::now(&SystemClock);
    let text = format!(
        r#"{{"kind":"audit","session_id":"abc123","user_id":"alice","task_id":"runaway-123",
        "requester_tenant_id":"a","accessed_tenant_id":"a","action":"tool_call","tool":"search",
        "params":{{"query":"quarterly report","page":1}},"result":"{}","estimated_cost":0.0021}}"#,
        "lorem ipsum ".repeat(20)
    );
    let event = || Event::parse(&text).ok()?.receive(now, EventLimits::at(now)).ok();
    (0..count).filter_map(|_| event()).collect()
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(WORKER) {
        return worker::main();
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the benchmark failed");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    // The disk that data folders are on, not the one of temporary files, which may be memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let worker = WorkerCommand { program: std::env::current_exe()?, args: vec![WORKER.into()] };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let log = EventLog::open(folder.path(), Options::new(worker), &tasks, stop.clone())?;
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();

    let mut group = criterion.benchmark_group("durable ingest");
    // One sender; then eight at once, whose batches share syncs.
    for (senders, batch) in [(1, 1), (1, 100), (1, 1_000), (8, 1), (8, 1_000)] {
        group.throughput(Throughput::Elements((senders * batch) as u64));
        let name = BenchmarkId::new(format!("{senders} senders, batches of"), batch);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (0..senders).map(|_| events(batch)).collect::<Vec<_>>(),
                |batches| {
                    let appends = batches.into_iter().map(|batch| log.append(batch));
                    runtime.block_on(futures_util::future::join_all(appends))
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    for _ in 0..ROWS / 1_000 {
        runtime.block_on(log.append(events(1_000)))?;
    }
    let mut group = criterion.benchmark_group("query");
    for (name, query) in [
        ("nothing", "SELECT 1"),
        ("count", "SELECT COUNT(*) FROM audit_log"),
        ("cost by tool", "SELECT tool, SUM(estimated_cost) FROM audit_log GROUP BY tool"),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(runtime.block_on(log.sql(query, Access::default()))));
        });
    }
    group.finish();
    criterion.final_summary();

    stop.cancel();
    drop(log);
    tasks.close();
    runtime.block_on(tasks.wait());
    Ok(())
}
