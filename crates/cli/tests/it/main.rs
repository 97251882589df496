//! The binary as its users meet it: real processes, real sockets, real curl.

mod bad_input;
mod demo;
mod events;
mod kill_switch;
mod outage;
mod stage;
