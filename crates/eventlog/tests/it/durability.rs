//! What was acknowledged is there: after crashes at any point, full disks and failing syncs.

use std::{collections::HashSet, fs, path::Path, time::Duration};

use estoppel_testkit::disk::FaultyDisk;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Log, audit, new_log, on, options, receive, trial};
use estoppel_eventlog::{AppendError, DamageKind, EventLog, OpenError, Options};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("durability::nothing_acknowledged_is_missing", nothing_acknowledged_is_missing),
        trial("durability::a_missing_fsync_is_found", a_missing_fsync_is_found),
        trial("durability::a_failed_sync_poisons", a_failed_sync_poisons),
        trial("durability::a_full_disk_passes", a_full_disk_passes),
        trial("durability::repeated_events_are_one", repeated_events_are_one),
        trial("durability::damage_is_named_and_the_rest_served", damage_is_named),
        trial("durability::a_torn_end_is_cut_and_kept_aside", a_torn_end_is_cut),
        trial("durability::a_missing_file_is_named", a_missing_file_is_named),
        trial("durability::one_process_at_a_time", one_process_at_a_time),
        trial("durability::large_batches_and_events", large_batches_and_events),
        trial("durability::stopping_writes_what_was_handed_in", stopping_writes_what_was_handed_in),
    ]
}

fn numbered(n: u64) -> Value {
    audit(
        "2026-02-05T03:00:00Z",
        json!({
            "id": Uuid::from_u128(u128::from(n)).to_string(), "action": n.to_string(),
            "params": "x".repeat((n % 7 * 100) as usize),
        }),
    )
}

/// The write-ahead files must roll over within a test.
fn small(options: Options) -> Options {
    Options { segment_bytes: 16 * 1024, group_wait: Duration::ZERO, ..options }
}

/// Appends 200 groups, marking each that was acknowledged.
async fn fill(disk: &FaultyDisk, folder: &Path) {
    let log = Log::open(folder, small(on(disk)));
    for group in 0..200 {
        log.append(&[numbered(2 * group), numbered(2 * group + 1)]).await;
        disk.mark(group);
    }
    log.close().await;
}

/// The numbers of the events in a folder as a crash left it.
async fn survivors(folder: &Path) -> (HashSet<u64>, usize) {
    let log = Log::open(folder, small(options()));
    assert!(
        log.log.damage().iter().all(|damage| damage.kind == DamageKind::Torn),
        "a crash tears at most the end: {:?}",
        log.log.damage()
    );
    let rows = log.rows("SELECT action FROM audit_log").await;
    let numbers: HashSet<u64> =
        rows.iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect();
    log.close().await;
    (numbers, rows.len())
}

/// Invariant *acknowledged-is-kept*: 200 seeded power cuts.
async fn nothing_acknowledged_is_missing() {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    fill(&disk, live.path()).await;
    let operations = disk.operations();
    let mut torn = 0;
    for seed in 0..200 {
        let after = tempfile::tempdir().unwrap();
        let at = operations * (seed as usize + 1) / 200;
        let acknowledged = disk.crash(at, seed, after.path()).unwrap();
        // The ids of what is there, without a worker: sending all again must add the rest only.
        let log = Log::open(after.path(), small(options()));
        torn += log.log.damage().len();
        assert!(
            log.log.damage().iter().all(|damage| damage.kind == DamageKind::Torn),
            "seed {seed}: {:?}",
            log.log.damage()
        );
        let again: Vec<Value> = acknowledged
            .iter()
            .flat_map(|group| [numbered(2 * group), numbered(2 * group + 1)])
            .collect();
        let report = log.log.append(receive(&again)).await.unwrap();
        assert_eq!(report.accepted, 0, "seed {seed}, cut at {at}: acknowledged events are missing");
        log.close().await;
        // And once in twenty, what people see.
        if seed % 20 == 0 {
            let (found, rows) = survivors(after.path()).await;
            assert_eq!(found.len(), rows, "no event is there twice");
            assert!(again.iter().all(|event| {
                found.contains(&event["action"].as_str().unwrap().parse().unwrap())
            }));
        }
    }
    assert!(torn > 10, "the crashes must tear something for the test to mean anything: {torn}");
}

