//! At most so many requests each minute, for `limit` orders: a bucket that holds a minute's worth of
//! requests and empties evenly. Pure; the caller brings the time and the bound of the moment.
//!
//! After a quiet minute a whole minute's worth may be made at once, and then one as soon as one has
//! leaked out: over a long time never more than the bound, in one minute at most twice as many. A
//! bound that becomes stricter, or looser, holds for what is in the bucket already.

use std::time::Duration;

use estoppel_model::Boottime;

/// One request, as the bucket counts it: of a bound of `n`, `n` of these units leak out each nanosecond,
/// so that nothing is ever rounded.
const REQUEST: u128 = Duration::from_mins(1).as_nanos();

/// What was asked for lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// At most the bound, times [`REQUEST`].
    level: u128,
    at: Boottime,
}

/// A request came too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {per_minute} requests each minute: {}", again(.retry_after))]
pub struct TooSoon {
    /// The bound.
    pub per_minute: u32,
    /// When there is room for one: never zero. `None` where the bound is none at all.
    pub retry_after: Option<Duration>,
}

fn again(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!("try again in {:.1} s", wait.as_secs_f64().max(0.1)),
        None => "none may be made".to_owned(),
    }
}

impl Rate {
    /// Counts a request, if there is room for it. One that is refused does not count.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&mut self, per_minute: u32, now: Boottime) -> Result<(), TooSoon> {
        let each_nano = u128::from(per_minute);
        let room = each_nano * REQUEST;
        let leaked = now.since(self.at).as_nanos().saturating_mul(each_nano);
        self.level = self.level.min(room).saturating_sub(leaked);
        // A clock that was set back stands still.
        self.at = self.at.max(now);
        let level = self.level + REQUEST;
        if level <= room {
            self.level = level;
            return Ok(());
        }
        let wait = (each_nano > 0).then(|| (level - room).div_ceil(each_nano));
        // It is a minute at most, so that it fits.
        let retry_after =
            wait.map(|nanos| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        Err(TooSoon { per_minute, retry_after })
    }

    /// Whether it is as good as new: whatever the bound, a bucket is empty after a minute.
    pub fn is_empty(&self, now: Boottime) -> bool {
        self.level == 0 || now.since(self.at).as_nanos() >= REQUEST
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Boottime {
        Boottime::default() + Duration::from_millis(ms)
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_one_by_one() {
        let mut rate = Rate::default();
        for _ in 0..4 {
            rate.take(4, at(1_000)).unwrap();
        }
        let too_soon = rate.take(4, at(1_000)).unwrap_err();
        assert_eq!(too_soon.retry_after, Some(Duration::from_secs(15)));
        assert_eq!(too_soon.to_string(), "at most 4 requests each minute: try again in 15.0 s");
        let too_soon = rate.take(4, at(15_999)).unwrap_err();
        assert_eq!(too_soon.retry_after, Some(Duration::from_millis(1)));
        rate.take(4, at(16_000)).unwrap();
        rate.take(4, at(16_000)).unwrap_err();
        assert!(!rate.is_empty(at(75_999)) && rate.is_empty(at(76_000)));
        for _ in 0..4 {
            rate.take(4, at(76_000)).unwrap();
        }
    }

    #[test]
    fn a_bound_that_changes_holds_for_what_was_asked_before() {
        let mut rate = Rate::default();
        for _ in 0..600 {
            rate.take(600, at(0)).unwrap();
        }
        let stricter = rate.take(6, at(0)).unwrap_err();
        assert_eq!(stricter.retry_after, Some(Duration::from_secs(10)), "and not in 99 minutes");
        rate.take(600, at(0)).unwrap();
        let none = rate.take(0, at(0)).unwrap_err();
        assert_eq!(none.retry_after, None);
        assert_eq!(none.to_string(), "at most 0 requests each minute: none may be made");
        rate.take(u32::MAX, at(0)).unwrap();
    }

    proptest! {
        /// Whatever comes when, as much passes as leaks out and one bucket more at most; who waits as
        /// long as is said finds room, and who waits a nanosecond less finds none.
        #[test]
        fn no_more_passes_than_the_bound(
            per_minute in 1_u32..200,
            pauses_ns in prop::collection::vec(0_u64..2_000_000_000, 1..300),
        ) {
            let mut rate = Rate::default();
            let mut now = Boottime::default();
            let mut passed = 0_u128;
            for pause in pauses_ns {
                now = now + Duration::from_nanos(pause);
                match rate.take(per_minute, now) {
                    Ok(()) => passed += 1,
                    Err(TooSoon { retry_after, .. }) => {
                        let wait = retry_after.unwrap();
                        prop_assert!(wait > Duration::ZERO && wait <= Duration::from_mins(1));
                        let (mut in_time, mut early) = (rate, rate);
                        prop_assert!(in_time.take(per_minute, now + wait).is_ok());
                        let before = now + (wait - Duration::from_nanos(1));
                        prop_assert!(early.take(per_minute, before).is_err());
                    }
                }
                let leaked = now.since(Boottime::default()).as_nanos() * u128::from(per_minute);
                prop_assert!(passed * REQUEST <= u128::from(per_minute) * REQUEST + leaked);
            }
        }
    }
}
