//! Where evidence is kept: each content once, under its SHA-256.
//!
//! A content is written beside, hashed on the way, synced and only then renamed to its name; so a
//! name never stands for anything but its own content. Nothing here deletes.

use std::{
    io,
    path::{Path, PathBuf},
};

use axum::body::Body;
use estoppel_evidence::{Digest, Hashed, Hasher};
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::{StartError, files};

/// The store of a data folder.
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    folder: PathBuf,
}

/// Why a content was not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// It is not what its name says.
    #[error("the content's SHA-256 is {found}, not {expected}: it was changed on the way")]
    OtherContent { expected: Digest, found: Digest },
    /// It is larger than an item may be.
    #[error("the content is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    /// The sender broke off.
    #[error("the content broke off after {bytes} bytes")]
    BrokenOff { bytes: u64 },
    /// The disk refused.
    #[error("the evidence store cannot write")]
    Disk(#[from] io::Error),
}

impl Vault {
    pub(crate) fn open(data: &Path) -> Result<Self, StartError> {
        let folder = data.join("evidence");
        files::create_private_dir(&folder)
            .map_err(|source| StartError::File { path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(&name)
    }

    /// Keeps a content; again is no error. Resolves when it is on disk.
    pub(crate) async fn put(
        &self,
        expected: Digest,
        mut content: Body,
        bytes_max: usize,
    ) -> Result<Hashed, VaultError> {
        let path = self.path(&expected);
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        files::create_private_dir(&folder)?;
        let new = folder.join(format!("{}.new", Uuid::now_v7()));
        let result = write(&new, expected, &mut content, bytes_max).await;
        if result.is_ok() {
            tokio::fs::rename(&new, &path).await?;
            tokio::fs::File::open(&folder).await?.sync_all().await?;
        } else {
            // What could not be written may not be there to remove.
            let _ = tokio::fs::remove_file(&new).await;
        }
        result
    }

    /// Keeps a small content that is at hand.
    pub(crate) async fn put_text(&self, text: String) -> Result<Digest, VaultError> {
        let digest = Digest::of(text.as_bytes());
        let bytes_max = text.len();
        self.put(digest, Body::from(text), bytes_max).await?;
        Ok(digest)
    }

    /// Whether a content is kept, by its name and length.
    pub(crate) async fn has(&self, digest: &Digest, bytes: u64) -> bool {
        tokio::fs::metadata(self.path(digest)).await.is_ok_and(|found| found.len() == bytes)
    }

    /// Opens a content for reading.
    pub(crate) async fn read(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        match tokio::fs::read(self.path(digest)).await {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn write(
    path: &Path,
    expected: Digest,
    content: &mut Body,
    bytes_max: usize,
) -> Result<Hashed, VaultError> {
    let mut file =
        tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await?;
    let mut hasher = Hasher::default();
    let mut bytes = 0_u64;
    while let Some(frame) = content.frame().await {
        let Ok(frame) = frame else { return Err(VaultError::BrokenOff { bytes }) };
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len() as u64;
        if bytes > bytes_max as u64 {
            return Err(VaultError::TooLarge { bytes_max });
        }
        hasher.update(&data);
        file.write_all(&data).await?;
    }
    let hashed = hasher.finish();
    if hashed.sha256 != expected {
        return Err(VaultError::OtherContent { expected, found: hashed.sha256 });
    }
    file.sync_all().await?;
    Ok(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_stands_for_its_own_content_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(dir.path()).unwrap();
        let digest = Digest::of(b"maps");
        vault.put(digest, Body::from("maps"), 10).await.unwrap();
        vault.put(digest, Body::from("maps"), 10).await.unwrap();
        assert_eq!(vault.read(&digest).await.unwrap().unwrap(), b"maps");
        assert!(vault.has(&digest, 4).await);

        let other = Digest::of(b"other");
        let error = vault.put(other, Body::from("forged"), 10).await.unwrap_err();
        assert!(matches!(error, VaultError::OtherContent { .. }));
        let error = vault.put(other, Body::from("far too long"), 10).await.unwrap_err();
        assert!(matches!(error, VaultError::TooLarge { bytes_max: 10 }));
        assert!(vault.read(&other).await.unwrap().is_none());
        let left = std::fs::read_dir(vault.path(&other).parent().unwrap()).unwrap().count();
        assert_eq!(left, 0, "nothing half written stays behind");
    }
}
