//! The log as its users have it: with a real worker process, a real disk or a crashing one.
//!
//! This program is its own SQL worker: started with `sql-worker` it runs that instead of tests.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests, which Clippy does not know as such without the standard harness"
)]

mod durability;
mod isolation;
mod limits;
mod queries;
mod sealing;
mod support;
mod tenants;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(support::WORKER) {
        return estoppel_eventlog::worker::main();
    }
    let trials: Vec<Trial> = [
        durability::tests(),
        isolation::tests(),
        limits::tests(),
        queries::tests(),
        sealing::tests(),
        tenants::tests(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
