//! The walls around the worker, put up by itself before it reads a query.
//!
//! What the machine does not permit is said, never skipped in silence.

use std::{io, os::fd::RawFd};

use nix::sched::{CloneFlags, unshare};
use rustix::process::{Resource, Rlimit};

use crate::Isolation;

/// Closes every file that the server's other code may have left open across the start, except
/// standard input, output and error.
pub(super) fn close_inherited_files() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // One of them was the listing itself, and is closed already.
        let _closed = nix::unistd::close(fd);
    }
}

/// Leaves the network, lowers the priority, and limits the memory of this process. It must still
/// have one thread only.
pub(super) fn isolate(memory_bytes: u64) -> Isolation {
    let mut isolation = Isolation::default();
    let mut gap = |what: &str, error: io::Error| isolation.gaps.push(format!("{what}: {error}"));
    let no_network = unshare(CloneFlags::CLONE_NEWNET)
        // Without the capability a user namespace gives it, where the machine permits one.
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
        .map_err(|errno| gap("the worker keeps the network", errno.into()))
        .is_ok();
    let limit = Rlimit { current: Some(memory_bytes), maximum: Some(memory_bytes) };
    let limited = rustix::process::setrlimit(Resource::As, limit)
        .map_err(|errno| gap("the worker's memory has no limit", errno.into()))
        .is_ok();
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(errno) = rustix::process::setrlimit(Resource::Core, no_core) {
        gap("a crash of the worker may leave a core file with events", errno.into());
    }
    if let Err(errno) = rustix::process::nice(10) {
        gap("the worker's priority is not lowered", errno.into());
    }
    if let Err(errno) = nix::sys::prctl::set_no_new_privs() {
        gap("the worker may gain privileges", errno.into());
    }
    isolation.no_network = no_network;
    isolation.memory_bytes = if limited { memory_bytes } else { 0 };
    isolation
}
