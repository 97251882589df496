//! Orders as records of the ledger.

use estoppel_killswitch::{Signatures, Signer};
use estoppel_model::{NewRecord, OrderId, RecordKind, SignedOrder, Timestamp};

use crate::key::{self, NodeKey};

/// Kind of the records that hold a [`SignedOrder`].
pub(crate) const ORDER: RecordKind = RecordKind::new("order");

/// How the keys of such records begin.
pub(crate) const KEYS: &str = "order/";

/// The record of an order; its key makes feeding it twice harmless.
pub(crate) fn record(
    id: OrderId,
    order: &SignedOrder,
    at: Timestamp,
) -> Result<NewRecord, serde_json::Error> {
    NewRecord::json(ORDER, Some(format!("{KEYS}{id}")), at, order)
}

/// The order's id in the key of its record.
pub(crate) fn id_of_key(key: &str) -> Option<OrderId> {
    key.strip_prefix(KEYS)?.parse().ok()
}

/// Signs with the node's key and checks anybody's signature.
#[derive(Debug, Clone)]
pub(crate) struct Notary(pub(crate) NodeKey);

impl Signatures for Notary {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        key::verify(order)
    }
}

impl Signer for Notary {
    fn key(&self) -> &str {
        self.0.public()
    }

    fn sign(&self, order: String) -> SignedOrder {
        self.0.sign(order)
    }
}
