//! The binary as its users meet it: real processes, real sockets, real curl.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says what it skips, and polls other processes"
)]

mod backup;
mod bad_input;
mod break_glass;
mod chat;
mod commands;
mod contract;
mod demo;
mod drain;
mod drills;
mod events;
mod evidence;
mod full_disk;
mod gateway;
mod guards;
mod halt_page;
mod health;
mod hooks;
mod hosted;
mod incidents;
mod kill_switch;
mod ledger;
mod logs;
mod metrics;
mod openapi;
mod outage;
mod packaging;
mod pages;
mod proof;
mod redis;
mod redis_server;
mod releases;
mod run;
mod runaway;
mod stage;
mod tls;
mod tokens;
mod watchdog;
