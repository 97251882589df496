//! Ed25519 over what is signed here: custody events and bundles' envelopes.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_model::text::quoted;

/// The text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not an Ed25519 public key: expected 64 lower-case hex digits")]
pub struct KeyError {
    text: String,
}

/// Who signs: an Ed25519 public key; 64 lower-case hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signatory(VerifyingKey);

impl Signatory {
    /// The signatory of a signing key.
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }

    /// The key, for others who verify by it.
    pub const fn key(&self) -> &VerifyingKey {
        &self.0
    }

    /// Whether these 128 hex digits are this key's signature of the bytes. Strict: of one key and
    /// text there is one signature, and no weak key has any.
    pub fn signed(&self, bytes: &[u8], signature: &str) -> bool {
        decode::<64>(signature)
            .map(|signature| Signature::from_bytes(&signature))
            .is_some_and(|signature| self.0.verify_strict(bytes, &signature).is_ok())
    }
}

/// Signs some bytes; 128 lower-case hex digits.
pub(crate) fn sign(key: &SigningKey, bytes: &[u8]) -> String {
    hex::encode(key.sign(bytes).to_bytes())
}

/// Reads the one spelling of some bytes.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

impl std::fmt::Display for Signatory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0.as_bytes()))
    }
}
impl std::fmt::Debug for Signatory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
impl std::str::FromStr for Signatory {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode::<32>(text)
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .map(Self)
            .ok_or_else(|| KeyError { text: quoted(text) })
    }
}
impl serde::Serialize for Signatory {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> serde::Deserialize<'de> for Signatory {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_and_text_have_one_signature_in_one_spelling() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let signatory = Signatory::of(&key);
        let signature = sign(&key, b"text");
        assert!(signatory.signed(b"text", &signature));
        assert!(!signatory.signed(b"texu", &signature));
        assert!(!signatory.signed(b"text", &signature.to_uppercase()));
        assert!(!signatory.signed(b"text", &signature[2..]));
        assert_eq!(signatory.to_string().parse(), Ok(signatory));
        assert!(signatory.to_string().to_uppercase().parse::<Signatory>().is_err());
        assert!("00".parse::<Signatory>().is_err());
    }
}
