//! Credentials by which a gateway knows an agent: a subject and a time, signed with the node's key.
//!
//! The form is the gateway's (`gateway::credential`), which checks it without asking anybody. A
//! test of the binary, which links both, holds the two together.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::Signer as _;
use estoppel_model::{Subject, Timestamp};

use crate::key::NodeKey;

const LABEL: &[u8] = b"estoppel gateway credential v1\n";

/// Makes a credential.
pub(crate) fn mint(
    key: &NodeKey,
    subject: &Subject,
    expires_at: Timestamp,
) -> Result<String, serde_json::Error> {
    let payload =
        serde_json::to_vec(&serde_json::json!({ "subject": subject, "exp": expires_at }))?;
    let signature = key.signing().sign(&[LABEL, &payload].concat());
    Ok(format!(
        "egw1.{}.{}",
        URL_SAFE_NO_PAD.encode(&payload),
        URL_SAFE_NO_PAD.encode(signature.to_bytes())
    ))
}
