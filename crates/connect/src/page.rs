//! A page, and how each format writes it.

mod slack;
mod teams;

use std::fmt;

use estoppel_model::{IncidentId, IncidentNumber, Kind, Secret, Severity, Timestamp, Untrusted};
use serde_json::{Value, json};
use url::Url;

use crate::HttpResponse;

/// Longest summary, in characters: PagerDuty cuts longer ones.
const SUMMARY_CHARS_MAX: usize = 1_024;
/// Longest deduplication key, in bytes, as PagerDuty bounds it.
const DEDUP_KEY_BYTES_MAX: usize = 255;
/// Longest text of whom an incident concerns in a chat, in characters.
const SUBJECT_CHARS_MAX: usize = 500;
/// Longest link in a chat, in bytes: two of them stay within what Slack takes as one text.
const LINK_BYTES_MAX: usize = 1_200;

/// What the page asks of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageAction {
    /// Wake somebody.
    #[default]
    Trigger,
    /// It is over.
    Resolve,
}

/// What a [`HaltLink`] would halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltTarget {
    /// All agents.
    Everything,
    /// One scope of this kind.
    One(Kind),
    /// Whoever follows the link says what.
    Open,
}

/// Leads to the form for a halt, filled in. Opening it does nothing: a person signs in, looks at what
/// it will hit, and confirms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaltLink {
    /// The form's address.
    pub url: Url,
    /// What is filled in.
    pub target: HaltTarget,
}

impl HaltLink {
    /// The link's words. They are Estoppel's own: no name that an agent chose is in them.
    fn label(&self) -> String {
        match self.target {
            HaltTarget::Everything => "Halt everything...".to_owned(),
            HaltTarget::One(kind) => format!("Halt this {}...", kind.as_str()),
            HaltTarget::Open => "Halt...".to_owned(),
        }
    }
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
    /// Where the incident can be looked at, as it stands when the page is sent.
    pub url: Option<Url>,
    /// The incident's lasting address, for channels that keep the page: it follows the incident.
    pub incident_url: Option<Url>,
    /// Where what it concerns can be halted, for channels that people answer in.
    pub halt: Option<HaltLink>,
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
    /// Slack's incoming webhooks.
    Slack,
    /// Microsoft Teams' Workflows webhooks: an Adaptive Card.
    Teams,
}

impl Format {
    /// The body's media type.
    pub(crate) const fn content_type(&self) -> &'static str {
        match self {
            Self::Generic => "application/cloudevents+json",
            Self::PagerDuty { .. } | Self::Slack | Self::Teams => "application/json",
        }
    }

    /// Whether a successful answer says that the page was taken.
    pub(crate) fn takes(&self, answer: &HttpResponse) -> bool {
        match self {
            Self::Slack => slack::takes(answer),
            Self::Generic | Self::PagerDuty { .. } | Self::Teams => true,
        }
    }

    /// What an operator can do about a refusal, where the channel's documentation tells.
    pub(crate) fn hint(&self, answer: &HttpResponse) -> Option<&'static str> {
        match self {
            Self::Slack => slack::hint(answer),
            Self::Teams => teams::hint(answer),
            Self::Generic | Self::PagerDuty { .. } => None,
        }
    }

    /// The body.
    pub(crate) fn body(&self, page: &Page) -> Value {
        match self {
            Self::Generic => cloud_event(page),
            Self::PagerDuty { routing_key } => pagerduty(page, routing_key),
            Self::Slack => slack::message(page),
            Self::Teams => teams::message(page),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::PagerDuty { .. } => "pagerduty",
            Self::Slack => "slack",
            Self::Teams => "teams",
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
        cut(format!("{number}{}", self.summary.inline(SUMMARY_CHARS_MAX)), SUMMARY_CHARS_MAX)
    }

    /// What a message in a chat is headed with: nothing that an agent wrote.
    fn heading(&self) -> String {
        let number = self.number.map_or_else(|| "Incident".to_owned(), |it| it.to_string());
        let over = match self.action {
            PageAction::Trigger => "",
            PageAction::Resolve => "Over: ",
        };
        format!("{over}{number}, severity {}", self.severity.as_str())
    }

    /// The summary in a chat, below the heading: one line, nothing invisible.
    fn line(&self) -> String {
        cut(self.summary.inline(SUMMARY_CHARS_MAX), SUMMARY_CHARS_MAX)
    }

    /// Whom it concerns and since when, in a chat.
    fn facts(&self) -> [(&'static str, String); 2] {
        let subject = Untrusted::new(&self.subject).inline(SUBJECT_CHARS_MAX);
        [("Concerns", cut(subject, SUBJECT_CHARS_MAX)), ("At", self.at.to_string())]
    }

    /// The links of a message in a chat, with their words. A link that is too long, or leads to
    /// something else than a website, is left out.
    fn links(&self) -> Vec<(String, &Url)> {
        let incident = self.incident_url.as_ref().or(self.url.as_ref());
        let incident = incident.map(|url| ("Open the incident".to_owned(), url));
        let halt = self.halt.as_ref().map(|halt| (halt.label(), &halt.url));
        let fits = |url: &Url| {
            matches!(url.scheme(), "https" | "http") && url.as_str().len() <= LINK_BYTES_MAX
        };
        incident.into_iter().chain(halt).filter(|(_, url)| fits(url)).collect()
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

/// A text of at most so many characters. An escaped character takes up to 10, so that a bound on what
/// goes into the escaping is none on what comes out.
fn cut(text: String, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max - 3).chain("...".chars()).collect()
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
