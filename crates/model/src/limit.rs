//! Bounds on what a subject may do, and what it means to be over one.
//!
//! A bound is the most that is still right: at most 100 steps means that the 101st is one too many.
//! An enforcer that finds a task over a bound stops it and says so as an [`Excess`], which an event
//! carries to the server in its `attributes`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The `action` of the audit event by which an enforcer tells that a task is over a bound. Its
/// `attributes` hold the [`Excess`] as `limit`; its `decision` is `denied` where the task was stopped.
pub const LIMIT_ACTION: &str = "estoppel.limit";

/// What such an event's `attributes` hold as `enforcer` where a gateway tells it, which counts requests
/// and tunnels and knows no steps.
pub const GATEWAY_ENFORCER: &str = "gateway";

/// Bounds on what a subject may do; absent means unbounded.
///
/// Those that count, count for each task of the subject (without a task, each session, without either,
/// each agent) in the process of its guard; steps, time and calls at once at its gateway, too, where
/// each request or tunnel is a step and a call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Steps of a task each minute, in its guard; at a gateway, requests of a task to one destination. What
    /// is more is refused until there is room, and stops nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Steps of a task, of whatever kind: its iterations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_max: Option<u64>,
    /// Milliseconds since the task's first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_clock_ms_max: Option<u64>,
    /// Cost in US dollars, over the subject's life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd_max: Option<f64>,
    /// Tokens that went into models and came out, over the subject's life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_max: Option<u64>,
    /// Calls of tools at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<u32>,
    /// Errors in a row: of calls of tools among these, of other steps among those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_in_a_row_max: Option<u32>,
    /// How often in a row a call of a tool, or a cycle of up to eight of them, may be made with the
    /// same arguments and come to the same result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identical_calls_max: Option<u32>,
    /// Only steps that are declared to change nothing; others are refused, which stops nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Refuse an access whose two tenants differ or are not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tenant_validation_strict: bool,
}

impl Limit {
    /// Both bounds together: of each pair the stricter.
    #[must_use]
    pub fn strictest(&self, other: &Self) -> Self {
        fn least<T: PartialOrd + Copy>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(if other < one { other } else { one }),
                (one, other) => one.or(other),
            }
        }
        Self {
            requests_per_minute: least(self.requests_per_minute, other.requests_per_minute),
            steps_max: least(self.steps_max, other.steps_max),
            wall_clock_ms_max: least(self.wall_clock_ms_max, other.wall_clock_ms_max),
            cost_usd_max: least(self.cost_usd_max, other.cost_usd_max),
            tokens_max: least(self.tokens_max, other.tokens_max),
            concurrency_max: least(self.concurrency_max, other.concurrency_max),
            errors_in_a_row_max: least(self.errors_in_a_row_max, other.errors_in_a_row_max),
            identical_calls_max: least(self.identical_calls_max, other.identical_calls_max),
            read_only: self.read_only || other.read_only,
            tenant_validation_strict: self.tenant_validation_strict
                || other.tenant_validation_strict,
        }
    }

    /// Whether it bounds anything at all.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The bounds in words, such as `steps_max 100, read_only`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |name: &str, max: Option<u64>| max.map(|max| format!("{name} {max}"));
        let bounds = [
            number("requests_per_minute", self.requests_per_minute.map(u64::from)),
            number("steps_max", self.steps_max),
            number("wall_clock_ms_max", self.wall_clock_ms_max),
            self.cost_usd_max.map(|max| format!("cost_usd_max {max}")),
            number("tokens_max", self.tokens_max),
            number("concurrency_max", self.concurrency_max.map(u64::from)),
            number("errors_in_a_row_max", self.errors_in_a_row_max.map(u64::from)),
            number("identical_calls_max", self.identical_calls_max.map(u64::from)),
            self.read_only.then(|| "read_only".to_owned()),
            self.tenant_validation_strict.then(|| "tenant_validation_strict".to_owned()),
        ];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        f.write_str(if bounds.is_empty() { "no bound" } else { "" })?;
        f.write_str(&bounds.join(", "))
    }
}

/// A bound that breaks: what it is over, it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// [`Limit::steps_max`].
    Steps,
    /// [`Limit::wall_clock_ms_max`].
    WallClock,
    /// [`Limit::cost_usd_max`].
    Cost,
    /// [`Limit::tokens_max`].
    Tokens,
    /// [`Limit::concurrency_max`].
    Concurrency,
    /// [`Limit::errors_in_a_row_max`].
    ErrorsInARow,
    /// [`Limit::identical_calls_max`].
    IdenticalCalls,
}

