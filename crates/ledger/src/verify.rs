//! Verification of a stored ledger, live or copied: reads everything, changes nothing.
//!
//! Each record is hashed and compared with its leaf, the leaves are hashed up to the stored tiles
//! and to the roots of the checkpoints: that in the database, that beside it, and one that was kept
//! elsewhere. SQLite's own check covers what no hash does (indexes, free space). Whoever can write
//! the folder and has the key can truncate and sign anew, so only the checkpoint from outside shows
//! truncation; the report says whether there was one.
//!
//! It goes on after damage, as far as that can be done, and never panics over a file's content.
//! On a copy with a write-ahead log, SQLite may leave its `-shm` file behind. A folder that is
//! copied while it is written may hold a torn copy: verify the live one, or stop first.

use std::{collections::BTreeMap, fs, path::Path};

use ed25519_dalek::VerifyingKey;
use estoppel_model::text::quoted;
use rusqlite::{Connection, ErrorCode};
use serde::{Serialize, Serializer};

use crate::{
    Checkpoint, CheckpointError, Damage, Hash, Head, LedgerError, NoteError, VerifierKey, Which,
    checkpoint::verifier_key,
    leaf,
    merkle::Frontier,
    store::{self, Store, Stored, TILE_LEVELS},
    writer::CHECKPOINT_FILE,
};

/// Most damages that a report lists; all are counted.
const LISTED_MAX: usize = 1_000;
/// Most places that a misplaced record is tried at.
const PLACES_MAX: usize = 1_000;
/// Most records that are looked for elsewhere.
const MISPLACED_MAX: usize = 100;

/// What [`verify`] found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// The key that signs the ledger's checkpoints; absent where it cannot be read.
    #[serde(serialize_with = "as_text")]
    pub key: Option<VerifierKey>,
    /// How many records are stored.
    pub records: u64,
    /// The tree over all of them as recomputed; absent where some are missing.
    pub head: Option<Head>,
    /// Whether records could be missing at the end.
    pub truncation: Truncation,
    /// What is wrong, at most 1,000 things.
    pub damages: Vec<Damage>,
    /// How many things are wrong.
    pub damages_found: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub const fn is_intact(&self) -> bool {
        self.damages_found == 0
    }
}

/// What can be said about records missing at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// No checkpoint from outside was given: it cannot be seen.
    CannotBeSeen,
    /// The given checkpoint's records are all there; later ones cannot be judged.
    NotBefore {
        /// How many records it covers.
        size: u64,
    },
    /// The given checkpoint does not fit: the damages say how.
    Contradicted,
}

/// Verifies the ledger of a folder, against a checkpoint that was kept elsewhere where there is one.
///
/// Damage is in the report, not an error.
///
/// # Errors
/// When there is no ledger, or it cannot be read at all.
pub fn verify(dir: &Path, given: Option<&Checkpoint>) -> Result<VerifyReport, LedgerError> {
    // Before the database: a live ledger commits first and exports then.
    let file = read_checkpoint_file(dir)?;
    let path = dir.join(store::FILE);
    fs::metadata(&path).map_err(LedgerError::file("open", path))?;

    let mut findings = Findings::default();
    let mut scan = Scan::default();
    let mut key = None;
    let done = open(dir).and_then(|store| {
        let connection = store.connection();
        // One transaction: one state, however fast a live ledger grows.
        let begin = "BEGIN DEFERRED TRANSACTION";
        connection.execute(begin, []).map_err(LedgerError::database("read"))?;
        check_file(&store, &mut findings)?;
        key = read_key(&store, &mut findings)?;
        let mut checkpoints = Vec::new();
        let inside = Checkpoint::parse(&store.checkpoint()?);
        checkpoints.push((Which::Database, inside));
        checkpoints.extend(file.map(|file| (Which::File, file)));
        checkpoints.extend(given.cloned().map(|given| (Which::Given, Ok(given))));
        scan.sizes = checkpoints
            .iter()
            .filter_map(|(_, checkpoint)| Some((checkpoint.as_ref().ok()?.head().size, None)))
            .collect();
        scan.records(connection, &mut findings)?;
        scan.tiles(connection, &mut findings)?;
        for (which, checkpoint) in checkpoints {
            if let Some(damage) = scan.contradiction(which, checkpoint, key.as_ref()) {
                findings.add(damage);
            }
        }
        Ok(())
    });
    if let Err(error) = done {
        findings.add(as_damage(error)?);
    }

    // A root over what is not there cannot be computed, and so contradicts no checkpoint.
    let holed = |size: u64| !scan.complete || scan.gap.is_some_and(|gap| gap < size);
    let truncation = match given {
        None => Truncation::CannotBeSeen,
        Some(given) if findings.given_contradicted || holed(given.head().size) => {
            Truncation::Contradicted
        }
        Some(given) => Truncation::NotBefore { size: given.head().size },
    };
    let whole = scan.complete && scan.gap.is_none();
    Ok(VerifyReport {
        key,
        records: scan.count,
        head: whole.then(|| Head { size: scan.tree.size(), root: scan.tree.root() }),
        truncation,
        damages: findings.listed,
        damages_found: findings.count,
    })
}

