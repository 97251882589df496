//! The API's listener.
//!
//! While the server drains, who connects anew is told so: `/healthz` and `/readyz` answer until the
//! end, everything else is refused in words.
//!
//! A client that closes its side right behind its request (`curl` that is interrupted, a script that
//! does not wait) is served all the same: without half-closed connections hyper would drop such a
//! request before a handler has seen it, and a halt with it.

use std::{sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

use super::tls::Tls;
use crate::Server;

/// How long a client may take for the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long to wait when no connection can be accepted, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// One address that the API is served at.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listener: std::net::TcpListener,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<Arc<Tls>>,
    /// What is served there.
    pub(crate) app: axum::Router,
    /// What is served to who connects while the server drains.
    pub(crate) draining: axum::Router,
}

/// Serves until the server closes, and then for at most `end_max`.
pub(crate) async fn serve(server: Server, door: Door, end_max: Duration) {
    let listener = match TcpListener::from_std(door.listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the API cannot listen"),
    };
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.closing() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Frames and answers are small and must not wait for more.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection ended at once");
                }
                let late = server.is_draining();
                let app = if late { door.draining.clone() } else { door.app.clone() };
                let service = Service { server: server.clone(), app, late };
                match door.tls.clone() {
                    None => connections.spawn(connection(service, stream)),
                    Some(tls) => connections.spawn(secured(service, tls, stream)),
                };
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(end_max, connections.wait()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// What one connection is served.
struct Service {
    server: Server,
    app: axum::Router,
    /// It came while the server drained.
    late: bool,
}

impl Service {
    /// Resolves when no more requests are taken on the connection.
    async fn ends(&self) {
        if self.late {
            self.server.closing().await;
        } else {
            self.server.draining().await;
        }
    }
}

/// As [`connection`], behind a handshake, which the end does not wait for.
async fn secured(service: Service, tls: Arc<Tls>, stream: TcpStream) {
    let shaken = tokio::select! {
        shaken = tls.accept(stream) => shaken,
        () = service.ends() => None,
    };
    if let Some(stream) = shaken {
        connection(service, stream).await;
    }
}

async fn connection<S>(service: Service, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.app.clone()))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = service.ends() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
