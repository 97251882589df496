//! The Merkle tree of RFC 6962 §2.1: hashing, growing, proofs and their verification.
//!
//! Pure: where the hashes of complete subtrees come from is the caller's [`Subtrees`]. Both sides
//! of a proof are here, so that an enforcer or an auditor needs nothing else of this crate.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A SHA-256 hash in the tree; shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The root of the tree without leaves: the hash of nothing.
    pub fn empty_root() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// The hash of a leaf whose entry is the concatenation of `parts`.
    pub fn leaf(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update([0]);
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The hash of an inner node.
    pub fn node(left: Self, right: Self) -> Self {
        let mut hasher = Sha256::new();
        hasher.update([1]);
        hasher.update(left.0);
        hasher.update(right.0);
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The right edge of a growing tree: the roots of its complete subtrees, largest first.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The frontier of the first `size` leaves.
    ///
    /// # Errors
    /// Those of `subtrees`.
    pub fn of<S: Subtrees>(subtrees: &S, size: u64) -> Result<Self, S::Error> {
        let mut peaks = Vec::new();
        let mut start = 0;
        while start < size {
            let level = (size - start).ilog2();
            peaks.push(subtrees.subtree(level, start >> level)?);
            start += 1 << level;
        }
        Ok(Self { size, peaks })
    }

    /// How many leaves there are.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf, and tells `completed(level, index, hash)` each subtree that it completes, the
    /// leaf itself as level 0 among them.
    pub fn push(&mut self, leaf: Hash, mut completed: impl FnMut(u32, u64, Hash)) {
        let (mut hash, mut level) = (leaf, 0);
        completed(level, self.size, hash);
        // As many peaks merge as the old size has low bits set: binary addition with carry.
        while (self.size >> level) & 1 == 1 {
            let Some(left) = self.peaks.pop() else { break };
            hash = Hash::node(left, hash);
            level += 1;
            completed(level, self.size >> level, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        self.peaks
            .iter()
            .copied()
            .rev()
            .reduce(|right, left| Hash::node(left, right))
            .unwrap_or_else(Hash::empty_root)
    }
}

/// Where the hashes of complete subtrees come from.
pub trait Subtrees {
    /// Why a hash cannot be had.
    type Error;

    /// Returns the hash over the leaves `index << level .. (index + 1) << level`, all of which
    /// exist.
    ///
    /// # Errors
    /// When it cannot be had.
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Leaf hashes in memory.
impl Subtrees for [Hash] {
    type Error = std::convert::Infallible;

    fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error> {
        let mut frontier = Frontier::default();
        let start = usize::try_from(index << level).unwrap_or(usize::MAX);
        for leaf in self.iter().skip(start).take(1 << level) {
            frontier.push(*leaf, |_, _, _| {});
        }
        Ok(frontier.root())
    }
}

/// Returns the inclusion proof of leaf `index` in the tree of `size` leaves (RFC 6962 §2.1.1).
///
/// `index < size` is the caller's to see to; else the proof proves nothing.
///
/// # Errors
/// Those of `subtrees`.
pub fn inclusion<S: Subtrees + ?Sized>(
    subtrees: &S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, S::Error> {
    let (mut start, mut end) = (0, size);
    let mut proof = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            proof.push(range(subtrees, middle, end)?);
            end = middle;
        } else {
            proof.push(range(subtrees, start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Returns the proof that the tree of `old` leaves is the start of that of `new` (§2.1.2).
///
/// `0 < old <= new` is the caller's to see to; else the proof is empty.
///
/// # Errors
/// Those of `subtrees`.
pub fn consistency<S: Subtrees + ?Sized>(
    subtrees: &S,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, S::Error> {
    if old == 0 || old >= new {
        return Ok(Vec::new());
    }
    let (mut start, mut end) = (0, new);
    let mut proof = Vec::new();
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            proof.push(range(subtrees, middle, end)?);
            end = middle;
        } else {
            proof.push(range(subtrees, start, middle)?);
            start = middle;
        }
    }
    // The old tree's own root is known to whoever asks, and left out.
    if start > 0 {
        proof.push(range(subtrees, start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether `proof` shows `leaf` at `index` in the tree of `size` leaves with `root` (RFC 9162
/// §2.1.3.2).
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, root: Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for step in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = Hash::node(*step, hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = Hash::node(hash, *step);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == root
}

/// Whether `proof` shows that the tree of `new` leaves continues that of `old` (RFC 9162
/// §2.1.4.2). Every tree continues the empty one, whose root must be that of nothing.
pub fn verify_consistency(
    (old, old_root): (u64, Hash),
    (new, new_root): (u64, Hash),
    proof: &[Hash],
) -> bool {
    if old == 0 {
        return old_root == Hash::empty_root() && proof.is_empty();
    }
    if old >= new {
        return old == new && old_root == new_root && proof.is_empty();
    }
    let mut steps = proof.iter().copied();
    // A complete old tree is a node of the new one: the proof leaves it out.
    let first = if old.is_power_of_two() { Some(old_root) } else { steps.next() };
    let Some(first) = first else { return false };
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut from_old, mut from_new) = (first, first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            from_old = Hash::node(step, from_old);
            from_new = Hash::node(step, from_new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = Hash::node(from_new, step);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == old_root && from_new == new_root
}

/// The largest power of two below `count`, for `count > 1`: where RFC 6962 splits a tree.
const fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The hash over the leaves `start..end`, where `start` is where a split put it.
fn range<S: Subtrees + ?Sized>(subtrees: &S, start: u64, end: u64) -> Result<Hash, S::Error> {
    let count = end - start;
    if count.is_power_of_two() {
        let level = count.ilog2();
        return subtrees.subtree(level, start >> level);
    }
    let middle = start + split(count);
    Ok(Hash::node(range(subtrees, start, middle)?, range(subtrees, middle, end)?))
}

#[cfg(test)]
mod tests;
