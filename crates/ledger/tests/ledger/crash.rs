//! Power cuts: invariant *acknowledged-is-kept*, over a disk that drops, tears and reorders what was
//! not synced. kill -9 alone could not show a missing fsync.

use std::{collections::VecDeque, fs, path::Path};

use estoppel_ledger::{Ledger, Pending, verify};
use estoppel_testkit::disk::FaultyDisk;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{Faulty, key, open, record, scratch};

const CRASHES: u64 = 200;

struct Recorded {
    disk: FaultyDisk,
    _live: tempfile::TempDir,
}

fn open_on(disk: &FaultyDisk, dir: &Path) -> Ledger {
    Ledger::open(dir, key(), Faulty::options(disk)).unwrap()
}

/// Appends in groups of several sizes, with several under way at once, over a clean restart and a
/// kill -9. Each acknowledgement leaves a mark on the disk's record: how many records it promises.
fn work(swallow_syncs: bool) -> Recorded {
    let live = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    disk.swallow_syncs(swallow_syncs);
    let mut random = StdRng::seed_from_u64(7);
    let mut next = 0;
    for (until, killed) in [(700, true), (800, false), (900, false)] {
        let ledger = open_on(&disk, live.path());
        assert_eq!(ledger.head().size, next);
        let mut waiting: VecDeque<Pending> = VecDeque::new();
        while next < until || !waiting.is_empty() {
            let room = if random.random_ratio(1, 20) { 16 } else { random.random_range(1..=2) };
            if next < until && waiting.len() < room {
                waiting.push_back(ledger.append(record(next)));
                next += 1;
            } else if let Some(pending) = waiting.pop_front() {
                disk.mark(pending.wait().unwrap().seq() + 1);
            }
        }
        if killed {
            // Only moving SQLite's log fills the database: the cuts below also fall into that.
            let moved = fs::metadata(live.path().join("ledger.db")).unwrap().len();
            assert!(moved > 50_000, "the log was not moved: the database has {moved} bytes");
            disk.kill();
        }
    }
    Recorded { disk, _live: live }
}

/// The first thing that is lost or wrong after a crash; `None` where all is well.
fn loss(recorded: &Recorded, seed: u64) -> Option<String> {
    let crashed = scratch();
    let at = StdRng::seed_from_u64(seed).random_range(0..=recorded.disk.operations());
    let marks = recorded.disk.crash(at, seed, crashed.path()).unwrap();
    let promised = marks.into_iter().max().unwrap_or(0);
    let ledger = match open(crashed.path()) {
        Ok(ledger) => ledger,
        Err(error) => return Some(format!("does not open: {error}")),
    };
    let mut found = 0;
    for read in ledger.records(0) {
        match read {
            Ok(read) if read.body == record(found).body && read.seq == found => found += 1,
            Ok(read) => return Some(format!("record {found} is {read:?}")),
            Err(error) => return Some(format!("cannot be read: {error}")),
        }
    }
    if found < promised {
        return Some(format!("{promised} records were acknowledged, {found} are there"));
    }
    // It goes on.
    if let Err(error) = ledger.append(record(found)).wait() {
        return Some(format!("takes no record: {error}"));
    }
    drop(ledger);
    let report = verify(crashed.path(), None).unwrap();
    (!report.is_intact()).then(|| format!("damaged: {:?}", report.damages))
}

#[test]
fn nothing_acknowledged_is_missing_after_200_power_cuts() {
    let recorded = work(false);
    for seed in 0..CRASHES {
        assert_eq!(loss(&recorded, seed), None, "seed {seed}");
    }
}

/// The test above can fail: without fsync it does.
#[test]
fn the_planted_bug_fsync_removed_is_found() {
    let recorded = work(true);
    let found = (0..20).filter(|seed| loss(&recorded, *seed).is_some()).count();
    assert!(found > 10, "only {found} of 20 power cuts lost something");
}
