//! Processor time, by the sort of work.

use std::{collections::BTreeMap, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Readings from which the cost of one is taken.
const READINGS: u32 = 10_000;

/// What the server's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A connection is taken in, or let go.
    Connection,
    /// A hello of one that has no orders yet: it is told in which buckets there are some.
    FirstHello,
    /// A hello of one that has what the server has.
    Hello,
    /// A list of orders from an enforcer whose set differs.
    Have,
    /// A ping is answered.
    Ping,
    /// An order is taken: folded, handed to every connection, everyone who must confirm noted.
    Order,
    /// A word that new work is refused.
    Refusing,
    /// A word that work in flight has ended.
    Settled,
    /// Time passes: every lease is looked at.
    Tick,
    /// Somebody asks how far the order is, with those first who are waited for.
    Question,
    /// A frame is written as JSON; what goes to many is written once.
    FrameWritten,
    /// A frame is read: the connection's own task, beside the thread.
    FrameRead,
}

/// What a sort of work took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spent {
    /// How often it was done.
    pub steps: u64,
    /// Processor time of one, on average.
    pub each_us: f64,
    /// Of the longest.
    pub longest_us: f64,
    /// Of all.
    pub total_ms: f64,
}

/// Adds up the processor time of the calling thread.
#[derive(Debug)]
pub(super) struct Meter {
    spent: BTreeMap<Work, (u64, Duration, Duration)>,
    /// What looking at the clock costs.
    reading: Duration,
}

impl Meter {
    pub(super) fn new() -> Self {
        let begun = processor_time();
        for _ in 0..READINGS {
            processor_time();
        }
        let reading = (processor_time() - begun) / (READINGS + 1);
        Self { spent: BTreeMap::new(), reading }
    }

    /// Does some work and adds what it took.
    pub(super) fn measure<T>(&mut self, work: Work, does: impl FnOnce() -> T) -> T {
        let begun = processor_time();
        let done = does();
        let took = (processor_time() - begun).saturating_sub(self.reading);
        let (steps, longest, total) = self.spent.entry(work).or_default();
        *steps += 1;
        *longest = took.max(*longest);
        *total += took;
        done
    }

    /// What some sorts of work took until now, all together.
    pub(super) fn total(&self, of: &[Work]) -> Duration {
        of.iter().filter_map(|work| self.spent.get(work)).map(|(_, _, total)| *total).sum()
    }

    pub(super) fn spent(&self) -> BTreeMap<Work, Spent> {
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let spent = self.spent.iter().map(|(work, (steps, longest, total))| {
            let spent = Spent {
                steps: *steps,
                each_us: micros(*total) / *steps as f64,
                longest_us: micros(*longest),
                total_ms: micros(*total) / 1e3,
            };
            (*work, spent)
        });
        spent.collect()
    }
}

/// What the calling thread has had of the processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("a thread's time counts up from zero");
    let nanos = u32::try_from(time.tv_nsec).expect("less than a second");
    Duration::new(seconds, nanos)
}
