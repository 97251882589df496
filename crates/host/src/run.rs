//! Starts an agent confined: configuration, shim, gateway's listener, go.

use std::{
    ffi::OsString,
    io,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use estoppel_link::Refusal;
use estoppel_model::{Secret, Subject};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use tokio::sync::oneshot;

use crate::{
    Agent, AgentExit, Containment, Mode, Orders, Process, Processes,
    agent::{holds_terminal, spawn},
    cgroup::Cgroup,
    containment::Arranged,
    cutoff::Cutoff,
    descendants::Descendants,
    shim::{
        self,
        wire::{FromShim, Go, Setup, receive, send},
    },
    signals::Signals,
};

/// Where the gateway is in the agent's network namespace: 127.0.0.1 at this port.
pub const PROXY_PORT: u16 = 3128;

/// Paths that lead out of a network namespace or to other rights, hidden where they exist: unix
/// sockets with a path are reachable from every namespace. Some resolve names (resolved, nscd,
/// avahi), by which data leaves, too; some start programs (docker, containerd, systemd, D-Bus).
pub const DEFAULT_HIDDEN: &[&str] = &[
    "/run/docker.sock",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/dbus",
    "/run/systemd/private",
    "/run/systemd/resolve",
    "/run/nscd",
    "/run/avahi-daemon",
    "/run/snapd.socket",
    "/run/estoppel",
    "/run/user",
    "/sys/fs/cgroup",
];

/// How long the shim may take for one step; it does what the kernel answers in milliseconds.
const SHIM_ANSWER_MAX: Duration = Duration::from_secs(10);
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// How an agent is to be run.
#[derive(Debug)]
pub struct RunConfig {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Who acts. The session names the cgroup.
    pub subject: Subject,
    /// As whom.
    pub identity: Identity,
    /// In which cgroup.
    pub cgroup: CgroupMode,
    /// With which network.
    pub network: NetworkMode,
    /// Paths to hide: [`DEFAULT_HIDDEN`], the data folder, the evidence folder.
    pub hide: Vec<PathBuf>,
    /// How the agent's own guard, if it has one, finds its server.
    pub guard: GuardAccess,
    /// Variables for the agent beside those of the supervisor, of which no `ESTOPPEL_` one is
    /// passed on (they hold tokens).
    pub env: Vec<(OsString, OsString)>,
    /// The program that leads to [`shim::main`], with its first arguments; by default this program
    /// with [`shim::SUBCOMMAND`].
    pub shim: Vec<OsString>,
}

/// As whom an agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Another user; needs root. Best one whom no other program uses.
    Other {
        /// The uid.
        uid: u32,
        /// The gid, and no other group.
        gid: u32,
    },
    /// The supervisor's own.
    Own,
}

impl Default for Identity {
    /// `nobody`.
    fn default() -> Self {
        Self::Other { uid: 65534, gid: 65534 }
    }
}

/// In which cgroup an agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// A new one, below the supervisor's own or below the root; without the rights to that: none.
    #[default]
    Auto,
    /// A new one below this folder; without the rights to that: none.
    Under(PathBuf),
    /// None: stopped by signals. This process must then have no other children.
    None,
}

/// With which network an agent runs.
#[derive(Debug)]
pub enum NetworkMode {
    /// In its own namespace; the agent is not started where that cannot be.
    Namespace,
    /// In its own namespace, and where that cannot be, asked to use the proxy at this URL. It should
    /// hold a minted credential: nothing else tells the gateway who connects.
    NamespaceOr(Secret<String>),
    /// In the host's network, asked to use the proxy at this URL.
    Proxy(Secret<String>),
}

/// How an agent's own guard finds its server.
///
/// In a network namespace that is the gateway's listener, which passes on what a guard needs
/// (`ESTOPPEL_URL`); outside of one the server itself.
#[derive(Debug, Clone, Default)]
pub struct GuardAccess {
    /// The server's addresses, as `ESTOPPEL_URL` has them; empty: the agent is told of no server.
    pub servers: String,
    /// The file of those who may vouch for it (`ESTOPPEL_CA`), where the guard speaks to it itself.
    pub ca: Option<PathBuf>,
    /// The guard's own token (`ESTOPPEL_TOKEN`), which must never be the supervisor's: the agent
    /// can read it.
    pub token: Option<Secret<String>>,
}

