//! An own cgroup (version 2) for the agent: no process of it gets out, and one write freezes or
//! kills all of them.
//!
//! cgroup v2 is found where it is mounted (`/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside
//! version 1). The freezer needs no controller, so an own cgroup below that of the supervisor, or
//! below the root, will do. See cgroup-v2.rst, "cgroup.freeze", "cgroup.kill", "cgroup.events".

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The folder that holds the agents' cgroups.
const PARENT: &str = "estoppel";
/// Deepest nesting that is searched for processes.
const DEPTH_MAX: usize = 16;
/// Longest part of a name that is taken from the session's id.
const NAME_CHARS_MAX: usize = 64;

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel or the container has none.
    #[error("no cgroup v2 is mounted")]
    NotMounted,
    /// It cannot be made, most often for want of rights.
    #[error("no cgroup below {path}: {source}")]
    Create {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel is older than 5.2.
    #[error("cgroup {path} has no freezer: it needs Linux 5.2")]
    NoFreezer {
        /// The cgroup.
        path: PathBuf,
    },
}

/// The agent's cgroup. Removed when it is dropped, if no process is left in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    events: fs::File,
}

/// Where cgroup v2 is mounted, by the text of `/proc/self/mountinfo`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // See proc_pid_mountinfo(5): optional fields end at a lone hyphen, then comes the type.
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next()? == "cgroup2").then_some(())?;
        let point = mount.split(' ').nth(4)?;
        Some(PathBuf::from(unescaped(point)))
    })
}

/// Octal escapes of mountinfo: `\040` is a space.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Our own cgroup, by the text of `/proc/self/cgroup`; `None` when it lies outside what we see.
fn own_path(cgroups: &str) -> Option<&str> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

/// Removes the empty cgroups of supervisors that are gone. One with processes in it stays: they are
/// what a killed supervisor left, frozen if they were.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(supervisor_of);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // The kernel refuses while it holds a process.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The supervisor's pid in a name that [`Cgroup::create`] made.
fn supervisor_of(name: &str) -> Option<u32> {
    name.rsplit('-').nth(1)?.parse().ok()
}

