//! One server and very many enforcers: what a fleet costs the server's state machine, and that the
//! invariants hold for each of them.
//!
//! The production [`Switch`] and as many production [`Enforcer`]s speak in frames of JSON text over
//! a network and a clock that are simulated. All come for the first time; the server is killed and
//! started again, and all come back at once, as the link's pauses and a listener that takes so many a
//! second let them; somebody halts a session; all refuse, all settle, and at last the leases are over
//! that the first server gave.
//!
//! The clocks all show the same and the network loses nothing: what goes wrong is the worlds' matter.
//! Measured is the processor's time of the thread that stands for the switchboard's, for each sort of
//! step. Absent are Ed25519, TLS, HTTP and sockets, and whatever serves connections beside it.

mod member;
mod memory;
mod meter;
mod network;
mod run;

use std::{collections::BTreeMap, time::Duration};

use estoppel_killswitch::invariant::{Count, Invariant};
use serde::Serialize;

pub use self::{
    memory::Memory,
    meter::{Spent, Work},
};

/// Most enforcers of one run: each takes some 20 KB.
pub const FLEET_MAX: usize = 1_000_000;

/// What a fleet costs.
#[derive(Debug, Clone, Serialize)]
pub struct FleetReport {
    /// How many enforcers.
    pub enforcers: usize,
    /// What the network's times are drawn from.
    pub seed: u64,
    /// Processor time of the server by the sort of work.
    pub server: BTreeMap<Work, Spent>,
    /// Memory of the server's state machine.
    pub memory: Memory,
    /// The return of all after the server's restart.
    pub restart: Restart,
    /// The halt.
    pub halt: Halt,
    /// What was checked, by server and enforcers.
    pub invariants: [Count; Invariant::ALL.len()],
}

/// All come back to a server that was killed and started again. Times are the simulation's.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Restart {
    /// How long the server was away.
    pub away_ms: u64,
    /// Connections that the listener takes each second: an assumption.
    pub accepts_per_second: u32,
    /// Attempts that found the listener's queue full.
    pub turned_away: u64,
    /// From the server's start until the last enforcer was in step again.
    pub all_back_ms: u64,
    /// Enforcers whose lease was over before they were.
    pub leases_lost: usize,
}

/// One halt. Times are the simulation's, from the acceptance on.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Halt {
    /// Enforcers that were expected to confirm.
    pub expected: usize,
    /// Until the last word that new work is refused was counted.
    pub all_refuse_ms: u64,
    /// Until the last word that work in flight has ended was counted.
    pub all_settled_ms: u64,
    /// Until the server called it confirmed by all: leases of the server before it had to pass.
    pub confirmed_ms: u64,
    /// Processor time of the server for all of it, for each enforcer.
    pub server_us_each: f64,
}

/// Runs a fleet. `enforcers` is from 1 to [`FLEET_MAX`].
///
/// # Errors
/// When an invariant is broken, or the fleet does not come to rest: says what is wrong.
pub fn fleet(enforcers: usize, seed: u64) -> Result<FleetReport, String> {
    if !(1..=FLEET_MAX).contains(&enforcers) {
        return Err(format!("a fleet of {enforcers}: 1 to {FLEET_MAX}"));
    }
    // First, while nothing else has been allocated and given back.
    let memory = Memory::measure(enforcers);
    run::Fleet::new(enforcers, seed).run(memory)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
