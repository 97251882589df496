//! Signed notes (C2SP `signed-note`) with Ed25519: text, an empty line, signature lines.
//!
//! The crate `signed_note` does the same on an older `ed25519-dalek`; two versions of a signature
//! library in one binary cost more than the lines below. Lines of signers that are not known, such
//! as witnesses that cosigned, are skipped, as the specification wants it.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// The type byte of Ed25519 in key ids and encoded keys.
const ED25519: u8 = 1;
/// Longest note that is read, in bytes.
const NOTE_BYTES_MAX: usize = 64 * 1024;
/// Most signature lines that are read, as the specification advises.
const SIGNATURES_MAX: usize = 100;

/// Why a note is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Longer than any note of ours.
    #[error("it is longer than {NOTE_BYTES_MAX} bytes")]
    TooLong,
    /// Not text, an empty line and signature lines.
    #[error("it is no signed note: expected text, an empty line, and lines that start with `— `")]
    Shape,
    /// No line of the key that was asked for.
    #[error("no signature on it is by this key")]
    OtherKey,
    /// The key's line does not sign this text.
    #[error("its signature does not fit its text: it was changed")]
    Signature,
}

/// A public key with the name that its signature lines carry.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: VerifyingKey,
}

impl VerifierKey {
    /// The key under a name without white space and plus signs.
    pub(crate) const fn new(name: String, key: VerifyingKey) -> Self {
        Self { name, key }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key's id in signature lines.
    fn id(&self) -> [u8; 4] {
        let mut hasher = Sha256::new();
        hasher.update(self.name.as_bytes());
        hasher.update([b'\n', ED25519]);
        hasher.update(self.key.as_bytes());
        let hash: [u8; 32] = hasher.finalize().into();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// Checks that this key signed the note, and returns the text that it signed.
    ///
    /// # Errors
    /// When the note is malformed, or not signed by this key, or changed since.
    pub fn open<'n>(&self, note: &'n str) -> Result<&'n str, NoteError> {
        let (text, signatures) = split(note)?;
        let id = self.id();
        let mut ours = signatures.filter(|line| line.name == self.name && line.id == id).peekable();
        ours.peek().ok_or(NoteError::OtherKey)?;
        // `verify_strict`: one text has one signature here, malleable variants are refused.
        let fits = |line: Line<'_>| {
            Signature::from_slice(&line.signature)
                .is_ok_and(|signature| self.key.verify_strict(text.as_bytes(), &signature).is_ok())
        };
        if ours.all(fits) { Ok(text) } else { Err(NoteError::Signature) }
    }
}

/// The encoding of the specification, `NAME+ID+KEY`, as witnesses and auditors take it.
impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut encoded = vec![ED25519];
        encoded.extend(self.key.as_bytes());
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), BASE64.encode(encoded))
    }
}
impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Signs a text that ends with a newline.
pub(crate) fn sign(text: &str, name: &str, signer: &SigningKey) -> String {
    let key = VerifierKey::new(name.to_owned(), signer.verifying_key());
    let mut signature = key.id().to_vec();
    signature.extend(signer.sign(text.as_bytes()).to_bytes());
    format!("{text}\n— {name} {}\n", BASE64.encode(signature))
}

/// Returns a note's text, unchecked.
pub(crate) fn unchecked_text(note: &str) -> Result<&str, NoteError> {
    split(note).map(|(text, _)| text)
}

struct Line<'n> {
    name: &'n str,
    id: [u8; 4],
    signature: Vec<u8>,
}

fn split(note: &str) -> Result<(&str, impl Iterator<Item = Line<'_>>), NoteError> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(NoteError::TooLong);
    }
    if note.chars().any(|c| c < ' ' && c != '\n') {
        return Err(NoteError::Shape);
    }
    // The last empty line: the text may hold others.
    let (text, lines) =
        note.rfind("\n\n").map(|at| note.split_at(at + 1)).ok_or(NoteError::Shape)?;
    let lines = lines.strip_prefix('\n').and_then(|lines| lines.strip_suffix('\n'));
    let lines = lines
        .ok_or(NoteError::Shape)?
        .split('\n')
        .take(SIGNATURES_MAX)
        .map(|line| parse_line(line).ok_or(NoteError::Shape))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((text, lines.into_iter()))
}

fn parse_line(line: &str) -> Option<Line<'_>> {
    let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
    let bytes = BASE64.decode(signature).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    let named = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+');
    (named && !signature.is_empty()).then(|| Line { name, id: *id, signature: signature.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification and of Go's `sumdb/note`.
    const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n";
    const SIGNATURE: &str = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const SEED: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";

    fn peter() -> (SigningKey, VerifierKey) {
        let seed = BASE64.decode(SEED).unwrap();
        let signer = SigningKey::from_bytes(&seed[1..].try_into().unwrap());
        let key = VerifierKey::new("PeterNeumann".into(), signer.verifying_key());
        (signer, key)
    }

    #[test]
    fn signs_and_opens_the_example_of_the_specification() {
        let (signer, key) = peter();
        let note = format!("{TEXT}\n{SIGNATURE}");
        assert_eq!(key.to_string(), KEY);
        assert_eq!(sign(TEXT, "PeterNeumann", &signer), note);
        assert_eq!(key.open(&note), Ok(TEXT));
    }

    #[test]
    fn skips_the_lines_of_others() {
        let (_, key) = peter();
        let witness = sign(TEXT, "witness.example", &SigningKey::from_bytes(&[7; 32]));
        let witness = witness.strip_prefix(TEXT).unwrap().trim_start();
        assert_eq!(key.open(&format!("{TEXT}\n{witness}{SIGNATURE}")), Ok(TEXT));
        assert_eq!(key.open(&format!("{TEXT}\n{witness}")), Err(NoteError::OtherKey));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (_, key) = peter();
        let note = format!("{TEXT}\n{SIGNATURE}");
        for at in 0..note.len() {
            for bit in 0..8 {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                // Not even UTF-8: refused where a note becomes text.
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                assert!(key.open(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let (_, key) = peter();
        let check = |note: &str, expect: NoteError| assert_eq!(key.open(note), Err(expect));
        check("", NoteError::Shape);
        check(TEXT, NoteError::Shape);
        check(&format!("{TEXT}\n"), NoteError::Shape);
        check(&format!("{TEXT}\n{}", SIGNATURE.trim_end()), NoteError::Shape);
        check(&format!("{TEXT}\n— PeterNeumann x08g\n"), NoteError::Shape);
        check(&format!("{TEXT}\n{SIGNATURE}trailing\n"), NoteError::Shape);
        check(&format!("{TEXT}\r\n\n{SIGNATURE}"), NoteError::Shape);
        check(&format!("changed {TEXT}\n{SIGNATURE}"), NoteError::Signature);
        check(&"x".repeat(NOTE_BYTES_MAX + 1), NoteError::TooLong);
    }
}
