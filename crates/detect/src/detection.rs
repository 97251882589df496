//! What a detector saw.

use std::fmt;

use estoppel_model::{Destination, Severity, Subject, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// How far a rule can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Maturity {
    /// Being tried out.
    Sandbox,
    /// Useful, with known faults.
    Incubating,
    /// To be relied upon.
    Stable,
}

/// What kind of signal a rule gives. Two rules of one family are no independent signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Data goes where it should not.
    Egress,
    /// Foreign text gives orders.
    Injection,
    /// An agent does too much of something.
    Runaway,
}

/// A rule that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, such as `egress.unlisted`.
    pub name: &'static str,
    /// What kind of signal it gives.
    pub family: Family,
    /// How far it can be trusted.
    pub maturity: Maturity,
}

/// Data goes to a destination that is not on the allowlist (row P1).
pub const EGRESS_UNLISTED: Rule =
    Rule { name: "egress.unlisted", family: Family::Egress, maturity: Maturity::Stable };
/// No allowlist is set: the destination is learned.
pub const EGRESS_LEARNED: Rule =
    Rule { name: "egress.learned", family: Family::Egress, maturity: Maturity::Stable };
/// Text from outside has the shape of orders to the model.
pub const INJECTION: Rule = Rule {
    name: "injection.structural",
    family: Family::Injection,
    maturity: Maturity::Incubating,
};

/// A task is over one of its limits, says the guard that stopped it (row R1).
pub const RUNAWAY: Rule =
    Rule { name: "runaway.limit", family: Family::Runaway, maturity: Maturity::Stable };

/// Names a detection: SHA-256 over rule, subject and first event, lower-case hex. The same event
/// seen again is the same detection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DetectionId(String);

impl DetectionId {
    fn of(rule: &str, subject: &Subject, event: Uuid) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"estoppel detection v1\n");
        // Lengths first: no two triples read alike.
        for part in [rule.as_bytes(), subject.to_string().as_bytes(), event.as_bytes()] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        Self(hex::encode(hash.finalize()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DetectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that a rule found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Its id.
    pub id: DetectionId,
    /// The rule's name.
    pub rule: String,
    /// What kind of signal it is.
    pub family: Family,
    /// How far the rule can be trusted.
    pub maturity: Maturity,
    /// How bad.
    pub severity: Severity,
    /// Whom it concerns.
    pub subject: Subject,
    /// The events that it rests on, the first one first.
    pub evidence: Vec<Uuid>,
    /// What was seen, in our words: inert on one line.
    pub summary: String,
    /// Where data went to, in normal form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// When the first event happened, by its sender's clock.
    pub at: Timestamp,
    /// When that event arrived.
    pub received_at: Timestamp,
}

impl Detection {
    /// What a rule found in one event.
    pub(crate) fn new(
        rule: Rule,
        severity: Severity,
        subject: Subject,
        event: &estoppel_model::ReceivedEvent,
        summary: String,
    ) -> Self {
        Self {
            id: DetectionId::of(rule.name, &subject, event.id),
            rule: rule.name.to_owned(),
            family: rule.family,
            maturity: rule.maturity,
            severity,
            subject,
            evidence: vec![event.id],
            summary,
            destination: None,
            at: event.timestamp,
            received_at: event.received_at,
        }
    }
}
