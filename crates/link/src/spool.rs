//! A bounded store on disk for events that could not be delivered yet.
//!
//! Events lie in segment files, each named after the number of its first event; every event has a
//! number, counted up without holes. So whatever is missing afterwards (a sector that went bad, a
//! file that someone deleted, a write that the power cut) is noticed and counted exactly, and
//! nothing but what is damaged is lost. A group of events is one write and one fsync; what was
//! appended survives a power cut. After a failed write or fsync the file is never written again: its
//! tail is cut off and a new file goes on.
//!
//! Delivery is at least once: a file goes when all of it was delivered, so a crash in between sends
//! its events again, under the same ids. It does not order events among several folders, and one
//! folder belongs to one process at a time.

mod frame;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use estoppel_model::Timestamp;

use frame::Frames;

/// A segment that has reached this size is followed by a new one.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const SUFFIX: &str = "events";
/// Room beyond the bound, for the report on events that found none.
const RESERVE_BYTES: u64 = 64 * 1024;

/// An event as it is sent: one line of JSON without a line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The event's time.
    pub(crate) at: Timestamp,
    /// Its JSON.
    pub(crate) json: String,
}

/// Events that are gone, and the times between which they lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How many.
    pub(crate) events: u64,
    /// Time of the last event before them or of the first of them.
    pub(crate) from: Timestamp,
    /// Time of the first event after them or of the last of them.
    pub(crate) to: Timestamp,
}

impl Loss {
    /// The loss of one event.
    pub(crate) const fn one(at: Timestamp) -> Self {
        Self { events: 1, from: at, to: at }
    }

    /// Both losses as one.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            events: self.events.saturating_add(other.events),
            from: self.from.min(other.from),
            to: self.to.max(other.to),
        }
    }
}

/// How far an append may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Up to the bound.
    Usual,
    /// A little beyond: what is appended reports that the bound was reached.
    Reserve,
}

/// Why the spool's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Two processes would mix up their events.
    #[error("`{dir}` is in use by another process: give each enforcer a folder of its own")]
    InUse {
        /// The folder.
        dir: String,
    },
    /// The operating system refused.
    #[error("cannot use the event spool in `{dir}`")]
    Io {
        /// The folder.
        dir: String,
        /// Why.
        source: io::Error,
    },
}

/// One file of consecutive events.
#[derive(Debug)]
struct Segment {
    first: u64,
    /// Bytes that are known to be written and synced; what lies behind is not ours.
    bytes: u64,
}

/// Where reading stands in the oldest segment.
#[derive(Debug)]
struct Reading {
    content: Vec<u8>,
    at_byte: usize,
}

/// What was read together, to be given back to [`Spool::delivered`].
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The events, oldest first.
    pub(crate) lines: Vec<Line>,
    end_byte: usize,
    next: u64,
    last_at: Timestamp,
    loss: Option<Loss>,
}

/// The store. Its calls block; none of them waits for anything but the disk.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    segments: VecDeque<Segment>,
    /// Open while the newest segment may grow.
    writer: Option<File>,
    /// Number of the next event to be appended.
    next_append: u64,
    /// Number of the next event to be delivered.
    next_deliver: u64,
    reading: Option<Reading>,
    last_at: Timestamp,
    loss: Option<Loss>,
    /// Holds the lock on the folder.
    _lock: File,
}

