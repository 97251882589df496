//! Checkpoints (C2SP `tlog-checkpoint`): who holds the first `size` records with `root` holds this
//! history and no other.
//!
//! A checkpoint that is kept elsewhere (enforcers do, pages carry it) is what shows truncation and
//! rewriting; one kept only beside the ledger falls to whoever can write both.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::{Hash, NoteError, VerifierKey, note};

/// How many records there are, and the root over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Head {
    /// How many records; also the next record's seq.
    pub size: u64,
    /// The Merkle root over their leaves.
    pub root: Hash,
}

/// A head as a signed note. Reading one does not check its signature: [`Checkpoint::verify`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    head: Head,
    note: String,
}

/// Why a text is no checkpoint, or not one of this ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not a signed note, or not signed by the key.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// A note of something else.
    #[error("it is no checkpoint: expected an origin, a size and a root, one a line")]
    Shape,
    /// A checkpoint of another ledger.
    #[error("it names another ledger as its origin")]
    OtherOrigin,
}

/// The key of a ledger under the ledger's name: the name is the key's hash, so that a ledger that
/// was replaced as a whole cannot pass for the old one.
pub fn verifier_key(key: VerifyingKey) -> VerifierKey {
    let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
    VerifierKey::new(format!("estoppel.dev/ledger/{}", hex::encode(&hash[..8])), key)
}

impl Checkpoint {
    /// Reads a checkpoint without checking its signature.
    ///
    /// # Errors
    /// When the text is no signed note or the note no checkpoint.
    pub fn parse(note: &str) -> Result<Self, CheckpointError> {
        let mut lines = note::unchecked_text(note)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty());
        let parsed = (|| {
            let origin = line()?.to_owned();
            let size_text = line()?;
            let size: u64 = size_text.parse().ok()?;
            // No leading zeros or signs: one head has one text.
            (size.to_string() == size_text).then_some(())?;
            let root = BASE64.decode(line()?).ok()?.try_into().ok()?;
            Some((origin, Head { size, root: Hash::from_bytes(root) }))
        })();
        let (origin, head) = parsed.ok_or(CheckpointError::Shape)?;
        Ok(Self { origin, head, note: note.to_owned() })
    }

    /// Checks that a ledger's key signed this checkpoint of that ledger.
    ///
    /// # Errors
    /// When it is another's, or was changed.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), CheckpointError> {
        if self.origin != key.name() {
            return Err(CheckpointError::OtherOrigin);
        }
        key.open(&self.note)?;
        Ok(())
    }

    /// The ledger's name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What it commits to.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// The signed note's text, as it is stored and sent.
    pub fn as_str(&self) -> &str {
        &self.note
    }

    pub(crate) fn sign(head: Head, signer: &SigningKey) -> Self {
        let origin = verifier_key(signer.verifying_key()).name().to_owned();
        let text = format!("{origin}\n{}\n{}\n", head.size, BASE64.encode(head.root.as_bytes()));
        let note = note::sign(&text, &origin, signer);
        Self { origin, head, note }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.note)
    }
}
impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({} of {}, {})", self.head.size, self.origin, self.head.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(size: u64) -> (Checkpoint, VerifierKey) {
        let signer = SigningKey::from_bytes(&[3; 32]);
        let head = Head { size, root: Hash::empty_root() };
        (Checkpoint::sign(head, &signer), verifier_key(signer.verifying_key()))
    }

    #[test]
    fn a_checkpoint_survives_its_text() {
        let (checkpoint, key) = signed(12);
        let read = Checkpoint::parse(checkpoint.as_str()).unwrap();
        assert_eq!(read, checkpoint);
        assert_eq!(read.verify(&key), Ok(()));
        assert_eq!(read.head().size, 12);
        assert!(checkpoint.as_str().starts_with("estoppel.dev/ledger/"));
    }

    #[test]
    fn a_checkpoint_of_another_key_is_told_apart_from_a_changed_one() {
        let (checkpoint, key) = signed(12);
        let other = verifier_key(SigningKey::from_bytes(&[4; 32]).verifying_key());
        assert_eq!(checkpoint.verify(&other), Err(CheckpointError::OtherOrigin));
        let changed = checkpoint.as_str().replacen("\n12\n", "\n13\n", 1);
        let changed = Checkpoint::parse(&changed).unwrap();
        assert_eq!(changed.verify(&key), Err(CheckpointError::Note(NoteError::Signature)));
    }

    #[test]
    fn a_note_of_something_else_is_refused() {
        let signer = SigningKey::from_bytes(&[3; 32]);
        let root = BASE64.encode([0; 32]);
        for text in [
            "origin\n".to_owned(),
            format!("origin\n-1\n{root}\n"),
            format!("origin\n+1\n{root}\n"),
            format!("origin\n01\n{root}\n"),
            format!("origin\n18446744073709551616\n{root}\n"),
            "origin\n1\nAAAA\n".to_owned(),
            format!("\n1\n{root}\n"),
        ] {
            let note = note::sign(&text, "origin", &signer);
            assert_eq!(Checkpoint::parse(&note), Err(CheckpointError::Shape), "{text:?}");
        }
        assert_eq!(Checkpoint::parse("12"), Err(CheckpointError::Note(NoteError::Shape)));
    }
}
