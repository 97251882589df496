//! Arguments of `hook`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use estoppel_model::EntityId;

/// A coding agent whose settings are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Agent {
    /// Claude Code
    ClaudeCode,
}

/// Which of Claude Code's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SettingsScope {
    /// Your own, for all projects: ~/.claude/settings.json
    User,
    /// This project's, for everybody: .claude/settings.json
    Project,
    /// This project's, on this machine: .claude/settings.local.json
    Local,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HookCommand {
    /// Put the hook into an agent's settings, and prove that it holds
    #[command(after_help = "\
Examples:
  estoppel hook install --for claude-code --plan      show what it would change
  estoppel hook install --for claude-code --token-file agent.token
  estoppel hook install --for claude-code --scope project --agent reviewer

Ends with 9 when the hook that it has put in was not proved to hold.")]
    Install(InstallArgs),
    /// Take the hook out of an agent's settings
    #[command(after_help = "\
Example:
  estoppel hook uninstall --for claude-code")]
    Uninstall(SettingsArgs),
    /// Serve the hooks of this user until nobody has asked for a while; hooks start it by themselves
    #[command(hide = true)]
    Serve {
        /// The hook's folder
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SettingsArgs {
    /// The agent
    #[arg(long = "for", value_name = "AGENT")]
    pub agent_kind: Agent,
    /// Which of its settings
    #[arg(long, default_value = "user")]
    pub scope: SettingsScope,
    /// The settings' file, instead of the scope's
    #[arg(long, value_name = "PATH")]
    pub settings: Option<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub plan: bool,
    /// The hook's folder (default: ~/.local/state/estoppel/hook)
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// The agent's name, for halts of `agent:NAME`
    #[arg(long, default_value = "claude-code")]
    pub agent: EntityId,
    /// The user on whose behalf it acts, for halts of `user:NAME` (default: the account's name)
    #[arg(long)]
    pub user: Option<EntityId>,
    /// What happens when no server answers for longer than the lease, or the hook cannot be asked
    #[arg(long, default_value = "refuse", value_name = "WHAT")]
    pub on_lost: OnLostArg,
    /// How long the hook waits for an answer, in milliseconds: 100 to 25000
    #[arg(long, default_value_t = 5_000, value_name = "MS",
          value_parser = clap::value_parser!(u64).range(100..=25_000))]
    pub deadline_ms: u64,
    /// After how many minutes without a step the hook's resident process ends
    #[arg(long, default_value_t = 60, value_name = "MINUTES",
          value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub idle_minutes: u64,
}

/// What a hook does when it cannot find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLostArg {
    /// Refuse
    Refuse,
    /// Go on by the orders that are known; a halt given meanwhile is not seen
    Allow,
}
