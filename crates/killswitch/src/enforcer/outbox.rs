//! The frames of a step on their way to the server.

use std::collections::VecDeque;

use crate::frame::{Stage, ToServer};

/// The frames of a step and of what follows from it at once, first in, first out.
///
/// What has settled refuses: where both words on an order are in here, the second takes the place of
/// the first. So an enforcer that has nothing in flight says one word, and a server of thousands
/// hears half as many.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<ToServer>,
}

impl Outbox {
    /// Adds a frame.
    pub fn push(&mut self, frame: ToServer) {
        if let ToServer::Confirm(word) = &frame
            && word.stage == Stage::Settled
        {
            let is_first = |waiting: &&mut ToServer| matches!(waiting, ToServer::Confirm(first) if first.order == word.order && first.stage == Stage::Refusing);
            if let Some(first) = self.frames.iter_mut().rev().find(is_first) {
                *first = frame;
                return;
            }
        }
        self.frames.push_back(frame);
    }

    /// Takes the next one out.
    pub fn pop(&mut self) -> Option<ToServer> {
        self.frames.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use estoppel_model::{OrderId, Timestamp};

    use super::*;
    use crate::frame::{Confirmation, Settlement};

    fn word(order: OrderId, stage: Stage) -> ToServer {
        let (at, settlement) = (Timestamp::from_micros(0), Settlement::default());
        ToServer::Confirm(Box::new(Confirmation { order, stage, at, after_us: 0, settlement }))
    }

    fn drained(mut outbox: Outbox) -> Vec<ToServer> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    /// Invariant *confirmed*: what is left out was said by what took its place.
    #[test]
    fn the_last_word_takes_the_place_of_the_first_of_its_order() {
        let (one, two) = (OrderId::new(), OrderId::new());
        let mut outbox = Outbox::default();
        for frame in [
            word(one, Stage::Refusing),
            ToServer::Ping { nonce: 1 },
            word(two, Stage::Unsupported),
            word(one, Stage::Settled),
            word(two, Stage::Settled),
            word(one, Stage::Settled),
        ] {
            outbox.push(frame);
        }
        let expected = [
            word(one, Stage::Settled),
            ToServer::Ping { nonce: 1 },
            // That an order is not understood is nowhere else.
            word(two, Stage::Unsupported),
            word(two, Stage::Settled),
            word(one, Stage::Settled),
        ];
        assert_eq!(drained(outbox), expected);
    }

    #[test]
    fn a_word_that_has_left_is_not_taken_back() {
        let order = OrderId::new();
        let mut outbox = Outbox::default();
        outbox.push(word(order, Stage::Refusing));
        assert_eq!(outbox.pop(), Some(word(order, Stage::Refusing)));
        outbox.push(word(order, Stage::Settled));
        assert_eq!(drained(outbox), [word(order, Stage::Settled)]);
    }
}
