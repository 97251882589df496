//! A machine's disk: the faulty disk of `testkit` behind the seam of `orderfile`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use estoppel_orderfile::{AppendFile, Folder};
use estoppel_testkit::disk::{FaultyDisk, FaultyFile};

/// A disk with one folder.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    disk: FaultyDisk,
    folder: PathBuf,
}

impl Disk {
    /// The disk with what a folder holds, which is made where it is missing.
    pub(crate) fn over(folder: PathBuf, syncs_swallowed: bool) -> Self {
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let disk = FaultyDisk::over(&folder).expect("the temporary folder can be read");
        disk.swallow_syncs(syncs_swallowed);
        Self { disk, folder }
    }

    /// The same disk after a power cut, in another folder.
    pub(crate) fn after_power_cut(&self, seed: u64, folder: PathBuf, swallowed: bool) -> Self {
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        self.disk.crash(self.disk.operations(), seed, &folder).expect("the folder can be written");
        Self::over(folder, swallowed)
    }

    /// Cuts off whoever has files open.
    pub(crate) fn kill(&self) {
        self.disk.kill();
    }

    /// Leaves room for this many bytes more, or for all.
    pub(crate) fn leave_room(&self, bytes: Option<u64>) {
        self.disk.set_capacity(bytes.map(|bytes| self.disk.used_bytes() + bytes));
    }

    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.disk.fail_syncs(fail);
    }

    pub(crate) fn content(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }

    /// Puts a file there that is durable, while nobody has it open.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let mut file = self.create(name).expect("a file can be made");
        file.append(content).expect("there is room");
        file.sync().expect("syncs work while the machine is down");
        Folder::sync(self).expect("syncs work while the machine is down");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn open_at(&self, path: &Path) -> io::Result<FaultyFile> {
        if path.exists() { self.disk.open(path) } else { self.disk.create(path) }
    }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: FaultyFile,
    length: u64,
}

impl Folder for Disk {
    type File = DiskFile;

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        let file = self.open_at(&path)?;
        Ok(DiskFile { file, length: fs::metadata(&path)?.len() })
    }

    fn create(&self, name: &str) -> io::Result<DiskFile> {
        let mut file = self.open(name)?;
        file.truncate(0)?;
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.path(from), &self.path(to))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_folder(&self.folder)
    }
}

impl AppendFile for DiskFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < content.len() {
            match self.file.read_at(filled as u64, &mut content[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        content.truncate(filled);
        Ok(content)
    }

    fn rewrite(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_at(0, content)
    }

    /// A disk that has no room for all takes a half, if there is room for that.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_at(self.length, bytes);
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            let half = &bytes[..bytes.len() / 2];
            if self.file.write_at(self.length, half).is_ok() {
                self.length += half.len() as u64;
            }
        } else if written.is_ok() {
            self.length += bytes.len() as u64;
        }
        written
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.truncate(length)?;
        self.length = length;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use estoppel_model::SignedOrder;
    use estoppel_orderfile::OrderSpool;

    use super::*;

    fn order(text: &str) -> SignedOrder {
        SignedOrder { order: text.repeat(600), key: "k".to_owned(), signature: "s".to_owned() }
    }

    /// Invariant *acknowledged-is-kept*. After a failed fsync the kernel takes for written what it
    /// is not. The process that comes next reads it all the same, says that it is durable, and
    /// appends behind it: all of that must be there after a power cut.
    #[test]
    fn what_a_failed_fsync_left_in_memory_is_written_again() {
        for seed in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let disk = Disk::over(folder.path().join("one"), false);
            let (mut spool, _) = OrderSpool::open(&disk).unwrap();
            spool.append([&order("a")]).unwrap();
            disk.fail_syncs(true);
            spool.append([&order("b")]).unwrap_err();
            disk.fail_syncs(false);
            disk.kill();
            let (mut spool, found) = OrderSpool::open(&disk).unwrap();
            assert_eq!(found.orders, [order("a"), order("b")]);
            spool.append([&order("c")]).unwrap();
            let disk = disk.after_power_cut(seed, folder.path().join("two"), false);
            let (_, found) = OrderSpool::open(&disk).unwrap();
            assert_eq!(found.orders, ["a", "b", "c"].map(order), "seed {seed}");
        }
    }
}
