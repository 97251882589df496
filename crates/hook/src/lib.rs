//! Coding agents: what their hooks hand in, what they are answered, and the settings that install
//! the hook.
//!
//! An agent starts a hook's command for each thing that it is about to do. That command is
//! [`client`], which starts within a millisecond or two because it holds neither a connection nor
//! orders: it asks a resident process of the same user over a socket ([`wire`]), which holds a guard
//! with its lease. Whatever the client cannot find out within its deadline it refuses, unless the
//! owner chose otherwise.
//!
//! [`input`], [`answer`] and [`settings`] are pure. The resident process is in the binary: this crate
//! links no runtime, no network and no guard, and so stays small.
//!
//! What it does not do: make an agent call its hooks. Settings can be changed by whoever runs as the
//! same user, the agent included; `estoppel doctor` says what it finds, and `estoppel run` does not
//! depend on it.

pub mod answer;
pub mod client;
pub mod config;
pub mod input;
pub mod moment;
pub mod settings;
pub mod wire;
