//! The guard: Estoppel inside the agent's own process.
//!
//! A [`Guard`] keeps the orders that the server gave and answers, without network and without a
//! lock, whether an agent may act ([`Guard::check`]). Around each piece of work [`Guard::step`]
//! checks, runs it, cancels it when a halt arrives meanwhile, and records what was done in the
//! audit log. Until the first contact with a server, and once no server has answered for a lease,
//! it refuses.
//!
//! A guard *claims*: it is code in the process that it guards, so an agent that was taken over can
//! leave it out. The gateway and the host enforcer do not depend on it. What each task may do at
//! most it bounds by [`Limit`], from the code ([`Builder::limits`]) and from orders: steps, time, cost,
//! tokens, calls of tools at once, errors and identical calls in a row stop the task; steps each minute
//! and what is not declared to change nothing are refused, which stops nobody.
//!
//! ```no_run
//! # async fn agent() -> Result<(), Box<dyn std::error::Error>> {
//! use estoppel_guard::{Guard, StepSpec};
//! # async fn fetch(_: &str) -> String { String::new() }
//!
//! let guard = Guard::from_env()?.agent("support")?.connect()?;
//! guard.ready().await;
//! let subject = guard.subject("session:abc123")?;
//! let spec = StepSpec::tool("fetch")?.destination("example.com")?;
//! let page = guard.step(&subject, spec, |_| fetch("https://example.com")).await?;
//! # drop(page); Ok(()) }
//! ```
//!
//! Services built with axum, tonic or hyper take it as a layer: [`tower`]. Loops that ask by scope take
//! [`KillSwitch`].

mod access;
mod audit;
mod builder;
mod denied;
mod fingerprint;
mod guard;
mod in_flight;
mod kill_switch;
mod limits;
mod open_step;
mod replay;
mod run;
mod step;
pub mod tower;

pub use access::Access;
pub use builder::{Builder, ConnectError};
pub use denied::{Denied, DeniedOrder, DeniedReason, Texts};
pub use estoppel_link::{EventBuffer, LinkError, LinkStatus, LocalHalt, OnLost, WhenFull};
pub use estoppel_model::{Breaker, Excess, Limit};
pub use guard::{Guard, Mode};
pub use kill_switch::KillSwitch;
pub use open_step::{OnStop, OpenStep, Work};
pub use replay::{Stopped, replay};
pub use step::{StepError, StepHandle, StepSpec, StepSpecError, Usage};
pub use tower::{GuardError, GuardLayer, GuardService};
