//! The registry of what must hold of the kill switch, whatever fails.
//!
//! One list, three users: the simulation judges whole worlds by it, the server and every enforcer
//! check what they can see of it while they run, and metrics say how often each was checked and
//! how often it was found broken. Whoever sees something says it as an [`Observation`]; the rule is
//! here and nowhere else.
//!
//! The watches of [`EnforcerWatch`] and [`ServerWatch`] stand beside the state machines and judge by
//! what goes in and comes out, not by what the machines think of themselves.
//!
//! A violation changes nothing about what is in force: it is counted, and told to a person.

mod at_enforcer;
mod at_server;
#[cfg(test)]
mod tests;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use estoppel_model::{Boottime, OrderId};
use serde::Serialize;

pub use self::{at_enforcer::EnforcerWatch, at_server::ServerWatch};
use crate::{LEASE_MAX, break_glass};

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// See [`Invariant::promise`].
    StopNeverWaits,
    /// See [`Invariant::promise`].
    StartingAlwaysDoes,
    /// See [`Invariant::promise`].
    Lease,
    /// See [`Invariant::promise`].
    Confirmed,
    /// See [`Invariant::promise`].
    AcknowledgedIsKept,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::StopNeverWaits,
        Self::StartingAlwaysDoes,
        Self::Lease,
        Self::Confirmed,
        Self::AcknowledgedIsKept,
    ];

    /// The name that pages, metrics and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StopNeverWaits => "stop-never-waits",
            Self::StartingAlwaysDoes => "starting-always-does",
            Self::Lease => "lease",
            Self::Confirmed => "confirmed",
            Self::AcknowledgedIsKept => "acknowledged-is-kept",
        }
    }

    /// The promise in one sentence.
    pub const fn promise(self) -> &'static str {
        match self {
            Self::StopNeverWaits => {
                "A halt is in force and on its way before any disk, database or peer is waited for."
            }
            Self::StartingAlwaysDoes => {
                "An order ends by a release that names it, and by nothing else."
            }
            Self::Lease => {
                "An agent acts at most one lease after a halt is in the ledger, or by a break-glass \
                 that is signed, counted and short."
            }
            Self::Confirmed => {
                "Who is counted as refusing refuses, and nobody acts who is not counted."
            }
            Self::AcknowledgedIsKept => {
                "What was acknowledged as durable is there after any crash."
            }
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for Invariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What was seen. Each belongs to one invariant, and says enough to judge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// An order was taken: what was done, or waited for, before it was in force and on its way.
    Taken {
        /// The order.
        order: OrderId,
        /// What came first; `None` is right.
        waited_for: Option<&'static str>,
    },
    /// An order that was in force is not any more.
    Ended {
        /// The order.
        order: OrderId,
        /// Whether a release that is known here names it.
        named: bool,
    },
    /// How many orders were in force before and after something happened.
    InForce {
        /// Before.
        before: usize,
        /// Orders that came into force.
        came: usize,
        /// Orders that releases named.
        ended: usize,
        /// After.
        after: usize,
    },
    /// An enforcer's lease moved.
    LeaseMoved {
        /// Until when it was held before.
        from: Option<Boottime>,
        /// Until when it is held now.
        until: Option<Boottime>,
        /// The answer that moved it, if there was one.
        answer: Option<Answer>,
    },
    /// Agents are let go on by a break-glass, further than before.
    WentOn {
        /// Until when.
        until: Boottime,
        /// When that was decided.
        now: Boottime,
        /// When the lease is over, if there was one.
        lease_until: Option<Boottime>,
        /// Whether it was written before that this time is used.
        paid: bool,
    },
    /// Time of a break-glass was used, in all.
    Spent {
        /// How much.
        used: Duration,
        /// How much its file allows.
        allowed: Duration,
    },
    /// An agent may act although a halt that reaches it has been accepted.
    Acts {
        /// The halt.
        halt: OrderId,
        /// How long ago it was accepted.
        after: Duration,
        /// The longest that it may take to hold: the lease, and what clocks may differ over it.
        bound: Duration,
    },
    /// An enforcer said, or was counted as saying, that it refuses what an order reaches.
    Said {
        /// The order.
        order: OrderId,
        /// Whether it did when it said so.
        refuses: bool,
    },
    /// Of the enforcers that must confirm an order, how many were counted as what.
    Counted {
        /// How many must.
        expected: usize,
        /// How many refuse.
        refusing: usize,
        /// How many of these have settled.
        settled: usize,
        /// How many refuse because their lease is over.
        by_lease: usize,
        /// How many of those that refuse were gone before they settled.
        gone: usize,
    },
    /// It was told that all whom an order concerns refuse.
    AllRefuse {
        /// The order.
        order: OrderId,
        /// How many enforcers let what it reaches act all the same.
        acting: usize,
    },
    /// What had been acknowledged as durable was looked for.
    Sought {
        /// Of how many things.
        acknowledged: u64,
        /// How many are missing.
        missing: u64,
    },
}

/// An answer to a ping: what a lease may be taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When the ping was sent, on the boot clock of who sent it.
    pub sent: Boottime,
    /// How long the server's leases are.
    pub lease: Duration,
    /// How old the server's own knowledge was.
    pub staleness: Duration,
}

