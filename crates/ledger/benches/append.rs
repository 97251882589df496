//! Durable appends: how long one waits for its fsync, and how many go through when many share one.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use ed25519_dalek::SigningKey;
use estoppel_ledger::{Ledger, Options, verify};
use estoppel_model::{NewRecord, RecordKind, Timestamp};

fn record() -> NewRecord {
    NewRecord {
        kind: RecordKind::new("bench.note"),
        key: None,
        at: Timestamp::from_micros(1_770_000_000_000_000),
        // About as long as an order.
        body: format!("{{\"text\":\"{}\"}}", "x".repeat(500)),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The disk that data folders are on, not the one of temporary files, which may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let ledger = Ledger::open(dir.path(), SigningKey::from_bytes(&[1; 32]), Options::default())?;
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();

    let mut group = criterion.benchmark_group("durable append");
    for together in [1_u64, 16, 256, 1_024] {
        group.throughput(Throughput::Elements(together));
        group.bench_function(BenchmarkId::new("at once", together), |bencher| {
            bencher.iter(|| {
                let pending: Vec<_> = (0..together).map(|_| ledger.append(record())).collect();
                for pending in pending {
                    black_box(pending.wait()).ok();
                }
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("read");
    let size = ledger.head().size;
    let batch = 1_000.min(size);
    group.throughput(Throughput::Elements(batch));
    group.bench_function("records with their leaves checked", |bencher| {
        bencher.iter(|| black_box(ledger.read(size - batch, 1_000)).ok());
    });
    group.finish();

    let mut group = criterion.benchmark_group("proof");
    group.bench_function("consistency", |bencher| {
        bencher.iter(|| black_box(ledger.prove_consistency(size / 3, size)).ok());
    });
    group.finish();

    let mut group = criterion.benchmark_group("verify");
    group.sample_size(10).throughput(Throughput::Elements(ledger.head().size));
    group.bench_function("everything", |bencher| {
        bencher.iter(|| black_box(verify(dir.path(), None)).ok());
    });
    group.finish();
    criterion.final_summary();
    Ok(())
}
