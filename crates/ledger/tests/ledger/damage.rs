//! Hostile hands and rotten disks: invariant *tamper-evident* (row K8).

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{Arc, LazyLock},
};

use ed25519_dalek::SigningKey;
use estoppel_ledger::{
    Checkpoint, CheckpointError, Damage, Ledger, LedgerError, Options, Truncation, Which, verify,
};
use proptest::prelude::*;
use rusqlite::{Connection, types::Value};

use crate::support::{closed, copy, fill, open, record, scratch, tool};

/// A ledger with two full tiles and a part of a third, and its last checkpoint.
static LEDGER: LazyLock<(tempfile::TempDir, Arc<Checkpoint>)> = LazyLock::new(|| {
    let dir = closed(600);
    let checkpoint = open(dir.path()).unwrap().checkpoint();
    (dir, checkpoint)
});

fn tampered(sql: &str) -> tempfile::TempDir {
    let dir = copy(LEDGER.0.path());
    tool(dir.path()).execute_batch(sql).unwrap();
    dir
}

fn damages(dir: &Path, given: Option<&Checkpoint>) -> Vec<Damage> {
    let report = verify(dir, given).unwrap();
    assert_eq!(report.damages.len() as u64, report.damages_found);
    assert_eq!(report.is_intact(), report.damages.is_empty());
    report.damages
}

/// Moves the records from a place on by one, as somebody does who hides a gap.
const CLOSE_GAP_AT_300: &str = "UPDATE record SET seq = -seq WHERE seq > 300; \
     UPDATE record SET seq = -seq - 1 WHERE seq < 0;";
const COLUMNS: &str = "kind, NULL, at_us, body, salt, leaf";

#[test]
fn an_untouched_ledger_is_intact() {
    let (dir, checkpoint) = &*LEDGER;
    let report = verify(dir.path(), None).unwrap();
    assert!(report.is_intact(), "{:?}", report.damages);
    assert_eq!((report.records, report.head), (600, Some(checkpoint.head())));
    assert_eq!(report.truncation, Truncation::CannotBeSeen);
    let report = verify(dir.path(), Some(checkpoint)).unwrap();
    assert!(report.is_intact());
    assert_eq!(report.truncation, Truncation::NotBefore { size: 600 });
    assert_eq!(checkpoint.verify(&report.key.unwrap()), Ok(()));
}

