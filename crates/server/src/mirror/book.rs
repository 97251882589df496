//! Which halts stand, what each key is to say of them, and what follows from what it does say.
//!
//! A state machine without input or output. [`Book::add`] takes orders as the switchboard puts them
//! in force; [`Book::judge`] takes what stands at a key and says what to do, which is one of: leave
//! it, write, or give a halt. There is no way to end a halt from here (*starting-always-does*).
//!
//! What a value states as its `order_id` decides whose it is:
//! - a halt that is in force here: our own, or a copy of it; nothing is to be done;
//! - a halt that was released here: an old value that came back (a restored backup, a replica); it is
//!   put back, unless it is dated later than the release;
//! - one that is not known here: another server's, taken over under an id that follows from its own,
//!   so that any number of servers agree on its identity and none halts twice for it;
//! - none, or the id of a release: a person or a tool activates; a halt follows.
//!
//! The value of a halt that was released here is overwritten with growing pauses: when two servers
//! disagree, neither fights for the key, and it ends up active.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use estoppel_killswitch::{Now, is_drill};
use estoppel_model::{Boottime, Order, OrderBody, OrderId, Scope, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Builder;

use super::value::{Claim, Found, Key, Written};

/// Who gives the halts that follow from Redis.
pub(crate) const ACTOR: &str = "redis";
/// First and longest pause before an active value of a released halt is put back once more.
const INSISTED: (Duration, Duration) = (Duration::from_secs(15), Duration::from_hours(1));
/// Other spellings of one scope's key that are followed.
const ALIASES_MAX: usize = 8;

/// What is to be done about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing.
    Leave,
    /// Nothing now: it says active although that is released here, and was put back already.
    Insists,
    /// Write this, provided that the key still says what was judged.
    Write(Write),
    /// Give this halt, then judge again.
    Halt(NewHalt),
}

/// A value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub text: String,
    /// Whether it says that the scope is to stop.
    pub active: bool,
    /// Whether it takes the place of a halt that was released here.
    over: bool,
}

/// A halt that follows from a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewHalt {
    /// The id to give it under; `None`: a new one.
    pub id: Option<OrderId>,
    pub scope: Scope,
    /// What says so.
    pub claim: Claim,
}

/// All halts, by id and by scope.
#[derive(Debug, Default)]
pub(super) struct Book {
    halts: HashMap<OrderId, Arc<Order>>,
    /// Orders that are no halts, or that are not everybody's: their ids are no halt's.
    others: HashSet<OrderId>,
    /// What releases name, with when, also before it arrives.
    ended: HashMap<OrderId, Arc<Order>>,
    /// Under which ids other servers may have taken our halts over.
    echoes: HashMap<OrderId, OrderId>,
    places: BTreeMap<Scope, Place>,
    /// Halts in force that followed from Redis.
    from_redis: usize,
    /// Halts in force that are one tenant's and so are not written.
    unwritten: HashSet<OrderId>,
}

/// One scope.
#[derive(Debug, Default)]
struct Place {
    /// Halts in force, earliest first.
    active: BTreeSet<(Timestamp, OrderId)>,
    /// The release that came last.
    released: Option<Arc<Order>>,
    /// When the scope was last activated from outside while it was halted.
    renewed: Option<Timestamp>,
    aliases: BTreeSet<Key>,
    /// The last claim that a halt in force stands for and that was not overwritten yet.
    honoured: Option<Claim>,
    insisted: Option<Insisted>,
}

/// An active value that was put back, and comes back.
#[derive(Debug, Clone, Copy)]
struct Insisted {
    until: Boottime,
    pause: Duration,
}

/// Whose an active value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    InForce,
    Over,
    /// Another server's halt.
    Foreign {
        import: OrderId,
    },
    /// Somebody activates under the id of a halt that was released before.
    Renewed,
    /// Somebody activates.
    Outside,
}

impl Book {
    /// Takes an order that is in force, or a release; any number of times, in any order. Returns the
    /// keys that are to be looked at.
    pub(super) fn add(&mut self, order: &Arc<Order>) -> Vec<Key> {
        if self.halts.contains_key(&order.id) || self.others.contains(&order.id) {
            return Vec::new();
        }
        match &order.body {
            // A drill's canary halts nobody: loops that read Redis need no key of it.
            OrderBody::Halt { .. } if is_drill(order) => {
                self.others.insert(order.id);
                Vec::new()
            }
            // What this version does not understand refuses its scope, here as elsewhere.
            OrderBody::Halt { .. } | OrderBody::Unsupported => self.halt(order),
            OrderBody::Release { orders } => {
                self.others.insert(order.id);
                orders.iter().flat_map(|id| self.end(*id, order)).collect()
            }
            OrderBody::Watch { .. } | OrderBody::Limit { .. } | OrderBody::Block { .. } => {
                self.others.insert(order.id);
                Vec::new()
            }
        }
    }

