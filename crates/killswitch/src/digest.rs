//! A digest of a set of orders that is kept up to date order by order and tells where two sets
//! differ.
//!
//! An order falls into one of 256 buckets by the first byte of SHA-256 over its id. A bucket's
//! digest is the wrapping sum of the first eight bytes of SHA-256 over each order's text: the order
//! of arrival does not matter. The root is SHA-256 over the buckets.
//!
//! It finds differences, it proves nothing: whoever may add orders could make two sums collide.
//! What one enforcer is made to miss in this way is only its own orders.

use estoppel_model::{OrderId, SignedOrder};
use sha2::{Digest as _, Sha256};

use crate::frame::SetDigest;

const BUCKETS: usize = 256;

/// What one order adds to a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) bucket: u8,
    addend: u64,
}

impl Mark {
    pub(crate) fn of(id: OrderId, signed: &SignedOrder) -> Self {
        let bucket = Sha256::digest(id.as_bytes())[0];
        let text = Sha256::digest(signed.order.as_bytes());
        let (first, _) = text.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        Self { bucket, addend: u64::from_be_bytes(*first) }
    }
}

/// Digest of a set of orders.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest {
    count: u64,
    buckets: Box<[u64; BUCKETS]>,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SetDigest { count, root } = self.summary();
        f.debug_struct("Digest").field("count", &count).field("root", &root).finish_non_exhaustive()
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self { count: 0, buckets: Box::new([0; BUCKETS]) }
    }
}

impl Digest {
    pub(crate) fn add(&mut self, mark: Mark) {
        self.count += 1;
        let bucket = &mut self.buckets[usize::from(mark.bucket)];
        *bucket = bucket.wrapping_add(mark.addend);
    }

    /// Count and root, as a hello carries them.
    pub fn summary(&self) -> SetDigest {
        let mut hasher = Sha256::new();
        for bucket in self.buckets.iter() {
            hasher.update(bucket.to_be_bytes());
        }
        SetDigest { count: self.count, root: hex(&hasher.finalize()) }
    }

    /// The buckets, as a welcome carries them.
    pub fn buckets(&self) -> Vec<String> {
        self.buckets.iter().map(|bucket| format!("{bucket:016x}")).collect()
    }

    /// The buckets in which this digest differs from what a welcome carried. A text that is no
    /// bucket's digest counts as different.
    pub fn differing(&self, theirs: &[String]) -> Vec<u8> {
        (0..=u8::MAX)
            .filter(|bucket| {
                let theirs = theirs.get(usize::from(*bucket));
                let theirs = theirs.and_then(|text| u64::from_str_radix(text, 16).ok());
                theirs != Some(self.buckets[usize::from(*bucket)])
            })
            .collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{halt, signed};

    #[test]
    fn equal_sets_have_equal_digests_in_any_order() {
        let marks: Vec<Mark> = (0..100)
            .map(|n| {
                let order = halt(n, &["global"], None);
                Mark::of(order.id, &signed(&order))
            })
            .collect();
        let fold = |marks: &mut dyn Iterator<Item = &Mark>| {
            let mut digest = Digest::default();
            marks.for_each(|mark| digest.add(*mark));
            digest
        };
        let forward = fold(&mut marks.iter());
        let backward = fold(&mut marks.iter().rev());
        assert_eq!(forward.summary(), backward.summary());
        assert_eq!(forward.differing(&backward.buckets()), [] as [u8; 0]);
        let without_first = fold(&mut marks.iter().skip(1));
        assert_eq!(forward.differing(&without_first.buckets()), [marks[0].bucket]);
        assert_ne!(forward.summary(), without_first.summary());
    }

    #[test]
    fn what_is_no_bucket_counts_as_different() {
        let digest = Digest::default();
        assert_eq!(digest.differing(&[]).len(), 256);
        let mut theirs = digest.buckets();
        theirs[7] = "not hex".to_owned();
        assert_eq!(digest.differing(&theirs), [7]);
    }
}
