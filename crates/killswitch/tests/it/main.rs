//! The kill switch from outside: folds against a naive model, each side by itself, and both sides
//! together under a hostile network.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic; clippy's setting knows functions marked `#[test]` only"
)]

mod enforcer;
mod orders;
mod simulation;
mod support;
mod switch;
