//! A step whose work the guard does not hold as a future: the caller carries it, on its own thread,
//! in another language or in another process.
//!
//! The guard tells such a caller of a stop ([`OnStop`]); ending the work is the caller's. What the
//! caller then says decides what the order's confirmation says: work that gave way counts as
//! cancelled, work that came to its own end has its result withheld, and work that says nothing is
//! named as not interruptible.

use std::{fmt, sync::Arc};

use crate::{denied::Denied, run::Run, step::StepHandle};

/// What a step's caller is told.
pub trait OnStop: Send + Sync {
    /// An order that reaches the step has arrived, or the lease is over. Called once at most, before
    /// anything is confirmed, from a thread of the guard's; maybe before [`crate::Guard::begin`] has
    /// returned.
    ///
    /// It stands in the way of the order's confirmation: it must not block, wait for a lock that is
    /// held for long, or call the guard.
    fn stopped(&self);
}

impl fmt::Debug for dyn OnStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnStop")
    }
}

/// Whether the caller can end a step's work before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It tries to when it is told. The order's confirmation waits a little for it.
    Interruptible,
    /// It cannot. The order's confirmation names the step at once.
    Blocking,
}

/// A step under way. Dropped without a word, it is recorded as given up, and counts as cancelled
/// where it was interruptible: drop it only when its work has ended.
#[derive(Debug)]
#[must_use = "dropped, the step is over"]
pub struct OpenStep {
    run: Run,
}

impl OpenStep {
    pub(crate) const fn new(run: Run) -> Self {
        Self { run }
    }

    /// To add to the step's record.
    pub fn handle(&self) -> StepHandle {
        self.run.handle()
    }

    /// Whether the step is stopped.
    pub fn is_stopped(&self) -> bool {
        self.run.is_stopped()
    }

    /// Why the step is stopped, if it is.
    pub fn stopped_by(&self) -> Option<Denied> {
        self.run.denied()
    }

    /// The work has come to its own end.
    ///
    /// # Errors
    /// When the step was stopped meanwhile: the result is to be withheld.
    pub fn finish(self) -> Result<(), Denied> {
        // Nothing but a stop makes of an ended step an error.
        self.run.finish(()).or_else(|stopped| stopped.into_denied().map_or(Ok(()), Err))
    }

    /// The work has ended since it was told to. Returns what its caller is to be told; `None`, with
    /// a record as of a step given up, if nothing stopped it.
    pub fn gave_way(self) -> Option<Denied> {
        if self.run.is_stopped() { self.run.cancelled().into_denied() } else { None }
    }
}

/// So that a caller's shared state can be told directly.
impl<T: OnStop + ?Sized> OnStop for Arc<T> {
    fn stopped(&self) {
        (**self).stopped();
    }
}
