//! One module a command. Each turns typed arguments into calls of a library and prints the answer.

use std::process::ExitCode;

use estoppel_api::{Client, Trust};
use estoppel_model::{Scope, ScopeSet, Secret, Subject};

use crate::{
    args::{Command, Connect, SubjectArgs},
    error::{CommandError, Exit, Result},
    output::Output,
};

mod allowlist;
mod backup;
mod bench;
mod break_glass;
mod demo;
mod doctor;
mod drill;
mod enforcer;
mod evidence;
mod gateway;
mod halt;
pub(crate) mod hidden;
mod hook;
mod incident;
mod ledger;
mod plan;
mod playbook;
mod run;
mod serve;
mod sql;
mod status;
mod supervisor;
mod token;
mod wait;
mod watchdog;

/// Runs a command to its end.
pub(crate) fn run(command: Command, connect: &Connect, output: &Output) -> Result {
    match command {
        Command::Serve(args) => serve::serve(&args, output),
        Command::Gateway(args) => gateway::gateway(&args, connect),
        Command::Run(args) => run::run(args, connect, output),
        Command::Halt(args) if args.local => halt::local(args, output),
        Command::Halt(args) => block_on(halt::halt(args, connect, output)),
        Command::Release(args) => block_on(halt::release(args, connect, output)),
        Command::BreakGlass { command } => {
            block_on(break_glass::break_glass(command, connect, output))
        }
        Command::Drill { command } => block_on(drill::drill(command, connect, output)),
        Command::KillTask(args) => block_on(halt::kill_task(args, connect, output)),
        Command::Block(args) => block_on(halt::block(args, connect, output)),
        Command::Limit(args) => block_on(halt::limit(args, connect, output)),
        Command::Status(args) => block_on(status::status(&args, connect, output)),
        Command::Sql(args) => block_on(sql::sql(args, connect, output)),
        Command::Incident { command } => block_on(incident::incident(command, connect, output)),
        Command::Evidence { command } => evidence::evidence(command, connect, output),
        Command::Report(args) => block_on(incident::report(args, connect, output)),
        Command::Allowlist { command } => block_on(allowlist::allowlist(command, connect, output)),
        Command::Hook { command } => hook::hook(command, connect, output),
        Command::Playbook { command } => block_on(playbook::playbook(command, connect, output)),
        Command::Ledger { command } => ledger::ledger(&command, output),
        Command::Backup(args) => backup::backup(&args, output),
        Command::Restore { from, data } => backup::restore(&from, &data, output),
        Command::Token { command } => block_on(token::token(command, connect, output)),
        Command::Config { command } => serve::config(&command, output),
        Command::Doctor(args) => doctor::doctor(&args, connect, output),
        Command::Demo(args) => demo::demo(&args, output),
        Command::Bench(args) => bench::bench(&args, output),
        Command::Completions { shell } => completions(shell, output),
    }
}

fn completions(shell: clap_complete::Shell, output: &Output) -> Result {
    let mut script = Vec::new();
    let mut command = <crate::args::Args as clap::CommandFactory>::command();
    clap_complete::generate(shell, &mut command, "estoppel", &mut script);
    let script = String::from_utf8_lossy(&script);
    let document = serde_json::json!({ "shell": shell.to_string(), "script": script });
    output.answer(&document, |_| script.into_owned())?;
    Ok(ExitCode::SUCCESS)
}

/// A runtime for a command that asks a server something and ends.
fn block_on(command: impl Future<Output = Result>) -> Result {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

impl Connect {
    /// The token, from the argument, the environment or the file.
    pub(crate) fn token(&self) -> Result<Secret<String>> {
        if let Some(token) = &self.token {
            return Ok(Secret::new(token.clone()));
        }
        // Beside a server that was started here, the first start's token is the one.
        let default = std::path::Path::new("estoppel-data/admin.token");
        let file = self.token_file.as_deref().or_else(|| default.exists().then_some(default));
        let Some(file) = file else {
            return Err(CommandError::message(Exit::NotAllowed, "no token is given").hint(
                "set ESTOPPEL_TOKEN, or ESTOPPEL_TOKEN_FILE=DATA/admin.token on the server's machine",
            ));
        };
        token_of(file)
    }

    /// Who may vouch for the server.
    pub(crate) fn trust(&self) -> Result<Trust> {
        match &self.ca {
            None => Ok(Trust::system()),
            Some(file) => Trust::only(file).map_err(|error| CommandError::new(Exit::Usage, error)),
        }
    }

    /// A client of the server.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::trusting(&self.url, self.token()?, &self.trust()?)?)
    }
}

/// The token that a file holds.
fn token_of(file: &std::path::Path) -> Result<Secret<String>> {
    let token = std::fs::read_to_string(file).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("token file `{}`", file.display()));
        CommandError::new(Exit::NotAllowed, error)
    })?;
    Ok(Secret::new(token.trim().to_owned()))
}

impl SubjectArgs {
    /// The subject that the arguments name.
    pub(crate) fn subject(self) -> Subject {
        Subject {
            agent: self.agent,
            session: self.session,
            user: self.user,
            task: self.task,
            tenant: self.tenant,
            ..Subject::default()
        }
    }
}

/// The union of the scopes of an argument.
fn union(scopes: Vec<Scope>) -> Result<ScopeSet> {
    ScopeSet::new(scopes).map_err(|error| CommandError::new(Exit::Usage, error))
}
