//! Two clocks: the wall, for people and records, and the time since boot, for leases.
//!
//! A lease is never counted on the wall clock, which jumps, nor on `CLOCK_MONOTONIC`, which stands
//! still while a machine sleeps: an agent on a laptop that wakes up after an hour must find its
//! lease over.

use std::{fmt, ops::Add, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant in UTC, in microseconds since 1970; written as RFC 3339 with six digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// The text is no RFC 3339 time, or it lies outside the years that can be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a time: write it as 2026-02-05T03:00:00Z")]
pub struct TimestampError {
    text: String,
}

impl Timestamp {
    /// The instant that is `micros` microseconds after the start of 1970.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this instant, zero if it was later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The year in UTC, as incident numbers carry it.
    pub fn year(self) -> i16 {
        self.civil().year()
    }

    /// Time of day in UTC with milliseconds, such as `03:00:00.125`; for timelines.
    pub fn time_of_day(self) -> String {
        self.civil().strftime("%H:%M:%S%.3f").to_string()
    }

    fn civil(self) -> jiff::civil::DateTime {
        // Out of the range of years that a calendar has: the epoch, which reads as the mistake it is.
        jiff::Timestamp::from_microsecond(self.0)
            .unwrap_or_default()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .datetime()
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.civil().strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Reads an RFC 3339 time with an offset. A time without one is refused: guessing a zone would
    /// move evidence by hours.
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let parsed: jiff::Timestamp =
            text.parse().map_err(|_| TimestampError { text: text.chars().take(64).collect() })?;
        Ok(Self(parsed.as_microsecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An instant of `CLOCK_BOOTTIME`, in nanoseconds since this machine's boot.
///
/// It goes on while the machine sleeps and means nothing on another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Boottime(u64);

impl Boottime {
    /// The instant `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this instant, zero if it was later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved back, at most to the boot.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for Boottime {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where time comes from. Injected, so that tests and the simulation own it.
pub trait Clock: Send + Sync {
    /// The wall clock, in UTC.
    fn now(&self) -> Timestamp;

    /// `CLOCK_BOOTTIME`.
    fn boottime(&self) -> Boottime;
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn boottime(&self) -> Boottime {
        (**self).boottime()
    }
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp(time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000))
    }

    #[inline]
    fn boottime(&self) -> Boottime {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The kernel counts both parts up from zero.
        Boottime(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_and_written_in_utc() {
        let time: Timestamp = "2026-02-05T04:00:00+01:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-02-05T03:00:00.000000Z");
        assert_eq!(time.year(), 2026);
        assert_eq!(time.time_of_day(), "03:00:00.000");
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-02-05T03:00:00.000000Z\"");
    }

    #[test]
    fn a_time_without_a_zone_is_refused() {
        for text in ["2026-02-05 03:00", "2026-02-05T03:00:00", "yesterday", ""] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_boot_clock_goes_forward() {
        let first = SystemClock.boottime();
        assert!(SystemClock.boottime() >= first);
        assert!(first > Boottime::from_nanos(0));
    }
}