impl Spool {
    /// Opens the store in `dir`, which is made if it is missing, and finds what an earlier process
    /// left. Damage is counted and never stands in the way.
    ///
    /// # Errors
    /// When the folder cannot be made, read or locked.
    pub(crate) fn open(dir: &Path, bytes_max: u64, now: Timestamp) -> Result<Self, SpoolError> {
        let io = |source| SpoolError::Io { dir: dir.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(SpoolError::InUse { dir: dir.display().to_string() });
            }
            Err(fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut segments = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Some(first) = segment_number(&entry.path()) else { continue };
            match entry.metadata().map_err(io)?.len() {
                // The process ended between making the file and writing to it.
                0 => fs::remove_file(entry.path()).map_err(io)?,
                bytes => segments.push(Segment { first, bytes }),
            }
        }
        segments.sort_unstable_by_key(|segment| segment.first);
        let next_deliver = segments.first().map_or(0, |segment| segment.first);
        let mut spool = Self {
            dir: dir.to_owned(),
            bytes_max,
            segments: segments.into(),
            writer: None,
            next_append: next_deliver,
            next_deliver,
            reading: None,
            last_at: now,
            loss: None,
            _lock: lock,
        };
        if let Some(newest) = spool.segments.back() {
            let content = fs::read(path(&spool.dir, newest.first)).map_err(io)?;
            let mut frames = Frames::new(&content, 0);
            let last = frames.by_ref().map(|frame| frame.number).max();
            let after = last.map_or(newest.first, |last| last + 1);
            // A write that was cut short held at least one event.
            spool.next_append = after + u64::from(frames.end_damaged());
        }
        Ok(spool)
    }

    /// Appends as many of the events, from the first on, as there is room for, and returns their
    /// number once they are on disk.
    ///
    /// # Errors
    /// When writing or syncing fails; none of the events is kept then.
    pub(crate) fn append(&mut self, lines: &[Line], room: Room) -> io::Result<usize> {
        let reserve = if room == Room::Reserve { RESERVE_BYTES } else { 0 };
        let mut room = (self.bytes_max + reserve).saturating_sub(self.bytes());
        let mut buffer = Vec::new();
        let mut kept = 0;
        for (line, number) in lines.iter().zip(self.next_append..) {
            let bytes = frame::bytes(line);
            if bytes > room {
                break;
            }
            room -= bytes;
            frame::write(&mut buffer, number, line);
            kept += 1;
        }
        if kept > 0 {
            self.write(&buffer)?;
            self.next_append += kept as u64;
        }
        Ok(kept)
    }

    /// Reads the oldest events that were not delivered, at most `events_max` of them, and no more
    /// once `bytes_max` is reached. No lines: there are none.
    pub(crate) fn oldest(&mut self, events_max: usize, bytes_max: usize) -> Chunk {
        loop {
            let Some(front) = self.segments.front() else {
                return Chunk {
                    lines: Vec::new(),
                    end_byte: 0,
                    next: self.next_append,
                    last_at: self.last_at,
                    loss: None,
                };
            };
            if self.reading.is_none() {
                let (first, bytes) = (front.first, front.bytes);
                if self.segments.len() == 1 {
                    // What is read grows no more.
                    self.writer = None;
                }
                match fs::read(path(&self.dir, first)) {
                    Ok(mut content) => {
                        content.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
                        self.reading = Some(Reading { content, at_byte: 0 });
                    }
                    Err(error) => {
                        tracing::error!(%error, segment = first, "a spooled segment cannot be read");
                        self.drop_oldest_segment();
                        continue;
                    }
                }
            }
            let chunk = self.chunk(events_max, bytes_max);
            if !chunk.lines.is_empty() {
                return chunk;
            }
            self.drop_oldest_segment();
        }
    }

    /// Forgets the events of a chunk, which were delivered.
    pub(crate) fn delivered(&mut self, chunk: &Chunk) {
        let Some(reading) = &mut self.reading else { return };
        reading.at_byte = chunk.end_byte;
        self.next_deliver = chunk.next;
        self.last_at = chunk.last_at;
        self.lose(chunk.loss);
        if reading_is_over(self.reading.as_ref()) {
            self.drop_oldest_segment();
        }
    }

