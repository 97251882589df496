//! The agent's processes, by cgroup or one by one.

use std::{io, time::Duration};

use crate::{Process, cgroup::Cgroup, descendants::Descendants};

/// All processes of one agent.
#[derive(Debug)]
pub enum Processes {
    /// In a cgroup of their own.
    Cgroup(Cgroup),
    /// Found by descent, without a cgroup.
    Descendants(Descendants),
}

/// What freezing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreezeReport {
    /// Whether every process is frozen.
    pub complete: bool,
    /// How many processes there are.
    pub processes: u64,
}

impl Processes {
    /// Starts to freeze all of them, as far as that needs no waiting.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin_freeze(&self) -> io::Result<()> {
        match self {
            Self::Cgroup(cgroup) => cgroup.begin_freeze(),
            // The first round of signals; rounds until nothing moves follow in `await_frozen`.
            Self::Descendants(descendants) => descendants.freeze(Duration::ZERO).map(drop),
        }
    }

    /// Waits until all of them are frozen. Blocks for up to `within`.
    ///
    /// # Errors
    /// When their state cannot be read.
    pub fn await_frozen(&self, within: Duration) -> io::Result<FreezeReport> {
        let complete = match self {
            Self::Cgroup(cgroup) => cgroup.await_frozen(within)?,
            Self::Descendants(descendants) => descendants.freeze(within)?,
        };
        Ok(FreezeReport { complete, processes: self.count()? })
    }

    /// Lets them go on. Blocks for up to `within`.
    ///
    /// # Errors
    /// When the kernel refuses, or they were not seen to go on within that time.
    pub fn thaw(&self, within: Duration) -> io::Result<()> {
        match self {
            Self::Cgroup(cgroup) if cgroup.thaw(within)? => Ok(()),
            Self::Cgroup(_) => Err(io::ErrorKind::TimedOut.into()),
            Self::Descendants(descendants) => descendants.thaw(),
        }
    }

    /// Kills all of them and waits for their end. Blocks for up to `within`.
    ///
    /// # Errors
    /// When the kernel refuses, or some were left after that time.
    pub fn kill(&self, within: Duration) -> io::Result<()> {
        let complete = match self {
            Self::Cgroup(cgroup) => cgroup.kill(within)?,
            Self::Descendants(descendants) => descendants.kill(within)?,
        };
        if complete { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// Takes hold of those that live now.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self) -> io::Result<Vec<Process>> {
        match self {
            Self::Cgroup(cgroup) => {
                Ok(cgroup.pids()?.into_iter().filter_map(|pid| Process::open(pid).ok()).collect())
            }
            Self::Descendants(descendants) => descendants.list(),
        }
    }

    /// How many live now.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn count(&self) -> io::Result<u64> {
        Ok(match self {
            Self::Cgroup(cgroup) => cgroup.pids()?.len(),
            Self::Descendants(descendants) => descendants.list()?.len(),
        } as u64)
    }
}
