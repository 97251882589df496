//! What a refused agent is told: a text for its user, and the order for its program (row K4).

use std::{borrow::Cow, fmt, num::NonZeroU64, sync::Arc};

use estoppel_link::{Refusal, TooSoon, breaker::Trip};
use estoppel_model::{
    Actor, Excess, IncidentId, Order, OrderBody, OrderId, Scope, ScopeSet, Timestamp, Untrusted,
};
use serde::Serialize;

/// Longest part of a reason that a refusal shows, in characters.
const REASON_CHARS_MAX: usize = 300;
/// Longest contact that it shows, in characters.
const CONTACT_CHARS_MAX: usize = 300;

/// What is said of a step that is refused since it may change something.
const READ_ONLY: &str = "Refused: at the moment only what changes nothing may be done.";

/// The texts that an agent's user sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// While everything is halted.
    pub global: Cow<'static, str>,
    /// While something narrower is halted, and whenever else an agent is stopped. A step that is refused
    /// while its agent is not ([`DeniedReason::is_of_the_step`]) says so in words of its own.
    pub other: Cow<'static, str>,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            global: "Agent operations suspended. Contact security team.".into(),
            other: "Your agent session has been suspended.".into(),
        }
    }
}

/// A step must not be. Shown by `{}`, it is the text for the agent's user; by `{:#}` it says on one
/// line who stopped it, why, since when, for which incident and whom to call; as JSON it says all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Denied {
    /// The text for the agent's user.
    pub message: Cow<'static, str>,
    /// Why, in a word.
    pub reason: DeniedReason,
    /// The order behind it, where there is one. Behind a pointer, since a check that passes, too,
    /// carries the room of its error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Box<DeniedOrder>>,
    /// The limit that the task is over, where that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Box<Excess>>,
    /// When to try again, in milliseconds, where that is known: a limit of steps each minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<NonZeroU64>,
    /// Whom to call, in the words of the servers' owner, made inert for one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<Box<str>>,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !f.alternate() {
            return Ok(());
        }
        if let Some(excess) = &self.limit {
            write!(f, " Over a limit: {excess}.")?;
        }
        match &self.order {
            Some(order) => {
                let by = match self.reason {
                    DeniedReason::Blocked => "Blocked by",
                    _ => "Halted by",
                };
                let reason = Untrusted::new(&order.reason).inline(REASON_CHARS_MAX);
                write!(f, " {by} {} since {}: {reason}.", order.issued_by, order.issued_at)?;
                if let Some(incident) = order.incident {
                    write!(f, " Incident {incident}.")?;
                }
            }
            None if self.limit.is_some() => {}
            None => write!(f, " {}.", self.reason.phrase())?,
        }
        match &self.contact {
            Some(contact) => write!(f, " Call {contact}."),
            None => Ok(()),
        }
    }
}

/// Why a step must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedReason {
    /// A halt reaches the subject.
    Halted,
    /// The step's destination is blocked.
    Blocked,
    /// An order of a kind that this version does not know reaches the subject.
    UnsupportedOrder,
    /// The task is over a limit.
    Limit,
    /// The task has made as many steps in the last minute as a limit lets it. It is not stopped: later
    /// steps may be.
    TooManyRequests,
    /// A limit lets only steps be that change nothing, and this one is not declared to be such. The
    /// task is not stopped.
    ReadOnly,
    /// No server has answered for longer than the lease.
    LeaseLost,
    /// No server has been reached since the start.
    NotYetConnected,
    /// There is no room to record the step, and the owner chose to refuse then.
    EventsFull,
    /// The guard was closed.
    Closed,
    /// An access under strict tenant validation whose two tenants differ or are not both known.
    TenantValidation,
}

impl DeniedReason {
    /// The reason's word, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Blocked => "blocked",
            Self::UnsupportedOrder => "unsupported_order",
            Self::Limit => "limit",
            Self::TooManyRequests => "too_many_requests",
            Self::ReadOnly => "read_only",
            Self::LeaseLost => "lease_lost",
            Self::NotYetConnected => "not_yet_connected",
            Self::EventsFull => "events_full",
            Self::Closed => "closed",
            Self::TenantValidation => "tenant_validation",
        }
    }
}

