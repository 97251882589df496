//! Arguments. Each command's help has examples; what a script relies on is in docs/exit-codes.md.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use estoppel_api::Role;
use estoppel_model::{Destination, EntityId, OrderId, RunId, Scope, Timestamp};

use crate::span::Span;

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
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to standard error, such as `info` or `estoppel_gateway=debug`
    #[arg(long, global = true, env = "ESTOPPEL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How the log is written: one line of text, or one JSON object, for each event
    #[arg(
        long,
        global = true,
        env = "ESTOPPEL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
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
  estoppel serve --redis redis://127.0.0.1:6379     mirror halts to Redis, and take those written there")]
    Serve(ServeArgs),
    /// Start a gateway: the forward proxy that judges, counts and cuts agents' egress
    Gateway(GatewayArgs),
    /// Run an agent so that it can be frozen, cut off and captured
    #[command(after_help = "\
Examples:
  estoppel run --session abc123 -- python agent.py
  estoppel run --session abc123 --user alice --task t1 --as 65534 -- ./agent --once

The agent runs as another user, in a cgroup and a network namespace of its own, where the gateway
alone is reachable. What this machine does not permit is said at the start and at each halt.")]
    Run(RunArgs),
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
    /// Try the kill switch on nobody, and see how long it takes
    Drill {
        #[command(subcommand)]
        command: DrillCommand,
    },
    /// Show halts, enforcers and what is not as it should be
    Status(StatusArgs),
    /// Halt one task
    #[command(after_help = "Example:\n  estoppel kill-task --task-id runaway-123")]
    KillTask(KillTaskArgs),
    /// Refuse and cut a destination
    #[command(
        after_help = "Example:\n  estoppel block attacker.example --scope session:abc123 --reason 'exfiltration'"
    )]
    Block(BlockArgs),
    /// Ask the event log
    #[command(after_help = "\
Example:
  estoppel sql \"SELECT tool, COUNT(*), SUM(estimated_cost) FROM audit_log WHERE task_id = 't1' GROUP BY tool\"")]
    Sql(SqlArgs),
    /// Open, list, show, write into and close incidents
    Incident {
        #[command(subcommand)]
        command: IncidentCommand,
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
    Doctor(DoctorArgs),
    /// Watch a hijacked agent being stopped, cut off, preserved and reported, on this machine
    Demo(DemoArgs),
    /// Measure this build, and print JSON
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

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Configuration file; what is given here or in the environment wins
    #[arg(long, env = "ESTOPPEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data folder
    #[arg(long, env = "ESTOPPEL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the API
    #[arg(long, env = "ESTOPPEL_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the gateway
    #[arg(long, env = "ESTOPPEL_GATEWAY_LISTEN", value_name = "ADDR:PORT")]
    pub gateway_listen: Option<SocketAddr>,
    /// Address at which /metrics, /healthz and /readyz are told without a token
    #[arg(long, env = "ESTOPPEL_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Start no gateway
    #[arg(long)]
    pub no_gateway: bool,
    /// The Redis that mirrors the kill switch, for loops that read it: redis://USER@HOST:PORT/DB, or
    /// rediss://; a password better in the environment than on a command line that others can see
    #[arg(long, env = "ESTOPPEL_REDIS", hide_env_values = true, value_name = "URL")]
    pub redis: Option<String>,
    /// The API's certificate and the chain behind it (PEM); read again when it changes, or on SIGHUP
    #[arg(long, env = "ESTOPPEL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "ESTOPPEL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Listen on an address that is not loopback although the API has no TLS
    #[arg(long)]
    pub allow_plaintext: bool,
}

