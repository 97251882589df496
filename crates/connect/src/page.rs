//! A page, and how each format writes it.

use std::fmt;

use estoppel_model::{IncidentId, IncidentNumber, Secret, Severity, Timestamp, Untrusted};
use serde_json::{Value, json};
use url::Url;

/// Longest summary, in characters: PagerDuty cuts longer ones.
const SUMMARY_CHARS_MAX: usize = 1_024;
/// Longest deduplication key, in bytes, as PagerDuty bounds it.
const DEDUP_KEY_BYTES_MAX: usize = 255;

/// What the page asks of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageAction {
    /// Wake somebody.
    #[default]
    Trigger,
    /// It is over.
    Resolve,
}

/// What is told to whoever is on call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The incident.
    pub incident: IncidentId,
    /// Its number, once the ledger has given it one: a page does not wait for that.
    pub number: Option<IncidentNumber>,
    /// How bad.
    pub severity: Severity,
    /// What happened, in a line. It may hold text of an agent.
    pub summary: Untrusted<String>,
    /// Where the incident can be looked at.
    pub url: Option<Url>,
    /// The same for every repetition of this page. Longer ones than 255 bytes are cut.
    pub dedup_key: String,
    /// The ledger's last checkpoint: whoever keeps the page can prove later what was cut off.
    pub checkpoint: Option<String>,
    /// When it happened.
    pub at: Timestamp,
    /// Which part of the product it concerns, such as `session:abc123`.
    pub subject: String,
    /// What is asked.
    pub action: PageAction,
}

/// A PagerDuty integration's routing key: 32 letters and digits.
#[derive(Debug, Clone)]
pub struct RoutingKey(Secret<String>);

/// The text is no routing key. It is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a PagerDuty routing key has 32 letters and digits, and this text of {chars} characters is none"
)]
pub struct RoutingKeyError {
    chars: usize,
}

impl RoutingKey {
    /// Reads a routing key.
    ///
    /// # Errors
    /// When it is not 32 ASCII letters and digits.
    pub fn new(key: Secret<String>) -> Result<Self, RoutingKeyError> {
        let text = key.expose();
        if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            Ok(Self(key))
        } else {
            Err(RoutingKeyError { chars: text.chars().count() })
        }
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// How a channel wants to be told.
#[derive(Debug, Clone)]
pub enum Format {
    /// CloudEvents 1.0 in structured JSON, for webhooks of one's own.
    Generic,
    /// PagerDuty's Events API v2.
    PagerDuty {
        /// The integration's key.
        routing_key: RoutingKey,
    },
}

impl Format {
    /// The body's media type.
    pub(crate) const fn content_type(&self) -> &'static str {
        match self {
            Self::Generic => "application/cloudevents+json",
            Self::PagerDuty { .. } => "application/json",
        }
    }

    /// The body.
    pub(crate) fn body(&self, page: &Page) -> Value {
        match self {
            Self::Generic => cloud_event(page),
            Self::PagerDuty { routing_key } => pagerduty(page, routing_key),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::PagerDuty { .. } => "pagerduty",
        })
    }
}

impl Page {
    /// The deduplication key as it is sent.
    pub(crate) fn sent_dedup_key(&self) -> &str {
        &self.dedup_key[..self.dedup_key.floor_char_boundary(DEDUP_KEY_BYTES_MAX)]
    }

    /// The summary as it is sent: one line, nothing invisible, and the number in front.
    fn sent_summary(&self) -> String {
        let number = self.number.map_or_else(String::new, |number| format!("{number}: "));
        // An escaped character takes up to 10, so the bound holds for what comes out.
        let text = format!("{number}{}", self.summary.inline(SUMMARY_CHARS_MAX));
        if text.chars().count() <= SUMMARY_CHARS_MAX {
            return text;
        }
        text.chars().take(SUMMARY_CHARS_MAX - 3).chain("...".chars()).collect()
    }

    fn details(&self) -> Value {
        json!({
            "incident": self.incident,
            "number": self.number,
            "severity": self.severity,
            "subject": self.subject,
            "checkpoint": self.checkpoint,
            "url": self.url.as_ref().map(Url::as_str),
        })
    }
}

fn cloud_event(page: &Page) -> Value {
    let kind = match page.action {
        PageAction::Trigger => "dev.estoppel.incident.page.v1",
        PageAction::Resolve => "dev.estoppel.incident.resolved.v1",
    };
    let mut data = page.details();
    data["summary"] = page.sent_summary().into();
    data["dedup_key"] = page.sent_dedup_key().into();
    json!({
        "specversion": "1.0",
        // The same id from the same source is the same event: a repetition can be recognised.
        "id": page.sent_dedup_key(),
        "source": "/estoppel",
        "type": kind,
        "subject": page.number.map_or_else(|| page.incident.to_string(), |number| number.to_string()),
        "time": page.at,
        "datacontenttype": "application/json",
        "data": data,
    })
}

fn pagerduty(page: &Page, routing_key: &RoutingKey) -> Value {
    let severity = match page.severity {
        Severity::Critical => "critical",
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "info",
    };
    let (action, links) = match (page.action, &page.url) {
        (PageAction::Resolve, _) => ("resolve", json!([])),
        (PageAction::Trigger, Some(url)) => {
            ("trigger", json!([{"href": url.as_str(), "text": "Incident in Estoppel"}]))
        }
        (PageAction::Trigger, None) => ("trigger", json!([])),
    };
    let mut body = json!({
        "routing_key": routing_key.expose(),
        "event_action": action,
        "dedup_key": page.sent_dedup_key(),
        "payload": {
            "summary": page.sent_summary(),
            "source": "estoppel",
            "severity": severity,
            "timestamp": page.at,
            "component": page.subject,
            "group": "ai-agents",
            "class": "incident",
            "custom_details": page.details(),
        },
        "links": links,
        "client": "Estoppel",
    });
    if let Some(url) = &page.url {
        body["client_url"] = url.as_str().into();
    }
    body
}

#[cfg(test)]
mod tests;
