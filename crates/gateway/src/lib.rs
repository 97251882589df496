//! Forward proxy in front of an agent: it judges, counts and cuts what the agent sends.
//!
//! HTTP/1.1 requests in absolute form and `CONNECT`; of those in origin form, where it is asked to,
//! the two by which an agent's own guard reaches its server. Who is behind a connection is known
//! from the listener or from a credential that the server signed, never from a name. Invariants:
//!
//! - Nothing goes to a destination before the orders, the lease, the allowlist, the resolved
//!   address and, in a tunnel, the ClientHello have been judged; the connection goes to the address
//!   that was judged.
//! - No byte goes out after an order that forbids it is in the view, nor after the lease: each write
//!   asks again. What is open is cut on both sides with a reset as soon as the order comes.
//! - A task that is over a limit of time, steps or calls at once is cut here first, whether or not a
//!   server answers; then the server is told.
//! - Rows of `network_log` carry the bytes since the flow's last row. What is counted as sent was
//!   handed to the kernel, so the destination received at most that.
//!
//! It does not open TLS: an HTTP `Host`, a second ClientHello, a request inside a tunnel or what a model
//! used is not seen. It keeps no connections to destinations between requests.

mod authority;
mod config;
mod control;
pub mod credential;
mod dial;
mod flow;
mod forward;
mod gateway;
mod policy;
mod problem;
mod proxy;
mod tunnel;
mod wire;

pub use authority::{Authority, LinkAuthority};
pub use config::{GatewayConfig, HostOverride, HostOverrideError, Identity, Limits, Source};
pub use control::ControlPlane;
pub use credential::{Credential, CredentialError};
pub use dial::{Resolve, Resolving, SystemResolver};
pub use flow::Totals;
pub use gateway::{Gateway, GatewayError, Stats};
pub use policy::{Listing, Mode, Policy};
