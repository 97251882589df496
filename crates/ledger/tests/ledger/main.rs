//! The ledger on real disks, faulty disks, and in hostile hands.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod appending;
mod crash;
mod damage;
mod faults;
mod flips;
mod proofs;
mod support;
