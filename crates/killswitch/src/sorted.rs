//! Orders sorted by time and id, in chunks that copies share: a change copies one chunk, also among
//! 100,000 orders of one scope.

use std::sync::Arc;

use estoppel_model::{Order, OrderId, Timestamp, VersionRange};

/// Longest chunk; a fuller one is split in two.
const CHUNK_MAX: usize = 128;

/// An order under one of its scopes.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) order: Arc<Order>,
    /// The versions that the scope names, of a plugin's.
    pub(crate) range: Option<VersionRange>,
}

/// What entries are sorted by. One order can stand under one name with several ranges.
type Key<'a> = (Timestamp, OrderId, Option<&'a VersionRange>);

impl Entry {
    fn key(&self) -> Key<'_> {
        (self.order.issued_at, self.order.id, self.range.as_ref())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Sorted {
    /// None of them is empty.
    chunks: Vec<Arc<Vec<Entry>>>,
}

impl Sorted {
    pub(crate) fn insert(&mut self, entry: Entry) {
        if self.chunks.is_empty() {
            self.chunks.push(Arc::new(vec![entry]));
            return;
        }
        let index = self.chunk_of(entry.key()).min(self.chunks.len() - 1);
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let Err(place) = chunk.binary_search_by(|other| other.key().cmp(&entry.key())) else {
            return;
        };
        chunk.insert(place, entry);
        if chunk.len() > CHUNK_MAX {
            let tail = chunk.split_off(CHUNK_MAX / 2);
            self.chunks.insert(index + 1, Arc::new(tail));
        }
    }

    pub(crate) fn remove(&mut self, entry: &Entry) {
        let index = self.chunk_of(entry.key());
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let Ok(place) = chunk.binary_search_by(|other| other.key().cmp(&entry.key())) else {
            return;
        };
        Arc::make_mut(chunk).remove(place);
        if chunk.is_empty() {
            self.chunks.remove(index);
        }
    }

    /// Whether the order stands here under this range.
    pub(crate) fn contains(&self, order: &Order, range: Option<&VersionRange>) -> bool {
        let key = (order.issued_at, order.id, range);
        self.chunks
            .get(self.chunk_of(key))
            .is_some_and(|chunk| chunk.binary_search_by(|other| other.key().cmp(&key)).is_ok())
    }

    /// The first chunk whose last entry is not before the key.
    fn chunk_of(&self, key: Key<'_>) -> usize {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last.key() < key))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Earliest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::halt;

    proptest! {
        #[test]
        fn it_holds_what_a_sorted_set_holds(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..400), 0..1_500),
        ) {
            let (mut sorted, mut naive) = (Sorted::default(), BTreeSet::new());
            for (insert, n) in steps {
                let entry = Entry { order: Arc::new(halt(n, &["global"], None)), range: None };
                if insert {
                    naive.insert(entry.order.id);
                    sorted.insert(entry);
                } else {
                    naive.remove(&entry.order.id);
                    sorted.remove(&entry);
                }
            }
            let found: Vec<_> = sorted.iter().map(|entry| entry.order.id).collect();
            prop_assert_eq!(found, naive.iter().copied().collect::<Vec<_>>());
            for n in 0..400 {
                let order = halt(n, &["global"], None);
                prop_assert_eq!(sorted.contains(&order, None), naive.contains(&order.id));
            }
            prop_assert!(sorted.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
        }
    }
}