#[derive(Default)]
struct Findings {
    listed: Vec<Damage>,
    count: u64,
    given_contradicted: bool,
}

impl Findings {
    fn add(&mut self, damage: Damage) {
        self.given_contradicted |= matches!(
            damage,
            Damage::Size { which: Which::Given, .. }
                | Damage::Root { which: Which::Given, .. }
                | Damage::Checkpoint { which: Which::Given, .. }
        );
        self.count += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(damage);
        }
    }
}

/// An error that the file's content caused is damage; others stay errors.
fn as_damage(error: LedgerError) -> Result<Damage, LedgerError> {
    match error {
        LedgerError::Damaged(damage) => Ok(*damage),
        LedgerError::Database { action, source } => match source.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied,
            ) => Err(LedgerError::Database { action, source }),
            _ => Ok(Damage::Database { message: format!("cannot {action}: {source}") }),
        },
        other => Err(other),
    }
}

fn open(dir: &Path) -> Result<Store, LedgerError> {
    let error = match Store::open_read_only(dir, None).and_then(|store| {
        store.format()?;
        Ok(store)
    }) {
        Ok(store) => return Ok(store),
        Err(error) => error,
    };
    let unwritable = matches!(&error, LedgerError::Database { source, .. }
        if matches!(source.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)));
    let log = dir.join(format!("{}-wal", store::FILE));
    let no_log = fs::metadata(log).map_or(true, |log| log.len() == 0);
    // SQLite wants to write beside a database with a log. Without one, read-only media will do.
    if unwritable && no_log { Store::open_immutable(dir) } else { Err(error) }
}

fn read_checkpoint_file(
    dir: &Path,
) -> Result<Option<Result<Checkpoint, CheckpointError>>, LedgerError> {
    let path = dir.join(CHECKPOINT_FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(
            String::from_utf8(bytes)
                .map_err(|_| CheckpointError::Note(NoteError::Shape))
                .and_then(|text| Checkpoint::parse(&text)),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LedgerError::file("read", &path)(error)),
    }
}

/// Checks what is no record: the file's marks, the tables, and SQLite's structures.
fn check_file(store: &Store, findings: &mut Findings) -> Result<(), LedgerError> {
    let (application, format) = store.format()?;
    if (application, format) != (store::APPLICATION_ID, store::FORMAT) {
        findings.add(Damage::Format { application, format });
    }
    let mut found = read_schema(store.connection())
        .map_err(LedgerError::database("read the ledger's tables"))?;
    for (name, sql) in store::SCHEMA {
        let of =
            if sql.starts_with("CREATE TABLE") { ("table", name) } else { ("index", "record") };
        let expected = (of.0.to_owned(), of.1.to_owned(), Some(sql.to_owned()));
        if found.remove(name) != Some(expected) {
            findings.add(Damage::Schema { name: name.to_owned() });
        }
    }
    // What a ledger does not have, such as a trigger that changes what is written.
    for name in found.into_keys() {
        findings.add(Damage::Schema { name: quoted(&name) });
    }
    let messages = integrity(store.connection())
        .map_err(LedgerError::database("check the database's structure"))?;
    for message in messages {
        if message != "ok" {
            findings.add(Damage::Database { message });
        }
    }
    Ok(())
}