/// The planted bug: were a sync missing, the test above would fail.
async fn a_missing_fsync_is_found() {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    disk.swallow_syncs(true);
    fill(&disk, live.path()).await;
    let mut missing = 0;
    for seed in 0..20 {
        let after = tempfile::tempdir().unwrap();
        let acknowledged = disk.crash(disk.operations() / 2, seed, after.path()).unwrap();
        let log = Log::open(after.path(), small(options()));
        let again: Vec<Value> = acknowledged.iter().map(|group| numbered(2 * group)).collect();
        missing += log.log.append(receive(&again)).await.unwrap().accepted;
        log.close().await;
    }
    assert!(missing > 0, "the harness does not see a missing fsync");
}

async fn a_failed_sync_poisons() {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    let log = Log::open(live.path(), small(on(&disk)));
    log.append(&[numbered(1)]).await;
    disk.fail_syncs(true);
    let error = log.log.append(receive(&[numbered(2)])).await.unwrap_err();
    assert!(matches!(error, AppendError::Poisoned { .. }), "{error:?}");
    // A later sync may say yes to what the first one lost: it is not asked again.
    disk.fail_syncs(false);
    let error = log.log.append(receive(&[numbered(2)])).await.unwrap_err();
    assert!(error.to_string().contains("until a restart"), "{error}");
    assert_eq!(log.rows("SELECT action FROM audit_log").await, [[json!("1")]], "reading goes on");
    log.close().await;
    let log = Log::open(live.path(), small(on(&disk)));
    log.append(&[numbered(2)]).await;
    assert_eq!(log.count("audit_log").await, 2);
    log.close().await;
}

async fn a_full_disk_passes() {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    let log = Log::open(live.path(), small(on(&disk)));
    disk.set_capacity(Some(40 * 1024));
    let mut accepted = 0;
    let error = loop {
        match log.log.append(receive(&[numbered(accepted)])).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Full) && accepted > 20, "{accepted}: {error:?}");
    assert_eq!(log.count("audit_log").await, accepted, "what was accepted can be read");
    disk.set_capacity(None);
    log.append(&[numbered(accepted)]).await;
    log.close().await;
    let log = Log::open(live.path(), small(on(&disk)));
    assert!(log.log.damage().is_empty(), "{:?}", log.log.damage());
    assert_eq!(log.count("audit_log").await, accepted + 1);
    log.close().await;
}

async fn repeated_events_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let window = Options { dedup_window: 100, ..small(options()) };
    let log = Log::open(folder.path(), window.clone());
    let batch: Vec<Value> = (0..10).map(numbered).collect();
    for (events, accepted) in [(&batch[..6], 6), (&batch[4..], 4), (&batch[..], 0)] {
        let report = log.log.append(receive(events)).await.unwrap();
        assert_eq!(report.accepted, accepted);
        assert_eq!(report.accepted + report.duplicates, events.len());
    }
    let twice = log.log.append(receive(&[numbered(10), numbered(10)])).await.unwrap();
    assert_eq!((twice.accepted, twice.duplicates), (1, 1));
    // Two clients that send the same at the same time.
    let (one, two) = tokio::join!(
        log.log.append(receive(&[numbered(11)])),
        log.log.append(receive(&[numbered(11)])),
    );
    assert_eq!(one.unwrap().accepted + two.unwrap().accepted, 1);
    log.close().await;
    let log = Log::open(folder.path(), window);
    assert_eq!(log.log.append(receive(&batch)).await.unwrap().accepted, 0, "known after a restart");
    assert_eq!(log.count("audit_log").await, 12);
    let others: Vec<Value> = (1000..1100).map(numbered).collect();
    log.append(&others).await;
    let late = log.log.append(receive(&[numbered(0)])).await.unwrap();
    assert_eq!(late.accepted, 1, "behind the window, as documented");
    log.close().await;
}

fn wal_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder.join("wal")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

async fn closed_log_with(groups: u64) -> tempfile::TempDir {
    let (folder, log) = new_log();
    for n in 0..groups {
        log.append(&[numbered(n)]).await;
    }
    log.close().await;
    folder
}

