//! What an enforcer has said of each order, to say again after a reconnect.
//!
//! Bounded: of more orders than [`ORDERS_MAX`] the latest are confirmed again (ids are in order of
//! time). A server that has 100,000 old orders needs no word on each from everyone who joins.

use std::collections::BTreeMap;

use estoppel_model::{Boottime, Order, OrderBody, OrderId};

use crate::{
    Now,
    frame::{Confirmation, Settlement, Stage},
};

/// Most orders whose confirmations are repeated.
const ORDERS_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Confirmations {
    orders: BTreeMap<OrderId, Words>,
}

#[derive(Debug)]
struct Words {
    arrived: Boottime,
    /// That new work is refused, or that the order is not supported.
    first: Confirmation,
    settled: Option<Confirmation>,
}

impl Words {
    fn new(order: OrderId, stage: Stage, now: Now) -> Self {
        let settlement = Settlement::default();
        let first = Confirmation { order, stage, at: now.wall, after_us: 0, settlement };
        Self { arrived: now.boot, first, settled: None }
    }
}

impl Confirmations {
    /// An order came into force; returns the word on it.
    pub(super) fn arrived(&mut self, order: &Order, now: Now) -> Confirmation {
        let stage = match order.body {
            OrderBody::Unsupported => Stage::Unsupported,
            _ => Stage::Refusing,
        };
        let words = Words::new(order.id, stage, now);
        let first = words.first.clone();
        self.remember(order.id, words);
        first
    }

    /// The work in flight of an order has ended; returns the word on it.
    pub(super) fn settled(
        &mut self,
        order: OrderId,
        settlement: Settlement,
        now: Now,
    ) -> Confirmation {
        if !self.orders.contains_key(&order) {
            self.remember(order, Words::new(order, Stage::Refusing, now));
        }
        let arrived = self.orders.get(&order).map_or(now.boot, |words| words.arrived);
        let after_us = u64::try_from(now.boot.since(arrived).as_micros()).unwrap_or(u64::MAX);
        let word =
            Confirmation { order, stage: Stage::Settled, at: now.wall, after_us, settlement };
        if let Some(words) = self.orders.get_mut(&order) {
            words.settled = Some(word.clone());
        }
        word
    }

    /// These orders need no word any more.
    pub(super) fn ended(&mut self, orders: &[OrderId]) {
        for order in orders {
            self.orders.remove(order);
        }
    }

    /// The words to say again, in the order of the orders: what has settled refuses.
    pub(super) fn all(&self) -> impl Iterator<Item = Confirmation> {
        let said = |words: &Words| {
            let implied = words.settled.is_some() && words.first.stage == Stage::Refusing;
            (!implied).then(|| words.first.clone()).into_iter().chain(words.settled.clone())
        };
        self.orders.values().flat_map(said)
    }

    fn remember(&mut self, order: OrderId, words: Words) {
        self.orders.insert(order, words);
        if self.orders.len() > ORDERS_MAX {
            self.orders.pop_first();
        }
    }
}
