//! Values that every part of Estoppel shares: ids, scopes, subjects, orders, events, records, clocks.
//!
//! This crate parses rather than validates: a value of one of its types is well-formed, and what
//! comes from outside becomes such a value in one place. It does no input or output, starts
//! nothing and knows no other crate of the workspace. Reading a clock, through [`Clock`], is the
//! one thing that it asks of the operating system.

mod clock;
mod event;
mod id;
pub mod journal;
mod limit;
mod order;
mod record;
mod scope;
mod secret;
mod severity;
pub mod text;
mod untrusted;
mod version;

pub use clock::{Boottime, Clock, SystemClock, Timestamp, TimestampError};
pub use event::{
    AuditEvent, EVENT_BYTES_MAX, EVENT_DEPTH_MAX, Event, EventError, EventLimits, FlowVerdict,
    NetworkEvent, ReceivedEvent,
};
pub use id::{
    Actor, EnforcerId, EntityId, Id, IdError, IncidentId, IncidentNumber, OrderId, RunId, named,
};
pub use limit::{Breaker, Excess, GATEWAY_ENFORCER, LIMIT_ACTION, Limit};
pub use order::{
    Destination, DestinationError, Order, OrderBody, OrderError, REASON_BYTES_MAX, SignedOrder,
};
pub use record::{NewRecord, Record, RecordKind};
pub use scope::{Kind, PluginRef, Scope, ScopeError, ScopeSet, Subject};
pub use secret::Secret;
pub use severity::{Severity, SeverityError};
pub use untrusted::Untrusted;
pub use version::{Version, VersionRange, VersionRangeError};
