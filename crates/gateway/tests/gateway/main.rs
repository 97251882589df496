//! The gateway over real sockets on 127.0.0.0/8, with real orders and real TLS.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod addresses;
mod cut;
mod hostile;
mod identity;
mod link;
mod modes;
mod support;
mod tunnels;
