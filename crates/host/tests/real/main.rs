//! Real processes in real cgroups and network namespaces, as `estoppel run` has them.
//!
//! A test program with a `main` of its own: it is the shim, the agents and the supervisors of its
//! tests, too. What the machine does not permit is skipped with the reason, and fails with
//! `ESTOPPEL_REAL=1`. Each test is a process of its own, as the fallback without cgroups needs it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of it is a test; clippy knows those of libtest alone"
)]

mod agents;
mod captures;
mod confinement;
mod control;
mod machine;
mod orders;
mod stopping;
mod supervision;

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

type Test = (&'static str, fn());

fn tests() -> Vec<Test> {
    [confinement::TESTS, stopping::TESTS, captures::TESTS, supervision::TESTS, control::TESTS]
        .concat()
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    match first.as_ref().and_then(|first| first.to_str()) {
        Some(estoppel_host::shim::SUBCOMMAND) => return estoppel_host::shim::main(arguments),
        Some(agents::SUBCOMMAND) => return agents::main(arguments),
        Some(supervision::SUBCOMMAND) => return supervision::main(arguments),
        _ => {}
    }
    run(&first.into_iter().chain(arguments).collect::<Vec<_>>())
}

/// What nextest asks of a test program, and `cargo test` enough.
fn run(arguments: &[OsString]) -> ExitCode {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let named: Vec<Test> = tests()
        .into_iter()
        .filter(|(name, _)| {
            let mut filters = arguments
                .iter()
                .filter_map(|argument| argument.to_str())
                .filter(|argument| !argument.starts_with('-') && *argument != "terse")
                .peekable();
            let exact = has("--exact");
            filters.peek().is_none()
                || filters.any(|it| if exact { *name == it } else { name.contains(it) })
        })
        .collect();
    if has("--list") {
        if !has("--ignored") {
            named.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    if let [(_, test)] = named.as_slice() {
        match machine::permits() {
            Ok(()) => {
                let passed = std::panic::catch_unwind(test).is_ok();
                machine::end_agents();
                return if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            }
            Err(why) if std::env::var_os("ESTOPPEL_REAL").is_some_and(|it| it == "1") => {
                panic!("ESTOPPEL_REAL=1, and this machine does not permit it: {why}");
            }
            Err(why) => eprintln!("skipped: {why}"),
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, _) in &named {
        let own = std::env::current_exe().unwrap();
        let passed = Command::new(own).args([*name, "--exact"]).status().unwrap().success();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u8::from(!passed);
    }
    ExitCode::from(failed)
}
