//! Arguments. Each command's help has examples; what a script relies on is in docs/exit-codes.md.

mod evidence;
mod hooks;
mod orders;
mod processes;
mod records;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use estoppel_model::EntityId;

pub(crate) use self::{
    evidence::EvidenceCommand,
    hooks::{Agent, HookCommand, InstallArgs, OnLostArg, SettingsArgs, SettingsScope},
    orders::{
        BlockArgs, DrillCommand, HaltArgs, KillTaskArgs, LimitArgs, LimitCommand, ReleaseArgs,
        StatusArgs,
    },
    processes::{ConfigCommand, DoctorArgs, GatewayArgs, GatewayMode, RunArgs, ServeArgs},
    records::{
        AllowlistCommand, BackupArgs, BackupCommand, IncidentCommand, LedgerCommand,
        PlaybookCommand, ReportArgs, SqlArgs,
    },
    tokens::{BreakGlassCommand, Expiry, TokenCommand},
};

/// Stands above what each command takes, behind what is its own.
const COMMON: &str = "Options of each command";

/// Stops AI agents, proves that they stopped, and keeps the evidence.
#[derive(Debug, Parser)]
#[command(
    name = "estoppel",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  estoppel demo                               watch a hijacked agent being stopped
  estoppel serve                              start the control plane
  estoppel run --session abc123 -- CMD...     run an agent that can be stopped
  estoppel halt session:abc123 --reason WHY   stop it
  estoppel release session:abc123 --reason WHY"
)]
pub(crate) struct Args {
    /// Print one JSON document on standard output
    #[arg(long, global = true, help_heading = COMMON)]
    pub json: bool,
    /// What to log to standard error, such as `info` or `estoppel_gateway=debug`
    #[arg(long, global = true, env = "ESTOPPEL_LOG", value_name = "FILTER", help_heading = COMMON)]
    pub log: Option<String>,
    /// How the log is written: one line of text, or one JSON object, for each event
    #[arg(
        long,
        global = true,
        env = "ESTOPPEL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = COMMON
    )]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub connect: Connect,
    #[command(subcommand)]
    pub command: Command,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text for each event
    #[default]
    Text,
    /// One JSON object for each event, a line each
    Json,
}

/// Which server, and as whom.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = COMMON)]
pub(crate) struct Connect {
    /// The server's address
    #[arg(long, global = true, env = "ESTOPPEL_URL", default_value = "http://127.0.0.1:7600")]
    pub url: String,
    /// The token; better in the environment than on a command line that others can see
    #[arg(long, global = true, env = "ESTOPPEL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file that holds the token, such as estoppel-data/admin.token
    #[arg(long, global = true, env = "ESTOPPEL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) of those who may vouch for the server, and nobody else: a private CA
    #[arg(long, global = true, env = "ESTOPPEL_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the control plane (and a gateway beside it)
    #[command(after_help = "\
Examples:
  estoppel serve
  estoppel serve --data /var/lib/estoppel --config /etc/estoppel.toml
  estoppel serve --redis redis://127.0.0.1:6379    mirror halts to Redis, and take those from there")]
    Serve(ServeArgs),
    /// Start a gateway: the forward proxy that judges, counts and cuts agents' egress
    #[command(after_help = "\
Examples:
  estoppel gateway --token-file gateway.token
  estoppel gateway --listen 10.0.0.5:7601 --state /var/lib/estoppel-gateway

Its token has the role enforcer. Agents use it as HTTPS_PROXY, each with a credential of its own:
`estoppel token gateway`.")]
    Gateway(GatewayArgs),
    /// Run an agent so that it can be frozen, cut off and captured
    #[command(after_help = "\
Examples:
  estoppel run --session abc123 -- python agent.py
  estoppel run --session abc123 --user alice --task t1 --as 65534 -- ./agent --once

The agent runs as another user, in a cgroup and a network namespace of its own, where the gateway
alone is reachable. What this machine does not permit is said at the start and at each halt.")]
    Run(RunArgs),
    /// Put coding agents (Claude Code and others) under the kill switch, by their hooks
    #[command(after_help = "\
Examples:
  estoppel hook install --for claude-code --plan       show what it would change
  estoppel hook install --for claude-code --token-file agent.token
  estoppel hook uninstall --for claude-code
  estoppel doctor                                      shows what gets around it

Without a subcommand it is the hook itself: it reads an agent's JSON on standard input, and answers
on standard output and by its exit code (0, or 2 for what must not be).")]
    Hook {
        #[command(subcommand)]
        command: Option<HookCommand>,
    },
    /// Halt a scope, now
    #[command(after_help = "\
Examples:
  estoppel halt session:abc123 --reason 'suspected prompt injection'
  estoppel halt global --reason 'agents post to an unknown host' --wait
  estoppel halt global --plan                           what it would hit; nothing is halted
  estoppel halt 'plugin:scraper@>=2.1' --reason 'CVE' --until 2026-12-01T00:00:00Z
  estoppel halt session:abc123 --reason test --local    on the agent's host, with every server dead")]
    Halt(HaltArgs),
    /// End halts, by name and with a reason
    #[command(after_help = "\
Examples:
  estoppel release session:abc123 --reason 'false alarm, see IR-2026-001'
  estoppel release global --halt 0197... --halt 0198... --reason 'credentials rotated'
  estoppel release user:bob --reason 'password changed' --watch 7d
  estoppel release --approve 0199... --reason 'checked the logs'     as the second person")]
    Release(ReleaseArgs),
    /// Make files by which agents go on for a while although no server answers
    BreakGlass {
        #[command(subcommand)]
        command: BreakGlassCommand,
    },
    /// Try the kill switch on nobody, and see how long it takes
    Drill {
        #[command(subcommand)]
        command: DrillCommand,
    },
    /// Show halts, enforcers and what is not as it should be
    #[command(after_help = "\
Examples:
  estoppel status
  estoppel status --halt 0197...     who has confirmed this halt, and who has not")]
    Status(StatusArgs),
    /// Halt one task
    #[command(after_help = "Example:\n  estoppel kill-task --task-id runaway-123")]
    KillTask(KillTaskArgs),
    /// Refuse and cut a destination
    #[command(
        after_help = "Example:\n  estoppel block attacker.example --scope session:abc123 --reason 'exfiltration'"
    )]
    Block(BlockArgs),
    /// Bound what a scope's tasks may do; a lead releases it by the order's id
    #[command(after_help = "\