    fn halt(&mut self, order: &Arc<Order>) -> Vec<Key> {
        let scopes: Vec<Scope> =
            order.scope.iter().filter(|scope| is_written(order, scope)).cloned().collect();
        if scopes.is_empty() {
            self.others.insert(order.id);
            if !self.ended.contains_key(&order.id) {
                self.unwritten.insert(order.id);
            }
            return Vec::new();
        }
        self.halts.insert(order.id, Arc::clone(order));
        let release = self.ended.get(&order.id).cloned();
        if release.is_none() && is_from_redis(order) {
            self.from_redis += 1;
        }
        for scope in &scopes {
            self.echoes.insert(import(scope, order.id), order.id);
            let place = self.places.entry(scope.clone()).or_default();
            match &release {
                None => {
                    place.active.insert((order.issued_at, order.id));
                }
                Some(release) => place.release(release),
            }
        }
        scopes.iter().flat_map(|scope| self.keys(scope)).collect()
    }

    fn end(&mut self, id: OrderId, release: &Arc<Order>) -> Vec<Key> {
        if self.ended.contains_key(&id) {
            return Vec::new();
        }
        self.ended.insert(id, Arc::clone(release));
        self.unwritten.remove(&id);
        let Some(order) = self.halts.get(&id).cloned() else { return Vec::new() };
        if is_from_redis(&order) {
            self.from_redis -= 1;
        }
        let mut keys = Vec::new();
        for scope in order.scope.iter() {
            if let Some(place) = self.places.get_mut(scope) {
                place.active.remove(&(order.issued_at, id));
                place.release(release);
                keys.extend(self.keys(scope));
            }
        }
        keys
    }

    /// The keys that speak of a scope.
    fn keys(&self, scope: &Scope) -> Vec<Key> {
        let aliases = self.places.get(scope).into_iter().flat_map(|place| place.aliases.iter());
        std::iter::once(Key::of(scope)).chain(aliases.cloned()).collect()
    }

    /// The keys of all scopes that are halted.
    pub(super) fn active_keys(&self) -> Vec<Key> {
        let active = self.places.iter().filter(|(_, place)| !place.active.is_empty());
        active.flat_map(|(scope, _)| self.keys(scope)).collect()
    }

    /// The keys of at most `count` halted scopes behind `after`, going round; and the last of these
    /// scopes.
    pub(super) fn next_active(
        &self,
        after: Option<&Scope>,
        count: usize,
    ) -> (Vec<Key>, Option<Scope>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let halted = |(_, place): &(&Scope, &Place)| !place.active.is_empty();
        let scopes: Vec<&Scope> = self
            .places
            .range::<Scope, _>((from, Bound::Unbounded))
            .filter(halted)
            .map(|(scope, _)| scope)
            .take(count)
            .collect();
        let last = scopes.last().filter(|_| scopes.len() == count).map(|scope| (*scope).clone());
        (scopes.iter().flat_map(|scope| self.keys(scope)).collect(), last)
    }

    /// How many halts in force followed from Redis.
    pub(super) const fn halts_from_redis(&self) -> usize {
        self.from_redis
    }

    /// How many halts in force are not written, being one tenant's.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Whether an order of this id is known.
    pub(super) fn knows(&self, id: OrderId) -> bool {
        self.halts.contains_key(&id) || self.others.contains(&id)
    }

    /// What the keys of a scope are to say; `None` where nothing was ever ordered.
    pub(super) fn wanted(&self, scope: &Scope) -> Option<Write> {
        let place = self.places.get(scope)?;
        let first = place.active.first().and_then(|(_, id)| self.halts.get(id));
        let (order, active) = match first {
            Some(halt) => (halt, true),
            None => (place.released.as_ref()?, false),
        };
        let written = Written {
            active,
            reason: &order.reason,
            activated_by: &order.issued_by,
            timestamp: match place.renewed {
                Some(renewed) if active => renewed.max(order.issued_at),
                _ => order.issued_at,
            },
            order_id: order.id,
        };
        Some(Write { text: written.text(), active, over: false })
    }

    /// Says what to do about a key that says this.
    pub(super) fn judge(&mut self, key: &Key, found: &Found, now: Now) -> Judgement {
        let scope = key.scope();
        let Found::Active(claim) = found else {
            return match self.wanted(scope) {
                Some(wanted) if wanted.active => Judgement::Write(wanted),
                // Gone, or not active: as it is to be, in whatever words.
                _ => Judgement::Leave,
            };
        };
        self.remember(key);
        let standing = self.standing(scope, claim);
        let halted = self.halted_from_redis(scope);
        match (standing, self.places.get_mut(scope)) {
            (Standing::InForce, _) => Judgement::Leave,
            (Standing::Over, _) => self.put_back(scope, now),
            (Standing::Foreign { .. } | Standing::Renewed, Some(place)) if halted => {
                // It may be another server's value: two would overwrite each other without end.
                place.honoured = Some(claim.clone());
                Judgement::Leave
            }
            (Standing::Outside, Some(place)) if halted => {
                // One halt for a scope. Another server may have released it: it learns by the time
                // that this activation is a later one.
                place.honoured = Some(claim.clone());
                place.renewed = Some(now.wall);
                self.wanted(scope).map_or(Judgement::Leave, Judgement::Write)
            }
            (_, Some(place)) if place.honoured.as_ref() == Some(claim) => self.put_back(scope, now),
            (standing, _) => {
                let id = match standing {
                    Standing::Foreign { import } => Some(import),
                    _ => None,
                };
                Judgement::Halt(NewHalt { id, scope: scope.clone(), claim: claim.clone() })
            }
        }
    }

