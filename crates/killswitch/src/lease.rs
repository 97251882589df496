//! Until when an enforcer may go on without a server.
//!
//! A lease counts from the boot-clock instant at which the enforcer *sent* the ping that was
//! answered, less the age of the node's own knowledge: the enforcer has every order that the node
//! had accepted by then, since answers travel behind orders. So an agent acts at most one lease
//! after an order was accepted, also in a partition (invariant *lease*). Counting from the answer's
//! arrival would let a delayed answer stretch it.
//!
//! An answer counts once, only for a ping of this connection, and never shortens what an earlier
//! one gave.

use std::{collections::VecDeque, time::Duration};

use estoppel_model::Boottime;

/// Longest lease that an enforcer accepts: a server cannot talk it out of ever refusing.
pub const LEASE_MAX: Duration = Duration::from_secs(300);
/// Most pings that wait for an answer; of more the oldest is forgotten.
const PINGS_MAX: usize = 64;

/// An enforcer's lease.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    until: Option<Boottime>,
    next_nonce: u64,
    /// Nonce and instant of sending, oldest first.
    pings: VecDeque<(u64, Boottime)>,
}

impl Lease {
    /// The next ping's nonce; remembers that it is sent now.
    pub fn ping(&mut self, now: Boottime) -> u64 {
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        self.pings.push_back((nonce, now));
        nonce
    }

    /// Takes an answer; whether it was to a ping of ours that waited. `duration` is how long the
    /// server's leases are, `staleness` the age of what the node knows.
    pub fn answered(&mut self, nonce: u64, duration: Duration, staleness: Duration) -> bool {
        let Some(place) = self.pings.iter().position(|(other, _)| *other == nonce) else {
            return false;
        };
        let Some((_, sent)) = self.pings.remove(place) else { return false };
        let until = sent + duration.min(LEASE_MAX).saturating_sub(staleness);
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
        true
    }

    /// Forgets pings without an answer: an answer on a later connection is not to them.
    pub fn disconnected(&mut self) {
        self.pings.clear();
    }

    /// The instant at which the lease is over; `None` if there never was one.
    pub const fn until(&self) -> Option<Boottime> {
        self.until
    }

    /// Whether the lease holds at this instant.
    pub fn holds(&self, now: Boottime) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Boottime {
        Boottime::from_nanos(millis * 1_000_000)
    }
    const LEASE: Duration = Duration::from_secs(15);
    const FRESH: Duration = Duration::ZERO;

    #[test]
    fn there_is_none_before_the_first_answer() {
        let mut lease = Lease::default();
        assert!(!lease.holds(at(0)));
        lease.ping(at(0));
        assert!(!lease.holds(at(0)));
    }

    #[test]
    fn it_counts_from_the_sending_of_the_ping() {
        let mut lease = Lease::default();
        let nonce = lease.ping(at(1_000));
        // The answer took ten seconds: five are left.
        assert!(lease.answered(nonce, LEASE, FRESH));
        assert_eq!(lease.until(), Some(at(16_000)));
        assert!(lease.holds(at(15_999)));
        assert!(!lease.holds(at(16_000)));
    }

    #[test]
    fn a_stale_node_gives_less() {
        let mut lease = Lease::default();
        let nonce = lease.ping(at(1_000));
        lease.answered(nonce, LEASE, Duration::from_secs(4));
        assert_eq!(lease.until(), Some(at(12_000)));
        let nonce = lease.ping(at(2_000));
        lease.answered(nonce, LEASE, Duration::from_secs(60));
        assert_eq!(lease.until(), Some(at(12_000)), "nothing new, and nothing taken away");
    }

    #[test]
    fn answers_may_come_late_twice_out_of_order_and_for_no_ping() {
        let mut lease = Lease::default();
        let first = lease.ping(at(1_000));
        let second = lease.ping(at(2_000));
        assert!(lease.answered(second, LEASE, FRESH));
        assert!(lease.answered(first, LEASE, FRESH));
        assert_eq!(lease.until(), Some(at(17_000)), "the older answer takes nothing away");
        assert!(!lease.answered(second, LEASE, FRESH), "twice");
        assert!(!lease.answered(99, LEASE, FRESH), "never asked");
        let third = lease.ping(at(9_000));
        lease.disconnected();
        assert!(!lease.answered(third, LEASE, FRESH), "asked on another connection");
        assert!(lease.ping(at(9_000)) > third, "a nonce never comes again");
        assert_eq!(lease.until(), Some(at(17_000)));
    }

    #[test]
    fn its_length_is_bounded() {
        let mut lease = Lease::default();
        let nonce = lease.ping(at(0));
        lease.answered(nonce, Duration::MAX, FRESH);
        assert_eq!(lease.until(), Some(at(300_000)));
        for _ in 0..1_000 {
            lease.ping(at(0));
        }
        assert_eq!(lease.pings.len(), PINGS_MAX);
    }
}
