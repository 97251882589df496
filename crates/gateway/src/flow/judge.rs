//! Who says whether a subject may go on: the orders and the lease, and the breakers.

use std::sync::Arc;

use estoppel_link::breaker::Breakers;
use estoppel_model::Subject;

use super::open::Cause;
use crate::Authority;

/// The orders, the lease, and what each task has come to. Asked at each write: it takes no lock
/// while no task is over a limit.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) breakers: Breakers,
}

impl Judge {
    /// Why the subject may not go on at this moment, wherever to.
    pub(crate) fn refusal(&self, subject: &Subject) -> Option<Cause> {
        let refused = self.authority.check(subject).err().map(Cause::from);
        let trip = self.breakers.tripped(subject).filter(|trip| trip.stops);
        match (refused, trip) {
            // Of a task that is over a limit, that is why, whoever has halted it since.
            (Some(Cause::Order(order)), Some(trip)) => {
                Some(Cause::Limit { trip, order: Some(order) })
            }
            (Some(cause), _) => Some(cause),
            (None, trip) => trip.map(|trip| Cause::Limit { trip, order: None }),
        }
    }
}
