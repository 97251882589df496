//! The folder of one capture: blobs named by their SHA-256, complete from the moment on in which
//! their name exists.

use std::{
    fs,
    io::{self, Read, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use estoppel_evidence::{Digest, Hashed, Hasher};

/// The folder of the blobs.
pub(super) const BLOBS: &str = "blobs";

const PIECE_BYTES: usize = 128 * 1024;

/// A capture's folder. Clones are the same folder.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
    /// Counts temporary names.
    count: Arc<AtomicU64>,
    /// How much may still be stored.
    bytes_left: Arc<AtomicU64>,
}

impl Store {
    /// Makes the folder, for nobody but us.
    pub(super) fn create(folder: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).recursive(true);
        private.create(folder.join(BLOBS))?;
        Ok(Self {
            folder: folder.to_owned(),
            count: Arc::default(),
            bytes_left: Arc::new(AtomicU64::new(bytes_max)),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores a content that is at hand.
    pub(super) fn put(&self, content: &[u8]) -> io::Result<Hashed> {
        self.copy(&mut &*content, content.len() as u64).map(|(hashed, _)| hashed)
    }

    /// Stores what `source` gives, at most `bytes_max` of it; says whether there was more.
    pub(super) fn copy(&self, source: &mut dyn Read, bytes_max: u64) -> io::Result<(Hashed, bool)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(BLOBS).join(format!(".{count}"));
        let result = self.copy_to(&temporary, source, bytes_max).and_then(|(hashed, more)| {
            fs::rename(&temporary, self.blob(&hashed.sha256))?;
            Ok((hashed, more))
        });
        if result.is_err() {
            // Best effort: what is left of it has no name that a manifest gives.
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn copy_to(
        &self,
        path: &Path,
        source: &mut dyn Read,
        bytes_max: u64,
    ) -> io::Result<(Hashed, bool)> {
        let mut file = private().open(path)?;
        let mut hasher = Hasher::default();
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = bytes_max;
        loop {
            let length = match source.read(&mut piece) {
                Ok(0) => return Ok((hasher.finish(), false)),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let taken = length.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.take_room(taken as u64)?;
            hasher.update(&piece[..taken]);
            file.write_all(&piece[..taken])?;
            left -= taken as u64;
            if taken < length {
                return Ok((hasher.finish(), true));
            }
        }
    }

    fn take_room(&self, bytes: u64) -> io::Result<()> {
        self.bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(drop)
            .map_err(|left| {
                let text = format!("the capture's room is used up: {left} bytes are left");
                io::Error::new(io::ErrorKind::StorageFull, text)
            })
    }

    /// Writes a file beside the blobs, complete or not at all.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(format!(".{name}"));
        let mut file = private().open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, self.folder.join(name))
    }

    /// Where a blob is.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join(BLOBS).join(digest.to_string())
    }

    /// Brings everything to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        // One call for thousands of small files, each of which would cost a journal commit.
        rustix::fs::syncfs(fs::File::open(&self.folder)?)?;
        Ok(())
    }
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes_max: u64) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("c"), bytes_max).unwrap();
        (folder, store)
    }

    #[test]
    fn a_blob_is_found_by_its_digest_and_kept_once() {
        let (_folder, store) = store(100);
        let one = store.put(b"abc").unwrap();
        assert_eq!(store.put(b"abc").unwrap(), one);
        assert_eq!(fs::read(store.blob(&one.sha256)).unwrap(), b"abc");
        assert_eq!(fs::read_dir(store.folder().join(BLOBS)).unwrap().count(), 1);
    }

    #[test]
    fn what_is_cut_says_so_and_its_digest_is_of_what_is_kept() {
        let (_folder, store) = store(100);
        let (hashed, more) = store.copy(&mut &b"abcdef"[..], 4).unwrap();
        assert!(more);
        assert_eq!(hashed, Hashed::of(b"abcd"));
        let (hashed, more) = store.copy(&mut &b"abcd"[..], 4).unwrap();
        assert!(!more);
        assert_eq!(hashed.bytes, 4);
    }

    #[test]
    fn room_is_bounded_and_a_failed_copy_leaves_nothing() {
        let (_folder, store) = store(5);
        store.put(b"abc").unwrap();
        let error = store.put(b"defg").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(store.folder().join(BLOBS)).unwrap().count(), 1);
        store.put(b"de").unwrap();
    }

    #[test]
    fn nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, store) = store(100);
        let blob = store.blob(&store.put(b"abc").unwrap().sha256);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(store.folder()), mode(&blob)), (0o700, 0o600));
    }
}
