//! What the gateway asks and tells: the orders in force, confirmations, events.
//!
//! In production that is the link to the servers. The seam is here because a gateway that is one of
//! several enforcers in a process may be driven by another source of orders.

use std::{fmt, sync::Arc};

use estoppel_link::{
    Link, Refusal, Uploader, View,
    frame::{Outcome, Settlement},
};
use estoppel_model::{Event, Limit, Order, OrderId, Subject, Untrusted};

/// The source of orders and the way of the records. No method waits for network or disk: all are
/// called on the way of an agent's bytes.
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// Whether the subject may act now.
    ///
    /// # Errors
    /// The [`Refusal`].
    fn check(&self, subject: &Subject) -> Result<(), Refusal>;

    /// The order that blocks the destination for the subject. `host` is in normal form.
    fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<Arc<Order>>;

    /// The strictest of the limits that reach the subject.
    fn limit(&self, subject: &Subject) -> Limit;

    /// Whom people are to call about a refusal; `None`: nobody was named.
    fn contact(&self) -> Option<Untrusted<Arc<str>>> {
        None
    }

    /// Says that what the order reaches here has been cut.
    fn settled(&self, order: OrderId, settlement: Settlement);

    /// Says what an action came to.
    fn outcome(&self, outcome: Outcome);

    /// Takes an event on its way to the server.
    fn record(&self, event: Event);
}

/// The link and its uploader.
#[derive(Debug, Clone)]
pub struct LinkAuthority {
    link: Link,
    view: View,
    uploader: Uploader,
}

impl LinkAuthority {
    /// Asks the link's view, confirms through the link, sends events through its uploader.
    pub fn new(link: Link) -> Self {
        Self { view: link.view(), uploader: link.uploader(), link }
    }
}

impl Authority for LinkAuthority {
    fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        self.view.check(subject)
    }

    fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<Arc<Order>> {
        self.view.blocked(subject, host, port)
    }

    fn limit(&self, subject: &Subject) -> Limit {
        self.view.limit(subject)
    }

    fn contact(&self) -> Option<Untrusted<Arc<str>>> {
        self.view.contact()
    }

    fn settled(&self, order: OrderId, settlement: Settlement) {
        self.link.settled(order, settlement);
    }

    fn outcome(&self, outcome: Outcome) {
        self.link.outcome(outcome);
    }

    fn record(&self, event: Event) {
        self.uploader.send(event);
    }
}
