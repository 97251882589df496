//! All descendants of this process, where there is no cgroup: stopped and killed one by one.
//!
//! The supervisor is their subreaper, so that one that detaches itself (double fork, `setsid`) comes
//! back as its child. It must therefore have no other children, and it reaps what comes back.
//! Weaker than a cgroup, and said so by [`crate::Containment`]: signals arrive one after another, a
//! process may fork between two of them (hence rounds until nothing moves), and a stopped process
//! can be continued by anybody with the same uid.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, waitpid},
};

use crate::Process;

/// How long one round waits for signals to take effect.
const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// The processes that descend from this one.
#[derive(Debug)]
pub struct Descendants {
    /// The agent's first process; whoever waits for it reaps it.
    main: u32,
}

impl Descendants {
    /// Makes this process the subreaper of what it starts from now on.
    pub(crate) fn adopt() -> io::Result<()> {
        Ok(nix::sys::prctl::set_child_subreaper(true)?)
    }

    pub(crate) const fn of(main: u32) -> Self {
        Self { main }
    }

    /// Those that live now.
    pub(crate) fn list(&self) -> io::Result<Vec<Process>> {
        let own = std::process::id();
        let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            // One that ended meanwhile is none.
            let Some(process) = pid.and_then(|pid| Process::open(pid).ok()) else { continue };
            let Ok(stat) = process.stat() else { continue };
            children.entry(stat.parent).or_default().push(process);
        }
        let mut found = Vec::new();
        let mut parents = vec![own];
        while let Some(parent) = parents.pop() {
            for process in children.remove(&parent).unwrap_or_default() {
                parents.push(process.pid());
                if !process.has_ended() {
                    found.push(process);
                } else if parent == own && process.pid() != self.main {
                    reap(process.pid());
                }
            }
        }
        Ok(found)
    }

    /// Stops all of them; `false` when some were not within that time.
    pub(crate) fn freeze(&self, within: Duration) -> io::Result<bool> {
        self.until(within, Signal::STOP, Process::is_stopped)
    }

    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.list()?.iter().try_for_each(|process| process.signal(Signal::CONT))
    }

    /// Kills all of them; `false` when some were left within that time.
    pub(crate) fn kill(&self, within: Duration) -> io::Result<bool> {
        // What is stopped does not fork while its siblings die.
        let start = Instant::now();
        self.freeze(within / 2)?;
        self.until(within.saturating_sub(start.elapsed()), Signal::KILL, Process::has_ended)
    }

    /// Signals whoever is not `done`, in rounds, until two rounds find nobody.
    fn until(
        &self,
        within: Duration,
        signal: Signal,
        done: impl Fn(&Process) -> bool,
    ) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        let mut quiet = false;
        loop {
            let left: Vec<Process> = self.list()?.into_iter().filter(|it| !done(it)).collect();
            if left.is_empty() {
                // A look is not one instant: a process seen stopped is continued by the kernel when
                // another one, seen later, ends and orphans its group (`SIGHUP`, then `SIGCONT`). Who
                // is still twice stays so: nobody is left who could end.
                if quiet {
                    return Ok(true);
                }
                quiet = true;
                continue;
            }
            quiet = false;
            for process in &left {
                process.signal(signal)?;
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let mut fds: Vec<PollFd<'_>> =
                left.iter().map(|process| PollFd::new(process.pidfd(), PollFlags::IN)).collect();
            match poll(&mut fds, Some(&ROUND)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Takes the exit status of an adopted process that nobody else waits for.
fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Nothing to do about a failure: it was reaped already.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}
