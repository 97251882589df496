//! A hash map whose copies share what has not changed, so that a new verdict over 100,000 orders is
//! published in microseconds while readers keep the old one.
//!
//! Two fixed levels of 64 slots, then a bucket sorted by hash: a look-up is two loads and a short
//! search, a change copies two arrays of pointers and one bucket. It is made for up to about a
//! million keys. The hash is fast and seeded at random, which is enough: agents choose what is
//! looked up, while what is here was ordered, at a bounded rate where it is ordered by itself.

use std::{
    hash::{BuildHasher as _, Hash},
    sync::Arc,
};

use foldhash::quality::RandomState;

const SLOTS: usize = 64;

type Bucket<K, V> = Vec<(u64, Arc<(K, V)>)>;
type Slots<T> = [Arc<T>; SLOTS];

#[derive(Debug)]
pub(crate) struct CowMap<K, V> {
    root: Arc<Slots<Slots<Bucket<K, V>>>>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), hasher: self.hasher.clone(), len: self.len }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        let bucket = Arc::new(Vec::new());
        let slots = Arc::new(std::array::from_fn(|_| Arc::clone(&bucket)));
        let root = Arc::new(std::array::from_fn(|_| Arc::clone(&slots)));
        Self { root, hasher: RandomState::default(), len: 0 }
    }
}

/// The slots of a hash on the two levels.
const fn path(hash: u64) -> (usize, usize) {
    ((hash >> 58) as usize, (hash >> 52) as usize % SLOTS)
}

/// A borrowed form of a key. It must hash as the key does.
pub(crate) trait Matches<K>: Hash {
    fn matches(&self, key: &K) -> bool;
}

impl<K, V> CowMap<K, V> {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &impl Matches<K>) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let (first, second) = path(hash);
        let bucket = &self.root[first][second];
        let place = position(bucket, hash, |own| key.matches(own)).ok()?;
        Some(&bucket[place].1.1)
    }
}

impl<K: Hash + Eq + Clone, V: Clone + Default> CowMap<K, V> {
    /// Changes the value of a key, the default where there was none; keeps it if `change` says so.
    pub(crate) fn update(&mut self, key: K, change: impl FnOnce(&mut V) -> Keep) {
        let hash = self.hasher.hash_one(&key);
        let (first, second) = path(hash);
        let slots = Arc::make_mut(&mut Arc::make_mut(&mut self.root)[first]);
        let bucket = Arc::make_mut(&mut slots[second]);
        let place = match position(bucket, hash, |own| *own == key) {
            Ok(place) => place,
            Err(place) => {
                bucket.insert(place, (hash, Arc::new((key, V::default()))));
                self.len += 1;
                place
            }
        };
        if change(&mut Arc::make_mut(&mut bucket[place].1).1) == Keep::No {
            bucket.remove(place);
            self.len -= 1;
        }
    }
}

/// Where a key is, or where it would go.
fn position<K, V>(
    bucket: &[(u64, Arc<(K, V)>)],
    hash: u64,
    is: impl Fn(&K) -> bool,
) -> Result<usize, usize> {
    let from = bucket.partition_point(|(other, _)| *other < hash);
    bucket[from..]
        .iter()
        .take_while(|(other, _)| *other == hash)
        .position(|(_, pair)| is(&pair.0))
        .map_or(Err(from), |offset| Ok(from + offset))
}

/// Whether a value stays in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Matches<u16> for u16 {
        fn matches(&self, key: &u16) -> bool {
            self == key
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_hash_map_holds_and_copies_stay(
            steps in proptest::collection::vec((0_u16..300, 0_u8..4), 0..600),
        ) {
            let (mut map, mut naive) = (CowMap::<u16, u8>::default(), HashMap::new());
            let mut copies = Vec::new();
            for (key, value) in steps {
                if value == 0 {
                    map.update(key, |_| Keep::No);
                    naive.remove(&key);
                } else {
                    map.update(key, |slot| { *slot = value; Keep::Yes });
                    naive.insert(key, value);
                }
                if copies.len() < 20 {
                    copies.push((map.clone(), naive.clone()));
                }
            }
            copies.push((map, naive));
            for (map, naive) in copies {
                prop_assert_eq!(map.len(), naive.len());
                for key in 0..300 {
                    prop_assert_eq!(map.get(&key), naive.get(&key));
                }
            }
        }
    }
}