#[test]
fn each_damage_is_named() {
    use Damage::{Copied, Foreign, Format, Key, Missing, Moved, Root, Schema, Size, Tile};
    use Which::{Database, File};
    let check = |sql: &str, expect: &[Damage]| {
        let dir = tampered(sql);
        assert_eq!(damages(dir.path(), None), expect, "{sql}");
    };
    let record = |seq| Damage::Record { seq };
    let cut = |which, found| Size { which, expected: 600, found };
    let root = |which| Root { which, size: 600 };

    check("UPDATE record SET body = '{\"n\":8}' WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET body = body || ' ' WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET kind = 'test.nota' WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET key = 'other' WHERE seq = 9", &[record(9)]);
    check("UPDATE record SET key = NULL WHERE seq = 9", &[record(9)]);
    check("UPDATE record SET key = '' WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET at_us = at_us + 1 WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET salt = zeroblob(32) WHERE seq = 7", &[record(7)]);
    check("UPDATE record SET body = '[]' WHERE seq IN (7, 400)", &[record(7), record(400)]);
    // The leaf alone: the tree shows it as well.
    check(
        "UPDATE record SET leaf = zeroblob(32) WHERE seq = 7",
        &[record(7), Tile { level: 1, index: 0 }, root(Database), root(File)],
    );
    check("DELETE FROM record WHERE seq = 300", &[Missing { first: 300, last: 300 }]);
    check("DELETE FROM record WHERE seq < 2", &[Missing { first: 0, last: 1 }]);
    check("DELETE FROM record WHERE seq = 599", &[cut(Database, 599), cut(File, 599)]);
    check(
        "DELETE FROM record",
        &[Tile { level: 1, index: 0 }, Tile { level: 1, index: 1 }, cut(Database, 0), cut(File, 0)],
    );
    check(
        "UPDATE record SET seq = -1 WHERE seq = 7; UPDATE record SET seq = 7 WHERE seq = 400; \
         UPDATE record SET seq = 400 WHERE seq = -1",
        &[
            Moved { at: 7, belongs: 400 },
            Moved { at: 400, belongs: 7 },
            Tile { level: 1, index: 0 },
            Tile { level: 1, index: 1 },
            root(Database),
            root(File),
        ],
    );
    check(
        "UPDATE record SET seq = 700 WHERE seq = 300",
        &[
            Missing { first: 300, last: 300 },
            Missing { first: 600, last: 699 },
            Moved { at: 700, belongs: 300 },
            Size { which: Database, expected: 600, found: 701 },
        ],
    );
    check(
        &format!("INSERT INTO record SELECT 600, {COLUMNS} FROM record WHERE seq = 7"),
        &[Copied { at: 600, of: 7 }, Size { which: Database, expected: 600, found: 601 }],
    );
    check(
        &format!(
            "DELETE FROM record WHERE seq = 400; \
             INSERT INTO record SELECT 400, {COLUMNS} FROM record WHERE seq = 7"
        ),
        &[Copied { at: 400, of: 7 }, Tile { level: 1, index: 1 }, root(Database), root(File)],
    );
    check(
        "UPDATE record SET seq = -5 WHERE seq = 599",
        &[Foreign { place: -5 }, cut(Database, 599), cut(File, 599)],
    );
    check("UPDATE tile SET hash = zeroblob(32) WHERE idx = 1", &[Tile { level: 1, index: 1 }]);
    check("UPDATE tile SET hash = x'00' WHERE idx = 1", &[Tile { level: 1, index: 1 }]);
    check("DELETE FROM tile WHERE idx = 0", &[Tile { level: 1, index: 0 }]);
    check("INSERT INTO tile VALUES (7, 9, zeroblob(32))", &[Tile { level: 7, index: 9 }]);
    check("UPDATE identity SET key = x'00'", &[Key]);
    check("DROP INDEX record_key", &[Schema { name: "record_key".into() }]);
    check(
        "CREATE TRIGGER quiet BEFORE INSERT ON record BEGIN SELECT RAISE(IGNORE); END",
        &[Schema { name: "`quiet`".into() }],
    );
    check("PRAGMA user_version = 2", &[Format { application: 0x4573_744c, format: 2 }]);
}

#[test]
fn a_gap_that_was_closed_is_named_record_by_record() {
    let dir = tampered(&format!("DELETE FROM record WHERE seq = 300; {CLOSE_GAP_AT_300}"));
    let found = damages(dir.path(), None);
    for (damage, at) in found.iter().zip(300..330) {
        assert_eq!(*damage, Damage::Moved { at, belongs: at + 1 });
    }
    let size = |which| Damage::Size { which, expected: 600, found: 599 };
    assert!(found.contains(&size(Which::Database)) && found.contains(&size(Which::File)));
}

#[test]
fn a_record_that_is_no_record_is_named() {
    for (sql, seq) in [
        ("UPDATE record SET leaf = x'00' WHERE seq = 7", 7),
        ("UPDATE record SET body = CAST(x'ff' AS TEXT) WHERE seq = 8", 8),
        ("UPDATE record SET kind = CAST(x'c328' AS TEXT) WHERE seq = 9", 9),
    ] {
        let found = damages(tampered(sql).path(), None);
        assert!(
            matches!(found[..], [Damage::Unreadable { seq: at, .. }] if at == seq),
            "{found:?}"
        );
    }
    let found = damages(tampered("UPDATE record SET salt = x'' WHERE seq = 7").path(), None);
    assert_eq!(found, [Damage::Record { seq: 7 }]);
}

