//! Arguments of what stops and what starts again.

use clap::{Args as ClapArgs, Subcommand};
use estoppel_model::{Destination, EntityId, OrderId, Scope, Timestamp};

use crate::span::Span;

#[derive(Debug, ClapArgs)]
pub(crate) struct HaltArgs {
    /// What to halt: global, or KIND:ID (agent, session, user, task, tenant, plugin, tool, component)
    #[arg(default_value = "global", value_name = "SCOPE", num_args = 1..)]
    pub scope: Vec<Scope>,
    /// Why
    #[arg(long, short, required_unless_present = "plan")]
    pub reason: Option<String>,
    /// Say what it would hit, and halt nothing
    #[arg(long, conflicts_with_all = ["wait", "until", "local"])]
    pub plan: bool,
    /// Wait until every enforcer has settled, with live progress
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, default_value_t = 30, value_name = "SECONDS", requires = "wait")]
    pub timeout: u64,
    /// Halt what runs under `estoppel run` on this host, without any server
    #[arg(long, conflicts_with_all = ["wait", "until"])]
    pub local: bool,
    /// When the server shall release it by itself
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReleaseArgs {
    /// The scope whose halts end
    #[arg(value_name = "SCOPE", required_unless_present = "approve")]
    pub scope: Vec<Scope>,
    /// The halts that end; may be left out when one alone is active at the scope
    #[arg(long = "halt", value_name = "ID")]
    pub halts: Vec<OrderId>,
    /// Why it is safe to start again
    #[arg(long, short)]
    pub reason: String,
    /// Approve a release that another person asked for
    #[arg(long, value_name = "ID", conflicts_with_all = ["scope", "halts", "watch", "no_watch"])]
    pub approve: Option<uuid::Uuid>,
    /// Watch closely, for this long, what starts again [default: 24h, and not after `global`]
    #[arg(long, value_name = "SPAN")]
    pub watch: Option<Span>,
    /// Do not watch it closely
    #[arg(long, conflicts_with = "watch")]
    pub no_watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrillCommand {
    /// Send a canary halt through every connected enforcer, without touching a session
    #[command(after_help = "\
Example:
  estoppel drill kill-switch --json

Ends with 9 when an enforcer did not answer, observes only, or lets the canary through.")]
    KillSwitch,
    /// List the last drills
    #[command(after_help = "\
Example:
  estoppel drill list")]
    List,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Show one halt: who has confirmed what
    #[arg(long, value_name = "ID")]
    pub halt: Option<OrderId>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct KillTaskArgs {
    /// The task
    #[arg(long)]
    pub task_id: EntityId,
    /// Why
    #[arg(long, short, default_value = "killed by hand")]
    pub reason: String,
}

#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "\
estoppel limit <SCOPE>... --reason <REASON> <BOUND>... [OPTIONS]
       estoppel limit list"
)]
pub(crate) struct LimitArgs {
    #[command(subcommand)]
    pub command: Option<LimitCommand>,
    /// For whom
    #[arg(required = true, value_name = "SCOPE", num_args = 1..)]
    pub scope: Vec<Scope>,
    /// Why
    #[arg(long, short, required = true)]
    pub reason: Option<String>,
    #[command(flatten)]
    pub bounds: Bounds,
}

/// What a limit bounds.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Bounds, one at least")]
#[group(multiple = true, required = true)]
pub(crate) struct Bounds {
    /// Steps of a task at most
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Time of a task at most, such as 15m
    #[arg(long, value_name = "SPAN")]
    pub wall_clock: Option<Span>,
    /// Cost of a task at most, in US dollars
    #[arg(long, value_name = "USD")]
    pub cost: Option<f64>,
    /// Tokens of a task at most
    #[arg(long, value_name = "N")]
    pub tokens: Option<u64>,
    /// Calls of tools at the same time at most
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// Errors in a row at most
    #[arg(long, value_name = "N")]
    pub errors: Option<u32>,
    /// Identical calls in a row, or cycles of them, at most
    #[arg(long, value_name = "N")]
    pub identical: Option<u32>,
    /// Steps of a task each minute at most; at a gateway, requests to each destination
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<u32>,
    /// Refuse steps that are not declared to change nothing
    #[arg(long)]
    pub read_only: bool,
    /// Refuse an access whose two tenants differ or are not known
    #[arg(long)]
    pub tenant_validation_strict: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// List the limits in force
    #[command(after_help = "\
Examples:
  estoppel limit list
  estoppel release agent:support --halt 0197... --reason 'the mailbox was emptied'     ends one")]
    List,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BlockArgs {
    /// HOST or HOST:PORT
    pub destination: Destination,
    /// For whom
    #[arg(long, default_value = "global")]
    pub scope: Vec<Scope>,
    /// Why
    #[arg(long, short)]
    pub reason: String,
}
