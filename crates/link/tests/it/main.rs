//! The link over real WebSockets, against a small server that is driven by
//! `estoppel_killswitch::server`: up, down, silent, hostile, restarted, replaced.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic; clippy's setting knows functions marked `#[test]` only"
)]

mod enforcing;
mod outage;
mod restart;
mod server;
