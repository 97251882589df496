//! Development only: the kill switch in a world that a seed makes.
//!
//! Under test are the production state machines ([`Switch`], [`Enforcer`]), the frames as JSON
//! text, the files of orders with their recovery ([`OrderSpool`], [`OrderCache`]) over a disk that
//! fills up, fails and forgets, and the watches that count invariants in production. Time, network,
//! disks, crashes and what people do are the world's: the same seed is the same world, byte by byte.
//!
//! The oracle sees everything and judges by the registry of
//! [`estoppel_killswitch::invariant`]. It knows nothing of how the machines work: only which orders
//! were given, when the ledger had them, which releases name which, and what each agent may do.
//!
//! [`fleet`] is a world apart, of one server and 100,000 enforcers: what they cost, where nothing fails.
//!
//! Planted bugs ([`Bug`]) show that it can fail. They sit where the machines meet the world, so
//! that no switch for them is in a product.
//!
//! Absent here: Ed25519 (a keyed hash stands for it), HTTP, WebSockets, threads, and the ledger's
//! own files, which have crash tests of their own; the ledger is a list that can be out of reach,
//! and restored from an old copy where there is one server.
//!
//! [`Switch`]: estoppel_killswitch::server::Switch
//! [`Enforcer`]: estoppel_killswitch::enforcer::Enforcer
//! [`OrderSpool`]: estoppel_orderfile::OrderSpool
//! [`OrderCache`]: estoppel_orderfile::OrderCache

#![expect(
    clippy::expect_used,
    reason = "development only: what cannot be is a mistake of the simulation, and ends it"
)]

mod bug;
mod coverage;
mod disk;
mod fleet;
mod machine;
mod minimise;
mod oracle;
mod scenario;
mod world;

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use estoppel_killswitch::invariant::{Invariant, Violation};

pub use bug::Bug;
pub use coverage::{Coverage, Fault};
pub use fleet::{FLEET_MAX, FleetReport, Halt, Memory, Restart, Spent, Work, fleet};
pub use minimise::minimise;
pub use scenario::{Action, Scenario};

/// Why a world is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An invariant is broken.
    Broken(Violation),
    /// After everything has healed the two sides do not agree.
    Unsettled(String),
}

impl Failure {
    /// The invariant that is broken.
    pub const fn invariant(&self) -> Option<Invariant> {
        match self {
            Self::Broken(violation) => Some(violation.invariant),
            Self::Unsettled(_) => None,
        }
    }

    /// Whether both are the same failure, of perhaps different orders and times.
    pub fn is_like(&self, other: &Self) -> bool {
        self.invariant() == other.invariant()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(violation) => violation.fmt(f),
            Self::Unsettled(what) => write!(f, "the world does not come to rest: {what}"),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// What is wrong, and when in the world's time.
    pub failure: Option<(Duration, Failure)>,
    /// What happened how often.
    pub coverage: Coverage,
    /// What happened, a line for each; only when asked for.
    pub trace: Vec<String>,
}

/// Runs the world of a seed.
pub fn run(seed: u64, planted: Option<Bug>) -> Report {
    run_scenario(seed, &Scenario::of(seed), planted, false)
}

/// Runs the worlds of many seeds on all processors; returns what happened in all of them, and the
/// seeds that failed, lowest first.
pub fn run_many(seeds: Range<u64>, planted: Option<Bug>) -> (Coverage, Vec<(u64, Failure)>) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut coverage, mut failed) = (Coverage::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (coverage, failed);
            }
            let report = run(seed, planted);
            coverage.add(&report.coverage);
            failed.extend(report.failure.map(|(_, failure)| (seed, failure)));
        }
    };
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (mut coverage, mut failed) = (Coverage::default(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (part, failures) = worker.join().expect("a world ends by a report");
            coverage.add(&part);
            failed.extend(failures);
        }
    });
    failed.sort_by_key(|(seed, _)| *seed);
    (coverage, failed)
}

/// Runs a scenario; the seed decides what the network and the disks make of it.
pub fn run_scenario(seed: u64, scenario: &Scenario, planted: Option<Bug>, traced: bool) -> Report {
    world::World::new(seed, scenario.clone(), planted, traced).run()
}
