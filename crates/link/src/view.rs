//! What enforcement code asks: may this subject act? (Invariant *hot-path-is-local*.)
//!
//! A check reads one atomic pointer and the boot clock and looks into an index: no lock, no
//! allocation, no disk, no network. The lease is judged at each check, so that an enforcer refuses
//! the moment its lease is over, whatever its tasks are doing; so is the end of a break-glass.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use estoppel_killswitch::{Verdicts, reaches};
use estoppel_model::{Boottime, Clock, Limit, Order, OrderBody, Subject, Untrusted};

use crate::OnLost;

/// The orders in force and the lease, as they are at the moment of each call. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(crate) published: Arc<ArcSwap<Published>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) on_lost: OnLost,
}

/// What checks are judged by until the next publication.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    pub(crate) verdicts: Verdicts,
    /// When the lease is over; `None` before the first.
    pub(crate) lease_until: Option<Boottime>,
    /// Until when a break-glass lets agents go on.
    pub(crate) goes_on_until: Option<Boottime>,
    /// What was kept over the restart is damaged: a halt may be missing, so nothing goes before a
    /// server has said what is ordered.
    pub(crate) doubted: bool,
    /// Whom to call, in the owner's words.
    pub(crate) contact: Option<Arc<str>>,
}

/// Why a subject must not act.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// A halt reaches it.
    #[error("halted by {} since {}: {} (order {})", .0.issued_by, .0.issued_at, inline(&.0.reason), .0.id)]
    Halted(Arc<Order>),
    /// An order of a kind that this version does not know reaches it.
    #[error("order {} is of a kind that this version does not know: update this enforcer", .0.id)]
    Unsupported(Arc<Order>),
    /// The lease is over: no server has answered for too long.
    #[error("no server has answered for longer than the lease")]
    LeaseLost,
    /// No server has answered since the start.
    #[error("no server has been reached yet")]
    NotYetConnected,
}

/// The reason of an order on one line.
fn inline(reason: &str) -> String {
    Untrusted::new(reason).inline(300)
}

impl View {
    /// Whether the subject may act now.
    ///
    /// # Errors
    /// The [`Refusal`]; a halt goes before a lost lease.
    #[inline]
    pub fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        let published = self.published.load();
        if let Some(order) = published.verdicts.check(subject) {
            let order = Arc::clone(order);
            return Err(match order.body {
                OrderBody::Unsupported => Refusal::Unsupported(order),
                _ => Refusal::Halted(order),
            });
        }
        let now = self.clock.boottime();
        if published.lease_until.is_some_and(|until| now < until) || self.goes_on(&published, now) {
            return Ok(());
        }
        Err(match published.lease_until {
            Some(_) => Refusal::LeaseLost,
            None => Refusal::NotYetConnected,
        })
    }

    /// Whether agents go on without a lease. By the owner's choice or by a break-glass: a halt that
    /// may be missing forbids both.
    fn goes_on(&self, published: &Published, now: Boottime) -> bool {
        let by_glass = published.goes_on_until.is_some_and(|until| now < until);
        (self.on_lost == OnLost::Allow || by_glass) && !published.doubted
    }

    /// The earliest order that blocks the destination for the subject. `host` is in the normal form
    /// of [`estoppel_model::Destination`].
    pub fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<Arc<Order>> {
        self.published.load().verdicts.blocked(subject, host, port).cloned()
    }

    /// The strictest of the limits that reach the subject.
    pub fn limit(&self, subject: &Subject) -> Limit {
        self.published.load().verdicts.limit(subject)
    }

    /// The earliest order by which the subject is watched closely.
    pub fn watched(&self, subject: &Subject) -> Option<Arc<Order>> {
        self.published.load().verdicts.watched(subject).cloned()
    }

    /// Whom people are to call about a refusal, in the words of the servers' owner. Printed only
    /// through [`Untrusted`]: the owner's hand may slip.
    pub fn contact(&self) -> Option<Untrusted<Arc<str>>> {
        self.published.load().contact.clone().map(Untrusted::new)
    }

    /// Whether the order stops the subject and has not ended.
    pub fn halted_by(&self, order: &Order, subject: &Subject) -> bool {
        reaches(order, subject) && self.published.load().verdicts.halts(order)
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = self.published.load();
        f.debug_struct("View")
            .field("in_force", &published.verdicts.in_force())
            .field("lease_until", &published.lease_until)
            .field("on_lost", &self.on_lost)
            .finish_non_exhaustive()
    }
}
