//! The open ledger.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use ed25519_dalek::SigningKey;
use estoppel_model::{NewRecord, Record, RecordKind, text::quoted};
use serde::de::IgnoredAny;
use tokio::sync::{oneshot, watch};

use crate::{
    Checkpoint, Damage, Doubt, Hash, Head, LedgerError, Options, Pending, RecordError, Snapshot,
    Standing, VerifierKey, Which,
    checkpoint::verifier_key,
    error::{BODY_BYTES_MAX, KEY_BYTES_MAX, KIND_BYTES_MAX},
    files,
    merkle::{self, Frontier},
    store::{self, Store, TILE_LEVELS},
    writer::{Job, Shared, Writer},
};

/// Most appends that wait for the writer.
const WAITING_MAX: usize = 16_384;
/// Most bytes of bodies that wait for the writer.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Connections for reading that are kept open.
const READERS_KEPT: usize = 4;
/// Records that [`Ledger::records`] reads at a time.
const BATCH: usize = 512;
/// The file whose lock says that the ledger is open.
const LOCK_FILE: &str = "ledger.lock";

/// The ledger of one folder. Cheap to clone; the last clone that is dropped closes it, waiting
/// until everything that was appended is written.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    options: Options,
    signer: SigningKey,
    /// Taken on drop, which tells the writer to finish.
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    readers: Mutex<Vec<Store>>,
    snapshots: Mutex<()>,
    /// Held to the end; the lock goes with it.
    _lock: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        self.readers.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the ledger's writer ended by a panic");
        }
    }
}

