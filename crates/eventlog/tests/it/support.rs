//! What the tests share: an open log in a folder of its own, events, queries.

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use estoppel_eventlog::{
    Access, Disk, DiskFile, EventLog, Excess, Options, SqlError, SqlLimits, Table, WorkerCommand,
};
use estoppel_model::{Event, EventLimits, ReceivedEvent, Timestamp};
use estoppel_testkit::disk::{FaultyDisk, FaultyFile};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The argument that makes this program a worker.
pub(crate) const WORKER: &str = "sql-worker";

/// A test that is a future.
pub(crate) fn trial<F: Future<Output = ()> + 'static>(
    name: &'static str,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(test());
        Ok(())
    })
}

/// Options with this program as the worker.
pub(crate) fn options() -> Options {
    Options::new(WorkerCommand {
        program: std::env::current_exe().unwrap(),
        args: vec![WORKER.into()],
    })
}

/// An open log. Closed and waited for with [`Log::close`].
pub(crate) struct Log {
    pub(crate) log: EventLog,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Log {
    pub(crate) fn open(folder: &Path, options: Options) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let log = EventLog::open(folder, options, &tasks, stop.clone()).unwrap();
        Self { log, tasks, stop }
    }

    pub(crate) async fn close(self) {
        self.stop.cancel();
        drop(self.log);
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) async fn append(&self, events: &[Value]) {
        let report = self.log.append(receive(events)).await.unwrap();
        assert_eq!(report.accepted + report.duplicates, events.len());
    }

    /// The rows of a query that may see everything.
    pub(crate) async fn rows(&self, query: &str) -> Vec<Vec<Value>> {
        self.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}")).rows
    }

    pub(crate) async fn sql(&self, query: &str) -> Result<Table, SqlError> {
        self.log.sql(query, Access::default()).await
    }

    pub(crate) async fn fails(&self, query: &str) -> SqlError {
        match self.sql(query).await {
            Err(error) => error,
            Ok(table) => panic!("{query} gave {table:?}"),
        }
    }

    pub(crate) async fn count(&self, table: &str) -> u64 {
        let rows = self.rows(&format!("SELECT COUNT(*) FROM {table}")).await;
        rows[0][0].as_u64().unwrap()
    }
}

/// A log with the default options in a new folder.
pub(crate) fn new_log() -> (TempDir, Log) {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), options());
    (folder, log)
}

pub(crate) fn now() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

/// Takes events in as the server does.
pub(crate) fn receive(events: &[Value]) -> Vec<ReceivedEvent> {
    let receive = |event: &Value| {
        Event::parse(&event.to_string()).unwrap().receive(now(), EventLimits::at(now())).unwrap()
    };
    events.iter().map(receive).collect()
}

/// An audit event at a time, with more fields.
pub(crate) fn audit(timestamp: &str, fields: Value) -> Value {
    event("audit", timestamp, fields)
}

/// A network event at a time, with more fields.
pub(crate) fn network(timestamp: &str, fields: Value) -> Value {
    event("network", timestamp, fields)
}

fn event(kind: &str, timestamp: &str, fields: Value) -> Value {
    let mut event = json!({"kind": kind, "timestamp": timestamp});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    event
}

/// Access to all rows with changed limits.
pub(crate) fn limited(change: impl FnOnce(&mut SqlLimits)) -> Access {
    let mut access = Access::default();
    change(&mut access.limits);
    access
}

/// Access to one tenant's rows.
pub(crate) fn tenant(name: &str) -> Access {
    Access { tenant: Some(name.parse().unwrap()), ..Access::default() }
}

pub(crate) fn truncating(rows: usize) -> Access {
    limited(|limits| (limits.rows, limits.excess) = (rows, Excess::Truncate))
}

/// Waits until something holds that other tasks bring about.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), waited).await.is_ok(), "never: {what}");
}

/// The testkit's crashing disk under the log.
#[derive(Clone)]
pub(crate) struct Crashing(pub(crate) FaultyDisk);

impl Disk for Crashing {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = self.0.create(path)?;
        if bytes > 0
            && let Err(error) = file.truncate(bytes)
        {
            self.0.remove(path)?;
            return Err(error);
        }
        Ok(Box::new(CrashingFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)
    }
}

struct CrashingFile(FaultyFile);

impl DiskFile for CrashingFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.0.truncate(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}

pub(crate) fn on(disk: &FaultyDisk) -> Options {
    Options { disk: Arc::new(Crashing(disk.clone())), ..options() }
}
