//! Where evidence is kept: each content once, under its SHA-256.
//!
//! A content is written beside, hashed on the way, synced and only then renamed to its name; so a
//! name never stands for anything but its own content. Names are digests alone: nothing of a
//! stranger's becomes a path. Contents have a bound together, and leave room on the disk for orders
//! and records, which need it more.
//!
//! Contents go by [`Vault::remove`] alone, which only disposal calls, and only behind
//! [`Vault::closed`]: until then whoever counts on a content holds [`Vault::opened`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use estoppel_evidence::{Digest, Hashed, Hasher};
use http_body_util::BodyExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Mutex, MutexGuard, OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
};
use uuid::Uuid;

use crate::{StartError, files, http::health::FREE_BYTES_MIN};

/// Folder of what is not whole yet; emptied at each start.
const INCOMING: &str = "incoming";
/// How often the disk is asked for room while a content comes in.
const ROOM_EVERY_BYTES: u64 = 16 << 20;
/// How long disposal waits for those who read.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
const PIECE_BYTES: usize = 128 * 1024;

/// The store of a data folder. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Vault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    bytes_max: u64,
    /// Counted when the first content comes: the start does not wait for it.
    used: OnceCell<AtomicU64>,
    gate: Arc<RwLock<()>>,
    custody: Mutex<()>,
    /// So that of two that bring one content one is counted.
    naming: Mutex<()>,
}

/// Why a content was not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// It is not what its name says.
    #[error("the content's SHA-256 is {found}, not {expected}: it was changed on the way")]
    OtherContent { expected: Digest, found: Digest },
    /// It is larger than an item may be.
    #[error("the content is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    /// The evidence would have more bytes than it may.
    #[error(
        "the evidence has {used} bytes, and may have {bytes_max}: raise `serve.evidence_mib`, or \
         dispose of what is no longer needed"
    )]
    Full { used: u64, bytes_max: u64 },
    /// The disk is nearly full.
    #[error("{free} bytes are free on the disk: orders and records need them")]
    NoRoom { free: u64 },
    /// The sender broke off.
    #[error("the content broke off after {bytes} bytes")]
    BrokenOff { bytes: u64 },
    /// Somebody reads while something is to be removed.
    #[error("evidence is being read or exported: try again when that has ended")]
    Busy,
    /// The disk refused.
    #[error("the evidence store cannot write")]
    Disk(#[from] io::Error),
}

/// Bytes that are counted before they are written; given back when they are not kept.
struct Room<'v> {
    used: &'v AtomicU64,
    bytes_max: u64,
    taken: u64,
    /// Bytes that are counted already: those of the same content, which it replaces.
    spare: u64,
}

