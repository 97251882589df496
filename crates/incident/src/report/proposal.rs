//! The breakers that an incident proposes (row R5): by its own records each of them would have stopped this
//! task, and by those of the same agent's other tasks none of them.

use estoppel_model::{Limit, Untrusted};

/// How much more than any calm task needed a proposed breaker leaves room for.
const ROOM: u64 = 2;
/// Of calls or errors in a row, what is nothing unusual.
const ROW_MIN: u64 = 3;

/// What a runaway's task came to, and what the other tasks of its agent did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tasks {
    /// The agent.
    pub agent: Option<Untrusted<String>>,
    /// What the incident's own task came to.
    pub own: Needed,
    /// How many other tasks there are.
    pub others: u64,
    /// The most that any of these came to.
    pub calm: Needed,
}

/// What a task came to, or the most that any of several did. Steps that were refused were none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needed {
    /// Steps.
    pub steps: u64,
    /// Tokens in and out.
    pub tokens: u64,
    /// Cost in US dollars, where it is known.
    pub cost_usd: Option<f64>,
    /// Errors in a row, of calls of tools.
    pub errors_in_a_row: u64,
    /// How often in a row the same call of a tool came to the same result.
    pub identical_calls: u64,
}

/// A call of a tool, in the order in which its task made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Whether it is of the incident's own task.
    pub is_own: bool,
    /// The task.
    pub task: String,
    /// Whether tool, parameters and result are those of the call before it.
    pub repeats: bool,
    /// Whether it failed.
    pub failed: bool,
}

impl Tasks {
    /// Adds what the calls tell of rows of errors and of identical calls; the calls of a task stand together.
    #[must_use]
    pub fn with_calls(mut self, calls: impl IntoIterator<Item = Call>) -> Self {
        let mut task: Option<String> = None;
        let (mut identical, mut errors) = (0, 0);
        for call in calls {
            if task.as_ref() != Some(&call.task) {
                (identical, errors) = (0, 0);
            }
            identical = if call.repeats { identical + 1 } else { 1 };
            errors = if call.failed { errors + 1 } else { 0 };
            let of = if call.is_own { &mut self.own } else { &mut self.calm };
            of.identical_calls = of.identical_calls.max(identical);
            of.errors_in_a_row = of.errors_in_a_row.max(errors);
            task = Some(call.task);
        }
        self
    }
}

/// The bounds that this task was over and no other was, with room to spare where there is any; `None`
/// where nothing tells it from the others.
pub fn propose(tasks: &Tasks) -> Option<Limit> {
    let Tasks { own, calm, others, .. } = tasks;
    // Without another task nothing says how much is much; a row of the same speaks for itself.
    let sum = |own: u64, calm: u64| (*others > 0).then(|| between(own, calm, 1)).flatten();
    let row = |own: u64, calm: u64| between(own, calm, ROW_MIN).filter(|bound| *bound > 1);
    let cost = own.cost_usd.zip(calm.cost_usd).filter(|_| *others > 0);
    let narrow = |bound: u64| u32::try_from(bound).unwrap_or(u32::MAX);
    let limit = Limit {
        steps_max: sum(own.steps, calm.steps),
        tokens_max: sum(own.tokens, calm.tokens),
        cost_usd_max: cost.and_then(|(own, calm)| dollars(own, calm)),
        errors_in_a_row_max: row(own.errors_in_a_row, calm.errors_in_a_row).map(narrow),
        identical_calls_max: row(own.identical_calls, calm.identical_calls).map(narrow),
        ..Limit::default()
    };
    (!limit.is_none()).then_some(limit)
}

/// Less than this task came to, and as much as any other did at least.
fn between(own: u64, calm: u64, least: u64) -> Option<u64> {
    let bound = calm.saturating_mul(ROOM).max(least).min(own.checked_sub(1)?);
    (bound > 0 && bound >= calm).then_some(bound)
}

fn dollars(own: f64, calm: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "it is two")]
    let bound = (calm * ROOM as f64).min(f64::midpoint(calm, own));
    let cents = (bound * 100.0).floor() / 100.0;
    let bound = if cents >= calm { cents } else { bound };
    (calm > 0.0 && bound >= calm && bound < own).then_some(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(is_own: bool, task: &str, repeats: bool, failed: bool) -> Call {
        Call { is_own, task: task.to_owned(), repeats, failed }
    }

    #[test]
    fn rows_are_counted_within_a_task() {
        let tasks = Tasks::default().with_calls([
            call(true, "own", false, true),
            call(true, "own", true, true),
            call(true, "own", true, false),
            call(true, "own", false, true),
            call(false, "a", false, true),
            call(false, "a", true, true),
            call(false, "b", false, true),
            call(false, "b", false, false),
        ]);
        assert_eq!((tasks.own.identical_calls, tasks.own.errors_in_a_row), (3, 2));
        assert_eq!((tasks.calm.identical_calls, tasks.calm.errors_in_a_row), (2, 2));
    }

    #[test]
    fn what_tells_the_task_from_the_others_is_proposed() {
        let own = Needed {
            steps: 12,
            tokens: 9_000,
            cost_usd: Some(1.5),
            errors_in_a_row: 6,
            identical_calls: 6,
        };
        let calm = Needed { steps: 2, tokens: 9_000, cost_usd: Some(0.25), ..Needed::default() };
        let tasks = Tasks { own: own.clone(), calm, others: 2, ..Tasks::default() };
        let limit = propose(&tasks).unwrap();
        assert_eq!(
            limit.to_string(),
            "steps_max 4, cost_usd_max 0.5, errors_in_a_row_max 3, identical_calls_max 3"
        );
        let alone = Tasks { own: own.clone(), ..Tasks::default() };
        let limit = propose(&alone).unwrap();
        assert_eq!(limit.to_string(), "errors_in_a_row_max 3, identical_calls_max 3");
        let same = Tasks { own: own.clone(), calm: own, others: 1, ..Tasks::default() };
        assert_eq!(propose(&same), None);
        assert_eq!(propose(&Tasks::default()), None);
    }

    /// Whatever the records say: each proposed bound is under this task's, and under no other's.
    #[test]
    fn a_proposal_stops_this_task_and_no_other() {
        let values = [0_u64, 1, 2, 3, 4, 5, 7, 19, 1_000, 1_000_000];
        let needed = |count: u64| Needed {
            steps: count,
            tokens: count,
            cost_usd: Some((count % 1_001) as f64 / 7.0),
            errors_in_a_row: count,
            identical_calls: count,
        };
        let mut proposed = 0;
        for (own, calm) in values.iter().flat_map(|own| values.map(|calm| (*own, calm))) {
            let tasks =
                Tasks { own: needed(own), calm: needed(calm), others: 1, ..Tasks::default() };
            let Some(limit) = propose(&tasks) else { continue };
            let counts = [
                limit.steps_max,
                limit.tokens_max,
                limit.errors_in_a_row_max.map(u64::from),
                limit.identical_calls_max.map(u64::from),
            ];
            for bound in counts.into_iter().flatten() {
                assert!(calm <= bound && bound < own, "{calm} {bound} {own}");
                proposed += 1;
            }
            if let Some(bound) = limit.cost_usd_max {
                let (own, calm) = (tasks.own.cost_usd.unwrap(), tasks.calm.cost_usd.unwrap());
                assert!(calm <= bound && bound < own, "{calm} {bound} {own}");
                proposed += 1;
            }
        }
        assert!(proposed > 100, "{proposed}");
    }
}
