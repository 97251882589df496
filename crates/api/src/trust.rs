//! Whom a client takes for the server when it speaks TLS.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject as _},
    },
};

/// The authorities that may vouch for a server.
#[derive(Debug, Clone, Default)]
pub struct Trust(Option<Arc<ClientConfig>>);

/// Why a file names no authority.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error("CA file `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no PEM.
    #[error("CA file `{path}` holds no certificate in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// It holds a certificate that cannot vouch for others.
    #[error("CA file `{path}` holds a certificate that cannot be used")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl Trust {
    /// The authorities that the operating system knows.
    pub const fn system() -> Self {
        Self(None)
    }

    /// The authorities of a PEM file, and no others: a private CA is there so that nobody else can
    /// vouch for the server.
    ///
    /// # Errors
    /// When the file names none.
    pub fn only(path: &Path) -> Result<Self, TrustError> {
        // Already set is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let named = || path.to_owned();
        let text =
            std::fs::read(path).map_err(|source| TrustError::File { path: named(), source })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate =
                certificate.map_err(|source| TrustError::Pem { path: named(), source })?;
            roots
                .add(certificate)
                .map_err(|source| TrustError::Certificate { path: named(), source })?;
        }
        if roots.is_empty() {
            return Err(TrustError::Pem { path: named(), source: pem::Error::NoItemsFound });
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self(Some(Arc::new(config))))
    }

    /// What rustls needs to know; `None`: what it takes from the system.
    pub fn rustls(&self) -> Option<Arc<ClientConfig>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_authority_is_an_error_that_names_it() {
        let dir = std::env::temp_dir().join(format!("estoppel-trust-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ca.pem");
        let check = |content: Option<&[u8]>, expect: &str| {
            match content {
                Some(content) => std::fs::write(&path, content).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let error = Trust::only(&path).unwrap_err().to_string();
            assert!(error.contains("ca.pem") && error.contains(expect), "{error}");
        };
        check(Some(b""), "no certificate");
        check(Some(b"-----BEGIN CERTIFICATE-----\n"), "no certificate");
        check(
            Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "cannot be used",
        );
        check(None, "ca.pem");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
