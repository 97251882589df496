//! What an enforcer is started with, what it is told, and what it answers.

use std::sync::Arc;

use estoppel_model::{EnforcerId, EntityId, Order, OrderId, SignedOrder, Subject};
use serde::{Deserialize, Serialize};

use crate::{
    break_glass::{GlassError, GlassUse, SignedBreakGlass},
    frame::{Action, EnforcerKind, Outcome, Settlement, ToEnforcer, ToServer},
};

/// Who an enforcer is.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Made at its start, kept over reconnects.
    pub id: EnforcerId,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// A name for people.
    pub name: String,
    /// The subjects that it enforces, where it knows them beforehand.
    pub subjects: Vec<Subject>,
    /// Its own public key, lower-case hex.
    pub key: String,
    /// What limits what it can do, in words.
    pub gaps: Vec<String>,
}

/// What an enforcer keeps over a restart. It can only add halts.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The server's key that it saw first.
    pub server_key: Option<String>,
    /// The tenant that its token is bound to.
    pub tenant: Option<EntityId>,
    /// The last checkpoint that it saw.
    pub checkpoint: Option<String>,
    /// Whom to call.
    pub contact: Option<String>,
    /// How much it has used of break-glass files.
    pub break_glass: Vec<GlassUse>,
    /// Its orders.
    pub orders: Vec<SignedOrder>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection to a server stands.
    Connected,
    /// It is gone.
    Disconnected,
    /// A frame came.
    Frame(ToEnforcer),
    /// Time passed; due at [`super::Enforcer::next_tick`].
    Tick,
    /// Work in flight that an order reaches has ended here.
    Settled {
        /// The order.
        order: OrderId,
        /// What settling came to.
        settlement: Settlement,
    },
    /// An action came to this.
    Outcome(Outcome),
    /// A halt was given on this host, signed with the enforcer's own key.
    Local(SignedOrder),
    /// The break-glass file that lies in the state folder now, if one does. To be said about once a
    /// second while [`super::Enforcer::looks_for_break_glass`].
    BreakGlass(Option<Box<SignedBreakGlass>>),
    /// What [`Keep::BreakGlass`] asked for is on the disk.
    BreakGlassKept(Box<GlassUse>),
}

/// What to do about it, in order.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Let the enforcement code see [`super::Enforcer::verdicts`], [`super::Enforcer::lease_until`]
    /// and [`super::Enforcer::goes_on_until`] as they are now.
    Publish,
    /// Send a frame on the connection.
    Send(ToServer),
    /// An order came into force: cut what it reaches.
    Ordered(Arc<Order>),
    /// These orders ended.
    Released {
        /// Those that were in force until now.
        orders: Vec<OrderId>,
    },
    /// Do this once.
    Act(Box<Action>),
    /// The lease is over, and no break-glass lets agents go on.
    LeaseLost,
    /// A lease holds again, or for the first time; or a break-glass lets agents go on without.
    LeaseRegained,
    /// The lease is over, and a break-glass that was found before lets agents go on: it is time to say
    /// [`Input::BreakGlass`], so that the use is written down.
    GoesOn,
    /// The break-glass file that lies there lets nobody go on.
    BreakGlassRefused(GlassError),
    /// The orders are in step with the server's.
    InSync,
    /// Keep this over a restart.
    Keep(Keep),
    /// End the connection.
    Disconnect {
        /// Why, for people.
        reason: String,
    },
    /// What came was not taken; it changed nothing.
    Rejected {
        /// Why, for people.
        reason: String,
    },
}

/// One thing to keep over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The server's key.
    ServerKey(String),
    /// The tenant that the token is bound to; it replaces the one before.
    Tenant(Option<EntityId>),
    /// The last checkpoint; it replaces the one before.
    Checkpoint(String),
    /// Whom to call; it replaces the one before.
    Contact(Option<String>),
    /// How much of a break-glass file is used; it replaces what was kept of this file. When it is on
    /// the disk, [`Input::BreakGlassKept`] is to be said: without it nobody goes on.
    BreakGlass(Box<GlassUse>),
    /// An order.
    Order(SignedOrder),
}
