//! The handle of a log: open, append, query, close.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use estoppel_model::{Clock, ReceivedEvent, SystemClock};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Access, AllowedDestination, AppendError, Damage, Disk, Isolation, OpenError, SqlError,
    SystemDisk, Table,
    layout::SharedLayout,
    row,
    sealer::Sealer,
    supervisor::{Supervisor, WorkerClient},
    wal::{
        recover::{Folders, recover},
        writer::{Append, Request, Writer, WriterConfig},
    },
};

/// Bytes of events that may wait for the disk. Beyond it `append` waits: senders feel the disk.
const WAITING_KIB_MAX: usize = 32 * 1024;

/// How to start a worker: a program that ends up in [`crate::worker::main`].
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// How a log works. [`Options::new`] has the defaults.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a clock and a disk show nothing")]
pub struct Options {
    /// How to start the SQL worker.
    pub worker: WorkerCommand,
    /// For the time in manifests.
    pub clock: Arc<dyn Clock>,
    /// Where files are written.
    pub disk: Arc<dyn Disk>,
    /// Size of a write-ahead file. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of full write-ahead files that are sealed together. Default 256 MiB, some 500,000
    /// events: many small Parquet files are slow to query.
    pub seal_bytes: u64,
    /// Bytes that are synced together at most, but for the last event. Default 1 MiB.
    pub group_bytes: usize,
    /// How long the first event of a group waits for others. Default 2 ms.
    pub group_wait: Duration,
    /// How many of the latest events are known by their ids, so that one that is sent again is not
    /// there twice. Default 1,000,000, for about 60 MB of memory.
    pub dedup_window: usize,
    /// Memory of the worker process. Default 2 GiB.
    pub worker_memory_bytes: u64,
    /// Learns how long each sync of the write-ahead log took; called on the writer's thread, so it
    /// must not block.
    pub on_sync: Option<OnSync>,
}

/// Learns how long a sync took.
pub type OnSync = Arc<dyn Fn(Duration) + Send + Sync>;

impl Options {
    /// The defaults, with this worker.
    pub fn new(worker: WorkerCommand) -> Self {
        Self {
            worker,
            clock: Arc::new(SystemClock),
            disk: Arc::new(SystemDisk),
            segment_bytes: 64 << 20,
            seal_bytes: 256 << 20,
            group_bytes: 1 << 20,
            group_wait: Duration::from_millis(2),
            dedup_window: 1_000_000,
            worker_memory_bytes: 2 << 30,
            on_sync: None,
        }
    }
}

/// What became of the events of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppendReport {
    /// How many are new, and durable now.
    pub accepted: usize,
    /// How many were known by their ids, and are durable, too.
    pub duplicates: usize,
}

/// How a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Bytes of durable events that are not sealed yet.
    pub wal_bytes: u64,
    /// How many sealed segments there are.
    pub segments: usize,
    /// Rows that the worker holds in memory.
    pub hot_rows: u64,
    /// The worker's process id, if one runs.
    pub worker_pid: Option<u32>,
    /// How many workers have been started.
    pub worker_starts: u64,
    /// Why there is no worker although there should be one: it did not start, or it ended by
    /// itself. `None` from the next one's start on.
    pub worker_failed: Option<String>,
    /// Which walls stand around the worker, once one has started.
    pub isolation: Option<Isolation>,
    /// Why the log takes no more events until it is opened again.
    pub poisoned: Option<Arc<str>>,
}

/// An open log; clones are the same log.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a handle of threads and channels")]
pub struct EventLog {
    inner: Arc<Inner>,
}

struct Inner {
    writer: mpsc::SyncSender<Request>,
    waiting: Arc<Semaphore>,
    group_bytes: usize,
    layout: SharedLayout,
    worker: WorkerClient,
    damage: Vec<Damage>,
    poison: Arc<OnceLock<Arc<str>>>,
    /// Held as long as the log is open.
    _lock: File,
}

