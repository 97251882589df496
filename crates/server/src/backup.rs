//! Backups of a data folder: made of a live server, verified, restored.
//!
//! A backup is a folder with the same files as a data folder and a list of them, `BACKUP.json`,
//! which is written last: without it there is no backup. Parts are copied in the order in which
//! they refer to one another (the ledger, then what it names), each as of one instant, so that a
//! later part may hold more than an earlier one names, and never less.
//!
//! It holds the server's key and tokens: who can read it can be the server. What enforcers keep is
//! left out, for a copy of theirs could only be older.
//!
//! A restored backup releases nothing: halts that were given after it was made come back from the
//! enforcers that have them, before a release can name them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use estoppel_ledger::LedgerError;
use estoppel_model::{SignedOrder, Timestamp};
use estoppel_orderfile::OrderSpool;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{NodeKey, StartError, files};

/// The list of a backup's files, which makes a folder a backup.
const LIST: &str = "BACKUP.json";
const FORMAT: &str = "estoppel.backup/v1";
const LEDGER: &str = "ledger";
/// Files that are copied whole, where they are there.
const SMALL: [&str; 5] =
    ["node.key", "admin.token", "gateway.token", "tokens.json", "tokens-last-use.json"];
/// The order spool.
const SPOOL: &str = OrderSpool::<File>::FILE;
/// Folders whose files are only ever added, or replaced whole; in the order that their own rules
/// ask for: the log before what it is sealed into, manifests before what they name. A manifest that
/// is new by then may name what was not listed, so the last pass takes none.
const FOLDERS: [(&str, Pass); 5] = [
    ("evidence", Pass::All),
    ("events/wal", Pass::All),
    ("events/segments", Pass::Manifests),
    ("events/segments", Pass::Others),
    ("events/quarantine", Pass::All),
];
const FILES_MAX: usize = 10_000_000;

/// Which files of a folder are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    All,
    Manifests,
    Others,
}

impl Pass {
    fn takes(self, place: &str) -> bool {
        let manifest = place.ends_with(".json");
        match self {
            Self::All => true,
            Self::Manifests => manifest,
            Self::Others => !manifest,
        }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    format: String,
    /// The version that made it.
    pub version: String,
    /// When it was begun.
    pub made_at: Timestamp,
    /// How many records the ledger had.
    pub ledger_records: u64,
    /// The ledger's signed checkpoint.
    pub checkpoint: String,
    /// Its files, by their place in the data folder.
    pub files: BTreeMap<String, Copied>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copied {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hex.
    pub sha256: String,
}

/// Why a backup cannot be made, used or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file or folder cannot be used.
    #[error("`{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The ledger cannot be copied or read.
    #[error("the ledger of `{path}`")]
    Ledger {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: LedgerError,
    },
    /// The target holds something.
    #[error("`{path}` is not empty: give a folder that is, or is not there yet")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The source is no data folder.
    #[error("`{path}` is no data folder of a server: it has no node.key")]
    NoData {
        /// The folder.
        path: PathBuf,
    },
    /// The source is no backup, or one that was not made to its end.
    #[error("`{path}` is no whole backup: it has no {LIST}")]
    NoBackup {
        /// The folder.
        path: PathBuf,
    },
    /// The list cannot be read.
    #[error("`{path}` is no list of a backup that this version knows")]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Option<serde_json::Error>,
    },
    /// The backup is not what it was when it was made.
    #[error("the backup `{path}` is damaged: {}", .damages.join("; "))]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong, at most 20 things.
        damages: Vec<String>,
    },
    /// There are too many files.
    #[error("`{path}` holds more than {FILES_MAX} files")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// A key that is none.
    #[error(transparent)]
    Key(#[from] StartError),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { path, source }
}

