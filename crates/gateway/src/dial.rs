//! From a destination to a connection: resolve once, judge the addresses, connect to one of those.
//!
//! The address that is connected to is the one that was judged; there is no second resolution that
//! a hostile name server could answer differently. An address that is not public, or is Estoppel's
//! own, must have been named with its port, in the allowlist or as a host override.

use std::{collections::HashMap, fmt, io, net::SocketAddr, pin::Pin, sync::Arc};

use estoppel_extract::{
    Allowlist, Host, HostPort,
    address::{self, AddressClass},
};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    Limits,
    flow::{Cause, Flow},
    wire::Wire,
};

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// What [`Resolve::resolve`] returns.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// Turns names into addresses.
pub trait Resolve: Send + Sync {
    /// Resolves a name in normal form; each address carries the port.
    fn resolve<'a>(&'a self, name: &'a str, port: u16) -> Resolving<'a>;
}

/// The machine's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str, port: u16) -> Resolving<'a> {
        Box::pin(async move {
            // Absolute first, by the trailing dot, which keeps the machine's search domains out:
            // `x.example` is asked for before `x.example.corp`. The hosts file knows no dot.
            let absolute = tokio::net::lookup_host((format!("{name}."), port)).await;
            match absolute {
                Ok(found) => Ok(found.collect()),
                Err(_) => Ok(tokio::net::lookup_host((name, port)).await?.collect()),
            }
        })
    }
}

/// Why a destination cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Every address needs an explicit entry, and none has one.
    #[error(
        "its address {address} is {class}: such an address needs an entry of its own, `{address}`, in the allowlist"
    )]
    Address {
        /// The first such address.
        address: SocketAddr,
        /// What it belongs to.
        class: &'static str,
    },
    /// An order, or a limit, came in between.
    #[error("an order or a limit forbids it")]
    Refused(Cause),
    /// The name was not resolved.
    #[error("its name does not resolve")]
    Resolve(#[source] io::Error),
    /// The name was not resolved in time, or no address accepted in time.
    #[error("it did not answer in time")]
    Timeout,
    /// No address accepted.
    #[error("it does not accept the connection")]
    Connect(#[source] io::Error),
}

/// Connects to destinations.
pub(crate) struct Dialler {
    pub(crate) hosts: HashMap<HostPort, SocketAddr>,
    pub(crate) own_addresses: Vec<SocketAddr>,
    pub(crate) resolver: Arc<dyn Resolve>,
    pub(crate) limits: Limits,
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialler").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Dialler {
    /// Connects to the flow's destination.
    pub(crate) async fn dial(&self, flow: &Flow, list: &Allowlist) -> Result<Wire, DialError> {
        let addresses = self.judged_addresses(&flow.target, list).await?;
        let mut last = DialError::Timeout;
        for address in addresses {
            flow.set_address(address);
            if let Some(cause) = flow.refusal() {
                return Err(DialError::Refused(cause));
            }
            match timeout(self.limits.connect_timeout, TcpStream::connect(address)).await {
                Ok(Ok(socket)) => return Ok(Wire::new(socket)),
                Ok(Err(error)) => last = DialError::Connect(error),
                Err(_elapsed) => last = DialError::Timeout,
            }
        }
        Err(last)
    }

    /// The addresses of a destination that may be connected to, at least one.
    async fn judged_addresses(
        &self,
        target: &HostPort,
        list: &Allowlist,
    ) -> Result<Vec<SocketAddr>, DialError> {
        if let Some(address) = self.hosts.get(target) {
            return Ok(vec![*address]);
        }
        let addresses = match &target.host {
            Host::Address(address) => vec![SocketAddr::new(*address, target.port)],
            Host::Name(name) => {
                let resolving = self.resolver.resolve(name, target.port);
                match timeout(self.limits.resolve_timeout, resolving).await {
                    Ok(result) => result.map_err(DialError::Resolve)?,
                    Err(_elapsed) => return Err(DialError::Timeout),
                }
            }
        };
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match self.needs_entry(address) {
                Some(class) if !list.names_address(address) => {
                    refused.get_or_insert((address, class));
                }
                _ => allowed.push(address),
            }
        }
        match (allowed.is_empty(), refused) {
            (false, _) => Ok(allowed),
            (true, Some((address, class))) => Err(DialError::Address { address, class }),
            (true, None) => Err(DialError::Resolve(io::ErrorKind::NotFound.into())),
        }
    }

    /// Why an address needs an explicit entry, if it does.
    fn needs_entry(&self, address: SocketAddr) -> Option<&'static str> {
        let ip = address::carried(address.ip());
        let own = self.own_addresses.iter().any(|own| {
            own.port() == address.port()
                && (own.ip().is_unspecified() || address::carried(own.ip()) == ip)
        });
        match address::classify(ip) {
            _ if own => Some("Estoppel's own"),
            AddressClass::Public => None,
            class => Some(class.as_str()),
        }
    }
}
