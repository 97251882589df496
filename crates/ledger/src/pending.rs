//! An append that is on its way to the disk.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use tokio::sync::oneshot;

use crate::{Appended, LedgerError};

/// Resolves once the record is durable, or it is sure that it was not acknowledged.
///
/// Dropping it does not take the append back.
#[must_use = "the record is durable only once this has resolved"]
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Appended, LedgerError>>);

impl Pending {
    pub(crate) const fn new(reply: oneshot::Receiver<Result<Appended, LedgerError>>) -> Self {
        Self(reply)
    }

    pub(crate) fn refused(error: LedgerError) -> Self {
        let (sender, reply) = oneshot::channel();
        // The receiver is right here.
        let _ = sender.send(Err(error));
        Self(reply)
    }

    /// Blocks the thread until the append has resolved. Meant for threads without a runtime; an
    /// async task awaits instead.
    ///
    /// # Errors
    /// As awaiting it.
    pub fn wait(mut self) -> Result<Appended, LedgerError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(result) => return result,
                Poll::Pending => thread::park(),
            }
        }
    }
}

impl Future for Pending {
    type Output = Result<Appended, LedgerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A writer that is gone without an answer has not committed.
        Pin::new(&mut self.0).poll(context).map(|reply| reply.unwrap_or(Err(LedgerError::Closed)))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
