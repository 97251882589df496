//! Every byte of a small ledger is flipped: invariant *tamper-evident* (row K8).
//!
//! A flip is found, or it has no effect: then every value of every table is what it was, and the byte
//! lies where SQLite keeps nothing. What is in between fails.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use estoppel_ledger::{Damage, verify};
use rusqlite::types::Value;

use crate::support::{closed, content, copy, fill, open, scratch, tool};

/// The smallest that SQLite knows: so that a whole file is a few thousand bytes.
const PAGE_BYTES: usize = 512;

/// A closed ledger of small pages, all of it in its one file.
fn small(count: u64) -> tempfile::TempDir {
    let dir = closed(count);
    let convert = format!(
        "PRAGMA journal_mode = DELETE; PRAGMA page_size = {PAGE_BYTES}; VACUUM; \
         PRAGMA journal_mode = WAL;"
    );
    tool(dir.path()).execute_batch(&convert).unwrap();
    let copied = scratch();
    for name in ["ledger.db", "checkpoint"] {
        fs::copy(dir.path().join(name), copied.path().join(name)).unwrap();
    }
    copied
}

/// The other values that a value is with one bit flipped, of each of its bytes.
fn flips(value: &Value) -> Vec<Value> {
    let bytes = match value {
        Value::Integer(number) => {
            return (0..64).map(|bit| Value::Integer(number ^ (1 << bit))).collect();
        }
        Value::Text(text) => text.as_bytes(),
        Value::Blob(bytes) => bytes,
        Value::Null | Value::Real(_) => return Vec::new(),
    };
    let flip = |(at, bit): (usize, u8)| {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1_u8 << bit;
        Value::Blob(flipped)
    };
    (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))).map(flip).collect()
}

/// Flips each bit of each value of a table, through SQL; how many flips SQLite let pass.
fn flip_each_value(dir: &Path, table: &str, key: &str) -> usize {
    let path = dir.join("ledger.db");
    let file = fs::read(&path).unwrap();
    let before = content(dir).unwrap();
    let (columns, rows) = {
        let tool = tool(dir);
        let mut statement = tool.prepare(&format!("SELECT * FROM {table} ORDER BY {key}")).unwrap();
        let columns: Vec<String> = statement.column_names().map(String::from).collect();
        let read =
            statement.query_map([], |row| (0..columns.len()).map(|at| row.get(at)).collect());
        let rows: Vec<Vec<Value>> = read.unwrap().collect::<Result<_, _>>().unwrap();
        (columns, rows)
    };
    let mut passed = 0;
    for (place, row) in rows.iter().enumerate() {
        for (column, value) in columns.iter().zip(row) {
            let new = if matches!(value, Value::Text(_)) { "CAST(?1 AS TEXT)" } else { "?1" };
            let sql = format!(
                "UPDATE {table} SET {column} = {new} WHERE ({key}) = \
                 (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {place})"
            );
            for flipped in flips(value) {
                fs::write(&path, &file).unwrap();
                let what = format!("{table} {place} {column} to {flipped:?}");
                // A constraint may stand in the way: then nothing was changed.
                let changed = tool(dir).execute(&sql, [&flipped]).is_ok();
                let report = verify(dir, None).unwrap();
                assert_eq!(report.is_intact(), !changed, "{what}");
                passed += usize::from(changed);
                if changed && table == "record" && !["seq", "leaf"].contains(&column.as_str()) {
                    let named = report.damages.iter().any(|damage| match damage {
                        Damage::Record { seq } | Damage::Unreadable { seq, .. } => {
                            *seq == place as u64
                        }
                        _ => false,
                    });
                    assert!(named, "{what}: {:?}", report.damages);
                }
            }
        }
    }
    fs::write(&path, &file).unwrap();
    assert_eq!(content(dir).unwrap(), before);
    passed
}

#[test]
fn every_flipped_bit_of_every_record_is_found_and_named() {
    let dir = small(4);
    // Kind, body, salt, leaf and time of each record, and the keys of two.
    assert!(flip_each_value(dir.path(), "record", "seq") > 4 * 8 * (9 + 7 + 32 + 32 + 8));
}

#[test]
fn every_flipped_bit_of_what_stands_beside_the_records_is_found() {
    let dir = small(4);
    assert!(flip_each_value(dir.path(), "checkpoint", "id") > 8 * 100);
    assert_eq!(flip_each_value(dir.path(), "identity", "id"), 8 * 32);
    let dir = small(256);
    assert!(flip_each_value(dir.path(), "tile", "level, idx") > 8 * 32);
}