    fn put_back(&self, scope: &Scope, now: Now) -> Judgement {
        let insisted = self.places.get(scope).and_then(|place| place.insisted);
        match self.wanted(scope) {
            None => Judgement::Leave,
            Some(wanted) if insisted.is_some_and(|insisted| now.boot < insisted.until) => {
                // Another halt stands here: that the key says so is right.
                if wanted.active { Judgement::Leave } else { Judgement::Insists }
            }
            Some(wanted) => Judgement::Write(Write { over: true, ..wanted }),
        }
    }

    /// A halt was given for a claim: the same claim, met again after its release, is an old one.
    pub(super) fn honoured(&mut self, halt: &NewHalt) {
        self.places.entry(halt.scope.clone()).or_default().honoured = Some(halt.claim.clone());
    }

    /// A value was written.
    pub(super) fn written(&mut self, key: &Key, write: &Write, now: Now) {
        let Some(place) = self.places.get_mut(key.scope()) else { return };
        // What was honoured stands there no more; whoever writes it again means it.
        place.honoured = None;
        if write.over {
            // The release itself, and a copy of before it, are written over at once.
            let pause = place
                .insisted
                .map_or(Duration::ZERO, |before| (before.pause * 4).clamp(INSISTED.0, INSISTED.1));
            place.insisted = Some(Insisted { until: now.boot + pause, pause });
        }
    }

    /// Follows another spelling of the key of a scope that was halted: strangers' keys alone take no
    /// room.
    fn remember(&mut self, key: &Key) {
        let Some(place) = self.places.get_mut(key.scope()) else { return };
        if *key != Key::of(key.scope()) && place.aliases.len() < ALIASES_MAX {
            place.aliases.insert(key.clone());
        }
    }

    fn halted_from_redis(&self, scope: &Scope) -> bool {
        let active = self.places.get(scope).into_iter().flat_map(|place| place.active.iter());
        active.filter_map(|(_, id)| self.halts.get(id)).any(|order| is_from_redis(order))
    }

    fn standing(&self, scope: &Scope, claim: &Claim) -> Standing {
        let Some(stated) = claim.order else { return Standing::Outside };
        let covers = |id: &OrderId| self.halts.get(id).is_some_and(|order| stands_at(order, scope));
        let import = import(scope, stated);
        let echo = self.echoes.get(&stated).copied();
        let Some(known) = [Some(stated), Some(import), echo].into_iter().flatten().find(covers)
        else {
            // The id of a release: a tool read what that had written, and set `active` in it.
            return if self.others.contains(&stated) || self.knows(import) {
                Standing::Outside
            } else {
                Standing::Foreign { import }
            };
        };
        match self.ended.get(&known) {
            None => Standing::InForce,
            Some(release) if claim.at.is_some_and(|at| at > release.issued_at) => Standing::Renewed,
            Some(_) => Standing::Over,
        }
    }
}

impl Place {
    fn release(&mut self, release: &Arc<Order>) {
        let later = |known: &Arc<Order>| known.issued_at <= release.issued_at;
        if self.released.as_ref().is_none_or(later) {
            self.released = Some(Arc::clone(release));
        }
        self.insisted = None;
    }
}

/// Keys of Redis are everybody's. What a tenant's token halted is written only where the scope is
/// that tenant: an id like `user:bob` may be another's bob, too.
fn is_written(order: &Order, scope: &Scope) -> bool {
    order.tenant.as_ref().is_none_or(|tenant| {
        matches!(scope, Scope::Entity { kind: estoppel_model::Kind::Tenant, id } if id == tenant)
    })
}

fn stands_at(order: &Order, scope: &Scope) -> bool {
    is_written(order, scope) && order.scope.iter().any(|own| own == scope)
}

fn is_from_redis(order: &Order) -> bool {
    order.issued_by.as_str() == ACTOR
}

/// Under which id a server takes over another's halt: the same on every server, so that each knows
/// its own by it, and what was taken over once keeps its id (RFC 9562, version 8).
fn import(scope: &Scope, order: OrderId) -> OrderId {
    if order.as_uuid().get_version_num() == 8 {
        return order;
    }
    let mut hash = Sha256::new_with_prefix(b"estoppel redis halt v1\n");
    hash.update(order.as_bytes());
    hash.update(scope.to_string());
    let hash: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    OrderId::from_uuid(Builder::from_custom_bytes(bytes).into_uuid())
}

#[cfg(test)]
mod tests;