#[test]
fn a_checkpoint_that_is_damaged_missing_or_of_another_key_is_named() {
    let of = |which| move |damage: &Damage| matches!(damage, Damage::Checkpoint { which: found, .. } if *found == which);
    let found = damages(tampered("UPDATE checkpoint SET note = 'gone'").path(), None);
    assert!(found.len() == 1 && found.iter().all(of(Which::Database)), "{found:?}");
    let found = damages(tampered("DELETE FROM checkpoint").path(), None);
    assert!(matches!(found[..], [Damage::Database { .. }]), "{found:?}");

    let dir = copy(LEDGER.0.path());
    let file = dir.path().join("checkpoint");
    let note = fs::read(&file).unwrap();
    for at in 0..note.len() {
        let mut changed = note.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&file, &changed).unwrap();
        let found = damages(dir.path(), None);
        assert!(found.len() == 1 && found.iter().all(of(Which::File)), "byte {at}: {found:?}");
    }
    // Nothing promises the file; without it there is less to compare with.
    fs::remove_file(&file).unwrap();
    assert!(damages(dir.path(), None).is_empty());

    let other = tempfile::tempdir().unwrap();
    let signer = SigningKey::from_bytes(&[9; 32]);
    let other = Ledger::open(other.path(), signer, Options::default()).unwrap();
    let report = verify(dir.path(), Some(&other.checkpoint())).unwrap();
    let (which, reason) = (Which::Given, CheckpointError::OtherOrigin);
    assert_eq!(report.damages, [Damage::Checkpoint { which, reason }]);
    assert_eq!(report.truncation, Truncation::Contradicted);
}

/// Whoever has the key can truncate and rewrite, and sign anew: only a checkpoint that was kept
/// elsewhere shows it, and without one the report says so.
#[test]
fn only_a_checkpoint_from_outside_shows_what_the_keys_owner_did() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    fill(&ledger, 0, 20);
    let backup = copy(dir.path());
    let mut checkpoints = vec![ledger.checkpoint()];
    for n in 20..30 {
        fill(&ledger, n, n + 1);
        checkpoints.push(ledger.checkpoint());
    }
    drop(ledger);
    // Truncated to 20 records, with everything in the folder as it once was.
    let report = verify(backup.path(), None).unwrap();
    assert!(report.is_intact());
    assert_eq!(report.truncation, Truncation::CannotBeSeen);
    for checkpoint in &checkpoints {
        let report = verify(backup.path(), Some(checkpoint)).unwrap();
        let expected = checkpoint.head().size;
        if expected == 20 {
            assert!(report.is_intact());
            assert_eq!(report.truncation, Truncation::NotBefore { size: 20 });
        } else {
            let which = Which::Given;
            assert_eq!(report.damages, [Damage::Size { which, expected, found: 20 }]);
            assert_eq!(report.truncation, Truncation::Contradicted);
        }
    }
    // Gone on from there with another history, as long as the first.
    fill(&open(backup.path()).unwrap(), 20, 30);
    assert!(verify(backup.path(), None).unwrap().is_intact());
    for checkpoint in &checkpoints[1..] {
        let report = verify(backup.path(), Some(checkpoint)).unwrap();
        let (which, size) = (Which::Given, checkpoint.head().size);
        assert_eq!(report.damages, [Damage::Root { which, size }]);
    }
}

/// On a live folder, while it is written.
#[test]
fn a_live_ledger_verifies_as_intact() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..600 {
                fill(&ledger, n, n + 1);
            }
        });
        let mut last = 0;
        while !writer.is_finished() {
            let checkpoint = ledger.checkpoint();
            let report = verify(dir.path(), Some(&checkpoint)).unwrap();
            assert!(report.is_intact(), "{:?}", report.damages);
            assert!(report.records >= last.max(checkpoint.head().size));
            last = report.records;
        }
    });
    drop(ledger);
    assert_eq!(verify(dir.path(), None).unwrap().records, 600);
}

#[test]
fn what_is_no_ledger_is_an_error_and_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    let error = verify(dir.path(), None).unwrap_err();
    assert!(matches!(error, LedgerError::File { .. }), "{error}");
    assert!(error.to_string().contains("ledger.db"), "{error}");
    fs::write(dir.path().join("ledger.db"), "not a database\n".repeat(500)).unwrap();
    let found = damages(dir.path(), None);
    assert!(matches!(found[..], [Damage::Database { .. }]), "{found:?}");
}

/// Read-only media: SQLite cannot have the files that it wants beside a database.
#[test]
fn a_copy_in_a_folder_that_cannot_be_written_verifies() {
    let dir = copy(LEDGER.0.path());
    // Root may write anywhere, but not through a link to nowhere.
    symlink("/nowhere/shm", dir.path().join("ledger.db-shm")).unwrap();
    let report = verify(dir.path(), Some(&LEDGER.1)).unwrap();
    assert!(report.is_intact(), "{:?}", report.damages);
    assert_eq!(report.records, 600);
    // With a log that must be read, too, it cannot be done, and is not taken for damage.
    fs::write(dir.path().join("ledger.db-wal"), "log").unwrap();
    let error = verify(dir.path(), None).unwrap_err();
    assert!(matches!(error, LedgerError::Database { .. }), "{error}");
}

