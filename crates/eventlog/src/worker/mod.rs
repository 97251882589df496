//! The SQL worker: a child process that reads the log, answers queries and seals.
//!
//! It takes its requests from standard input and ends when that is closed, so it never outlives the
//! server. Requests are taken in order on the main thread, which also brings the rows in memory up
//! to each request's snapshot; queries then run side by side. Everything that strangers or people's
//! queries can break is in here: the server only ever sees a process that ended.

mod cell;
mod complete_times;
mod failure;
mod hot;
mod isolate;
mod query;
mod seal;
mod table;
mod tenant;

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use tokio::{runtime::Runtime, task::AbortHandle};

use crate::{
    SqlError,
    layout::Snapshot,
    protocol::{MESSAGE_BYTES_MAX, Request, RequestId, Response},
    wal::recover::Folders,
};
use hot::Hot;
use query::Query;
use table::{Allowlist, Checked};

/// Stack of a thread that plans queries: plans nest as deep as people's brackets.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Answers on their way out. The server reads them at any time, so this many never wait.
const ANSWERS_MAX: usize = 1024;

/// Runs the worker until standard input ends. Whoever calls it must have started no threads and
/// must write nothing to standard output.
pub fn main() -> ExitCode {
    isolate::close_inherited_files();
    // The default hook prints the panic's message, which can hold text of events.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(place) = panic.location() {
            let _closed = writeln!(io::stderr(), "panic at {}:{}", place.file(), place.line());
        }
    }));
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _closed = writeln!(io::stderr(), "the worker ends: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let Some(Request::Hello { folder, memory_bytes }) = read_message(&mut input)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no hello"));
    };
    let isolation = isolate::isolate(memory_bytes);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .thread_stack_size(STACK_BYTES)
        .enable_time()
        .build()?;
    let (answers, outbox) = mpsc::sync_channel(ANSWERS_MAX);
    std::thread::Builder::new().name("answers".to_owned()).spawn(move || {
        let mut output = io::stdout().lock();
        while let Ok(answer) = outbox.recv() {
            if write_message(&mut output, &answer).is_err() {
                break;
            }
        }
    })?;
    let _gone = answers.send(Response::Hello { isolation });
    let folders = Folders::of(&folder);
    let mut worker = Worker {
        segments: folders.segments.clone(),
        hot: Hot::new(folders.wal.clone()),
        folders,
        allowlist: Allowlist::default(),
        checked: Checked::default(),
        running: Arc::default(),
        answers,
        runtime,
    };
    while let Some(request) = read_message(&mut input)? {
        worker.take(request);
    }
    // Queries that still run are of no use to anyone.
    worker.runtime.shutdown_background();
    Ok(())
}

struct Worker {
    folders: Folders,
    segments: PathBuf,
    hot: Hot,
    allowlist: Allowlist,
    checked: Checked,
    running: Arc<Mutex<HashMap<RequestId, AbortHandle>>>,
    answers: mpsc::SyncSender<Response>,
    runtime: Runtime,
}

impl Worker {
    fn take(&mut self, request: Request) {
        match request {
            Request::Hello { .. } => {}
            Request::Allowlist { rows } => self.allowlist = Allowlist::new(&rows),
            Request::Warm { snapshot } => {
                // An error will be the next query's, too, which then tells it.
                let _told_later = self.hot.load(&snapshot.wal);
                self.tell(Response::Hot { rows: self.hot.rows() });
            }
            Request::Sql { id, query, tenant, limits, snapshot } => {
                let Snapshot { sealed, wal, lost } = snapshot;
                let tables = self.hot.load(&wal).and_then(|()| {
                    table::tables(&self.hot, &sealed, &self.segments, &self.checked)
                });
                let tables = match tables {
                    Ok(tables) => tables,
                    Err(error) => {
                        return self.tell(Response::Result { id, result: Err(error) });
                    }
                };
                self.tell(Response::Hot { rows: self.hot.rows() });
                self.tell(Response::Started { id });
                let lost_sealed: u64 = sealed.iter().map(|seal| seal.lost).sum();
                let query = Query {
                    text: query,
                    tenant: tenant.map(|tenant| tenant.as_str().to_owned()),
                    limits,
                    lost_events: lost + lost_sealed + self.hot.lost(),
                    tables,
                    allowlist: self.allowlist.clone(),
                    segments: self.segments.clone(),
                };
                self.start(id, query);
            }
            Request::Cancel { id } => {
                if let Some(query) = lock(&self.running).remove(&id) {
                    query.abort();
                }
            }
            Request::Seal { id, segments } => {
                let (folders, answers) = (self.folders.clone(), self.answers.clone());
                self.runtime.spawn_blocking(move || {
                    let result = seal::seal(&folders, &segments).map(Box::new);
                    let _gone = answers.send(Response::Sealed { id, result });
                });
            }
            Request::Forget { id, next_seq } => {
                self.hot.forget(next_seq);
                self.tell(Response::Hot { rows: self.hot.rows() });
                self.tell(Response::Forgot { id });
            }
        }
    }

    fn start(&self, id: RequestId, query: Query) {
        let (answers, running) = (self.answers.clone(), Arc::clone(&self.running));
        // The lock is held until the query is noted, so that it cannot end before.
        let mut noted = lock(&self.running);
        let work = self.runtime.spawn(query.run());
        noted.insert(id, work.abort_handle());
        drop(noted);
        self.runtime.spawn(async move {
            let result = match work.await {
                Ok(result) => result,
                Err(error) if error.is_cancelled() => Err(SqlError::Closed),
                Err(_panic) => {
                    Err(SqlError::Engine { message: "it panicked on this query".to_owned() })
                }
            };
            lock(&running).remove(&id);
            let _gone = answers.send(Response::Result { id, result });
        });
    }

    fn tell(&self, answer: Response) {
        // The thread that writes answers ends only when the server is gone.
        let _gone = self.answers.send(answer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_message(input: &mut impl Read) -> io::Result<Option<Request>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut message = vec![0; length];
    input.read_exact(&mut message)?;
    serde_json::from_slice(&message).map(Some).map_err(io::Error::from)
}

fn write_message(output: &mut impl Write, answer: &Response) -> io::Result<()> {
    let message = serde_json::to_vec(answer)?;
    let length = u32::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "an answer is too long"))?;
    output.write_all(&length.to_be_bytes())?;
    output.write_all(&message)?;
    output.flush()
}