/// What a gateway does with a destination that is not on the allowlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GatewayMode {
    /// Let everything through and remember where it went
    Learn,
    /// Let it through and report it
    Observe,
    /// Refuse it
    Enforce,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GatewayArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7601", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// A destination's address, instead of a look-up (as often as needed)
    #[arg(long, value_name = "NAME:PORT=ADDR:PORT")]
    pub resolve: Vec<String>,
    /// Folder for what must outlast a restart
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// An address of the server that agents shall not reach through the gateway
    #[arg(long, value_name = "ADDR:PORT", hide = true)]
    pub own_address: Vec<SocketAddr>,
    /// End when standard input is closed: so a gateway never outlives the server that started it
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
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
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Run as this uid (and gid), when started as root
    #[arg(long = "as", value_name = "UID", default_value_t = 65_534)]
    pub uid: u32,
    /// A destination's address, instead of a look-up (as often as needed)
    #[arg(long, value_name = "NAME:PORT=ADDR:PORT")]
    pub resolve: Vec<String>,
    /// A gateway to use where no network namespace can be made; the agent can go around it
    #[arg(long, value_name = "ADDR:PORT")]
    pub proxy: Option<SocketAddr>,
    /// Only record what would have been stopped
    #[arg(long)]
    pub observe: bool,
    /// Go on when no server answers for longer than the lease (default: freeze)
    #[arg(long)]
    pub allow_on_lost: bool,
    /// A file that holds the token of the agent's own guard (role agent): the agent gets it as
    /// ESTOPPEL_TOKEN
    #[arg(long, env = "ESTOPPEL_GUARD_TOKEN_FILE", value_name = "FILE")]
    pub guard_token_file: Option<PathBuf>,
    /// Folder for orders, spool and evidence that could not be sent yet
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The agent's command
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

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

