//! Keys that are to be looked at: those that are next, those that wait, and for how long.

use std::collections::BTreeSet;

use estoppel_model::{Scope, Timestamp};

use super::value::Key;

/// Keys that are looked at in one exchange with Redis.
pub(super) const BATCH: usize = 256;
/// Keys that Redis named and that are kept in mind; a walk over all keys finds the others.
const NAMED_MAX: usize = 65_536;

/// Keys that are to be looked at.
#[derive(Debug)]
pub(super) struct Backlog {
    next: BTreeSet<Key>,
    /// Keys that could not be settled: a write was refused, a halt has to wait.
    later: BTreeSet<Key>,
    since: Option<Timestamp>,
    global: Key,
    /// Keys to take alone, after a batch in which one was changed meanwhile.
    single: usize,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            next: BTreeSet::new(),
            later: BTreeSet::new(),
            since: None,
            global: Key::of(&Scope::Global),
            single: 0,
        }
    }
}

impl Backlog {
    /// Keys of orders, of which none may be forgotten.
    pub(super) fn ordered(&mut self, keys: impl IntoIterator<Item = Key>, now: Timestamp) {
        self.next.extend(keys);
        if !self.next.is_empty() {
            self.since.get_or_insert(now);
        }
    }

    /// A key that Redis named; `false` when there is no room.
    pub(super) fn named(&mut self, key: Key, now: Timestamp) -> bool {
        if self.next.len() >= NAMED_MAX && key != self.global && !self.next.contains(&key) {
            return false;
        }
        self.ordered([key], now);
        true
    }

    /// Puts a key off to the next [`Backlog::again`]; `false` when there is no room.
    pub(super) fn put_off(&mut self, key: Key) -> bool {
        if self.later.len() >= NAMED_MAX && !self.later.contains(&key) {
            return false;
        }
        self.later.insert(key);
        true
    }

    /// Takes some of what was put off up again.
    pub(super) fn again(&mut self) {
        for _ in 0..BATCH {
            let Some(key) = self.later.pop_first() else { return };
            self.next.insert(key);
        }
    }

    /// The keys for one exchange; that of everything first.
    pub(super) fn batch(&mut self) -> Vec<Key> {
        let size = if self.single > 0 { 1 } else { BATCH };
        self.single = self.single.saturating_sub(1);
        let mut keys: Vec<Key> = self.next.take(&self.global).into_iter().collect();
        while keys.len() < size {
            let Some(key) = self.next.pop_first() else { break };
            keys.push(key);
        }
        keys
    }

    /// One of these changed while they were looked at: each is to be taken alone.
    pub(super) fn disturbed(&mut self, keys: impl IntoIterator<Item = Key>) {
        let before = self.next.len();
        self.next.extend(keys);
        self.single = self.single.max(self.next.len() - before).max(1);
    }

    /// Whether nothing is to be looked at now.
    pub(super) fn is_idle(&self) -> bool {
        self.next.is_empty()
    }

    /// How many keys are not settled, and since when; to be asked when [`Backlog::is_idle`] may have
    /// changed.
    pub(super) fn behind(&mut self) -> (usize, Option<Timestamp>) {
        let behind = self.next.len() + self.later.len();
        if behind == 0 {
            self.since = None;
        }
        (behind, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key::parse(format!("kill_switch:session:{n:06}").as_bytes()).unwrap()
    }

    /// Row K1: a flood of keys neither grows without bound nor stands before a global halt.
    #[test]
    fn the_key_of_everything_comes_first_and_always_fits() {
        let mut backlog = Backlog::default();
        let now = Timestamp::from_micros(1);
        assert_eq!((0..NAMED_MAX + 10).filter(|n| backlog.named(key(*n), now)).count(), NAMED_MAX);
        let global = Key::of(&Scope::Global);
        assert!(backlog.named(global.clone(), now));
        let batch = backlog.batch();
        assert_eq!((batch.len(), &batch[0]), (BATCH, &global));
        assert_eq!(backlog.behind(), (NAMED_MAX + 1 - BATCH, Some(now)));
    }

    #[test]
    fn disturbed_keys_are_taken_one_by_one() {
        let mut backlog = Backlog::default();
        backlog.ordered((0..10).map(key), Timestamp::from_micros(1));
        let batch = backlog.batch();
        assert_eq!(batch.len(), 10);
        backlog.disturbed(batch);
        for _ in 0..10 {
            assert_eq!(backlog.batch().len(), 1);
        }
        assert!(backlog.is_idle());
        assert!(backlog.put_off(key(1)));
        assert_eq!((backlog.is_idle(), backlog.behind().0), (true, 1));
        backlog.again();
        assert_eq!(backlog.batch(), [key(1)]);
        assert_eq!(backlog.behind(), (0, None));
    }
}
