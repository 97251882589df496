//! The small files beside the database: replaced whole, never in part.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use crate::LedgerError;

/// Replaces a file's content so that a reader, and a crash, sees the old or the new, never a part.
pub(crate) fn replace(path: &Path, content: &[&[u8]]) -> Result<(), LedgerError> {
    let new = path.with_extension("new");
    if let Err(error) = write(&new, content) {
        // On a full disk what is there of it takes the room of records.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    fs::rename(&new, path).map_err(LedgerError::file("rename into", path))?;
    match path.parent() {
        Some(dir) => sync_dir(dir).map_err(LedgerError::file("sync the folder", dir)),
        None => Ok(()),
    }
}

fn write(path: &Path, content: &[&[u8]]) -> Result<(), LedgerError> {
    let mut file = File::create(path).map_err(LedgerError::file("create", path))?;
    for part in content {
        file.write_all(part).map_err(LedgerError::file("write", path))?;
    }
    file.sync_all().map_err(LedgerError::file("sync", path))
}

/// Creates a folder for its owner alone, and its name durably with it.
pub(crate) fn create_dir(dir: &Path) -> Result<(), LedgerError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(LedgerError::file("create", dir))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            sync_dir(parent).map_err(LedgerError::file("sync the folder", parent))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
