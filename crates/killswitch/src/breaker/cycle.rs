//! Whether calls go round in a circle: the same call with the same result, or up to eight of them
//! over and over.
//!
//! For each period it is enough to count for how long each call was the same as the one a period
//! before: eight fingerprints and eight counters, however long the task runs.

/// Longest cycle that is seen, in calls.
pub(super) const PERIOD_MAX: usize = 8;

/// What is remembered of a task's calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Cycles {
    /// The last calls, the latest at `calls - 1` modulo the length.
    last: [u64; PERIOD_MAX],
    /// How many calls there were.
    calls: u64,
    /// At `p - 1`: how many of the latest calls were each the same as the one `p` before.
    runs: [u64; PERIOD_MAX],
}

/// A cycle and how often in a row it was gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cycle {
    /// How many calls it has.
    pub(super) period: u8,
    /// How often it was gone through, whole.
    pub(super) times: u64,
}

impl Cycles {
    /// Takes in a call with its result.
    pub(super) fn call(&mut self, fingerprint: u64) {
        for (period, run) in (1_u64..).zip(&mut self.runs) {
            let same = self.calls >= period
                && self.last.get(place(self.calls - period)) == Some(&fingerprint);
            *run = if same { *run + 1 } else { 0 };
        }
        if let Some(slot) = self.last.get_mut(place(self.calls)) {
            *slot = fingerprint;
        }
        self.calls += 1;
    }

    /// A call came to something that is not known: whatever was a circle is none any more.
    pub(super) fn broken(&mut self) {
        *self = Self::default();
    }

    /// What was gone through most often up to the latest call; of several, the shortest.
    pub(super) fn worst(&self) -> Cycle {
        let mut worst = Cycle { period: 1, times: 0 };
        for (period, run) in (1_u8..).zip(&self.runs) {
            let times =
                if self.calls >= u64::from(period) { 1 + run / u64::from(period) } else { 0 };
            if times > worst.times {
                worst = Cycle { period, times };
            }
        }
        worst
    }
}

/// Where the call of this number stands.
const fn place(call: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "it is less than eight")]
    let place = (call % PERIOD_MAX as u64) as usize;
    place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worst(calls: &str) -> (u8, u64) {
        let mut cycles = Cycles::default();
        calls.bytes().for_each(|call| cycles.call(u64::from(call)));
        let Cycle { period, times } = cycles.worst();
        (period, times)
    }

    /// R6: retry loops and cycles of up to eight calls; work that moves on is none.
    #[test]
    fn circles_are_counted() {
        let check = |calls: &str, expect| assert_eq!(worst(calls), expect, "{calls}");
        check("", (1, 0));
        check("a", (1, 1));
        check("aaaa", (1, 4));
        check("baaa", (1, 3));
        check("abab", (2, 2));
        check("ababa", (2, 2));
        check("xabcabcabc", (3, 3));
        check(&"abcdefgh".repeat(5), (8, 5));
        check(&"abcdefghi".repeat(5), (1, 1));
        check("aaab", (1, 1));
    }

    /// The rule, over everything that ever was.
    fn naive(calls: &[u64]) -> (u8, u64) {
        let times = |period: usize| {
            let Some(last) = calls.len().checked_sub(period) else { return 0 };
            let cycle = &calls[last..];
            calls.rchunks(period).take_while(|chunk| *chunk == cycle).count() as u64
        };
        let all = (1..=PERIOD_MAX).map(|period| (u8::try_from(period).unwrap(), times(period)));
        all.rev().max_by_key(|(_, times)| *times).unwrap()
    }

    proptest! {
        #[test]
        fn counters_agree_with_the_whole_story(
            calls in proptest::collection::vec(0_u64..3, 0..200),
            cycle in proptest::collection::vec(0_u64..4, 1..=8),
            times in 0_usize..12,
        ) {
            let mut story = calls;
            for _ in 0..times {
                story.extend(&cycle);
            }
            let mut cycles = Cycles::default();
            for (index, call) in story.iter().enumerate() {
                cycles.call(*call);
                let Cycle { period, times } = cycles.worst();
                prop_assert_eq!((period, times), naive(&story[..=index]));
            }
        }
    }
}
