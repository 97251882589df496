//! Making a bundle: everything but the blobs is at hand before the first byte is written.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use ed25519_dalek::SigningKey;

use super::{
    BundleError, BundledRecord, CHECKPOINT_NAME, CUSTODY_NAME, ENVELOPE_NAME, LEAVES_NAME,
    Predicate, README, README_NAME, SCRIPT, SCRIPT_NAME, archive, blob_name, bytes_max, envelope,
    manifest_name,
    statement::{Statement, Subject},
};
use crate::{Digest, Hashed, Hasher, SealedManifest};

const PIECE_BYTES: usize = 128 * 1024;

/// What goes into a bundle.
#[derive(Debug)]
pub struct Contents {
    /// What it says of itself.
    pub predicate: Predicate,
    /// The ledger's records of its custody and holds, in their order.
    pub records: Vec<BundledRecord>,
    /// The ledger's checkpoint, a signed note.
    pub checkpoint: String,
    /// The leaves that the checkpoint covers, [`super::LEAF_BYTES`] each.
    pub leaves: Vec<u8>,
    /// The captures' manifests.
    pub manifests: Vec<SealedManifest>,
    /// The contents that are there, by what is stored.
    pub blobs: Vec<Hashed>,
}

/// A bundle that needs its blobs only to be written.
#[derive(Debug)]
pub struct SealedBundle {
    /// Name and content of what comes before the blobs.
    files: Vec<(String, Vec<u8>)>,
    blobs: Vec<Hashed>,
}

impl Contents {
    /// Lists everything and signs the list.
    ///
    /// # Errors
    /// When something is larger than a bundle takes.
    pub fn seal(self, key: &SigningKey) -> Result<SealedBundle, BundleError> {
        let mut custody = Vec::new();
        for record in &self.records {
            serde_json::to_writer(&mut custody, record).map_err(BundleError::Json)?;
            custody.push(b'\n');
        }
        let mut files = vec![
            (README_NAME.to_owned(), README.as_bytes().to_vec()),
            (SCRIPT_NAME.to_owned(), SCRIPT.as_bytes().to_vec()),
            (CUSTODY_NAME.to_owned(), custody),
            (CHECKPOINT_NAME.to_owned(), self.checkpoint.into_bytes()),
            (LEAVES_NAME.to_owned(), self.leaves),
        ];
        let manifests: BTreeMap<Digest, &SealedManifest> =
            self.manifests.iter().map(|manifest| (manifest.digest(), manifest)).collect();
        files.extend(manifests.iter().map(|(digest, manifest)| {
            (manifest_name(digest), manifest.text().as_bytes().to_vec())
        }));
        let blobs: BTreeMap<Digest, Hashed> =
            self.blobs.into_iter().map(|blob| (blob.sha256, blob)).collect();
        let blobs: Vec<Hashed> = blobs.into_values().collect();

        let subjects = files
            .iter()
            .map(|(name, content)| Subject::new(name.clone(), Hashed::of(content)))
            .chain(blobs.iter().map(|blob| Subject::new(blob_name(&blob.sha256), *blob)));
        let statement = Statement::new(subjects.collect(), self.predicate);
        let payload = serde_json::to_vec(&statement).map_err(BundleError::Json)?;
        files.insert(0, (ENVELOPE_NAME.to_owned(), envelope::seal(&payload, key)?));
        let sizes = files.iter().map(|(name, content)| (name.clone(), content.len() as u64));
        let sizes = sizes.chain(blobs.iter().map(|blob| (blob_name(&blob.sha256), blob.bytes)));
        for (file, bytes) in sizes {
            let bytes_max = bytes_max(&file);
            if bytes > bytes_max {
                return Err(BundleError::TooLarge { file, bytes, bytes_max });
            }
        }
        Ok(SealedBundle { files, blobs })
    }
}

impl SealedBundle {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        let files = self.files.iter().map(|(_, content)| content.len() as u64);
        let entries = files.chain(self.blobs.iter().map(|blob| blob.bytes));
        entries.map(archive::entry_bytes).sum::<u64>() + archive::TRAILER_BYTES as u64
    }

    /// Writes the file; `open` opens a blob by its digest.
    ///
    /// # Errors
    /// When something cannot be read or written, or a blob is no longer what the list says: then
    /// what was written so far is no bundle.
    pub fn write<R: Read>(
        &self,
        to: &mut impl Write,
        mut open: impl FnMut(&Digest) -> io::Result<R>,
    ) -> io::Result<()> {
        for (name, content) in &self.files {
            let bytes = content.len() as u64;
            to.write_all(&archive::header(name, bytes))?;
            to.write_all(content)?;
            to.write_all(&[0; archive::BLOCK][..archive::padding(bytes)])?;
        }
        for blob in &self.blobs {
            to.write_all(&archive::header(&blob_name(&blob.sha256), blob.bytes))?;
            copy(blob, open(&blob.sha256)?, to)?;
            to.write_all(&[0; archive::BLOCK][..archive::padding(blob.bytes)])?;
        }
        to.write_all(&[0; archive::TRAILER_BYTES])
    }
}

fn copy(blob: &Hashed, from: impl Read, to: &mut impl Write) -> io::Result<()> {
    // One more than it should have, to see that there is more.
    let mut from = from.take(blob.bytes.saturating_add(1));
    let mut hasher = Hasher::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = piece.get(..length).unwrap_or_default();
        hasher.update(piece);
        to.write_all(piece)?;
    }
    let found = hasher.finish();
    if found == *blob {
        return Ok(());
    }
    let text = format!("blob {} has changed in the vault: it is {}", blob.sha256, found.sha256);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}
