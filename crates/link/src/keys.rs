//! The enforcer's own Ed25519 key, and the checking of signatures.
//!
//! The own key signs halts that are given on this host while no server can be reached; it stays in
//! the state folder, so that they outlast a restart.

use std::{fs, io, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_killswitch::Signatures;
use estoppel_model::SignedOrder;

use crate::LinkError;

const FILE: &str = "enforcer.key";

/// The enforcer's key pair.
#[derive(Clone)]
pub(crate) struct Keys {
    signing: Arc<SigningKey>,
    public: String,
}

impl Keys {
    /// The key of the state folder, made if there is none; without a folder one for this process.
    pub(crate) fn open(state_dir: Option<&Path>) -> Result<Self, LinkError> {
        let Some(dir) = state_dir else { return Ok(Self::of(random()?)) };
        let path = dir.join(FILE);
        let failed = |source| LinkError::StateDir { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut secret = [0; 32];
                let damaged = || {
                    failed(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the key is damaged: delete the file, halts given on this host are lost",
                    ))
                };
                hex::decode_to_slice(text.trim(), &mut secret).map_err(|_| damaged())?;
                Ok(Self::of(secret))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = random()?;
                write_new(&path, &hex::encode(secret)).map_err(failed)?;
                Ok(Self::of(secret))
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn of(secret: [u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(&secret);
        let public = hex::encode(signing.verifying_key().as_bytes());
        Self { signing: Arc::new(signing), public }
    }

    /// The public key, lower-case hex.
    pub(crate) fn public(&self) -> &str {
        &self.public
    }

    /// Signs an order's text.
    pub(crate) fn sign(&self, order: String) -> SignedOrder {
        let signature = self.signing.sign(&SignedOrder::signed_bytes(&order));
        let signature = hex::encode(signature.to_bytes());
        SignedOrder { order, key: self.public.clone(), signature }
    }
}

fn random() -> Result<[u8; 32], LinkError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(LinkError::Random)?;
    Ok(secret)
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

/// Ed25519, strictly: no weak keys, no malleable signatures (RFC 8032 section 5.1.7 and more).
pub(crate) struct Ed25519;

impl Signatures for Ed25519 {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        let (mut key, mut signature) = ([0; 32], [0; 64]);
        hex::decode_to_slice(&order.key, &mut key).is_ok()
            && hex::decode_to_slice(&order.signature, &mut signature).is_ok()
            && VerifyingKey::from_bytes(&key).is_ok_and(|key| {
                let bytes = SignedOrder::signed_bytes(&order.order);
                key.verify_strict(&bytes, &Signature::from_bytes(&signature)).is_ok()
            })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_flipped_byte_is_noticed() {
        let order = Keys::open(None).unwrap().sign("{\"id\":1}".to_owned());
        assert!(Ed25519.are_valid(&order));
        let flip = |text: &str, at: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] ^= 1;
            String::from_utf8(bytes).unwrap()
        };
        for at in 0..order.order.len() {
            let flipped = SignedOrder { order: flip(&order.order, at), ..order.clone() };
            assert!(!Ed25519.are_valid(&flipped), "byte {at} of the text");
        }
        for at in 0..order.signature.len() {
            let flipped = SignedOrder { signature: flip(&order.signature, at), ..order.clone() };
            assert!(!Ed25519.are_valid(&flipped), "byte {at} of the signature");
        }
        for at in 0..order.key.len() {
            let flipped = SignedOrder { key: flip(&order.key, at), ..order.clone() };
            assert!(!Ed25519.are_valid(&flipped), "byte {at} of the key");
        }
        assert!(!Ed25519.are_valid(&SignedOrder { key: String::new(), ..order }));
    }

    #[test]
    fn the_key_stays_and_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(Some(dir.path())).unwrap();
        assert_eq!(Keys::open(Some(dir.path())).unwrap().public(), keys.public());
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(FILE), "not a key").unwrap();
        let error = Keys::open(Some(dir.path())).err().unwrap();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
