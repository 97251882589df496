//! This binary in other roles, each of which must come before anything is set up.

use std::process::ExitCode;

/// The SQL worker's subcommand.
pub(crate) const SQL_WORKER: &str = "sql-worker";
/// The demo agent's subcommand.
pub(crate) const DEMO_AGENT: &str = "demo-agent";

/// Runs the role that the first argument names, if it names one.
pub(crate) fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?;
    match role.to_str()? {
        SQL_WORKER => Some(estoppel_eventlog::worker::main()),
        estoppel_host::shim::SUBCOMMAND => Some(estoppel_host::shim::main(args)),
        DEMO_AGENT => Some(super::demo::agent()),
        _ => None,
    }
}
