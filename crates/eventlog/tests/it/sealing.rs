//! From the write-ahead log to Parquet: each event is there once, at every moment.

use std::{fs, path::Path};

use estoppel_testkit::disk::FaultyDisk;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Log, audit, eventually, network, on, options, receive, trial};
use estoppel_eventlog::{DamageKind, Options, SqlError};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("sealing::each_row_is_there_once_at_every_moment", once_at_every_moment),
        trial("sealing::a_sealed_log_opens_again", a_sealed_log_opens_again),
        trial("sealing::a_changed_file_is_refused_by_name", a_changed_file_is_refused),
        trial("sealing::damaged_log_is_kept_aside_when_sealed", damaged_log_is_kept_aside),
        trial("sealing::crashes_around_the_manifest", crashes_around_the_manifest),
        trial("sealing::a_bad_manifest_is_kept_aside", a_bad_manifest_is_kept_aside),
    ]
}

fn small(options: Options) -> Options {
    Options { segment_bytes: 64 * 1024, seal_bytes: 128 * 1024, ..options }
}

fn pair(n: u64) -> [Value; 2] {
    let id = |half: u128| Uuid::from_u128(u128::from(n) * 2 + half).to_string();
    [
        audit(
            "2026-02-05T03:00:00Z",
            json!({
                "id": id(0), "action": n.to_string(), "session_id": format!("s{}", n % 10),
                "params": "x".repeat(300),
            }),
        ),
        network("2026-02-05T03:00:00Z", json!({"id": id(1), "bytes_sent": n, "destination": "d"})),
    ]
}

async fn fill(log: &Log, pairs: std::ops::Range<u64>) {
    let events: Vec<Value> = pairs.flat_map(pair).collect();
    for events in events.chunks(100) {
        log.append(events).await;
    }
}

fn names(folder: &Path, kind: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder.join(kind))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn once_at_every_moment() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), small(options()));
    for round in 0..40_u64 {
        fill(&log, round * 50..(round + 1) * 50).await;
        let expect = (round + 1) * 50;
        let sum = expect * (expect - 1) / 2;
        let rows = log
            .rows("SELECT COUNT(*), COUNT(DISTINCT event_id), SUM(bytes_sent) FROM network_log")
            .await;
        assert_eq!(rows, [[json!(expect), json!(expect), json!(sum)]]);
    }
    eventually("sealed segments", || log.log.status().segments >= 3).await;
    assert_eq!(log.count("audit_log").await, 2000);
    let needle = "SELECT COUNT(*) FROM audit_log WHERE session_id = 's3' AND length(params) = 300";
    assert_eq!(log.rows(needle).await, [[json!(200)]]);
    let seals = log.log.seals();
    assert!(seals.windows(2).all(|pair| pair[0].next_seq == pair[1].first_seq), "{seals:?}");
    assert!(
        seals.iter().all(|seal| seal.lost == 0 && seal.events == seal.next_seq - seal.first_seq)
    );
    let sealed_to = seals.last().unwrap().next_seq;
    eventually("the log of sealed events goes", || {
        names(folder.path(), "wal")
            .iter()
            .all(|name| name.trim_end_matches(".wal").parse::<u64>().unwrap() >= sealed_to)
    })
    .await;
    log.close().await;
}

async fn sealed(pairs: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), small(options()));
    fill(&log, 0..pairs).await;
    eventually("a sealed segment", || log.log.status().segments >= 1).await;
    // Its write-ahead files go after it can be seen.
    let first = folder.path().join("wal/00000000000000000000.wal");
    eventually("its retired log", || !first.exists()).await;
    log.close().await;
    folder
}

/// The ids of sealed events are known after a restart, and left-over files go.
async fn a_sealed_log_opens_again() {
    let folder = sealed(500).await;
    let segments = folder.path().join("segments");
    fs::write(segments.join("00000000000000000000-00000000000000000001.ids"), "left over").unwrap();
    let log = Log::open(folder.path(), small(options()));
    assert!(log.log.damage().is_empty(), "{:?}", log.log.damage());
    assert!(!names(folder.path(), "segments").iter().any(|name| name.ends_with("001.ids")));
    let again: Vec<Value> = (0..500).flat_map(pair).collect();
    let report = log.log.append(receive(&again)).await.unwrap();
    assert_eq!((report.accepted, report.duplicates), (0, 1000));
    assert_eq!(log.count("audit_log").await, 500);
    log.close().await;
}

