//! The order spool's thread.
//!
//! Appends go through a thread of their own: a disk that hangs delays what is said of durability,
//! never a broadcast. What lies in the file, and what its damage and a failed fsync mean, is in
//! [`estoppel_orderfile::OrderSpool`].

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use estoppel_model::{NewRecord, OrderId, SignedOrder};
use estoppel_orderfile::{OrderSpool, RealFolder, Recovered};
use tokio::sync::oneshot;

use crate::{AtMoment, Moment, StartError};

/// Orders that wait for the disk; more are in force without being kept, and say so.
const QUEUE_MAX: usize = 10_000;
/// Most orders of one write and one fsync.
const GROUP_MAX: usize = 1_000;

/// Hands orders to the spool's thread.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    queue: mpsc::SyncSender<Job>,
    failing: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Job {
    Keep(Entry),
    /// Tell when everything before this was tried.
    Flush(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Entry {
    id: OrderId,
    order: SignedOrder,
    follows: Vec<NewRecord>,
    kept: oneshot::Sender<Result<(), SpoolError>>,
}

/// Why an order is in force but not on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SpoolError {
    /// The disk refused.
    #[error("order {id} is in force, but not kept: {reason}")]
    Disk { id: OrderId, reason: String },
    /// Too many wait, or the thread has ended.
    #[error("order {id} is in force, but not kept: the spool does not keep up")]
    Busy { id: OrderId },
}

impl Spool {
    /// Opens the spool of a data folder and starts its thread.
    ///
    /// # Errors
    /// When the file cannot be opened or read. A torn or broken line is a warning: the ledger has
    /// the order, too, and to refuse to start would be to stop nothing. So is a disk that does not
    /// sync: then nothing is kept here, and everybody is told so.
    pub(crate) fn open(
        data: &Path,
        at_moment: Option<AtMoment>,
    ) -> Result<(Self, Recovered), StartError> {
        let path = data.join(OrderSpool::<File>::FILE);
        let opened = OrderSpool::open(&RealFolder::at(data));
        let (spool, recovered) =
            opened.map_err(|source| StartError::File { path: path.clone(), source })?;
        for warning in &recovered.warnings {
            tracing::warn!(warning, "the order spool is not as it was written");
        }
        let (queue, entries) = mpsc::sync_channel(QUEUE_MAX);
        let failing = Arc::new(AtomicBool::new(recovered.not_durable));
        std::thread::Builder::new()
            .name("order-spool".to_owned())
            .spawn({
                let failing = Arc::clone(&failing);
                move || Writer { path, spool, failing, at_moment }.run(&entries)
            })
            .map_err(StartError::Runtime)?;
        Ok((Self { queue, failing }, recovered))
    }

    /// Whether the last orders could not be kept.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Resolves when each order that was handed in before is on disk, or has failed to be.
    pub(crate) async fn flushed(&self) {
        let (done, flushed) = oneshot::channel();
        let queue = self.queue.clone();
        // The queue may be full, and its thread in a disk that hangs.
        let sent = tokio::task::spawn_blocking(move || queue.send(Job::Flush(done)));
        if matches!(sent.await, Ok(Ok(()))) {
            // The thread ends only with the last handle.
            let _ = flushed.await;
        }
    }

    /// Keeps an order with the records that follow from it. Returns at once; the receiver learns
    /// when it is on disk.
    pub(crate) fn keep(
        &self,
        id: OrderId,
        order: SignedOrder,
        follows: Vec<NewRecord>,
    ) -> oneshot::Receiver<Result<(), SpoolError>> {
        let (kept, receiver) = oneshot::channel();
        let sent = self.queue.try_send(Job::Keep(Entry { id, order, follows, kept }));
        if let Err(
            mpsc::TrySendError::Full(Job::Keep(entry))
            | mpsc::TrySendError::Disconnected(Job::Keep(entry)),
        ) = sent
        {
            // Nobody waits any more: then nobody needs to know.
            let _ = entry.kept.send(Err(SpoolError::Busy { id }));
        }
        receiver
    }
}

struct Writer {
    path: PathBuf,
    spool: OrderSpool<File>,
    failing: Arc<AtomicBool>,
    at_moment: Option<AtMoment>,
}

impl Writer {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let (mut group, mut flushes) = (Vec::new(), Vec::new());
            for job in std::iter::once(first).chain(jobs.try_iter().take(GROUP_MAX - 1)) {
                match job {
                    Job::Keep(entry) => group.push(entry),
                    Job::Flush(done) => flushes.push(done),
                }
            }
            if !group.is_empty() {
                self.keep(group);
            }
            for done in flushes {
                // Whoever waited may have given up.
                let _ = done.send(());
            }
        }
    }

    fn pass(&self, moment: Moment<'_>) {
        if let Some(at_moment) = &self.at_moment {
            at_moment(moment);
        }
    }

    fn keep(&mut self, group: Vec<Entry>) {
        self.pass(Moment::OrderDue);
        let orders = group.iter().map(|entry| (&entry.order, entry.follows.as_slice()));
        let result = self.spool.append_with(orders).map_err(|error| error.to_string());
        if result.is_ok() {
            self.pass(Moment::OrderKept);
        }
        self.failing.store(result.is_err(), Ordering::Relaxed);
        if let Err(reason) = &result {
            tracing::error!(path = %self.path.display(), reason, "orders are in force but not kept");
        }
        for Entry { id, kept, .. } in group {
            let reason = result.clone();
            // Nobody waits any more: then nobody needs to know.
            let _ = kept.send(reason.map_err(|reason| SpoolError::Disk { id, reason }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(spool: &Spool, text: &str) {
        let order =
            SignedOrder { order: text.to_owned(), key: "k".to_owned(), signature: "s".to_owned() };
        spool.keep(OrderId::new(), order, Vec::new()).blocking_recv().unwrap().unwrap();
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, found) = Spool::open(dir.path(), None).unwrap();
        assert!(found.orders.is_empty());
        keep(&spool, "a\nb");
        keep(&spool, "c");
        let (_, found) = Spool::open(dir.path(), None).unwrap();
        let texts: Vec<_> = found.orders.iter().map(|order| order.order.as_str()).collect();
        assert_eq!(texts, ["a\nb", "c"]);
        assert!(found.warnings.is_empty());
    }
}
