//! Processes that carry a mark in their environment, and what descends from them: found and killed.
//!
//! For children that another library starts: their numbers are not known here, and what they start in
//! their turn leads groups and sessions of its own, out of a group's reach. A process hands its
//! environment on to what it starts, so one that detached itself is found after its parents have
//! ended. One that cleared its environment is found while a parent of it lives; one that did both, or
//! that runs as another user where this process is not privileged, is not found, or not killed.
//!
//! Of Linux alone. Takes no lock of Python's.

use std::{ffi::CString, time::Duration};

/// A variable of an environment with its value, as in `NAME=1`.
pub(crate) struct Mark(CString);

/// Shortest mark: nobody else's variable is to be taken for one.
const MARK_BYTES_MIN: usize = 24;

impl Mark {
    /// `None` for what is no variable with a value, or too short to be one's own.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let is_one = text.len() >= MARK_BYTES_MIN && text.contains('=');
        CString::new(text).ok().filter(|_| is_one).map(Self)
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Killed {
    /// Whether there was anything to kill.
    pub(crate) any: bool,
    /// Whether nothing is left.
    pub(crate) all: bool,
}

/// Whether marked processes can be found on this system.
pub(crate) const IS_POSSIBLE: bool = cfg!(target_os = "linux");

/// Kills what carries the mark, with what descends from it, and waits for its end.
pub(crate) fn kill(mark: &Mark, within: Duration) -> Killed {
    imp::kill(mark, within)
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{Duration, Killed, Mark};

    pub(super) fn kill(_: &Mark, _: Duration) -> Killed {
        Killed::default()
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::{
        collections::{HashMap, HashSet},
        fs::File,
        io::{self, Read as _},
        os::fd::OwnedFd,
        time::Instant,
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    };

    use super::{Duration, Killed, Mark};

    /// How long one round waits for an end.
    const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    /// Largest file of `/proc/PID` that is read: what an environment can come to.
    const FILE_BYTES_MAX: u64 = 8 << 20;

    pub(super) fn kill(mark: &Mark, within: Duration) -> Killed {
        let deadline = Instant::now() + within;
        let mut killed = Killed { any: stop(mark, deadline), all: false };
        let mut quiet = false;
        loop {
            let Ok(found) = find(mark) else { return killed };
            if found.is_empty() {
                // A look is not one instant. Nobody is left at the second one who could have been
                // started during the first.
                if quiet {
                    killed.all = true;
                    return killed;
                }
                quiet = true;
                continue;
            }
            quiet = false;
            killed.any = true;
            for process in &found {
                process.signal(Signal::KILL);
            }
            if Instant::now() >= deadline {
                return killed;
            }
            let fds = found.iter().map(|process| PollFd::new(&process.pidfd, PollFlags::IN));
            // Interrupted or not: the next look decides.
            let _ = poll(&mut fds.collect::<Vec<_>>(), Some(&ROUND));
        }
    }

    /// Stops them first: what is stopped starts nothing while the others die, and nobody loses the
    /// parent by which it is found. Whether there was anybody.
    fn stop(mark: &Mark, deadline: Instant) -> bool {
        let mut stopped = HashSet::new();
        loop {
            let mut is_new = false;
            for process in find(mark).unwrap_or_default() {
                if stopped.insert(process.stat.start) {
                    is_new = true;
                    process.signal(Signal::STOP);
                }
            }
            if !is_new || Instant::now() >= deadline {
                return !stopped.is_empty();
            }
        }
    }

    /// A process that was found, held so that its number is never taken for another's.
    struct Process {
        stat: Stat,
        pidfd: OwnedFd,
    }

    impl Process {
        fn open(pid: u32, seen: Stat) -> Option<Self> {
            let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
            // Read behind it: who has the number now had it then.
            let is_the_same = stat(pid)?.start == seen.start;
            is_the_same.then_some(Self { stat: seen, pidfd })
        }

        fn signal(&self, signal: Signal) {
            // It has ended, or may not be signalled: the next look shows which.
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// What `/proc/PID/stat` says that is needed here.
    #[derive(Clone, Copy)]
    struct Stat {
        has_ended: bool,
        parent: u32,
        /// When it started, and its number: together they name it.
        start: (u64, u32),
    }

    /// Those that live now.
    fn find(mark: &Mark) -> io::Result<Vec<Process>> {
        let own = std::process::id();
        let mut seen = HashMap::new();
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut to_visit = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Some(stat) = stat(pid).filter(|stat| pid != own && !stat.has_ended) else {
                continue;
            };
            seen.insert(pid, stat);
            children.entry(stat.parent).or_default().push(pid);
            if is_marked(pid, mark) {
                to_visit.push(pid);
            }
        }
        let mut found = Vec::new();
        while let Some(pid) = to_visit.pop() {
            to_visit.extend(children.remove(&pid).unwrap_or_default());
            found.extend(seen.remove(&pid).and_then(|stat| Process::open(pid, stat)));
        }
        Ok(found)
    }

    fn is_marked(pid: u32, mark: &Mark) -> bool {
        let environment = read(pid, "environ").unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.0.as_bytes())
    }

    /// Reads proc_pid_stat(5). The process chose the name in parentheses: only the last one ends it.
    fn stat(pid: u32) -> Option<Stat> {
        let text = read(pid, "stat").ok()?;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let has_ended = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        // Field 22; the parent was field 4.
        let start = fields.nth(17)?.parse().ok()?;
        Some(Stat { has_ended, parent, start: (start, pid) })
    }

    fn read(pid: u32, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(format!("/proc/{pid}/{name}"))?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    }
}