async fn a_changed_file_is_refused() {
    let folder = sealed(500).await;
    let name = names(folder.path(), "segments")
        .into_iter()
        .find(|name| name.ends_with("audit_log.parquet"))
        .unwrap();
    let path = folder.path().join("segments").join(&name);
    let intact = fs::read(&path).unwrap();
    // Anywhere: the data, the footer (which can panic a reader), the end, nothing left, no file.
    for damaged in [
        Some([&intact[..100], &[intact[100] ^ 1], &intact[101..]].concat()),
        Some([&intact[..intact.len() - 20], &[0xff; 12], &intact[intact.len() - 8..]].concat()),
        Some(intact[..intact.len() / 2].to_vec()),
        Some(Vec::new()),
        None,
    ] {
        match damaged {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let log = Log::open(folder.path(), small(options()));
        let error = log.fails("SELECT COUNT(action) FROM audit_log").await;
        let SqlError::Damaged { file, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*file, name);
        assert_eq!(log.count("network_log").await, 500, "the other table is served");
        // What does not need the file is served, too.
        let later = "SELECT COUNT(action) FROM audit_log WHERE timestamp > '2026-02-06'";
        assert_eq!(log.rows(later).await, [[json!(0)]]);
        log.close().await;
    }
    fs::write(&path, intact).unwrap();
    let log = Log::open(folder.path(), small(options()));
    assert_eq!(log.count("audit_log").await, 500, "put back, it is served again");
    log.close().await;
}

async fn damaged_log_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let unsealed = Options { seal_bytes: u64::MAX, ..small(options()) };
    let log = Log::open(folder.path(), unsealed);
    fill(&log, 0..500).await;
    log.close().await;
    let file = folder.path().join("wal").join(&names(folder.path(), "wal")[0]);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(13).position(|part| part == b"\"action\":\"20\"").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let log = Log::open(folder.path(), small(options()));
    eventually("a sealed segment", || log.log.status().segments >= 1).await;
    let table = log.sql("SELECT COUNT(*) FROM audit_log").await.unwrap();
    assert_eq!((table.rows[0][0].clone(), table.lost_events), (json!(499), 1));
    assert_eq!(log.log.seals()[0].lost, 1);
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    eventually("the damaged file is kept aside", || {
        names(folder.path(), "quarantine").contains(&name)
    })
    .await;
    log.close().await;
}

/// Power cuts while sealed segments take the place of log files. (Parquet files are written and
/// synced by the worker, whose disk does not crash here.)
async fn crashes_around_the_manifest() {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    let log = Log::open(live.path(), small(on(&disk)));
    fill(&log, 0..1000).await;
    eventually("sealed segments", || log.log.status().segments >= 2).await;
    log.close().await;
    let after_all = disk.operations();
    let mut with_manifest = 0;
    for seed in 0..40_u64 {
        let after = tempfile::tempdir().unwrap();
        // Sealing lags behind: most of its operations are among the last.
        let at = after_all - 80 + 2 * (seed as usize + 1);
        disk.crash(at, seed, after.path()).unwrap();
        let segments = after.path().join("segments");
        fs::create_dir_all(&segments).unwrap();
        for name in names(live.path(), "segments") {
            if !name.ends_with(".json") {
                fs::copy(live.path().join("segments").join(&name), segments.join(&name)).unwrap();
            }
        }
        with_manifest +=
            usize::from(names(after.path(), "segments").iter().any(|n| n.ends_with(".json")));
        let unsealed = Options { seal_bytes: u64::MAX, ..small(options()) };
        let log = Log::open(after.path(), unsealed);
        let bad = log.log.damage().iter().find(|damage| damage.kind != DamageKind::Torn);
        assert!(bad.is_none(), "seed {seed}: {bad:?}");
        let rows = log
            .rows("SELECT COUNT(*), COUNT(DISTINCT event_id), MAX(bytes_sent) FROM network_log")
            .await;
        let count = rows[0][0].as_u64().unwrap();
        assert_eq!(rows[0][1], json!(count), "seed {seed}: no row twice");
        if count > 0 {
            assert_eq!(rows[0][2], json!(count - 1), "seed {seed}: none is missing in between");
        }
        log.close().await;
    }
    assert!(with_manifest > 5, "{with_manifest}");
}

async fn a_bad_manifest_is_kept_aside() {
    let folder = sealed(500).await;
    let manifest =
        names(folder.path(), "segments").into_iter().find(|n| n.ends_with(".json")).unwrap();
    fs::write(folder.path().join("segments").join(&manifest), "{").unwrap();
    let log = Log::open(folder.path(), small(options()));
    let kinds: Vec<DamageKind> = log.log.damage().iter().map(|damage| damage.kind).collect();
    assert_eq!(kinds[0], DamageKind::Corrupt, "{kinds:?}");
    assert!(kinds.contains(&DamageKind::Missing), "{kinds:?}");
    assert!(names(folder.path(), "quarantine").contains(&manifest));
    let parquet = names(folder.path(), "segments");
    assert!(
        parquet.iter().any(|name| name.ends_with(".parquet")),
        "the rows' files stay: {parquet:?}"
    );
    let table = log.sql("SELECT COUNT(*) FROM audit_log").await.unwrap();
    assert!(table.lost_events > 0);
    log.close().await;
}
