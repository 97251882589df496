//! When full write-ahead segments become a sealed segment, and what happens to their files.
//!
//! The order is what keeps every event readable exactly once, at any crash: the worker writes and
//! syncs the Parquet files; the manifest is made durable; from then on snapshots name the sealed
//! segment; the worker answers that no earlier snapshot waits any more; the write-ahead files go.

use std::{sync::Arc, time::Duration};

use estoppel_model::Clock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    disk::{Disk, replace},
    layout::SharedLayout,
    supervisor::WorkerClient,
    wal::{
        Segment,
        recover::{Folders, retire},
    },
};

/// After a failure, such as a full disk.
const RETRY_AFTER: Duration = Duration::from_secs(30);

pub(crate) struct Sealer {
    pub(crate) folders: Folders,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) layout: SharedLayout,
    pub(crate) worker: WorkerClient,
    pub(crate) seal_bytes: u64,
    pub(crate) segment_full: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum SealError {
    #[error(transparent)]
    Worker(#[from] crate::SqlError),
    #[error("the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the task ended: {0}")]
    Join(#[from] tokio::task::JoinError),
}

impl Sealer {
    /// Seals whenever enough segments are full, until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        loop {
            let sealed = tokio::select! {
                () = stop.cancelled() => return,
                sealed = this.seal_one() => sealed,
            };
            let failed = match sealed {
                Ok(true) => continue,
                Ok(false) => false,
                Err(error) => {
                    tracing::warn!(%error, "sealing failed; the events stay in the log");
                    true
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = this.segment_full.notified() => {}
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
        }
    }

    /// The oldest full segments, if they are enough to be sealed together.
    fn due(&self) -> Option<Vec<Segment>> {
        let mut wal = self.layout.snapshot().wal;
        // The last one is still written to.
        wal.pop();
        let mut bytes = 0;
        let count = wal.iter().position(|segment| {
            bytes += segment.end;
            bytes >= self.seal_bytes
        })?;
        wal.truncate(count + 1);
        Some(wal)
    }

    /// Seals once, if it is time. Can be dropped at any point: what is half done is done anew.
    async fn seal_one(self: &Arc<Self>) -> Result<bool, SealError> {
        let Some(segments) = self.due() else { return Ok(false) };
        let mut seal = self.worker.seal(segments.clone()).await?;
        seal.sealed_at = self.clock.now();
        let (this, manifest) = (Arc::clone(self), serde_json::to_vec_pretty(&*seal)?);
        let path = self.folders.segments.join(seal.file_name());
        tokio::task::spawn_blocking(move || replace(&*this.disk, &path, &manifest)).await??;
        let lost = seal.lost > 0;
        let next_seq = seal.next_seq;
        tracing::info!(events = seal.events, lost = seal.lost, "sealed a segment of the event log");
        self.layout.seal(Arc::from(seal));
        if let Err(error) = self.worker.forget(next_seq).await {
            // A worker that ended has no earlier snapshot either.
            tracing::debug!(%error, "no worker had to forget sealed rows");
        }
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            for segment in &segments {
                let path = this.folders.wal.join(segment.file_name());
                retire(&*this.disk, &this.folders, &path, lost)?;
            }
            this.disk.sync_folder(&this.folders.wal)
        })
        .await??;
        Ok(true)
    }
}
