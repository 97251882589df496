//! What an enforcer keeps over a restart: the server's key that it saw first, its token's tenant,
//! the last checkpoint, and its orders.
//!
//! It can only add halts; an enforcer that starts is refused until a server answers. A line that
//! cannot be read, also a torn last one, makes the whole file doubtful: a halt may be missing, so
//! nothing goes before a server has said what is ordered, whatever the owner chose for a lost
//! lease. The file is written anew only then.
//!
//! After a failed write or fsync the file is not written again (what the disk holds is unknown);
//! orders stay in force in memory.

use std::io;

use estoppel_killswitch::enforcer::{Keep, Kept};

use crate::{AppendFile as _, Folder, line};

const FILE: &str = "orders";
const UNFINISHED: &str = "orders.new";
/// Largest file that is read: more than a million orders.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The cache of a folder, which no other process may open meanwhile.
#[derive(Debug)]
pub struct OrderCache<D: Folder> {
    folder: D,
    /// `None` once a write has failed.
    file: Option<D::File>,
}

/// What the file held.
#[derive(Debug, Default)]
pub struct Found {
    /// What could be read.
    pub kept: Kept,
    /// How many lines could not be read.
    pub damaged: usize,
}

impl<D: Folder> OrderCache<D> {
    /// Opens the cache of a folder, which is made where it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened or read, or is larger than 1 GiB.
    pub fn open(folder: D) -> io::Result<(Self, Found)> {
        let mut file = folder.open(FILE)?;
        let bytes = file.length()?;
        if bytes > FILE_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {FILE_BYTES_MAX}: delete the file");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let content = file.read()?;
        let found = read(&content);
        // It may be in memory only: see `AppendFile::rewrite`.
        file.rewrite(&content)?;
        if !content.is_empty() && !content.ends_with(b"\n") {
            // What is appended must not become part of the torn line.
            file.append(b"\n")?;
        }
        file.sync()?;
        // The file's name must outlast a power cut, too.
        folder.sync()?;
        Ok((Self { folder, file: Some(file) }, found))
    }

    /// Whether no write has failed since the start, or since the file was last replaced.
    pub const fn is_well(&self) -> bool {
        self.file.is_some()
    }

    /// Appends, and returns when it is on the disk.
    ///
    /// # Errors
    /// When the disk refuses now or has refused before.
    pub fn append(&mut self, things: &[Keep]) -> io::Result<()> {
        let lines = things.iter().map(line::encode).collect::<Result<String, _>>()?;
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("an earlier write failed: restart when the disk is well"));
        };
        let written = file.append(lines.as_bytes()).and_then(|()| file.sync());
        if written.is_err() {
            self.file = None;
        }
        written
    }

    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses; what was there before is there still, or all of this is.
    pub fn replace(&mut self, kept: Kept) -> io::Result<()> {
        let Kept { server_key, tenant, checkpoint, contact, break_glass, orders } = kept;
        let things = server_key
            .map(Keep::ServerKey)
            .into_iter()
            .chain(std::iter::once(Keep::Tenant(tenant)))
            .chain(checkpoint.map(Keep::Checkpoint))
            .chain(std::iter::once(Keep::Contact(contact)))
            .chain(break_glass.into_iter().map(|usage| Keep::BreakGlass(Box::new(usage))))
            .chain(orders.into_iter().map(Keep::Order));
        let lines = things.map(|thing| line::encode(&thing)).collect::<Result<String, _>>()?;
        let mut file = self.folder.create(UNFINISHED)?;
        file.append(lines.as_bytes())?;
        file.sync()?;
        self.folder.rename(UNFINISHED, FILE)?;
        // From here on the name may be either file's.
        self.file = None;
        self.folder.sync()?;
        self.file = Some(self.folder.open(FILE)?);
        Ok(())
    }
}

fn read(content: &[u8]) -> Found {
    let mut found = Found::default();
    let torn = !content.is_empty() && !content.ends_with(b"\n");
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        match line::decode(line) {
            Some(Keep::ServerKey(key)) => found.kept.server_key = Some(key),
            Some(Keep::Tenant(tenant)) => found.kept.tenant = tenant,
            Some(Keep::Checkpoint(checkpoint)) => found.kept.checkpoint = Some(checkpoint),
            Some(Keep::Contact(contact)) => found.kept.contact = contact,
            Some(Keep::BreakGlass(usage)) => found.kept.break_glass.push(*usage),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use estoppel_model::SignedOrder;

    use super::*;
    use crate::RealFolder;

    fn open(dir: &tempfile::TempDir) -> (OrderCache<RealFolder>, Found) {
        OrderCache::open(RealFolder::at(dir.path())).unwrap()
    }

    fn order(text: &str) -> Keep {
        let (key, signature) = ("k".to_owned(), "s".to_owned());
        Keep::Order(SignedOrder { order: text.to_owned(), key, signature })
    }

    #[test]
    fn what_was_appended_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, found) = open(&dir);
        assert!(found.damaged == 0 && found.kept.orders.is_empty());
        cache.append(&[Keep::ServerKey("abc".to_owned()), order("one\ntwo")]).unwrap();
        cache.append(&[Keep::Checkpoint("note\n".to_owned()), order("three")]).unwrap();
        drop(cache);
        let (_cache, found) = open(&dir);
        assert_eq!(found.damaged, 0);
        assert_eq!(found.kept.server_key.as_deref(), Some("abc"));
        assert_eq!(found.kept.checkpoint.as_deref(), Some("note\n"));
        let texts: Vec<_> = found.kept.orders.iter().map(|order| order.order.as_str()).collect();
        assert_eq!(texts, ["one\ntwo", "three"]);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = open(&dir);
        cache.append(&[order("one"), order("two")]).unwrap();
        let content = fs::read(dir.path().join(FILE)).unwrap();
        for (at, bit) in (0..content.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = content.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped).damaged > 0, "bit {bit} of byte {at} flipped");
        }
        let end_of_first = content.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for len in (1..content.len()).filter(|len| *len != end_of_first) {
            assert!(read(&content[..len]).damaged > 0, "cut to {len} bytes");
        }
    }

    #[test]
    fn a_damaged_file_stays_so_until_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cache, _) = open(&dir);
        cache.append(&[order("one")]).unwrap();
        drop(cache);
        let path = dir.path().join(FILE);
        let mut content = fs::read(&path).unwrap();
        content.truncate(content.len() - 3);
        fs::write(&path, content).unwrap();
        let (mut cache, found) = open(&dir);
        assert_eq!((found.damaged, found.kept.orders.len()), (1, 0));
        cache.append(&[order("two")]).unwrap();
        drop(cache);
        let (mut cache, found) = open(&dir);
        assert_eq!((found.damaged, found.kept.orders.len()), (1, 1), "the new line is whole");
        cache.replace(found.kept).unwrap();
        cache.append(&[order("three")]).unwrap();
        drop(cache);
        let (_cache, found) = open(&dir);
        assert_eq!((found.damaged, found.kept.orders.len()), (0, 2));
    }
}
