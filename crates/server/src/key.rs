//! The node's signing key: orders, checkpoints and gateway credentials carry its signature.

use std::path::Path;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use estoppel_model::SignedOrder;

use crate::{StartError, files};

const FILE: &str = "node.key";

/// The node's Ed25519 key. It is made at the first start and never leaves the data folder.
#[derive(Clone)]
pub struct NodeKey {
    signing: SigningKey,
    public: String,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({})", self.public)
    }
}

impl NodeKey {
    /// Reads the key of a data folder, or makes it.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn open(data: &Path) -> Result<Self, StartError> {
        let path = data.join(FILE);
        let io = |source| StartError::File { path: path.clone(), source };
        let seed = match files::read_if_there(&path).map_err(io)? {
            Some(content) => {
                parse_seed(&content).ok_or_else(|| StartError::Key { path: path.clone() })?
            }
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(|_| StartError::Random)?;
                files::write_private(&path, hex::encode(seed).as_bytes()).map_err(io)?;
                seed
            }
        };
        let signing = SigningKey::from_bytes(&seed);
        let public = hex::encode(signing.verifying_key().as_bytes());
        Ok(Self { signing, public })
    }

    /// Whether the data folder has a key: a server was started on it before.
    pub(crate) fn is_there(data: &Path) -> bool {
        data.join(FILE).exists()
    }

    /// Reads the key of a folder that must have one.
    ///
    /// # Errors
    /// As [`NodeKey::open`]; also when there is none.
    pub(crate) fn open_existing(folder: &Path) -> Result<Self, StartError> {
        let path = folder.join(FILE);
        if path.exists() { Self::open(folder) } else { Err(StartError::Key { path }) }
    }

    /// The public key, in lower-case hex.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The key itself, for the ledger's checkpoints and the gateway's credentials.
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// Signs an order's text.
    pub fn sign(&self, order: String) -> SignedOrder {
        let signature = self.signing.sign(&SignedOrder::signed_bytes(&order));
        SignedOrder {
            order,
            key: self.public.clone(),
            signature: hex::encode(signature.to_bytes()),
        }
    }
}

/// Whether the order carries a good signature of the key that it names.
pub fn verify(order: &SignedOrder) -> bool {
    let parse = || {
        let key: [u8; 32] = hex::decode(&order.key).ok()?.try_into().ok()?;
        let signature: [u8; 64] = hex::decode(&order.signature).ok()?.try_into().ok()?;
        Some((
            VerifyingKey::from_bytes(&key).ok()?,
            ed25519_dalek::Signature::from_bytes(&signature),
        ))
    };
    parse().is_some_and(|(key, signature)| {
        key.verify_strict(&SignedOrder::signed_bytes(&order.order), &signature).is_ok()
    })
}

fn parse_seed(content: &[u8]) -> Option<[u8; 32]> {
    hex::decode(content.trim_ascii()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let key = NodeKey::open(dir.path()).unwrap();
        let order = key.sign("{}".to_owned());
        assert!(verify(&order));
        assert_eq!(NodeKey::open(dir.path()).unwrap().public(), key.public());
        assert!(!verify(&SignedOrder { order: "{ }".to_owned(), ..order.clone() }));
        assert!(!verify(&SignedOrder { signature: "00".repeat(64), ..order.clone() }));
        assert!(!verify(&SignedOrder { key: "zz".to_owned(), ..order }));
        assert!(!format!("{key:?}").contains(&hex::encode(key.signing().to_bytes())));
    }

    #[test]
    fn a_broken_key_file_is_an_error_and_not_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "torn").unwrap();
        assert!(matches!(NodeKey::open(dir.path()), Err(StartError::Key { .. })));
    }
}
