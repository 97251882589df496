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

impl Entry {
    /// An order of one scope can stand under one name with several ranges.
    fn key(&self) -> (Timestamp, OrderId, Option<&VersionRange>) {
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
        let index = self.chunk_of(&entry).min(self.chunks.len() - 1);
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
        let index = self.chunk_of(entry);
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let Ok(place) = chunk.binary_search_by(|other| other.key().cmp(&entry.key())) else {
            return;
        };
        Arc::make_mut(chunk).remove(place);
        if chunk.is_empty() {
            self.chunks.remove(index);
        }
    }

    /// The first chunk whose last entry is not before `entry`.
    fn chunk_of(&self, entry: &Entry) -> usize {
        let before =
            |chunk: &Arc<Vec<Entry>>| chunk.last().is_some_and(|last| last.key() < entry.key());
        self.chunks.partition_point(before)
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
            prop_assert_eq!(found, naive.into_iter().collect::<Vec<_>>());
            prop_assert!(sorted.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
        }
    }
}
