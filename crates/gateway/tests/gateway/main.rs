//! The gateway over real sockets on 127.0.0.0/8, with a real server behind the real link, and real
//! TLS. The same two programs with their SQL, modes and allowlist: `cli`'s tests `gateway`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod addresses;
mod breakers;
mod control;
mod cut;
mod faults;
mod hostile;
mod identity;
mod link;
mod modes;
mod support;
mod tunnels;
