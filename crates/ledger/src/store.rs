//! The SQLite file: schema, settings, and every statement of the ledger.
//!
//! Write-ahead log with `synchronous=FULL`: a commit returns after the fsync of its frames.
//! Checkpoints of the write-ahead log are the ledger's own, since SQLite drops the errors of its
//! automatic ones, and a failed fsync must be seen (invariant *acknowledged-is-kept*).
//!
//! Of the tree, the leaves are in the records, and of the nodes above them only the *tiles* are
//! stored: the roots of complete subtrees of 256, 65,536, ... records. Every other node is hashed
//! from at most 256 of the next finer tiles, so a proof reads some hundred rows, and the tree adds
//! 0.4 % of rows.

use std::{collections::BTreeSet, ffi::CString, path::Path, time::Duration};

use estoppel_model::{NewRecord, Record, RecordKind, Timestamp};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::{
    Checkpoint, Damage, Hash, LedgerError,
    merkle::{Frontier, Subtrees},
};

/// The database's file in the ledger's folder.
pub(crate) const FILE: &str = "ledger.db";
/// `PRAGMA application_id`: "EstL".
pub(crate) const APPLICATION_ID: i64 = 0x4573_744c;
/// `PRAGMA user_version`: the format of the tables and leaves.
pub(crate) const FORMAT: i64 = 1;
/// Levels of the tree between two levels of tiles.
pub(crate) const TILE_LEVELS: u32 = 8;

/// The tables as they must stand in the file, by name.
pub(crate) const SCHEMA: [(&str, &str); 5] = [
    (
        "identity",
        "CREATE TABLE identity (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL) STRICT",
    ),
    (
        "record",
        "CREATE TABLE record (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT, \
         at_us INTEGER NOT NULL, body TEXT NOT NULL, salt BLOB NOT NULL, leaf BLOB NOT NULL) STRICT",
    ),
    ("record_key", "CREATE UNIQUE INDEX record_key ON record (key) WHERE key IS NOT NULL"),
    (
        "tile",
        "CREATE TABLE tile (level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, \
         PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID",
    ),
    (
        "checkpoint",
        "CREATE TABLE checkpoint (id INTEGER PRIMARY KEY CHECK (id = 1), note TEXT NOT NULL) STRICT",
    ),
];

/// How long a statement waits for a lock that somebody else's tool holds.
const BUSY: Duration = Duration::from_secs(5);
/// Most bytes of bodies that one read collects.
const READ_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A record as it is stored.
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) salt: Vec<u8>,
    pub(crate) leaf: Hash,
}

