//! The server's side of the worker: starts it, hands it requests, ends it when it does not answer.
//!
//! A worker is started when there is something to ask it, and again after it ended. At most
//! [`RUNNING_MAX`] queries run at a time and [`WAITING_MAX`] wait; more are refused. The worker ends
//! a query at its time limit by itself; where it cannot, it is killed here, and with it the queries
//! beside, which are told so.

use std::{
    collections::HashMap,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use estoppel_model::Untrusted;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{
    codec::{FramedRead, FramedWrite, LengthDelimitedCodec},
    sync::CancellationToken,
    task::TaskTracker,
};

use crate::{
    Access, AllowedDestination, Isolation, SqlError, SqlLimit, SqlLimits, Table, WorkerCommand,
    layout::{Seal, SharedLayout},
    protocol::{MESSAGE_BYTES_MAX, QUERY_BYTES_MAX, Request, RequestId, Response},
    wal::Segment,
};

/// Queries that run at a time.
const RUNNING_MAX: usize = 4;
/// Queries that wait for one of them to end.
const WAITING_MAX: usize = 32;
/// For a new process to say hello; and for one that is killed to be gone.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// For the worker to read what is not in its memory yet, which after a start can be much.
const LOAD_TIMEOUT: Duration = Duration::from_secs(180);
/// For a segment to be sealed.
const SEAL_TIMEOUT: Duration = Duration::from_secs(900);
/// How long after its time limit the worker may take to say that a query went over it. Killing it
/// costs the queries beside, so a worker that is merely starved by a busy machine is given time.
const GRACE: Duration = Duration::from_secs(5);
/// How often deadlines, callers that went away and unread log are looked at.
const TICK: Duration = Duration::from_millis(100);
/// After a worker did not start or ended by itself, only a query starts the next one for so long: a
/// log that ends each worker must not start one after another.
const WARM_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Longest result, whatever the caller allows: as JSON it must still fit into a message.
const RESULT_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 8;
/// Unread log that the worker is told to read before anyone asks.
const WARM_BYTES: u64 = 1 << 20;
/// Longest line of the worker's standard error that is logged, in characters.
const STDERR_CHARS_MAX: usize = 300;

enum Upkeep {
    Seal { segments: Vec<Segment>, reply: oneshot::Sender<Result<Box<Seal>, SqlError>> },
    Forget { next_seq: u64, reply: oneshot::Sender<Result<(), SqlError>> },
}

struct SqlCommand {
    query: String,
    access: Access,
    reply: oneshot::Sender<Result<Table, SqlError>>,
}

/// What is known about the worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkerStatus {
    pub(crate) pid: Option<u32>,
    pub(crate) starts: u64,
    pub(crate) failed: Option<String>,
    pub(crate) hot_rows: u64,
    pub(crate) isolation: Option<Isolation>,
}

#[derive(Default)]
struct Shared {
    status: WorkerStatus,
    allowlist: Arc<Vec<AllowedDestination>>,
    /// Counts the changes of `allowlist`.
    allowlist_version: u64,
}

/// Hands requests to the worker; clones share it.
#[derive(Clone)]
pub(crate) struct WorkerClient {
    queries: mpsc::Sender<SqlCommand>,
    upkeep: mpsc::Sender<Upkeep>,
    shared: Arc<Mutex<Shared>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerClient {
    pub(crate) async fn sql(&self, query: &str, access: Access) -> Result<Table, SqlError> {
        if query.len() > QUERY_BYTES_MAX {
            let allowed = format!("{QUERY_BYTES_MAX} bytes of text");
            return Err(SqlError::Limit { limit: SqlLimit::Text, allowed });
        }
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let command = SqlCommand { query: query.to_owned(), access, reply };
        self.queries.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SqlError::Busy,
            mpsc::error::TrySendError::Closed(_) => SqlError::Closed,
        })?;
        let mut table = answer.await.map_err(|_| SqlError::Closed)??;
        table.elapsed = started.elapsed();
        Ok(table)
    }

    pub(crate) async fn seal(&self, segments: Vec<Segment>) -> Result<Box<Seal>, SqlError> {
        let (reply, answer) = oneshot::channel();
        let command = Upkeep::Seal { segments, reply };
        self.upkeep.send(command).await.map_err(|_| SqlError::Closed)?;
        answer.await.map_err(|_| SqlError::Closed)?
    }

    pub(crate) async fn forget(&self, next_seq: u64) -> Result<(), SqlError> {
        let (reply, answer) = oneshot::channel();
        let command = Upkeep::Forget { next_seq, reply };
        self.upkeep.send(command).await.map_err(|_| SqlError::Closed)?;
        answer.await.map_err(|_| SqlError::Closed)?
    }

    pub(crate) fn set_allowlist(&self, rows: Vec<AllowedDestination>) {
        let mut shared = lock(&self.shared);
        shared.allowlist = Arc::new(rows);
        shared.allowlist_version += 1;
    }

    pub(crate) fn status(&self) -> WorkerStatus {
        lock(&self.shared).status.clone()
    }
}

