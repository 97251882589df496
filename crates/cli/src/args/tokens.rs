//! Arguments of tokens and of break-glass files, and when one ends.

use std::path::PathBuf;

use clap::Subcommand;
use estoppel_api::Role;
use estoppel_model::{EntityId, Timestamp};

use super::SubjectArgs;
use crate::span::Span;

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
    #[command(after_help = "\
Example:
  estoppel token list")]
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
    #[command(after_help = "\
Example:
  estoppel token gateway --session abc123 --user alice

The agent uses it as HTTPS_PROXY=http://estoppel:CREDENTIAL@127.0.0.1:7601.")]
    Gateway {
        #[command(flatten)]
        subject: SubjectArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BreakGlassCommand {
    /// Make a file; put it as break-glass.json into an enforcer's state folder
    #[command(after_help = "\
Examples:
  estoppel break-glass create --until 30d --reason 'sealed envelope' > break-glass.json
  estoppel break-glass create --until 4h --for 1h --enforcer web-3 --reason 'outage of 22 November'
  estoppel break-glass create --until 4h --reason outage --data /var/lib/estoppel   without a server

Halts that an enforcer knows stay in force. It works while no server gives a lease, and no longer.")]
    Create {
        /// When the file ends: 4h, 30d, or a time; at most 90 days ahead
        #[arg(long, value_name = "WHEN")]
        until: Expiry,
        /// How long each enforcer goes on by it, in all
        #[arg(long = "for", value_name = "SPAN", default_value = "4h")]
        use_max: Span,
        /// Why
        #[arg(long, short)]
        reason: String,
        /// Only for enforcers of this name, as `estoppel status` shows it
        #[arg(long, value_name = "NAME", conflicts_with = "tenant")]
        enforcer: Option<String>,
        /// Only for enforcers whose token is bound to this tenant
        #[arg(long)]
        tenant: Option<EntityId>,
        /// Sign it with the key of this data folder, instead of asking a server
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// List the files that were made or used, and by how many enforcers
    #[command(after_help = "\
Example:
  estoppel break-glass list")]
    List,
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