/// By name: what it is, of which table, and its SQL.
type Schema = BTreeMap<String, (String, String, Option<String>)>;

fn read_schema(connection: &Connection) -> rusqlite::Result<Schema> {
    connection
        .prepare("SELECT name, type, tbl_name, sql FROM sqlite_schema")?
        .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?))))?
        .collect()
}

fn integrity(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection.prepare("PRAGMA integrity_check(100)")?.query_map([], |row| row.get(0))?.collect()
}

fn read_key(store: &Store, findings: &mut Findings) -> Result<Option<VerifierKey>, LedgerError> {
    let bytes = store.key()?;
    let key = bytes.try_into().ok().and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    if key.is_none() {
        findings.add(Damage::Key);
    }
    Ok(key.map(verifier_key))
}

/// One pass over the records in their order.
#[derive(Default)]
struct Scan {
    /// Over the stored leaves, up to the first gap.
    tree: Frontier,
    tiles: BTreeMap<(u32, u64), Hash>,
    /// The roots at the sizes that checkpoints name.
    sizes: BTreeMap<u64, Option<Hash>>,
    count: u64,
    /// The place after the last record.
    end: u64,
    gap: Option<u64>,
    complete: bool,
    /// Records that contradict their leaves, and places that are empty.
    wrong: Vec<u64>,
    empty: Vec<u64>,
}

impl Scan {
    fn records(
        &mut self,
        connection: &Connection,
        findings: &mut Findings,
    ) -> Result<(), LedgerError> {
        let action = "read the records";
        self.note_root();
        let mut statement = connection
            .prepare(
                "SELECT seq, kind, key, at_us, body, salt, leaf FROM record NOT INDEXED \
                 ORDER BY seq",
            )
            .map_err(LedgerError::database(action))?;
        let mut rows = statement.query([]).map_err(LedgerError::database(action))?;
        while let Some(row) = rows.next().map_err(LedgerError::database(action))? {
            let place: i64 = row.get(0).map_err(LedgerError::database(action))?;
            self.count += 1;
            let Ok(seq) = u64::try_from(place) else {
                findings.add(Damage::Foreign { place });
                continue;
            };
            if seq > self.end {
                self.gap.get_or_insert(self.end);
                let places = (self.end..seq).take(PLACES_MAX.saturating_sub(self.empty.len()));
                self.empty.extend(places);
                findings.add(Damage::Missing { first: self.end, last: seq - 1 });
            }
            self.end = seq.saturating_add(1);
            match store::stored(row) {
                Ok(stored) => self.record(&stored),
                Err(error) => {
                    findings.add(Damage::Unreadable { seq, reason: error.to_string() });
                    self.gap.get_or_insert(seq);
                }
            }
        }
        self.complete = true;
        drop(rows);
        self.name_wrong(connection, findings)
    }

    fn record(&mut self, stored: &Stored) {
        if !fits(stored) {
            self.wrong.push(stored.record.seq);
        }
        if self.gap.is_none() {
            let tiles = &mut self.tiles;
            self.tree.push(stored.leaf, |level, index, hash| {
                if level > 0 && level % TILE_LEVELS == 0 {
                    tiles.insert((level / TILE_LEVELS, index), hash);
                }
            });
            self.note_root();
        }
    }

    fn note_root(&mut self) {
        if let Some(root) = self.sizes.get_mut(&self.tree.size()) {
            *root = Some(self.tree.root());
        }
    }

