//! A server that runs, and how it ends.

use std::{fs::File, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use estoppel_model::Secret;

use crate::{Server, StartError, http::tls};

/// How long work under way may take after a stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long the kill switch may take to show that it lives.
const PULSE_MAX: Duration = Duration::from_secs(1);
/// How long each log may take to reach the disk then.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    pub(crate) local_url: String,
    pub(crate) metrics_address: Option<SocketAddr>,
    pub(crate) listener: Option<std::thread::JoinHandle<()>>,
    /// Taken for as long as it runs.
    pub(crate) _lock: File,
}

impl Running {
    /// Where the API listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's address as clients write it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The API's address for children of this server: plain HTTP on this machine, where
    /// [`crate::ServerConfig::plain_for_children`] asked for it.
    pub fn local_url(&self) -> &str {
        &self.local_url
    }

    /// How many enforcers have a lease that is not over; `None` when the kill switch does not say so
    /// within a second. Whoever watches this server takes an answer for its heartbeat.
    pub async fn pulse(&self) -> Option<usize> {
        let asked = self.server.0.switchboard.ask(|switch, now| {
            switch.enforcers().filter(|enforcer| enforcer.is_alive(now.boot)).count()
        });
        tokio::time::timeout(PULSE_MAX, asked).await.ok()?.ok()
    }

    /// Reads the certificate again. One that cannot be used replaces none that can; the log and
    /// `status` say so.
    pub async fn reload(&self) {
        let Some(tls) = self.server.0.tls.clone() else { return };
        let reloading = Arc::clone(&tls);
        let reloaded = tokio::task::spawn_blocking(move || reloading.reload()).await;
        if !matches!(reloaded, Ok(Ok(()))) {
            tls::complain(&tls);
        }
    }

    /// Where metrics are told to anybody, if they are.
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where the admin's token is, which the first start wrote.
    pub fn admin_token_file(&self) -> PathBuf {
        self.server.0.config.data.join("admin.token")
    }

    /// The token of a machine that belongs to this server, such as its gateway; kept in the data
    /// folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn machine_token(
        &self,
        name: &str,
        role: estoppel_api::Role,
    ) -> Result<Secret<String>, StartError> {
        self.server.0.tokens.machine(name, role, self.server.0.clock.now())
    }

    /// Resolves when ledger and event log have recovered, or failed to.
    pub async fn recovered(&self) {
        self.server.0.recovered.cancelled().await;
    }

    /// Ends the server: streams first, told to go to another server, then work under way, the logs
    /// last. Enforcers go on until their leases are over, and then refuse.
    ///
    /// Bounded: a disk that hangs costs each part its time, and is then left to itself. What was
    /// acknowledged as durable is on the disk before any of this.
    pub async fn stop(mut self) {
        let inner = &self.server.0;
        inner.draining.cancel();
        inner.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, inner.tasks.wait()).await.is_err() {
            tracing::warn!("some work did not end in time; its journal goes on at the next start");
        }
        if tokio::time::timeout(FLUSH_MAX, inner.spool.flushed()).await.is_err() {
            tracing::warn!(
                "the order spool does not answer; orders that said `durable: no` may be lost"
            );
        }
        inner.closing.cancel();
        if let Some(listener) = self.listener.take() {
            // It ends with the last connection, or at its own bound.
            let _ = tokio::task::spawn_blocking(move || listener.join()).await;
        }
        // The ledger closes with its last handle, and writes what waits before it does.
        let closing = tokio::task::spawn_blocking(move || drop(self));
        if tokio::time::timeout(FLUSH_MAX, closing).await.is_err() {
            tracing::warn!("the ledger does not close; its log is read at the next start");
        }
    }
}
