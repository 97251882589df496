use std::{fs, io, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use estoppel_ledger::{Appended, Disk, Ledger, LedgerError, Options};
use estoppel_model::{NewRecord, RecordKind, Timestamp};
use estoppel_testkit::disk::{FaultyDisk, SqliteVfs};
use rusqlite::{Connection, types::Value};

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

pub(crate) fn open(dir: &Path) -> Result<Ledger, LedgerError> {
    Ledger::open(dir, key(), Options::default())
}

/// A ledger's way to a faulty disk.
#[derive(Debug)]
pub(crate) struct Faulty {
    disk: FaultyDisk,
    vfs: SqliteVfs,
}

impl Faulty {
    pub(crate) fn options(disk: &FaultyDisk) -> Options {
        let vfs = SqliteVfs::register(disk).unwrap();
        Options { disk: Some(Arc::new(Self { disk: disk.clone(), vfs })) }
    }
}

impl Disk for Faulty {
    fn vfs(&self) -> &str {
        self.vfs.name()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }
}

/// The `n`th record of a test; every third has a key.
pub(crate) fn record(n: u64) -> NewRecord {
    NewRecord {
        kind: RecordKind::new("test.note"),
        key: n.is_multiple_of(3).then(|| format!("note/{n}")),
        at: Timestamp::from_micros(1_770_000_000_000_000 + i64::try_from(n).unwrap()),
        body: format!(r#"{{"n":{n}}}"#),
    }
}

/// Appends the records `from..to`, waiting for all at the end.
pub(crate) fn fill(ledger: &Ledger, from: u64, to: u64) {
    let pending: Vec<_> = (from..to).map(|n| ledger.append(record(n))).collect();
    for (n, pending) in (from..to).zip(pending) {
        assert_eq!(pending.wait().unwrap(), Appended::New { seq: n });
    }
}

/// A closed ledger of `count` records.
pub(crate) fn closed(count: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()).unwrap(), 0, count);
    dir
}

/// A folder in memory where there is one: for files that only have to be looked at, since hundreds
/// of them would each wait for real syncs.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A copy of a ledger's folder, as an auditor takes it.
pub(crate) fn copy(dir: &Path) -> tempfile::TempDir {
    let copy = scratch();
    for name in ["ledger.db", "ledger.db-wal", "checkpoint"] {
        if dir.join(name).exists() {
            fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// The database, as somebody with a copy of `sqlite3` opens it.
pub(crate) fn tool(dir: &Path) -> Connection {
    Connection::open(dir.join("ledger.db")).unwrap()
}

/// Everything that the tables hold.
pub(crate) fn content(dir: &Path) -> rusqlite::Result<Vec<Vec<Value>>> {
    let connection = tool(dir);
    let mut rows = Vec::new();
    for table in ["record NOT INDEXED ORDER BY seq", "tile", "checkpoint", "identity"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}"))?;
        let columns = statement.column_count();
        let read = statement.query_map([], |row| (0..columns).map(|at| row.get(at)).collect())?;
        for row in read {
            rows.push(row?);
        }
    }
    Ok(rows)
}
