//! The set of all orders that one side knows.
//!
//! Orders are only ever added. What is in force is a fold over the set: an order is, unless a
//! release in the set names it. So it does not matter in which order, how often or in which batches
//! orders arrive (the property tests say so), and nothing but a release ends an order: not its
//! absence elsewhere, not time.
//!
//! Signatures are checked before an order gets here.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use estoppel_model::{Actor, Order, OrderBody, OrderError, OrderId, Scope, ScopeSet, SignedOrder};

use crate::{
    Audience, Verdicts,
    digest::{Digest, Mark},
};

/// What adding an order did.
#[derive(Debug, Clone)]
pub enum Insert {
    /// It was not known.
    New(Added),
    /// The same text was known under the id.
    Known(Arc<Order>),
    /// Another text is known under the id, and stays.
    Conflict(Arc<Order>),
}

/// An order that was added, and what it changed.
#[derive(Debug, Clone)]
pub struct Added {
    /// The order.
    pub order: Arc<Order>,
    /// Whether it came into force: it is no release, and no release that was here before names it.
    pub in_force: bool,
    /// The orders that were in force until it came.
    pub ended: Vec<OrderId>,
}

#[derive(Debug, Clone)]
struct Stored {
    signed: SignedOrder,
    order: Arc<Order>,
    mark: Mark,
}

/// A set of orders with the fold of what is in force.
#[derive(Debug, Clone)]
pub struct OrderSet {
    orders: HashMap<OrderId, Stored>,
    /// Ids by bucket of the digest.
    by_bucket: Vec<Vec<OrderId>>,
    /// What releases name, also before it arrives.
    ended: HashSet<OrderId>,
    verdicts: Verdicts,
}

impl Default for OrderSet {
    fn default() -> Self {
        Self {
            orders: HashMap::new(),
            by_bucket: vec![Vec::new(); 256],
            ended: HashSet::new(),
            verdicts: Verdicts::default(),
        }
    }
}

impl OrderSet {
    /// Adds an order whose signature was checked.
    ///
    /// # Errors
    /// When the text is no order; the set is as it was.
    pub fn insert(&mut self, signed: SignedOrder) -> Result<Insert, OrderError> {
        let order = Arc::new(signed.parse()?);
        Ok(self.insert_parsed(signed, order))
    }

    /// Adds an order that this version may not understand, such as a newer one's: then its scope is
    /// refused, and everything if the scope cannot be read either. Ignoring what the server signed
    /// could be ignoring a halt.
    ///
    /// # Errors
    /// When not even the id can be read; the set is as it was.
    pub fn insert_or_refuse(&mut self, signed: SignedOrder) -> Result<Insert, OrderError> {
        let order = match signed.parse() {
            Ok(order) => order,
            Err(error) => not_understood(&signed.order).ok_or(error)?,
        };
        Ok(self.insert_parsed(signed, Arc::new(order)))
    }

    /// Adds an order that was parsed already. `order` must be what `signed` holds.
    pub(crate) fn insert_parsed(&mut self, signed: SignedOrder, order: Arc<Order>) -> Insert {
        let id = order.id;
        let mark = Mark::of(id, &signed);
        match self.orders.entry(id) {
            Entry::Occupied(known) if known.get().signed.order == signed.order => {
                return Insert::Known(Arc::clone(&known.get().order));
            }
            Entry::Occupied(known) => return Insert::Conflict(Arc::clone(&known.get().order)),
            Entry::Vacant(free) => {
                free.insert(Stored { signed, order: Arc::clone(&order), mark });
            }
        }
        self.by_bucket[usize::from(mark.bucket)].push(id);
        let (mut in_force, mut ended) = (false, Vec::new());
        if let OrderBody::Release { orders } = &order.body {
            for named in orders {
                if self.ended.insert(*named) && self.end(*named) {
                    ended.push(*named);
                }
            }
        } else if !self.ended.contains(&id) {
            self.verdicts.insert(&order);
            in_force = true;
        }
        Insert::New(Added { order, in_force, ended })
    }

    /// Takes an order out of force; whether it was in force.
    fn end(&mut self, id: OrderId) -> bool {
        let Some(stored) = self.orders.get(&id) else { return false };
        // A release that names a release ends nothing: what is over does not come back.
        if matches!(stored.order.body, OrderBody::Release { .. }) {
            return false;
        }
        self.verdicts.remove(&stored.order);
        true
    }

    /// The fold over what is in force.
    pub const fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// How many orders there are, those that have ended and releases included.
    pub fn len(&self) -> usize {
        self.orders.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// The order of this id.
    pub fn order(&self, id: OrderId) -> Option<&Arc<Order>> {
        self.orders.get(&id).map(|stored| &stored.order)
    }

    /// The order of this id as it was signed.
    pub fn signed(&self, id: OrderId) -> Option<&SignedOrder> {
        self.orders.get(&id).map(|stored| &stored.signed)
    }

    /// Whether the order is here, no release, and not ended.
    pub fn is_in_force(&self, id: OrderId) -> bool {
        self.order(id).is_some_and(|order| {
            !matches!(order.body, OrderBody::Release { .. }) && !self.ended.contains(&id)
        })
    }

    /// Whether a release names the order, be it here or not.
    pub fn is_ended(&self, id: OrderId) -> bool {
        self.ended.contains(&id)
    }

    /// The orders in force, in no particular order.
    pub fn in_force(&self) -> impl Iterator<Item = &Arc<Order>> {
        self.orders.values().map(|stored| &stored.order).filter(|order| self.is_in_force(order.id))
    }

    /// All orders, those that have ended and releases included, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Order>> {
        self.orders.values().map(|stored| &stored.order)
    }

    /// All orders as they were signed, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &SignedOrder> {
        self.orders.values().map(|stored| &stored.signed)
    }

    /// The digest of what an audience may see.
    pub fn digest(&self, audience: &Audience) -> Digest {
        let mut digest = Digest::default();
        for stored in self.orders.values().filter(|stored| audience.admits(&stored.order)) {
            digest.add(stored.mark);
        }
        digest
    }

    /// What a known order adds to a digest.
    pub(crate) fn mark(&self, id: OrderId) -> Option<Mark> {
        self.orders.get(&id).map(|stored| stored.mark)
    }

    /// The ids in a bucket that an audience may see.
    pub(crate) fn ids_in(&self, bucket: u8, audience: &Audience) -> Vec<OrderId> {
        let admitted = |id: &OrderId| self.order(*id).is_some_and(|order| audience.admits(order));
        self.by_bucket[usize::from(bucket)].iter().copied().filter(admitted).collect()
    }
}

/// The order as far as it can be read.
fn not_understood(text: &str) -> Option<Order> {
    /// Reads a field alone; the others do not matter.
    fn field<T: serde::de::DeserializeOwned>(value: &serde_json::Value, name: &str) -> Option<T> {
        T::deserialize(value.get(name)?).ok()
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(Order {
        id: field(&value, "id")?,
        scope: field(&value, "scope").unwrap_or_else(|| ScopeSet::from(Scope::Global)),
        reason: "an order that this version does not understand".to_owned(),
        issued_by: field(&value, "issued_by").or_else(|| Actor::new("unknown").ok())?,
        issued_at: field(&value, "issued_at").unwrap_or_default(),
        incident: field(&value, "incident"),
        tenant: field(&value, "tenant"),
        body: OrderBody::Unsupported,
    })
}
