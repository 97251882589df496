//! Signatures that hold only for the text and the key for which they were made. They are no
//! cryptography: that the real ones hold is `ed25519-dalek`'s matter.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use estoppel_killswitch::{Signatures, Signer};
use estoppel_model::SignedOrder;

/// The servers' key.
pub const SERVER: &str = "the servers' key";

/// The servers' keys, and the judge of everybody's.
#[derive(Debug, Clone, Copy)]
pub struct Keys;

/// The key of an enforcer's host: 64 hex digits, as real ones.
pub fn own(number: u64) -> String {
    format!("{number:064x}")
}

/// Signs with a key.
pub fn sign(key: &str, order: String) -> SignedOrder {
    let mut hasher = DefaultHasher::new();
    (key, &order).hash(&mut hasher);
    SignedOrder { order, key: key.to_owned(), signature: format!("{:x}", hasher.finish()) }
}

impl Signatures for Keys {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        *order == sign(&order.key, order.order.clone())
    }
}

impl Signer for Keys {
    fn key(&self) -> &str {
        SERVER
    }

    fn sign(&self, order: String) -> SignedOrder {
        sign(SERVER, order)
    }
}
