//! What supervising needs of a [`Link`]; a trait, so that its decisions are tested without a server.

use estoppel_link::{
    Link, LinkError, LocalHalt, Refusal,
    frame::{Outcome, Settlement},
};
use estoppel_model::{Order, OrderId, Subject};

/// The orders in force, and where to report to.
pub trait Orders: Clone + Send + Sync + 'static {
    /// Whether the subject may act now: [`estoppel_link::View::check`].
    ///
    /// # Errors
    /// Why it must not.
    fn check(&self, subject: &Subject) -> Result<(), Refusal>;

    /// Whether the order is a halt in force that reaches the subject.
    fn halted_by(&self, order: &Order, subject: &Subject) -> bool;

    /// Says that an order was carried out.
    fn settled(&self, order: OrderId, settlement: Settlement);

    /// Says what an action came to.
    fn outcome(&self, outcome: Outcome);

    /// Puts a halt in force here at once.
    ///
    /// # Errors
    /// When the order is no halt or cannot be signed.
    fn halt_locally(&self, order: Order) -> Result<LocalHalt, LinkError>;
}

impl Orders for Link {
    fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        self.view().check(subject)
    }

    fn halted_by(&self, order: &Order, subject: &Subject) -> bool {
        self.view().halted_by(order, subject)
    }

    fn settled(&self, order: OrderId, settlement: Settlement) {
        Link::settled(self, order, settlement);
    }

    fn outcome(&self, outcome: Outcome) {
        Link::outcome(self, outcome);
    }

    fn halt_locally(&self, order: Order) -> Result<LocalHalt, LinkError> {
        Link::halt_locally(self, order)
    }
}
