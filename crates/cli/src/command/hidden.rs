//! This binary in other roles, each of which must come before anything is set up.

use std::process::ExitCode;

/// The SQL worker's subcommand.
pub(crate) const SQL_WORKER: &str = "sql-worker";
/// The subcommand of what watches a server.
pub(crate) const WATCHDOG: &str = "watchdog";
/// The demo agent's subcommand.
pub(crate) const DEMO_AGENT: &str = "demo-agent";
/// The subcommand of a benchmark's guards.
pub(crate) const BENCH_GUARDS: &str = "bench-guards";
/// The subcommand of a benchmark's subscribers.
pub(crate) const BENCH_SWARM: &str = "bench-swarm";

/// A coding agent's hook.
const HOOK: &str = "hook";

/// Runs the role that the first argument names, if it names one.
pub(crate) fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?;
    match role.to_str()? {
        SQL_WORKER => Some(estoppel_eventlog::worker::main()),
        estoppel_host::shim::SUBCOMMAND => Some(estoppel_host::shim::main(args)),
        WATCHDOG => Some(super::watchdog::main(args)),
        DEMO_AGENT => Some(super::demo::agent()),
        BENCH_GUARDS => Some(super::bench::guards()),
        BENCH_SWARM => Some(super::bench::swarm()),
        // As `estoppel-hook`; what else is below `hook` has a word of its own.
        HOOK => {
            let args: Vec<_> = args.collect();
            let is_call = args.first().is_none_or(|first| first == "--state");
            is_call.then(|| estoppel_hook::client::main(args))
        }
        _ => None,
    }
}