enum Reply {
    Sql { limits: SqlLimits, reply: oneshot::Sender<Result<Table, SqlError>> },
    Seal(oneshot::Sender<Result<Box<Seal>, SqlError>>),
    Forget(oneshot::Sender<Result<(), SqlError>>),
}

impl Reply {
    /// Whether nobody waits any more.
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Sql { reply, .. } if reply.is_closed())
    }

    fn fail(self, error: SqlError) {
        let _gone = match self {
            Self::Sql { reply, .. } => reply.send(Err(error)).is_err(),
            Self::Seal(reply) => reply.send(Err(error)).is_err(),
            Self::Forget(reply) => reply.send(Err(error)).is_err(),
        };
    }
}

struct Pending {
    reply: Reply,
    deadline: Instant,
    cancelled: bool,
}

struct Running {
    child: Child,
    requests: FramedWrite<ChildStdin, LengthDelimitedCodec>,
    responses: FramedRead<ChildStdout, LengthDelimitedCodec>,
    allowlist_version: u64,
    /// How long the log was when the worker was last told to read it.
    told_bytes: u64,
}

/// Drives the worker from one task.
pub(crate) struct Supervisor {
    command: WorkerCommand,
    folder: PathBuf,
    memory_bytes: u64,
    layout: SharedLayout,
    tasks: TaskTracker,
    shared: Arc<Mutex<Shared>>,
    running: Option<Running>,
    pending: HashMap<RequestId, Pending>,
    next_id: RequestId,
    warm_from: Instant,
}

