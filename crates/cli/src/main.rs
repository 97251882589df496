//! The `estoppel` binary: arguments, configuration, wiring. Logic is in the library crates.

mod args;
mod command;
mod config;
mod error;
mod output;
mod span;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Before anything else: these two are this binary in a role of its own, which must not start
    // threads, read a configuration or set up logs.
    if let Some(code) = command::hidden::dispatch() {
        return code;
    }
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(wrong) => return output::misuse(&wrong, std::env::args_os().skip(1)),
    };
    output::start_log(args.log.as_deref(), args.log_format);
    let output = output::Output::new(args.json);
    match command::run(args.command, &args.connect, &output) {
        Ok(code) => code,
        Err(error) => output.error(&error),
    }
}
