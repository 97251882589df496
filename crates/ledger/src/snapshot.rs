//! States of folds, kept so that a start need not read the whole ledger.
//!
//! A snapshot is a file `snapshots/NAME.snapshot`: a signed note that names the ledger's head and
//! the state's SHA-256, an empty line, the state. It is signed because it takes the place of records
//! that are: whoever could plant one could otherwise make a halt be forgotten. It is a cache: any
//! doubt, and it does not exist.

use std::{fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};

use crate::{Hash, Head, LedgerError, VerifierKey, checkpoint::verifier_key, files, note};

const DIR: &str = "snapshots";
/// Ends the note: a note holds no such byte, whatever the state holds.
const MARK: u8 = 0;

pub(crate) fn put(
    dir: &std::path::Path,
    name: &str,
    head: Head,
    bytes: &[u8],
    signer: &SigningKey,
) -> Result<(), LedgerError> {
    let path = path(dir, name)?;
    files::create_dir(&dir.join(DIR))?;
    let ledger = verifier_key(signer.verifying_key());
    let note = note::sign(&text(&ledger, name, head, bytes), ledger.name(), signer);
    files::replace(&path, &[note.as_bytes(), &[MARK], bytes])
}

pub(crate) fn get(
    dir: &std::path::Path,
    name: &str,
    key: &VerifierKey,
) -> Result<Option<(Head, Vec<u8>)>, LedgerError> {
    let path = path(dir, name)?;
    let mut content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(%error, name, "a snapshot cannot be read; folding from the start");
            }
            return Ok(None);
        }
    };
    let head = read_head(&content, name, key);
    if head.is_none() {
        tracing::warn!(name, "a snapshot is not one of this ledger; folding from the start");
    }
    Ok(head.map(|(head, start)| (head, content.split_off(start))))
}

/// Returns the head that a file's note names, and where the state starts.
fn read_head(content: &[u8], name: &str, key: &VerifierKey) -> Option<(Head, usize)> {
    let start = content.iter().position(|byte| *byte == MARK)? + 1;
    let signed = key.open(std::str::from_utf8(&content[..start - 1]).ok()?).ok()?;
    let mut lines = signed.lines().skip(2);
    let size = lines.next()?.parse().ok()?;
    let root = Hash::from_bytes(BASE64.decode(lines.next()?).ok()?.try_into().ok()?);
    let head = Head { size, root };
    // Everything that was signed is said again and must be equal, the state's hash included.
    (signed == text(key, name, head, &content[start..])).then_some((head, start))
}

/// What is signed. Its first line is not a ledger's name, so it cannot pass for a checkpoint.
fn text(ledger: &VerifierKey, name: &str, head: Head, bytes: &[u8]) -> String {
    format!(
        "{}/snapshot\n{name}\n{}\n{}\n{}\n",
        ledger.name(),
        head.size,
        BASE64.encode(head.root.as_bytes()),
        BASE64.encode(Sha256::digest(bytes)),
    )
}

fn path(dir: &std::path::Path, name: &str) -> Result<PathBuf, LedgerError> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        let name = name.chars().take(64).flat_map(char::escape_default).collect();
        return Err(LedgerError::SnapshotName { name });
    }
    Ok(dir.join(DIR).join(format!("{name}.snapshot")))
}