impl Supervisor {
    pub(crate) fn start(
        command: &WorkerCommand,
        folder: &Path,
        memory_bytes: u64,
        layout: SharedLayout,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> WorkerClient {
        let (queries, queries_inbox) = mpsc::channel(WAITING_MAX);
        let (upkeep, upkeep_inbox) = mpsc::channel(4);
        let shared = Arc::<Mutex<Shared>>::default();
        let supervisor = Self {
            command: command.clone(),
            folder: folder.to_owned(),
            memory_bytes,
            layout,
            tasks: tasks.clone(),
            shared: Arc::clone(&shared),
            running: None,
            pending: HashMap::new(),
            next_id: 0,
            warm_from: Instant::now(),
        };
        tasks.spawn(supervisor.run(queries_inbox, upkeep_inbox, stop));
        WorkerClient { queries, upkeep, shared }
    }

    async fn run(
        mut self,
        mut queries: mpsc::Receiver<SqlCommand>,
        mut upkeep: mpsc::Receiver<Upkeep>,
        stop: CancellationToken,
    ) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.queries() < RUNNING_MAX;
            tokio::select! {
                () = stop.cancelled() => break,
                command = upkeep.recv() => match command {
                    Some(command) => self.take_upkeep(command).await,
                    None => break,
                },
                Some(command) = queries.recv(), if room => self.take_query(command).await,
                response = next_response(&mut self.running) => match response {
                    Ok(response) => self.take_response(response),
                    Err(reason) => self.worker_ended(Some(reason)).await,
                },
                _ = tick.tick() => self.look_around().await,
            }
        }
        self.end_worker(|_| SqlError::Closed).await;
    }

    fn queries(&self) -> usize {
        self.pending.values().filter(|pending| matches!(pending.reply, Reply::Sql { .. })).count()
    }

    async fn take_query(&mut self, SqlCommand { query, access, reply }: SqlCommand) {
        if reply.is_closed() {
            return;
        }
        let Access { tenant, mut limits } = access;
        limits.bytes = limits.bytes.min(RESULT_BYTES_MAX);
        self.request(LOAD_TIMEOUT, Reply::Sql { limits, reply }, |id, layout| Request::Sql {
            id,
            query,
            tenant,
            limits,
            snapshot: layout.snapshot(),
        })
        .await;
    }

    async fn take_upkeep(&mut self, command: Upkeep) {
        match command {
            Upkeep::Seal { segments, reply } => {
                self.request(SEAL_TIMEOUT, Reply::Seal(reply), |id, _| Request::Seal {
                    id,
                    segments,
                })
                .await;
            }
            Upkeep::Forget { next_seq, reply } => {
                self.request(LOAD_TIMEOUT, Reply::Forget(reply), |id, _| Request::Forget {
                    id,
                    next_seq,
                })
                .await;
            }
        }
    }

    /// Sends a request, to a new worker if none runs, and notes who waits for its answer.
    async fn request(
        &mut self,
        within: Duration,
        reply: Reply,
        request: impl FnOnce(RequestId, &SharedLayout) -> Request,
    ) {
        if let Err(error) = self.ensure_running().await {
            return reply.fail(error);
        }
        self.next_id += 1;
        let id = self.next_id;
        // The snapshot is taken here, where requests are put in order.
        let request = request(id, &self.layout);
        let pending = Pending { reply, deadline: Instant::now() + within, cancelled: false };
        self.pending.insert(id, pending);
        self.send(&request).await;
    }

    async fn send(&mut self, request: &Request) {
        let Some(running) = &mut self.running else { return };
        if let Err(reason) = send_to(running, request, LOAD_TIMEOUT).await {
            self.worker_ended(Some(reason)).await;
        }
    }

    async fn ensure_running(&mut self) -> Result<(), SqlError> {
        if self.running.is_none() {
            match self.spawn().await {
                Ok(running) => self.running = Some(running),
                Err(reason) => {
                    self.warm_from = Instant::now() + WARM_AGAIN_AFTER;
                    tracing::error!(%reason, "the SQL worker does not start");
                    lock(&self.shared).status.failed = Some(format!("did not start: {reason}"));
                    return Err(SqlError::Worker { reason: format!("did not start: {reason}") });
                }
            }
        }
        let (version, rows) = {
            let shared = lock(&self.shared);
            (shared.allowlist_version, Arc::clone(&shared.allowlist))
        };
        if let Some(running) = &mut self.running
            && running.allowlist_version != version
        {
            running.allowlist_version = version;
            self.send(&Request::Allowlist { rows: rows.to_vec() }).await;
        }
        Ok(())
    }

    async fn spawn(&self) -> Result<Running, String> {
        let mut child = Command::new(&self.command.program)
            .args(&self.command.args)
            // Tokens and keys of the server's environment are nothing for people's queries.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", self.command.program.display()))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("it has no pipes".to_owned());
        };
        self.tasks.spawn(log_errors(errors));
        let codec =
            || LengthDelimitedCodec::builder().max_frame_length(MESSAGE_BYTES_MAX).new_codec();
        let mut running = Running {
            child,
            requests: FramedWrite::new(input, codec()),
            responses: FramedRead::new(output, codec()),
            allowlist_version: 0,
            told_bytes: 0,
        };
        let hello = Request::Hello { folder: self.folder.clone(), memory_bytes: self.memory_bytes };
        send_to(&mut running, &hello, START_TIMEOUT).await?;
        let answer = timeout(START_TIMEOUT, read_from(&mut running)).await;
        let Ok(Ok(Response::Hello { isolation })) = answer else {
            return Err("it did not say hello".to_owned());
        };
        for gap in &isolation.gaps {
            tracing::warn!(%gap, "the SQL worker is less isolated than it should be");
        }
        let mut shared = lock(&self.shared);
        shared.status = WorkerStatus {
            pid: running.child.id(),
            starts: shared.status.starts + 1,
            failed: None,
            hot_rows: 0,
            isolation: Some(isolation),
        };
        Ok(running)
    }

    fn take_response(&mut self, response: Response) {
        match response {
            Response::Hello { .. } => {}
            Response::Hot { rows } => lock(&self.shared).status.hot_rows = rows,
            Response::Started { id } => {
                if let Some(pending) = self.pending.get_mut(&id)
                    && let Reply::Sql { limits, .. } = &pending.reply
                {
                    pending.deadline = Instant::now() + limits.time + GRACE;
                }
            }
            Response::Result { id, result } => {
                if let Some(Pending { reply: Reply::Sql { reply, .. }, .. }) =
                    self.pending.remove(&id)
                {
                    let _gone = reply.send(result);
                }
            }
            Response::Sealed { id, result } => {
                if let Some(Pending { reply: Reply::Seal(reply), .. }) = self.pending.remove(&id) {
                    let _gone = reply.send(result);
                }
            }
            Response::Forgot { id } => {
                if let Some(Pending { reply: Reply::Forget(reply), .. }) = self.pending.remove(&id)
                {
                    let _gone = reply.send(Ok(()));
                }
            }
        }
    }

    async fn look_around(&mut self) {
        let now = Instant::now();
        if self.pending.values().any(|pending| pending.deadline <= now) {
            tracing::warn!("the SQL worker is killed: a query did not end at its time limit");
            self.end_worker(|pending| match &pending.reply {
                Reply::Sql { limits, .. } if pending.deadline <= now => SqlError::Limit {
                    limit: SqlLimit::Time,
                    allowed: format!("{} ms", limits.time.as_millis()),
                },
                _ => SqlError::Worker {
                    reason: "was ended because of another query that would not stop".to_owned(),
                },
            })
            .await;
            return;
        }
        let abandoned: Vec<RequestId> = self
            .pending
            .iter_mut()
            .filter(|(_, pending)| pending.reply.is_abandoned() && !pending.cancelled)
            .map(|(id, pending)| {
                // The entry stays until the worker has answered: the query still runs there.
                pending.cancelled = true;
                *id
            })
            .collect();
        for id in abandoned {
            self.send(&Request::Cancel { id }).await;
        }
        let (log_bytes, _) = self.layout.size();
        let told = self.running.as_ref().map_or(0, |running| running.told_bytes);
        // One that failed is not left to the next query, which nobody may send while it is away.
        let failed = lock(&self.shared).status.failed.is_some();
        if (failed || log_bytes.abs_diff(told) >= WARM_BYTES)
            && (self.running.is_some() || now >= self.warm_from)
            && self.ensure_running().await.is_ok()
        {
            if let Some(running) = &mut self.running {
                running.told_bytes = log_bytes;
            }
            let snapshot = self.layout.snapshot();
            self.send(&Request::Warm { snapshot }).await;
        }
    }

    /// Kills the worker and tells those who wait.
    async fn end_worker(&mut self, error: impl Fn(&Pending) -> SqlError) {
        if let Some(mut running) = self.running.take() {
            // Killed for sure when it is dropped, so a failure here is only a slower end.
            let _killed = timeout(START_TIMEOUT, running.child.kill()).await;
        }
        let mut shared = lock(&self.shared);
        let starts = shared.status.starts;
        shared.status = WorkerStatus { starts, ..WorkerStatus::default() };
        drop(shared);
        for (_, pending) in self.pending.drain() {
            let error = error(&pending);
            pending.reply.fail(error);
        }
    }

    async fn worker_ended(&mut self, reason: Option<String>) {
        let status = match &mut self.running {
            Some(running) => {
                let _gone = running.child.start_kill();
                timeout(START_TIMEOUT, running.child.wait()).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        let reason = match status {
            Some(status) => self.how_it_ended(status),
            None => reason.unwrap_or_default(),
        };
        tracing::warn!(%reason, "the SQL worker ended");
        self.warm_from = Instant::now() + WARM_AGAIN_AFTER;
        self.end_worker(|_| SqlError::Worker { reason: reason.clone() }).await;
        lock(&self.shared).status.failed = Some(reason);
    }

    fn how_it_ended(&self, status: ExitStatus) -> String {
        match status.signal() {
            // What Rust does when memory is refused.
            Some(6) => format!(
                "ended, most likely at its limit of {} MiB of memory",
                self.memory_bytes / (1024 * 1024)
            ),
            Some(11) => "ended: the query nests too deep".to_owned(),
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended with {status}"),
        }
    }
}

async fn send_to(running: &mut Running, request: &Request, within: Duration) -> Result<(), String> {
    let message = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    match timeout(within, running.requests.send(Bytes::from(message))).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_elapsed) => Err("it does not take requests".to_owned()),
    }
}

async fn read_from(running: &mut Running) -> Result<Response, String> {
    match running.responses.next().await {
        None => Err("it closed its output".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(message)) => {
            serde_json::from_slice(&message).map_err(|error| format!("its answer: {error}"))
        }
    }
}

/// The next answer of a worker that runs; of none, none ever comes.
async fn next_response(running: &mut Option<Running>) -> Result<Response, String> {
    match running {
        Some(running) => read_from(running).await,
        None => std::future::pending().await,
    }
}

async fn log_errors(errors: ChildStderr) {
    // A flood without line ends must not fill memory.
    let mut lines = BufReader::new(errors.take(1 << 20)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = Untrusted::new(line).inline(STDERR_CHARS_MAX);
        tracing::warn!(%line, "the SQL worker says");
    }
}