/// Makes a backup of a data folder, whose server may run. It is whole and durable when this returns.
///
/// # Errors
/// When the folder is none, the target is not empty, or a disk cannot be read or written.
pub fn make(data: &Path, to: &Path, now: Timestamp) -> Result<Backup, BackupError> {
    if !data.join("node.key").exists() {
        return Err(BackupError::NoData { path: data.to_owned() });
    }
    prepare(to)?;
    let ledger = |source| BackupError::Ledger { path: data.to_owned(), source };
    let checkpoint = estoppel_ledger::copy(&data.join(LEDGER), &to.join(LEDGER)).map_err(ledger)?;
    let mut copied = BTreeMap::new();
    for name in ["ledger.db", "checkpoint"] {
        let place = format!("{LEDGER}/{name}");
        let file = measured(&to.join(&place))?;
        copied.insert(place, file);
    }
    copied.insert(SPOOL.to_owned(), copy_spool(data, to)?);
    let mut copy = |place: String| -> Result<(), BackupError> {
        if let Some(file) = copy_file(&data.join(&place), &to.join(&place))? {
            copied.insert(place, file);
        }
        Ok(())
    };
    for (folder, pass) in FOLDERS {
        for place in places(data, folder)?.into_iter().filter(|place| pass.takes(place)) {
            copy(place)?;
        }
    }
    for name in SMALL {
        copy(name.to_owned())?;
    }
    let backup = Backup {
        format: FORMAT.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: now,
        ledger_records: checkpoint.head().size,
        checkpoint: checkpoint.to_string(),
        files: copied,
    };
    sync_folders(to)?;
    let list = to.join(LIST);
    let json = serde_json::to_vec_pretty(&backup)
        .map_err(|source| BackupError::List { path: list.clone(), source: Some(source) })?;
    files::write_private(&list, &json).map_err(at(&list))?;
    Ok(backup)
}

/// Reads all of a backup, and tells what it holds.
///
/// # Errors
/// When it is no backup, or not what it was when it was made.
pub fn verify(backup: &Path) -> Result<Backup, BackupError> {
    let list = backup.join(LIST);
    let Some(json) = files::read_if_there(&list).map_err(at(&list))? else {
        return Err(BackupError::NoBackup { path: backup.to_owned() });
    };
    let unknown = |source| BackupError::List { path: list.clone(), source };
    let found: Backup = serde_json::from_slice(&json).map_err(|error| unknown(Some(error)))?;
    if found.format != FORMAT || found.files.keys().any(|place| leads_out(place)) {
        return Err(unknown(None));
    }
    let mut damages = Vec::new();
    for (place, expected) in &found.files {
        match measured(&backup.join(place)) {
            Ok(now) if now == *expected => {}
            Ok(_) => damages.push(format!("{place} has changed")),
            Err(_) => damages.push(format!("{place} cannot be read")),
        }
    }
    for needed in ["node.key", "tokens.json", "ledger/ledger.db"] {
        if !found.files.contains_key(needed) {
            damages.push(format!("{needed} is not in it"));
        }
    }
    if damages.is_empty() {
        damages = contents(backup)?;
    }
    if damages.is_empty() {
        return Ok(found);
    }
    damages.truncate(20);
    Err(BackupError::Damaged { path: backup.to_owned(), damages })
}

/// Whether what the files hold is what it should be, beyond their being as they were.
fn contents(backup: &Path) -> Result<Vec<String>, BackupError> {
    let mut damages = Vec::new();
    NodeKey::open_existing(backup)?;
    let ledger = |source| BackupError::Ledger { path: backup.to_owned(), source };
    let report = estoppel_ledger::verify(&backup.join(LEDGER), None).map_err(ledger)?;
    damages.extend(report.damages.iter().map(|damage| format!("ledger: {damage}")));
    let spool = backup.join(SPOOL);
    if let Some(content) = files::read_if_there(&spool).map_err(at(&spool))? {
        let recovered = estoppel_orderfile::recover(&content);
        damages.extend(recovered.warnings);
        let forged = |order: &&SignedOrder| !crate::verify_order(order);
        let forged = recovered.orders.iter().filter(forged).count();
        if forged > 0 {
            damages.push(format!("{SPOOL}: {forged} orders with a bad signature"));
        }
    }
    Ok(damages)
}

