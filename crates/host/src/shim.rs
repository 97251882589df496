//! What runs between the supervisor and the agent: the same binary, which makes the agent's
//! namespaces, drops every right, and then *becomes* the agent.
//!
//! No `fork` by hand, hence no `unsafe`: the supervisor starts `/proc/self/exe run-shim COMMAND` as
//! an ordinary child, whose standard input is the socket over which the two speak; the agent's real
//! standard input comes over that socket. The supervisor puts the shim into the agent's cgroup
//! before it says anything, so that no instant of the agent is outside.
//!
//! Rights are dropped last and checked afterwards; whatever fails before `exec` ends the shim. A
//! namespace that cannot be made is reported instead, and the supervisor decides.

pub(crate) mod wire;

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use landlock::{
    CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreated, RulesetStatus, Scope,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{Gid, Uid, getpid, getresgid, getresuid, setgroups, setpgid, setresgid, setresuid},
};
use wire::{FromShim, Go, Setup};

/// The hidden subcommand that leads to [`main`].
pub const SUBCOMMAND: &str = "run-shim";

const NOT_STARTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Prepares the confinement and becomes the command. Returns only when that failed.
///
/// `command` are the arguments behind [`SUBCOMMAND`]. To be called first thing in `main`: namespaces
/// and rights belong to threads, of which there must be one, and every file but standard input,
/// output and error is closed.
pub fn main(command: impl IntoIterator<Item = OsString>) -> ExitCode {
    close_inherited();
    let Ok(supervisor) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::from(NOT_STARTED);
    };
    let command: Vec<OsString> = command.into_iter().collect();
    let Err(failure) = prepare(&supervisor)
        .and_then(|(setup, go)| become_agent(&setup, &go, &command, &supervisor));
    let failed = FromShim::Failed { message: failure.message, code: failure.code };
    // Without a supervisor there is nobody to tell.
    let _ = wire::send(&supervisor, &failed, None);
    ExitCode::from(failure.code)
}

/// Closes what whoever started the supervisor left open: a door of theirs is no agent's.
fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The folder's own is among them, and closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Why the shim ends.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn at(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { message: format!("{what}: {error}"), code: NOT_STARTED }
    }
}

/// Everything that is done while the supervisor still waits.
fn prepare(supervisor: &OwnedFd) -> Result<(Setup, Go), Failure> {
    let gone = || Failure { message: "the supervisor is gone".into(), code: NOT_STARTED };
    let (setup, stdin) = wire::receive::<Setup>(supervisor)
        .map_err(Failure::at("this command is internal to `estoppel run`"))?
        .ok_or_else(gone)?;
    if let Some(stdin) = stdin {
        nix::unistd::dup2_stdin(&stdin)
            .map_err(|errno| Failure::at("standard input")(errno.into()))?;
    }
    let mut problems = Vec::new();
    let listener = setup.listen_port.and_then(|port| match isolated_listener(port) {
        Ok(listener) => Some(listener),
        Err(error) => {
            problems.push(format!("no network namespace: {error}"));
            None
        }
    });
    let hidden = hide(&setup.hide, &mut problems);
    let scoped = match restrict_to_own_processes() {
        Ok(()) => true,
        Err(problem) => {
            problems.push(problem);
            false
        }
    };
    let ready = FromShim::Ready { hidden, scoped, problems };
    wire::send(supervisor, &ready, listener.as_ref().map(AsFd::as_fd))
        .map_err(Failure::at("telling the supervisor"))?;
    let (go, _) = wire::receive::<Go>(supervisor)
        .map_err(Failure::at("waiting for the supervisor"))?
        .ok_or_else(gone)?;
    Ok((setup, go))
}

/// Makes a network namespace with nothing in it but `lo`, and the one listener.
fn isolated_listener(port: u16) -> io::Result<TcpListener> {
    // System V shared memory reaches over network namespaces: it gets one of its own, too.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
    crate::netlink::loopback_up()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// Covers paths in an own mount namespace, and returns those that are covered.
///
/// A path that does not exist needs no cover; one that is made later is not covered.
fn hide(paths: &[PathBuf], problems: &mut Vec<String>) -> Vec<PathBuf> {
    let mut existing: Vec<PathBuf> =
        paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
    existing.sort_unstable();
    existing.dedup();
    if existing.is_empty() {
        return Vec::new();
    }
    let own_namespace = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
        // Mounts of the host still arrive; ours do not go there.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
    });
    if let Err(errno) = own_namespace {
        problems.push(format!("nothing is hidden: no mount namespace: {errno}"));
        return Vec::new();
    }
    existing.retain(|path| match cover(path) {
        Ok(()) => true,
        // It lay below a path that is covered by now.
        Err(nix::errno::Errno::ENOENT) => false,
        Err(errno) => {
            problems.push(format!("{} is not hidden: {errno}", path.display()));
            false
        }
    });
    existing
}