Examples:
  estoppel limit agent:support --steps 200 --cost 5 --reason 'after IR-2026-014'
  estoppel limit tenant:acme --read-only --reason 'nothing is written before the audit'
  estoppel limit list")]
    Limit(LimitArgs),
    /// Ask the event log
    #[command(after_help = "\
Example:
  estoppel sql \"SELECT tool, COUNT(*) FROM audit_log WHERE task_id = 't1' GROUP BY tool\"")]
    Sql(SqlArgs),
    /// Open, list, show, write into and close incidents
    Incident {
        #[command(subcommand)]
        command: IncidentCommand,
    },
    /// List, show, export, verify, hold and dispose of captured evidence
    #[command(after_help = "\
Examples:
  estoppel evidence list
  estoppel evidence export IR-2026-001 --output case.tar --purpose 'court order 4 O 12/26'
  estoppel evidence verify case.tar --checkpoint checkpoint-from-the-page.txt
  estoppel evidence log 0197...

Each look at evidence is recorded in its custody chain, with who and what for, before it is given
out.")]
    Evidence {
        #[command(subcommand)]
        command: EvidenceCommand,
    },
    /// Report that something is wrong; opens an incident
    #[command(
        after_help = "Example:\n  estoppel report 'the assistant showed me another customer'\\''s invoice' --session abc123"
    )]
    Report(ReportArgs),
    /// Set and show where agents may send
    Allowlist {
        #[command(subcommand)]
        command: AllowlistCommand,
    },
    /// List runs of playbooks, and approve or decline those that ask
    Playbook {
        #[command(subcommand)]
        command: PlaybookCommand,
    },
    /// Verify the ledger
    Ledger {
        #[command(subcommand)]
        command: LedgerCommand,
    },
    /// Copy a data folder, whose server may run, and verify such copies
    #[command(after_help = "\
Examples:
  estoppel backup --to /backup/estoppel-2026-11-22
  estoppel backup verify /backup/estoppel-2026-11-22

A backup holds the server's key and tokens, not encrypted: who can read it can be the server.")]
    Backup(BackupArgs),
    /// Put a backup in the place of a data folder that is empty or not there
    #[command(after_help = "\
Example:
  estoppel restore --from /backup/estoppel-2026-11-22 --data /var/lib/estoppel

Halts that were given after the backup was made come back from the enforcers that have them; tokens
that were revoked after it was made are good again: revoke them again.")]
    Restore {
        /// The backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Data folder
        #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
        data: PathBuf,
    },
    /// Make, list and revoke tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Check a configuration file
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Say what this machine and this installation can do, and what is missing
    #[command(after_help = "\
Examples:
  estoppel doctor
  estoppel doctor --data /var/lib/estoppel --json

Ends with 9 when something must be mended.")]
    Doctor(DoctorArgs),
    /// Watch a hijacked agent being stopped, cut off, preserved and reported, on this machine
    Demo(DemoArgs),
    /// Measure this build, and print JSON
    #[command(after_help = "\
Examples:
  estoppel bench check hook
  estoppel bench halt --guards 200")]
    Bench(BenchArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  estoppel completions bash > /etc/bash_completion.d/estoppel"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct SubjectArgs {
    /// The session
    #[arg(long)]
    pub session: Option<EntityId>,
    /// The task
    #[arg(long)]
    pub task: Option<EntityId>,
    /// The user on whose behalf the agent acts
    #[arg(long)]
    pub user: Option<EntityId>,
    /// The tenant
    #[arg(long)]
    pub tenant: Option<EntityId>,
    /// The agent
    #[arg(long)]
    pub agent: Option<EntityId>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  estoppel demo              the gateway observes: something leaks, and the agent is stopped
  estoppel demo --enforce    the gateway refuses: nothing leaks
  estoppel demo --scenario runaway    a Python agent retries without end, and its breaker trips")]
pub(crate) struct DemoArgs {
    /// What goes wrong
    #[arg(long, value_enum, default_value_t = DemoScenario::Hijack)]
    pub scenario: DemoScenario,
    /// The gateway refuses what is not on the allowlist
    #[arg(long)]
    pub enforce: bool,
    /// For `runaway`: a Python that has the package `estoppel` (default: python3)
    #[arg(long, env = "ESTOPPEL_PYTHON", value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Folder to leave everything in (default: a new estoppel-demo-... here)
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// What goes wrong in a demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DemoScenario {
    /// A document hijacks an agent, which sends data to an attacker
    Hijack,
    /// An agent in a retry loop burns money
    Runaway,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// What to measure: check, hook, halt, scale, detect, ingest, start, leak (default: all)
    pub what: Vec<String>,
    /// Guards that connect for `halt`
    #[arg(long, default_value_t = 1_000)]
    pub guards: usize,
    /// Enforcers that connect for `scale`, and subscribers of Redis beside them
    #[arg(long, default_value_t = 10_000)]
    pub subscribers: usize,
    /// Records of the ledger for `start`
    #[arg(long, default_value_t = 200_000)]
    pub records: u64,
}
