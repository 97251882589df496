//! TLS of the API: a certificate and its key in two files, read again when they change.
//!
//! A pair that cannot be used never replaces one that can: the old one stays, and the server
//! complains in its log and in `status` until there is a good one. Connections that are open keep
//! what they were made with.
//!
//! Who speaks plain HTTP to this port is told so in plain HTTP, and gets nothing else.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::Server;

/// How long a client may take for the handshake, its first byte included.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a client that speaks no TLS may take to read that it should.
const REFUSAL_MAX: Duration = Duration::from_secs(2);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// First byte of a TLS handshake record (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What a client that speaks no TLS is told.
const REFUSAL: &str = "HTTP/1.1 400 Bad Request\r\n\
    content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 173\r\n\r\n\
    {\"type\":\"urn:estoppel:problem:tls\",\"title\":\"This port speaks TLS\",\"status\":400,\
    \"detail\":\"the request came without TLS\",\"hint\":\"write https:// instead of http://\",\"halts\":[]}";

/// A certificate's chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("`{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("`{path}` holds no {expected} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// The two do not go together.
    #[error("`{cert}` and `{key}` are not a certificate and its key")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What tells one state of the files from another.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<rustls::ServerConfig>>,
    /// Of the files when they were last read, well or not.
    seen: Mutex<Stamp>,
    problem: Mutex<Option<String>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        // Already set is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seen = stamp(&files);
        let current = RwLock::new(read(&files)?);
        Ok(Self { files, current, seen: Mutex::new(seen), problem: Mutex::default() })
    }

    /// Reads the files again; the old certificate stays where the new one cannot be used.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp(&self.files);
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.files) {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                *problem = None;
                drop(problem);
                tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
                Ok(())
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                let why = source.map_or_else(String::new, |source| format!(": {source}"));
                *problem = Some(format!(
                    "the new certificate cannot be used, the old one stays: {error}{why}"
                ));
                Err(error)
            }
        }
    }

    /// What is wrong with the files, since they were last read.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_changed(&self) -> bool {
        stamp(&self.files) != *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection of what a client sends; `None` when it is none, of which the client was
    /// told.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let shaken = tokio::time::timeout(HANDSHAKE_MAX, async {
            let mut first = [0];
            match stream.peek(&mut first).await? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ if first[0] == HANDSHAKE_RECORD => TlsAcceptor::from(config).accept(stream).await,
                _ => {
                    refuse(stream).await;
                    Err(io::Error::other("it speaks no TLS"))
                }
            }
        });
        match shaken.await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client made no TLS connection");
                None
            }
            Err(_) => {
                tracing::debug!("a client took too long for the TLS handshake");
                None
            }
        }
    }
}

/// Tells a client in its own language that it should speak another.
async fn refuse(mut stream: TcpStream) {
    let telling = async {
        stream.write_all(REFUSAL.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing on unread bytes would reset the connection, and take the answer along.
        let mut rest = (&mut stream).take(1 << 16);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // A client that does not listen need not be told.
    let _ = tokio::time::timeout(REFUSAL_MAX, telling).await;
}

/// Reads the files again whenever they change, until the server drains.
pub(crate) async fn watch(server: Server, tls: Arc<Tls>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = server.draining() => return,
        }
        let looking = Arc::clone(&tls);
        let looked = tokio::task::spawn_blocking(move || {
            if looking.has_changed() { looking.reload() } else { Ok(()) }
        });
        if let Ok(Err(_)) = looked.await {
            complain(&tls);
        }
    }
}

/// Says in the log what is wrong with the files.
pub(crate) fn complain(tls: &Tls) {
    if let Some(problem) = tls.problem() {
        tracing::error!(problem, "TLS goes on with the certificate that it has");
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.cert, &files.key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn read(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let TlsFiles { cert, key } = files;
    let pem = |path: &Path, expected| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, expected, source }
    };
    let text = content(cert)?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem(cert, "certificate"))?;
    if chain.is_empty() {
        return Err(pem(cert, "certificate")(pem::Error::NoItemsFound));
    }
    let secret = PrivateKeyDer::from_pem_slice(&content(key)?).map_err(pem(key, "private key"))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|source| TlsError::Pair { cert: cert.clone(), key: key.clone(), source })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn content(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let error = |source| TlsError::File { path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(error)?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(error)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a certificate and its key.
    fn pair(dir: &Path) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let problem: estoppel_api::Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, 400);
    }

    #[test]
    fn a_bad_certificate_replaces_no_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = pair(dir.path());
        let tls = Tls::open(files.clone()).unwrap();
        let used = || Arc::clone(&tls.current.read().unwrap());
        let first = used();
        let check = |expect: &str| {
            let error = tls.reload().unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
            assert!(tls.problem().unwrap().contains("the old one stays"));
            assert!(Arc::ptr_eq(&first, &used()));
            assert!(!tls.has_changed(), "it complains once");
        };
        let good = std::fs::read(&files.cert).unwrap();
        for (content, expect) in [
            (&b""[..], "holds no certificate"),
            (b"-----BEGIN CERTIFICATE-----\n!\n", "holds no certificate"),
            (&good[..good.len() / 2], "holds no certificate"),
        ] {
            std::fs::write(&files.cert, content).unwrap();
            check(expect);
        }
        let other = tempfile::tempdir().unwrap();
        std::fs::copy(pair(other.path()).cert, &files.cert).unwrap();
        check("are not a certificate and its key");
        std::fs::remove_file(&files.cert).unwrap();
        check("cert.pem");
        std::fs::write(&files.cert, &good).unwrap();
        assert!(tls.has_changed());
        tls.reload().unwrap();
        assert_eq!(tls.problem(), None);
        assert!(!Arc::ptr_eq(&first, &used()));
    }
}