impl Ledger {
    /// Opens the ledger of a folder, and creates both where they are missing.
    ///
    /// After a crash, this recovers what SQLite's log holds and makes it durable before anybody
    /// sees it. It checks the tree's root against the stored, signed checkpoint, and the newest
    /// records (up to 256) against their leaves; [`crate::verify`] checks everything.
    ///
    /// # Errors
    /// When the folder is in use, belongs to another key, holds something else, is damaged, or
    /// cannot be read or written.
    pub fn open(dir: &Path, signer: SigningKey, options: Options) -> Result<Self, LedgerError> {
        files::create_dir(dir)?;
        let lock = lock(dir)?;
        let store = Store::open(dir, options.vfs())?;
        let (frontier, checkpoint) = recover(&store, dir, &signer)?;
        // SQLite syncs its log's name only where this connection created it. A process that was
        // killed, or a reader that came first, may have, and their names are not durable yet.
        match &options.disk {
            Some(disk) => disk.sync_folder(dir),
            None => files::sync_dir(dir),
        }
        .map_err(LedgerError::file("sync the folder", dir))?;

        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            durable: watch::Sender::new(checkpoint.head().size),
            checkpoint: RwLock::new(Arc::new(checkpoint)),
            poisoned: OnceLock::new(),
            waiting_bytes: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        });
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let writer = Writer::new(store, signer.clone(), frontier, Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || writer.run(&waiting))
            .map_err(LedgerError::file("start the writer of", dir))?;
        let inner = Inner {
            shared,
            options,
            signer,
            jobs: Some(jobs),
            writer: Some(writer),
            readers: Mutex::default(),
            snapshots: Mutex::default(),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Appends a record. Never blocks; the order of calls from one thread is kept.
    ///
    /// Of several records with one key the first is kept, whatever they hold: the others learn its
    /// seq, and whether kind and body are the same. So a retry is harmless, and of several that
    /// want to do one thing (key `run/RUN/INDEX`) exactly one learns that it is [`Appended::New`](crate::Appended::New).
    pub fn append(&self, record: NewRecord) -> Pending {
        match check(&record).map_err(LedgerError::from).and_then(|()| self.send(record)) {
            Ok(pending) => pending,
            Err(error) => Pending::refused(error),
        }
    }

    fn send(&self, record: NewRecord) -> Result<Pending, LedgerError> {
        let shared = &self.inner.shared;
        shared.check()?;
        let bytes = record.body.len();
        let overloaded =
            || LedgerError::Overloaded { waiting: shared.waiting.load(Ordering::Relaxed) };
        let before = shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > WAITING_BYTES_MAX {
            shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(overloaded());
        }
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        let (reply, pending) = oneshot::channel();
        let sent = match &self.inner.jobs {
            Some(jobs) => jobs.try_send(Job { record, reply }),
            None => return Err(LedgerError::Closed),
        };
        sent.map_err(|error| {
            shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => overloaded(),
                TrySendError::Disconnected(_) => LedgerError::Closed,
            }
        })?;
        Ok(Pending::new(pending))
    }

    /// Returns durable records from a seq on, in order and without a gap: at most `limit`, fewer
    /// when they are large (32 MiB), none past the end. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk cannot be read, or a record does not fit its leaf.
    pub fn read(&self, from_seq: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        let end = self.head().size;
        if from_seq >= end {
            return Ok(Vec::new());
        }
        self.with_reader(|store| store.read(from_seq, end, limit))
    }

    /// Iterates over the durable records from a seq on, as of now and without a gap. Blocks on the
    /// disk, and ends with the first error.
    pub fn records(&self, from_seq: u64) -> impl Iterator<Item = Result<Record, LedgerError>> {
        let end = self.head().size;
        let mut next = from_seq;
        let mut batch = Vec::new().into_iter();
        std::iter::from_fn(move || {
            if let Some(record) = batch.next() {
                return Some(Ok(record));
            }
            if next >= end {
                return None;
            }
            match self.with_reader(|store| store.read(next, end, BATCH)) {
                Ok(records) => {
                    next += records.len() as u64;
                    batch = records.into_iter();
                    batch.next().map(Ok)
                }
                Err(error) => {
                    next = end;
                    Some(Err(error))
                }
            }
        })
    }

    /// Iterates over those of the first `size` records that have one of these kinds, or a key that
    /// begins with `prefix` (ASCII, not empty), in order and each checked against its leaf. Blocks
    /// on the disk, ends with the first error.
    ///
    /// For what must not be overlooked: kinds are read in the records themselves, where a gap is an
    /// error, and keys in their index, so that damage to one place hides no such record. It reads
    /// no body of any other.
    ///
    /// # Errors
    /// When the disk cannot be read, or one of the first `size` records is missing.
    pub fn select<'l>(
        &'l self,
        size: u64,
        kinds: &[RecordKind],
        prefix: &str,
    ) -> Result<impl Iterator<Item = Result<Record, LedgerError>> + use<'l>, LedgerError> {
        let places = self.with_reader(|store| store.places(size, kinds, prefix))?;
        let mut failed = false;
        Ok(places.into_iter().map_while(move |seq| {
            let read = (!failed).then(|| self.with_reader(|store| store.read(seq, seq + 1, 1)))?;
            failed = read.is_err();
            // A place that was found holds a record, or reading it is an error.
            read.map(|records| records.into_iter().next()).transpose()
        }))
    }

    /// How many records are durable, and their root.
    pub fn head(&self) -> Head {
        self.checkpoint().head()
    }

    /// How many records are durable, now and whenever that changes. The last value that was seen
    /// may skip some: read from the own position on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.shared.durable.subscribe()
    }

    /// The signed checkpoint of all durable records.
    pub fn checkpoint(&self) -> Arc<Checkpoint> {
        let published = &self.inner.shared.checkpoint;
        Arc::clone(&published.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key, under the ledger's name, that checks its checkpoints.
    pub fn verifier_key(&self) -> VerifierKey {
        verifier_key(self.inner.signer.verifying_key())
    }

    /// Why the ledger takes no more appends; `None` while it does.
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.inner.shared.poisoned.get().cloned()
    }

    /// Compares a checkpoint that somebody else kept with this ledger. Blocks on the disk.
    ///
    /// # Errors
    /// When it is not a checkpoint of this ledger, or the disk cannot be read.
    pub fn compare(&self, kept: &Checkpoint) -> Result<Standing, LedgerError> {
        kept.verify(&self.verifier_key())?;
        let (theirs, ours) = (kept.head(), self.head());
        if theirs.size > ours.size {
            return Ok(Standing::RolledBack { missing: theirs.size - ours.size });
        }
        let root = if theirs.size == ours.size {
            ours.root
        } else {
            self.with_reader(|store| Frontier::of(store, theirs.size))?.root()
        };
        Ok(if root == theirs.root { Standing::Continues } else { Standing::Rewritten })
    }

    /// Proves that record `seq` is among the first `size`: check it with
    /// [`merkle::verify_inclusion`] and the leaf that comes with it. Blocks on the disk.
    ///
    /// # Errors
    /// When there are no such records, or the disk cannot be read.
    pub fn prove_inclusion(&self, seq: u64, size: u64) -> Result<(Hash, Vec<Hash>), LedgerError> {
        let have = self.head().size;
        if seq >= size || size > have {
            let what = format!("record {seq} among the first {size}");
            return Err(LedgerError::NoSuchRecord { what, size: have });
        }
        self.with_reader(|store| {
            let leaf = merkle::Subtrees::subtree(store, 0, seq)?;
            Ok((leaf, merkle::inclusion(store, seq, size)?))
        })
    }

    /// Proves that the first `new_size` records continue the first `old_size`: check it with
    /// [`merkle::verify_consistency`]. Blocks on the disk.
    ///
    /// # Errors
    /// When there are no such records, or the disk cannot be read.
    pub fn prove_consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
        let have = self.head().size;
        if old > new || new > have {
            let what = format!("{new} records continuing {old}");
            return Err(LedgerError::NoSuchRecord { what, size: have });
        }
        self.with_reader(|store| merkle::consistency(store, old, new))
    }

    /// Returns a record with the salt of its leaf, for those to whom it is to be proved: with
    /// [`leaf_of`](crate::leaf_of) and [`Ledger::leaves`] they need nothing of this ledger. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// When there is no such record, it does not fit its leaf, or the disk cannot be read.
    pub fn disclose(&self, seq: u64) -> Result<(Record, Vec<u8>), LedgerError> {
        let size = self.head().size;
        if seq >= size {
            return Err(LedgerError::NoSuchRecord { what: format!("record {seq}"), size });
        }
        self.with_reader(|store| store.stored(seq)).map(|stored| (stored.record, stored.salt))
    }

    /// Returns the leaves of the first `size` records. They say nothing of what is in the records,
    /// and are all that the roots of every checkpoint up to there are made of. Blocks on the disk;
    /// 32 bytes a record.
    ///
    /// # Errors
    /// When there are fewer records, one of them is missing, or the disk cannot be read.
    pub fn leaves(&self, size: u64) -> Result<Vec<Hash>, LedgerError> {
        let have = self.head().size;
        if size > have {
            let what = format!("the leaves of {size} records");
            return Err(LedgerError::NoSuchRecord { what, size: have });
        }
        self.with_reader(|store| store.leaves(size))
    }

    /// Keeps the state that a fold has come to after the first `size` records, so that the next
    /// start need not read them. A cache: signed, checked on the way back, and free to be lost.
    ///
    /// # Errors
    /// When the name is no name, there are fewer records, or the disk cannot be written.
    pub fn snapshot_put(&self, name: &str, size: u64, bytes: &[u8]) -> Result<(), LedgerError> {
        let have = self.head().size;
        if size > have {
            let what = format!("a snapshot of {size} records");
            return Err(LedgerError::NoSuchRecord { what, size: have });
        }
        let root = self.with_reader(|store| Frontier::of(store, size))?.root();
        let _one = self.inner.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let head = Head { size, root };
        crate::snapshot::put(&self.inner.shared.dir, name, head, bytes, &self.inner.signer)
    }

    /// Returns the state that was kept under a name, if this ledger signed it over its present
    /// history. Otherwise there is none: then fold from the start.
    ///
    /// # Errors
    /// When the name is no name, or the ledger itself cannot be read.
    pub fn snapshot_get(&self, name: &str) -> Result<Snapshot, LedgerError> {
        let found = crate::snapshot::get(&self.inner.shared.dir, name, &self.verifier_key())?;
        let (head, state) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Snapshot::Absent),
            Err(doubt) => return Ok(Snapshot::Doubtful(doubt)),
        };
        let (size, have) = (head.size, self.head().size);
        if size > have {
            return Ok(Snapshot::Doubtful(Doubt::Ahead { size, have }));
        }
        let root = self.with_reader(|store| Frontier::of(store, size))?.root();
        Ok(if root == head.root {
            Snapshot::Kept { size, state }
        } else {
            Snapshot::Doubtful(Doubt::OtherHistory { size })
        })
    }

    fn with_reader<T>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let readers = || self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = readers().pop();
        let store = match kept {
            Some(store) => store,
            None => Store::open_read_only(&self.inner.shared.dir, self.inner.options.vfs())?,
        };
        let result = read(&store);
        let mut readers = readers();
        // One that failed is closed: it may have lost its footing.
        if result.is_ok() && readers.len() < READERS_KEPT {
            readers.push(store);
        }
        result
    }
}

