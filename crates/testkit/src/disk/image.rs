//! From recorded operations to the files that a power cut leaves.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// What a disk writes as one.
const SECTOR_BYTES: usize = 512;
/// How likely an un-synced change is kept; one of these is drawn for each file.
const CHANCES: [f64; 5] = [0.0, 0.1, 0.5, 0.9, 1.0];

/// A file, whatever its name is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct FileId(usize);

impl FileId {
    pub(crate) const fn nth(nth: usize) -> Self {
        Self(nth)
    }
}

/// What was done to the disk.
#[derive(Debug)]
pub(crate) enum Operation {
    Create { path: PathBuf, file: FileId },
    Write { file: FileId, offset: u64, bytes: Box<[u8]> },
    SetLength { file: FileId, length: u64 },
    Sync { file: FileId },
    FailedSync { file: FileId },
    Rename { from: PathBuf, to: PathBuf, file: FileId },
    Remove { path: PathBuf },
    SyncFolder { folder: PathBuf },
    Mark(u64),
}

/// A file's content: what is surely on the disk, and what may be.
#[derive(Default)]
struct Content<'o> {
    durable: Vec<u8>,
    pending: Vec<Change<'o>>,
}

enum Change<'o> {
    Write { offset: u64, bytes: &'o [u8] },
    SetLength(u64),
}

/// A change of names.
enum Naming<'o> {
    Is(&'o Path, FileId),
    Gone(&'o Path),
    Moved(&'o Path, &'o Path, FileId),
}

pub(crate) fn materialise(
    operations: &[Operation],
    seed: u64,
    root: &Path,
    into: &Path,
) -> io::Result<Vec<u64>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut contents: BTreeMap<FileId, Content<'_>> = BTreeMap::new();
    let mut names: HashMap<&Path, FileId> = HashMap::new();
    let mut renamings: Vec<Naming<'_>> = Vec::new();
    let mut marks = Vec::new();
    for operation in operations {
        match operation {
            Operation::Create { path, file } => {
                contents.insert(*file, Content::default());
                renamings.push(Naming::Is(path, *file));
            }
            Operation::Write { file, offset, bytes } => {
                let change = Change::Write { offset: *offset, bytes };
                contents.entry(*file).or_default().pending.push(change);
            }
            Operation::SetLength { file, length } => {
                contents.entry(*file).or_default().pending.push(Change::SetLength(*length));
            }
            Operation::Sync { file } => contents.entry(*file).or_default().keep(1.0, &mut random),
            // The kernel marks pages that it could not write as clean: no later sync writes them.
            Operation::FailedSync { file } => {
                let chance = draw(&mut random);
                contents.entry(*file).or_default().keep(chance, &mut random);
            }
            Operation::Rename { from, to, file } => renamings.push(Naming::Moved(from, to, *file)),
            Operation::Remove { path } => renamings.push(Naming::Gone(path)),
            Operation::SyncFolder { folder } => {
                let (synced, rest) =
                    renamings.into_iter().partition(|naming| naming.folder() == Some(folder));
                renamings = rest;
                Vec::into_iter(synced).for_each(|naming: Naming<'_>| naming.apply(&mut names));
            }
            Operation::Mark(mark) => marks.push(*mark),
        }
    }
    let chance = draw(&mut random);
    for naming in renamings {
        if random.random_bool(chance) {
            naming.apply(&mut names);
        }
    }
    for content in contents.values_mut() {
        let chance = draw(&mut random);
        content.keep(chance, &mut random);
    }
    for (path, file) in names {
        let target = into.join(path.strip_prefix(root).map_err(io::Error::other)?);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(target, contents.get(&file).map_or(&[][..], |content| &content.durable))?;
    }
    Ok(marks)
}

fn draw(random: &mut StdRng) -> f64 {
    CHANCES[random.random_range(0..CHANCES.len())]
}

impl Content<'_> {
    /// Makes each pending change durable with a chance, sector by sector, and forgets the others.
    fn keep(&mut self, chance: f64, random: &mut StdRng) {
        // Blocks that a file got and that were never written hold zeros, or what was there before.
        let garbage = chance < 1.0 && random.random_bool(0.25);
        for change in self.pending.drain(..) {
            match change {
                Change::SetLength(length) if random.random_bool(chance) => {
                    self.durable.resize(index(length), 0);
                }
                Change::SetLength(_) => {}
                Change::Write { offset, bytes } => {
                    for (start, sector) in sectors(offset, bytes) {
                        if random.random_bool(chance) {
                            write(&mut self.durable, start, sector, garbage, random);
                        }
                    }
                }
            }
        }
    }
}

fn write(file: &mut Vec<u8>, start: usize, bytes: &[u8], garbage: bool, random: &mut StdRng) {
    while file.len() < start {
        file.push(if garbage { random.random() } else { 0 });
    }
    let end = (start + bytes.len()).max(file.len());
    file.resize(end, 0);
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

/// Cuts a write where sectors end.
fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut start = index(offset);
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = SECTOR_BYTES - start % SECTOR_BYTES;
        let (sector, after) = rest.split_at(room.min(rest.len()));
        rest = after;
        let at = start;
        start += sector.len();
        Some((at, sector))
    })
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl<'o> Naming<'o> {
    fn folder(&self) -> Option<&'o Path> {
        match self {
            Self::Is(path, _) | Self::Gone(path) | Self::Moved(_, path, _) => path.parent(),
        }
    }

    fn apply(self, names: &mut HashMap<&'o Path, FileId>) {
        match self {
            Self::Is(path, file) => {
                names.insert(path, file);
            }
            Self::Gone(path) => {
                names.remove(path);
            }
            Self::Moved(from, to, file) => {
                // The old name may be another file's by now, or never have become durable.
                if names.get(from) == Some(&file) {
                    names.remove(from);
                }
                names.insert(to, file);
            }
        }
    }
}
