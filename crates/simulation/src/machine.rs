//! A machine's clocks: each was booted at another time, runs a little fast or slow, and has a wall
//! clock that is wrong and jumps.

use std::time::Duration;

use estoppel_killswitch::Now;
use estoppel_model::{Boottime, Timestamp};
use rand::{RngExt as _, rngs::StdRng};

/// How much faster or slower than true a boot clock runs at most: that of a bad oscillator.
const DRIFT_PPM_MAX: i64 = 200;
/// Two such clocks drift apart by this part of a second each second.
pub(crate) const DRIFT_APART_PPM: u32 = 2 * 200 + 1;

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    booted: Duration,
    drift_ppm: i64,
    wall_off_us: i64,
    /// It sleeps: nothing runs here until then, but the boot clock.
    pub(crate) asleep_until: Duration,
}

impl Machine {
    pub(crate) fn new(random: &mut StdRng) -> Self {
        Self {
            booted: Duration::from_secs(random.random_range(0..100_000)),
            drift_ppm: random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX),
            wall_off_us: random.random_range(-7_200_000_000..=7_200_000_000),
            asleep_until: Duration::ZERO,
        }
    }

    /// What its clocks show at a true time.
    pub(crate) fn now(&self, time: Duration) -> Now {
        let true_ns = i128::try_from(time.as_nanos()).expect("a world lasts minutes");
        let own_ns = true_ns + true_ns * i128::from(self.drift_ppm) / 1_000_000;
        let own = Duration::from_nanos(u64::try_from(own_ns).expect("time goes forward"));
        let wall_us = i64::try_from(time.as_micros()).expect("a world lasts minutes");
        Now {
            wall: Timestamp::from_micros(EPOCH_US + wall_us + self.wall_off_us),
            boot: Boottime::default() + self.booted + own,
        }
    }

    /// Somebody sets the wall clock.
    pub(crate) const fn jump(&mut self, seconds: i64) {
        self.wall_off_us += seconds * 1_000_000;
    }

    /// Nothing runs until then.
    pub(crate) fn sleep(&mut self, until: Duration) {
        self.asleep_until = self.asleep_until.max(until);
    }

    pub(crate) fn is_asleep(&self, time: Duration) -> bool {
        time < self.asleep_until
    }
}

/// 22 November 2026.
pub(crate) const EPOCH_US: i64 = 1_795_305_600_000_000;