#[derive(Debug, ClapArgs)]
pub(crate) struct SqlArgs {
    /// One SELECT over audit_log, network_log and allowlist; `-` reads it from standard input
    pub query: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IncidentCommand {
    /// Open an incident by hand
    Open(ReportArgs),
    /// List the incidents
    List,
    /// Show all that is known of one
    Show {
        /// IR-YYYY-NNN, or the id
        incident: String,
    },
    /// Write a note into one
    Note {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// The note; `-` reads it from standard input
        text: String,
    },
    /// Give one to somebody
    Assign {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// Who works on it
        to: String,
    },
    /// Write the forensic report (Markdown)
    Report {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// Write it to this file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Close one
    Close {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// What it was, and why it is over
        #[arg(long, short)]
        reason: String,
        /// The root cause
        #[arg(long)]
        root_cause: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    /// What is wrong, in a line
    pub title: String,
    /// What was seen
    #[arg(long)]
    pub description: Option<String>,
    /// prompt_injection, malicious_plugin, tenant_leak, runaway or other
    #[arg(long)]
    pub kind: Option<String>,
    /// critical, high, medium or low
    #[arg(long)]
    pub severity: Option<String>,
    #[command(flatten)]
    pub subject: SubjectArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AllowlistCommand {
    /// Set the whole list: `example.com`, `*.example.com`, `host:port`, `address:port`
    Set {
        /// The entries
        #[arg(required = true)]
        domains: Vec<String>,
    },
    /// Show the list
    Show,
    /// Forget the list: egress is learned again
    Clear,
    /// List where agents went while egress was learned
    Suggest,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlaybookCommand {
    /// List runs
    Runs,
    /// Let a run that asks begin
    Approve {
        /// The run
        run: RunId,
        /// Why
        #[arg(long, short)]
        reason: String,
    },
    /// Decline a run that asks
    Decline {
        /// The run
        run: RunId,
        /// Why
        #[arg(long, short)]
        reason: String,
    },
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Folder for the backup; empty or not there
    #[arg(long, value_name = "DIR", required = true)]
    pub to: Option<PathBuf>,
    /// Data folder
    #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Read all of a backup and say whether it is what it was
    Verify {
        /// The backup
        from: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Verify the ledger of a data folder, live or a copy
    #[command(after_help = "\
Examples:
  estoppel ledger verify
  estoppel ledger verify --data /backup/estoppel-data --checkpoint checkpoint-from-the-page.txt")]
    Verify {
        /// Data folder
        #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
        data: PathBuf,
        /// A checkpoint kept elsewhere; without one, a cut-off end cannot be seen
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
    /// Print the signed checkpoint, to be kept elsewhere
    Checkpoint {
        /// Data folder
        #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
        data: PathBuf,
    },
}

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// By revocation alone.
    Never,
    /// So many seconds after it was made.
    After(u64),
    /// At a time.
    At(Timestamp),
}

impl std::str::FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let wrong = || format!("`{text}` is no end: write 90d, 12h, 2026-12-31T00:00:00Z or never");
        let unit = |unit: char| match unit {
            's' => Some(1),
            'm' => Some(60),
            'h' => Some(3_600),
            'd' => Some(86_400),
            'w' => Some(7 * 86_400),
            _ => None,
        };
        if let Some(seconds) = text.chars().last().and_then(unit) {
            let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
            return count.checked_mul(seconds).map(Self::After).ok_or_else(wrong);
        }
        text.parse().map(Self::At).map_err(|_| wrong())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown this once
    #[command(
        alias = "mint",
        after_help = "\
Examples:
  estoppel token create alice --role responder
  estoppel token create ci-agents --role agent --expires 30d
  estoppel token create owner --role admin --data estoppel-data    with the server stopped: the way
                                                                   back in for who owns the folder"
    )]
    Create {
        /// Who will use it
        name: EntityId,
        /// viewer, responder, lead, admin; for machines agent, enforcer, ingest
        #[arg(long)]
        role: Role,
        /// The only tenant that it reaches
        #[arg(long)]
        tenant: Option<EntityId>,
        /// When it ends: 90d, 12h, a time, or never (default: 90d for people, 365d for machines)
        #[arg(long, value_name = "WHEN")]
        expires: Option<Expiry>,
        /// Make it in this data folder, whose server is stopped, instead of asking a server
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// List the tokens: whose, until when, and when they were last used
    List,
    /// End a token at once, with the streams that it has open
    #[command(after_help = "\
Example:
  estoppel token revoke 0197f3a0-5b8e-7c11-9c55-0b1f2d3c4e5a

An enforcer whose token is revoked refuses everything when its lease is over.")]
    Revoke {
        /// The token's id
        id: uuid::Uuid,
    },
    /// Make a credential by which a gateway knows an agent
    Gateway {
        #[command(flatten)]
        subject: SubjectArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong in a configuration file, and where
    Check {
        /// The file
        #[arg(default_value = "estoppel.toml")]
        file: PathBuf,
    },
    /// Print every key with its default
    Show,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Data folder
    #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  estoppel demo              the gateway observes: something leaks, and the agent is stopped
  estoppel demo --enforce    the gateway refuses: nothing leaks")]
pub(crate) struct DemoArgs {
    /// The gateway refuses what is not on the allowlist
    #[arg(long)]
    pub enforce: bool,
    /// Folder to leave everything in (default: a new estoppel-demo-... here)
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// What to measure: check, halt, scale, detect, ingest, leak (default: all)
    pub what: Vec<String>,
    /// Guards that connect for `halt`
    #[arg(long, default_value_t = 1_000)]
    pub guards: usize,
    /// Enforcers that connect for `scale`, and subscribers of Redis beside them
    #[arg(long, default_value_t = 10_000)]
    pub subscribers: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_duration_a_time_or_never() {
        let check = |text: &str, expect: Option<Expiry>| {
            assert_eq!(text.parse::<Expiry>().ok(), expect, "{text}");
        };
        check("never", Some(Expiry::Never));
        check("90d", Some(Expiry::After(90 * 86_400)));
        check("12h", Some(Expiry::After(43_200)));
        let time = "2026-12-31T00:00:00Z";
        check(time, Some(Expiry::At(time.parse().unwrap())));
        for wrong in ["", "d", "-1d", "1.5d", "90", "18446744073709551615w", "\u{e9}", "soon"] {
            check(wrong, None);
        }
    }
}