/// Puts a backup in the place of a data folder that is empty or not there, whole or not at all.
///
/// # Errors
/// When the backup is not whole, the target is not empty, or a disk cannot be read or written.
pub fn restore(backup: &Path, data: &Path) -> Result<Backup, BackupError> {
    let found = verify(backup)?;
    if fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BackupError::NotEmpty { path: data.to_owned() });
    }
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    let unfinished = data.with_file_name(name);
    prepare(&unfinished)?;
    for (place, expected) in &found.files {
        let to = unfinished.join(place);
        let copied = copy_file(&backup.join(place), &to)?;
        if copied.as_ref() != Some(expected) {
            let damages = vec![format!("{place} has changed while it was restored")];
            return Err(BackupError::Damaged { path: backup.to_owned(), damages });
        }
    }
    sync_folders(&unfinished)?;
    // Over an empty folder, too.
    fs::rename(&unfinished, data).map_err(at(data))?;
    sync_parent(data)?;
    Ok(found)
}

/// Makes a folder for its owner alone, or takes an empty one.
fn prepare(folder: &Path) -> Result<(), BackupError> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BackupError::NotEmpty { path: folder.to_owned() });
    }
    files::create_private_dir(folder).map_err(at(folder))
}

/// Whether a place of a list would be outside of the folder.
fn leads_out(place: &str) -> bool {
    let normal = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    !Path::new(place).components().all(normal)
}

/// The files below a folder of the data folder, by their places; links are not followed.
fn places(data: &Path, folder: &str) -> Result<Vec<String>, BackupError> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let path = data.join(&folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(at(&path))?;
            let kind = entry.file_type().map_err(at(&path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let place = format!("{folder}/{name}");
            if kind.is_dir() {
                folders.push(place);
            } else if kind.is_file() && !name.ends_with(".new") {
                found.push(place);
            }
            if found.len() > FILES_MAX {
                return Err(BackupError::TooMany { path: data.to_owned() });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies the order spool up to its last whole line: the next may be half written.
fn copy_spool(data: &Path, to: &Path) -> Result<Copied, BackupError> {
    let (from, to) = (data.join(SPOOL), to.join(SPOOL));
    let content = files::read_if_there(&from).map_err(at(&from))?.unwrap_or_default();
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    files::write_private(&to, &content[..whole]).map_err(at(&to))?;
    measured(&to)
}

/// Copies a file, as long as it is now; `None` where it is gone. The end of the event log may be
/// half an event: whoever reads the log leaves out what was never acknowledged.
fn copy_file(from: &Path, to: &Path) -> Result<Option<Copied>, BackupError> {
    let source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(from)(error)),
    };
    let length = source.metadata().map_err(at(from))?.len();
    if let Some(folder) = to.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
    }
    let mut options = fs::OpenOptions::new();
    let mut target = options.write(true).create_new(true).mode(0o600).open(to).map_err(at(to))?;
    let copied = digest(source.take(length), |chunk| target.write_all(chunk)).map_err(at(from))?;
    target.sync_all().map_err(at(to))?;
    Ok(Some(copied))
}

fn measured(path: &Path) -> Result<Copied, BackupError> {
    let file = File::open(path).map_err(at(path))?;
    digest(file, |_| Ok(())).map_err(at(path))
}

fn digest(
    mut from: impl io::Read,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Copied> {
    let (mut hash, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = from.read(&mut chunk)?;
        if read == 0 {
            return Ok(Copied { bytes, sha256: hex::encode(hash.finalize()) });
        }
        hash.update(&chunk[..read]);
        each(&chunk[..read])?;
        bytes += read as u64;
    }
}

/// Makes the names in a folder and in those below it durable, and its own.
fn sync_folders(folder: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    sync_parent(folder)
}

fn sync_parent(path: &Path) -> Result<(), BackupError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(at(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stays_in_its_folder() {
        let check = |place: &str, expect: bool| assert_eq!(leads_out(place), expect, "{place}");
        check("events/wal/1", false);
        check("node.key", false);
        for out in ["../node.key", "/etc/passwd", "events/../../x", "./x", "a/.."] {
            check(out, true);
        }
    }
}