#[test]
fn a_file_that_was_cut_anywhere_is_found() {
    let dir = closed(12);
    let bytes = fs::read(dir.path().join("ledger.db")).unwrap();
    for length in (0..bytes.len()).step_by(509) {
        let cut = copy(dir.path());
        fs::write(cut.path().join("ledger.db"), &bytes[..length]).unwrap();
        assert!(!damages(cut.path(), None).is_empty(), "cut to {length} bytes");
    }
}

/// What somebody with the `sqlite3` tool may do.
#[derive(Debug, Clone)]
enum Tampering {
    Flip { table: usize, row: usize, column: usize, byte: usize, bit: u8 },
    Delete { seq: u64 },
    Swap { one: u64, two: u64 },
    Copy { from: u64, to: u64 },
    Shift { from: u64 },
    Forget { column: usize, seq: u64 },
}

const RECORDS: u64 = 270;

fn tampering() -> impl Strategy<Value = Tampering> {
    let seq = 0..RECORDS;
    prop_oneof![
        4 => (0..4_usize, 0..1_000_usize, 0..7_usize, 0..200_usize, 0..8_u8).prop_map(
            |(table, row, column, byte, bit)| Tampering::Flip { table, row, column, byte, bit }
        ),
        1 => seq.clone().prop_map(|seq| Tampering::Delete { seq }),
        1 => (seq.clone(), seq.clone()).prop_map(|(one, two)| Tampering::Swap { one, two }),
        1 => (seq.clone(), 0..RECORDS + 2).prop_map(|(from, to)| Tampering::Copy { from, to }),
        1 => seq.clone().prop_map(|from| Tampering::Shift { from }),
        1 => (1..7_usize, seq).prop_map(|(column, seq)| Tampering::Forget { column, seq }),
    ]
}

impl Tampering {
    /// Does it, as far as SQLite lets it.
    fn apply(&self, tool: &Connection) {
        let columns = ["seq", "kind", "key", "at_us", "body", "salt", "leaf"];
        let result = match self {
            Self::Flip { table, row, column, byte, bit } => {
                flip(tool, *table, *row, *column, *byte, *bit)
            }
            Self::Delete { seq } => {
                tool.execute_batch(&format!("DELETE FROM record WHERE seq = {seq}"))
            }
            Self::Swap { one, two } => tool.execute_batch(&format!(
                "UPDATE record SET seq = -1 WHERE seq = {one}; \
                 UPDATE record SET seq = {one} WHERE seq = {two}; \
                 UPDATE record SET seq = {two} WHERE seq = -1"
            )),
            Self::Copy { from, to } => tool.execute_batch(&format!(
                "INSERT OR REPLACE INTO record \
                 SELECT {to}, kind, NULL, at_us, body, salt, leaf FROM record WHERE seq = {from}"
            )),
            Self::Shift { from } => tool.execute_batch(&format!(
                "UPDATE record SET seq = -seq - 2 WHERE seq >= {from}; \
                 UPDATE record SET seq = -seq - 1 WHERE seq < 0"
            )),
            Self::Forget { column, seq } => {
                let column = columns[*column];
                tool.execute_batch(&format!("UPDATE record SET {column} = NULL WHERE seq = {seq}"))
            }
        };
        // A constraint stands in the way: then nothing, or a part, was done.
        drop(result);
    }
}