impl GuardAccess {
    /// The agent's variables.
    fn variables(&self, own_network: bool) -> Vec<(String, String)> {
        if self.servers.is_empty() {
            return Vec::new();
        }
        let url = if own_network { listener_url() } else { self.servers.clone() };
        let ca = self.ca.as_ref().filter(|_| !own_network).map(|ca| ca.display().to_string());
        let token = self.token.as_ref().map(|token| token.expose().clone());
        [("ESTOPPEL_URL", Some(url)), ("ESTOPPEL_CA", ca), ("ESTOPPEL_TOKEN", token)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// The gateway's listener, as the agent in its network namespace writes it.
fn listener_url() -> String {
    format!("http://127.0.0.1:{PROXY_PORT}")
}

impl RunConfig {
    /// The strongest confinement for a command.
    pub fn new(command: Vec<OsString>, subject: Subject) -> Self {
        Self {
            command,
            subject,
            identity: Identity::default(),
            cgroup: CgroupMode::Auto,
            network: NetworkMode::Namespace,
            hide: DEFAULT_HIDDEN.iter().map(PathBuf::from).collect(),
            guard: GuardAccess::default(),
            env: Vec::new(),
            shim: vec!["/proc/self/exe".into(), shim::SUBCOMMAND.into()],
        }
    }
}

/// Why an agent was not started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is nothing to run.
    #[error("no command is given: estoppel run --session ID -- CMD...")]
    NoCommand,
    /// The shim could not be started.
    #[error("cannot start `{program}`: {source}")]
    Shim {
        /// The shim's program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A step of the preparation failed.
    #[error("{what}: {source}")]
    Step {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The shim gave up.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// The exit code that a shell gives.
        code: u8,
    },
    /// The confinement that was asked for is not to be had.
    #[error("{problem}: run as root, or allow a proxy without a namespace")]
    NoNamespace {
        /// What the kernel said.
        problem: String,
    },
    /// The agent must not act now.
    #[error("not started: {0}")]
    Refused(#[from] Refusal),
}

impl RunError {
    /// The exit code for whoever started the command.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { code, .. } => *code,
            _ => 126,
        }
    }

    fn step(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step { what, source }
    }
}

/// What this machine permits, seen from a confinement that is made and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// A cgroup of its own could be made.
    pub cgroup: bool,
    /// A network namespace of its own could be made.
    pub network_namespace: bool,
    /// What could not be had, in words.
    pub gaps: Vec<String>,
}

/// A shim that waits in its confinement to become the agent. Dropping it ends the shim.
#[derive(Debug)]
pub struct Prepared {
    subject: Subject,
    // Closed first: a shim without a supervisor ends.
    socket: Option<OwnedFd>,
    main: Option<Process>,
    cutoff: Option<Cutoff>,
    processes: Arc<Processes>,
    exit: Option<oneshot::Receiver<AgentExit>>,
    listener: Option<TcpListener>,
    proxy: String,
    guard: GuardAccess,
    arranged: Option<Arranged>,
    foreground: bool,
}

impl Prepared {
    /// Makes the confinement up to the last step. Blocks for milliseconds, at most 10 seconds.
    ///
    /// # Errors
    /// When the shim cannot be started, or no namespace can be made and none other is allowed.
    pub fn new(config: RunConfig) -> Result<Self, RunError> {
        if config.command.is_empty() {
            return Err(RunError::NoCommand);
        }
        let mut gaps = Vec::new();
        let cgroup = cgroup(&config, &mut gaps);
        let cutoff = cgroup.as_ref().and_then(|cgroup| cutoff(cgroup, &mut gaps));
        let identity = match config.identity {
            Identity::Other { uid, gid } if rustix::process::geteuid().is_root() => {
                Some((uid, gid))
            }
            Identity::Other { .. } => {
                gaps.push("only root can run it as another user".to_owned());
                None
            }
            Identity::Own => None,
        };
        let (listen_port, fallback) = match config.network {
            NetworkMode::Namespace => (Some(PROXY_PORT), None),
            NetworkMode::NamespaceOr(url) => (Some(PROXY_PORT), Some(url)),
            NetworkMode::Proxy(url) => (None, Some(url)),
        };
        let foreground = holds_terminal();
        let setup = Setup { listen_port, hide: config.hide, identity, foreground };

        let (socket, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| RunError::step("socket to the shim")(errno.into()))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(SHIM_ANSWER_MAX))
            .map_err(|errno| RunError::step("socket to the shim")(errno.into()))?;
        if cgroup.is_none() {
            Descendants::adopt().map_err(RunError::step("subreaper"))?;
        }
        let (main, exit) = spawn(command(&config.shim, &config.command, config.env, other)?)
            .map_err(|source| {
                let program = config.shim.first().map(|name| name.display().to_string());
                RunError::Shim { program: program.unwrap_or_default(), source }
            })?;
        let in_cgroup = cgroup.is_some();
        let processes = match cgroup {
            Some(cgroup) => Processes::Cgroup(cgroup),
            None => Processes::Descendants(Descendants::of(main.pid())),
        };
        // From here on an error drops this value, which ends the shim.
        let mut prepared = Self {
            subject: config.subject,
            socket: Some(socket),
            cutoff,
            processes: Arc::new(processes),
            exit: Some(exit),
            listener: None,
            proxy: listener_url(),
            guard: config.guard,
            arranged: None,
            foreground,
            main: None,
        };
        let main = prepared.main.insert(main);
        if let Processes::Cgroup(cgroup) = &*prepared.processes {
            cgroup.add(main.pid()).map_err(RunError::step("joining the cgroup"))?;
        }
        let mut arranged = prepared.set_up(&setup)?;
        gaps.append(&mut arranged.gaps);
        if prepared.listener.is_none() {
            let problem = || RunError::NoNamespace { problem: gaps.join("; ") };
            prepared.proxy = fallback.ok_or_else(problem)?.expose().clone();
        }
        let cutoff = prepared.cutoff.is_some();
        prepared.arranged = Some(Arranged { cgroup: in_cgroup, cutoff, gaps, ..arranged });
        Ok(prepared)
    }

