//! The kill switch from outside: folds against a naive model, and each side by itself. Both sides
//! together, in a hostile world, are the simulation's.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by a panic; clippy's setting knows functions marked `#[test]` only"
)]

mod break_glass;
mod by_hand;
mod confirmed;
mod enforcer;
mod lease;
mod orders;
mod stream;
mod support;
mod switch;
