//! The envelope: DSSE v1 with one signature, in one spelling.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::BundleError;
use crate::{Signatory, signature::sign};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: [Line; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    keyid: String,
    sig: String,
}

/// What is signed: DSSE's pre-authentication encoding.
fn encoding(payload: &[u8]) -> Vec<u8> {
    let mut text =
        format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    text.extend(payload);
    text
}

/// Signs a payload.
pub(super) fn seal(payload: &[u8], key: &SigningKey) -> Result<Vec<u8>, BundleError> {
    let signature = sign(key, &encoding(payload));
    // It was made of bytes a line above.
    let signature = hex::decode(signature).unwrap_or_default();
    write(payload, &Signatory::of(key), &signature)
}

fn write(payload: &[u8], key: &Signatory, signature: &[u8]) -> Result<Vec<u8>, BundleError> {
    let envelope = Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: BASE64.encode(payload),
        signatures: [Line { keyid: key.to_string(), sig: BASE64.encode(signature) }],
    };
    let mut text = serde_json::to_vec(&envelope).map_err(BundleError::Json)?;
    text.push(b'\n');
    Ok(text)
}

/// Opens an envelope that the key whose id it names has signed; the payload and that key.
pub(super) fn open(text: &[u8]) -> Result<(Vec<u8>, Signatory), BundleError> {
    let wrong = |why: &str| BundleError::Envelope { why: why.to_owned() };
    let envelope: Envelope = serde_json::from_slice(text)
        .map_err(|error| BundleError::Envelope { why: error.to_string() })?;
    let [line] = &envelope.signatures;
    let key: Signatory = line
        .keyid
        .parse()
        .map_err(|error: crate::KeyError| BundleError::Envelope { why: error.to_string() })?;
    let payload =
        BASE64.decode(&envelope.payload).map_err(|_| wrong("its payload is no base64"))?;
    let signature = BASE64.decode(&line.sig).map_err(|_| wrong("its signature is no base64"))?;
    if write(&payload, &key, &signature)? != text {
        return Err(wrong("it is not written as a bundle's is"));
    }
    if !key.signed(&encoding(&payload), &hex::encode(&signature)) {
        return Err(BundleError::Signature { key: Box::new(key) });
    }
    Ok((payload, key))
}
