//! What a switch is told, and what it answers.

use std::sync::Arc;

use estoppel_model::{
    Actor, EnforcerId, EntityId, Order, OrderError, OrderId, ScopeSet, SignedOrder,
};

use super::HaltCount;
use crate::break_glass::{BreakGlass, GlassUse};
use crate::frame::{Confirmation, ORDER_BYTES_MAX, Outcome, ToEnforcer, ToServer};

/// Names a connection; made by whoever accepts it, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Who is at the other end of a connection, from its token.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The token's name.
    pub actor: Actor,
    /// The tenant that the token is bound to.
    pub tenant: Option<EntityId>,
    /// The scopes for which it may hand back halts that were given on its host; `None`: all.
    pub scopes: Option<ScopeSet>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection stands and its token was checked.
    Connected {
        /// The connection.
        connection: ConnectionId,
        /// Whose it is.
        identity: Box<Identity>,
    },
    /// A connection is gone.
    Disconnected {
        /// The connection.
        connection: ConnectionId,
    },
    /// A frame came.
    Frame {
        /// On which connection.
        connection: ConnectionId,
        /// The frame.
        frame: ToServer,
    },
    /// Time passed; about once a second.
    Tick,
}

/// What to do about it, in order.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Send one frame to many connections of one audience; it is to be serialised once.
    Broadcast {
        /// To whom.
        connections: Vec<ConnectionId>,
        /// What.
        frame: ToEnforcer,
    },
    /// Send a frame. A connection that cannot take it is to be closed: a frame that is left out
    /// would break the lease's promise.
    Send {
        /// To whom.
        connection: ConnectionId,
        /// What.
        frame: ToEnforcer,
    },
    /// Write an order to the spool and then the ledger.
    Persist(SignedOrder),
    /// End a connection after what was sent before.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why, for the log.
        reason: String,
    },
    /// An enforcer said hello.
    Joined {
        /// Who.
        enforcer: EnforcerId,
        /// The last ledger checkpoint that it saw: to be compared with the ledger.
        checkpoint: Option<String>,
    },
    /// An enforcer's lease is over without a new one, or it left without one.
    LeaseOver {
        /// Whose.
        enforcer: EnforcerId,
    },
    /// The last lease is over that a server before this one may have given: everybody who is to be
    /// expected of an order is known.
    AllKnown,
    /// An enforcer's word on an order: see [`super::Switch::progress`].
    Confirmed {
        /// Who.
        enforcer: EnforcerId,
        /// What it said.
        confirmation: Box<Confirmation>,
        /// Whether it is the enforcer's first word on the order.
        first: bool,
        /// How far the order has been carried out with it.
        count: HaltCount,
    },
    /// What an action came to.
    Outcome {
        /// Who did it.
        enforcer: EnforcerId,
        /// What it said.
        outcome: Box<Outcome>,
    },
    /// An order that this server lacked came from an enforcer, and is in force.
    HandedBack {
        /// From whom.
        enforcer: EnforcerId,
        /// The order.
        order: Arc<Order>,
    },
    /// Agents of an enforcer went on without a lease, by a break-glass file of this server's key.
    BreakGlassUsed {
        /// Who says so.
        enforcer: EnforcerId,
        /// What the file says.
        glass: Box<BreakGlass>,
        /// How much of it was used, by the enforcer's word.
        usage: Box<GlassUse>,
    },
    /// What an enforcer sent was not taken; it changed nothing.
    Rejected {
        /// On which connection.
        connection: ConnectionId,
        /// Why, for the log.
        reason: String,
    },
}

/// What giving an order did.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// It is in force and on its way.
    New {
        /// The order.
        order: Arc<Order>,
        /// The enforcers that must confirm: all that receive it and whose lease is alive.
        expected: usize,
        /// The orders that it ended.
        ended: Vec<OrderId>,
    },
    /// The same order was given before.
    Known(Arc<Order>),
}

/// Why an order is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The text is no order.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// An order has a longest text.
    #[error("the order has {bytes} bytes: at most {ORDER_BYTES_MAX}; give several")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// Another order has this id.
    #[error("order {} is known with another text: take a new id", .0.id)]
    Conflict(Arc<Order>),
    /// A release is given only by [`super::Switch::submit_recorded`].
    #[error("a release needs the ledger first")]
    ReleaseNeedsLedger,
}
