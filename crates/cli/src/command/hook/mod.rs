//! `hook`: coding agents under the kill switch, by their own hooks.

mod canary;
mod desk;
mod doctor;
mod install;
mod serve;

use std::path::{Path, PathBuf};

use estoppel_hook::{client, config};

pub(super) use doctor::checks;

use crate::{
    args::{Connect, HookCommand},
    error::{CommandError, Exit, Result},
    output::Output,
};

/// `estoppel hook`.
pub(crate) fn hook(command: Option<HookCommand>, connect: &Connect, output: &Output) -> Result {
    match command {
        None => Ok(client::main([])),
        Some(HookCommand::Install(args)) => install::install(&args, connect, output),
        Some(HookCommand::Uninstall(args)) => install::uninstall(&args, output),
        Some(HookCommand::Serve { state }) => serve::serve(&state),
    }
}

/// The hook's folder: the one that is given, else the user's.
fn state_folder(given: Option<&Path>) -> Result<PathBuf> {
    let none = || {
        CommandError::message(Exit::Usage, "there is no folder for the hook's state")
            .hint("set HOME, or give --state DIR")
    };
    match given {
        Some(given) => Ok(std::path::absolute(given)?),
        None => {
            config::default_state(|name| std::env::var_os(name).map(PathBuf::from)).ok_or_else(none)
        }
    }
}
