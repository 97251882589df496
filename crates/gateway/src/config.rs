//! What a gateway is started with.

use std::{collections::HashMap, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use estoppel_extract::{Host, HostError, HostPort};
use estoppel_model::{Clock, Subject, text::quoted};

use crate::{ControlPlane, Policy, Resolve};

/// What a gateway is started with.
#[derive(Clone)]
pub struct GatewayConfig {
    /// How it is known who is behind a connection.
    pub identity: Identity,
    /// What may go where, until [`crate::Gateway::set_policy`].
    pub policy: Policy,
    /// Where names lead, instead of asking a resolver; counts as naming the address explicitly.
    pub hosts: Vec<HostOverride>,
    /// Addresses of Estoppel itself, which no agent reaches without an explicit entry. An
    /// unspecified address stands for all. The gateway's own listener need not be named.
    pub own_addresses: Vec<SocketAddr>,
    /// Bounds.
    pub limits: Limits,
    /// The servers that the agent's own guard reaches through the listener, where the agent can
    /// reach nothing else; `None`: a guard reaches them by itself.
    pub control: Option<ControlPlane>,
    /// Turns names into addresses.
    pub resolver: Arc<dyn Resolve>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
}

/// How it is known who is behind a connection.
#[derive(Debug, Clone)]
pub enum Identity {
    /// Only this agent can reach the listener, which is in a network namespace of its own.
    Fixed(Source),
    /// Each request carries a credential of [`crate::credential`], signed by this key: the server's
    /// Ed25519 public key in lower-case hex.
    Credential {
        /// The key.
        server_key: String,
    },
}

/// Who sends.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Whom orders reach.
    pub subject: Subject,
    /// The column `source_process`; `agent` when empty.
    pub process: String,
    /// The column `pid`: the process that was started, where that is known.
    pub pid: Option<u32>,
}

/// Bounds of a gateway; none of them can be switched off.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections of clients at a time; further ones are reset.
    pub connections_max: usize,
    /// Longest head of a request, in bytes.
    pub head_bytes_max: usize,
    /// Longest wait for the head of a request, also of the next one on the same connection.
    pub head_timeout: Duration,
    /// Longest wait for a complete ClientHello.
    pub client_hello_timeout: Duration,
    /// Longest wait for a name to be resolved.
    pub resolve_timeout: Duration,
    /// Longest wait for a destination to accept a connection.
    pub connect_timeout: Duration,
    /// A flow without a byte in either direction for so long is ended.
    pub idle_timeout: Duration,
    /// How often an open flow reports its bytes.
    pub report_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            head_bytes_max: 64 * 1024,
            head_timeout: Duration::from_secs(15),
            client_hello_timeout: Duration::from_secs(5),
            resolve_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            report_every: Duration::from_secs(10),
        }
    }
}

/// One destination that is reached at a given address: `NAME:PORT=ADDRESS:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOverride {
    /// The destination as agents name it.
    pub target: HostPort,
    /// Where it is.
    pub address: SocketAddr,
}

/// Why a text is no [`HostOverride`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostOverrideError {
    /// The form is wrong.
    #[error("{text} is not a host override: write NAME:PORT=ADDRESS:PORT")]
    Form {
        /// The text, shortened and quoted.
        text: String,
    },
    /// The name is wrong.
    #[error("host override {text}: {source}")]
    Host {
        /// The text, shortened and quoted.
        text: String,
        /// What is wrong with the name.
        source: HostError,
    },
}

impl FromStr for HostOverride {
    type Err = HostOverrideError;

    fn from_str(text: &str) -> Result<Self, HostOverrideError> {
        let form = || HostOverrideError::Form { text: quoted(text) };
        let (name, address) = text.split_once('=').ok_or_else(form)?;
        let address = address.parse::<SocketAddr>().map_err(|_| form())?;
        if address.port() == 0 {
            return Err(form());
        }
        let target = HostPort::parse(name, None)
            .map_err(|source| HostOverrideError::Host { text: quoted(text), source })?;
        match target.host {
            Host::Name(_) => Ok(Self { target, address }),
            Host::Address(_) => Err(form()),
        }
    }
}

/// The overrides by what they override; of two for one destination the later counts.
pub(crate) fn by_target(hosts: &[HostOverride]) -> HashMap<HostPort, SocketAddr> {
    hosts.iter().map(|host| (host.target.clone(), host.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_names_a_name_and_an_address() {
        let found: HostOverride = "Collect.Evil.example:443=127.0.0.1:9443".parse().unwrap();
        assert_eq!(found.target.to_string(), "collect.evil.example:443");
        assert_eq!(found.address, "127.0.0.1:9443".parse().unwrap());
        for text in [
            "",
            "a.example=127.0.0.1:1",
            "a.example:80",
            "a.example:80=127.0.0.1",
            "a.example:80=127.0.0.1:0",
            "a.example:80=b.example:80",
            "10.0.0.1:80=127.0.0.1:80",
            "a@b.example:80=127.0.0.1:80",
        ] {
            assert!(text.parse::<HostOverride>().is_err(), "{text}");
        }
    }
}
