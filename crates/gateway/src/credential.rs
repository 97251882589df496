//! Credentials that tell a shared gateway who is behind a connection.
//!
//! `egw1.PAYLOAD.SIGNATURE`: the payload is JSON `{"subject": ..., "exp": ...}`, the signature the
//! server's Ed25519 over `estoppel gateway credential v1\n` and that JSON, both in Base64 for URLs.
//! A client sends it as the password of the user `estoppel` in `Proxy-Authorization: Basic`, which
//! is what `http://estoppel:CREDENTIAL@HOST:PORT` in a proxy variable comes to. Whoever holds a
//! credential is the subject until it expires; there is no revocation but halting the subject.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use estoppel_model::{Secret, Subject, Timestamp};
use serde::{Deserialize, Serialize};

/// The user name of every credential.
pub const USER: &str = "estoppel";
/// Longest credential, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;

const PREFIX: &str = "egw1.";
/// A label, so that no other signature of the key can pass for a credential's.
const LABEL: &[u8] = b"estoppel gateway credential v1\n";

/// What a credential says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Who its bearer is.
    pub subject: Subject,
    /// Until when.
    pub exp: Timestamp,
}

/// Why a text proves nobody's identity. Deliberately short: it is told to strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// There is none.
    #[error("a credential is required: user `estoppel`, password from `estoppel token`")]
    Missing,
    /// It is not of the form.
    #[error("the credential is malformed")]
    Malformed,
    /// The signature is another's, or over something else.
    #[error("the credential is not signed by this deployment's server")]
    Signature,
    /// It is over.
    #[error("the credential has expired")]
    Expired,
    /// It names nobody, which would be reached by no order but a global one.
    #[error("the credential names no subject")]
    Nobody,
    /// The server's key itself is not one.
    #[error("the server's key is not an Ed25519 public key in hex")]
    Key,
}

/// Checks credentials by the server's key.
#[derive(Debug, Clone)]
pub struct Verifier(VerifyingKey);

impl Verifier {
    /// Takes the server's public key in lower-case hex.
    ///
    /// # Errors
    /// When the text is no such key.
    pub fn new(server_key: &str) -> Result<Self, CredentialError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(server_key, &mut bytes).map_err(|_| CredentialError::Key)?;
        VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| CredentialError::Key)
    }

    /// Returns the subject that a credential proves at this moment.
    ///
    /// # Errors
    /// When it proves none.
    pub fn verify(&self, credential: &str, now: Timestamp) -> Result<Subject, CredentialError> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(CredentialError::Malformed);
        }
        let (payload, signature) = credential
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('.'))
            .ok_or(CredentialError::Malformed)?;
        let decode =
            |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| CredentialError::Malformed);
        let payload = decode(payload)?;
        let signature =
            Signature::from_slice(&decode(signature)?).map_err(|_| CredentialError::Malformed)?;
        self.0
            .verify_strict(&[LABEL, &payload].concat(), &signature)
            .map_err(|_| CredentialError::Signature)?;
        let Credential { subject, exp } =
            serde_json::from_slice(&payload).map_err(|_| CredentialError::Malformed)?;
        if exp <= now {
            return Err(CredentialError::Expired);
        }
        if subject == Subject::default() {
            return Err(CredentialError::Nobody);
        }
        Ok(subject)
    }

    /// Returns the subject that the value of a `Proxy-Authorization` header proves.
    ///
    /// # Errors
    /// When it is absent or proves none.
    pub fn verify_header(
        &self,
        header: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<Subject, CredentialError> {
        let header = header.ok_or(CredentialError::Missing)?;
        let (scheme, encoded) = header
            .iter()
            .position(|byte| *byte == b' ')
            .map(|at| (&header[..at], &header[at + 1..]))
            .ok_or(CredentialError::Malformed)?;
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return Err(CredentialError::Malformed);
        }
        let decoded =
            STANDARD.decode(encoded.trim_ascii()).map_err(|_| CredentialError::Malformed)?;
        let decoded = str::from_utf8(&decoded).map_err(|_| CredentialError::Malformed)?;
        match decoded.split_once(':') {
            Some((USER, credential)) => self.verify(credential, now),
            _ => Err(CredentialError::Malformed),
        }
    }
}

