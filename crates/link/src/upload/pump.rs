//! The task between the queue, the spool and the servers. It alone touches the spool.

use std::{pin::Pin, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    gap::Gap,
    post::{Post, Posted},
    queue::Loan,
};
use crate::spool::{Chunk, Line, Room, Spool};

/// Largest batch, in events and in bytes; the last event may go beyond the bytes.
const BATCH_EVENTS_MAX: usize = 1_000;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most events that are written as JSON on the task's own thread.
const WRITTEN_HERE_MAX: u64 = 32;
/// Longest stay in memory behind a request that is not answered, once there is a disk to go to.
const SPILL_AFTER: Duration = Duration::from_secs(1);
/// First and longest wait before a server that did not answer is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest time that the end may take.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// How long the end waits for the last events of tasks that end at the same time.
const LINGER: Duration = Duration::from_millis(100);

/// Events that go out as one request.
#[derive(Debug, Default)]
struct Batch {
    /// From memory.
    fresh: Loan,
    /// From disk.
    backlog: Option<Chunk>,
    /// Whether the report of a loss goes along.
    gap: Option<Line>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.fresh.lines.is_empty() && self.backlog.is_none() && self.gap.is_none()
    }

    fn lines(&self) -> Vec<&Line> {
        let backlog = self.backlog.iter().flat_map(|chunk| &chunk.lines);
        self.fresh.lines.iter().chain(backlog).chain(&self.gap).collect()
    }
}

/// A request under way, and what it carries.
struct Flight {
    batch: Arc<Batch>,
    since: Instant,
    answer: Pin<Box<dyn Future<Output = (Post, Posted)> + Send>>,
}