/// Flips a bit of any value of any table.
fn flip(
    tool: &Connection,
    table: usize,
    row: usize,
    column: usize,
    byte: usize,
    bit: u8,
) -> rusqlite::Result<()> {
    let table = ["record", "tile", "checkpoint", "identity"][table];
    let count: u32 =
        tool.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
    let names: Vec<String> = tool
        .prepare(&format!("SELECT * FROM {table}"))?
        .column_names()
        .map(str::to_owned)
        .collect();
    let column = &names[column % names.len()];
    let order = &names[0];
    let nth = row % usize::try_from(count.max(1)).unwrap();
    let value: Value = tool.query_row(
        &format!("SELECT {column} FROM {table} ORDER BY {order} LIMIT 1 OFFSET {nth}"),
        [],
        |row| row.get(0),
    )?;
    let flip_in = |mut bytes: Vec<u8>| {
        let at = byte % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
        bytes
    };
    let changed = match value {
        Value::Integer(number) => Value::Integer(number ^ (1 << (byte % 62))),
        Value::Blob(bytes) => Value::Blob(flip_in(bytes)),
        Value::Text(text) => {
            // Through a blob: the flipped text may be no UTF-8.
            let bytes = flip_in(text.into_bytes());
            let sql = format!(
                "UPDATE {table} SET {column} = CAST(?1 AS TEXT) WHERE {order} = \
                 (SELECT {order} FROM {table} ORDER BY {order} LIMIT 1 OFFSET {nth})"
            );
            return tool.execute(&sql, [bytes]).map(drop);
        }
        Value::Null => Value::Text("x".into()),
        Value::Real(_) => return Ok(()),
    };
    let sql = format!(
        "UPDATE {table} SET {column} = ?1 WHERE {order} = \
         (SELECT {order} FROM {table} ORDER BY {order} LIMIT 1 OFFSET {nth})"
    );
    tool.execute(&sql, [changed]).map(drop)
}

static SMALL: LazyLock<(tempfile::TempDir, String)> = LazyLock::new(|| {
    let dir = closed(RECORDS);
    let content = raw(dir.path());
    (dir, content)
});

/// Everything that the tables hold, whether it can be read as its type or not.
fn raw(dir: &Path) -> String {
    let tool = tool(dir);
    [
        "SELECT group_concat(hex(seq) || ' ' || hex(kind) || (key IS NULL) || hex(key) || at_us \
         || hex(body) || ' ' || hex(salt) || ' ' || hex(leaf)) \
         FROM (SELECT * FROM record NOT INDEXED ORDER BY seq)",
        "SELECT group_concat(level || ' ' || idx || hex(hash)) FROM tile",
        "SELECT group_concat(id || hex(note)) FROM checkpoint",
        "SELECT group_concat(id || hex(key)) FROM identity",
    ]
    .map(|sql| tool.query_row(sql, [], |row| row.get::<_, Option<String>>(0)).unwrap())
    .map(Option::unwrap_or_default)
    .join("|")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_changed_through_sql_is_found(
        tamperings in prop::collection::vec(tampering(), 1..4)
    ) {
        let (dir, before) = &*SMALL;
        let copied = copy(dir.path());
        {
            let tool = tool(copied.path());
            for tampering in &tamperings {
                tampering.apply(&tool);
            }
        }
        let report = verify(copied.path(), None).unwrap();
        prop_assert_eq!(report.is_intact(), raw(copied.path()) == *before);
    }

    #[test]
    fn every_truncation_behind_a_given_checkpoint_is_found(kept in 0..RECORDS, signed in 1..RECORDS) {
        let dir = scratch();
        let given = checkpoint_at(signed);
        let (template, _) = &*GROWN;
        fs::copy(template.path().join(format!("{kept}.db")), dir.path().join("ledger.db")).unwrap();
        let report = verify(dir.path(), Some(&given)).unwrap();
        prop_assert_eq!(report.is_intact(), kept >= signed);
        if kept < signed {
            let which = Which::Given;
            prop_assert_eq!(&report.damages, &[Damage::Size { which, expected: signed, found: kept }]);
            prop_assert_eq!(report.truncation, Truncation::Contradicted);
        }
    }
}

/// One history, as its owner could cut it anywhere: the database after each record.
static GROWN: LazyLock<(tempfile::TempDir, Vec<Arc<Checkpoint>>)> = LazyLock::new(|| {
    let (live, kept) = (scratch(), scratch());
    let mut checkpoints = Vec::new();
    for size in 0..RECORDS {
        let ledger = open(live.path()).unwrap();
        if size > 0 {
            ledger.append(record(size - 1)).wait().unwrap();
        }
        checkpoints.push(ledger.checkpoint());
        drop(ledger);
        fs::copy(live.path().join("ledger.db"), kept.path().join(format!("{size}.db"))).unwrap();
    }
    assert_eq!(checkpoints[0].verify(&open(live.path()).unwrap().verifier_key()), Ok(()));
    (kept, checkpoints)
});

fn checkpoint_at(size: u64) -> Arc<Checkpoint> {
    Arc::clone(&GROWN.1[usize::try_from(size).unwrap()])
}