fn lock(dir: &Path) -> Result<File, LedgerError> {
    let path = dir.join(LOCK_FILE);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(LedgerError::file("create", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(LedgerError::Locked { dir: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(error)) => Err(LedgerError::file("lock", &path)(error)),
    }
}

/// Makes a new file a ledger, or takes an old one up where it ended.
fn recover(
    store: &Store,
    dir: &Path,
    signer: &SigningKey,
) -> Result<(Frontier, Checkpoint), LedgerError> {
    let key = signer.verifying_key();
    if store.is_new()? {
        let head = Head { size: 0, root: Hash::empty_root() };
        let checkpoint = Checkpoint::sign(head, signer);
        store.create(key.as_bytes(), &checkpoint)?;
        return Ok((Frontier::default(), checkpoint));
    }
    let (application, format) = store.format()?;
    if (application, format) != (store::APPLICATION_ID, store::FORMAT) {
        let found = format!("application {application:#x}, format {format}");
        let path = dir.join(store::FILE);
        return Err(LedgerError::Format { path, known: store::FORMAT, found });
    }
    if store.key()? != key.as_bytes() {
        return Err(LedgerError::OtherKey { dir: dir.to_owned() });
    }
    make_durable(store)?;

    let damaged =
        |reason| LedgerError::damaged(Damage::Checkpoint { which: Which::Database, reason });
    let checkpoint = Checkpoint::parse(&store.checkpoint()?).map_err(damaged)?;
    checkpoint.verify(&verifier_key(key)).map_err(damaged)?;
    let (head, size) = (checkpoint.head(), store.next_seq()?);
    if head.size != size {
        let which = Which::Database;
        return Err(LedgerError::damaged(Damage::Size { which, expected: head.size, found: size }));
    }
    let frontier = Frontier::of(store, size)?;
    if frontier.root() != head.root {
        let damage = Damage::Root { which: Which::Database, size };
        return Err(LedgerError::damaged(damage));
    }
    // The newest records, which a crash could have hurt: reading checks each against its leaf.
    let mut next = size.saturating_sub(1 << TILE_LEVELS);
    while next < size {
        next += store.read(next, size, 1 << TILE_LEVELS)?.len() as u64;
    }
    Ok((frontier, checkpoint))
}

/// Syncs what SQLite recovered from its log. After a killed process the log's newest commits may be
/// in the page cache only: they must not be shown as durable before they are.
fn make_durable(store: &Store) -> Result<(), LedgerError> {
    match store.move_log() {
        Ok(true) => Ok(()),
        // Somebody reads an older state, such as a verification: the log stays, and is synced.
        Ok(false) => store.commit_nothing(),
        // SQLite syncs the log before it moves anything. There may be no room to move it to, but
        // a full disk must not keep the ledger from starting.
        Err(LedgerError::DiskFull) => {
            tracing::warn!("disk full: the ledger can be read; appends fail until there is space");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn check(record: &NewRecord) -> Result<(), RecordError> {
    let NewRecord { kind, key, body, .. } = record;
    let kind = kind.as_str();
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'.');
    if kind.is_empty() || kind.len() > KIND_BYTES_MAX || !kind.bytes().all(word) {
        return Err(RecordError::Kind { kind: quoted(kind) });
    }
    if let Some(key) = key
        && (key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control))
    {
        return Err(RecordError::Key { key: quoted(key) });
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(RecordError::BodyTooLarge { bytes: body.len() });
    }
    serde_json::from_str::<IgnoredAny>(body)
        .map(|_| ())
        .map_err(|source| RecordError::BodyNotJson { source: Arc::new(source) })
}
