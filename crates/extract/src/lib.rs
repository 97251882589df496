//! Normal forms of what agents and strangers write: destinations, allowlists, addresses, the name
//! in a TLS ClientHello, and text before it is searched.
//!
//! The gateway, the guard and the detectors must agree on what a name means, so they all read it
//! here. Whatever has two readings is refused rather than guessed: an address check that reads
//! `0x7f.1` unlike the resolver does is no check. The crate is pure: no input or output, no clock.
//! It resolves no names and decides nothing; the callers do.

pub mod address;
pub mod allowlist;
pub mod client_hello;
pub mod destination;
pub mod text;

pub use allowlist::{Allowlist, AllowlistError, Entry};
pub use destination::{Host, HostError, HostPort};