/// One connection.
pub(crate) struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the file for writing, and creates it when it is missing or empty.
    pub(crate) fn open(dir: &Path, vfs: Option<&str>) -> Result<Self, LedgerError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let store = Self::connect(&dir.join(FILE), flags, vfs)?;
        let connection = &store.connection;
        // Before the mode below: it writes to a new file, and then its folder entry is synced.
        connection.pragma_update(None, "synchronous", "FULL").map_err(open_error)?;
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(open_error)?;
        if mode != "wal" {
            return Err(LedgerError::Format {
                path: dir.join(FILE),
                known: FORMAT,
                found: format!("its disk allows journal mode `{mode}` only; use a local disk"),
            });
        }
        connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(open_error)?;
        Ok(store)
    }

    /// Opens the file for reading only.
    pub(crate) fn open_read_only(dir: &Path, vfs: Option<&str>) -> Result<Self, LedgerError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::connect(&dir.join(FILE), flags, vfs)
    }

    /// Opens a file that nobody writes, in a folder that cannot be written, without its log.
    pub(crate) fn open_immutable(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join(FILE);
        let escaped: String = path
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .map(|byte| match byte {
                b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
                byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
                byte => format!("%{byte:02x}"),
            })
            .collect();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::connect(Path::new(&format!("file:{escaped}?immutable=1")), flags, None)
    }

    fn connect(path: &Path, flags: OpenFlags, vfs: Option<&str>) -> Result<Self, LedgerError> {
        let connection = match vfs {
            None => Connection::open_with_flags(path, flags),
            Some(vfs) => CString::new(vfs)
                .map_err(rusqlite::Error::NulError)
                .and_then(|vfs| Connection::open_with_flags_and_vfs(path, flags, vfs.as_c_str())),
        }
        .map_err(open_error)?;
        connection.busy_timeout(BUSY).map_err(open_error)?;
        // A file from elsewhere may be hostile: no functions from its schema, cells checked.
        connection.pragma_update(None, "trusted_schema", false).map_err(open_error)?;
        connection.pragma_update(None, "cell_size_check", true).map_err(open_error)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self { connection })
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The file's application id and format; both 0 in a new file.
    pub(crate) fn format(&self) -> Result<(i64, i64), LedgerError> {
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get(0));
        let read = || Ok((pragma("application_id")?, pragma("user_version")?));
        read().map_err(LedgerError::database("read the ledger's format"))
    }

    /// Whether the file holds nothing at all.
    pub(crate) fn is_new(&self) -> Result<bool, LedgerError> {
        let tables: i64 = self
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(LedgerError::database("read the ledger's tables"))?;
        Ok(tables == 0 && self.format()? == (0, 0))
    }

    /// Makes the tables of an empty ledger, all or none.
    pub(crate) fn create(
        &self,
        key: &[u8; 32],
        checkpoint: &Checkpoint,
    ) -> Result<(), LedgerError> {
        let write = || {
            let transaction = self.connection.unchecked_transaction()?;
            for (_, sql) in SCHEMA {
                transaction.execute(sql, [])?;
            }
            transaction.execute("INSERT INTO identity (id, key) VALUES (1, ?1)", [key])?;
            let insert = "INSERT INTO checkpoint (id, note) VALUES (1, ?1)";
            transaction.execute(insert, [checkpoint.as_str()])?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
            transaction.commit()
        };
        write().map_err(LedgerError::database("create the ledger"))
    }

    /// The public key that the ledger was made with.
    pub(crate) fn key(&self) -> Result<Vec<u8>, LedgerError> {
        self.connection
            .query_row("SELECT key FROM identity WHERE id = 1", [], |row| row.get(0))
            .map_err(LedgerError::database("read the ledger's key"))
    }

    /// The stored checkpoint's text.
    pub(crate) fn checkpoint(&self) -> Result<String, LedgerError> {
        self.connection
            .query_row("SELECT note FROM checkpoint WHERE id = 1", [], |row| row.get(0))
            .map_err(LedgerError::database("read the ledger's checkpoint"))
    }

    /// The seq after the last record's.
    pub(crate) fn next_seq(&self) -> Result<u64, LedgerError> {
        let last: Option<i64> = self
            .connection
            .query_row("SELECT max(seq) FROM record", [], |row| row.get(0))
            .map_err(LedgerError::database("read the last record"))?;
        Ok(last.map_or(0, |last| last.cast_unsigned().saturating_add(1)))
    }

    /// Begins a transaction that writes; dropped, it leaves nothing.
    pub(crate) fn begin(&self) -> Result<Writing<'_>, LedgerError> {
        let behaviour = rusqlite::TransactionBehavior::Immediate;
        rusqlite::Transaction::new_unchecked(&self.connection, behaviour)
            .map(Writing)
            .map_err(LedgerError::database("begin to write"))
    }

    /// Returns the records from a seq on, each checked against its leaf, without a gap.
    pub(crate) fn read(
        &self,
        from: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<Record>, LedgerError> {
        let action = "read records";
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT seq, kind, key, at_us, body, salt, leaf FROM record \
                 WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT ?3",
            )
            .map_err(LedgerError::database(action))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement
            .query(params![from.cast_signed(), end.cast_signed(), limit])
            .map_err(LedgerError::database(action))?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut expected = from;
        while bytes < READ_BYTES_MAX
            && let Some(row) = rows.next().map_err(LedgerError::database(action))?
        {
            let stored = stored(row).map_err(LedgerError::database(action))?;
            let seq = stored.record.seq;
            if seq != expected {
                let damage = Damage::Missing { first: expected, last: seq - 1 };
                return Err(LedgerError::damaged(damage));
            }
            if crate::leaf::hash(&stored.record, &stored.salt) != stored.leaf {
                return Err(LedgerError::damaged(Damage::Record { seq }));
            }
            bytes += stored.record.body.len();
            expected += 1;
            records.push(stored.record);
        }
        if records.is_empty() && from < end && limit > 0 {
            return Err(LedgerError::damaged(Damage::Missing { first: from, last: end - 1 }));
        }
        Ok(records)
    }

    /// Returns a record with its salt, checked against its leaf.
    pub(crate) fn stored(&self, seq: u64) -> Result<Stored, LedgerError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT seq, kind, key, at_us, body, salt, leaf FROM record WHERE seq = ?1",
            )
            .and_then(|mut statement| statement.query_row([seq.cast_signed()], stored).optional())
            .map_err(LedgerError::database("read a record"))?;
        let damaged = |damage| Err(LedgerError::damaged(damage));
        match found {
            None => damaged(Damage::Missing { first: seq, last: seq }),
            Some(it) if crate::leaf::hash(&it.record, &it.salt) != it.leaf => {
                damaged(Damage::Record { seq })
            }
            Some(stored) => Ok(stored),
        }
    }

    /// Returns the leaves of the first `size` records, without a gap.
    pub(crate) fn leaves(&self, size: u64) -> Result<Vec<Hash>, LedgerError> {
        let read = || {
            self.connection
                .prepare_cached("SELECT seq, leaf FROM record WHERE seq < ?1 ORDER BY seq")?
                .query_map([size.cast_signed()], |row| {
                    Ok((row.get::<_, i64>(0)?.cast_unsigned(), Hash::from_bytes(row.get(1)?)))
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        let rows = read().map_err(LedgerError::database("read the leaves"))?;
        let mut leaves = Vec::with_capacity(rows.len());
        for (expected, (found, leaf)) in (0..size).zip(&rows) {
            if *found != expected {
                let damage = Damage::Missing { first: expected, last: expected };
                return Err(LedgerError::damaged(damage));
            }
            leaves.push(*leaf);
        }
        if (leaves.len() as u64) < size {
            let damage = Damage::Missing { first: leaves.len() as u64, last: size - 1 };
            return Err(LedgerError::damaged(damage));
        }
        Ok(leaves)
    }

    /// The places of those of the first `size` records that have one of these kinds, or a key that
    /// begins with `prefix`. Kinds come from the table, keys from their index.
    pub(crate) fn places(
        &self,
        size: u64,
        kinds: &[RecordKind],
        prefix: &str,
    ) -> Result<BTreeSet<u64>, LedgerError> {
        let action = "look for records";
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT seq, kind FROM record NOT INDEXED WHERE seq >= 0 AND seq < ?1 ORDER BY seq",
            )
            .map_err(LedgerError::database(action))?;
        let mut rows =
            statement.query([size.cast_signed()]).map_err(LedgerError::database(action))?;
        let (mut places, mut expected) = (BTreeSet::new(), 0);
        let missing = |first, last| Err(LedgerError::damaged(Damage::Missing { first, last }));
        while let Some(row) = rows.next().map_err(LedgerError::database(action))? {
            let seq = row.get::<_, i64>(0).map_err(LedgerError::database(action))?.cast_unsigned();
            if seq != expected {
                return missing(expected, seq.saturating_sub(1));
            }
            expected += 1;
            let kind = row.get_ref(1).map_err(LedgerError::database(action))?.as_bytes();
            if kind.is_ok_and(|kind| kinds.iter().any(|it| it.as_str().as_bytes() == kind)) {
                places.insert(seq);
            }
        }
        if expected != size {
            return missing(expected, size.saturating_sub(1));
        }
        drop(rows);
        places.extend(self.with_key(prefix).map_err(LedgerError::database(action))?);
        places.retain(|seq| *seq < size);
        Ok(places)
    }

    /// The places that the index of keys has under a prefix.
    fn with_key(&self, prefix: &str) -> rusqlite::Result<Vec<u64>> {
        // ASCII has no last byte that cannot be counted up.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let end = String::from_utf8_lossy(&end);
        self.connection
            .prepare_cached(
                "SELECT seq FROM record INDEXED BY record_key WHERE key >= ?1 AND key < ?2",
            )?
            .query_map([prefix, &*end], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))?
            .collect()
    }

    /// Syncs the write-ahead log, moves what it holds into the database, and syncs that. Returns
    /// whether all of it was moved: a reader may hold some back, and is not waited for.
    pub(crate) fn move_log(&self) -> Result<bool, LedgerError> {
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let (busy, frames, moved): (i64, i64, i64) = self
            .connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], read)
            .map_err(LedgerError::database("move the write-ahead log into the database"))?;
        Ok(busy == 0 && frames == moved)
    }

    /// Commits nothing new: the fsync makes durable what the write-ahead log held before.
    pub(crate) fn commit_nothing(&self) -> Result<(), LedgerError> {
        // Setting the format always writes its page; an UPDATE to the same value might not.
        self.connection
            .pragma_update(None, "user_version", FORMAT)
            .map_err(LedgerError::database("sync the write-ahead log"))
    }

    /// Leaves the write-ahead log as it is when the connection closes.
    pub(crate) fn keep_log_on_close(&self) {
        let config = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(config, true) {
            tracing::warn!(%error, "cannot keep SQLite from touching the write-ahead log on close");
        }
    }
}

