//! Events on their way to the server.
//!
//! [`Uploader::send`] never waits, never fails and touches no disk: it queues the event in memory.
//! One task takes batches from there to `POST /v1/events`, at once while it is idle; while a request
//! is under way, what comes meanwhile becomes the next batch. While no server answers, events go to
//! a bounded spool on disk, in groups of one fsync each. When a server answers again, what happens
//! now goes out in turn with what has waited: a long outage does not delay the detection of an
//! attack that is under way.
//!
//! Each event has its id before it is first sent, so a repeated request (an answer that was cut off,
//! another server, a restart) adds nothing twice. What finds no room is counted, and the count is an
//! event of its own, `estoppel.gap`, as soon as a server answers; or the guard refuses steps before
//! it comes to that ([`WhenFull::Refuse`]).
//!
//! What it does not do: keep events of a process that is killed between [`Uploader::send`] and the
//! end of the request or of the write to the spool. Nobody was told that those are kept.

mod gap;
mod post;
mod pump;
mod queue;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use estoppel_api::Trust;
use estoppel_model::{AuditEvent, Clock, EVENT_BYTES_MAX, Event, NetworkEvent, Secret, Untrusted};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;
use uuid::Uuid;

use crate::spool::{Line, Spool, SpoolError};
use queue::Queue;

/// What happens when neither memory nor disk has room for another event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The event is dropped and counted; the count is reported.
    #[default]
    Drop,
    /// A guard refuses steps a little before there is no room any more, so that nothing is done that
    /// would not be recorded.
    Refuse,
}

/// How many events are held while no server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBuffer {
    /// Bytes held in memory.
    pub memory_bytes_max: usize,
    /// Bytes held on disk, where there is a state folder.
    pub disk_bytes_max: u64,
    /// What happens beyond.
    pub when_full: WhenFull,
}

impl Default for EventBuffer {
    fn default() -> Self {
        Self {
            memory_bytes_max: 16 * 1024 * 1024,
            disk_bytes_max: 256 * 1024 * 1024,
            when_full: WhenFull::default(),
        }
    }
}

/// What an uploader is started with.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Addresses of servers of one deployment; tried in turn.
    pub servers: Vec<Url>,
    /// The enforcer's token.
    pub token: Secret<String>,
    /// Who may vouch for the servers, where they speak TLS.
    pub trust: Trust,
    /// Folder of the spool; `None`: memory only.
    pub spool_dir: Option<PathBuf>,
    /// How much is held.
    pub buffer: EventBuffer,
}

/// Why an uploader cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The token cannot be sent.
    #[error("the token holds characters that a header must not: copy it again")]
    Token,
    /// No HTTP client can be made, for example since the machine has no root certificates.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
}

/// How the events fare, for `status` and `doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct UploadStatus {
    /// Whether the last request was answered.
    pub reachable: bool,
    /// Events in memory.
    pub queued: u64,
    /// Events on disk.
    pub spooled: u64,
    /// Bytes on disk.
    pub spooled_bytes: u64,
    /// Events that a server has accepted since the start.
    pub delivered: u64,
    /// Events that a server refused for what they hold; the log says why.
    pub rejected: u64,
    /// Events that found no room, or were damaged on disk.
    pub lost: u64,
    /// Whether steps are refused for want of room.
    pub refusing: bool,
}

/// Sends events. Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    shared: Arc<Shared>,
}

/// What the uploader's handles and its task share.
struct Shared {
    queue: Queue,
    clock: Arc<dyn Clock>,
    buffer: EventBuffer,
    reachable: AtomicBool,
    full: AtomicBool,
    spooled: AtomicU64,
    spooled_bytes: AtomicU64,
    delivered: AtomicU64,
    rejected: AtomicU64,
}