impl EventLog {
    /// Opens the log in a folder, made if it is missing, and reads back what is in it. Must be
    /// called within a Tokio runtime; blocks while it reads.
    ///
    /// When `stop` is cancelled, what was handed in before is still written and answered; then the
    /// writer, the sealer and the worker end. All of them are tracked by `tasks`.
    ///
    /// # Errors
    /// When another process has the log open, or the file system refuses. Damage is no error: what
    /// can be read is served, and [`EventLog::damage`] names the rest.
    pub fn open(
        folder: &Path,
        options: Options,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, OpenError> {
        let at = |source| OpenError::at(folder, source);
        // What agents did is nobody's business but the operator's.
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        let folder = folder.canonicalize().map_err(at)?;
        let lock = lock(&folder)?;
        let folders = Folders::of(&folder);
        folders.create(&*options.disk)?;
        let recovered = recover(&folders, &*options.disk, options.dedup_window)?;
        for damage in &recovered.damage {
            tracing::error!(
                file = %damage.file.display(), bytes = ?damage.bytes, seqs = ?damage.seqs,
                lost = damage.lost, kind = ?damage.kind, "damage in the event log"
            );
        }
        let layout = SharedLayout::new(recovered.layout);
        let segment_full = Arc::new(Notify::new());
        let config = WriterConfig {
            disk: Arc::clone(&options.disk),
            folder: folders.wal.clone(),
            segment_bytes: options.segment_bytes,
            group_bytes: options.group_bytes,
            group_wait: options.group_wait,
            on_sync: options.on_sync,
        };
        let writer = Writer::new(
            config,
            recovered.window,
            recovered.next_seq,
            layout.clone(),
            Arc::clone(&segment_full),
        );
        let poison = writer.poison();
        // Each batch holds room for a KiB at least, so with one place for the end it never blocks.
        let (requests, inbox) = mpsc::sync_channel(WAITING_KIB_MAX + 1);
        tasks.spawn_blocking(move || writer.run(&inbox));
        let close = requests.clone();
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.cancelled().await;
            let _ended = close.send(Request::Close);
        });
        let worker = Supervisor::start(
            &options.worker,
            &folder,
            options.worker_memory_bytes,
            layout.clone(),
            tasks,
            stop.clone(),
        );
        let sealer = Sealer {
            folders,
            disk: options.disk,
            clock: options.clock,
            layout: layout.clone(),
            worker: worker.clone(),
            seal_bytes: options.seal_bytes,
            segment_full,
        };
        tasks.spawn(sealer.run(stop));
        let inner = Inner {
            writer: requests,
            waiting: Arc::new(Semaphore::new(WAITING_KIB_MAX)),
            group_bytes: options.group_bytes,
            layout,
            worker,
            damage: recovered.damage,
            poison,
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes events and answers when they are durable. An event whose id is among the latest is
    /// not written again. Waits for room while too much waits for the disk.
    ///
    /// Dropping the future does not take the events back.
    ///
    /// # Errors
    /// When any of the events could not be made durable; the call may then be repeated.
    pub async fn append(&self, events: Vec<ReceivedEvent>) -> Result<AppendReport, AppendError> {
        let mut answers = Vec::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for event in events {
            let event = row::encode(event)
                .map_err(|source| AppendError::Encode { source: Arc::new(source) })?;
            bytes += event.len();
            batch.push(event);
            if bytes >= self.inner.group_bytes {
                answers.push(self.hand_in(std::mem::take(&mut batch), bytes).await?);
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            answers.push(self.hand_in(batch, bytes).await?);
        }
        let mut report = AppendReport::default();
        for answer in answers {
            let part = answer.await.map_err(|_| AppendError::Closed)??;
            report.accepted += part.accepted;
            report.duplicates += part.duplicates;
        }
        Ok(report)
    }

    async fn hand_in(
        &self,
        events: Vec<Vec<u8>>,
        bytes: usize,
    ) -> Result<oneshot::Receiver<Result<AppendReport, AppendError>>, AppendError> {
        let kib = u32::try_from((bytes / 1024 + 1).min(WAITING_KIB_MAX)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.inner.waiting)
            .acquire_many_owned(kib)
            .await
            .map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let append = Append { events, reply, room };
        self.inner.writer.send(Request::Append(append)).map_err(|_| AppendError::Closed)?;
        Ok(answer)
    }

    /// Runs a query over all events that were acknowledged before the call.
    ///
    /// Dropping the future cancels the query.
    ///
    /// # Errors
    /// When the query is wrong, not allowed, over one of its limits, or its worker ended.
    pub async fn sql(&self, query: &str, access: Access) -> Result<Table, SqlError> {
        self.inner.worker.sql(query, access).await
    }

    /// Sets the rows of the table `allowlist` for the queries that follow.
    pub fn set_allowlist(&self, rows: Vec<AllowedDestination>) {
        self.inner.worker.set_allowlist(rows);
    }

    /// How the log is now.
    pub fn status(&self) -> Status {
        let (wal_bytes, segments) = self.inner.layout.size();
        let worker = self.inner.worker.status();
        Status {
            wal_bytes,
            segments,
            hot_rows: worker.hot_rows,
            worker_pid: worker.pid,
            worker_starts: worker.starts,
            worker_failed: worker.failed,
            isolation: worker.isolation,
            poisoned: self.inner.poison.get().cloned(),
        }
    }

    /// What could not be read back when the log was opened.
    pub fn damage(&self) -> &[Damage] {
        &self.inner.damage
    }

    /// The manifests of the sealed segments, oldest first.
    pub fn seals(&self) -> Vec<Arc<crate::Seal>> {
        self.inner.layout.snapshot().sealed
    }
}

fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|source| OpenError::at(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(OpenError::Locked { folder: folder.to_owned() })
        }
        Err(std::fs::TryLockError::Error(source)) => Err(OpenError::at(&path, source)),
    }
}
