//! Events in memory, bounded by their bytes; whatever finds no room is counted.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use estoppel_model::Timestamp;
use tokio::sync::Notify;

use crate::spool::{Line, Loss};

/// Memory that an event takes beside its text.
const OVERHEAD_BYTES: usize = 64;

/// The queue between [`super::Uploader::send`] and the task that sends.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    inner: Mutex<Inner>,
    /// Told of each event that comes. Costs the agent's step next to nothing while nobody waits for it.
    pub(super) arrived: Notify,
    /// Told when half of the room is used.
    pub(super) half_full: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lost and not yet reported.
    gap: Option<Loss>,
    lost: u64,
    /// Nobody takes events out any more.
    closed: bool,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            inner: Mutex::default(),
            arrived: Notify::new(),
            half_full: Notify::new(),
        }
    }

    /// Adds an event, or counts it as lost.
    pub(super) fn push(&self, line: Line) {
        let mut inner = self.lock();
        let before = inner.bytes;
        if inner.closed || before + cost(&line) > self.bytes_max {
            inner.lose(Loss::one(line.at));
        } else {
            inner.bytes += cost(&line);
            inner.lines.push_back(line);
        }
        let half = self.bytes_max / 2;
        let is_half_full = before <= half && inner.bytes > half;
        drop(inner);
        self.arrived.notify_one();
        if is_half_full {
            self.half_full.notify_one();
        }
    }

    /// Takes the oldest events, at most `events_max`, and no more once `bytes_max` is reached.
    pub(super) fn take(&self, events_max: usize, bytes_max: usize) -> Vec<Line> {
        let mut inner = self.lock();
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < events_max && bytes < bytes_max {
            let Some(line) = inner.lines.pop_front() else { break };
            bytes += line.json.len();
            inner.bytes -= cost(&line);
            lines.push(line);
        }
        lines
    }

    /// Puts events back in front that were taken and went nowhere; those that find no room are
    /// lost, the oldest first.
    pub(super) fn put_back(&self, lines: Vec<Line>) {
        let mut inner = self.lock();
        for line in lines.into_iter().rev() {
            if inner.bytes + cost(&line) > self.bytes_max {
                inner.lose(Loss::one(line.at));
            } else {
                inner.bytes += cost(&line);
                inner.lines.push_front(line);
            }
        }
    }

    /// Counts an event that was never queued.
    pub(super) fn lose(&self, at: Timestamp) {
        self.lose_several(Loss::one(at));
        self.arrived.notify_one();
    }

    /// Counts events that were lost elsewhere.
    pub(super) fn lose_several(&self, loss: Loss) {
        self.lock().lose(loss);
    }

    /// Takes the count of what was lost since the last call.
    pub(super) fn take_gap(&self) -> Option<Loss> {
        self.lock().gap.take()
    }

    /// Counts all further events as lost. Returns those that are left.
    pub(super) fn close(&self) -> Vec<Line> {
        let mut inner = self.lock();
        inner.closed = true;
        inner.bytes = 0;
        std::mem::take(&mut inner.lines).into()
    }

    pub(super) fn fill(&self) -> Fill {
        let inner = self.lock();
        Fill { events: inner.lines.len() as u64, bytes: inner.bytes as u64, lost: inner.lost }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lose(&mut self, loss: Loss) {
        self.lost = self.lost.saturating_add(loss.events);
        self.gap = Some(self.gap.map_or(loss, |gap| gap.and(loss)));
    }
}

fn cost(line: &Line) -> usize {
    line.json.len() + OVERHEAD_BYTES
}