    /// Sends the setup with the real standard input, and takes the answer with the listener.
    fn set_up(&mut self, setup: &Setup) -> Result<Arranged, RunError> {
        let Some(socket) = &self.socket else { return Err(closed()) };
        send(socket, setup, Some(io::stdin().as_fd())).map_err(RunError::step("the shim"))?;
        match receive::<FromShim>(socket).map_err(RunError::step("the shim's answer"))? {
            Some((FromShim::Ready { hidden, scoped, problems: gaps }, listener)) => {
                self.listener = listener.map(TcpListener::from);
                let network = self.listener.is_some();
                Ok(Arranged { cgroup: false, cutoff: false, network, hidden, scoped, gaps })
            }
            Some((FromShim::Failed { message, code }, _)) => {
                Err(RunError::Failed { message, code })
            }
            None => Err(closed()),
        }
    }

    /// The listener in the agent's network namespace, for the gateway; `None` the second time, and
    /// when the agent has no namespace of its own.
    pub fn take_listener(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }

    /// What confinement the agent will have, as far as it is made by now; for `doctor`, which starts
    /// nothing. What really holds is in [`Agent::containment`].
    pub fn outlook(&self) -> Outlook {
        let arranged = self.arranged.as_ref();
        Outlook {
            cgroup: arranged.is_some_and(|arranged| arranged.cgroup),
            network_namespace: arranged.is_some_and(|arranged| arranged.network),
            gaps: arranged.map(|arranged| arranged.gaps.clone()).unwrap_or_default(),
        }
    }

