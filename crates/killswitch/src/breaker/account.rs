//! The account of one task: what it has done, and whether that is over a bound. Pure; the caller
//! brings the time and the bounds that hold at the moment.
//!
//! Everything in it is a number: a task costs the same memory after a step as after a million. What is
//! no cost (negative, not finite) counts as none.

use std::time::Duration;

use estoppel_model::{Boottime, Breaker, Excess, Limit};

use super::cycle::Cycles;

/// What a task has done so far.
#[derive(Debug, Clone, Default)]
pub struct Account {
    began: Option<Boottime>,
    /// When something was last done to it.
    pub(super) touched: Boottime,
    steps: u64,
    /// In billionths of a dollar: a sum of doubles is over a budget that it has just reached.
    cost_nano: u64,
    tokens: u64,
    /// Errors in a row of calls of tools, and of other steps: model calls that go well between two
    /// failing calls of a tool end no row of errors.
    errors: [u64; 2],
    cycles: Cycles,
    running: u64,
    calls_running: u64,
}

/// What kind of step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// A call of a tool.
    Call,
    /// Anything else, such as a model call.
    Other,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// In US dollars.
    pub cost_usd: f64,
    /// Into models and out.
    pub tokens: u64,
    /// Of a call, its arguments and its result; `None` where the result is not known.
    pub fingerprint: Option<u64>,
}

/// How a step ended, as far as bounds are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Without an error.
    Well,
    /// With one, or given up by its caller.
    InError,
    /// It was stopped: that is nobody's error.
    Stopped,
}

impl Account {
    /// A step is about to begin. It is counted only if it may.
    ///
    /// # Errors
    /// When the task is over a bound, or would be with this step.
    pub fn enter(&mut self, kind: StepKind, limit: &Limit, now: Boottime) -> Result<(), Excess> {
        if let Some(excess) = self.judge(limit, now) {
            return Err(excess);
        }
        let steps = self.steps.saturating_add(1);
        over(Breaker::Steps, steps, limit.steps_max)?;
        if kind == StepKind::Call {
            let calls = self.calls_running.saturating_add(1);
            over(Breaker::Concurrency, calls, limit.concurrency_max.map(u64::from))?;
        }
        self.count(kind, now);
        Ok(())
    }

    /// A step begins, whatever the bounds say.
    pub(super) fn count(&mut self, kind: StepKind, now: Boottime) {
        self.began.get_or_insert(now);
        self.touched = now;
        self.steps = self.steps.saturating_add(1);
        self.running += 1;
        self.calls_running += u64::from(kind == StepKind::Call);
    }

    /// A step that was counted has ended. Returns what the task is over, now that it has.
    pub fn leave(
        &mut self,
        kind: StepKind,
        outcome: &Outcome,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Excess> {
        self.touched = now;
        self.running = self.running.saturating_sub(1);
        self.tokens = self.tokens.saturating_add(outcome.tokens);
        self.cost_nano = self.cost_nano.saturating_add(nano_usd(outcome.cost_usd));
        let [of_calls, of_others] = &mut self.errors;
        let errors = if kind == StepKind::Call { of_calls } else { of_others };
        match outcome.ended {
            Ended::Well => *errors = 0,
            Ended::InError => *errors = errors.saturating_add(1),
            Ended::Stopped => {}
        }
        if kind == StepKind::Call {
            self.calls_running = self.calls_running.saturating_sub(1);
            match outcome.fingerprint {
                Some(fingerprint) => self.cycles.call(fingerprint),
                None => self.cycles.broken(),
            }
        }
        self.judge(limit, now)
    }

    /// What the task is over, apart from what only a further step can be over.
    pub(super) fn judge(&self, limit: &Limit, now: Boottime) -> Option<Excess> {
        let clock = limit.wall_clock_ms_max.and_then(|max| {
            let elapsed = now.since(self.began?);
            (elapsed > Duration::from_millis(max)).then(|| {
                let value = elapsed.as_secs_f64() * 1e3;
                Excess { breaker: Breaker::WallClock, value, max: double(max), period: None }
            })
        });
        let cost = limit.cost_usd_max.filter(|max| self.cost_nano > nano_usd(*max));
        let cost = cost.map(|max| Excess {
            breaker: Breaker::Cost,
            value: double(self.cost_nano) / NANO,
            max,
            period: None,
        });
        let worst = self.cycles.worst();
        let identical = limit.identical_calls_max.map(u64::from);
        let identical = over(Breaker::IdenticalCalls, worst.times, identical)
            .map_err(|excess| Excess { period: Some(worst.period), ..excess });
        let errors = self.errors.into_iter().max().unwrap_or_default();
        let errors = over(Breaker::ErrorsInARow, errors, limit.errors_in_a_row_max.map(u64::from));
        // What says most about the cause comes first.
        identical
            .err()
            .or(errors.err())
            .or(cost)
            .or(over(Breaker::Tokens, self.tokens, limit.tokens_max).err())
            .or(over(Breaker::Steps, self.steps, limit.steps_max).err())
            .or(clock)
    }

    /// Whether as many of this kind are under way as may be.
    pub(super) fn is_full(&self, kind: StepKind, limit: &Limit) -> bool {
        kind == StepKind::Call
            && limit.concurrency_max.is_some_and(|max| self.calls_running >= u64::from(max))
    }

    /// When the task's time is over.
    pub(super) fn time_is_over_at(&self, limit: &Limit) -> Option<Boottime> {
        Some(self.began? + Duration::from_millis(limit.wall_clock_ms_max?.saturating_add(1)))
    }

    /// Whether no step of it is under way.
    pub(super) const fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// Begins anew; what is under way still is.
    pub(super) fn reset(&mut self) {
        let Self { touched, running, calls_running, .. } = *self;
        *self = Self { touched, running, calls_running, ..Self::default() };
    }
}

fn over(breaker: Breaker, value: u64, max: Option<u64>) -> Result<(), Excess> {
    match max {
        Some(max) if value > max => {
            Err(Excess { breaker, value: double(value), max: double(max), period: None })
        }
        _ => Ok(()),
    }
}

/// Billionths of a dollar in one.
const NANO: f64 = 1e9;

/// Whole billionths; what is no amount is none.
fn nano_usd(usd: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates: less than nothing is nothing, and more than there is money, the most"
    )]
    let nano = (usd * NANO).round() as u64;
    if usd.is_finite() { nano } else { 0 }
}

/// For people; beyond 2^53 it is rounded.
#[expect(clippy::cast_precision_loss, reason = "it is only shown")]
const fn double(count: u64) -> f64 {
    count as f64
}