/// A transaction that writes.
pub(crate) struct Writing<'s>(rusqlite::Transaction<'s>);

impl Writing<'_> {
    /// The record with this key: its seq, kind and body.
    pub(crate) fn find(&self, key: &str) -> Result<Option<(u64, String, String)>, LedgerError> {
        let find = || {
            self.0
                .prepare_cached("SELECT seq, kind, body FROM record WHERE key = ?1")?
                .query_row([key], |row| {
                    Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?, row.get(2)?))
                })
                .optional()
        };
        find().map_err(LedgerError::database("look for a key"))
    }

    /// Writes a record in the tree's next place, and the tiles that it completes.
    pub(crate) fn insert(
        &self,
        frontier: &mut Frontier,
        new: &NewRecord,
        salt: &[u8],
    ) -> Result<u64, LedgerError> {
        let NewRecord { kind, key, at, body } = new.clone();
        let record = Record { seq: frontier.size(), kind, key, at, body };
        let leaf = crate::leaf::hash(&record, salt);
        let mut tiles = Vec::new();
        frontier.push(leaf, |level, index, hash| {
            if level > 0 && level % TILE_LEVELS == 0 {
                tiles.push((level / TILE_LEVELS, index, hash));
            }
        });
        let write = || {
            self.0
                .prepare_cached(
                    "INSERT INTO record (seq, kind, key, at_us, body, salt, leaf) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    record.seq.cast_signed(),
                    record.kind.as_str(),
                    record.key,
                    record.at.as_micros(),
                    record.body,
                    salt,
                    leaf.as_bytes(),
                ])?;
            for (level, index, hash) in tiles {
                self.0
                    .prepare_cached("INSERT INTO tile (level, idx, hash) VALUES (?1, ?2, ?3)")?
                    .execute(params![level, index.cast_signed(), hash.as_bytes()])?;
            }
            Ok(())
        };
        write().map_err(LedgerError::database("write a record"))?;
        Ok(record.seq)
    }

    /// Commits with the checkpoint of what was written; returns after the fsync.
    pub(crate) fn commit(self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        let write = || {
            self.0
                .prepare_cached("UPDATE checkpoint SET note = ?1 WHERE id = 1")?
                .execute([checkpoint.as_str()])?;
            self.0.commit()
        };
        write().map_err(LedgerError::database("commit"))
    }
}

