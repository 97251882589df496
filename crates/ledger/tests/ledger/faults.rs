//! Disks that fail while they run.

use std::{fs, path::Path};

use estoppel_ledger::{Appended, Ledger, LedgerError, verify};
use estoppel_model::NewRecord;
use estoppel_testkit::disk::{FaultyDisk, SqliteVfs};
use rusqlite::{Connection, OpenFlags};

use crate::support::{Faulty, fill, key, open, record, scratch, tool};

struct Bench {
    live: tempfile::TempDir,
    disk: FaultyDisk,
}

impl Bench {
    fn new() -> Self {
        let live = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::over(live.path()).unwrap();
        Self { live, disk }
    }

    fn open(&self) -> Result<Ledger, LedgerError> {
        Ledger::open(self.live.path(), key(), Faulty::options(&self.disk))
    }

    /// After a power cut now: how many records a fresh start finds.
    fn after_power_cut(&self, seed: u64) -> u64 {
        let crashed = scratch();
        self.disk.crash(self.disk.operations(), seed, crashed.path()).unwrap();
        let size = open(crashed.path()).unwrap().head().size;
        assert!(verify(crashed.path(), None).unwrap().is_intact());
        size
    }
}

fn large(n: u64) -> NewRecord {
    NewRecord { body: format!("\"{}\"", "x".repeat(50_000)), ..record(n) }
}

fn intact(dir: &Path) {
    let report = verify(dir, None).unwrap();
    assert!(report.is_intact(), "{:?}", report.damages);
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let bench = Bench::new();
    let ledger = bench.open().unwrap();
    fill(&ledger, 0, 10);
    let head = ledger.head();
    bench.disk.set_capacity(Some(bench.disk.used_bytes() + 20_000));
    for _ in 0..3 {
        let error = ledger.append(large(10)).wait().unwrap_err();
        assert!(matches!(error, LedgerError::DiskFull), "{error:?}");
        assert!(error.to_string().starts_with("ledger: disk full"), "{error}");
    }
    assert_eq!(ledger.head(), head);
    assert_eq!(ledger.poisoned(), None);
    assert_eq!(ledger.records(0).count(), 10);

    bench.disk.set_capacity(None);
    assert_eq!(ledger.append(large(10)).wait().unwrap(), Appended::New { seq: 10 });
    fill(&ledger, 11, 20);
    drop(ledger);
    intact(bench.live.path());
    assert_eq!(bench.after_power_cut(1), 20);
}

#[test]
fn a_full_disk_fails_the_whole_group_and_nothing_of_it_is_kept() {
    let bench = Bench::new();
    let ledger = bench.open().unwrap();
    fill(&ledger, 0, 1);
    bench.disk.set_capacity(Some(bench.disk.used_bytes()));
    let pending: Vec<_> = (1..50).map(|n| ledger.append(large(n))).collect();
    for pending in pending {
        assert!(matches!(pending.wait().unwrap_err(), LedgerError::DiskFull));
    }
    bench.disk.set_capacity(None);
    // The keys of what was refused are free.
    fill(&ledger, 1, 50);
    assert_eq!(ledger.records(0).count(), 50);
}

#[test]
fn a_full_disk_does_not_keep_a_ledger_from_opening() {
    let bench = Bench::new();
    let ledger = bench.open().unwrap();
    fill(&ledger, 0, 40);
    bench.disk.kill();
    bench.disk.set_capacity(Some(bench.disk.used_bytes()));
    drop(ledger);
    let ledger = bench.open().unwrap();
    assert_eq!(ledger.records(0).count(), 40);
    assert!(matches!(ledger.append(large(40)).wait().unwrap_err(), LedgerError::DiskFull));
    bench.disk.set_capacity(None);
    fill(&ledger, 40, 41);
    for seed in 0..20 {
        assert_eq!(bench.after_power_cut(seed), 41);
    }
}

/// An fsync error poisons the file; it is never retried.
#[test]
fn a_failed_fsync_ends_appending_until_a_restart() {
    let bench = Bench::new();
    let ledger = bench.open().unwrap();
    fill(&ledger, 0, 10);
    bench.disk.fail_syncs(true);
    let error = ledger.append(record(10)).wait().unwrap_err();
    assert!(matches!(error, LedgerError::Database { action: "commit", .. }), "{error:?}");
    // The disk is well again; what it forgot, nobody knows.
    bench.disk.fail_syncs(false);
    for n in [10, 11] {
        let error = ledger.append(record(n)).wait().unwrap_err();
        assert!(matches!(error, LedgerError::Poisoned { .. }), "{error:?}");
        assert!(error.to_string().contains("commit"), "{error}");
        assert!(error.to_string().contains("restart"), "{error}");
    }
    assert!(ledger.poisoned().is_some());
    assert_eq!(ledger.head().size, 10);
    assert_eq!(ledger.records(0).count(), 10, "reading goes on");
    drop(ledger);
    for seed in 0..50 {
        let found = bench.after_power_cut(seed);
        assert!((10..=11).contains(&found), "{found}");
    }
    let ledger = bench.open().unwrap();
    let size = ledger.head().size;
    fill(&ledger, size, 20);
}

