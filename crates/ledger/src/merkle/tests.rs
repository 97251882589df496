use proptest::prelude::*;

use super::*;

/// The leaves of the test vectors of the Certificate Transparency project (RFC 6962).
const ENTRIES: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];

/// Their roots, for 1 to 8 leaves.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn leaves() -> Vec<Hash> {
    ENTRIES.iter().map(|entry| Hash::leaf(&[&hex::decode(entry).unwrap()])).collect()
}

/// MTH of RFC 6962 §2.1, word by word: the naive model.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::empty_root(),
        [leaf] => *leaf,
        _ => {
            let mut k = 1;
            while k * 2 < leaves.len() {
                k *= 2;
            }
            Hash::node(naive_root(&leaves[..k]), naive_root(&leaves[k..]))
        }
    }
}

fn many(count: u64) -> Vec<Hash> {
    (0..count).map(|index| Hash::leaf(&[&index.to_be_bytes()])).collect()
}

fn texts(proof: &[Hash]) -> Vec<String> {
    proof.iter().map(ToString::to_string).collect()
}

#[test]
fn the_roots_are_those_of_the_test_vectors() {
    assert_eq!(
        Hash::empty_root().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    let mut frontier = Frontier::default();
    for (leaf, root) in leaves().into_iter().zip(ROOTS) {
        frontier.push(leaf, |_, _, _| {});
        assert_eq!(frontier.root().to_string(), root);
    }
}

#[test]
fn the_proofs_are_those_of_the_test_vectors() {
    let leaves = leaves();
    let Ok(proof) = inclusion(&leaves[..], 5, 8);
    assert_eq!(
        texts(&proof),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    let Ok(proof) = consistency(&leaves[..], 6, 8);
    assert_eq!(
        texts(&proof),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

#[test]
fn every_proof_of_a_small_tree_holds_for_its_own_claim_only() {
    let leaves = many(40);
    for size in 1..=40 {
        let root = naive_root(&leaves[..size]);
        for index in 0..size {
            let (index_u64, size_u64) = (index as u64, size as u64);
            let Ok(proof) = inclusion(&leaves[..size], index_u64, size_u64);
            assert!(verify_inclusion(leaves[index], index_u64, size_u64, root, &proof));
            assert!(!verify_inclusion(Hash::empty_root(), index_u64, size_u64, root, &proof));
            let other = (index_u64 + 1) % size_u64;
            if other != index_u64 {
                assert!(!verify_inclusion(leaves[index], other, size_u64, root, &proof));
            }
            assert!(!verify_inclusion(leaves[index], size_u64, size_u64, root, &proof));
        }
        for old in 0..=size {
            let (old_head, new_head) =
                ((old as u64, naive_root(&leaves[..old])), (size as u64, root));
            let Ok(proof) = consistency(&leaves[..size], old as u64, size as u64);
            assert!(verify_consistency(old_head, new_head, &proof), "{old} in {size}");
            let forged = (old as u64, Hash::leaf(&[b"forged"]));
            assert!(!verify_consistency(forged, new_head, &proof), "{old} in {size}");
            if old < size && old > 0 {
                let forged = (size as u64, Hash::leaf(&[b"forged"]));
                assert!(!verify_consistency(old_head, forged, &proof), "{old} in {size}");
                assert!(!verify_consistency(new_head, old_head, &proof), "backwards");
            }
        }
    }
}

#[test]
fn a_frontier_tells_each_subtree_that_a_leaf_completes() {
    let leaves = many(37);
    let mut frontier = Frontier::default();
    let mut told = Vec::new();
    for leaf in &leaves {
        frontier.push(*leaf, |level, index, hash| told.push((level, index, hash)));
    }
    assert_eq!(told.len(), 37 + 18 + 9 + 4 + 2 + 1);
    for (level, index, hash) in told {
        assert_eq!(leaves.subtree(level, index), Ok(hash));
    }
}

proptest! {
    #[test]
    fn a_frontier_taken_up_again_goes_on_as_before(start in 0_u64..300, more in 0_u64..300) {
        let leaves = many(start + more);
        let Ok(mut frontier) = Frontier::of(&Leaves(&leaves), start);
        for leaf in &leaves[usize::try_from(start).unwrap()..] {
            frontier.push(*leaf, |_, _, _| {});
        }
        prop_assert_eq!(frontier.size(), start + more);
        prop_assert_eq!(frontier.root(), naive_root(&leaves));
    }

    #[test]
    fn a_proof_with_any_hash_changed_or_left_out_shows_nothing(
        size in 2_u64..200, a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()
    ) {
        let leaves = many(size);
        let root = naive_root(&leaves);
        let index = a.index(leaves.len());
        let Ok(proof) = inclusion(&leaves[..], index as u64, size);
        let mut changed = proof.clone();
        let at = b.index(proof.len());
        changed[at] = Hash::leaf(&[b"changed"]);
        prop_assert!(!verify_inclusion(leaves[index], index as u64, size, root, &changed));
        prop_assert!(!verify_inclusion(leaves[index], index as u64, size, root, &proof[1..]));
        let mut longer = proof.clone();
        longer.push(root);
        prop_assert!(!verify_inclusion(leaves[index], index as u64, size, root, &longer));
    }
}

/// A sized borrower of leaves.
struct Leaves<'l>(&'l [Hash]);

impl Subtrees for Leaves<'_> {
    type Error = std::convert::Infallible;

    fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error> {
        self.0.subtree(level, index)
    }
}
