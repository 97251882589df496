//! The seam for file operations, and the real folder behind it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A folder with files that are appended to.
pub trait Folder {
    /// Its files.
    type File: AppendFile;

    /// Opens a file, which is made where it is missing. Its name is durable after
    /// [`Folder::sync`] only.
    ///
    /// # Errors
    /// As the file system's.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Makes an empty file, in the place of one that is there.
    ///
    /// # Errors
    /// As the file system's.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Renames a file over another.
    ///
    /// # Errors
    /// As the file system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes durable what was made and renamed.
    ///
    /// # Errors
    /// As the file system's.
    fn sync(&self) -> io::Result<()>;
}

/// A file that is appended to.
pub trait AppendFile {
    /// How long it is, in bytes.
    ///
    /// # Errors
    /// As the file system's.
    fn length(&self) -> io::Result<u64>;

    /// All that it holds.
    ///
    /// # Errors
    /// As the file system's.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Writes from the beginning what [`AppendFile::read`] has given, so that the next sync writes it
    /// to the disk. What was read may be in memory only: after a failed fsync the kernel takes its
    /// pages for written, also for the process that comes next.
    ///
    /// # Errors
    /// As the file system's.
    fn rewrite(&mut self, content: &[u8]) -> io::Result<()>;

    /// Writes at the end; after an error a part may be there.
    ///
    /// # Errors
    /// As the file system's, such as of a full disk.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts it to a length.
    ///
    /// # Errors
    /// As the file system's.
    fn truncate(&mut self, length: u64) -> io::Result<()>;

    /// Makes its content durable. After an error nobody knows what the disk holds.
    ///
    /// # Errors
    /// As the file system's.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the machine. Files are made readable by their owner alone.
#[derive(Debug, Clone)]
pub struct RealFolder {
    path: PathBuf,
}

impl RealFolder {
    /// The folder at a path, which must exist.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Folder for RealFolder {
    type File = File;

    fn open(&self, name: &str) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        // Not for appending: Linux then appends what is written again, too.
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl AppendFile for File {
    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.rewind()?;
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn rewrite(&mut self, content: &[u8]) -> io::Result<()> {
        self.rewind()?;
        self.write_all(content)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seek(io::SeekFrom::End(0))?;
        self.write_all(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        // The length is content; times are not worth another write.
        self.sync_data()
    }
}
