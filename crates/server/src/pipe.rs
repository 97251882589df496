//! Answers that are files: written by a thread that blocks, read at the client's pace.
//!
//! What is in between is bounded. A client that takes nothing for a minute ends the answer, and so
//! does the server's end: it breaks off, which its length shows.

use std::{io, time::Duration};

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;

use crate::Server;

/// Pieces that wait for the client.
const WAITING_MAX: usize = 4;
const PIECE_BYTES: usize = 64 * 1024;
/// How long the client may take for one piece.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What the thread writes to.
#[derive(Debug)]
pub(crate) struct Pipe {
    server: Server,
    to: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Pipe {
    fn send(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = self.to.send_timeout(piece, STALL_MAX);
        match self.server.work().block_on(self.server.0.draining.run_until_cancelled(sent)) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => {
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client takes no more"))
            }
            None => Err(io::Error::other("the server is ending")),
        }
    }
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        self.send(Ok(piece.into()))
    }
}

/// The body that `write` writes, on a thread that may block. When it fails the body breaks off.
pub(crate) fn body(
    server: &Server,
    write: impl FnOnce(&mut Pipe) -> io::Result<()> + Send + 'static,
) -> Body {
    let (to, from) = mpsc::channel(WAITING_MAX);
    let mut pipe = Pipe { server: server.clone(), to, piece: Vec::new() };
    let writing = move || {
        if let Err(error) = write(&mut pipe).and_then(|()| io::Write::flush(&mut pipe)) {
            tracing::warn!(%error, "an answer broke off");
            // Who is gone cannot be told.
            let _ = pipe.to.try_send(Err(error));
        }
    };
    server.tasks().spawn_blocking_on(writing, server.work());
    Body::from_stream(futures_util::stream::unfold(from, |mut from| async {
        from.recv().await.map(|piece| (piece, from))
    }))
}
