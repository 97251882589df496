//! A disk that crashes, fails and fills up on command.
//!
//! [`FaultyDisk`] passes file operations through to a real folder, and records them. From the record
//! [`FaultyDisk::crash`] makes a folder as a power cut at any moment could have left it: what was
//! synced is there; of what was not, any part may be, sector by sector, in any order. It is as harsh
//! as POSIX allows, not as kind as one file system happens to be: a file whose folder was not
//! synced may be gone although its content was.
//!
//! Code reaches it through its own small seam for file operations, or, with SQLite, through
//! [`SqliteVfs`]. Faults beside crashes: [`FaultyDisk::swallow_syncs`] plants the bug "fsync
//! removed", [`FaultyDisk::fail_syncs`] reports errors (and, as Linux does, forgets what it could
//! not write), [`FaultyDisk::set_capacity`] fills the disk, [`FaultyDisk::kill`] cuts off whoever
//! has files open, as kill -9 does.
//!
//! A test marks what was acknowledged to it with [`FaultyDisk::mark`]; a crash tells which marks came
//! before it:
//!
//! ```
//! # use estoppel_testkit::disk::FaultyDisk;
//! # let (live, after) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! let disk = FaultyDisk::over(live.path())?;
//! let file = disk.create(&live.path().join("log"))?;
//! disk.sync_folder(live.path())?;
//! file.write_at(0, b"kept")?;
//! file.sync()?;
//! disk.mark(1);
//! file.write_at(4, b"perhaps")?;
//!
//! let marks = disk.crash(disk.operations(), 42, after.path())?;
//! assert_eq!(marks, [1]);
//! assert!(std::fs::read(after.path().join("log"))?.starts_with(b"kept"));
//! # Ok::<(), std::io::Error>(())
//! ```

mod image;
mod vfs;

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::{FileId, Operation};
pub use vfs::SqliteVfs;

/// A folder whose file operations are recorded. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    operations: Vec<Operation>,
    names: HashMap<PathBuf, FileId>,
    lengths: HashMap<FileId, u64>,
    /// Counts kills: a file that was opened before the last one is cut off.
    life: u64,
    capacity_bytes: Option<u64>,
    swallow_syncs: bool,
    fail_syncs: Failing,
}

#[derive(Debug, Default)]
enum Failing {
    #[default]
    None,
    All,
    /// Of the file with this name.
    Of(PathBuf),
}

impl FaultyDisk {
    /// The disk under a folder. What the folder holds already counts as synced.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn over(root: &Path) -> io::Result<Self> {
        let mut state = State {
            root: root.to_owned(),
            operations: Vec::new(),
            names: HashMap::new(),
            lengths: HashMap::new(),
            life: 0,
            capacity_bytes: None,
            swallow_syncs: false,
            fail_syncs: Failing::None,
        };
        state.adopt_folder(root)?;
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    /// Creates a file that must not exist.
    ///
    /// # Errors
    /// As the file system's.
    pub fn create(&self, path: &Path) -> io::Result<FaultyFile> {
        let real = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        self.lock().created(path);
        Ok(self.handle(path, real))
    }

    /// Opens a file that exists, for reading and writing.
    ///
    /// # Errors
    /// As the file system's.
    pub fn open(&self, path: &Path) -> io::Result<FaultyFile> {
        let real = OpenOptions::new().read(true).write(true).open(path)?;
        self.lock().adopt(path)?;
        Ok(self.handle(path, real))
    }

