//! The bodies of records about incidents. Fields are only ever added.

use std::str::FromStr;

use estoppel_model::{
    Actor, Destination, EnforcerId, IncidentId, NewRecord, OrderId, RecordKind, ScopeSet, Severity,
    Subject, Timestamp, Untrusted, text::quoted,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What an incident is about: one of the four types of the playbook, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentKind {
    /// Foreign text gave an agent orders.
    PromptInjection,
    /// An extension does what it should not.
    MaliciousPlugin,
    /// One customer saw another's data.
    TenantLeak,
    /// An agent burns money or machines.
    Runaway,
    /// Anything else, or not known yet.
    #[serde(other)]
    Other,
}

/// The text is no kind of incident.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text} is not a kind of incident: write `prompt_injection`, `malicious_plugin`, `tenant_leak`, `runaway` or `other`"
)]
pub struct IncidentKindError {
    text: String,
}

impl IncidentKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::PromptInjection,
        Self::MaliciousPlugin,
        Self::TenantLeak,
        Self::Runaway,
        Self::Other,
    ];

    /// The kind's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PromptInjection => "prompt_injection",
            Self::MaliciousPlugin => "malicious_plugin",
            Self::TenantLeak => "tenant_leak",
            Self::Runaway => "runaway",
            Self::Other => "other",
        }
    }

    /// The kind in a sentence.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::PromptInjection => "prompt injection",
            Self::MaliciousPlugin => "malicious plugin",
            Self::TenantLeak => "multi-tenant data leak",
            Self::Runaway => "runaway agent",
            Self::Other => "other",
        }
    }
}

impl FromStr for IncidentKind {
    type Err = IncidentKindError;

    fn from_str(text: &str) -> Result<Self, IncidentKindError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| IncidentKindError { text: quoted(text) })
    }
}

/// What brought an incident to light.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A detector.
    Detection,
    /// Somebody's halt.
    Halt,
    /// A person who saw something (row P3).
    Report,
    /// A responder.
    Responder,
    /// Of a newer version.
    #[serde(other)]
    Other,
}

impl Source {
    /// The source in a sentence.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Detection => "a detection",
            Self::Halt => "a halt",
            Self::Report => "a person's report",
            Self::Responder => "a responder",
            Self::Other => "something that this version does not know",
        }
    }
}

/// An incident was opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Its id, made by whoever opened it.
    pub id: IncidentId,
    /// What it is about, in a line.
    pub title: Untrusted<String>,
    /// Which type.
    pub kind: IncidentKind,
    /// How bad.
    pub severity: Severity,
    /// What brought it to light.
    pub source: Source,
    /// What the halt that opened it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeSet>,
    /// Whom it concerns.
    #[serde(default)]
    pub subject: Subject,
    /// Who opened it.
    pub by: Actor,
    /// What was seen, at length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Untrusted<String>>,
}

/// Something more belongs to an incident that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// The incident.
    pub incident: IncidentId,
    /// What it was.
    pub source: Source,
    /// What the halt reaches, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeSet>,
    /// Whom it concerns.
    #[serde(default)]
    pub subject: Subject,
    /// Names it: an order's id, a detection's, a request's.
    pub what: String,
    /// Who.
    pub by: Actor,
}

/// Somebody wrote something down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The incident.
    pub incident: IncidentId,
    /// What.
    pub text: Untrusted<String>,
    /// Who.
    pub by: Actor,
}

/// Somebody works on it from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The incident.
    pub incident: IncidentId,
    /// Who works on it.
    pub to: Untrusted<String>,
    /// Who said so.
    pub by: Actor,
}

/// The root cause was determined; a later record replaces an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCause {
    /// The incident.
    pub incident: IncidentId,
    /// What it was.
    pub text: Untrusted<String>,
    /// Who determined it.
    pub by: Actor,
}

/// It is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The incident.
    pub incident: IncidentId,
    /// What it was, and why it is over.
    pub reason: Untrusted<String>,
    /// Who closed it.
    pub by: Actor,
}