/// A folder name out of a stranger's text.
fn folder_name(label: &str) -> String {
    let name: String = label
        .chars()
        .take(NAME_CHARS_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    format!("{name}-{}", std::process::id())
}

impl Cgroup {
    /// Makes a new cgroup named after `label`, below `under` or else where it can.
    pub(crate) fn create(under: Option<&Path>, label: &str) -> Result<Self, CgroupError> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let parents = if let Some(under) = under {
            vec![under.to_owned()]
        } else {
            let root = mount_point(&read("/proc/self/mountinfo")).ok_or(CgroupError::NotMounted)?;
            let cgroups = read("/proc/self/cgroup");
            let own = own_path(&cgroups).map(|path| root.join(path));
            own.into_iter().chain([root]).map(|path| path.join(PARENT)).collect()
        };
        let mut failure = CgroupError::NotMounted;
        for parent in parents {
            match Self::create_in(&parent, label) {
                Ok(cgroup) => return Ok(cgroup),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn create_in(parent: &Path, label: &str) -> Result<Self, CgroupError> {
        let error = |source| CgroupError::Create { path: parent.to_owned(), source };
        fs::create_dir_all(parent).map_err(error)?;
        remove_leftovers(parent);
        let name = folder_name(label);
        let mut count = 0;
        let path = loop {
            let path = parent.join(format!("{name}-{count}"));
            match fs::create_dir(&path) {
                Ok(()) => break path,
                // A leftover of a supervisor that had our pid.
                Err(found) if found.kind() == io::ErrorKind::AlreadyExists && count < 1_000 => {
                    count += 1;
                }
                Err(source) => return Err(error(source)),
            }
        };
        if !path.join("cgroup.freeze").exists() {
            // Best effort: an empty folder that stays harms nothing.
            let _ = fs::remove_dir(&path);
            return Err(CgroupError::NoFreezer { path });
        }
        match fs::File::open(path.join("cgroup.events")) {
            Ok(events) => Ok(Self { path, events }),
            Err(source) => {
                let _ = fs::remove_dir(&path);
                Err(error(source))
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Sets the freezer, which then goes to every process by itself.
    pub(crate) fn begin_freeze(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "1")
    }

    /// Waits until every process is frozen; `false` when some were not within that time.
    pub(crate) fn await_frozen(&self, within: Duration) -> io::Result<bool> {
        self.await_event("frozen", true, within)
    }

    pub(crate) fn thaw(&self, within: Duration) -> io::Result<bool> {
        fs::write(self.path.join("cgroup.freeze"), "0")?;
        self.await_event("frozen", false, within)
    }

    /// Kills every process, frozen or not; `false` when some were left within that time.
    pub(crate) fn kill(&self, within: Duration) -> io::Result<bool> {
        let file = self.path.join("cgroup.kill");
        if file.exists() {
            fs::write(file, "1")?;
        } else {
            // Linux 5.2 to 5.13. Nothing forks while it is frozen, so that one pass gets all.
            self.begin_freeze()?;
            self.await_frozen(within)?;
            for pid in self.pids()? {
                if let Ok(process) = crate::Process::open(pid) {
                    process.signal(rustix::process::Signal::KILL)?;
                }
            }
        }
        self.await_event("populated", false, within)
    }

    /// The processes in it and in cgroups below it.
    pub(crate) fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        let mut folders = vec![(self.path.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let procs = match fs::read_to_string(folder.join("cgroup.procs")) {
                Ok(procs) => procs,
                // One below was removed meanwhile.
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(error),
            };
            pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            if depth == DEPTH_MAX {
                continue;
            }
            for entry in fs::read_dir(&folder)?.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push((entry.path(), depth + 1));
                }
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Waits until a line of `cgroup.events` says so. The kernel signals a change as POLLPRI.
    fn await_event(&self, key: &str, value: bool, within: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            let mut text = [0; 256];
            let length = self.events.read_at(&mut text, 0)?;
            let text = String::from_utf8_lossy(&text[..length]);
            if event_value(&text, key) == Some(value) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let events = self.events.as_fd();
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left)))?;
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while a process is left, which then stays where it is: frozen, if it was.
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(cgroup = %self.path.display(), %error, "the cgroup stays");
        }
    }
}

fn event_value(text: &str, key: &str) -> Option<bool> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .map(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_hybrid_and_on_unified_machines() {
        let check = |mountinfo: &str, expect: Option<&str>| {
            assert_eq!(mount_point(mountinfo), expect.map(PathBuf::from), "{mountinfo}");
        };
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup"),
        );
        check(
            "41 40 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             42 40 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup/unified"),
        );
        check("30 23 0:26 / /mnt/a\\040b rw - cgroup2 cgroup2 rw", Some("/mnt/a b"));
        check("30 23 0:26 / /cgroup2 rw - tmpfs tmpfs rw", None);
        check("", None);
    }

    #[test]
    fn the_own_cgroup_is_read_and_never_leads_up() {
        assert_eq!(own_path("1:cpu:/x\n0::/user.slice/a.scope\n"), Some("user.slice/a.scope"));
        assert_eq!(own_path("0::/"), Some(""));
        assert_eq!(own_path("0::/../other"), None);
        assert_eq!(own_path("1:cpu:/"), None);
    }

    #[test]
    fn a_session_id_cannot_name_another_folder() {
        assert!(folder_name("../../etc").starts_with("______etc-"));
        assert!(folder_name(&"x".repeat(300)).len() < 80);
        let name = format!("{}-0", folder_name("a-b-7"));
        assert_eq!(supervisor_of(&name), Some(std::process::id()));
        assert_eq!(supervisor_of("cgroup.procs"), None);
    }

    #[test]
    fn events_are_read_by_their_whole_key() {
        let text = "populated 1\nfrozen 0\n";
        assert_eq!(event_value(text, "populated"), Some(true));
        assert_eq!(event_value(text, "frozen"), Some(false));
        assert_eq!(event_value(text, "froz"), None);
    }
}
