//! One process, held so that a reused pid is never taken for it.
//!
//! `/proc/PID` opened as a folder stays the folder of that one process: once it is gone, every read
//! through it fails. All reading goes through such a folder and never follows a link, except the
//! kernel's own `exe`.

use std::{fs, io, io::Read as _, os::fd::OwnedFd};

use estoppel_evidence::ProcessRef;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat, openat2, readlinkat},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// Largest `/proc/PID/stat`, `status` or `cgroup` that is read to decide something.
const SMALL_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A process of this host.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_ticks: u64,
    folder: OwnedFd,
    pidfd: OwnedFd,
}

/// What `/proc/PID/stat` says that is needed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R`, `S`, `D`, `T`, `Z` and so on.
    pub(crate) state: u8,
    pub(crate) parent: u32,
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Whether it will do nothing more: stopped, traced, dead or a zombie.
    pub(crate) const fn is_still(self) -> bool {
        matches!(self.state, b'T' | b't' | b'Z' | b'X')
    }

    /// Whether it has ended and is only waited for.
    pub(crate) const fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Reads proc_pid_stat(5). The process chose the name in parentheses: it may hold spaces,
    /// parentheses and line feeds, so that only the last parenthesis ends it.
    fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&text[end + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22; the state was field 3.
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { state, parent, start_ticks })
    }
}

impl Process {
    /// Takes hold of the process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}"));
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(missing)?;
        let folder = rustix::fs::open(
            format!("/proc/{pid}"),
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let mut process = Self { pid, start_ticks: 0, folder, pidfd };
        // Read behind both: as long as the folder answers, the pid was not given to another one.
        process.start_ticks = process.stat()?.start_ticks;
        Ok(process)
    }

    /// The pid.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The process by pid and start.
    pub const fn reference(&self) -> ProcessRef {
        ProcessRef { pid: self.pid, start_ticks: self.start_ticks }
    }

    pub(crate) const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Sends a signal to this process and to no other.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // It has ended: what the signal could have been for is done.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn stat(&self) -> io::Result<Stat> {
        let text = self.small_file("stat")?;
        Stat::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat"))
    }

    /// A whole file of `/proc/PID` that the kernel keeps short.
    pub(crate) fn small_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file(name)?.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Opens a regular file of `/proc/PID`, such as `maps`, `net/tcp` or `fdinfo/3`.
    pub(crate) fn file(&self, name: &str) -> io::Result<fs::File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = match openat2(&self.folder, name, flags, Mode::empty(), resolve) {
            // Before Linux 5.6. In `/proc/PID` only fixed names are asked for.
            Err(rustix::io::Errno::NOSYS) => {
                openat(&self.folder, name, flags | OFlags::NOFOLLOW, Mode::empty())?
            }
            fd => fd?,
        };
        regular(fd)
    }

    /// Opens what the process runs, also when it was deleted or replaced on disk.
    pub(crate) fn exe(&self) -> io::Result<fs::File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        regular(openat(&self.folder, "exe", flags, Mode::empty())?)
    }

    /// The names in a folder of `/proc/PID`, at most `count_max` of them and whether there are more.
    pub(crate) fn names(&self, folder: &str, count_max: usize) -> io::Result<(Vec<String>, bool)> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = openat(&self.folder, folder, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == count_max {
                return Ok((names, true));
            }
            names.push(name);
        }
        Ok((names, false))
    }

    /// Where a link of `/proc/PID` leads to, as the kernel writes it; it is not followed.
    pub(crate) fn link(&self, name: &str) -> io::Result<String> {
        let target = readlinkat(&self.folder, name, Vec::new())?;
        Ok(String::from_utf8_lossy(target.to_bytes()).into_owned())
    }

    /// Whether it will run no more of its own code until it is continued.
    ///
    /// Stopped, or waiting within `vfork` for a child that is stopped before its `exec`, with a stop
    /// of its own pending: the kernel shows that as uninterruptible sleep, and it lasts.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stat().map_or(true, |stat| {
            stat.is_still()
                || (stat.state == b'D' && self.waits_in_vfork() && self.stop_is_pending())
        })
    }

    fn waits_in_vfork(&self) -> bool {
        self.small_file("wchan").is_ok_and(|function| {
            ["kernel_clone", "_do_fork", "wait_for_vfork_done"]
                .iter()
                .any(|known| function.starts_with(known.as_bytes()))
        })
    }

    fn stop_is_pending(&self) -> bool {
        self.small_file("status").is_ok_and(|status| stop_in(&String::from_utf8_lossy(&status)))
    }

    /// Whether the process has ended, waited for or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.stat().map_or(true, Stat::is_dead)
    }
}

/// Whether an error of `/proc/PID` means that the process has ended or is about to.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Whether the pending signals of `/proc/PID/status` hold SIGSTOP.
fn stop_in(status: &str) -> bool {
    let bit = 1_u64 << (Signal::STOP.as_raw() - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:")))
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & bit != 0))
}

fn regular(fd: OwnedFd) -> io::Result<fs::File> {
    let file = fs::File::from(fd);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let text = b"42 (a) R 1 (b c\n) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        assert_eq!(Stat::parse(text), Some(Stat { state: b'S', parent: 7, start_ticks: 987_654 }));
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b"42 (a) S 7"), None);
    }

    #[test]
    fn a_pending_stop_is_read_from_the_masks() {
        let status = |shared: &str| format!("SigPnd:\t0000000000000000\nShdPnd:\t{shared}\n");
        assert!(stop_in(&status("0000000000040000")));
        assert!(stop_in(&status("0000000000044100")));
        assert!(!stop_in(&status("0000000000020000")));
        assert!(!stop_in("SigIgn:\t0000000000040000\n"));
    }

    #[test]
    fn a_process_that_ended_is_not_found_again_under_its_pid() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(process.stat().is_err());
        assert!(process.signal(Signal::KILL).is_ok());
        assert!(Process::open(0).is_err());
    }

    #[test]
    fn links_and_folders_are_not_read_as_files() {
        let own = Process::open(std::process::id()).unwrap();
        assert!(own.file("stat").is_ok());
        assert!(own.file("exe").is_err());
        assert!(own.file("cwd/Cargo.toml").is_err());
        assert!(own.file("../1/stat").is_err());
        assert!(own.file("fd").is_err());
        assert!(own.exe().is_ok());
        assert!(own.link("cwd").unwrap().starts_with('/'));
    }
}
