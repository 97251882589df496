//! Arguments of what is known, decided and kept.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use estoppel_model::RunId;

use super::SubjectArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct SqlArgs {
    /// One SELECT over audit_log, network_log and allowlist; `-` reads it from standard input
    pub query: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IncidentCommand {
    /// Open an incident by hand
    #[command(after_help = "\
Examples:
  estoppel incident open 'the agent mails invoices to strangers' --severity high --session abc123
  estoppel incident open 'a plugin was replaced' --kind malicious_plugin --agent support")]
    Open(ReportArgs),
    /// List the incidents
    #[command(after_help = "\
Example:
  estoppel incident list")]
    List,
    /// Show all that is known of one
    #[command(after_help = "\
Example:
  estoppel incident show IR-2026-001")]
    Show {
        /// IR-YYYY-NNN, or the id
        incident: String,
    },
    /// Write a note into one
    #[command(after_help = "\
Examples:
  estoppel incident note IR-2026-001 'the customer was called at 14:10'
  estoppel incident note IR-2026-001 - < findings.txt")]
    Note {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// The note; `-` reads it from standard input
        text: String,
    },
    /// Give one to somebody
    #[command(after_help = "\
Example:
  estoppel incident assign IR-2026-001 alice")]
    Assign {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// Who works on it
        to: String,
    },
    /// Write the forensic report (Markdown)
    #[command(after_help = "\
Examples:
  estoppel incident report IR-2026-001
  estoppel incident report IR-2026-001 --output IR-2026-001.md")]
    Report {
        /// IR-YYYY-NNN, or the id
        incident: String,
        /// Write it to this file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Close one
    #[command(after_help = "\
Examples:
  estoppel incident close IR-2026-001 --reason 'false alarm: a load test'
  estoppel incident close IR-2026-001 --reason 'mended' --root-cause 'a cache key without tenant'")]
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
    #[command(after_help = "\
Example:
  estoppel allowlist set api.example.com '*.storage.example' mail.example:587

What is open to a destination that is not listed any more is cut where egress is enforced.")]
    Set {
        /// The entries
        #[arg(required = true)]
        domains: Vec<String>,
    },
    /// Show the list
    #[command(after_help = "\
Example:
  estoppel allowlist show")]
    Show,
    /// Forget the list: egress is learned again
    #[command(after_help = "\
Example:
  estoppel allowlist clear")]
    Clear,
    /// List where agents went while egress was learned
    #[command(after_help = "\
Example:
  estoppel allowlist suggest")]
    Suggest,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlaybookCommand {
    /// List runs
    #[command(after_help = "\
Example:
  estoppel playbook runs")]
    Runs,
    /// Let a run that asks begin, or one step of a run that waits for people
    #[command(after_help = "\
Examples:
  estoppel playbook approve 0197... --reason 'nobody knows this destination'
  estoppel playbook approve 0197... --step kill --reason 'it still burns CPU'")]
    Approve {
        /// The run
        run: RunId,
        /// The step, where the run has begun and waits at one
        #[arg(long, value_name = "ID")]
        step: Option<String>,
        /// Why
        #[arg(long, short)]
        reason: String,
    },
    /// Decline a run that asks, or one step of a run
    #[command(after_help = "\
Examples:
  estoppel playbook decline 0197... --reason 'a destination of the new release'
  estoppel playbook decline 0197... --step kill --reason 'it is idle now'")]
    Decline {
        /// The run
        run: RunId,
        /// The step, where the run has begun and waits at one
        #[arg(long, value_name = "ID")]
        step: Option<String>,
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
    #[command(after_help = "\
Example:
  estoppel backup verify /backup/estoppel-2026-11-22

Ends with 8 when it is not.")]
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
  estoppel ledger verify --data /backup/estoppel-data --checkpoint checkpoint-from-the-page.txt

Ends with 8 when something is wrong.")]
    Verify {
        /// Data folder
        #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
        data: PathBuf,
        /// A checkpoint kept elsewhere; without one, a cut-off end cannot be seen
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
    /// Print the signed checkpoint, to be kept elsewhere
    #[command(after_help = "\
Examples:
  estoppel ledger checkpoint > checkpoint-2026-11-22.txt
  estoppel ledger checkpoint --data /var/lib/estoppel")]
    Checkpoint {
        /// Data folder
        #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
        data: PathBuf,
    },
}
