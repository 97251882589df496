//! A map that forgets what was used longest ago, so that nobody can fill the memory.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// A map of at most `max` entries; a further one takes the place of the one untouched longest.
#[derive(Debug, Clone)]
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    max: usize,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    pub(crate) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0, max: max.max(1) }
    }

    /// The entry of a key, made if it is not there; touched in any case. Says whether it was made.
    pub(crate) fn touch(&mut self, key: &K, make: impl FnOnce() -> V) -> (bool, &mut V) {
        self.uses += 1;
        let uses = self.uses;
        let fresh = !self.entries.contains_key(key);
        if fresh
            && self.entries.len() >= self.max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
        let (used, value) = self.entries.entry(key.clone()).or_insert_with(|| (uses, make()));
        self.by_use.remove(used);
        self.by_use.insert(uses, key.clone());
        *used = uses;
        (fresh, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_is_forgotten() {
        let mut recent = Recent::new(2);
        for key in ["a", "b", "a", "c"] {
            recent.touch(&key, || 0);
        }
        let mut keys: Vec<_> = recent.entries.keys().copied().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["a", "c"]);
        assert!(recent.touch(&"b", || 0).0, "b was forgotten");
        assert!(!recent.touch(&"b", || 0).0);
        for key in 0..10_000 {
            recent.touch(&["a", "b", "c", "d"][key % 4], || 0);
        }
        assert_eq!((recent.entries.len(), recent.by_use.len()), (2, 2));
    }
}
