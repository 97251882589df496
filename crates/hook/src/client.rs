//! The hook's process: reads what the agent tells, asks the resident process, answers, and ends.
//!
//! It starts the resident process when none is there. All of it happens within the configured
//! deadline on the boot clock; what is not known by then is refused, or let go where the owner chose
//! so. An answer that comes too late does not count: whoever was suspended meanwhile must not act
//! upon what held before.

use std::{
    ffi::OsString,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use estoppel_model::{Boottime, Clock, SystemClock};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::{
    answer::{Refusal, Reply},
    config::{Config, ConfigError, OnLost, default_state},
    input::{self, Call, INPUT_BYTES_MAX, InputError},
    wire::{self, Answer, Request, WireError},
};

/// Pause before the resident process is looked for again.
const LOOK: Duration = Duration::from_millis(2);
/// Pause before another one is started where one ended well.
const AGAIN: Duration = Duration::from_millis(25);
/// What of the deadline is kept for the way back.
const WAY_BACK: Duration = Duration::from_millis(200);

/// Why no answer could be had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The hook is not set up.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no folder to look into.
    #[error("no state folder: set HOME, or give --state DIR")]
    NoState,
    /// An argument is none.
    #[error("`{argument}` is no argument of a hook: expected --state DIR")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// The agent's input did not end in time, or could not be read.
    #[error("the agent's input could not be read")]
    Input(#[source] std::io::Error),
    /// Nothing can be judged by the input.
    #[error(transparent)]
    Unclear(#[from] InputError),
    /// The socket's path is too long.
    #[error("`{path}` cannot be a socket's address")]
    Address {
        /// The path.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Another user's process listens there.
    #[error("`{path}` is served by another user ({uid})")]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The resident process cannot be started.
    #[error("`{binary}` cannot be started")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The resident process ended at once.
    #[error("the resident process ended at its start ({status}): see `{log}`")]
    Ended {
        /// How.
        status: std::process::ExitStatus,
        /// What it said.
        log: PathBuf,
    },
    /// The connection to it failed.
    #[error("the resident process gave no answer")]
    Wire(#[from] WireError),
    /// The connection could not be made.
    #[error("the resident process cannot be reached")]
    Connect(#[source] Errno),
    /// It did not answer in time.
    #[error("no answer within {} ms", .deadline.as_millis())]
    Late {
        /// The deadline.
        deadline: Duration,
    },
    /// It answered something else.
    #[error("the resident process did not understand: {why}")]
    Misunderstood {
        /// What it said.
        why: String,
    },
}

/// Runs a hook: reads standard input, asks, and answers on standard output and error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let reply = hook(args);
    let written = write_all(&reply);
    // An agent that closed its end has not read a refusal: the exit code still says so.
    ExitCode::from(if written { reply.code } else { crate::answer::REFUSED })
}

fn write_all(reply: &Reply) -> bool {
    use std::io::Write as _;
    let line = |text: &str| if text.is_empty() { String::new() } else { format!("{text}\n") };
    let out = std::io::stdout().lock().write_all(line(&reply.stdout).as_bytes());
    let err = std::io::stderr().lock().write_all(line(&reply.stderr).as_bytes());
    out.and(err).is_ok()
}

fn hook(args: impl IntoIterator<Item = OsString>) -> Reply {
    let begun = SystemClock.boottime();
    let state = state_of(args);
    let config = state.and_then(|state| Ok((Config::read(&state)?, state)));
    // Also without a configuration the input is read: how to refuse depends on it.
    let deadline = config
        .as_ref()
        .map_or(Duration::from_millis(crate::config::deadline_ms()), |(config, _)| {
            config.deadline()
        });
    let until = Until { begun, deadline };
    let input = read_input(&until);
    let event = input.as_deref().ok().and_then(input::event_of);
    let judged = config.and_then(|(config, state)| {
        let call = input::parse(&input?)?;
        Ok((judge(&config, &state, call, &until), config.on_lost))
    });
    let refusal = match judged {
        Ok((Ok(None), _)) => return Reply::go(),
        Ok((Ok(Some(refusal)), _)) => refusal,
        Ok((Err(error), OnLost::Allow)) => {
            let stderr = format!("Estoppel lets it go: {}", told(&error));
            return Reply { stderr, ..Reply::go() };
        }
        // What is not set up or not understood is refused whatever the owner chose about servers.
        Ok((Err(error), OnLost::Refuse)) | Err(error) => Refusal::for_want(&told(&error)),
    };
    Reply::refuse(input::form(event.as_deref()), event.as_deref().unwrap_or_default(), &refusal)
}

/// An error with its causes, on one line.
fn told(error: &AskError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    estoppel_model::Untrusted::new(text).inline(500)
}

fn state_of(args: impl IntoIterator<Item = OsString>) -> Result<PathBuf, AskError> {
    let mut args = args.into_iter();
    match args.next() {
        None => {
            default_state(|name| std::env::var_os(name).map(PathBuf::from)).ok_or(AskError::NoState)
        }
        Some(flag) if flag == "--state" => args.next().map(PathBuf::from).ok_or(AskError::NoState),
        Some(other) => Err(AskError::Argument { argument: other.to_string_lossy().into_owned() }),
    }
}

/// A deadline on the boot clock.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    begun: Boottime,
    deadline: Duration,
}

impl Until {
    /// A deadline from now on.
    pub fn from_now(deadline: Duration) -> Self {
        Self { begun: SystemClock.boottime(), deadline }
    }

    /// What is left.
    ///
    /// # Errors
    /// When nothing is.
    fn left(&self) -> Result<Duration, AskError> {
        let gone = SystemClock.boottime().since(self.begun);
        let left = self.deadline.checked_sub(gone).filter(|left| !left.is_zero());
        left.ok_or(AskError::Late { deadline: self.deadline })
    }
}

/// Waits for a descriptor, or for nothing at all: `rustix::event::poll` is the timed wait.
fn wait(fds: &mut [PollFd<'_>], at_most: Duration) -> Result<usize, std::io::Error> {
    let timeout = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
    match poll(fds, Some(&timeout)) {
        Err(Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}

fn pause(at_most: Duration, until: &Until) -> Result<(), AskError> {
    // A wait for nothing fails in no other way than by being too short.
    let _ = wait(&mut [], at_most.min(until.left()?));
    Ok(())
}

/// Reads standard input to its end, with a bound on size and time.
fn read_input(until: &Until) -> Result<Vec<u8>, AskError> {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let left = until.left()?;
        if wait(&mut [PollFd::new(&stdin, PollFlags::IN)], left).map_err(AskError::Input)? == 0 {
            continue;
        }
        // Past the standard library's buffer: it would read on where this may not wait.
        match rustix::io::read(&stdin, &mut chunk) {
            Ok(0) => return Ok(input),
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(AskError::Input(error.into())),
        }
        if input.len() > INPUT_BYTES_MAX {
            return Err(InputError::TooLarge.into());
        }
    }
}

/// Whether it must not be.
fn judge(
    config: &Config,
    state: &Path,
    call: Call,
    until: &Until,
) -> Result<Option<Refusal>, AskError> {
    let wait_ms = until.left()?.saturating_sub(WAY_BACK).as_millis();
    let wait_ms = u64::try_from(wait_ms).unwrap_or(u64::MAX);
    match ask(config, state, &Request::Call { call: Box::new(call), wait_ms }, until)? {
        Answer::Go => Ok(None),
        Answer::Refuse(refusal) => Ok(Some(refusal)),
        Answer::Misunderstood { why } => Err(AskError::Misunderstood { why }),
        Answer::Standing(_) | Answer::Done => {
            Err(AskError::Misunderstood { why: "it answered something else".to_owned() })
        }
    }
}

/// Asks the resident process, which is started where none is there.
///
/// # Errors
/// When there is no answer within the deadline.
pub fn ask(
    config: &Config,
    state: &Path,
    request: &Request,
    until: &Until,
) -> Result<Answer, AskError> {
    let mut started: Option<Child> = None;
    let mut again = true;
    loop {
        if let Some(mut stream) = connect(state, until)? {
            match exchange(&mut stream, request, until) {
                // It came to its idle end just now.
                Err(AskError::Wire(WireError::Io(_))) if std::mem::take(&mut again) => continue,
                other => return other,
            }
        }
        match &mut started {
            None => started = Some(start(config, state)?),
            Some(child) => {
                match child.try_wait().ok().flatten() {
                    Some(status) if !status.success() => {
                        return Err(AskError::Ended { status, log: log(state) });
                    }
                    // It found another one there, which is about to listen, or about to end.
                    Some(_) => {
                        pause(AGAIN, until)?;
                        started = None;
                        continue;
                    }
                    None => {}
                }
            }
        }
        pause(LOOK, until)?;
    }
}

/// Asks the resident process if there is one.
///
/// # Errors
/// When there is one, and no answer within the deadline.
pub fn ask_running(
    state: &Path,
    request: &Request,
    until: &Until,
) -> Result<Option<Answer>, AskError> {
    match connect(state, until)? {
        Some(mut stream) => exchange(&mut stream, request, until).map(Some),
        None => Ok(None),
    }
}

fn exchange(stream: &mut UnixStream, request: &Request, until: &Until) -> Result<Answer, AskError> {
    let over_time = |error: WireError| match error {
        WireError::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            AskError::Late { deadline: until.deadline }
        }
        other => other.into(),
    };
    wire::write(stream, request).map_err(over_time)?;
    let answer = wire::read(&mut Timed { stream, until }).map_err(over_time)?;
    until.left()?;
    Ok(answer)
}

/// Reads with what is left of the deadline, so that bytes that trickle in do not prolong it.
struct Timed<'a> {
    stream: &'a mut UnixStream,
    until: &'a Until,
}

impl std::io::Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.until.left().map_err(|_| std::io::ErrorKind::TimedOut)?;
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Connects; `None` when nobody listens.
fn connect(state: &Path, until: &Until) -> Result<Option<UnixStream>, AskError> {
    let path = wire::socket(state);
    let address = SocketAddrUnix::new(&path)
        .map_err(|source| AskError::Address { path: path.clone(), source })?;
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(AskError::Connect)?;
    // Also bounds a connect to a process that accepts no more.
    let left = until.left()?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(left))
        .map_err(AskError::Connect)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(Errno::AGAIN) => return Err(AskError::Late { deadline: until.deadline }),
        Err(error) => return Err(AskError::Connect(error)),
    }
    let uid = sockopt::socket_peercred(&socket).map_err(AskError::Connect)?.uid.as_raw();
    if uid != rustix::process::geteuid().as_raw() {
        return Err(AskError::Stranger { path, uid });
    }
    Ok(Some(UnixStream::from(socket)))
}

/// What the resident process says goes here.
pub fn log(state: &Path) -> PathBuf {
    state.join("hook.log")
}

/// Starts the resident process, which outlives this one.
fn start(config: &Config, state: &Path) -> Result<Child, AskError> {
    let failed = |source| AskError::Start { binary: config.binary.clone(), source };
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(log(state)).map_err(failed)?;
    Command::new(&config.binary)
        .args(["hook", "serve", "--state"])
        .arg(state)
        // A project's folder may be unmounted under a process that stays.
        .current_dir(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failed)
}