/// Flips bytes of a file in place, each by one bit and as a whole, and verifies. Those that nobody
/// found, with the flip, where everything reads as before.
fn flip_each_byte(dir: &Path, name: &str) -> BTreeSet<(usize, u8)> {
    let before = content(copy(dir).path()).unwrap();
    let path = dir.join(name);
    let bytes = fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let mut unnoticed = BTreeSet::new();
    for (at, byte) in bytes.iter().enumerate() {
        for flip in [1 << (at % 8), 0xff] {
            file.write_all_at(&[byte ^ flip], at as u64).unwrap();
            let what = format!("{name}: byte {at} by {flip:#04x}");
            let report = verify(dir, None).unwrap_or_else(|error| panic!("{what}: {error}"));
            if report.is_intact() {
                let after = content(copy(dir).path());
                assert_eq!(after.unwrap(), before, "{what}: changed, and not found");
                unnoticed.insert((at, flip));
            }
        }
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    assert!(verify(dir, None).unwrap().is_intact());
    unnoticed
}

/// Where a file in SQLite's format 3 keeps nothing that what is read depends on: some fields of the
/// header, the room between the cells and the pointers to them, the type of the NULL that stands for
/// the number of a row, and the numbers of the schema's rows (sections 1.3, 1.6 and 2.1 of the
/// format).
fn without_meaning(bytes: &[u8]) -> BTreeSet<usize> {
    let header = [
        // Which versions may write it.
        18..19,
        // Counts changes of the file, and of its tables: for caches.
        24..28,
        40..44,
        // The format of the schema, of which one byte is read, and a size of the cache.
        44..47,
        48..52,
        // The encoding, of which two bits are read.
        56..60,
        // How to vacuum by and by, in files that are.
        64..68,
        // Reserved; the count of changes at which the size was right, and the version that wrote it.
        72..100,
    ];
    let mut places: BTreeSet<usize> = header.into_iter().flatten().collect();
    let number = |at: usize| usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
    let behind_varint =
        |at: usize| at + 1 + bytes[at..].iter().take_while(|byte| **byte >= 0x80).count();
    for start in (0..bytes.len()).step_by(PAGE_BYTES) {
        let header = if start == 0 { 100 } else { start };
        let (is_table_leaf, pointers) = match bytes[header] {
            2 | 5 => (false, header + 12),
            10 => (false, header + 8),
            13 => (true, header + 8),
            kind => panic!("page at {start}: no page of a tree: {kind}"),
        };
        let cells = number(header + 3);
        places.extend(pointers + 2 * cells..start + number(header + 5));
        for cell in (0..cells).filter(|_| is_table_leaf) {
            // The payload's length, the row's number, the header's length, then the types.
            let row = behind_varint(start + number(pointers + 2 * cell));
            let first_type = behind_varint(behind_varint(row));
            // Only the schema has rows that do not begin with their number; nobody asks for theirs.
            let is_schema = bytes[first_type] != 0;
            places.extend(if is_schema {
                row..behind_varint(row)
            } else {
                first_type..first_type + 1
            });
        }
    }
    places
}

#[test]
fn every_flipped_byte_of_the_file_is_found_or_without_effect() {
    let dir = small(5);
    let bytes = fs::read(dir.path().join("ledger.db")).unwrap();
    let unnoticed = flip_each_byte(dir.path(), "ledger.db");
    let known = without_meaning(&bytes);
    let unknown: Vec<String> = unnoticed
        .iter()
        .filter(|(at, _)| !known.contains(at))
        .map(|(at, flip)| {
            let around = bytes[at.saturating_sub(12)..(at + 12).min(bytes.len())].escape_ascii();
            format!("byte {at} by {flip:#04x}, in \"{around}\"")
        })
        .collect();
    assert!(unknown.is_empty(), "not found, and not known to be without meaning: {unknown:#?}");
    // Five records, two keys, a checkpoint, a key and the schema: small pages are emptier than others.
    assert!(bytes.len() - known.len() > 1_500, "{} of {}", known.len(), bytes.len());
}

/// The log that SQLite has not moved yet: a bad frame ends it, and hides all that follow. Each
/// frame's checksum covers all of it, so nothing goes unnoticed.
#[test]
fn every_flipped_byte_of_the_log_of_a_live_ledger_is_found() {
    let dir = small(1);
    let ledger = open(dir.path()).unwrap();
    for n in 1..4 {
        fill(&ledger, n, n + 1);
    }
    let live = copy(dir.path());
    fs::write(live.path().join("checkpoint"), ledger.checkpoint().as_str()).unwrap();
    let log = fs::metadata(live.path().join("ledger.db-wal")).unwrap().len();
    assert!(log > 3 * PAGE_BYTES as u64);
    assert_eq!(flip_each_byte(live.path(), "ledger.db-wal"), BTreeSet::new());
}
