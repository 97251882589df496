//! What may go where, apart from orders: the mode and the allowlist.

use std::{fmt, str::FromStr, sync::Arc};

use estoppel_extract::{Allowlist, Host};
use estoppel_model::FlowVerdict;
use serde::{Deserialize, Serialize};

/// What happens to a flow whose destination is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// There is no list yet: everything flows and is reported, for a list to be made of it.
    #[default]
    Learn,
    /// It flows and is reported as what would have been blocked.
    Observe,
    /// It is refused.
    Enforce,
}

impl Mode {
    /// The mode's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learn => "learn",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a mode: write `learn`, `observe` or `enforce`")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        [Self::Learn, Self::Observe, Self::Enforce]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| ModeError(estoppel_model::text::quoted(text)))
    }
}

/// What may go where. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What happens to what is not listed.
    pub mode: Mode,
    /// What is listed.
    pub allowlist: Arc<Allowlist>,
}

/// What the policy says of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// It is listed, or is being learned.
    Allowed,
    /// It is not listed, and flows.
    WouldBlock,
    /// It is not listed, and does not flow.
    Blocked,
}

impl Listing {
    /// The word in `network_log.verdict`.
    pub const fn verdict(self) -> FlowVerdict {
        match self {
            Self::Allowed => FlowVerdict::Allowed,
            Self::WouldBlock => FlowVerdict::WouldBlock,
            Self::Blocked => FlowVerdict::Blocked,
        }
    }
}

impl Policy {
    /// What the policy says of a destination.
    pub fn judge(&self, host: &Host, port: u16) -> Listing {
        match self.mode {
            Mode::Learn => Listing::Allowed,
            _ if self.allowlist.allows(host, port).is_some() => Listing::Allowed,
            Mode::Observe => Listing::WouldBlock,
            Mode::Enforce => Listing::Blocked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_decides_about_what_is_not_listed() {
        let allowlist = Arc::new(Allowlist::parse(&["good.example"]).unwrap());
        let check = |mode: &str, host: &str, expect: Listing| {
            let mode: Mode = mode.parse().unwrap();
            let policy = Policy { mode, allowlist: Arc::clone(&allowlist) };
            assert_eq!(policy.judge(&Host::parse(host).unwrap(), 443), expect, "{mode} {host}");
        };
        check("learn", "good.example", Listing::Allowed);
        check("learn", "evil.example", Listing::Allowed);
        check("observe", "good.example", Listing::Allowed);
        check("observe", "evil.example", Listing::WouldBlock);
        check("enforce", "good.example", Listing::Allowed);
        check("enforce", "evil.example", Listing::Blocked);
        assert!("Enforce".parse::<Mode>().unwrap_err().to_string().contains("`enforce`"));
    }
}
