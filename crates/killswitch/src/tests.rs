//! What the unit tests of several modules make orders with.

use estoppel_model::{
    Actor, EntityId, Order, OrderBody, OrderId, Scope, ScopeSet, SignedOrder, Timestamp,
};
use uuid::Uuid;

use crate::{Signatures, Signer};

pub(crate) fn id(text: &str) -> EntityId {
    EntityId::new(text).unwrap()
}

pub(crate) fn order(n: u64, scopes: &[&str], tenant: Option<&str>, body: OrderBody) -> Order {
    let scopes = scopes.iter().map(|text| text.parse::<Scope>().unwrap());
    Order {
        id: OrderId::from_uuid(Uuid::from_u64_pair(0, n)),
        scope: ScopeSet::new(scopes).unwrap(),
        reason: "test".to_owned(),
        issued_by: Actor::new("alice").unwrap(),
        issued_at: Timestamp::from_micros(1_000),
        incident: None,
        tenant: tenant.map(id),
        body,
    }
}

pub(crate) fn halt(n: u64, scopes: &[&str], tenant: Option<&str>) -> Order {
    order(n, scopes, tenant, OrderBody::Halt { until: None })
}

pub(crate) fn signed(order: &Order) -> SignedOrder {
    let order = serde_json::to_string(order).unwrap();
    SignedOrder { order, key: "server".to_owned(), signature: "valid".to_owned() }
}

/// Signs what it is given; for tests in which nobody lies.
pub(crate) struct Keys;

impl Signatures for Keys {
    fn are_valid(&self, order: &SignedOrder) -> bool {
        order.signature == "valid"
    }
}

impl Signer for Keys {
    fn key(&self) -> &str {
        "server"
    }

    fn sign(&self, order: String) -> SignedOrder {
        SignedOrder { order, key: "server".to_owned(), signature: "valid".to_owned() }
    }
}
