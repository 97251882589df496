//! Runs an agent confined on its host, cuts it off the network and freezes it on a halt, and preserves
//! evidence of it.
//!
//! `estoppel run` goes: [`Prepared::new`] starts a shim of the same binary ([`shim::main`]) in an
//! own cgroup and network namespace and hands back the one listener that the agent will be able to
//! reach; the caller puts a gateway behind it; [`Prepared::start`] lets the shim become the agent;
//! [`supervise`] acts on orders until the agent has ended. [`control`] is the door for
//! `estoppel halt --local` on a host whose servers are all dead.
//!
//! Invariants: the agent is cut off and frozen before anything else is done about a halt; evidence is
//! read from frozen processes, and what could not be read is listed as a gap; nothing thaws but the end
//! of every halt that reaches the subject; [`Containment`] claims only what was seen to hold.
//!
//! It does no networking of its own (the link and the gateway do), and containers come later.

mod agent;
mod capture;
mod cgroup;
mod containment;
pub mod control;
mod cutoff;
mod descendants;
mod netlink;
mod orders;
mod process;
mod processes;
mod run;
pub mod shim;
mod signals;
mod supervise;

pub use agent::{Agent, AgentExit};
pub use capture::{
    CaptureError, CaptureLimits, CaptureRequest, Captured, capture, pending_captures,
};
pub use cgroup::CgroupError;
pub use containment::{Containment, Freezer, Network};
pub use orders::Orders;
pub use process::Process;
pub use processes::{FreezeReport, Processes};
pub use run::{
    CgroupMode, DEFAULT_HIDDEN, GuardAccess, Identity, NetworkMode, Outlook, PROXY_PORT, Prepared,
    RunConfig, RunError,
};
pub use supervise::{Mode, SuperviseConfig, Wiring, supervise};
