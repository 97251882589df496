//! A copy of a ledger as it was at one instant, while it goes on.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path};

use crate::{
    Checkpoint, LedgerError, files,
    store::{FILE, Store},
    writer::CHECKPOINT_FILE,
};

/// Copies the ledger in `dir`, which may be open and written meanwhile, into the folder `to`, which
/// must not hold one. The copy is whole, durable when this returns, and holds what was durable at
/// one instant after the call; its checkpoint is returned. Snapshots of folds, a cache, are left
/// out. Blocks on the disk, for as long as the ledger is long.
///
/// # Errors
/// When there is no ledger, or a disk cannot be read or written.
pub fn copy(dir: &Path, to: &Path) -> Result<Checkpoint, LedgerError> {
    let store = Store::open_read_only(dir, None)?;
    files::create_dir(to)?;
    let path = to.join(FILE);
    // SQLite would make a file that others may read. Into an empty one it writes.
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(LedgerError::file("create", &path))?;
    store
        .connection()
        .execute("VACUUM INTO ?1", [path.to_string_lossy().as_ref()])
        .map_err(LedgerError::database("copy the ledger"))?;
    file.sync_all().map_err(LedgerError::file("sync", &path))?;
    let checkpoint = Store::open_immutable(to)?.checkpoint()?;
    files::replace(&to.join(CHECKPOINT_FILE), &[checkpoint.as_bytes()])?;
    Ok(Checkpoint::parse(&checkpoint)?)
}
