//! Drills: a canary halt through every connected enforcer, and how long it took (row A1).

use estoppel_model::{Actor, OrderId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What a drill came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DrillOutcome {
    /// It goes on.
    Running,
    /// Every enforcer refused the canary by its own check and confirmed it in time.
    Passed,
    /// Not every one did, or there was none: `reasons` says who and why.
    Failed,
    /// The server ended in the middle of it.
    Interrupted,
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// How long something took over all enforcers, in microseconds from the canary's acceptance to the
/// arrival of each word at the server. By nearest rank: with few enforcers p99 is the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Spread {
    /// Half of them took at most this long.
    pub p50_us: u64,
    /// 99 of 100 took at most this long.
    pub p99_us: u64,
    /// All of them took at most this long.
    pub max_us: u64,
}

impl Spread {
    /// The spread of some durations; `None` of none.
    pub fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let max_us = *micros.last()?;
        let rank = |percent: usize| {
            let rank = (micros.len() * percent).div_ceil(100).max(1);
            micros.get(rank - 1).copied().unwrap_or(max_us)
        };
        Some(Self { p50_us: rank(50), p99_us: rank(99), max_us })
    }
}

/// A drill of the kill switch: `POST /v1/drills/kill-switch`, `GET /v1/drills`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrillSummary {
    /// Names it.
    pub id: Uuid,
    /// The canary's order.
    #[schema(value_type = uuid::Uuid)]
    pub order: OrderId,
    /// Who asked for it; the schedule is `estoppel:drill`.
    #[schema(value_type = String)]
    pub by: Actor,
    /// When it began.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// When its result was known and its canary released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// What it came to.
    pub outcome: DrillOutcome,
    /// Why it did not pass, one for each cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Enforcers whose lease was alive when the canary was accepted.
    #[serde(default)]
    pub expected: usize,
    /// Of those, how many refused the canary by their own check and settled in time.
    #[serde(default)]
    pub confirmed: usize,
    /// Time to the word that it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<Spread>,
    /// Time to the confirmed stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Spread>,
    /// Each enforcer; of more than 1,000 those that failed and the slowest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enforcers: Vec<DrilledEnforcer>,
}

/// One enforcer in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrilledEnforcer {
    /// Its name.
    pub name: String,
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// Microseconds to its word that it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing_after_us: Option<u64>,
    /// Microseconds to its word that it has settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_after_us: Option<u64>,
    /// Whether its own check refused the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_refused: Option<bool>,
    /// It observes only, and would have stopped nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed_only: bool,
    /// When its lease is over at the latest, if it has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub lease_until: Option<Timestamp>,
}

/// How drills stand, in `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrillStatus {
    /// How often the server drills by itself; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// The last one, without its enforcers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<DrillSummary>,
    /// One was due by the schedule and did not take place.
    #[serde(default)]
    pub overdue: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![7]), Some(Spread { p50_us: 7, p99_us: 7, max_us: 7 }));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(Spread::of(hundred), Some(Spread { p50_us: 50, p99_us: 99, max_us: 100 }));
        let four = vec![40, 10, 30, 20];
        assert_eq!(Spread::of(four), Some(Spread { p50_us: 20, p99_us: 40, max_us: 40 }));
    }
}
