//! The one writer: takes what is waiting as a group, commits it with one fsync, then answers.
//!
//! No delay is built in. While one group is being synced the next one gathers, so a lone append
//! waits for one fsync and a crowd shares one. Nothing is answered, published or exported before
//! its commit has returned.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, OnceLock, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use estoppel_model::NewRecord;
use tokio::sync::{oneshot, watch};

use crate::{Appended, Checkpoint, Head, LedgerError, files, leaf, merkle::Frontier, store::Store};

/// Most records of one group: bounds how long the first of them waits for the last.
const GROUP_RECORDS_MAX: usize = 1_024;
/// Most bytes of bodies in one group (one body may exceed it).
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many commits, or bytes, the write-ahead log holds before they are moved to the database.
const LOG_COMMITS_MAX: usize = 256;
const LOG_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How old the file `checkpoint` may be while records are appended.
const EXPORT_DELAY: Duration = Duration::from_millis(100);

/// The checkpoint's file in the ledger's folder.
pub(crate) const CHECKPOINT_FILE: &str = "checkpoint";

/// An append on its way.
pub(crate) struct Job {
    pub(crate) record: NewRecord,
    pub(crate) reply: oneshot::Sender<Result<Appended, LedgerError>>,
}

/// What the writer and everybody else see.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    /// Of what is durable.
    pub(crate) checkpoint: RwLock<Arc<Checkpoint>>,
    pub(crate) durable: watch::Sender<u64>,
    pub(crate) poisoned: OnceLock<Arc<str>>,
    /// Of the jobs in the channel, the bytes of their bodies.
    pub(crate) waiting_bytes: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
}

impl Shared {
    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        self.poisoned
            .get()
            .map_or(Ok(()), |cause| Err(LedgerError::Poisoned { cause: Arc::clone(cause) }))
    }

    fn poison(&self, error: &LedgerError) {
        let cause = crate::chain(error);
        tracing::error!(error = %cause, "the ledger takes no more appends until a restart");
        // The first cause is kept; a second would only be its consequence.
        let _ = self.poisoned.set(cause.into());
    }
}

pub(crate) struct Writer {
    store: Store,
    signer: SigningKey,
    frontier: Frontier,
    shared: Arc<Shared>,
    /// When the exported checkpoint becomes too old.
    export_due: Option<Instant>,
    log_commits: usize,
    log_bytes: usize,
}

impl Writer {
    pub(crate) fn new(
        store: Store,
        signer: SigningKey,
        frontier: Frontier,
        shared: Arc<Shared>,
    ) -> Self {
        let mut writer = Self {
            store,
            signer,
            frontier,
            shared,
            export_due: None,
            log_commits: 0,
            log_bytes: 0,
        };
        writer.export();
        writer
    }

    /// Runs until the last sender is gone, and everything that was sent is written.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let next = match self.export_due {
                None => jobs.recv().map_err(RecvTimeoutError::from),
                Some(due) => jobs.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(first) => {
                    let group = self.gather(first, jobs);
                    self.append(group);
                    if self.export_due.is_some_and(|due| due <= Instant::now()) {
                        self.export();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.export(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.close();
    }

    fn gather(&self, first: Job, jobs: &Receiver<Job>) -> VecDeque<Job> {
        let mut bytes = 0;
        let mut group = VecDeque::new();
        let mut next = Some(first);
        while let Some(job) = next {
            bytes += job.record.body.len();
            group.push_back(job);
            let room = group.len() < GROUP_RECORDS_MAX && bytes < GROUP_BYTES_MAX;
            next = if room { jobs.try_recv().ok() } else { None };
        }
        self.shared.waiting.fetch_sub(group.len(), Ordering::Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        group
    }

    fn append(&mut self, group: VecDeque<Job>) {
        let result = self.shared.check().and_then(|()| self.commit(&group));
        let answers = result.unwrap_or_else(|error| {
            if error.poisons() {
                self.shared.poison(&error);
            }
            group.iter().map(|_| Err(error.clone())).collect()
        });
        for (job, answer) in group.into_iter().zip(answers) {
            // Whoever asked may be gone; the record stays.
            let _ = job.reply.send(answer);
        }
        self.move_log_when_long();
    }

    /// Writes a group, all or none, and publishes it.
    fn commit(
        &mut self,
        group: &VecDeque<Job>,
    ) -> Result<Vec<Result<Appended, LedgerError>>, LedgerError> {
        let mut frontier = self.frontier.clone();
        let writing = self.store.begin()?;
        let mut answers = Vec::with_capacity(group.len());
        let mut bytes = 0;
        for Job { record, .. } in group {
            let existing = record.key.as_deref().map(|key| writing.find(key)).transpose()?;
            answers.push(Ok(match existing.flatten() {
                Some((seq, kind, body)) => {
                    let same_body = kind == record.kind.as_str() && body == record.body;
                    Appended::Existing { seq, same_body }
                }
                None => {
                    bytes += record.body.len();
                    let seq = writing.insert(&mut frontier, record, &salt()?)?;
                    Appended::New { seq }
                }
            }));
        }
        // Records with keys that exist were durable before: they need no commit.
        if frontier.size() > self.frontier.size() {
            let head = Head { size: frontier.size(), root: frontier.root() };
            let checkpoint = Checkpoint::sign(head, &self.signer);
            writing.commit(&checkpoint)?;
            self.frontier = frontier;
            self.log_commits += 1;
            self.log_bytes += bytes;
            self.publish(checkpoint);
        }
        Ok(answers)
    }

    fn publish(&mut self, checkpoint: Checkpoint) {
        let size = checkpoint.head().size;
        let mut published =
            self.shared.checkpoint.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *published = Arc::new(checkpoint);
        drop(published);
        self.shared.durable.send_replace(size);
        self.export_due.get_or_insert_with(|| Instant::now() + EXPORT_DELAY);
    }

    fn move_log_when_long(&mut self) {
        if self.log_commits < LOG_COMMITS_MAX && self.log_bytes < LOG_BYTES_MAX {
            return;
        }
        (self.log_commits, self.log_bytes) = (0, 0);
        match self.store.move_log() {
            Ok(_) => {}
            Err(error) if error.poisons() => self.shared.poison(&error),
            // What is acknowledged is in the log: it only stays longer than it should.
            Err(error) => tracing::warn!(error = %crate::chain(&error), "the ledger's log grows"),
        }
    }

    /// Writes the checkpoint beside the database, for people, backups and whoever fetches it.
    ///
    /// A failure is told and tried again with the next record: nothing was promised about it.
    fn export(&mut self) {
        self.export_due = None;
        let checkpoint = Arc::clone(
            &self.shared.checkpoint.read().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        let path = self.shared.dir.join(CHECKPOINT_FILE);
        if let Err(error) = files::replace(&path, &[checkpoint.as_str().as_bytes()]) {
            tracing::warn!(error = %crate::chain(&error), "cannot export the ledger's checkpoint");
        }
    }

    fn close(mut self) {
        if self.shared.poisoned.get().is_some() {
            self.store.keep_log_on_close();
            return;
        }
        if self.export_due.is_some() {
            self.export();
        }
        if let Err(error) = self.store.move_log() {
            self.store.keep_log_on_close();
            tracing::warn!(error = %crate::chain(&error), "the ledger's log stays for the next start");
        }
    }
}

fn salt() -> Result<[u8; leaf::SALT_BYTES], LedgerError> {
    let mut salt = [0; leaf::SALT_BYTES];
    getrandom::fill(&mut salt)
        .map_err(|error| LedgerError::Random { reason: error.to_string() })?;
    Ok(salt)
}
