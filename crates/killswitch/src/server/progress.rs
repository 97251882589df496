//! How far an order has been carried out, as it is told: in numbers, and enforcer by enforcer.
//! The board counts it.

use std::{sync::Arc, time::Duration};

use estoppel_model::{EnforcerId, Order, Timestamp};

use crate::frame::{EnforcerKind, Settlement};

/// When an enforcer reached a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// By the enforcer's wall clock.
    pub at: Timestamp,
    /// From the acceptance to the word's arrival at the server, on the server's boot clock.
    pub after: Duration,
}

/// How far an order has been carried out, in numbers: kept up to date by each word, so that asking
/// costs nothing however many enforcers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HaltCount {
    /// Enforcers whose lease was alive at the acceptance.
    pub expected: usize,
    /// Of those, how many refuse new work. One that only observes refuses nothing.
    pub refusing: usize,
    /// Of those, how many have settled.
    pub settled: usize,
    /// Of those, how many did not confirm and whose lease is over.
    pub by_lease: usize,
    /// Of those, how many refused, and whose lease was over before they settled.
    pub gone: usize,
    /// A server before this one may have given leases to enforcers that this one does not know yet:
    /// there may be more that are to be expected.
    pub unknown: bool,
}

impl HaltCount {
    /// Whether nobody is waited for: every expected enforcer has settled, or refuses by its lease,
    /// and all that are to be expected are known.
    pub const fn is_complete(&self) -> bool {
        let over = self.settled + self.by_lease + self.gone;
        self.expected > 0 && !self.unknown && over >= self.expected
    }

    /// Counts a member out as it was, and in as it is.
    pub(super) fn recount(&mut self, before: &Self, after: &Self) {
        let moved = |total: usize, from: usize, to: usize| total + to - from;
        self.expected = moved(self.expected, before.expected, after.expected);
        self.refusing = moved(self.refusing, before.refusing, after.refusing);
        self.settled = moved(self.settled, before.settled, after.settled);
        self.by_lease = moved(self.by_lease, before.by_lease, after.by_lease);
        self.gone = moved(self.gone, before.gone, after.gone);
    }
}

/// How far an order has been carried out.
#[derive(Debug, Clone)]
pub struct HaltProgress {
    /// The order.
    pub order: Arc<Order>,
    /// When this server accepted it.
    pub accepted_at: Timestamp,
    /// Whether it is still in force.
    pub in_force: bool,
    /// Enforcers whose lease was alive at the acceptance.
    pub expected: usize,
    /// Of those, how many refuse new work. One that only observes refuses nothing.
    pub refusing: usize,
    /// Of those, how many have settled.
    pub settled: usize,
    /// Of those, how many did not confirm and whose lease is over.
    pub by_lease: usize,
    /// Of those, how many refused, and whose lease was over before they settled: what became of
    /// their work in flight is not known.
    pub gone: usize,
    /// Of those, how many only observe: they stop nothing.
    pub observing: usize,
    /// Until then enforcers may act that this server does not know: a server before it gave them
    /// leases.
    pub unknown_until: Option<Timestamp>,
    /// Enforcers that have a word here, listed or not.
    pub words: usize,
    /// Each enforcer's word, as the [`Listing`] says.
    pub enforcers: Vec<EnforcerProgress>,
}

/// Which enforcers' words are listed. The counts are over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// All, by id.
    All,
    /// At most so many: those that are still waited for first, then the expected ones, each part
    /// by name.
    OpenFirst(usize),
}

impl HaltProgress {
    /// Whether everybody who could act refuses new work, or has no lease to do any.
    pub const fn all_refuse(&self) -> bool {
        self.unknown_until.is_none() && self.refusing + self.by_lease >= self.expected
    }

    /// Whether nobody is waited for any more, be it that all have settled or that their leases are
    /// over. There may be nobody to wait for.
    pub const fn is_over(&self) -> bool {
        let over = self.settled + self.by_lease + self.gone;
        self.unknown_until.is_none() && over >= self.expected
    }

    /// Brings the expected enforcers to the front, each part by name. Not done by the switch itself,
    /// which has orders to broadcast.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.enforcers.sort_by(|one, other| {
            (!one.expected, &one.name, one.enforcer).cmp(&(
                !other.expected,
                &other.name,
                other.enforcer,
            ))
        });
        self
    }
}

/// One enforcer's word on one order.
#[derive(Debug, Clone)]
pub struct EnforcerProgress {
    /// Who.
    pub enforcer: EnforcerId,
    /// Its name for people.
    pub name: Arc<str>,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// Whether it sees effects from outside of the agent, or only claims.
    pub witness: bool,
    /// Whether its lease was alive at the acceptance.
    pub expected: bool,
    /// It does not know the order's kind, and refuses its scope.
    pub unsupported: bool,
    /// When it refused new work.
    pub refusing: Option<Reached>,
    /// When its work in flight had ended.
    pub settled: Option<Reached>,
    /// What settling came to.
    pub settlement: Settlement,
    /// When its lease is over at the latest, by the server's wall clock.
    pub lease_until: Option<Timestamp>,
    /// Its lease is over, and it has not confirmed.
    pub by_lease: bool,
    /// It refused, and its lease was over before it settled. It may come back and settle yet.
    pub gone: bool,
}
