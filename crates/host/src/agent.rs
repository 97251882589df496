//! The running agent: its first process, and the thread that started it and waits for it.

use std::{
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    process::Command,
    sync::{Arc, mpsc},
};

use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tokio::sync::oneshot;

use crate::{Containment, Process, Processes, cutoff::Cutoff, signals::Signals};

/// How the agent's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentExit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It cannot be told.
    Unknown,
}

impl AgentExit {
    /// The exit code as shells have it: 128 + N for signal N.
    pub fn exit_code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code & 0xff,
            Self::Signal(signal) => 128 + signal,
            Self::Unknown => 255,
        };
        u8::try_from(code).unwrap_or(255)
    }
}

/// A running agent. Dropping it leaves the agent alone; [`crate::supervise`] is what ends it.
#[derive(Debug)]
pub struct Agent {
    pub(crate) main: Process,
    pub(crate) cutoff: Option<Cutoff>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) containment: Containment,
    pub(crate) exit: oneshot::Receiver<AgentExit>,
    pub(crate) signals: Option<Signals>,
    pub(crate) foreground: bool,
}

impl Agent {
    /// The containment that holds, for the line that is printed at the start.
    pub const fn containment(&self) -> &Containment {
        &self.containment
    }

    /// The pid of the agent's first process, as the host sees it.
    pub const fn pid(&self) -> u32 {
        self.main.pid()
    }

    /// The agent's processes.
    pub fn processes(&self) -> Arc<Processes> {
        Arc::clone(&self.processes)
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.main.signal(signal)
    }
}

/// Whether the supervisor holds the terminal on its standard input, for the agent to take over.
pub(crate) fn holds_terminal() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal()
        && rustix::termios::tcgetpgrp(stdin.as_fd())
            .is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Takes the terminal back from an agent that has ended.
pub(crate) fn take_terminal_back() {
    let own = nix::unistd::getpgrp();
    if let Err(error) = crate::shim::take_terminal(own) {
        tracing::debug!(%error, "the terminal was not given back");
    }
}

/// Starts the shim on a thread of its own, which then waits for it.
///
/// The thread lives as long as the agent: the kernel kills a child with PR_SET_PDEATHSIG when the
/// *thread* ends that made it, and threads of a pool come and go.
pub(crate) fn spawn(mut shim: Command) -> io::Result<(Process, oneshot::Receiver<AgentExit>)> {
    let (started, starting) = mpsc::sync_channel(1);
    let (ended, exit) = oneshot::channel();
    std::thread::Builder::new().name("agent".to_owned()).spawn(move || {
        // Our child cannot be reaped by anybody else, so that its pid is its own until then.
        let opened = shim.spawn().and_then(|child| Process::open(child.id()));
        // The command holds the shim's end of the socket, whose closing must be seen.
        drop(shim);
        let opened = opened.and_then(|process| {
            let pidfd = process.pidfd().try_clone()?;
            Ok((process, pidfd))
        });
        match opened {
            Ok((process, pidfd)) => {
                // Both receivers may have given up: then nobody asks.
                let _ = started.send(Ok(process));
                let _ = ended.send(await_exit(&pidfd));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    let process = starting.recv().map_err(|_| io::Error::other("the agent's thread ended"))??;
    Ok((process, exit))
}

fn await_exit(pidfd: &std::os::fd::OwnedFd) -> AgentExit {
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED;
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(Some(status)) if status.stopped() => {
                // Ctrl-Z. A supervisor that stopped itself along could not carry out orders, so the
                // agent goes on. SIGSTOP is our own way to freeze without a cgroup.
                let stop = Signal::STOP.as_raw();
                if status.stopping_signal().is_some_and(|signal| signal != stop) {
                    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::CONT);
                }
            }
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(AgentExit::Signal);
                return status
                    .exit_status()
                    .map(AgentExit::Code)
                    .or(signal)
                    .unwrap_or(AgentExit::Unknown);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for the agent");
                return AgentExit::Unknown;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(AgentExit::Code(3).exit_code(), 3);
        assert_eq!(AgentExit::Signal(9).exit_code(), 137);
        assert_eq!(AgentExit::Unknown.exit_code(), 255);
    }
}