/// Mounts an empty folder over a folder, and `/dev/null` over anything else.
fn cover(path: &Path) -> nix::Result<()> {
    let inert = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    if path.is_dir() {
        return mount(Some("none"), path, Some("tmpfs"), inert, Some("mode=0,size=4k"));
    }
    mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Lets it signal, trace and (by abstract sockets) talk to nobody but its own descendants.
///
/// Other programs may run under the same uid, other agents above all: one that traces a process
/// outside is outside itself. Needs Landlock of Linux 6.12 (ABI 6).
fn restrict_to_own_processes() -> Result<(), String> {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::Signal | Scope::AbstractUnixSocket)
        .and_then(Ruleset::create)
        .and_then(RulesetCreated::restrict_self);
    match restricted {
        Ok(status) if status.ruleset == RulesetStatus::FullyEnforced => Ok(()),
        Ok(_) => Err("Landlock is not enforced".to_owned()),
        Err(error) => Err(format!("no Landlock scopes: {error}")),
    }
}

/// Drops what the agent must not have and becomes it.
fn become_agent(
    setup: &Setup,
    go: &Go,
    command: &[OsString],
    supervisor: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    let [program, arguments @ ..] = command else {
        return Err(Failure { message: "no command is given".into(), code: NOT_STARTED });
    };
    own_group(setup.foreground).map_err(Failure::at("process group"))?;
    if let Some((uid, gid)) = setup.identity {
        become_user(Uid::from_raw(uid), Gid::from_raw(gid)).map_err(Failure::at("uid"))?;
    }
    prctl::set_no_new_privs().map_err(|errno| Failure::at("no_new_privs")(errno.into()))?;
    // Only now: a change of uid clears it. Then whoever died before must be noticed.
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Failure::at("parent death signal")(errno.into()))?;
    if hung_up(supervisor.as_fd()).map_err(Failure::at("the supervisor's socket"))? {
        return Err(Failure { message: "the supervisor is gone".into(), code: NOT_STARTED });
    }
    let mut agent = Command::new(program);
    agent.args(arguments);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        agent.env(name, &go.proxy).env(name.to_ascii_lowercase(), &go.proxy);
    }
    agent.env_remove("NO_PROXY").env_remove("no_proxy");
    agent.envs(go.guard.iter().map(|(name, value)| (name, value)));
    let error = agent.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED };
    Err(Failure { message: format!("{}: {error}", program.display()), code })
}

/// Leaves the supervisor's process group: for the terminal's foreground, or for a new session that
/// has no terminal to push characters into.
fn own_group(foreground: bool) -> io::Result<()> {
    if !foreground {
        nix::unistd::setsid()?;
        return Ok(());
    }
    setpgid(getpid(), getpid())?;
    take_terminal(getpid())
}

/// Makes a process group the foreground of the terminal on standard input.
pub(crate) fn take_terminal(group: nix::unistd::Pid) -> io::Result<()> {
    // Who is in the background is stopped by SIGTTOU when it asks for the terminal, unless it
    // blocks the signal.
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    ttou.thread_block()?;
    let taken = rustix::termios::tcsetpgrp(
        io::stdin(),
        rustix::process::Pid::from_raw(group.as_raw()).ok_or(io::ErrorKind::InvalidInput)?,
    );
    ttou.thread_unblock()?;
    Ok(taken?)
}

/// Becomes another user without any group but its own, and makes sure of it.
fn become_user(uid: Uid, gid: Gid) -> io::Result<()> {
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    let all = [uids.real, uids.effective, uids.saved].iter().all(|own| *own == uid)
        && [gids.real, gids.effective, gids.saved].iter().all(|own| *own == gid);
    if all { Ok(()) } else { Err(io::Error::other("the kernel kept another uid")) }
}

fn hung_up(supervisor: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&supervisor, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}
