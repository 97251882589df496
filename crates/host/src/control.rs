//! The door for `estoppel halt --local`: stops the agents of this host when every server is dead.
//!
//! Each supervisor listens on a unix socket of its own in a folder that only root (or the
//! supervisor's own user) can enter. One JSON line goes in, `{"halt": {"scope", "reason"}}`, one comes
//! back. It can only halt: nothing here releases, thaws or kills. The client names the order, so
//! that all supervisors of a host hand the server one order, not one each.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use estoppel_link::LocalHalt;
use estoppel_model::{
    Actor, Clock, Order, OrderBody, OrderId, REASON_BYTES_MAX, ScopeSet, Subject, Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where the sockets are unless another folder is configured.
pub const DEFAULT_RUN_DIR: &str = "/run/estoppel";

const SUFFIX: &str = ".sock";
/// Longest line in either direction.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long a client may take for its line.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long freezing may take until the answer comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why the door cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The folder or socket cannot be used.
    #[error("run folder `{path}`: {source}")]
    Folder {
        /// The folder or socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could put sockets of their own into it.
    #[error(
        "run folder `{path}` belongs to uid {uid} with mode {mode:o}: it must be ours and closed to others (chmod 700)"
    )]
    Open {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// A reason has a bound.
    #[error("the reason is {bytes} bytes long: at most {REASON_BYTES_MAX}")]
    ReasonTooLong {
        /// How long it is.
        bytes: usize,
    },
}

impl ControlError {
    fn folder(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Folder { path: path.to_owned(), source }
    }
}

/// What comes in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Halt(Halt),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Halt {
    scope: ScopeSet,
    reason: String,
    #[serde(default)]
    id: Option<OrderId>,
    #[serde(default)]
    issued_at: Option<Timestamp>,
}

/// What goes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Halted(Halted),
    Refused(String),
}

/// What a halt came to at one supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halted {
    /// The order.
    pub order: OrderId,
    /// The subject that the supervisor runs.
    pub subject: Subject,
    /// Whether the order reaches that subject. If not, nothing was done.
    pub reaches: bool,
    /// Whether the order is on this host's disk.
    pub durable: bool,
    /// How many processes are frozen.
    pub processes_frozen: u64,
    /// What could not be stopped, or that the supervisor only observes.
    pub not_stopped: Vec<String>,
    /// The containment that holds.
    pub containment: String,
}

/// A request on its way to [`crate::supervise`].
#[derive(Debug)]
pub struct LocalRequest {
    pub(crate) order: Order,
    pub(crate) answer: oneshot::Sender<Result<Halted, String>>,
}

impl LocalRequest {
    /// The answer of a supervisor whose agent the order does not reach.
    pub(crate) fn not_reached(order: OrderId, subject: Subject) -> Halted {
        Halted {
            order,
            subject,
            reaches: false,
            durable: false,
            processes_frozen: 0,
            not_stopped: Vec::new(),
            containment: String::new(),
        }
    }

    /// The answer's first part; what freezing came to is filled in.
    pub(crate) fn reached(halt: LocalHalt, subject: Subject, containment: String) -> Halted {
        Halted {
            order: halt.order,
            subject,
            reaches: true,
            durable: halt.durable,
            processes_frozen: 0,
            not_stopped: Vec::new(),
            containment,
        }
    }
}

/// A supervisor's socket; removed when dropped.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: UnixListener,
}

impl Door {
    /// Opens a socket of our own in the folder, which is made if it is not there. To be called
    /// within a runtime.
    ///
    /// # Errors
    /// When the folder cannot be used, or others could write into it.
    pub fn open(run_dir: &Path) -> Result<Self, ControlError> {
        let error = ControlError::folder;
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(run_dir)
            .map_err(error(run_dir))?;
        let folder = fs::symlink_metadata(run_dir).map_err(error(run_dir))?;
        let mode = folder.mode() & 0o7777;
        if folder.uid() != rustix::process::geteuid().as_raw() || mode & 0o077 != 0 {
            return Err(ControlError::Open { path: run_dir.to_owned(), uid: folder.uid(), mode });
        }
        let path = run_dir.join(format!("host-{}{SUFFIX}", std::process::id()));
        match fs::remove_file(&path) {
            // A leftover of a process that had our pid.
            Ok(()) => {}
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(&path)(source)),
        }
        let listener = UnixListener::bind(&path).map_err(error(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(error(&path))?;
        Ok(Self { path, listener })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Best effort: a socket without a listener is skipped by whoever looks for one.
        let _ = fs::remove_file(&self.path);
    }
}

/// Answers at the door until `stop`.
pub async fn serve(
    door: Door,
    requests: mpsc::Sender<LocalRequest>,
    clock: std::sync::Arc<dyn Clock>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = door.listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (requests, clock) = (requests.clone(), clock.clone());
                tasks.spawn(async move {
                    let exchange = converse(stream, requests, &*clock);
                    match timeout(REQUEST_WITHIN + ANSWER_WITHIN, exchange).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "a local halt was cut off"),
                        Err(_) => tracing::warn!("a local halt took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "the local door is closed");
                return;
            }
        }
    }
}

