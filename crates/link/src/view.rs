//! What the enforcement code asks: may this subject act? Lock-free, without network or disk.

use std::sync::Arc;

use estoppel_model::{Limit, Order, Subject};

/// The orders in force and the lease, as they are at the moment of each call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct View {}

/// Why a subject must not act.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// A halt reaches it.
    #[error("halted by order {}", .0.id)]
    Halted(Arc<Order>),
    /// An order of a kind that this version does not know reaches it.
    #[error("order {} is of a kind that this version does not know", .0.id)]
    Unsupported(Arc<Order>),
    /// The lease is over: no server has answered for too long.
    #[error("no server has answered for longer than the lease")]
    LeaseLost,
    /// No server has been reached since the start.
    #[error("no server has been reached yet")]
    NotYetConnected,
}

impl View {
    /// Whether the subject may act now.
    ///
    /// # Errors
    /// The [`Refusal`], halts first.
    pub fn check(&self, _subject: &Subject) -> Result<(), Refusal> {
        Err(Refusal::NotYetConnected)
    }

    /// The earliest order that blocks the destination for the subject. `host` is in the normal form
    /// of [`estoppel_model::Destination`].
    pub fn blocked(&self, _subject: &Subject, _host: &str, _port: u16) -> Option<Arc<Order>> {
        None
    }

    /// The strictest of the limits that reach the subject.
    pub fn limit(&self, _subject: &Subject) -> Limit {
        Limit::default()
    }

    /// Whether this order is a halt in force that reaches the subject.
    pub fn halted_by(&self, _order: &Order, _subject: &Subject) -> bool {
        false
    }
}