/// Signs a credential with the server's key.
///
/// # Errors
/// When it names nobody, or is longer than [`CREDENTIAL_BYTES_MAX`].
pub fn mint(key: &SigningKey, credential: &Credential) -> Result<Secret<String>, CredentialError> {
    if credential.subject == Subject::default() {
        return Err(CredentialError::Nobody);
    }
    let payload = serde_json::to_vec(credential).map_err(|_| CredentialError::Malformed)?;
    let signature = key.sign(&[LABEL, &payload].concat());
    let text = format!(
        "{PREFIX}{}.{}",
        URL_SAFE_NO_PAD.encode(payload),
        URL_SAFE_NO_PAD.encode(signature.to_bytes())
    );
    if text.len() > CREDENTIAL_BYTES_MAX {
        return Err(CredentialError::Malformed);
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use estoppel_model::EntityId;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn verifier() -> Verifier {
        Verifier::new(&hex::encode(key(1).verifying_key().as_bytes())).unwrap()
    }

    fn credential() -> Credential {
        Credential {
            subject: Subject::session(EntityId::new("abc").unwrap()),
            exp: "2026-02-05T04:00:00Z".parse().unwrap(),
        }
    }

    fn now() -> Timestamp {
        "2026-02-05T03:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_minted_credential_proves_its_subject_until_it_expires() {
        let minted = mint(&key(1), &credential()).unwrap();
        assert_eq!(verifier().verify(minted.expose(), now()), Ok(credential().subject));
        let late = credential().exp;
        assert_eq!(verifier().verify(minted.expose(), late), Err(CredentialError::Expired));
        let nobody = Credential { subject: Subject::default(), ..credential() };
        assert!(mint(&key(1), &nobody).is_err());
    }

    #[test]
    fn no_changed_byte_verifies() {
        let minted = mint(&key(1), &credential()).unwrap().expose().clone();
        for at in 0..minted.len() {
            for value in [b'A', b'B', b'.', b'_'] {
                let mut bytes = minted.clone().into_bytes();
                if bytes[at] == value {
                    continue;
                }
                bytes[at] = value;
                let forged = String::from_utf8(bytes).unwrap();
                assert!(verifier().verify(&forged, now()).is_err(), "{at} {value}");
            }
        }
        for length in 0..minted.len() {
            assert!(verifier().verify(&minted[..length], now()).is_err());
        }
    }

    #[test]
    fn another_key_or_another_use_of_the_key_proves_nothing() {
        let other = mint(&key(2), &credential()).unwrap();
        assert_eq!(verifier().verify(other.expose(), now()), Err(CredentialError::Signature));
        // The same payload, signed by the right key without the label.
        let payload = serde_json::to_vec(&credential()).unwrap();
        let text = format!(
            "egw1.{}.{}",
            URL_SAFE_NO_PAD.encode(&payload),
            URL_SAFE_NO_PAD.encode(key(1).sign(&payload).to_bytes())
        );
        assert_eq!(verifier().verify(&text, now()), Err(CredentialError::Signature));
        assert!(Verifier::new("abc").is_err());
        assert!(Verifier::new(&"zz".repeat(32)).is_err());
    }

    #[test]
    fn a_header_is_basic_with_the_one_user() {
        let minted = mint(&key(1), &credential()).unwrap();
        let verify = |header: &str| verifier().verify_header(Some(header.as_bytes()), now());
        let basic = |user: &str| STANDARD.encode(format!("{user}:{}", minted.expose()));
        assert!(verify(&format!("Basic {}", basic("estoppel"))).is_ok());
        assert!(verify(&format!("basic {}", basic("estoppel"))).is_ok());
        assert!(verify(&format!("Basic {}", basic("session:abc"))).is_err());
        assert!(verify(&format!("Bearer {}", basic("estoppel"))).is_err());
        assert!(verify("Basic").is_err());
        assert!(verify("Basic !!!").is_err());
        // A name alone identifies nobody.
        assert!(verify(&format!("Basic {}", STANDARD.encode("estoppel:abc"))).is_err());
        assert_eq!(verifier().verify_header(None, now()), Err(CredentialError::Missing));
    }
}
