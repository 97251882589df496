//! How often each kind of fault had an effect, and each invariant was checked: a fault that never
//! happens proves nothing.

use std::fmt;

use estoppel_killswitch::invariant::{Count, Invariant, Tally};

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What can go wrong in a world. Counted where it has an effect, not where it is meant.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault { $($(#[doc = $doc])+ $name,)+ }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name for people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

faults! {
    /// A frame was held back, or a connection could not be made.
    Partition = "partition",
    /// A frame took over a second.
    Delay = "delay",
    /// Two frames changed places.
    Reordering = "reordering",
    /// A frame came twice.
    Duplicate = "duplicate",
    /// A connection was cut, with frames on their way.
    Cut = "connection cut",
    /// An enforcer connected to another server than before.
    FailOver = "fail-over",
    /// A server was killed.
    ServerKilled = "server killed",
    /// An enforcer was killed.
    EnforcerKilled = "enforcer killed",
    /// A server's machine lost power, and what it had not synced.
    ServerPowerCut = "server power cut",
    /// An enforcer's machine lost power.
    EnforcerPowerCut = "enforcer power cut",
    /// A write failed for want of room.
    DiskFull = "disk full",
    /// An fsync failed.
    SyncFailed = "fsync failed",
    /// The disk did not answer while orders waited.
    DiskHung = "disk hung",
    /// A server came back without its spool, which held orders.
    SpoolLost = "spool lost",
    /// A server came back with an old copy that lacks orders.
    BackupRestored = "backup restored",
    /// An enforcer came back without its cache, which held orders.
    CacheLost = "cache lost",
    /// An enforcer found its cache damaged.
    CacheDamaged = "cache damaged",
    /// Two machines' wall clocks differ by more than a lease.
    ClockSkew = "clock skew",
    /// A wall clock was set.
    ClockJump = "clock jump",
    /// A machine slept for longer than a lease.
    Suspend = "suspend",
    /// A server could not reach the ledger while something waited for it.
    LedgerAway = "ledger away",
    /// A server gave shorter leases, since it was behind the ledger.
    StaleServer = "stale server",
    /// A halt was given while a release was on its way to the ledger.
    HaltBesideRelease = "halt beside release",
    /// One halt was given at several servers.
    HaltEverywhere = "halt at several servers",
    /// A halt was given on an enforcer's host.
    LocalHalt = "local halt",
    /// A server took an order from an enforcer.
    HandedBack = "order handed back",
    /// Agents went on without a lease, by a break-glass.
    BreakGlass = "break-glass used",
    /// The server ended a halt whose time was over.
    UntilOver = "halt until a time",
}

/// What happened in one world, or in many.
#[derive(Debug, Clone)]
pub struct Coverage {
    faults: Vec<u64>,
    checks: [Count; Invariant::ALL.len()],
    /// How many worlds.
    pub worlds: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { faults: vec![0; Fault::ALL.len()], checks: Tally::default().counts(), worlds: 0 }
    }
}

impl Coverage {
    pub(crate) fn happened(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    pub(crate) fn checked(&mut self, checks: [Count; Invariant::ALL.len()]) {
        self.checks = checks;
        self.worlds = 1;
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.faults.iter_mut().zip(&other.faults) {
            *own += more;
        }
        for (own, more) in self.checks.iter_mut().zip(&other.checks) {
            own.checks += more.checks;
            own.violations += more.violations;
        }
        self.worlds += other.worlds;
    }

    /// How often a fault had an effect.
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    /// How often each invariant was checked.
    pub const fn checks(&self) -> &[Count; Invariant::ALL.len()] {
        &self.checks
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "worlds                  {:>14}", self.worlds)?;
        for count in &self.checks {
            writeln!(f, "{:<24}{:>14} checks", count.invariant.name(), count.checks)?;
        }
        for fault in Fault::ALL {
            writeln!(f, "{:<24}{:>14}", fault.name(), self.of(*fault))?;
        }
        Ok(())
    }
}
