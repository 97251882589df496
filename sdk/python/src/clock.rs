//! The clock of a guard for tests.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use estoppel_model::{Boottime, Clock, SystemClock, Timestamp};

/// The machine's clocks, with the time on top that a test let pass. It never goes back, so that no
/// lease becomes longer by it.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    nanos: AtomicU64,
}

impl Ahead {
    /// Lets so much time pass at once.
    pub(crate) fn let_pass(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let _ = self.nanos.update(Relaxed, Relaxed, |before| before.saturating_add(nanos));
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn boottime(&self) -> Boottime {
        SystemClock.boottime() + Duration::from_nanos(self.nanos.load(Relaxed))
    }
}
