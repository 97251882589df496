//! How often something may happen: at once so often, and then once in a while.

use std::time::Duration;

use estoppel_model::Boottime;

/// A bucket of tokens that fills again.
#[derive(Debug)]
pub(super) struct Bucket {
    most: u32,
    every: Duration,
    left: u32,
    filled: Boottime,
}

impl Bucket {
    /// A full bucket of `most`, into which one comes back `every` so long.
    pub(super) const fn new(most: u32, every: Duration, now: Boottime) -> Self {
        Self { most, every, left: most, filled: now }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Boottime) -> bool {
        let every = self.every.as_nanos().max(1);
        let back = now.since(self.filled).as_nanos() / every;
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        if back >= self.most - self.left {
            (self.left, self.filled) = (self.most, now);
        } else {
            self.left += back;
            self.filled = self.filled + self.every * back;
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_in_a_while() {
        let at = |ms: u64| Boottime::from_nanos(ms * 1_000_000);
        let mut bucket = Bucket::new(3, Duration::from_millis(100), at(1_000));
        let taken = |bucket: &mut Bucket, ms| (0..10).filter(|_| bucket.take(at(ms))).count();
        assert_eq!(taken(&mut bucket, 1_000), 3);
        assert_eq!(taken(&mut bucket, 1_099), 0);
        assert_eq!(taken(&mut bucket, 1_100), 1);
        assert_eq!(taken(&mut bucket, 1_350), 2, "parts of a while are not lost");
        assert_eq!(taken(&mut bucket, 1_400), 1);
        assert_eq!(taken(&mut bucket, 9_000_000), 3, "never more than fit in");
    }
}