impl DeniedReason {
    /// Whether it is this step alone that must not be, and not whoever takes it: a loop may go on with
    /// another step, or later.
    pub const fn is_of_the_step(self) -> bool {
        matches!(self, Self::TooManyRequests | Self::ReadOnly)
    }

    /// The reason in a sentence, for people.
    const fn phrase(self) -> &'static str {
        match self {
            Self::Halted => "A halt is in force",
            Self::Blocked => "The destination is blocked",
            Self::UnsupportedOrder => "An order is in force that this version does not know",
            Self::Limit => "The task is over a limit",
            Self::TooManyRequests => "A limit bounds the steps of each minute",
            Self::ReadOnly => "A limit lets only what changes nothing be",
            Self::LeaseLost => "No server has answered for longer than the lease",
            Self::NotYetConnected => "No server has been reached yet",
            Self::EventsFull => "There is no room to record the step",
            Self::Closed => "The guard was closed",
            Self::TenantValidation => "The two tenants of an access differ or are not both known",
        }
    }
}

/// The order behind a refusal: who, why, since when, and the incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeniedOrder {
    /// The order.
    pub id: OrderId,
    /// What it reaches.
    pub scope: ScopeSet,
    /// Why it was given, in a person's words.
    pub reason: String,
    /// Who gave it.
    pub issued_by: Actor,
    /// Since when.
    pub issued_at: Timestamp,
    /// The incident that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentId>,
}

/// Why a step is refused or stopped, as the code passes it along.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    /// By order.
    Order(Arc<Order>),
    /// Its task is over a limit.
    Limit {
        /// Which.
        trip: Arc<Trip>,
        /// The order that halts it by now, if one does.
        order: Option<Arc<Order>>,
    },
    /// Its task has made as many steps of late as a limit lets it.
    TooSoon(TooSoon),
    /// For want of something.
    Want(DeniedReason),
}

impl Cause {
    /// The reason in a word.
    pub(crate) fn reason(&self) -> DeniedReason {
        match self {
            Self::Want(reason) => *reason,
            Self::Limit { .. } => DeniedReason::Limit,
            Self::TooSoon(_) => DeniedReason::TooManyRequests,
            Self::Order(order) => match order.body {
                OrderBody::Block { .. } => DeniedReason::Blocked,
                OrderBody::Unsupported => DeniedReason::UnsupportedOrder,
                _ => DeniedReason::Halted,
            },
        }
    }

    /// The order, if it is one.
    pub(crate) const fn order(&self) -> Option<&Arc<Order>> {
        match self {
            Self::Order(order) => Some(order),
            Self::Limit { order, .. } => order.as_ref(),
            Self::TooSoon(_) | Self::Want(_) => None,
        }
    }

    /// The limit that the task is over, if that is why.
    pub(crate) fn excess(&self) -> Option<&Excess> {
        match self {
            Self::Limit { trip, .. } => Some(&trip.excess),
            Self::Order(_) | Self::TooSoon(_) | Self::Want(_) => None,
        }
    }