impl Breaker {
    /// The breaker's word, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::WallClock => "wall_clock",
            Self::Cost => "cost",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
            Self::ErrorsInARow => "errors_in_a_row",
            Self::IdenticalCalls => "identical_calls",
        }
    }
}

/// A task is over a bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Excess {
    /// Which bound.
    pub breaker: Breaker,
    /// What the task has come to: a count, milliseconds, or US dollars.
    pub value: f64,
    /// The most that was allowed, in the same unit.
    pub max: f64,
    /// Of identical calls, how many make one cycle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<u8>,
}

impl Excess {
    /// Whether a stranger's numbers are such as a breaker could give.
    pub fn is_possible(&self) -> bool {
        self.value.is_finite() && self.max.is_finite() && self.max >= 0.0 && self.value >= self.max
    }
}

/// In a line for people: which bound, at what value.
impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { breaker, value, max, period } = self;
        match breaker {
            Breaker::Steps => write!(f, "{value} steps of at most {max}"),
            Breaker::WallClock => {
                write!(
                    f,
                    "{:.1} s since its first step, of at most {:.1} s",
                    value / 1e3,
                    max / 1e3
                )
            }
            Breaker::Cost => write!(f, "a cost of {value:.4} US dollars of at most {max}"),
            Breaker::Tokens => write!(f, "{value} tokens of at most {max}"),
            Breaker::Concurrency => write!(f, "{value} calls of tools at once of at most {max}"),
            Breaker::ErrorsInARow => write!(f, "{value} errors in a row of at most {max}"),
            Breaker::IdenticalCalls => match period {
                Some(period @ 2..) => write!(
                    f,
                    "the same {period} calls with the same results {value} times in a row of at most {max}"
                ),
                _ => write!(
                    f,
                    "the same call with the same result {value} times in a row of at most {max}"
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fold_to_the_strictest() {
        let one = Limit { requests_per_minute: Some(10), read_only: true, ..Limit::default() };
        let other = Limit {
            requests_per_minute: Some(5),
            cost_usd_max: Some(1.0),
            steps_max: Some(7),
            ..Limit::default()
        };
        let both = one.strictest(&other);
        assert_eq!(both, other.strictest(&one));
        assert_eq!(
            (both.requests_per_minute, both.cost_usd_max, both.steps_max, both.read_only),
            (Some(5), Some(1.0), Some(7), true)
        );
        assert_eq!(
            both.to_string(),
            "requests_per_minute 5, steps_max 7, cost_usd_max 1, read_only"
        );
        assert!(Limit::default().is_none() && !both.is_none());
        assert_eq!(Limit::default().to_string(), "no bound");
    }

    /// Orders of before there were breakers are read as they were meant.
    #[test]
    fn an_old_limit_is_still_read() {
        let old = r#"{"requests_per_minute":60,"cost_usd_max":2.5,"concurrency_max":4,"read_only":true,"tenant_validation_strict":true}"#;
        let limit: Limit = serde_json::from_str(old).unwrap();
        assert_eq!(
            limit,
            Limit {
                requests_per_minute: Some(60),
                cost_usd_max: Some(2.5),
                concurrency_max: Some(4),
                read_only: true,
                tenant_validation_strict: true,
                ..Limit::default()
            }
        );
        assert_eq!(serde_json::to_string(&limit).unwrap(), old);
        assert!(serde_json::from_str::<Limit>(r#"{"stepsmax":1}"#).is_err(), "none is overlooked");
    }

    #[test]
    fn an_excess_says_which_bound_at_what_value() {
        let check = |breaker, value, max, period, text: &str| {
            let excess = Excess { breaker, value, max, period };
            assert_eq!(excess.to_string(), text);
            let json = serde_json::to_value(excess).unwrap();
            assert_eq!(json["breaker"], breaker.as_str());
            assert_eq!(serde_json::from_value::<Excess>(json).unwrap(), excess);
        };
        check(Breaker::Steps, 101.0, 100.0, None, "101 steps of at most 100");
        check(
            Breaker::WallClock,
            61_250.0,
            60_000.0,
            None,
            "61.2 s since its first step, of at most 60.0 s",
        );
        check(Breaker::Cost, 5.2, 5.0, None, "a cost of 5.2000 US dollars of at most 5");
        check(
            Breaker::IdenticalCalls,
            4.0,
            3.0,
            Some(2),
            "the same 2 calls with the same results 4 times in a row of at most 3",
        );
        let possible =
            |value, max| Excess { breaker: Breaker::Cost, value, max, period: None }.is_possible();
        assert!(possible(5.2, 5.0));
        assert!(!possible(4.0, 5.0) && !possible(f64::NAN, 5.0) && !possible(1.0, -1.0));
    }
}