    /// Renames a file over another or to a new name.
    ///
    /// # Errors
    /// As the file system's.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        fs::rename(from, to)?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        let (from, to) = (from.to_owned(), to.to_owned());
        state.operations.push(Operation::Rename { from, to, file });
        Ok(())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As the file system's.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        fs::remove_file(path)?;
        state.removed(path);
        Ok(())
    }

    /// Makes what was created, renamed and removed in a folder durable.
    ///
    /// # Errors
    /// While syncs fail.
    pub fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.lock().sync_folder(folder)
    }

    /// Notes that something was acknowledged.
    pub fn mark(&self, mark: u64) {
        self.lock().operations.push(Operation::Mark(mark));
    }

    /// How many operations have been recorded: crashes can be had at 0 up to this.
    pub fn operations(&self) -> usize {
        self.lock().operations.len()
    }

    /// Fills the empty folder `into` with what a power cut after the first `at` operations could
    /// have left, chosen by `seed`. Returns the marks that came before.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn crash(&self, at: usize, seed: u64, into: &Path) -> io::Result<Vec<u64>> {
        let state = self.lock();
        let operations = state.operations.get(..at).unwrap_or(&state.operations);
        image::materialise(operations, seed, &state.root, into)
    }

    /// From now on syncs are answered and not done: the planted bug.
    pub fn swallow_syncs(&self, swallow: bool) {
        self.lock().swallow_syncs = swallow;
    }

    /// From now on syncs fail with an I/O error. Of what they should have made durable, part may be
    /// lost for good, whatever a later sync says.
    pub fn fail_syncs(&self, fail: bool) {
        self.lock().fail_syncs = if fail { Failing::All } else { Failing::None };
    }

    /// As [`FaultyDisk::fail_syncs`], of one file only.
    pub fn fail_syncs_of(&self, path: &Path) {
        self.lock().fail_syncs = Failing::Of(path.to_owned());
    }

    /// The disk has room for this many bytes in all files together; `None`: for all.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// How many bytes all files have together.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Cuts off whoever has files open, as kill -9 does: what they wrote stays (and stays un-synced),
    /// and they write and sync nothing more.
    pub fn kill(&self) {
        self.lock().life += 1;
    }

    fn handle(&self, path: &Path, real: File) -> FaultyFile {
        let state = self.lock();
        let file = state.names.get(path).copied().unwrap_or_default();
        FaultyFile { disk: self.clone(), file, life: state.life, real }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open file of a [`FaultyDisk`].
#[derive(Debug)]
pub struct FaultyFile {
    disk: FaultyDisk,
    file: FileId,
    life: u64,
    real: File,
}

impl FaultyFile {
    /// Writes at an offset: all of it, or on a full disk nothing.
    ///
    /// # Errors
    /// When the disk is full, or its owner was killed.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.admit_write(self.life, self.file, offset, bytes.len())?;
        self.real.write_all_at(bytes, offset)?;
        state.wrote(self.file, offset, bytes);
        Ok(())
    }

    /// Reads at an offset, as [`FileExt::read_at`].
    ///
    /// # Errors
    /// As the file system's.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.real.read_at(bytes, offset)
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// When the disk is full, or its owner was killed.
    pub fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.admit_length(self.life, self.file, length)?;
        self.real.set_len(length)?;
        state.set_length(self.file, length);
        Ok(())
    }

    /// Makes the content durable, but not the file's name: see [`FaultyDisk::sync_folder`].
    ///
    /// # Errors
    /// While syncs fail, or when its owner was killed.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.lock().sync(self.life, self.file)
    }
}

impl State {
    fn adopt_folder(&mut self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.adopt_folder(&entry.path())?;
            } else {
                self.adopt(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes a file that was made elsewhere as one that is durable.
    fn adopt(&mut self, path: &Path) -> io::Result<()> {
        if self.names.contains_key(path) {
            return Ok(());
        }
        let bytes = fs::read(path)?;
        let file = self.created(path);
        self.wrote(file, 0, &bytes);
        self.operations.push(Operation::Sync { file });
        self.operations.push(Operation::SyncFolder { folder: parent(path) });
        Ok(())
    }

    fn created(&mut self, path: &Path) -> FileId {
        let file = FileId::nth(self.operations.len());
        self.names.insert(path.to_owned(), file);
        self.lengths.insert(file, 0);
        self.operations.push(Operation::Create { path: path.to_owned(), file });
        file
    }

    fn removed(&mut self, path: &Path) {
        if let Some(file) = self.names.remove(path) {
            self.lengths.remove(&file);
        }
        self.operations.push(Operation::Remove { path: path.to_owned() });
    }

    fn used_bytes(&self) -> u64 {
        self.lengths.values().sum()
    }

    fn length(&self, file: FileId) -> u64 {
        self.lengths.get(&file).copied().unwrap_or(0)
    }

    fn admit_write(&self, life: u64, file: FileId, offset: u64, bytes: usize) -> io::Result<()> {
        let end = offset + bytes as u64;
        self.admit_length(life, file, end.max(self.length(file)))
    }

    fn admit_length(&self, life: u64, file: FileId, length: u64) -> io::Result<()> {
        self.admit(life)?;
        let grows = length.saturating_sub(self.length(file));
        match self.capacity_bytes {
            Some(capacity) if grows > 0 && self.used_bytes() + grows > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn admit(&self, life: u64) -> io::Result<()> {
        if life == self.life { Ok(()) } else { Err(io::Error::other("its owner was killed")) }
    }

    fn wrote(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let length = self.lengths.entry(file).or_default();
        *length = (*length).max(offset + bytes.len() as u64);
        self.operations.push(Operation::Write { file, offset, bytes: bytes.into() });
    }

    fn set_length(&mut self, file: FileId, length: u64) {
        self.lengths.insert(file, length);
        self.operations.push(Operation::SetLength { file, length });
    }

    fn sync(&mut self, life: u64, file: FileId) -> io::Result<()> {
        self.admit(life)?;
        let fails = match &self.fail_syncs {
            Failing::None => false,
            Failing::All => true,
            Failing::Of(path) => self.names.get(path) == Some(&file),
        };
        if fails {
            self.operations.push(Operation::FailedSync { file });
            return Err(io::Error::other("planted: sync failed"));
        }
        if !self.swallow_syncs {
            self.operations.push(Operation::Sync { file });
        }
        Ok(())
    }

    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        if matches!(self.fail_syncs, Failing::All) {
            return Err(io::Error::other("planted: sync of the folder failed"));
        }
        if !self.swallow_syncs {
            self.operations.push(Operation::SyncFolder { folder: folder.to_owned() });
        }
        Ok(())
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

#[cfg(test)]
mod tests;