/// A detector saw something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detected {
    /// The incident.
    pub incident: IncidentId,
    /// The detection's id.
    pub detection: String,
    /// The rule, such as `egress.unlisted`.
    pub rule: String,
    /// How bad.
    pub severity: Severity,
    /// Whom it concerns.
    pub subject: Subject,
    /// The events that it rests on.
    pub evidence: Vec<Uuid>,
    /// What was seen, in a line.
    pub summary: String,
    /// Where data went to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// When the first of those events happened, by its sender's clock.
    pub event_at: Timestamp,
    /// When that event arrived.
    pub received_at: Timestamp,
}

/// A halt or a block was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halted {
    /// The incident.
    pub incident: IncidentId,
    /// The order.
    pub order: OrderId,
    /// The order in words, such as `halt` or `block collector.example`.
    pub what: String,
    /// What it reaches.
    pub scope: ScopeSet,
    /// Why.
    pub reason: Untrusted<String>,
    /// Who gave it.
    pub by: Actor,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Enforcers whose leases were alive at that moment.
    pub enforcers: u64,
}

/// How far an enforcer has carried an order out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfirmedStage {
    /// It does not know the order's kind, and refuses its scope.
    Unsupported,
    /// No new work starts.
    Refusing,
    /// Work in flight has ended.
    Settled,
}

/// An enforcer's word on an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The incident.
    pub incident: IncidentId,
    /// The order.
    pub order: OrderId,
    /// The enforcer.
    pub enforcer: EnforcerId,
    /// `guard`, `gateway` or `host`. A guard claims, the others witness.
    pub kind: String,
    /// The enforcer's name for people.
    pub name: Untrusted<String>,
    /// How far.
    pub stage: ConfirmedStage,
    /// When, by the enforcer's clock.
    pub confirmed_at: Timestamp,
    /// Time from the order's arrival there, in microseconds.
    pub after_us: u64,
    /// Steps that were cancelled.
    #[serde(default)]
    pub steps_cancelled: u64,
    /// Connections that were cut.
    #[serde(default)]
    pub connections_cut: u64,
    /// Processes that are frozen.
    #[serde(default)]
    pub processes_frozen: u64,
    /// Bytes that went out for what the scope reaches, as counted there.
    #[serde(default)]
    pub bytes_out: u64,
    /// When the last of them went out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_byte_at: Option<Timestamp>,
    /// What could not be interrupted, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_interruptible: Vec<Untrusted<String>>,
    /// The containment that really holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containment: Option<Untrusted<String>>,
    /// It observes only and stopped nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed_only: bool,
}

/// All enforcers have carried an order out, or the wait for them is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contained {
    /// The incident.
    pub incident: IncidentId,
    /// The order.
    pub order: OrderId,
    /// Enforcers whose leases were alive when it was accepted.
    pub enforcers: u64,
    /// Those of them that settled.
    pub settled: u64,
    /// Those that fell silent, and whose lease has run out.
    pub by_lease: u64,
    /// Those that refused, and whose lease has run out before they settled.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gone: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Contained {
    /// Whether nothing that the order reaches can go on: each enforcer settled or lost its lease,
    /// and there was one.
    pub const fn is_complete(&self) -> bool {
        let over = self.settled.saturating_add(self.by_lease).saturating_add(self.gone);
        self.enforcers > 0 && over >= self.enforcers
    }
}

/// Enforcers fell silent after an order was accepted, at once or after they had refused: they refuse
/// by themselves since their leases are over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// The incident.
    pub incident: IncidentId,
    /// The order.
    pub order: OrderId,
    /// The enforcers, at most 1,000.
    pub enforcers: Vec<SilentEnforcer>,
}

/// One enforcer that fell silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentEnforcer {
    /// The enforcer.
    pub enforcer: EnforcerId,
    /// `guard`, `gateway` or `host`.
    pub kind: String,
    /// The enforcer's name for people.
    pub name: Untrusted<String>,
    /// When its lease was over at the latest, by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
}

