//! What an enforcer keeps over a restart: the server's key that it saw first, its token's tenant,
//! the last checkpoint, and its orders.
//!
//! One file, only appended to: a line of CRC32C and JSON for each thing, fsynced in groups. It can
//! only add halts; an enforcer that starts is refused until a server answers. A line that cannot be
//! read, also a torn last one, makes the whole file doubtful: a halt may be missing, so nothing goes
//! before a server has said what is ordered, whatever the owner chose for a lost lease. The file is
//! written anew only then.
//!
//! After a failed write or fsync the file is not written again (what the disk holds is unknown);
//! orders stay in force in memory.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use estoppel_killswitch::enforcer::{Keep, Kept};

const FILE: &str = "orders";
/// Largest file that is read: more than a million orders.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The file of a state folder, which no other process can open meanwhile.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    /// `None` once a write has failed.
    file: Option<File>,
    _lock: File,
}

/// What the file held.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) kept: Kept,
    /// How many lines could not be read.
    pub(crate) damaged: usize,
}

impl Cache {
    /// Opens the file of a folder, which is made where it is missing.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, Found)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let lock = options.open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another enforcer uses it: give each a folder of its own",
            ),
        })?;
        let path = dir.join(FILE);
        let mut file = options.open(&path)?;
        let bytes = file.metadata()?.len();
        if bytes > FILE_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {FILE_BYTES_MAX}: delete the file");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let found = read(&content);
        if !content.is_empty() && !content.ends_with(b"\n") {
            // What is appended must not become part of the torn line.
            file.write_all(b"\n")?;
        }
        // The file's name must outlast a power cut, too.
        File::open(dir)?.sync_all()?;
        Ok((Self { path, file: Some(file), _lock: lock }, found))
    }

    /// Appends, and returns when it is on the disk.
    pub(crate) fn append(&mut self, things: &[Keep]) -> io::Result<()> {
        let lines: String = things.iter().map(line).collect();
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("an earlier write failed: restart when the disk is well"));
        };
        let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            self.file = None;
        }
        written
    }

    /// Writes the file anew, whole or not at all.
    pub(crate) fn replace(&mut self, kept: Kept) -> io::Result<()> {
        let Kept { server_key, tenant, checkpoint, orders } = kept;
        let things = server_key
            .map(Keep::ServerKey)
            .into_iter()
            .chain(std::iter::once(Keep::Tenant(tenant)))
            .chain(checkpoint.map(Keep::Checkpoint))
            .chain(orders.into_iter().map(Keep::Order));
        let lines: String = things.map(|thing| line(&thing)).collect();
        let unfinished = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.file = Some(fs::OpenOptions::new().append(true).open(&self.path)?);
        Ok(())
    }
}

fn line(thing: &Keep) -> String {
    // Texts, an enum of them and an optional id: this cannot fail to be JSON.
    let json = serde_json::to_string(thing).unwrap_or_default();
    format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes()))
}

fn read(content: &[u8]) -> Found {
    let mut found = Found::default();
    let torn = !content.is_empty() && !content.ends_with(b"\n");
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        match parse(line) {
            Some(Keep::ServerKey(key)) => found.kept.server_key = Some(key),
            Some(Keep::Tenant(tenant)) => found.kept.tenant = tenant,
            Some(Keep::Checkpoint(checkpoint)) => found.kept.checkpoint = Some(checkpoint),
            Some(Keep::Order(order)) => found.kept.orders.push(order),
            None => found.damaged += 1,
        }
    }
    if torn && found.damaged == 0 {
        // The line is whole but for its end: it was never acknowledged.
        found.damaged = 1;
    }
    found
}

fn parse(line: &[u8]) -> Option<Keep> {
    let (crc, json) = line.split_at_checked(9)?;
    let crc = std::str::from_utf8(crc).ok()?.strip_suffix(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc == crc32c::crc32c(json)).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use estoppel_model::SignedOrder;

    use super::*;

    fn order(text: &str) -> Keep {
        let (key, signature) = ("k".to_owned(), "s".to_owned());
        Keep::Order(SignedOrder { order: text.to_owned(), key, signature })
    }

    #[test]
    fn what_was_appended_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, found) = Cache::open(dir.path()).unwrap();
        assert!(found.damaged == 0 && found.kept.orders.is_empty());
        cache.append(&[Keep::ServerKey("abc".to_owned()), order("one\ntwo")]).unwrap();
        cache.append(&[Keep::Checkpoint("note\n".to_owned()), order("three")]).unwrap();
        drop(cache);
        let (_cache, found) = Cache::open(dir.path()).unwrap();
        assert_eq!(found.damaged, 0);
        assert_eq!(found.kept.server_key.as_deref(), Some("abc"));
        assert_eq!(found.kept.checkpoint.as_deref(), Some("note\n"));
        let texts: Vec<_> = found.kept.orders.iter().map(|order| order.order.as_str()).collect();
        assert_eq!(texts, ["one\ntwo", "three"]);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        cache.append(&[order("one"), order("two")]).unwrap();
        let content = fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..content.len() {
            let mut flipped = content.clone();
            flipped[at] ^= 1;
            assert!(read(&flipped).damaged > 0, "byte {at} flipped");
        }
        let end_of_first = content.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for len in (1..content.len()).filter(|len| *len != end_of_first) {
            assert!(read(&content[..len]).damaged > 0, "cut to {len} bytes");
        }
    }

    #[test]
    fn a_damaged_file_stays_so_until_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(dir.path()).unwrap();
        cache.append(&[order("one")]).unwrap();
        drop(cache);
        let path = dir.path().join(FILE);
        let mut content = fs::read(&path).unwrap();
        content.truncate(content.len() - 3);
        fs::write(&path, content).unwrap();
        let (mut cache, found) = Cache::open(dir.path()).unwrap();
        assert_eq!((found.damaged, found.kept.orders.len()), (1, 0));
        cache.append(&[order("two")]).unwrap();
        drop(cache);
        let (mut cache, found) = Cache::open(dir.path()).unwrap();
        assert_eq!((found.damaged, found.kept.orders.len()), (1, 1), "the new line is whole");
        cache.replace(found.kept).unwrap();
        cache.append(&[order("three")]).unwrap();
        drop(cache);
        let (_cache, found) = Cache::open(dir.path()).unwrap();
        assert_eq!((found.damaged, found.kept.orders.len()), (0, 2));
    }

    #[test]
    fn a_folder_belongs_to_one_enforcer() {
        let dir = tempfile::tempdir().unwrap();
        let _cache = Cache::open(dir.path()).unwrap();
        let error = Cache::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another enforcer uses it"), "{error}");
    }
}