async fn converse(
    stream: UnixStream,
    requests: mpsc::Sender<LocalRequest>,
    clock: &dyn Clock,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (from, mut to) = stream.into_split();
    let line = timeout(REQUEST_WITHIN, read_line(from)).await??;
    let answer = match parse(&line, uid, clock) {
        Ok(order) => ask(order, &requests).await.map_or_else(Answer::Refused, Answer::Halted),
        Err(refused) => Answer::Refused(refused),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.shutdown().await
}

/// The order that a line asks for. Who gave it is what the kernel says of the peer.
fn parse(line: &str, uid: u32, clock: &dyn Clock) -> Result<Order, String> {
    let own = rustix::process::geteuid().as_raw();
    if uid != 0 && uid != own {
        return Err(format!("uid {uid} must not: use root or uid {own}"));
    }
    let Request::Halt(halt) = serde_json::from_str(line).map_err(|error| {
        format!("{error}: send {{\"halt\": {{\"scope\": \"global\", \"reason\": \"...\"}}}}")
    })?;
    let bytes = halt.reason.len();
    if bytes > REASON_BYTES_MAX {
        return Err(ControlError::ReasonTooLong { bytes }.to_string());
    }
    let issued_by = Actor::new(&format!("local:uid-{uid}@{}", host_name()))
        .map_err(|error| error.to_string())?;
    Ok(Order {
        id: halt.id.unwrap_or_default(),
        scope: halt.scope,
        reason: halt.reason,
        issued_by,
        issued_at: halt.issued_at.unwrap_or_else(|| clock.now()),
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    })
}

/// The same for all supervisors of a host, so that what they hand to the server is one order.
fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
}

async fn ask(order: Order, requests: &mpsc::Sender<LocalRequest>) -> Result<Halted, String> {
    let (answer, answered) = oneshot::channel();
    let ended = |_| "the supervisor is ending".to_owned();
    requests.send(LocalRequest { order, answer }).await.map_err(|_| ended(()))?;
    answered.await.map_err(|_| ended(()))?
}

async fn read_line(from: impl tokio::io::AsyncRead + Unpin) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(from.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    if line.ends_with('\n') {
        Ok(line)
    } else {
        let text = format!("a line has at most {LINE_BYTES_MAX} bytes and ends with a line feed");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// What became of a local halt at one supervisor.
#[derive(Debug)]
pub struct LocalReport {
    /// The supervisor's socket.
    pub socket: PathBuf,
    /// What it did, or why it did not.
    pub result: Result<Halted, String>,
}

/// Halts the agents of all supervisors of this host that the scope reaches.
///
/// Sockets whose supervisor is gone are skipped. An empty answer means that nothing runs here.
///
/// # Errors
/// When the folder cannot be read; each supervisor's own failure is in its report.
pub async fn halt_local(
    run_dir: &Path,
    scope: ScopeSet,
    reason: &str,
    clock: &dyn Clock,
) -> Result<(OrderId, Vec<LocalReport>), ControlError> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(ControlError::ReasonTooLong { bytes: reason.len() });
    }
    let id = OrderId::new();
    let request = Request::Halt(Halt {
        scope,
        reason: reason.to_owned(),
        id: Some(id),
        issued_at: Some(clock.now()),
    });
    let mut line = serde_json::to_vec(&request)
        .map_err(|error| ControlError::folder(run_dir)(error.into()))?;
    line.push(b'\n');
    let line: std::sync::Arc<[u8]> = line.into();
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((id, Vec::new())),
        entries => entries.map_err(ControlError::folder(run_dir))?,
    };
    // All at once: one that hangs must not delay the others.
    let mut halts = tokio::task::JoinSet::new();
    for socket in entries.flatten().map(|entry| entry.path()) {
        if socket.to_string_lossy().ends_with(SUFFIX) {
            let line = line.clone();
            halts.spawn(async move {
                let result = halt_one(&socket, &line).await.transpose()?;
                Some(LocalReport { socket, result })
            });
        }
    }
    let mut reports: Vec<LocalReport> = Vec::new();
    while let Some(report) = halts.join_next().await {
        reports.extend(report.ok().flatten());
    }
    reports.sort_by(|one, other| one.socket.cmp(&other.socket));
    Ok((id, reports))
}

/// `None` when nobody listens any more.
async fn halt_one(socket: &Path, line: &[u8]) -> Result<Option<Halted>, String> {
    let late = |_| "no answer in time: look at its processes".to_owned();
    let stream = match timeout(CONNECT_WITHIN, UnixStream::connect(socket)).await.map_err(late)? {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let (from, mut to) = stream.into_split();
    let exchange = async {
        to.write_all(line).await?;
        read_line(from).await
    };
    let answer = timeout(REQUEST_WITHIN + ANSWER_WITHIN, exchange)
        .await
        .map_err(late)?
        .map_err(|error| error.to_string())?;
    match serde_json::from_str(&answer).map_err(|error| error.to_string())? {
        Answer::Halted(halted) => Ok(Some(halted)),
        Answer::Refused(why) => Err(why),
    }
}

#[cfg(test)]
mod tests;
