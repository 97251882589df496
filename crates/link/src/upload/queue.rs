//! Events in memory, bounded by their bytes; whatever finds no room is counted. What was taken out
//! keeps its room until it is settled: it may have to come back.
//!
//! While there is plenty of room they wait as they came: writing one as JSON costs several times what
//! the rest of an agent's step does, and is left to the task that sends.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use estoppel_model::{Event, Timestamp};
use tokio::sync::Notify;

use crate::spool::{Line, Loss};

/// Memory that an event takes beside its text.
const OVERHEAD_BYTES: usize = 64;
/// Part of the room up to which events wait unwritten; they take more of it than their lines would.
const UNWRITTEN: usize = 8;

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
    waiting: VecDeque<Waiting>,
    /// Of what waits.
    bytes: usize,
    /// Of what was taken out and is not settled.
    lent: usize,
    /// Lost and not yet reported.
    gap: Option<Loss>,
    lost: u64,
    /// Nobody takes events out any more.
    closed: bool,
}

#[derive(Debug)]
enum Waiting {
    Line(Line),
    /// Not written yet, with the memory that it takes.
    Event(Event, Timestamp, usize),
}

/// How full the queue is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    /// That wait.
    pub(super) events: u64,
    /// Of what waits.
    pub(super) bytes: u64,
    /// Room in use, in bytes: what waits, and what was taken out and may come back.
    pub(super) used: u64,
    pub(super) lost: u64,
}

/// Events that were taken out, to go to a server or to disk; [`Queue::settle`] ends it.
#[derive(Debug, Default)]
#[must_use = "the room of what was taken out stays in use until it is settled"]
pub(super) struct Loan {
    pub(super) lines: Vec<Line>,
    /// Room that they keep.
    bytes: usize,
}

impl Loan {
    /// Makes one loan of two.
    pub(super) fn append(&mut self, mut other: Self) {
        self.lines.append(&mut other.lines);
        self.bytes += other.bytes;
    }

    /// The same room, and no lines: they are elsewhere now.
    pub(super) fn emptied(mut self) -> Self {
        self.lines.clear();
        self
    }
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

