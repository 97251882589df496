//! Signals that are the agent's: whoever signals the supervisor means the command that it wraps.

use std::{future::poll_fn, io, task::Poll};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// The supervisor's signals that are passed on.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Starts to take signals instead of ending by them.
    pub(crate) fn new() -> io::Result<Self> {
        [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::WINCH, SignalKind::window_change()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ]
        .into_iter()
        .map(|(name, kind)| Ok((name, signal(kind)?)))
        .collect::<io::Result<Vec<_>>>()
        .map(Self)
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Signal {
        poll_fn(|context| {
            self.0
                .iter_mut()
                .find_map(|(name, stream)| {
                    matches!(stream.poll_recv(context), Poll::Ready(Some(()))).then_some(*name)
                })
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