    /// Lets the shim become the agent, if the agent may act now. Blocks for milliseconds, at most 10
    /// seconds. Within a runtime the signals of [`supervise`](crate::supervise) are taken from here
    /// on.
    ///
    /// # Errors
    /// When an order or a lost lease is against it (not in [`Mode::Observe`]), or the command cannot
    /// be started; then nothing is left of it.
    pub fn start(mut self, orders: &impl Orders, mode: Mode) -> Result<Agent, RunError> {
        if mode == Mode::Enforce {
            orders.check(&self.subject)?;
        }
        let (Some(socket), Some(exit), Some(main), Some(arranged)) =
            (&self.socket, self.exit.take(), self.main.take(), self.arranged.take())
        else {
            return Err(closed());
        };
        // Within a runtime from now on: a signal that comes before `supervise` must not end us.
        let signals = tokio::runtime::Handle::try_current()
            .is_ok()
            .then(Signals::new)
            .transpose()
            .map_err(RunError::step("signals"))?;
        let guard = self.guard.variables(arranged.network);
        send(socket, &Go { proxy: std::mem::take(&mut self.proxy), guard }, None)
            .map_err(RunError::step("the shim"))?;
        // The shim's end closes by `exec`.
        if let Some((FromShim::Failed { message, code }, _)) =
            receive::<FromShim>(socket).map_err(RunError::step("the command"))?
        {
            return Err(RunError::Failed { message, code });
        }
        let containment = match Containment::observe(&main, arranged) {
            // It may have done its work already. Links of `/proc` go before the process does.
            Err(error) if crate::process::is_gone(&error) => Ok(Containment::ended()),
            observed => observed,
        };
        let containment = containment.map_err(RunError::step("looking at the agent"))?;
        self.socket = None;
        Ok(Agent {
            main,
            cutoff: self.cutoff.take(),
            processes: Arc::clone(&self.processes),
            containment,
            exit,
            signals,
            foreground: self.foreground,
        })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // `start` has closed it and handed the agent over.
        if self.socket.take().is_some()
            && let Err(error) = self.processes.kill(KILL_WITHIN)
        {
            tracing::error!(%error, "the shim could not be ended");
        }
    }
}

/// The agent's cgroup, or why there is none.
fn cgroup(config: &RunConfig, gaps: &mut Vec<String>) -> Option<Cgroup> {
    let session = config.subject.session.as_ref();
    let label = session.map_or_else(|| "agent".to_owned(), ToString::to_string);
    let under = match &config.cgroup {
        CgroupMode::Auto => None,
        CgroupMode::Under(folder) => Some(folder.as_path()),
        CgroupMode::None => return None,
    };
    Cgroup::create(under, &label).map_err(|error| gaps.push(error.to_string())).ok()
}

/// What cuts the agent's cgroup off the network, or why nothing can.
fn cutoff(cgroup: &Cgroup, gaps: &mut Vec<String>) -> Option<Cutoff> {
    let cutoff = Cutoff::attach(cgroup.path())
        .inspect_err(|error| gaps.push(format!("its network is not cut at a halt: {error}")))
        .ok()?;
    gaps.extend(cutoff.gap());
    Some(cutoff)
}

/// The shim's command line and environment.
fn command(
    shim: &[OsString],
    agent: &[OsString],
    env: Vec<(OsString, OsString)>,
    socket: OwnedFd,
) -> Result<Command, RunError> {
    let [program, arguments @ ..] = shim else { return Err(RunError::NoCommand) };
    let mut command = Command::new(program);
    command.args(arguments).args(agent).stdin(Stdio::from(socket));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ESTOPPEL_") {
            command.env_remove(name);
        }
    }
    command.envs(env);
    Ok(command)
}

fn closed() -> RunError {
    RunError::Failed { message: "the shim ended before it was ready".to_owned(), code: 126 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The supervisor's own token and the server's address stay outside of a network namespace.
    #[test]
    fn a_guard_is_told_what_it_can_use() {
        let access = GuardAccess {
            servers: "https://one.example,https://two.example".to_owned(),
            ca: Some("/etc/ca.pem".into()),
            token: Some(Secret::new("its own".to_owned())),
        };
        let check = |access: &GuardAccess, own_network: bool, expected: &[(&str, &str)]| {
            let found = access.variables(own_network);
            let found: Vec<_> = found.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(found, expected);
        };
        let listener = ("ESTOPPEL_URL", "http://127.0.0.1:3128");
        let token = ("ESTOPPEL_TOKEN", "its own");
        check(&access, true, &[listener, token]);
        let servers = ("ESTOPPEL_URL", access.servers.as_str());
        check(&access, false, &[servers, ("ESTOPPEL_CA", "/etc/ca.pem"), token]);
        check(&GuardAccess { token: None, ..access.clone() }, true, &[listener]);
        check(&GuardAccess::default(), true, &[]);
        assert!(!format!("{access:?}").contains("its own"));
    }
}