    /// Adds an event that takes so much memory, if there is plenty of room; else gives it back.
    pub(super) fn push_unwritten(
        &self,
        event: Event,
        at: Timestamp,
        bytes: usize,
    ) -> Result<(), Event> {
        let mut inner = self.lock();
        let is_tight = inner.used() > self.bytes_max / 2;
        if inner.closed || is_tight || inner.bytes + bytes > self.bytes_max / UNWRITTEN {
            return Err(event);
        }
        inner.bytes += bytes;
        inner.waiting.push_back(Waiting::Event(event, at, bytes));
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// Adds an event, or counts it as lost.
    pub(super) fn push(&self, line: Line) {
        let mut inner = self.lock();
        let before = inner.bytes;
        if inner.closed || inner.used() + cost(&line) > self.bytes_max {
            inner.lose(Loss::one(line.at));
        } else {
            inner.bytes += cost(&line);
            inner.waiting.push_back(Waiting::Line(line));
        }
        let half = self.bytes_max / 2;
        let is_half_full = before <= half && inner.bytes > half;
        drop(inner);
        self.arrived.notify_one();
        if is_half_full {
            self.half_full.notify_one();
        }
    }

    /// Takes the oldest events, at most `events_max`, and no more once `bytes_max` is reached. Those
    /// that cannot be written are counted as lost.
    pub(super) fn take(&self, events_max: usize, bytes_max: usize) -> Loan {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < events_max && bytes < bytes_max {
            let Some(waiting) = inner.waiting.pop_front() else { break };
            bytes += waiting.bytes();
            taken.push(waiting);
        }
        inner.bytes -= bytes;
        inner.lent += bytes;
        drop(inner);
        Loan { lines: self.written(taken), bytes }
    }

    /// Ends a loan: its room is free again, but for the lines that are left in it, which go back in
    /// front. Those that find no room are lost, the oldest first.
    pub(super) fn settle(&self, loan: Loan) {
        let mut inner = self.lock();
        inner.lent -= loan.bytes;
        for line in loan.lines.into_iter().rev() {
            if inner.used() + cost(&line) > self.bytes_max {
                inner.lose(Loss::one(line.at));
            } else {
                inner.bytes += cost(&line);
                inner.waiting.push_front(Waiting::Line(line));
            }
        }
    }

    fn written(&self, waiting: impl IntoIterator<Item = Waiting>) -> Vec<Line> {
        let lines = waiting.into_iter().filter_map(|waiting| match waiting {
            Waiting::Line(line) => Some(line),
            Waiting::Event(event, at, _) => super::line(event)
                .map(|json| Line { at, json })
                .inspect_err(|error| {
                    tracing::warn!(%error, "an event cannot be sent");
                    self.lose_several(Loss::one(at));
                })
                .ok(),
        });
        lines.collect()
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

    /// Counts all further events as lost. Takes those that are left.
    pub(super) fn close(&self) -> Loan {
        self.lock().closed = true;
        self.take(usize::MAX, usize::MAX)
    }

    pub(super) fn fill(&self) -> Fill {
        let inner = self.lock();
        Fill {
            events: inner.waiting.len() as u64,
            bytes: inner.bytes as u64,
            used: inner.used() as u64,
            lost: inner.lost,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn used(&self) -> usize {
        self.bytes + self.lent
    }

    fn lose(&mut self, loss: Loss) {
        self.lost = self.lost.saturating_add(loss.events);
        self.gap = Some(self.gap.map_or(loss, |gap| gap.and(loss)));
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        match self {
            Self::Line(line) => cost(line),
            Self::Event(_, _, bytes) => *bytes,
        }
    }
}

fn cost(line: &Line) -> usize {
    line.json.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use estoppel_model::{AuditEvent, Untrusted};
    use serde_json::Value;

    use super::*;

    fn event(action: String) -> Event {
        Event::Audit(Box::new(AuditEvent {
            action: Some(Untrusted::new(action)),
            ..AuditEvent::default()
        }))
    }

    /// Events wait unwritten up to an eighth of the room, and come out in order, each with an id.
    #[test]
    fn events_wait_as_they_came_while_there_is_plenty_of_room() {
        let queue = Queue::new(8 * 1_000);
        let at = Timestamp::default();
        let refused =
            (0..).find(|n: &u32| queue.push_unwritten(event(n.to_string()), at, 100).is_err());
        assert_eq!((refused, queue.fill().bytes), (Some(10), 1_000));
        let json = crate::upload::line(event("10".to_owned())).unwrap();
        queue.push(Line { at, json });
        let first = queue.take(4, usize::MAX);
        assert_eq!(first.lines.len(), 4);
        queue.settle(first);
        let Loan { lines, .. } = queue.take(usize::MAX, usize::MAX);
        let values: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(&line.json).unwrap()).collect();
        let actions: Vec<&str> =
            values.iter().filter_map(|value| value["action"].as_str()).collect();
        assert_eq!(actions, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
        let ids: HashSet<&str> = values.iter().filter_map(|value| value["id"].as_str()).collect();
        assert_eq!(ids.len(), lines.len());
        assert_eq!((queue.fill().events, queue.fill().bytes, queue.fill().lost), (0, 0, 0));
    }

    /// What is on its way to a server or to disk has not left: it may come back, and finds its room.
    #[test]
    fn what_is_lent_keeps_its_room() {
        let at = Timestamp::default();
        let line = |n: u8| Line { at, json: char::from(n).to_string().repeat(36) };
        let queue = Queue::new(1_000);
        (b'0'..b'8').for_each(|n| queue.push(line(n)));
        let mut loan = queue.take(5, usize::MAX);
        let fill = queue.fill();
        assert_eq!((fill.events, fill.bytes, fill.used), (3, 300, 800));
        // Two more find room, and a third one does not.
        (b'8'..b'9' + 2).for_each(|n| queue.push(line(n)));
        assert_eq!((queue.fill().used, queue.fill().lost), (1_000, 1));
        loan.lines.drain(..2);
        queue.settle(loan);
        assert_eq!((queue.fill().used, queue.fill().lost), (800, 1));
        let left = queue.close();
        let firsts: String =
            left.lines.iter().filter_map(|line| line.json.chars().next()).collect();
        assert_eq!(firsts, "23456789");
        queue.settle(left.emptied());
        assert_eq!(queue.fill().used, 0);
    }

    /// What is too large for an event is counted, by whomever it is written.
    #[test]
    fn an_event_that_cannot_be_written_is_counted() {
        let queue = Queue::new(100 * 1024 * 1024);
        let huge = event("x".repeat(estoppel_model::EVENT_BYTES_MAX));
        assert!(queue.push_unwritten(huge, Timestamp::default(), 1).is_ok());
        assert!(queue.push_unwritten(event("small".to_owned()), Timestamp::default(), 1).is_ok());
        assert_eq!(queue.take(usize::MAX, usize::MAX).lines.len(), 1);
        assert_eq!(queue.fill().lost, 1);
        assert_eq!(queue.take_gap().map(|loss| loss.events), Some(1));
    }
}
