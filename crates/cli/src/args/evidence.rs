//! Arguments of what is done with captured evidence.

use std::path::PathBuf;

use clap::Subcommand;
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(crate) enum EvidenceCommand {
    /// List the captures that the vault has, or had
    #[command(after_help = "\
Examples:
  estoppel evidence list
  estoppel evidence list --incident IR-2026-001")]
    List {
        /// Only those of this incident: IR-YYYY-NNN, or the id
        #[arg(long)]
        incident: Option<String>,
    },
    /// Show what a capture holds and lacks, or save one of its items
    #[command(after_help = "\
Examples:
  estoppel evidence show 0197... --purpose triage
  estoppel evidence show 0197... --purpose triage --item 4711/maps --output maps.txt

What is saved is hostile: an agent wrote it. It is never printed on a terminal.")]
    Show {
        /// The capture
        capture: Uuid,
        /// What for; it is recorded
        #[arg(long, short)]
        purpose: String,
        /// Save this item: its id or its SHA-256
        #[arg(long, requires = "output")]
        item: Option<String>,
        /// The file to save it to; must not be there
        #[arg(long, short, value_name = "FILE", requires = "item")]
        output: Option<PathBuf>,
    },
    /// Write captures into one file that proves itself, also without Estoppel
    #[command(after_help = "\
Examples:
  estoppel evidence export IR-2026-001 --output case.tar --purpose 'court order 4 O 12/26'
  estoppel evidence export --capture 0197... --output one.tar --purpose 'second opinion'

The bundle holds what was captured, not encrypted: whoever can read it can read the evidence.")]
    Export {
        /// All captures of this incident: IR-YYYY-NNN, or the id
        #[arg(required_unless_present = "capture")]
        incident: Option<String>,
        /// This capture; may be given several times
        #[arg(long, value_name = "ID")]
        capture: Vec<Uuid>,
        /// The file to write; must not be there
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// What for; it is recorded
        #[arg(long, short)]
        purpose: String,
    },
    /// Verify a bundle, without any server; or a capture in the vault
    #[command(after_help = "\
Examples:
  estoppel evidence verify case.tar --checkpoint checkpoint-from-the-page.txt
  estoppel evidence verify case.tar --key 3b6a27bc...
  estoppel evidence verify --capture 0197... --purpose 'monthly check'

Without a checkpoint or a key from elsewhere nothing shows whose key signed the bundle; without a
checkpoint an older bundle can pass for the newest. Ends with 8 when something is wrong.")]
    Verify {
        /// The bundle
        #[arg(required_unless_present = "capture", conflicts_with = "capture")]
        bundle: Option<PathBuf>,
        /// A checkpoint of the same server that was kept elsewhere
        #[arg(long, value_name = "FILE", requires = "bundle")]
        checkpoint: Option<PathBuf>,
        /// The server's public key, 64 hex digits
        #[arg(long, value_name = "HEX", requires = "bundle")]
        key: Option<String>,
        /// This capture, in the vault
        #[arg(long, value_name = "ID", requires = "purpose")]
        capture: Option<Uuid>,
        /// What for; it is recorded
        #[arg(long, short, requires = "capture")]
        purpose: Option<String>,
    },
    /// Keep an incident's evidence from disposal; without an incident, list the holds
    #[command(
        after_help = "Example:\n  estoppel evidence hold IR-2026-001 --reason 'claim by Acme, legal 2026-31'"
    )]
    Hold {
        /// IR-YYYY-NNN, or the id
        #[arg(requires = "reason")]
        incident: Option<String>,
        /// Why
        #[arg(long, short, requires = "incident")]
        reason: Option<String>,
    },
    /// Release a hold; others on the same incident stay
    #[command(
        after_help = "Example:\n  estoppel evidence release 0197... --reason 'claim settled, legal 2026-31'"
    )]
    Release {
        /// The hold
        hold: Uuid,
        /// Why
        #[arg(long, short)]
        reason: String,
    },
    /// Remove a capture's contents for good; its manifest and its custody chain stay
    #[command(after_help = "\
Example:
  estoppel evidence dispose 0197... --reason 'retention of 90 days is over'

Refused while a hold keeps it, or its incident is not closed.")]
    Dispose {
        /// The capture
        capture: Uuid,
        /// Why
        #[arg(long, short)]
        reason: String,
    },
    /// Show who did what with a capture
    #[command(after_help = "\
Example:
  estoppel evidence log 0197...")]
    Log {
        /// The capture
        capture: Uuid,
    },
}
