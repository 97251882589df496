//! The kill switch as sans-IO state machines: what is ordered, what that means for a subject, how
//! the two sides of the stream keep in step, and who has confirmed.
//!
//! - [`OrderSet`]: all orders that a side knows; only ever grows (invariant *starting-always-does*).
//! - [`Verdicts`]: the fold of what is in force, for the hot path (*hot-path-is-local*).
//! - [`Lease`]: until when an enforcer may go on without a server (*lease*).
//! - [`break_glass`]: the one way to go on without, signed and short.
//! - [`enforcer::Enforcer`] and [`server::Switch`]: the two sides, `step(input, now) → effects`.
//!   Everything else only drives them, the simulation does, too.
//! - [`breaker`]: what each task has done, and which is over a bound, for whoever counts steps.
//! - [`invariant`]: the registry of what must hold, and what checks it while both run.
//!
//! Absent here: sockets, files, clocks, keys. Time comes in with each input, signatures are checked
//! and made through [`Signatures`] and [`Signer`].

mod audience;
mod canary;
mod cow_map;
mod digest;
mod lease;
mod order_set;
mod rate;
mod sorted;
#[cfg(test)]
mod tests;
mod verdicts;

pub mod break_glass;
pub mod breaker;
pub mod enforcer;
pub mod frame;
pub mod invariant;
pub mod server;

pub use audience::{Audience, reaches};
pub use canary::{DRILL_ACTOR, SERVER_ACTOR_PREFIX, canary_of, canary_scope, is_drill};
pub use digest::Digest;
pub use lease::{LEASE_MAX, Lease};
pub use order_set::{Added, Insert, OrderSet};
pub use rate::{Rate, TooSoon};
pub use verdicts::Verdicts;

use estoppel_model::{Boottime, SignedOrder, Timestamp};

/// The moment of an input, on both clocks of the machine that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For people and records.
    pub wall: Timestamp,
    /// For leases.
    pub boot: Boottime,
}

/// Checks signatures.
pub trait Signatures: Send {
    /// Whether `order.signature` is `order.key`'s over the text. Whose key that is, and what it may
    /// sign, the caller decides.
    fn are_valid(&self, order: &SignedOrder) -> bool;
}

/// Checks signatures and makes the server's own.
pub trait Signer: Signatures {
    /// The server's public key, lower-case hex.
    fn key(&self) -> &str;

    /// Signs an order's text with the server's key.
    fn sign(&self, order: String) -> SignedOrder;
}