/// Orders of the incident were released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The incident.
    pub incident: IncidentId,
    /// The orders that ended.
    pub orders: Vec<OrderId>,
    /// Why.
    pub reason: Untrusted<String>,
    /// Who.
    pub by: Actor,
}

/// What became of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum PageResult {
    /// The channel took it. Whether a person saw it is not known.
    Accepted {
        /// What the channel answered, such as `202`.
        receipt: Untrusted<String>,
    },
    /// The channel did not take it.
    Failed {
        /// Why.
        reason: Untrusted<String>,
    },
    /// It may have been taken.
    Indeterminate {
        /// Why nobody can tell.
        reason: Untrusted<String>,
    },
}

/// Somebody was paged (row K2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paged {
    /// The incident.
    pub incident: IncidentId,
    /// The channel's name in the configuration.
    pub channel: String,
    /// The key by which the channel knows a repetition.
    pub dedup_key: String,
    /// Attempts that it took.
    pub attempts: u32,
    /// What became of it.
    #[serde(flatten)]
    pub result: PageResult,
}

/// An item of evidence was kept (row P7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceAdded {
    /// The incident.
    pub incident: IncidentId,
    /// What it is, such as `pid 4711 maps`.
    pub item: Untrusted<String>,
    /// How it was taken.
    pub method: Untrusted<String>,
    /// Where from: a host's name.
    pub origin: Untrusted<String>,
    /// SHA-256 of the content, lower-case hex; absent when nothing could be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the manifest that lists it.
    pub manifest_sha256: String,
    /// When it was taken.
    pub captured_at: Timestamp,
    /// Values that were taken out of it.
    #[serde(default)]
    pub redactions: u64,
    /// What is missing in it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Untrusted<String>>,
}

macro_rules! recorded {
    ($type:ty, $kind:literal, |$value:ident| $key:expr) => {
        impl $type {
            /// The kind of the record.
            pub const KIND: RecordKind = RecordKind::new($kind);

            /// The record, with its idempotency key where a repetition can be recognised.
            ///
            /// # Errors
            /// When the body cannot be written as JSON, which a value of these types always can.
            pub fn record(&self, at: Timestamp) -> Result<NewRecord, serde_json::Error> {
                let $value = self;
                NewRecord::json(Self::KIND, $key, at, self)
            }
        }
    };
}

recorded!(Opened, "incident.opened", |it| Some(format!("incident/{}", it.id)));
recorded!(Joined, "incident.joined", |it| Some(format!(
    "incident/{}/joined/{}",
    it.incident, it.what
)));
recorded!(Noted, "incident.noted", |_it| None);
recorded!(Assigned, "incident.assigned", |_it| None);
recorded!(RootCause, "incident.root_cause", |_it| None);
recorded!(Closed, "incident.closed", |it| Some(format!("incident/{}/closed", it.incident)));
recorded!(Detected, "incident.detection", |it| Some(format!(
    "incident/{}/detection/{}",
    it.incident, it.detection
)));
recorded!(Halted, "incident.halted", |it| Some(format!(
    "incident/{}/halted/{}",
    it.incident, it.order
)));
recorded!(Confirmed, "incident.confirmed", |it| Some(format!(
    "incident/{}/confirmed/{}/{}/{:?}",
    it.incident, it.order, it.enforcer, it.stage
)));
recorded!(Contained, "incident.contained", |it| Some(format!(
    "incident/{}/contained/{}/{}",
    it.incident,
    it.order,
    it.is_complete()
)));
recorded!(Silent, "incident.silent", |it| Some(format!(
    "incident/{}/silent/{}",
    it.incident, it.order
)));
recorded!(Released, "incident.released", |_it| None);
recorded!(Paged, "incident.page", |_it| None);
recorded!(EvidenceAdded, "evidence.added", |it| Some(format!(
    "incident/{}/evidence/{}/{}",
    it.incident,
    it.manifest_sha256,
    it.sha256.as_deref().unwrap_or_else(|| it.item.raw())
)));
