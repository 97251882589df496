//! Who is in a fleet, and what is ordered.

use std::{sync::Arc, time::Duration};

use estoppel_killswitch::{
    Now, Signer as _,
    enforcer::{Enforcer, Kept, Profile},
    frame::{EnforcerKind, Hello, PROTOCOL, SetDigest, Settlement},
    invariant::{EnforcerWatch, Tally},
    server::Identity,
};
use estoppel_model::{
    Actor, Boottime, EnforcerId, Order, OrderBody, OrderId, Scope, SignedOrder, Timestamp,
};
use estoppel_testkit::keys::{self, Keys};
use uuid::Uuid;

use crate::machine::EPOCH_US;

/// The moment at which everything begins.
pub(super) const START: Now =
    Now { wall: Timestamp::from_micros(EPOCH_US), boot: Boottime::from_nanos(0) };
/// Who is halted.
const HALTED: &str = "session:halted";

/// An enforcer, and its end of the connection.
pub(super) struct Member {
    pub(super) enforcer: Enforcer,
    pub(super) watch: EnforcerWatch,
    pub(super) connection: Option<u64>,
    pub(super) failures: u32,
    /// When its next frame in each direction may arrive at the earliest: none overtakes another.
    pub(super) up: Duration,
    pub(super) down: Duration,
    pub(super) tick_at: Duration,
    pub(super) lost_a_lease: bool,
}

impl Member {
    pub(super) fn new(number: usize, tally: &Arc<Tally>) -> Self {
        let hello = hello(number, SetDigest { count: 0, root: String::new() });
        let profile = Profile {
            id: hello.enforcer,
            kind: hello.kind,
            name: hello.name,
            subjects: hello.subjects,
            key: hello.key,
            gaps: hello.gaps,
        };
        let (enforcer, _) = Enforcer::new(profile, Box::new(Keys), Kept::default());
        Self {
            enforcer,
            watch: EnforcerWatch::new(Arc::clone(tally)),
            connection: None,
            failures: 0,
            up: Duration::ZERO,
            down: Duration::ZERO,
            tick_at: Duration::ZERO,
            lost_a_lease: false,
        }
    }
}

/// Who is at the other end of a member's connection.
pub(super) fn identity(member: usize) -> Identity {
    // A fleet is given tokens by the hundred, not one each.
    let actor = Actor::new(&format!("token-{}", member / 100)).expect("a name");
    Identity { actor, tenant: None, scopes: None }
}

pub(super) fn hello(member: usize, set: SetDigest) -> Hello {
    Hello {
        protocol: PROTOCOL,
        enforcer: EnforcerId::from_uuid(Uuid::from_u64_pair(1, member as u64)),
        kind: EnforcerKind::Guard,
        name: format!("agent-{member}.fleet.example"),
        subjects: Vec::new(),
        key: keys::own(member as u64),
        set,
        checkpoint: None,
        gaps: Vec::new(),
    }
}

/// The halt of this number; the one with number 0 is old, and of another session.
pub(super) fn halt(number: u64) -> Order {
    let scope = if number == 0 { "session:old" } else { HALTED };
    let scope: Scope = scope.parse().expect("a scope");
    Order {
        id: OrderId::from_uuid(Uuid::from_u64_pair(7, number)),
        scope: scope.into(),
        reason: "suspected prompt injection".to_owned(),
        issued_by: Actor::new("alice").expect("a name"),
        issued_at: START.wall,
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    }
}

pub(super) fn signed(order: &Order) -> SignedOrder {
    Keys.sign(serde_json::to_string(order).expect("orders are plain data"))
}

pub(super) fn settlement() -> Settlement {
    Settlement { steps_cancelled: 1, ..Settlement::default() }
}