    /// Says of each record that contradicts its leaf whether it is another's, moved or copied.
    fn name_wrong(
        &self,
        connection: &Connection,
        findings: &mut Findings,
    ) -> Result<(), LedgerError> {
        for (count, seq) in self.wrong.iter().copied().enumerate() {
            let belongs = if count < MISPLACED_MAX {
                self.belongs(connection, seq)
                    .map_err(LedgerError::database("look for a record's place"))?
            } else {
                None
            };
            findings.add(match belongs {
                None => Damage::Record { seq },
                Some(of)
                    if of < self.end && !self.wrong.contains(&of) && !self.empty.contains(&of) =>
                {
                    Damage::Copied { at: seq, of }
                }
                Some(belongs) => Damage::Moved { at: seq, belongs },
            });
        }
        Ok(())
    }

    /// The place at which the record that stands at `seq` fits its leaf.
    fn belongs(&self, connection: &Connection, seq: u64) -> rusqlite::Result<Option<u64>> {
        let mut stored = connection
            .prepare_cached(
                "SELECT seq, kind, key, at_us, body, salt, leaf FROM record WHERE seq = ?1",
            )?
            .query_row([seq.cast_signed()], store::stored)?;
        let same_leaf = connection
            .prepare_cached("SELECT seq FROM record WHERE leaf = ?1 AND seq <> ?2 LIMIT 10")?
            .query_map(rusqlite::params![stored.leaf.as_bytes(), seq.cast_signed()], |row| {
                row.get::<_, i64>(0).map(i64::cast_unsigned)
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let near = [seq.wrapping_sub(1), seq.wrapping_add(1)];
        let places = same_leaf
            .into_iter()
            .chain(near)
            .chain(self.wrong.iter().copied().take(PLACES_MAX))
            .chain(self.empty.iter().copied());
        for place in places {
            stored.record.seq = place;
            if place != seq && fits(&stored) {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Compares the stored tiles with those of the records.
    fn tiles(&self, connection: &Connection, findings: &mut Findings) -> Result<(), LedgerError> {
        if self.gap.is_some() {
            return Ok(());
        }
        let read = || {
            connection
                .prepare("SELECT level, idx, hash FROM tile")?
                .query_map([], |row| {
                    let place = (row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned());
                    // A hash of another length is no hash: it equals none.
                    Ok((place, row.get::<_, Vec<u8>>(2)?))
                })?
                .collect::<Result<BTreeMap<(u32, u64), Vec<u8>>, _>>()
        };
        let mut found = read().map_err(LedgerError::database("read the tree"))?;
        for (place, hash) in &self.tiles {
            if found.remove(place).as_deref() != Some(hash.as_bytes()) {
                findings.add(Damage::Tile { level: place.0, index: place.1 });
            }
        }
        for (level, index) in found.into_keys() {
            findings.add(Damage::Tile { level, index });
        }
        Ok(())
    }

    /// What a checkpoint says against the records.
    fn contradiction(
        &self,
        which: Which,
        checkpoint: Result<Checkpoint, CheckpointError>,
        key: Option<&VerifierKey>,
    ) -> Option<Damage> {
        let checkpoint = match checkpoint {
            Ok(checkpoint) => checkpoint,
            Err(reason) => return Some(Damage::Checkpoint { which, reason }),
        };
        if let Some(Err(reason)) = key.map(|key| checkpoint.verify(key)) {
            return Some(Damage::Checkpoint { which, reason });
        }
        let Head { size, root } = checkpoint.head();
        let unsigned = which == Which::Database && self.end > size;
        if self.end < size || unsigned {
            return Some(Damage::Size { which, expected: size, found: self.end });
        }
        // Behind a gap there is no root to compare: what is missing has been named.
        let computed = (*self.sizes.get(&size)?)?;
        (computed != root).then_some(Damage::Root { which, size })
    }
}

fn fits(stored: &Stored) -> bool {
    stored.salt.len() == leaf::SALT_BYTES && leaf::hash(&stored.record, &stored.salt) == stored.leaf
}

fn as_text<S: Serializer>(key: &Option<VerifierKey>, serializer: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => serializer.collect_str(key),
        None => serializer.serialize_none(),
    }
}
