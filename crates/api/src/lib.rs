//! The HTTP API as types: what each request and answer holds, and a client that speaks it.
//!
//! Fields are only ever added; a request with a field that is not known is refused with a
//! suggestion, so that a misspelt `until` cannot pass for a halt without end. The frames of the
//! enforcers' stream are in `killswitch::frame`, beside the state machines that speak them.

mod break_glass;
mod client;
mod drill;
mod event;
mod evidence;
mod halt;
mod incident;
mod plan;
mod problem;
mod release;
mod run;
mod status;
mod token;
mod trust;

pub use break_glass::{BreakGlassMade, BreakGlassRequest, BreakGlassSummary, BreakGlassUsed};
pub use client::{Client, ClientError, FileError};
pub use drill::{DrillOutcome, DrillStatus, DrillSummary, DrilledEnforcer, Spread};
pub use event::{
    Allowlist, AllowlistSuggestion, GatewayPolicy, IngestReport, Rejected, SqlColumn, SqlRequest,
    SqlTable,
};
pub use evidence::{
    CaptureSummary, CaptureVerified, CustodyLine, DisposeRequest, Disposed, ExportRequest, HoldEnd,
    HoldRequest, HoldSummary, ReleaseHoldRequest, VerifyCaptureRequest,
};
pub use halt::{
    BlockRequest, Durable, EnforcerProgress, HaltAccepted, HaltRequest, HaltState, HaltStatus,
    HaltSummary, KillSwitchState, LimitAccepted, LimitRequest, LimitSummary, ReleaseAccepted,
    ReleaseRequest,
};
pub use incident::{
    AssignRequest, CloseRequest, EvidenceAccepted, IncidentOpened, IncidentSummary, NoteRequest,
    OpenIncidentRequest,
};
pub use plan::{HaltPlan, PlanRequest, PlannedEnforcers, PlannedGap, PlannedSession};
pub use problem::Problem;
pub use release::{ApproveReleaseRequest, ReleasePending};
pub use run::{ApproveRequest, RunStep, RunSummary};
pub use status::{EnforcerStatus, Health, PartState, Readiness, RedisStatus, Status};
pub use token::{
    CredentialMinted, CredentialRequest, Role, RoleError, TokenKind, TokenMinted, TokenRequest,
    TokenSummary,
};
pub use trust::{Trust, TrustError};

/// Header that carries the client's id of a request that must not be done twice.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Largest body of a request, except of events and evidence, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Largest body of `POST /v1/events`, in bytes.
pub const EVENTS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest purpose or reason of what is done with evidence, in bytes.
pub const PURPOSE_BYTES_MAX: usize = 1_000;
/// Largest evidence item, in bytes.
pub const EVIDENCE_BYTES_MAX: usize = 512 * 1024 * 1024;
