//! The state folder of an enforcer, which no other process can open meanwhile.
//!
//! What lies in the file, and what damage of it means, is in [`estoppel_orderfile::OrderCache`].

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use estoppel_killswitch::enforcer::{Keep, Kept};
use estoppel_orderfile::{Found, OrderCache, RealFolder};

/// The cache of a locked folder.
#[derive(Debug)]
pub(crate) struct Cache {
    orders: OrderCache<RealFolder>,
    _lock: File,
}

impl Cache {
    /// Opens the cache of a folder, which is made where it is missing.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, Found)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut options = fs::OpenOptions::new();
        let lock = options.append(true).create(true).mode(0o600).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another enforcer uses it: give each a folder of its own",
            ),
        })?;
        let (orders, found) = OrderCache::open(RealFolder::at(dir))?;
        Ok((Self { orders, _lock: lock }, found))
    }

    /// Whether everything that was to be kept is on the disk.
    pub(crate) const fn is_well(&self) -> bool {
        self.orders.is_well()
    }

    /// Appends, and returns when it is on the disk.
    pub(crate) fn append(&mut self, things: &[Keep]) -> io::Result<()> {
        self.orders.append(things)
    }

    /// Writes the file anew, whole or not at all.
    pub(crate) fn replace(&mut self, kept: Kept) -> io::Result<()> {
        self.orders.replace(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_enforcer() {
        let dir = tempfile::tempdir().unwrap();
        let _cache = Cache::open(dir.path()).unwrap();
        let error = Cache::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another enforcer uses it"), "{error}");
    }
}
