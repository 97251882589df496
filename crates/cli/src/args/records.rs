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
    /// Let a run that asks begin, or one step of a run that waits for people
    #[command(
        after_help = "Example:\n  estoppel playbook approve RUN --step kill --reason 'it still burns CPU'"
    )]
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
