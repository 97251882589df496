//! Reading the log back at the start: what is whole, what a crash tore, what is damaged.
//!
//! Nothing is dropped in silence: damage is reported by file, place and sequence numbers, and the
//! bytes of a torn or unreadable file go to the folder `quarantine`. The last segment of a log that
//! was not closed is written anew before it counts: after a failed sync the operating system may
//! show bytes that the disk does not have.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Damage, DamageKind, Segment, encode_frame, file_name, scan};
use crate::{
    OpenError,
    disk::Disk,
    layout::{SEAL_VERSION, Seal, SealedFile, Snapshot},
    row,
    window::Window,
};

/// The folders of a log.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    pub(crate) wal: PathBuf,
    pub(crate) segments: PathBuf,
    pub(crate) quarantine: PathBuf,
}

impl Folders {
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            wal: folder.join("wal"),
            segments: folder.join("segments"),
            quarantine: folder.join("quarantine"),
        }
    }

    /// Creates what is missing.
    pub(crate) fn create(&self, disk: &dyn Disk) -> Result<(), OpenError> {
        for folder in [&self.wal, &self.segments, &self.quarantine] {
            fs::create_dir_all(folder).map_err(|source| OpenError::at(folder, source))?;
        }
        match self.wal.parent() {
            Some(parent) => disk.sync_folder(parent).map_err(|e| OpenError::at(parent, e)),
            None => Ok(()),
        }
    }
}

/// A log that was read back.
pub(crate) struct Recovered {
    pub(crate) layout: Snapshot,
    pub(crate) next_seq: u64,
    pub(crate) window: Window,
    pub(crate) damage: Vec<Damage>,
}

/// Reads the log in `folders` back.
pub(crate) fn recover(
    folders: &Folders,
    disk: &dyn Disk,
    dedup_window: usize,
) -> Result<Recovered, OpenError> {
    let mut recovery = Recovery { folders, disk, damage: Vec::new() };
    let sealed = recovery.seals()?;
    let mut window = Window::new(dedup_window);
    recovery.sealed_ids(&sealed, dedup_window, &mut window);
    let sealed_to = sealed.last().map_or(0, |seal| seal.next_seq);
    let (wal, next_seq) = recovery.wal(&sealed, sealed_to, &mut window)?;
    let lost = recovery
        .damage
        .iter()
        .filter(|damage| damage.kind == DamageKind::Missing)
        .map(|damage| damage.lost)
        .sum();
    let layout = Snapshot { sealed, wal, lost };
    Ok(Recovered { layout, next_seq, window, damage: recovery.damage })
}

struct Recovery<'a> {
    folders: &'a Folders,
    disk: &'a dyn Disk,
    damage: Vec<Damage>,
}

