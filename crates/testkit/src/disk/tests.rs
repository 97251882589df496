use std::collections::BTreeSet;

use rusqlite::{Connection, OpenFlags};

use super::*;

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

    fn path(&self, name: &str) -> PathBuf {
        self.live.path().join(name)
    }

    /// A durable file.
    fn file(&self, name: &str, content: &[u8]) -> FaultyFile {
        let file = self.disk.create(&self.path(name)).unwrap();
        file.write_at(0, content).unwrap();
        file.sync().unwrap();
        self.disk.sync_folder(self.live.path()).unwrap();
        file
    }

    /// What a file holds after each of many crashes; `None` where it is gone.
    fn after(&self, name: &str) -> BTreeSet<Option<Vec<u8>>> {
        (0..400)
            .map(|seed| {
                let crashed = tempfile::tempdir().unwrap();
                self.disk.crash(self.disk.operations(), seed, crashed.path()).unwrap();
                fs::read(crashed.path().join(name)).ok()
            })
            .collect()
    }
}

fn contents(files: &[&[u8]]) -> BTreeSet<Option<Vec<u8>>> {
    files.iter().map(|file| Some(file.to_vec())).collect()
}

#[test]
fn what_was_synced_is_kept_and_what_was_not_may_be() {
    let bench = Bench::new();
    let file = bench.file("log", b"first");
    assert_eq!(bench.after("log"), contents(&[b"first"]));
    file.write_at(5, b" second").unwrap();
    assert_eq!(bench.after("log"), contents(&[b"first", b"first second"]));
    file.sync().unwrap();
    assert_eq!(bench.after("log"), contents(&[b"first second"]));
}

#[test]
fn a_write_tears_at_sectors_and_later_ones_may_overtake_it() {
    let bench = Bench::new();
    let file = bench.file("log", &[b'-'; 1_024]);
    file.write_at(0, &[b'a'; 1_024]).unwrap();
    file.write_at(0, &[b'b'; 1_024]).unwrap();
    let seen: BTreeSet<(u8, u8)> =
        bench.after("log").into_iter().flatten().map(|file| (file[0], file[512])).collect();
    let sectors = [b'-', b'a', b'b'];
    let all = sectors.iter().flat_map(|one| sectors.iter().map(|two| (*one, *two))).collect();
    assert_eq!(seen, all);
}

#[test]
fn a_hole_that_a_lost_write_leaves_holds_zeros_or_garbage() {
    let bench = Bench::new();
    let file = bench.file("log", b"");
    file.write_at(0, &[1; 512]).unwrap();
    file.write_at(512, &[2; 512]).unwrap();
    let holes: Vec<Vec<u8>> = bench
        .after("log")
        .into_iter()
        .flatten()
        .filter(|file| file.len() == 1_024 && file[..512] != [1; 512])
        .collect();
    assert!(holes.iter().any(|file| file[..512] == [0; 512]));
    assert!(holes.iter().any(|file| file[..512] != [0; 512]));
}

#[test]
fn a_name_is_durable_with_its_folder_only() {
    let bench = Bench::new();
    let file = bench.disk.create(&bench.path("new")).unwrap();
    file.write_at(0, b"content").unwrap();
    file.sync().unwrap();
    assert_eq!(bench.after("new"), [None, Some(b"content".to_vec())].into());
    bench.disk.sync_folder(bench.live.path()).unwrap();
    assert_eq!(bench.after("new"), contents(&[b"content"]));

    bench.file("next", b"other");
    bench.disk.rename(&bench.path("next"), &bench.path("new")).unwrap();
    assert_eq!(bench.after("new"), contents(&[b"content", b"other"]));
    bench.disk.remove(&bench.path("new")).unwrap();
    bench.disk.sync_folder(bench.live.path()).unwrap();
    assert_eq!(bench.after("new"), [None].into());
    assert_eq!(bench.after("next"), [None].into());
}

#[test]
fn a_truncation_is_lost_or_kept_like_a_write() {
    let bench = Bench::new();
    let file = bench.file("log", b"0123456789");
    file.truncate(4).unwrap();
    assert_eq!(bench.after("log"), contents(&[b"0123", b"0123456789"]));
    file.sync().unwrap();
    assert_eq!(bench.after("log"), contents(&[b"0123"]));
}

#[test]
fn a_failed_sync_loses_what_the_next_one_claims() {
    let bench = Bench::new();
    let file = bench.file("log", b"first");
    file.write_at(5, b" second").unwrap();
    bench.disk.fail_syncs(true);
    file.sync().unwrap_err();
    bench.disk.fail_syncs(false);
    file.sync().unwrap();
    assert_eq!(bench.after("log"), contents(&[b"first", b"first second"]));
}