    /// What was found to be missing since the last call.
    pub(crate) const fn take_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Events on disk that were not delivered, damaged ones included.
    pub(crate) const fn events(&self) -> u64 {
        self.next_append.saturating_sub(self.next_deliver)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    fn write(&mut self, buffer: &[u8]) -> io::Result<()> {
        if self.segments.back().is_some_and(|newest| newest.bytes >= SEGMENT_BYTES) {
            self.writer = None;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            closed @ None => {
                let path = path(&self.dir, self.next_append);
                let file =
                    fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
                if let Err(error) = File::open(&self.dir).and_then(|dir| dir.sync_all()) {
                    let _ = fs::remove_file(&path);
                    return Err(error);
                }
                self.segments.push_back(Segment { first: self.next_append, bytes: 0 });
                closed.insert(file)
            }
        };
        let written = writer.write_all(buffer).and_then(|()| writer.sync_data());
        let Some(newest) = self.segments.back_mut() else { return written };
        match written {
            Ok(()) => {
                newest.bytes += buffer.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A failed fsync may have thrown pages away while later ones succeed: this file is
                // not written again, and what it holds beyond the synced part is cut off or, where
                // that fails too, skipped by its numbers, which the next file gives out anew.
                let _ = writer.set_len(newest.bytes);
                self.writer = None;
                if newest.bytes == 0 {
                    let first = newest.first;
                    self.segments.pop_back();
                    let _ = fs::remove_file(path(&self.dir, first));
                }
                Err(error)
            }
        }
    }

    /// Reads on in the segment that is being read; empty when it is over.
    fn chunk(&self, events_max: usize, bytes_max: usize) -> Chunk {
        let mut chunk = Chunk {
            lines: Vec::new(),
            end_byte: 0,
            next: self.next_deliver,
            last_at: self.last_at,
            loss: None,
        };
        let Some(reading) = &self.reading else { return chunk };
        let numbers_end = self.segments.get(1).map_or(self.next_append, |next| next.first);
        let mut bytes = 0;
        let mut frames = Frames::new(&reading.content, reading.at_byte);
        while chunk.lines.len() < events_max && bytes < bytes_max {
            let Some(frame) = frames.next() else { break };
            chunk.end_byte = frames.at_byte();
            // Numbers that came before were rewritten after a failed fsync; numbers that belong to
            // the next segment were not acknowledged here.
            if frame.number < chunk.next || frame.number >= numbers_end {
                continue;
            }
            if frame.number > chunk.next {
                let events = frame.number - chunk.next;
                let loss = Loss { events, from: chunk.last_at.min(frame.at), to: frame.at };
                chunk.loss = Some(chunk.loss.map_or(loss, |known| known.and(loss)));
            }
            chunk.next = frame.number + 1;
            chunk.last_at = frame.at;
            bytes += frame.json.len();
            chunk.lines.push(Line { at: frame.at, json: frame.json.to_owned() });
        }
        chunk
    }

    /// Deletes the oldest segment and counts what of it could not be read.
    fn drop_oldest_segment(&mut self) {
        self.reading = None;
        let Some(segment) = self.segments.pop_front() else { return };
        if self.segments.is_empty() {
            self.writer = None;
        }
        let end = self.segments.front().map_or(self.next_append, |next| next.first);
        if end > self.next_deliver {
            let (events, at) = (end - self.next_deliver, self.last_at);
            self.lose(Some(Loss { events, from: at, to: at }));
        }
        self.next_deliver = end;
        if let Err(error) = fs::remove_file(path(&self.dir, segment.first)) {
            tracing::warn!(%error, segment = segment.first, "a delivered segment cannot be deleted");
        }
    }

    fn lose(&mut self, loss: Option<Loss>) {
        self.loss = match (self.loss, loss) {
            (Some(known), Some(new)) => Some(known.and(new)),
            (known, new) => known.or(new),
        };
    }
}

fn reading_is_over(reading: Option<&Reading>) -> bool {
    reading.is_some_and(|reading| reading.at_byte >= reading.content.len())
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.{SUFFIX}"))
}

fn segment_number(path: &Path) -> Option<u64> {
    (path.extension()? == SUFFIX).then_some(())?;
    path.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