/// The tree as it is stored.
impl Subtrees for Store {
    type Error = LedgerError;

    fn subtree(&self, level: u32, index: u64) -> Result<Hash, LedgerError> {
        let tile = level / TILE_LEVELS;
        let below = level % TILE_LEVELS;
        let (first, count) = (index << below, 1_u64 << below);
        let action = "read the tree";
        let sql = if tile == 0 {
            "SELECT seq, leaf FROM record WHERE seq >= ?2 AND seq < ?3 AND ?1 = 0 ORDER BY seq"
        } else {
            "SELECT idx, hash FROM tile WHERE level = ?1 AND idx >= ?2 AND idx < ?3 ORDER BY idx"
        };
        let read = || {
            let bounds = params![tile, first.cast_signed(), (first + count).cast_signed()];
            self.connection
                .prepare_cached(sql)?
                .query_map(bounds, |row| {
                    Ok((row.get::<_, i64>(0)?.cast_unsigned(), Hash::from_bytes(row.get(1)?)))
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        let nodes = read().map_err(LedgerError::database(action))?;
        let mut frontier = Frontier::default();
        let mut expected = first..first + count;
        for (found, hash) in nodes {
            if expected.next() != Some(found) {
                break;
            }
            frontier.push(hash, |_, _, _| {});
        }
        if frontier.size() != count {
            let (level, index) = (tile, first + frontier.size());
            return Err(LedgerError::damaged(if tile == 0 {
                Damage::Missing { first: index, last: index }
            } else {
                Damage::Tile { level, index }
            }));
        }
        Ok(frontier.root())
    }
}

/// Reads the columns `seq, kind, key, at_us, body, salt, leaf`.
pub(crate) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let record = Record {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        kind: RecordKind::from_stored(row.get(1)?),
        key: row.get(2)?,
        at: Timestamp::from_micros(row.get(3)?),
        body: row.get(4)?,
    };
    Ok(Stored { record, salt: row.get(5)?, leaf: Hash::from_bytes(row.get(6)?) })
}

fn open_error(source: rusqlite::Error) -> LedgerError {
    LedgerError::database("open the ledger's database")(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_name_opens_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a b?c=%41#\u{fc}&mode=rwc");
        std::fs::create_dir(&dir).unwrap();
        let signer = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        drop(crate::Ledger::open(&dir, signer, crate::Options::default()).unwrap());
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        let store = Store::open_immutable(&dir).unwrap();
        assert_eq!(store.next_seq().unwrap(), 0);
        assert_eq!(store.format().unwrap(), (APPLICATION_ID, FORMAT));
        assert!(store.connection().execute("DELETE FROM checkpoint", []).is_err());
        assert_eq!(names(), before);
    }
}