impl Answer {
    /// The latest instant until which the answer can be worth a lease.
    fn worth(self) -> Boottime {
        self.sent + self.lease.min(LEASE_MAX).saturating_sub(self.staleness)
    }
}

/// An invariant does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant {invariant} is broken: {what}")]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen, in words.
    pub what: String,
}

impl Observation {
    /// The invariant that this is about.
    pub const fn invariant(self) -> Invariant {
        match self {
            Self::Taken { .. } => Invariant::StopNeverWaits,
            Self::Ended { .. } | Self::InForce { .. } => Invariant::StartingAlwaysDoes,
            Self::LeaseMoved { .. }
            | Self::WentOn { .. }
            | Self::Spent { .. }
            | Self::Acts { .. } => Invariant::Lease,
            Self::Said { .. } | Self::Counted { .. } | Self::AllRefuse { .. } => {
                Invariant::Confirmed
            }
            Self::Sought { .. } => Invariant::AcknowledgedIsKept,
        }
    }

    /// Judges.
    ///
    /// # Errors
    /// When the invariant does not hold.
    pub fn check(self) -> Result<(), Violation> {
        let what = match self {
            Self::Taken { waited_for: None, .. }
            | Self::Ended { named: true, .. }
            | Self::Said { refuses: true, .. }
            | Self::AllRefuse { acting: 0, .. }
            | Self::Sought { missing: 0, .. } => return Ok(()),
            Self::Taken { order, waited_for: Some(what) } => {
                format!("order {order} was not in force before {what}")
            }
            Self::Ended { order, .. } => format!("order {order} ended, and no release names it"),
            Self::InForce { before, came, ended, after } => {
                if before + came <= after + ended {
                    return Ok(());
                }
                format!(
                    "{before} orders were in force, {came} came and {ended} were named by \
                     releases, but {after} are left"
                )
            }
            Self::LeaseMoved { from, until, answer } => match (until, answer) {
                (until, _) if until <= from => return Ok(()),
                (Some(until), Some(answer)) if until <= answer.worth() => return Ok(()),
                (_, None) => "a lease grew without an answer".to_owned(),
                (until, Some(answer)) => {
                    let sent = answer.sent;
                    let until = until.unwrap_or_default().since(sent);
                    let worth = answer.worth().since(sent);
                    format!("a lease of {until:?} was taken from an answer that is worth {worth:?}")
                }
            },
            Self::WentOn { until, now, lease_until, paid } => {
                let bound = match lease_until {
                    _ if paid => now + break_glass::SLICE,
                    Some(lease) if now < lease => lease + break_glass::GRACE,
                    _ => now,
                };
                if until <= bound {
                    return Ok(());
                }
                let (until, bound) = (until.since(now), bound.since(now));
                format!("agents go on for {until:?} without a lease, where {bound:?} are covered")
            }
            Self::Spent { used, allowed } => {
                if used <= allowed {
                    return Ok(());
                }
                format!("{used:?} of a break-glass are used that allows {allowed:?}")
            }
            Self::Acts { halt, after, bound } => {
                if after <= bound {
                    return Ok(());
                }
                format!("an agent may act {after:?} after {halt} was accepted (bound {bound:?})")
            }
            Self::Said { order, .. } => {
                format!("an enforcer said that it refuses what {order} reaches, and does not")
            }
            Self::Counted { expected, refusing, settled, by_lease, gone } => {
                if settled + gone <= refusing && refusing + by_lease <= expected {
                    return Ok(());
                }
                format!(
                    "of {expected} enforcers {refusing} refuse, {settled} of them settled and \
                     {gone} gone, and {by_lease} are without a lease"
                )
            }
            Self::AllRefuse { order, acting } => {
                format!(
                    "{acting} enforcers may act, and all were said to refuse what {order} reaches"
                )
            }
            Self::Sought { acknowledged, missing } => {
                format!("{missing} of {acknowledged} that were acknowledged as durable are missing")
            }
        };
        Err(Violation { invariant: self.invariant(), what })
    }
}

/// Counts what was checked and what was found broken. Read at any time by whoever holds it, while
/// another thread counts.
#[derive(Debug, Default)]
pub struct Tally {
    checks: [AtomicU64; Invariant::ALL.len()],
    violations: [AtomicU64; Invariant::ALL.len()],
}

/// How often an invariant was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Which.
    pub invariant: Invariant,
    /// How often it was checked.
    pub checks: u64,
    /// How often it was found broken.
    pub violations: u64,
}

impl Tally {
    /// Judges an observation and counts it.
    ///
    /// # Errors
    /// When the invariant does not hold.
    pub fn observe(&self, seen: Observation) -> Result<(), Violation> {
        let index = seen.invariant().index();
        self.checks[index].fetch_add(1, Ordering::Relaxed);
        seen.check().inspect_err(|_| {
            self.violations[index].fetch_add(1, Ordering::Relaxed);
        })
    }

    /// What was counted until now, in the order of [`Invariant::ALL`].
    pub fn counts(&self) -> [Count; Invariant::ALL.len()] {
        Invariant::ALL.map(|invariant| Count {
            invariant,
            checks: self.checks[invariant.index()].load(Ordering::Relaxed),
            violations: self.violations[invariant.index()].load(Ordering::Relaxed),
        })
    }
}