/// SQLite drops the errors of its automatic checkpoints: ours must not be.
#[test]
fn a_failed_fsync_while_the_log_is_moved_ends_appending_too() {
    let bench = Bench::new();
    let ledger = bench.open().unwrap();
    let log = bench.live.path().join("ledger.db-wal");
    let mut n = 0;
    // One record a commit, until the log is about to be moved into the database.
    while ledger.poisoned().is_none() {
        assert!(n < 1_000, "the log was never moved");
        match ledger.append(record(n)).wait() {
            Ok(_) => n += 1,
            Err(error) => {
                assert!(matches!(error, LedgerError::Poisoned { .. }), "{error:?}");
                break;
            }
        }
        if n == 255 {
            assert!(fs::metadata(&log).unwrap().len() > 255 * 4_096);
            bench.disk.fail_syncs_of(&bench.live.path().join("ledger.db"));
        }
    }
    assert_eq!(n, 256);
    let cause = ledger.poisoned().unwrap();
    assert!(cause.contains("move the write-ahead log"), "{cause}");
    bench.disk.fail_syncs(false);
    drop(ledger);
    for seed in 0..20 {
        assert_eq!(bench.after_power_cut(seed), 256);
    }
}

/// What a killed process had written, and not synced, a restart sees. It must not show it as durable
/// before it is: here the power goes right after.
#[test]
fn what_a_restart_shows_survives_a_power_cut() {
    for records in [1, 5, 30] {
        let bench = Bench::new();
        let ledger = bench.open().unwrap();
        bench.disk.swallow_syncs(true);
        fill(&ledger, 0, records);
        bench.disk.kill();
        bench.disk.swallow_syncs(false);
        drop(ledger);

        let ledger = bench.open().unwrap();
        assert_eq!(ledger.head().size, records);
        for seed in 0..20 {
            assert_eq!(bench.after_power_cut(seed), records, "seed {seed}");
        }
        // And so does what is appended then: the log's name is durable, too.
        fill(&ledger, records, records + 3);
        for seed in 0..20 {
            assert_eq!(bench.after_power_cut(seed), records + 3, "seed {seed}");
        }
    }
}

/// The same with somebody who reads meanwhile, so that SQLite cannot move its log: not all of it, or
/// (when the log was empty as the reader began) nothing, and then SQLite does not even sync it.
#[test]
fn a_reader_neither_delays_a_restart_nor_weakens_it() {
    for log_is_empty in [false, true] {
        let bench = Bench::new();
        let mut ledger = bench.open().unwrap();
        fill(&ledger, 0, 1);
        if log_is_empty {
            drop(ledger);
            ledger = bench.open().unwrap();
        }
        let reader = tool(bench.live.path());
        reader.execute_batch("BEGIN").unwrap();
        let count =
            || reader.query_row("SELECT count(*) FROM record", [], |row| row.get::<_, i64>(0));
        assert_eq!(count(), Ok(1));
        bench.disk.swallow_syncs(true);
        fill(&ledger, 1, 8);
        bench.disk.kill();
        bench.disk.swallow_syncs(false);
        drop(ledger);

        let ledger = bench.open().unwrap();
        assert_eq!(count(), Ok(1), "the reader's state is an old one");
        assert_eq!(ledger.head().size, 8);
        for seed in 0..20 {
            assert_eq!(bench.after_power_cut(seed), 8, "seed {seed}, empty log: {log_is_empty}");
        }
        fill(&ledger, 8, 12);
    }
}

/// SQLite makes a log's name durable only for the connection that created the log.
#[test]
fn a_reader_that_came_first_does_not_weaken_what_is_acknowledged() {
    let bench = Bench::new();
    fill(&bench.open().unwrap(), 0, 3);
    let vfs = SqliteVfs::register(&bench.disk).unwrap();
    let path = bench.live.path().join("ledger.db");
    let reader =
        Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs.name()).unwrap();
    let count: i64 = reader.query_row("SELECT count(*) FROM record", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
    assert!(bench.live.path().join("ledger.db-wal").exists());
    let ledger = bench.open().unwrap();
    fill(&ledger, 3, 6);
    for seed in 0..40 {
        assert_eq!(bench.after_power_cut(seed), 6, "seed {seed}");
    }
}