impl Uploader {
    /// Starts to send in the background. After `stop` the task sends what is there for a few
    /// seconds at most, puts the rest on disk, and ends.
    ///
    /// # Errors
    /// When the spool's folder or the token cannot be used; a server that is away is no error.
    pub fn start(
        config: UploadConfig,
        clock: Arc<dyn Clock>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, UploadError> {
        let UploadConfig { servers, token, trust, spool_dir, buffer } = config;
        let post = post::Post::new(servers, &token, &trust)?;
        let spool = spool_dir
            .map(|dir| Spool::open(&dir, buffer.disk_bytes_max, clock.now()))
            .transpose()?;
        let shared = Arc::new(Shared {
            queue: Queue::new(buffer.memory_bytes_max),
            clock,
            buffer,
            reachable: AtomicBool::new(false),
            full: AtomicBool::new(false),
            spooled: AtomicU64::new(0),
            spooled_bytes: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        });
        tasks.spawn(pump::Pump::new(Arc::clone(&shared), post, spool).run(stop));
        Ok(Self { shared })
    }

    /// Sends an event, which gets an id and a time where it has none. Returns at once; see the
    /// module for what happens while no server answers.
    pub fn send(&self, mut event: Event) {
        let timestamp = match &mut event {
            Event::Audit(event) => &mut event.timestamp,
            Event::Network(event) => &mut event.timestamp,
        };
        let at = *timestamp.get_or_insert_with(|| self.shared.clock.now());
        let bytes = memory_of(&event);
        let Err(event) = self.shared.queue.push_unwritten(event, at, bytes) else { return };
        match line(event) {
            Ok(json) => self.shared.queue.push(Line { at, json }),
            Err(error) => {
                tracing::warn!(%error, "an event cannot be sent");
                self.shared.queue.lose(at);
            }
        }
        self.shared.judge_room();
    }

    /// Whether steps are to be refused, since what they do could not be recorded. Never true with
    /// [`WhenFull::Drop`]. Reads one atomic.
    #[inline]
    pub fn refusing(&self) -> bool {
        self.shared.full.load(Relaxed)
    }

    /// How the events fare.
    pub fn status(&self) -> UploadStatus {
        let shared = &self.shared;
        let queue = shared.queue.fill();
        UploadStatus {
            reachable: shared.reachable.load(Relaxed),
            queued: queue.events,
            spooled: shared.spooled.load(Relaxed),
            spooled_bytes: shared.spooled_bytes.load(Relaxed),
            delivered: shared.delivered.load(Relaxed),
            rejected: shared.rejected.load(Relaxed),
            lost: queue.lost,
            refusing: shared.full.load(Relaxed),
        }
    }
}

impl std::fmt::Debug for Uploader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Uploader").field(&self.status()).finish()
    }
}

impl Shared {
    /// Steps are refused while the last place that would take their events is more than seven
    /// eighths full: what is left is for the steps that are already under way.
    fn judge_room(&self) {
        if self.buffer.when_full == WhenFull::Drop {
            return;
        }
        let nearly = |used: u64, max: u64| used > max / 8 * 7;
        let memory_bytes_max = self.buffer.memory_bytes_max as u64;
        let full = nearly(self.queue.fill().used, memory_bytes_max)
            || nearly(self.spooled_bytes.load(Relaxed), self.buffer.disk_bytes_max);
        if self.full.swap(full, Relaxed) != full {
            if full {
                tracing::error!("no room for further events: steps are refused");
            } else {
                tracing::info!("room for events again: steps are taken");
            }
        }
    }
}

/// About how much memory an event takes, and at least how long its line is.
fn memory_of(event: &Event) -> usize {
    let raw = |json: &Option<Box<RawValue>>| json.as_ref().map_or(0, |json| json.get().len());
    let text = |text: &Option<Untrusted<String>>| text.as_ref().map_or(0, |text| text.raw().len());
    match event {
        Event::Audit(event) => {
            let texts = [&event.action, &event.tool, &event.plugin, &event.plugin_version];
            let others = [&event.model, &event.decision, &event.trace_id, &event.span_id];
            let values = [&event.params, &event.result, &event.detections, &event.attributes];
            size_of::<AuditEvent>()
                + texts.into_iter().chain(others).map(text).sum::<usize>()
                + values.into_iter().map(raw).sum::<usize>()
        }
        Event::Network(_) => size_of::<NetworkEvent>(),
    }
}

/// Why an event cannot become a line.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("it cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("it has {bytes} bytes: at most {EVENT_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

/// Writes an event, which gets an id where it has none.
fn line(mut event: Event) -> Result<String, LineError> {
    let id = match &mut event {
        Event::Audit(event) => &mut event.id,
        Event::Network(event) => &mut event.id,
    };
    id.get_or_insert_with(Uuid::now_v7);
    let mut json = serde_json::to_string(&event)?;
    if json.len() > EVENT_BYTES_MAX {
        return Err(LineError::TooLarge { bytes: json.len() });
    }
    if json.bytes().any(|byte| matches!(byte, b'\n' | b'\r')) {
        // Raw JSON of the agent's may be laid out over several lines. Inside texts a line feed is
        // always escaped, so this one is between tokens.
        json = json.replace(['\n', '\r'], " ");
    }
    Ok(json)
}

#[cfg(test)]
mod tests;
