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

/// What there is of a fold's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// Nothing was kept under this name.
    Absent,
    /// There is one, and it is not to be trusted.
    Doubtful(Doubt),
    /// The state after the first records.
    Kept {
        /// How many records it covers.
        size: u64,
        /// The state, byte for byte as it was put.
        state: Vec<u8>,
    },
}

/// Why a snapshot is as good as absent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The file cannot be read.
    #[error("its file cannot be read: {0}")]
    Unreadable(std::io::ErrorKind),
    /// It was changed, or made under another name or by another key.
    #[error("it is not one that this ledger signed")]
    NotSigned,
    /// It covers more than there is: records were lost, or an old copy of them was restored.
    #[error("it covers {size} records and the ledger has {have}: were records lost?")]
    Ahead {
        /// How many records it covers.
        size: u64,
        /// How many there are.
        have: u64,
    },
    /// The records up to there are not those that it was made from.
    #[error("its {size} records have another Merkle root than the ledger's")]
    OtherHistory {
        /// How many records it covers.
        size: u64,
    },
}

const DIR: &str = "snapshots";
/// Largest file that is written or read.
const BYTES_MAX: usize = 1 << 30;
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
    if bytes.len() > BYTES_MAX {
        return Err(LedgerError::file("write", &path)(std::io::ErrorKind::FileTooLarge.into()));
    }
    files::create_dir(&dir.join(DIR))?;
    let ledger = verifier_key(signer.verifying_key());
    let note = note::sign(&text(&ledger, name, head, bytes), ledger.name(), signer);
    files::replace(&path, &[note.as_bytes(), &[MARK], bytes])
}

/// The head that a snapshot was made at, and the state.
type Signed = (Head, Vec<u8>);

/// Reads a snapshot that is signed; whether its head is one of the ledger's the caller must ask.
pub(crate) fn get(
    dir: &std::path::Path,
    name: &str,
    key: &VerifierKey,
) -> Result<Result<Option<Signed>, Doubt>, LedgerError> {
    let path = path(dir, name)?;
    let length = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Ok(Err(Doubt::Unreadable(error.kind()))),
    };
    // The note before the state is some hundred bytes.
    if length > BYTES_MAX as u64 + 4_096 {
        return Ok(Err(Doubt::Unreadable(std::io::ErrorKind::FileTooLarge)));
    }
    let mut content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) => return Ok(Err(Doubt::Unreadable(error.kind()))),
    };
    Ok(match read_head(&content, name, key) {
        Some((head, start)) => Ok(Some((head, content.split_off(start)))),
        None => Err(Doubt::NotSigned),
    })
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