fn flip(file: &Path, text: &str) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(text.len()).position(|part| part == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

async fn damage_is_named() {
    let folder = closed_log_with(10).await;
    let [file] = wal_files(folder.path()).try_into().unwrap();
    flip(&file, "\"action\":\"4\"");
    let log = Log::open(folder.path(), options());
    let [damage] = log.log.damage() else { panic!("{:?}", log.log.damage()) };
    assert_eq!((damage.kind, damage.seqs.clone(), damage.lost), (DamageKind::Corrupt, 4..5, 1));
    assert_eq!(damage.file, file.canonicalize().unwrap());
    let table = log.sql("SELECT action FROM audit_log ORDER BY action").await.unwrap();
    assert_eq!((table.rows.len(), table.lost_events), (9, 1), "a result says what it may lack");
    log.append(&[numbered(4)]).await;
    assert_eq!(log.count("audit_log").await, 10, "the sender can put the lost one back");
    log.close().await;
}

async fn a_torn_end_is_cut() {
    let folder = closed_log_with(5).await;
    let [file] = wal_files(folder.path()).try_into().unwrap();
    let bytes = fs::read(&file).unwrap();
    let torn = &bytes[..bytes.len() - 3];
    fs::write(&file, [torn, &[0; 4096]].concat()).unwrap();
    let log = Log::open(folder.path(), options());
    let [damage] = log.log.damage() else { panic!("{:?}", log.log.damage()) };
    assert_eq!(damage.kind, DamageKind::Torn);
    let kept = fs::read(&damage.file).unwrap();
    assert!(damage.file.starts_with(folder.path().canonicalize().unwrap().join("quarantine")));
    assert_eq!(kept, torn[torn.len() - kept.len()..]);
    assert_eq!(log.count("audit_log").await, 4);
    log.append(&[numbered(4), numbered(5)]).await;
    log.close().await;
    let log = Log::open(folder.path(), options());
    assert!(log.log.damage().is_empty(), "it was cut for good: {:?}", log.log.damage());
    assert_eq!(log.count("audit_log").await, 6);
    log.close().await;
}

async fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), small(options()));
    for n in 0..120 {
        log.append(&[numbered(n)]).await;
    }
    log.close().await;
    let files = wal_files(folder.path());
    assert!(files.len() >= 3, "{files:?}");
    let first_of =
        |file: &Path| -> u64 { file.file_stem().unwrap().to_str().unwrap().parse().unwrap() };
    let (from, to) = (first_of(&files[1]), first_of(&files[2]));
    fs::remove_file(&files[1]).unwrap();
    let log = Log::open(folder.path(), small(options()));
    let [damage] = log.log.damage() else { panic!("{:?}", log.log.damage()) };
    assert_eq!((damage.kind, damage.seqs.clone()), (DamageKind::Missing, from..to));
    let table = log.sql("SELECT COUNT(*) FROM audit_log").await.unwrap();
    assert_eq!(table.rows, [[json!(120 - (to - from))]]);
    assert_eq!(table.lost_events, to - from);
    log.close().await;
}

async fn one_process_at_a_time() {
    let (folder, log) = new_log();
    let (tasks, stop) = Default::default();
    let second = EventLog::open(folder.path(), options(), &tasks, stop);
    assert!(matches!(second.err(), Some(OpenError::Locked { .. })));
    log.close().await;
}

async fn large_batches_and_events() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), small(options()));
    // Larger than a write-ahead file, than a group, and more than one group together.
    let large = audit("2026-02-05T03:00:00Z", json!({"result": "r".repeat(1_000_000)}));
    log.append(&[large.clone(), large.clone(), large]).await;
    let many: Vec<Value> = (0..10_000).map(numbered).collect();
    log.append(&many).await;
    log.append(&[]).await;
    assert_eq!(log.count("audit_log").await, 10_003);
    let longest = log.rows("SELECT MAX(length(result)) FROM audit_log").await;
    assert_eq!(longest, [[json!(1_000_000)]]);
    log.close().await;
    let log = Log::open(folder.path(), small(options()));
    assert!(log.log.damage().is_empty());
    assert_eq!(log.count("audit_log").await, 10_003);
    log.close().await;
}

async fn stopping_writes_what_was_handed_in() {
    let (folder, log) = new_log();
    let handle = log.log.clone();
    let append = handle.append(receive(&[numbered(1)]));
    let (report, ()) = tokio::join!(append, log.close());
    assert_eq!(report.unwrap().accepted, 1);
    let error = handle.append(receive(&[numbered(2)])).await.unwrap_err();
    assert!(matches!(error, AppendError::Closed), "{error:?}");
    assert!(handle.sql("SELECT 1", Default::default()).await.is_err());
    drop(handle);
    let log = Log::open(folder.path(), options());
    assert_eq!(log.count("audit_log").await, 1);
    log.close().await;
}
