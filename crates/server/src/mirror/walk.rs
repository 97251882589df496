//! A walk over all keys that begin as ours do, at a pace that leaves Redis to its other clients.
//!
//! Redis looks at every key that it has for it, a thousand in each step, and answers nobody else
//! meanwhile: a million foreign keys cost it about half a second in all. So each step is followed by
//! a pause in proportion to what it took.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses in proportion to the step before: the first walk takes half of Redis' time at most, the
/// later ones a tenth; where Redis tells of no changes, a quarter.
const FIRST: u32 = 1;
const QUIET: u32 = 9;
const POLLING: u32 = 3;
/// From the end of a walk to the next, where changes are told, and where not.
const NEXT: Duration = Duration::from_secs(60);
const NEXT_POLLING: Duration = Duration::from_millis(250);

/// Where a walk is.
#[derive(Debug)]
pub(super) struct Walk {
    cursor: u64,
    due: Instant,
    pause: u32,
    polling: bool,
    /// Another walk follows at once.
    again: bool,
    /// Keys of this walk that belong to no scope, and what is wrong with one of them.
    pub(super) ignored: usize,
    pub(super) example: Option<String>,
}

impl Walk {
    /// A walk that begins now.
    pub(super) fn begin(polling: bool) -> Self {
        let due = Instant::now();
        Self { cursor: 0, due, pause: FIRST, polling, again: false, ignored: 0, example: None }
    }

    /// Where the next step goes on.
    pub(super) const fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Resolves when the next step is due.
    pub(super) async fn due(&self) {
        tokio::time::sleep_until(self.due).await;
    }

    /// A step was made from `begun` on and led to this cursor; whether the walk is at its end.
    pub(super) fn stepped(&mut self, cursor: u64, begun: Instant) -> bool {
        self.cursor = cursor;
        let now = Instant::now();
        if cursor != 0 {
            self.due = now + (now - begun) * self.pause;
            return false;
        }
        let again = std::mem::take(&mut self.again);
        self.due = now + if self.polling || again { NEXT_POLLING } else { NEXT };
        self.pause = if self.polling { POLLING } else { QUIET };
        true
    }

    /// A step was refused: the walk begins anew after a while.
    pub(super) fn refused(&mut self) {
        self.cursor = 0;
        self.due = Instant::now() + NEXT;
    }

    /// Something was missed: all keys are to be looked at, after this walk or from now on. A walk is
    /// always led to its end, so that none can be kept from it by much that is missed.
    pub(super) fn anew(&mut self) {
        if self.cursor == 0 {
            self.due = self.due.min(Instant::now());
        } else {
            self.again = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_that_missed_something_ends_and_another_follows() {
        let begun = Instant::now();
        let mut walk = Walk::begin(false);
        assert!(!walk.stepped(7, begun));
        walk.anew();
        assert_eq!(walk.cursor(), 7, "it goes on");
        assert!(walk.stepped(0, begun));
        assert!(walk.due <= Instant::now() + NEXT_POLLING, "another follows");
        assert!(walk.stepped(0, begun));
        assert!(walk.due > Instant::now() + NEXT / 2, "and then none for a while");
        walk.anew();
        assert!(walk.due <= Instant::now());
    }
}
