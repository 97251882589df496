//! The one writer of the log: takes batches, writes groups, syncs once a group, then answers.
//!
//! Blocking; runs on its own thread. A sync that fails poisons the log: what the disk then holds is
//! unknown, so nothing more is accepted until the log is opened again and read back.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::{Segment, encode_frame, file_name};
use crate::{
    AppendError, AppendReport,
    disk::{Disk, DiskFile},
    layout::SharedLayout,
    log::OnSync,
    row,
    window::Window,
};

/// What the writer is asked.
pub(crate) enum Request {
    /// Write these events.
    Append(Append),
    /// Finish what was asked before, then end.
    Close,
}

/// Events on their way to the disk.
pub(crate) struct Append {
    pub(crate) events: Vec<Vec<u8>>,
    pub(crate) reply: oneshot::Sender<Result<AppendReport, AppendError>>,
    /// Room in memory, given back when the batch is answered.
    pub(crate) room: OwnedSemaphorePermit,
}

impl Append {
    fn bytes(&self) -> usize {
        self.events.iter().map(Vec::len).sum()
    }
}

struct Active {
    file: Box<dyn DiskFile>,
    segment: Segment,
    capacity: u64,
}

pub(crate) struct Writer {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) folder: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) group_bytes: usize,
    pub(crate) group_wait: Duration,
    pub(crate) window: Window,
    pub(crate) layout: SharedLayout,
    /// Told when a segment is full.
    pub(crate) segment_full: Arc<Notify>,
    active: Option<Active>,
    next_seq: u64,
    /// Set once, for good: why nothing is written any more.
    poison: Arc<OnceLock<Arc<str>>>,
    on_sync: Option<OnSync>,
    frame: Vec<u8>,
}

/// Where and how a [`Writer`] writes.
pub(crate) struct WriterConfig {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) folder: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) group_bytes: usize,
    pub(crate) group_wait: Duration,
    pub(crate) on_sync: Option<OnSync>,
}

impl Writer {
    pub(crate) fn new(
        config: WriterConfig,
        window: Window,
        next_seq: u64,
        layout: SharedLayout,
        segment_full: Arc<Notify>,
    ) -> Self {
        let WriterConfig { disk, folder, segment_bytes, group_bytes, group_wait, on_sync } = config;
        Self {
            disk,
            folder,
            segment_bytes,
            group_bytes,
            group_wait,
            window,
            layout,
            segment_full,
            active: None,
            next_seq,
            poison: Arc::default(),
            on_sync,
            frame: Vec::new(),
        }
    }

    /// Where it will say why it takes no more events.
    pub(crate) fn poison(&self) -> Arc<OnceLock<Arc<str>>> {
        Arc::clone(&self.poison)
    }

    /// Serves until it is told to close, or until nobody is left who could ask.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        let mut open = true;
        while open && let Ok(Request::Append(first)) = requests.recv() {
            let deadline = Instant::now() + self.group_wait;
            let mut bytes = first.bytes();
            let mut group = vec![first];
            while bytes < self.group_bytes {
                match requests.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(Request::Append(next)) => {
                        bytes += next.bytes();
                        group.push(next);
                    }
                    Ok(Request::Close) | Err(RecvTimeoutError::Disconnected) => {
                        open = false;
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            self.commit(group);
        }
        self.end_segment();
    }

    fn commit(&mut self, group: Vec<Append>) {
        if let Some(reason) = self.poison.get() {
            return answer_all(group, || AppendError::Poisoned { reason: Arc::clone(reason) });
        }
        let (mut new, mut reports) = (Vec::new(), Vec::with_capacity(group.len()));
        for append in &group {
            let mut report = AppendReport::default();
            for event in &append.events {
                if row::id_of(event).is_none_or(|id| self.window.insert(id)) {
                    report.accepted += 1;
                    new.push(event.as_slice());
                } else {
                    report.duplicates += 1;
                }
            }
            reports.push(report);
        }
        // A duplicate of an event in this very group is answered after the sync, too.
        if !new.is_empty() {
            let count = new.len();
            let mut frame = std::mem::take(&mut self.frame);
            encode_frame(self.next_seq, new.into_iter(), &mut frame);
            let written = self.write(&frame, count);
            self.frame = frame;
            if let Err(error) = written {
                self.window.forget_newest(count);
                return answer_all(group, || error.to_append_error());
            }
        }
        for (append, report) in group.into_iter().zip(reports) {
            // Whoever asked may have gone: the events are kept all the same.
            let _gone = append.reply.send(Ok(report));
            drop(append.room);
        }
    }

    fn write(&mut self, frame: &[u8], count: usize) -> Result<(), WriteError> {
        let length = frame.len() as u64;
        if self.active.as_ref().is_some_and(|active| active.segment.end + length > active.capacity)
        {
            self.end_segment();
            self.segment_full.notify_one();
        }
        let active = match &mut self.active {
            Some(active) => active,
            none => {
                let capacity = self.segment_bytes.max(length);
                let path = self.folder.join(file_name(self.next_seq));
                let file = self
                    .disk
                    .create(&path, capacity)
                    .map_err(|error| WriteError::Retry(error.into()))?;
                if let Err(error) = self.disk.sync_folder(&self.folder) {
                    return Err(self.poisoned("folder sync", &error));
                }
                let next_seq = self.next_seq;
                let segment = Segment { first_seq: next_seq, next_seq, end: 0 };
                none.insert(Active { file, segment, capacity })
            }
        };
        let written = active.file.write_at(active.segment.end, frame);
        let synced = match written {
            Ok(()) => {
                let begun = Instant::now();
                let synced = active.file.sync();
                if let Some(on_sync) = &self.on_sync {
                    on_sync(begun.elapsed());
                }
                synced.map_err(|error| ("sync", error))
            }
            // The reserved room was not kept, and nothing was synced: the next group may fit.
            Err(error) if is_full(&error) => return Err(WriteError::Retry(error.into())),
            Err(error) => Err(("write", error)),
        };
        if let Err((what, error)) = synced {
            return Err(self.poisoned(what, &error));
        }
        active.segment.end += length;
        active.segment.next_seq += count as u64;
        self.next_seq = active.segment.next_seq;
        self.layout.advance(&active.segment);
        Ok(())
    }

    fn poisoned(&mut self, what: &str, error: &io::Error) -> WriteError {
        let reason: Arc<str> = format!("{what} failed: {error}").into();
        tracing::error!(%reason, "the event log takes no more events until it is opened again");
        // It is set once: nothing is written afterwards that could fail.
        let _ = self.poison.set(Arc::clone(&reason));
        WriteError::Poisoned(reason)
    }

    /// Gives the room behind the last frame back. Only tidiness: readers stop at the end anyway.
    fn end_segment(&mut self) {
        if let Some(mut active) = self.active.take()
            && let Err(error) = active.file.truncate(active.segment.end)
        {
            tracing::warn!(%error, "the end of a log segment could not be given back");
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

enum WriteError {
    /// Nothing was written; later it may work.
    Retry(Arc<io::Error>),
    Poisoned(Arc<str>),
}

impl WriteError {
    fn to_append_error(&self) -> AppendError {
        match self {
            Self::Retry(error) if is_full(error) => AppendError::Full,
            Self::Retry(error) => AppendError::Unavailable { source: Arc::clone(error) },
            Self::Poisoned(reason) => AppendError::Poisoned { reason: Arc::clone(reason) },
        }
    }
}

fn answer_all(group: Vec<Append>, error: impl Fn() -> AppendError) {
    for append in group {
        let _gone = append.reply.send(Err(error()));
    }
}
