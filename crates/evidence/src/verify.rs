//! Does what is stored still fit the manifest?

use std::{collections::BTreeSet, fmt};

use crate::{Digest, Hashed, Manifest};

/// One way in which stored evidence does not fit its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is stored under the item's digest.
    Missing {
        /// The item.
        item: String,
        /// What should be there.
        expected: Hashed,
    },
    /// What is stored is not what was captured.
    Changed {
        /// The item.
        item: String,
        /// What should be there.
        expected: Hashed,
        /// What is there.
        found: Hashed,
    },
    /// Two items have one name, so that neither can be told.
    Ambiguous {
        /// The item.
        item: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { item, expected } => {
                write!(f, "{item} is missing: nothing is stored as {}", expected.sha256)
            }
            Self::Changed { item, expected, found } => write!(
                f,
                "{item} was changed: {} bytes with SHA-256 {}, captured were {} bytes with {}",
                found.bytes, found.sha256, expected.bytes, expected.sha256
            ),
            Self::Ambiguous { item } => write!(f, "{item} is listed twice"),
        }
    }
}

/// Compares a manifest with what is stored, and returns what does not fit; nothing when all does.
///
/// `stored` reads the blob of a [`crate::Item::stored_sha256`] and hashes what it *finds*
/// ([`crate::Hasher`]); `None` when there is none. The manifest itself is proved by
/// [`crate::SealedManifest::open`] beforehand. Encrypted blobs (whose stored digest is another than
/// the content's) are compared by what is stored; their length cannot be.
pub fn verify(
    manifest: &Manifest,
    mut stored: impl FnMut(&Digest) -> Option<Hashed>,
) -> Vec<Finding> {
    let mut names = BTreeSet::new();
    let mut findings = Vec::new();
    for item in &manifest.items {
        let name = || item.id.clone();
        if !names.insert(&item.id) {
            findings.push(Finding::Ambiguous { item: name() });
        }
        let expected = Hashed { sha256: item.stored_sha256, bytes: item.bytes };
        match stored(&item.stored_sha256) {
            None => findings.push(Finding::Missing { item: name(), expected }),
            Some(found)
                if found.sha256 != item.stored_sha256
                    || (item.stored_sha256 == item.sha256 && found.bytes != item.bytes) =>
            {
                findings.push(Finding::Changed { item: name(), expected, found });
            }
            Some(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::manifest::tests::manifest;

    #[test]
    fn every_flipped_byte_and_every_missing_item_is_found() {
        let contents: [&[u8]; 3] = [b"maps", b"cmdline", b""];
        let manifest = manifest(&contents);
        let blobs: BTreeMap<Digest, Vec<u8>> =
            contents.iter().map(|content| (Digest::of(content), content.to_vec())).collect();
        let run = |blobs: &BTreeMap<Digest, Vec<u8>>| {
            verify(&manifest, |digest| blobs.get(digest).map(|bytes| Hashed::of(bytes)))
        };
        assert_eq!(run(&blobs), []);
        for (digest, content) in &blobs {
            let mut missing = blobs.clone();
            missing.remove(digest);
            assert!(matches!(run(&missing).as_slice(), [Finding::Missing { .. }]));
            for at in 0..content.len() {
                let mut changed = blobs.clone();
                changed.get_mut(digest).unwrap()[at] ^= 0x80;
                assert!(matches!(run(&changed).as_slice(), [Finding::Changed { .. }]));
            }
            let mut longer = blobs.clone();
            longer.get_mut(digest).unwrap().push(0);
            assert!(matches!(run(&longer).as_slice(), [Finding::Changed { .. }]));
        }
    }

    #[test]
    fn a_name_that_is_listed_twice_is_found() {
        let mut manifest = manifest(&[b"a"]);
        manifest.items.push(manifest.items[0].clone());
        let findings = verify(&manifest, |_| Some(Hashed::of(b"a")));
        assert!(matches!(findings.as_slice(), [Finding::Ambiguous { .. }]), "{findings:?}");
    }
}