/// The task's state.
pub(super) struct Pump {
    shared: Arc<Shared>,
    /// Lent to the request under way.
    post: Option<Post>,
    flight: Option<Flight>,
    /// Lent to the blocking call under way.
    spool: Option<Spool>,
    /// A loss whose report no server has yet.
    gap: Option<Gap>,
    /// Requests in a row that failed.
    failures: u32,
    retry_at: Instant,
    /// The disk had no room or failed: it is not tried again before.
    spill_not_before: Instant,
    backlog_is_next: bool,
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>, post: Post, spool: Option<Spool>) -> Self {
        Self {
            shared,
            post: Some(post),
            flight: None,
            spool,
            gap: None,
            failures: 0,
            retry_at: Instant::now(),
            spill_not_before: Instant::now(),
            backlog_is_next: false,
        }
    }

    /// Runs until `stop`, then flushes.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.note_spool();
        loop {
            self.depart().await;
            self.shared.judge_room();
            let shared = Arc::clone(&self.shared);
            let retry_at = self.retry_at;
            let waits_to_retry = self.flight.is_none() && self.failures > 0;
            let spill_at = self.spill_at();
            // Behind a request that a server will answer, events only gather: who sends them wakes
            // nobody.
            let heeds_arrivals = self.flight.is_none() || self.failures > 0;
            tokio::select! {
                (post, posted) = answer(&mut self.flight) => self.arrive(post, posted).await,
                () = shared.queue.arrived.notified(), if heeds_arrivals => {}
                () = shared.queue.half_full.notified() => {}
                () = sleep_until(retry_at), if waits_to_retry => {}
                () = sleep_until(spill_at.unwrap_or(retry_at)), if spill_at.is_some() => {
                    self.spill().await;
                }
                () = stop.cancelled() => break,
            }
        }
        self.flush().await;
    }

    /// Sends the next batch, unless one is under way or it is too early to ask again.
    async fn depart(&mut self) {
        if self.flight.is_some() || (self.failures > 0 && Instant::now() < self.retry_at) {
            return;
        }
        let batch = self.next_batch().await;
        if batch.is_empty() {
            // Nothing is left to ask a server with.
            self.failures = 0;
            return;
        }
        let Some(mut post) = self.post.take() else { return };
        let batch = Arc::new(batch);
        let carried = Arc::clone(&batch);
        let answer = Box::pin(async move {
            let posted = post.send(&carried.lines()).await;
            (post, posted)
        });
        self.flight = Some(Flight { batch, since: Instant::now(), answer });
    }

    /// What happens now and what has waited take turns. A server that did not answer is asked with
    /// what has waited: what happens now stays where it can go to disk.
    async fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let backlog_first = self.backlog_is_next || self.failures > 0;
        if backlog_first {
            batch.backlog = self.oldest_spooled().await;
        }
        if batch.backlog.is_none() {
            batch.fresh = self.take().await;
            if batch.fresh.lines.is_empty() && !backlog_first {
                batch.backlog = self.oldest_spooled().await;
            }
        }
        self.backlog_is_next = batch.backlog.is_none();
        if self.gap.is_none()
            && let Some(loss) = self.shared.queue.take_gap()
        {
            self.gap = Gap::new(loss, self.shared.clock.now())
                .inspect_err(|error| tracing::error!(%error, "a loss of events stays unreported"))
                .ok();
        }
        batch.gap = self.gap.as_ref().map(|gap| gap.line.clone());
        batch
    }

    /// Takes a batch out of the queue. Many events are written on a thread of their own: an order may
    /// wait for this one.
    async fn take(&mut self) -> Loan {
        let shared = Arc::clone(&self.shared);
        let take = move || shared.queue.take(BATCH_EVENTS_MAX, BATCH_BYTES_MAX);
        if self.shared.queue.fill().events <= WRITTEN_HERE_MAX {
            return take();
        }
        // A runtime that ends does not begin to: they are still in the queue then.
        tokio::task::spawn_blocking(take).await.unwrap_or_default()
    }

    async fn oldest_spooled(&mut self) -> Option<Chunk> {
        if self.spool.as_ref().is_none_or(Spool::is_empty) {
            return None;
        }
        let chunk = self.on_disk(|spool| spool.oldest(BATCH_EVENTS_MAX, BATCH_BYTES_MAX)).await?;
        (!chunk.lines.is_empty()).then_some(chunk)
    }

    /// Takes note of how a request ended.
    async fn arrive(&mut self, post: Post, posted: Posted) {
        self.post = Some(post);
        let Some(Flight { batch, .. }) = self.flight.take() else { return };
        // The request has given its share back.
        let batch = Arc::into_inner(batch).unwrap_or_default();
        match posted {
            Posted::Judged { accepted, rejected } => {
                if std::mem::take(&mut self.failures) > 0 || !self.reachable() {
                    tracing::info!("events are taken by a server");
                }
                self.shared.reachable.store(true, Relaxed);
                self.shared.delivered.fetch_add(accepted, Relaxed);
                self.shared.rejected.fetch_add(rejected, Relaxed);
                self.shared.queue.settle(batch.fresh.emptied());
                if batch.gap.is_some() {
                    self.gap = None;
                }
                if let Some(chunk) = batch.backlog {
                    self.on_disk(move |spool| spool.delivered(&chunk)).await;
                }
            }
            Posted::Failed { reason, retry_after } => {
                if self.failures == 0 {
                    tracing::warn!(%reason, "events are kept until a server takes them");
                }
                self.shared.reachable.store(false, Relaxed);
                self.retry_at = Instant::now() + retry_after.unwrap_or(backoff(self.failures));
                self.failures = self.failures.saturating_add(1);
                self.keep(batch.fresh).await;
            }
        }
    }

    fn reachable(&self) -> bool {
        self.shared.reachable.load(Relaxed)
    }

    /// When events in memory are to go to disk: at once while no server answers, a little later
    /// while a request is under way, never while all goes well.
    fn spill_at(&self) -> Option<Instant> {
        let fill = self.shared.queue.fill();
        self.spool.as_ref()?;
        let earliest = self.spill_not_before;
        match &self.flight {
            // Whatever has come by then: nobody says when it does.
            Some(flight) if self.failures == 0 => {
                let is_half_full = fill.bytes > self.shared.buffer.memory_bytes_max as u64 / 2;
                let after = if is_half_full { Duration::ZERO } else { SPILL_AFTER };
                Some(earliest.max(flight.since + after))
            }
            _ if fill.events == 0 => None,
            _ if self.failures > 0 => Some(earliest),
            _ => None,
        }
    }

    /// Moves what is in memory to disk.
    async fn spill(&mut self) {
        let loan = self.take().await;
        if loan.lines.is_empty() {
            self.spill_not_before = Instant::now() + SPILL_AFTER;
        }
        self.keep(loan).await;
    }

    /// Keeps events that could not be sent: on disk, else in memory, else as a count.
    async fn keep(&mut self, mut loan: Loan) {
        let lines = Arc::new(std::mem::take(&mut loan.lines));
        let appending = Arc::clone(&lines);
        let kept = match self.on_disk(move |spool| spool.append(&appending, Room::Usual)).await {
            Some(Ok(kept)) => kept,
            Some(Err(error)) => {
                tracing::error!(%error, "the event spool cannot be written");
                0
            }
            None => 0,
        };
        loan.lines = Arc::into_inner(lines).unwrap_or_default();
        loan.lines.drain(..kept);
        if !loan.lines.is_empty() {
            self.spill_not_before = Instant::now() + SPILL_AFTER;
        }
        self.shared.queue.settle(loan);
        self.shared.judge_room();
    }

    /// Runs a call that blocks, where it may. `None`: there is no spool.
    async fn on_disk<R: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut Spool) -> R + Send + 'static,
    ) -> Option<R> {
        let mut spool = self.spool.take()?;
        let called = tokio::task::spawn_blocking(move || {
            let result = call(&mut spool);
            (spool, result)
        });
        let (mut spool, result) = called
            .await
            .inspect_err(|error| tracing::error!(%error, "the event spool is given up"))
            .ok()?;
        if let Some(loss) = spool.take_loss() {
            tracing::error!(events = loss.events, "spooled events are damaged");
            self.shared.queue.lose_several(loss);
        }
        self.spool = Some(spool);
        self.note_spool();
        Some(result)
    }

    fn note_spool(&self) {
        let (events, bytes) =
            self.spool.as_ref().map_or((0, 0), |spool| (spool.events(), spool.bytes()));
        self.shared.spooled.store(events, Relaxed);
        self.shared.spooled_bytes.store(bytes, Relaxed);
        self.shared.judge_room();
    }

    /// The end: sends what is there, waits a little for the last events of others, and keeps on
    /// disk what no server takes. What was on disk before stays there.
    async fn flush(mut self) {
        let deadline = Instant::now() + FLUSH_MAX;
        loop {
            if self.flight.is_some() {
                match timeout_at(deadline, answer(&mut self.flight)).await {
                    Ok((post, posted)) => self.arrive(post, posted).await,
                    Err(_) => break,
                }
            }
            if self.failures > 0 {
                break;
            }
            let shared = Arc::clone(&self.shared);
            let linger = (Instant::now() + LINGER).min(deadline);
            if shared.queue.fill().events == 0
                && timeout_at(linger, shared.queue.arrived.notified()).await.is_err()
            {
                break;
            }
            // Not the backlog: it is safe where it is.
            self.backlog_is_next = false;
            if shared.queue.fill().events > 0 {
                self.depart().await;
            }
        }
        self.settle_accounts().await;
    }

    /// Keeps what was not sent, and the count of what cannot be kept.
    async fn settle_accounts(&mut self) {
        let mut rest = Loan::default();
        if let Some(Flight { batch, .. }) = self.flight.take() {
            rest = Arc::into_inner(batch).unwrap_or_default().fresh;
        }
        let queue = &self.shared.queue;
        rest.append(queue.close());
        let lost_before = queue.fill().lost;
        self.keep(rest).await;
        let queue = &self.shared.queue;
        let homeless = queue.close();
        homeless.lines.iter().for_each(|line| queue.lose(line.at));
        queue.settle(homeless.emptied());
        let lost = queue.fill().lost - lost_before;
        if lost > 0 {
            tracing::error!(lost, "events are lost at the end");
        }
        let now = self.shared.clock.now();
        let latest = queue.take_gap().and_then(|loss| Gap::new(loss, now).ok());
        let reports: Vec<Line> =
            self.gap.take().into_iter().chain(latest).map(|gap| gap.line).collect();
        if !reports.is_empty() {
            self.on_disk(move |spool| spool.append(&reports, Room::Reserve)).await;
        }
    }
}

/// The end of the request under way; never, while there is none. Cancel safe.
async fn answer(flight: &mut Option<Flight>) -> (Post, Posted) {
    match flight {
        Some(flight) => flight.answer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Doubles from [`RETRY_FIRST`] to [`RETRY_MAX`], with up to a half more or less, so that the
/// enforcers of a server that comes back do not ask in step.
fn backoff(failures: u32) -> Duration {
    let full = RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
    full.mul_f64(rand::random_range(0.5..1.5))
}
