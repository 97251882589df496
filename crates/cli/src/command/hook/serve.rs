//! The resident process: one for each user and state folder. It holds a guard with its lease, answers
//! the hooks of that user over a socket, and ends when nobody has asked for a while.
//!
//! It is started by the first hook that finds none. Two that start at once are told apart by a lock;
//! the socket belongs to whoever holds it.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use estoppel_guard::{Guard, OnLost};
use estoppel_hook::{
    client,
    config::{self, Config},
    wire::{self, Answer, Request, WireError},
};
use estoppel_model::{EntityId, Subject};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::desk::Desk;
use crate::{
    command::enforcer,
    error::{CommandError, Exit, Result},
};

/// Most hooks that are answered at a time; the others wait in the socket's queue.
const AT_ONCE: usize = 64;
/// How long a hook may take to say what it asks, and to take its answer.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// Largest log that a new process adds to.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// `estoppel hook serve`.
pub(super) fn serve(state: &Path) -> Result {
    // What ends the agent's terminal must not end this; it fails for who leads a session already.
    let _ = rustix::process::setsid();
    let failed = |error| CommandError::new(Exit::Failed, error);
    let config = Config::read(state).map_err(|error| CommandError::new(Exit::Usage, error))?;
    let lock = File::options().create(true).append(true).open(wire::lock(state)).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(ExitCode::SUCCESS),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    trim_log(state);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(resident(state, &config));
    // Before the lock is let go: the next one makes its own.
    let _ = std::fs::remove_file(wire::socket(state));
    // A tool of which nothing was heard any more keeps its thread.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    code
}

fn trim_log(state: &Path) {
    let log = File::options().write(true).open(client::log(state));
    if let Ok(log) = log
        && log.metadata().is_ok_and(|it| it.len() > LOG_BYTES_MAX)
    {
        let _ = log.set_len(0);
    }
}

async fn resident(state: &Path, config: &Config) -> Result {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let guard = guard(state, config)?;
    let base = Subject {
        agent: Some(id(&config.agent)?),
        user: Some(id(&config.user)?),
        ..Subject::default()
    };
    let waits = config.on_lost == config::OnLost::Refuse;
    let desk = Arc::new(Desk::new(guard, base, waits, tasks.clone()));
    let listener = listen(state)?;
    let mut signals = enforcer::EndSignals::new()?;
    let idle_max = Duration::from_secs(config.idle_seconds);
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = Instant::now();
    loop {
        let permit = Arc::clone(&at_once).acquire_owned().await.map_err(anyhow::Error::from);
        let permit = permit.map_err(|error| CommandError::new(Exit::Failed, error))?;
        tokio::select! {
            accepted = listener.accept() => {
                asked = Instant::now();
                let (stream, _) = accepted?;
                let (desk, stop) = (Arc::clone(&desk), stop.clone());
                tasks.spawn(async move {
                    if let Err(error) = answer(stream, &desk, &stop).await {
                        tracing::warn!(%error, "a hook was not answered");
                    }
                    drop(permit);
                });
            }
            () = tokio::time::sleep_until(asked + idle_max) => {
                if desk.under_way() == 0 {
                    break;
                }
                asked = Instant::now();
            }
            () = signals.next() => break,
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    let _ = std::fs::remove_file(wire::socket(state));
    desk.close().await;
    tasks.close();
    let _ = tokio::time::timeout(SAID_WITHIN, tasks.wait()).await;
    Ok(ExitCode::SUCCESS)
}

fn id(text: &str) -> Result<EntityId> {
    EntityId::new(text).map_err(|error| CommandError::new(Exit::Usage, error))
}

fn guard(state: &Path, config: &Config) -> Result<Guard> {
    let usage = |error| CommandError::new(Exit::Usage, error);
    let token = super::super::token_of(&config.token_file)?;
    let mut builder = Guard::builder()
        .token(token.expose().clone())
        .agent(&config.agent)
        .map_err(usage)?
        .name(format!("hooks of {}@{}", config.user, enforcer::host_name()))
        .state_dir(state.join("guard"))
        .on_lost(match config.on_lost {
            config::OnLost::Refuse => OnLost::Refuse,
            config::OnLost::Allow => OnLost::Allow,
        });
    for server in config.servers.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        builder = builder.server(server).map_err(usage)?;
    }
    if let Some(file) = &config.ca_file {
        builder = builder.ca_file(file).map_err(usage)?;
    }
    builder.connect().map_err(usage)
}

/// Makes the socket, the user's alone, in the place of one that a dead process has left.
fn listen(state: &Path) -> Result<UnixListener> {
    let path = wire::socket(state);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers one hook.
async fn answer(
    mut stream: UnixStream,
    desk: &Desk,
    stop: &CancellationToken,
) -> std::result::Result<(), WireError> {
    if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(WireError::Io(std::io::ErrorKind::PermissionDenied.into()));
    }
    let answer = match timed(read(&mut stream)).await {
        Ok(Request::Call { call, wait_ms }) => desk.call(*call, millis(wait_ms)).await,
        Ok(Request::Standing { wait_ms }) => desk.standing(millis(wait_ms)).await,
        Ok(Request::Canary { session }) => {
            desk.canary(session);
            Answer::Done
        }
        Ok(Request::End) => {
            stop.cancel();
            Answer::Done
        }
        Err(error @ (WireError::Malformed(_) | WireError::TooLarge { .. })) => {
            Answer::Misunderstood { why: error.to_string() }
        }
        Err(error) => return Err(error),
    };
    let frame = wire::frame(&answer)?;
    timed(async { Ok(stream.write_all(&frame).await?) }).await
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

async fn timed<T>(
    work: impl Future<Output = std::result::Result<T, WireError>>,
) -> std::result::Result<T, WireError> {
    match tokio::time::timeout(SAID_WITHIN, work).await {
        Ok(result) => result,
        Err(_) => Err(WireError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

async fn read(stream: &mut UnixStream) -> std::result::Result<Request, WireError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; wire::length(head)?];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
