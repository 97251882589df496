//! What a link is started with, and why it cannot be.

use std::{fmt, path::PathBuf, sync::Arc};

use estoppel_api::Trust;
use estoppel_killswitch::frame::{EnforcerKind, Settlement};
use estoppel_model::{Actor, Order, OrderId, Secret, Subject};
use url::Url;

use crate::upload::{EventBuffer, UploadError};

/// What an enforcer does while its lease is over: the owner's choice, shown in `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLost {
    /// Refuse everything until a server answers again.
    #[default]
    Refuse,
    /// Go on by the orders that are known. A halt given meanwhile is not seen.
    Allow,
}

/// The work in flight of an enforcer that stops it on the spot.
pub trait WorkInFlight: Send + Sync {
    /// Stops what an order reaches that has just come into force; new work is refused already.
    /// Returns what settling came to where that is all, or nothing was in flight; else
    /// [`crate::Link::settled`] is called later.
    ///
    /// Called while the link takes the order in. It must not block, and must not call the link.
    fn stop(&self, order: &Arc<Order>) -> Option<Settlement>;

    /// These orders, which were in force until now, have ended. What they stopped stays stopped.
    ///
    /// Called while the link takes the release in, under the same conditions.
    fn released(&self, orders: &[OrderId]) {
        let _ = orders;
    }
}

impl fmt::Debug for dyn WorkInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkInFlight")
    }
}

/// What a [`crate::Link`] is started with.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Addresses of servers of one deployment, such as `http://127.0.0.1:7600`; tried in turn.
    pub servers: Vec<Url>,
    /// The enforcer's token.
    pub token: Secret<String>,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// A name for people, such as the host's.
    pub name: String,
    /// The subjects that it enforces, where it knows them beforehand; empty: whatever it meets.
    pub subjects: Vec<Subject>,
    /// Folder for the orders, the server's key and the spool over a restart, of this link alone;
    /// `None`: memory only.
    pub state_dir: Option<PathBuf>,
    /// What to do while the lease is over.
    pub on_lost: OnLost,
    /// What on this machine limits what it can do, in words, such as `no cgroup v2`.
    pub gaps: Vec<String>,
    /// How many events are held while no server answers.
    pub events: EventBuffer,
    /// Who may vouch for the servers, where they speak TLS.
    pub trust: Trust,
    /// Where work in flight is stopped as soon as an order arrives; then orders are no events.
    pub in_flight: Option<Arc<dyn WorkInFlight>>,
}

impl LinkConfig {
    /// A link with the defaults: whatever subjects it meets, nothing kept over a restart, refusing
    /// while the lease is over, the authorities of the operating system.
    pub fn new(
        servers: Vec<Url>,
        token: Secret<String>,
        kind: EnforcerKind,
        name: impl Into<String>,
    ) -> Self {
        Self {
            servers,
            token,
            kind,
            name: name.into(),
            subjects: Vec::new(),
            state_dir: None,
            on_lost: OnLost::default(),
            gaps: Vec::new(),
            events: EventBuffer::default(),
            trust: Trust::system(),
            in_flight: None,
        }
    }
}

/// Why a link cannot be started or used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There must be a server to connect to.
    #[error("no server is given: set ESTOPPEL_URL, such as http://127.0.0.1:7600")]
    NoServer,
    /// An address that is not a server's.
    #[error("server `{url}`: write http://HOST:PORT or https://HOST:PORT")]
    ServerUrl {
        /// The address.
        url: String,
    },
    /// The token cannot be sent.
    #[error("the token holds characters that a header must not: copy it again")]
    Token,
    /// The state folder cannot be used.
    #[error("state folder `{path}`: {source}")]
    StateDir {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Events cannot be sent.
    #[error(transparent)]
    Events(#[from] UploadError),
    /// Only halts can be given without a server.
    #[error("order {id} is no halt: only halts can be given on a host")]
    LocalNoHalt {
        /// The order.
        id: OrderId,
    },
    /// Whoever gives a halt on a host is named as such.
    #[error("`{actor}` is no local actor: write `local:USER@HOST`")]
    LocalActor {
        /// The name.
        actor: Actor,
    },
    /// An id names one order, and an enforcer obeys for its own tenant only.
    #[error(
        "order {id} is not taken: its id is known with another text, it has ended, or it is for \
         another tenant than this enforcer's"
    )]
    LocalNotTaken {
        /// The order.
        id: OrderId,
    },
    /// The order cannot be written as JSON.
    #[error("the order cannot be written")]
    LocalText(#[source] serde_json::Error),
    /// The operating system gave no random bytes for a key.
    #[error("no random bytes for the enforcer's key")]
    Random(#[source] getrandom::Error),
}
