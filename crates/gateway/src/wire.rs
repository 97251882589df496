//! Sockets that can be reset from outside of the task that uses them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

/// A socket that its flow holds, too, so that the flow can reset it at any moment. One task reads
/// and one writes: the socket keeps one waker for each direction.
#[derive(Debug, Clone)]
pub(crate) struct Wire(Arc<Socket>);

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// A client's place among the connections. A tunnel goes on after its request's task has ended:
    /// the place is free again when the socket is.
    _place: Option<OwnedSemaphorePermit>,
}

impl Wire {
    /// Takes a connected socket; finds a peer that has vanished within about two minutes.
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self::with_place(socket, None)
    }

    /// As [`Wire::new`], for a client's socket, which holds its place as long as it is open.
    pub(crate) fn of_client(socket: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self::with_place(socket, Some(place))
    }

    fn with_place(socket: TcpStream, place: Option<OwnedSemaphorePermit>) -> Self {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15))
            .with_retries(4);
        if let Err(error) = SockRef::from(&socket).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "no keepalive on a connection");
        }
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "no nodelay on a connection");
        }
        Self(Arc::new(Socket { stream: socket, _place: place }))
    }

    /// Resets the connection now: the peer gets RST, what lies in the send buffer is discarded, and
    /// the task that uses the socket finds it closed.
    pub(crate) fn reset(&self) {
        let socket = SockRef::from(&self.0.stream);
        // For the case that the second call fails: then closing resets.
        let lingering = socket.set_linger(Some(Duration::ZERO));
        // On Linux, connecting to no address ends a connection at once, with RST, whoever else
        // holds the socket and whatever they wait for.
        if let Err(error) = rustix::net::connect_unspec(&self.0.stream) {
            tracing::warn!(%error, ?lingering, "a connection could not be reset at once");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&self.0.stream).shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