#[test]
fn swallowed_syncs_sync_nothing() {
    let bench = Bench::new();
    let file = bench.file("log", b"first");
    bench.disk.swallow_syncs(true);
    file.write_at(5, b" second").unwrap();
    file.sync().unwrap();
    assert_eq!(bench.after("log"), contents(&[b"first", b"first second"]));
}

#[test]
fn a_full_disk_takes_nothing_until_there_is_room() {
    let bench = Bench::new();
    let file = bench.file("log", b"1234");
    bench.disk.set_capacity(Some(6));
    assert_eq!(file.write_at(4, b"567").unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.truncate(7).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(0, b"abcdef").unwrap();
    bench.disk.set_capacity(None);
    file.write_at(6, b"g").unwrap();
    assert_eq!(bench.disk.used_bytes(), 7);
    assert_eq!(fs::read(bench.path("log")).unwrap(), b"abcdefg");
}

#[test]
fn a_killed_owner_writes_no_more_and_its_writes_stay_unsynced() {
    let bench = Bench::new();
    let file = bench.file("log", b"first");
    file.write_at(5, b" second").unwrap();
    bench.disk.kill();
    file.write_at(0, b"X").unwrap_err();
    file.sync().unwrap_err();
    assert_eq!(fs::read(bench.path("log")).unwrap(), b"first second");
    assert_eq!(bench.after("log"), contents(&[b"first", b"first second"]));
    let next = bench.disk.open(&bench.path("log")).unwrap();
    next.sync().unwrap();
    assert_eq!(bench.after("log"), contents(&[b"first second"]));
}

#[test]
fn a_crash_at_an_operation_knows_nothing_of_later_ones() {
    let bench = Bench::new();
    let file = bench.file("log", b"first");
    bench.disk.mark(1);
    let at = bench.disk.operations();
    file.write_at(0, b"later").unwrap();
    bench.disk.mark(2);
    let crashed = tempfile::tempdir().unwrap();
    assert_eq!(bench.disk.crash(at, 0, crashed.path()).unwrap(), [1]);
    assert_eq!(fs::read(crashed.path().join("log")).unwrap(), b"first");
}

#[test]
fn what_a_folder_held_before_is_durable() {
    let live = tempfile::tempdir().unwrap();
    fs::write(live.path().join("old"), b"content").unwrap();
    let disk = FaultyDisk::over(live.path()).unwrap();
    let bench = Bench { live, disk };
    assert_eq!(bench.after("old"), contents(&[b"content"]));
}

/// Whether some crash loses one of twenty commits that SQLite acknowledged.
fn sqlite_loses(journal_mode: &str, synchronous: &str, swallow_syncs: bool) -> bool {
    let bench = Bench::new();
    let vfs = SqliteVfs::register(&bench.disk).unwrap();
    let path = bench.path("db");
    let connection =
        Connection::open_with_flags_and_vfs(&path, OpenFlags::default(), vfs.name()).unwrap();
    connection.pragma_update(None, "synchronous", synchronous).unwrap();
    connection.pragma_update(None, "journal_mode", journal_mode).unwrap();
    connection.execute_batch("CREATE TABLE t (x)").unwrap();
    bench.disk.swallow_syncs(swallow_syncs);
    for x in 0_u32..20 {
        connection.execute("INSERT INTO t VALUES (?1)", [x]).unwrap();
        bench.disk.mark(x.into());
    }
    (0..60).any(|seed| {
        let crashed = tempfile::tempdir().unwrap();
        let marks = bench.disk.crash(bench.disk.operations(), seed, crashed.path()).unwrap();
        let rows = Connection::open(crashed.path().join("db")).and_then(|connection| {
            connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
        });
        rows.ok() != i64::try_from(marks.len()).ok()
    })
}

/// What SQLite's documentation says of its settings is what the shim shows: so it sees what SQLite
/// does to the disk, and loses what a disk may lose.
#[test]
fn sqlite_loses_commits_exactly_where_its_documentation_says_so() {
    let check = |mode, synchronous, swallow, expect| {
        let found = sqlite_loses(mode, synchronous, swallow);
        assert_eq!(found, expect, "{mode}, {synchronous}, syncs swallowed: {swallow}");
    };
    check("WAL", "FULL", false, false);
    check("WAL", "FULL", true, true);
    check("WAL", "NORMAL", false, true);
    check("DELETE", "EXTRA", false, false);
    check("DELETE", "EXTRA", true, true);
    // The journal's deletion, which commits, is not synced: it may come back and undo.
    check("DELETE", "FULL", false, true);
}
