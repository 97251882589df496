//! The ids of the latest events: what makes a repeated event harmless.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

/// The last ids, in the order of their arrival; the oldest leaves when there are too many.
///
/// A sender that repeats an event after more than `capacity` others have come has it twice.
pub(crate) struct Window {
    known: HashSet<Uuid>,
    order: VecDeque<Uuid>,
    capacity: usize,
}

impl Window {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { known: HashSet::new(), order: VecDeque::new(), capacity: capacity.max(1) }
    }

    /// Takes an id in; says whether it is new.
    pub(crate) fn insert(&mut self, id: Uuid) -> bool {
        if !self.known.insert(id) {
            return false;
        }
        if self.order.len() == self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id);
        true
    }

    /// Takes back the newest ids, of events that were not written after all.
    pub(crate) fn forget_newest(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(id) = self.order.pop_back() {
                self.known.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_and_again_after_the_window() {
        let mut window = Window::new(2);
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        assert!(window.insert(a) && window.insert(b));
        assert!(!window.insert(a) && !window.insert(b));
        assert!(window.insert(c));
        assert!(!window.insert(b) && !window.insert(c));
        assert!(window.insert(a), "`a` has left the window");
    }

    #[test]
    fn what_was_not_written_can_come_again() {
        let mut window = Window::new(8);
        let [a, b] = [1, 2].map(Uuid::from_u128);
        assert!(window.insert(a) && window.insert(b));
        window.forget_newest(1);
        assert!(!window.insert(a) && window.insert(b));
    }
}
