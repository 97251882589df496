//! A server is killed (SIGKILL) at each moment of a halt by detection, from the halt itself over
//! every record to the end of the run, then started again: no run is lost, no destructive effect
//! comes twice, a repeated page carries the same deduplication key, and what nobody can tell ends
//! `indeterminate`.
//!
//! This program is its own server: started with `serve`, it is the server that dies. The moments are
//! not listed here: a play without a crash writes them down, and each is then played with one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, speaks the test runner's language, and polls another process"
)]

mod each_moment;
mod play;
mod questions;
mod server;
mod world;

use std::process::ExitCode;

/// A test's name, and what it does.
type Test = (String, Box<dyn Fn()>);

fn tests() -> Vec<Test> {
    each_moment::tests().into_iter().chain(questions::tests()).collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => server::serve(&args),
        Some("sql-worker") => estoppel_eventlog::worker::main(),
        // What a test runner asks.
        Some("--list") => {
            if !args.iter().any(|arg| arg == "--ignored") {
                for (name, _) in tests() {
                    println!("{name}: test");
                }
            }
            ExitCode::SUCCESS
        }
        _ => {
            let wanted: Vec<&String> =
                args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
            for (name, test) in tests() {
                if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(*wanted)) {
                    test();
                    println!("{name} ok");
                }
            }
            ExitCode::SUCCESS
        }
    }
}