    /// When to try again.
    fn retry_after_ms(&self) -> Option<NonZeroU64> {
        let Self::TooSoon(TooSoon { retry_after: Some(wait), .. }) = self else { return None };
        let ms = wait.as_nanos().div_ceil(1_000_000);
        NonZeroU64::new(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// What the agent's user is told.
    fn message(&self, texts: &Texts) -> Cow<'static, str> {
        let is_global = |order: &Arc<Order>| order.scope.iter().any(|it| *it == Scope::Global);
        match self {
            Self::TooSoon(too_soon) => format!("Refused for now: {too_soon}.").into(),
            Self::Want(DeniedReason::ReadOnly) => READ_ONLY.into(),
            _ if self.order().is_some_and(is_global) => texts.global.clone(),
            _ => texts.other.clone(),
        }
    }

    /// What the agent is told.
    pub(crate) fn denied(&self, texts: &Texts, contact: Option<Untrusted<Arc<str>>>) -> Denied {
        let order = self.order();
        Denied {
            message: self.message(texts),
            reason: self.reason(),
            retry_after_ms: self.retry_after_ms(),
            limit: self.excess().map(|excess| Box::new(*excess)),
            contact: contact.map(|contact| contact.inline(CONTACT_CHARS_MAX).into()),
            order: order.map(|order| {
                Box::new(DeniedOrder {
                    id: order.id,
                    scope: order.scope.clone(),
                    reason: order.reason.clone(),
                    issued_by: order.issued_by.clone(),
                    issued_at: order.issued_at,
                    incident: order.incident,
                })
            }),
        }
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Halted(order) | Refusal::Unsupported(order) => Self::Order(order),
            Refusal::LeaseLost => Self::Want(DeniedReason::LeaseLost),
            Refusal::NotYetConnected => Self::Want(DeniedReason::NotYetConnected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(scope: &str, kind: &str) -> Arc<Order> {
        let text = format!(
            r#"{{"id":"01890a5d-ac96-774b-bcce-b302099a8057","scope":"{scope}","reason":"suspected prompt injection","issued_by":"alice","issued_at":"2026-02-05T03:00:00Z","incident":"01890a5d-ac96-774b-bcce-b302099a8058",{kind}}}"#
        );
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    /// K4: both texts word for word, and who, why, since when, incident beside them.
    #[test]
    fn the_texts_and_the_order_are_those_of_row_k4() {
        let check = |scope: &str, text: &str| {
            let denied =
                Cause::Order(order(scope, r#""kind":"halt""#)).denied(&Texts::default(), None);
            assert_eq!(denied.to_string(), text, "{scope}");
            assert_eq!(
                serde_json::to_value(&denied).unwrap(),
                serde_json::json!({
                    "message": text,
                    "reason": "halted",
                    "order": {
                        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
                        "scope": scope,
                        "reason": "suspected prompt injection",
                        "issued_by": "alice",
                        "issued_at": "2026-02-05T03:00:00.000000Z",
                        "incident": "01890a5d-ac96-774b-bcce-b302099a8058",
                    }
                })
            );
        };
        check("global", "Agent operations suspended. Contact security team.");
        check("user:bob", "Your agent session has been suspended.");
        check("session:abc123", "Your agent session has been suspended.");
    }

    #[test]
    fn the_texts_can_be_chosen() {
        let texts = Texts { global: "Pause.".into(), other: "Paused.".into() };
        let denied = Cause::Order(order("global", r#""kind":"halt""#)).denied(&texts, None);
        assert_eq!(denied.to_string(), "Pause.");
        assert_eq!(
            Cause::Want(DeniedReason::LeaseLost).denied(&texts, None).to_string(),
            "Paused."
        );
    }

    /// K8: who, why, since when, which incident, whom to call; the owner's words stay on one line.
    #[test]
    fn a_refusal_says_who_why_since_when_and_whom_to_call() {
        let contact: Arc<str> = "security on call, +49 30 1234\u{1b}[2J".into();
        let contact = Some(Untrusted::new(contact));
        let cause = Cause::Order(order("session:abc123", r#""kind":"halt""#));
        let denied = cause.denied(&Texts::default(), contact.clone());
        assert_eq!(
            format!("{denied:#}"),
            "Your agent session has been suspended. Halted by alice since \
             2026-02-05T03:00:00.000000Z: suspected prompt injection. Incident \
             01890a5d-ac96-774b-bcce-b302099a8058. Call security on call, +49 30 1234\\u{1b}[2J."
        );
        assert_eq!(denied.to_string(), Texts::default().other, "the user's text alone");
        let json = serde_json::to_value(&denied).unwrap();
        assert_eq!(json["contact"], "security on call, +49 30 1234\\u{1b}[2J");
        let denied = Cause::Want(DeniedReason::LeaseLost).denied(&Texts::default(), contact);
        assert!(format!("{denied:#}").contains("longer than the lease. Call security"));
        let denied = Cause::Want(DeniedReason::Closed).denied(&Texts::default(), None);
        assert!(!format!("{denied:#}").contains("Call"));
    }

    #[test]
    fn the_word_says_what_kind_of_order_it_was() {
        let check = |kind: &str, reason: &str| {
            let denied = Cause::Order(order("session:a", kind)).denied(&Texts::default(), None);
            let json = serde_json::to_value(&denied).unwrap();
            assert_eq!((json["reason"].as_str(), denied.reason.as_str()), (Some(reason), reason));
        };
        check(r#""kind":"halt""#, "halted");
        check(r#""kind":"block","destination":"x.example""#, "blocked");
        check(r#""kind":"teleport""#, "unsupported_order");
    }
}