impl Room<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), VaultError> {
        let spared = bytes.min(self.spare);
        self.spare -= spared;
        let bytes = bytes - spared;
        if bytes == 0 {
            return Ok(());
        }
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|used| VaultError::Full { used, bytes_max: self.bytes_max })?;
        self.taken += bytes;
        Ok(())
    }

    fn keep(mut self) {
        self.taken = 0;
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

impl Vault {
    /// Opens the store, and removes what a crash left half written.
    pub(crate) fn open(data: &Path, bytes_max: u64) -> Result<Self, StartError> {
        let folder = data.join("evidence");
        files::create_private_dir(&folder)
            .map_err(|source| StartError::File { path: folder.clone(), source })?;
        if let Err(error) = prepare(data, &folder) {
            // A disk that is full or failing keeps no server from stopping agents.
            tracing::warn!(%error, "the evidence store is not ready");
        }
        Ok(Self(Arc::new(Inner {
            folder,
            bytes_max,
            used: OnceCell::new(),
            gate: Arc::default(),
            custody: Mutex::default(),
            naming: Mutex::default(),
        })))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.0.folder.join(&name[..2]).join(&name)
    }

    /// While this is held, nothing is removed.
    pub(crate) async fn opened(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0.gate).read_owned().await
    }

    /// While this is held, nobody counts on a content.
    pub(crate) async fn closed(&self) -> Result<OwnedRwLockWriteGuard<()>, VaultError> {
        let closed = Arc::clone(&self.0.gate).write_owned();
        tokio::time::timeout(CLOSE_WITHIN, closed).await.map_err(|_| VaultError::Busy)
    }

    /// One custody event is appended after the other.
    pub(crate) async fn in_turn(&self) -> MutexGuard<'_, ()> {
        self.0.custody.lock().await
    }

    async fn used(&self) -> io::Result<&AtomicU64> {
        let folder = self.0.folder.clone();
        let count = || async move {
            let counted = tokio::task::spawn_blocking(move || stored_bytes(&folder));
            counted.await.map_err(io::Error::other)?.map(AtomicU64::new)
        };
        self.0.used.get_or_try_init(count).await
    }

    /// Keeps a content; again is no error. Resolves when it is on disk.
    pub(crate) async fn put(
        &self,
        expected: Digest,
        mut content: Body,
        bytes_max: usize,
    ) -> Result<Hashed, VaultError> {
        let used = self.used().await?;
        // The start may have found no room for it.
        files::create_private_dir(&self.0.folder.join(INCOMING))?;
        let spare = tokio::fs::metadata(self.path(&expected)).await.map_or(0, |found| found.len());
        let mut room = Room { used, bytes_max: self.0.bytes_max, taken: 0, spare };
        let new = self.0.folder.join(INCOMING).join(format!("{}.new", Uuid::now_v7()));
        let written = self.write(&new, expected, &mut content, bytes_max, &mut room).await;
        let kept = match written {
            Ok(hashed) => self.name(&new, hashed, room).await.map(|()| hashed),
            Err(error) => Err(error),
        };
        if kept.is_err() {
            // What could not be written may not be there to remove.
            let _ = tokio::fs::remove_file(&new).await;
        }
        kept
    }

    /// Gives a content that is on disk its name.
    async fn name(&self, new: &Path, hashed: Hashed, room: Room<'_>) -> Result<(), VaultError> {
        let path = self.path(&hashed.sha256);
        let folder = path.parent().unwrap_or(&self.0.folder).to_owned();
        if !tokio::fs::try_exists(&folder).await? {
            files::create_private_dir(&folder)?;
            tokio::fs::File::open(&self.0.folder).await?.sync_all().await?;
        }
        {
            let _one = self.0.naming.lock().await;
            let replaces = tokio::fs::try_exists(&path).await?;
            tokio::fs::rename(new, &path).await?;
            if !replaces {
                room.keep();
            }
        }
        tokio::fs::File::open(&folder).await?.sync_all().await?;
        Ok(())
    }

    async fn write(
        &self,
        path: &Path,
        expected: Digest,
        content: &mut Body,
        bytes_max: usize,
        room: &mut Room<'_>,
    ) -> Result<Hashed, VaultError> {
        let mut options = tokio::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path).await?;
        let mut hasher = Hasher::default();
        let (mut bytes, mut asked_at) = (0_u64, None);
        while let Some(frame) = content.frame().await {
            let Ok(frame) = frame else { return Err(VaultError::BrokenOff { bytes }) };
            let Ok(data) = frame.into_data() else { continue };
            if asked_at.is_none_or(|asked| bytes - asked >= ROOM_EVERY_BYTES) {
                asked_at = Some(bytes);
                let free = files::free_bytes(&self.0.folder)?;
                if free < FREE_BYTES_MIN {
                    return Err(VaultError::NoRoom { free });
                }
            }
            bytes += data.len() as u64;
            if bytes > bytes_max as u64 {
                return Err(VaultError::TooLarge { bytes_max });
            }
            room.take(data.len() as u64)?;
            hasher.update(&data);
            file.write_all(&data).await?;
        }
        let hashed = hasher.finish();
        if hashed.sha256 != expected {
            return Err(VaultError::OtherContent { expected, found: hashed.sha256 });
        }
        file.sync_all().await?;
        Ok(hashed)
    }

    /// Keeps a small content that is at hand.
    pub(crate) async fn put_text(&self, text: String) -> Result<Digest, VaultError> {
        let digest = Digest::of(text.as_bytes());
        let bytes_max = text.len();
        self.put(digest, Body::from(text), bytes_max).await?;
        Ok(digest)
    }

    /// Whether a content is kept, by its name and length.
    pub(crate) async fn has(&self, digest: &Digest, bytes: u64) -> bool {
        tokio::fs::metadata(self.path(digest)).await.is_ok_and(|found| found.len() == bytes)
    }

    /// Reads a small content, such as a manifest.
    pub(crate) async fn read(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        match tokio::fs::read(self.path(digest)).await {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a content. Blocks on the disk, as the following do.
    pub(crate) fn file(&self, digest: &Digest) -> io::Result<fs::File> {
        fs::File::open(self.path(digest))
    }

    /// Hashes what is stored under a digest; `None` when nothing is.
    pub(crate) fn measure(&self, digest: &Digest) -> io::Result<Option<Hashed>> {
        use io::Read as _;
        let mut file = match self.file(digest) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut hasher = Hasher::default();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(Some(hasher.finish())),
                Ok(length) => hasher.update(piece.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a content for good; its length, `None` when there was none. For disposal, behind
    /// [`Vault::closed`].
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let path = self.path(digest);
        let bytes = match fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        fs::File::open(path.parent().unwrap_or(&self.0.folder))?.sync_all()?;
        if let Some(used) = self.0.used.get() {
            let less = |used: u64| Some(used.saturating_sub(bytes));
            let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        Ok(Some(bytes))
    }
}

/// Empties the folder of what is not whole, and makes the store's own names durable.
fn prepare(data: &Path, folder: &Path) -> io::Result<()> {
    let incoming = folder.join(INCOMING);
    files::create_private_dir(&incoming)?;
    for entry in fs::read_dir(&incoming)? {
        fs::remove_file(entry?.path())?;
    }
    fs::File::open(folder)?.sync_all()?;
    fs::File::open(data)?.sync_all()
}

/// How many bytes are stored under their names.
fn stored_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for shard in fs::read_dir(folder)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() || shard.file_name() == INCOMING {
            continue;
        }
        for entry in fs::read_dir(shard.path())? {
            bytes += entry?.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(bytes_max: u64) -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(dir.path(), bytes_max).unwrap();
        (dir, vault)
    }

    fn left(vault: &Vault) -> usize {
        fs::read_dir(vault.0.folder.join(INCOMING)).unwrap().count()
    }

    #[tokio::test]
    async fn a_name_stands_for_its_own_content_alone() {
        let (dir, vault) = vault(1_000);
        let digest = Digest::of(b"maps");
        vault.put(digest, Body::from("maps"), 10).await.unwrap();
        vault.put(digest, Body::from("maps"), 10).await.unwrap();
        assert_eq!(vault.read(&digest).await.unwrap().unwrap(), b"maps");
        assert!(vault.has(&digest, 4).await);
        assert_eq!(vault.measure(&digest).unwrap(), Some(Hashed::of(b"maps")));

        let other = Digest::of(b"other");
        let error = vault.put(other, Body::from("forged"), 10).await.unwrap_err();
        assert!(matches!(error, VaultError::OtherContent { .. }));
        let error = vault.put(other, Body::from("far too long"), 10).await.unwrap_err();
        assert!(matches!(error, VaultError::TooLarge { bytes_max: 10 }));
        assert!(vault.read(&other).await.unwrap().is_none());
        assert_eq!(left(&vault), 0, "nothing half written stays behind");

        fs::write(vault.0.folder.join(INCOMING).join("x.new"), "half").unwrap();
        let vault = Vault::open(dir.path(), 1_000).unwrap();
        assert_eq!(left(&vault), 0, "nor does what a crash left");
        assert_eq!(vault.read(&digest).await.unwrap().unwrap(), b"maps");
    }

    #[tokio::test]
    async fn contents_have_a_bound_together_and_each_counts_once() {
        let (dir, vault) = vault(10);
        vault.put_text("123456".to_owned()).await.unwrap();
        vault.put_text("123456".to_owned()).await.unwrap();
        let error = vault.put_text("abcdef".to_owned()).await.unwrap_err();
        assert!(matches!(error, VaultError::Full { used: 6, bytes_max: 10 }), "{error}");
        vault.put_text("abcd".to_owned()).await.unwrap();
        assert_eq!(left(&vault), 0);
        // As after a restart: what is there is counted.
        let vault = Vault::open(dir.path(), 10).unwrap();
        assert!(vault.put_text("x".to_owned()).await.is_err());
        assert_eq!(vault.remove(&Digest::of(b"abcd")).unwrap(), Some(4));
        assert_eq!(vault.remove(&Digest::of(b"abcd")).unwrap(), None);
        vault.put_text("xyz".to_owned()).await.unwrap();
    }

    #[tokio::test]
    async fn a_content_that_was_changed_on_disk_is_measured_and_mended() {
        let (_dir, vault) = vault(1_000);
        let digest = vault.put_text("maps".to_owned()).await.unwrap();
        fs::write(vault.path(&digest), "mapz").unwrap();
        assert_eq!(vault.measure(&digest).unwrap(), Some(Hashed::of(b"mapz")));
        vault.put_text("maps".to_owned()).await.unwrap();
        assert_eq!(vault.measure(&digest).unwrap(), Some(Hashed::of(b"maps")));
    }
}