impl Recovery<'_> {
    /// The sealed segments in order. Files that no manifest names are left over from a crash while
    /// sealing; their events are still in the write-ahead log.
    fn seals(&mut self) -> Result<Vec<Arc<Seal>>, OpenError> {
        let folder = &self.folders.segments;
        let mut names = names(folder)?;
        names.sort();
        let mut seals: Vec<Arc<Seal>> = Vec::new();
        let mut unreadable = false;
        for name in names.iter().filter(|name| name.ends_with(".json")) {
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(|source| OpenError::at(&path, source))?;
            let seal = serde_json::from_slice::<Seal>(&bytes)
                .ok()
                .filter(|seal| seal.version == SEAL_VERSION && seal.file_name() == *name);
            let Some(seal) = seal else {
                unreadable = true;
                let to = self.folders.quarantine.join(name);
                self.disk.rename(&path, &to).map_err(|source| OpenError::at(&path, source))?;
                self.damage.push(Damage {
                    file: to,
                    bytes: 0..bytes.len() as u64,
                    seqs: 0..0,
                    lost: 0,
                    kind: DamageKind::Corrupt,
                });
                continue;
            };
            let expected = seals.last().map_or(0, |seal| seal.next_seq);
            self.gap(&path, expected, seal.first_seq);
            seals.push(Arc::new(seal));
        }
        if !unreadable {
            for name in &names {
                let known = |seal: &Arc<Seal>| {
                    seal.file_name() == *name
                        || seal.ids.name == *name
                        || seal.tables.iter().any(|table| table.file.name == *name)
                };
                if !seals.iter().any(known) {
                    let path = folder.join(name);
                    self.disk.remove(&path).map_err(|source| OpenError::at(&path, source))?;
                }
            }
        }
        Ok(seals)
    }

    /// Ids of the newest sealed events, the oldest of them first, into the window.
    fn sealed_ids(&self, seals: &[Arc<Seal>], wanted: usize, window: &mut Window) {
        let mut files = Vec::new();
        let mut have = 0;
        for seal in seals.iter().rev() {
            if have >= wanted {
                break;
            }
            let folder = &self.folders.segments;
            let read =
                check(folder, &seal.ids).and_then(|()| fs::read(folder.join(&seal.ids.name)));
            match read {
                Ok(bytes) => {
                    have += bytes.len() / 16;
                    files.push(bytes);
                }
                Err(error) => {
                    tracing::warn!(
                        file = seal.ids.name, %error,
                        "ids of sealed events are gone: an event that is sent again may be there twice"
                    );
                    break;
                }
            }
        }
        for id in files.iter().rev().flat_map(|bytes| bytes.chunks_exact(16)) {
            if let Ok(id) = Uuid::from_slice(id) {
                window.insert(id);
            }
        }
    }

    fn wal(
        &mut self,
        seals: &[Arc<Seal>],
        sealed_to: u64,
        window: &mut Window,
    ) -> Result<(Vec<Segment>, u64), OpenError> {
        let folder = self.folders.wal.clone();
        let mut firsts = Vec::new();
        for name in names(&folder)? {
            match name.strip_suffix(".wal").and_then(|first| first.parse::<u64>().ok()) {
                Some(first) if file_name(first) == name => firsts.push(first),
                // A rewritten segment that did not get its name before a crash.
                _ => {
                    let path = folder.join(&name);
                    self.disk.remove(&path).map_err(|source| OpenError::at(&path, source))?;
                }
            }
        }
        firsts.sort_unstable();
        let (mut segments, mut next_seq): (Vec<Segment>, _) = (Vec::new(), sealed_to);
        for (index, first) in firsts.iter().copied().enumerate() {
            let path = folder.join(file_name(first));
            if first < sealed_to {
                self.retire(&path, seals, first)?;
                continue;
            }
            self.gap(&path, next_seq, first);
            let segment = self.segment(&path, first, index + 1 == firsts.len(), window)?;
            next_seq = segment.next_seq.max(first);
            if segment.end > 0 {
                segments.push(segment);
            }
        }
        self.disk.sync_folder(&folder).map_err(|source| OpenError::at(&folder, source))?;
        Ok((segments, next_seq))
    }

    /// Does away with a write-ahead file whose events are sealed.
    fn retire(&self, path: &Path, seals: &[Arc<Seal>], first: u64) -> Result<(), OpenError> {
        let seal = seals.iter().find(|seal| seal.first_seq <= first && first < seal.next_seq);
        let lost = seal.is_some_and(|seal| seal.lost > 0);
        retire(self.disk, self.folders, path, lost).map_err(|source| OpenError::at(path, source))
    }

    fn segment(
        &mut self,
        path: &Path,
        first: u64,
        last: bool,
        window: &mut Window,
    ) -> Result<Segment, OpenError> {
        let at = |source| OpenError::at(path, source);
        let bytes = fs::read(path).map_err(at)?;
        let mut scanned = scan(&bytes, 0, first, |_, event| {
            if let Some(id) = row::id_of(event) {
                window.insert(id);
            }
        });
        for hole in &scanned.holes {
            self.damage.push(Damage {
                file: path.to_owned(),
                bytes: hole.bytes.clone(),
                seqs: hole.seqs.clone(),
                lost: hole.lost,
                kind: DamageKind::Corrupt,
            });
        }
        let durable = usize::try_from(scanned.end).unwrap_or(bytes.len());
        if !scanned.tail.is_empty() {
            let copy = self.quarantine_tail(path, &bytes[durable..])?;
            self.damage.push(Damage {
                file: copy,
                bytes: scanned.tail.clone(),
                seqs: scanned.next_seq..scanned.next_seq,
                lost: 0,
                kind: DamageKind::Torn,
            });
        }
        if last && (durable < bytes.len() || bytes.is_empty()) {
            let mut whole = bytes[..durable].to_vec();
            let events = std::mem::take(&mut scanned.tail_events);
            if !events.is_empty() {
                for id in events.iter().filter_map(|(_, event)| row::id_of(event)) {
                    window.insert(id);
                }
                let mut frame = Vec::new();
                let good = events.iter().map(|(_, event)| event.as_slice());
                encode_frame(scanned.next_seq, good, &mut frame);
                whole.extend_from_slice(&frame);
                scanned.next_seq += events.len() as u64;
            }
            scanned.end = whole.len() as u64;
            if whole.is_empty() {
                self.disk.remove(path).map_err(at)?;
            } else {
                crate::disk::replace(self.disk, path, &whole).map_err(at)?;
            }
        }
        Ok(Segment { first_seq: first, next_seq: scanned.next_seq, end: scanned.end })
    }

    fn quarantine_tail(&self, path: &Path, tail: &[u8]) -> Result<PathBuf, OpenError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hash = hex::encode(Sha256::digest(tail));
        let copy = self.folders.quarantine.join(format!("{name}.{}.torn", &hash[..16]));
        let used = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        crate::disk::replace(self.disk, &copy, &tail[..used])
            .map_err(|source| OpenError::at(&copy, source))?;
        Ok(copy)
    }

    fn gap(&mut self, before: &Path, expected: u64, found: u64) {
        if found > expected {
            self.damage.push(Damage {
                file: before.to_owned(),
                bytes: 0..0,
                seqs: expected..found,
                lost: found - expected,
                kind: DamageKind::Missing,
            });
        }
    }
}

/// Does away with a write-ahead file whose events are sealed; keeps it if some could not be read.
pub(crate) fn retire(
    disk: &dyn Disk,
    folders: &Folders,
    path: &Path,
    lost: bool,
) -> io::Result<()> {
    if lost && let Some(name) = path.file_name() {
        return disk.rename(path, &folders.quarantine.join(name));
    }
    disk.remove(path)
}

/// Checks a file of a sealed segment against its manifest, without holding it in memory.
pub(crate) fn check(folder: &Path, file: &SealedFile) -> io::Result<()> {
    let mut open = fs::File::open(folder.join(&file.name))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut part = vec![0; 128 * 1024];
    loop {
        let read = open.read(&mut part)?;
        if read == 0 {
            break;
        }
        hash.update(&part[..read]);
        bytes += read as u64;
    }
    if bytes != file.bytes || hex::encode(hash.finalize()) != file.sha256 {
        let message = "its bytes are not those that its manifest names";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>, OpenError> {
    let at = |source| OpenError::at(folder, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(at)? {
        names.push(entry.map_err(at)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
