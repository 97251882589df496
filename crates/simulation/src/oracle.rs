//! What must be true of a world, from what was ordered and what agents may do.
//!
//! It does not look into the machines. An order counts from the moment at which the promise begins:
//! with one server when that took it, with several when the ledger had it. It stops to count when
//! every copy that could be asked for is gone: an order that nobody acknowledged may be lost with
//! the machine that had it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use estoppel_killswitch::reaches;
use estoppel_model::{Order, OrderBody, OrderId, Subject};

use crate::machine::DRIFT_APART_PPM;

/// An order that somebody gave.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) order: Arc<Order>,
    /// Since when nobody may act for longer than a lease whom it reaches.
    pub(crate) since: Option<Duration>,
    /// The subjects that it reaches, by number.
    pub(crate) reached: Vec<usize>,
}

impl Given {
    pub(crate) fn is_halt(&self) -> bool {
        matches!(self.order.body, OrderBody::Halt { .. })
    }
}

/// Everything that was ordered.
#[derive(Debug)]
pub(crate) struct Oracle {
    pub(crate) subjects: Vec<Subject>,
    /// In the order of ids, which is that of time.
    pub(crate) given: BTreeMap<OrderId, Given>,
    /// What releases name that the ledger has had.
    released: BTreeSet<OrderId>,
    /// The longest that a halt may take to hold.
    pub(crate) bound: Duration,
}

impl Oracle {
    pub(crate) fn new(subjects: Vec<Subject>, lease: Duration) -> Self {
        // What two clocks differ over a lease, twice: a server's staleness is measured, too.
        let drift = lease * DRIFT_APART_PPM / 1_000_000 * 2;
        Self {
            subjects,
            given: BTreeMap::new(),
            released: BTreeSet::new(),
            bound: lease + drift + Duration::from_millis(1),
        }
    }

    /// Somebody gave an order, and it may be anywhere from now on.
    pub(crate) fn gave(&mut self, order: &Order) {
        let reached = self.subjects.iter().enumerate();
        let reached = reached.filter(|(_, subject)| reaches(order, subject)).map(|(at, _)| at);
        let given =
            Given { order: Arc::new(order.clone()), since: None, reached: reached.collect() };
        self.given.entry(order.id).or_insert(given);
    }

    /// The promise begins, if it did not before.
    pub(crate) fn counts_since(&mut self, order: OrderId, time: Duration) -> bool {
        let Some(given) = self.given.get_mut(&order) else { return false };
        let begins = given.since.is_none();
        given.since.get_or_insert(time);
        begins
    }

    /// Every copy that could be asked for is gone.
    pub(crate) fn lost(&mut self, is_lost: impl Fn(OrderId) -> bool) {
        for (id, given) in &mut self.given {
            if is_lost(*id) {
                given.since = None;
            }
        }
    }

    /// The ledger has a release.
    pub(crate) fn recorded(&mut self, order: &Order) {
        if let OrderBody::Release { orders } = &order.body {
            self.released.extend(orders);
        }
    }

    pub(crate) fn is_released(&self, order: OrderId) -> bool {
        self.released.contains(&order)
    }

    /// The halts that no release names.
    pub(crate) fn standing(&self) -> impl Iterator<Item = &Given> {
        self.given
            .iter()
            .filter(|(id, given)| given.is_halt() && !self.released.contains(id))
            .map(|(_, given)| given)
    }
}
