//! Pages over HTTP (row K2): repeated until a channel takes them, always under one key.

use std::{borrow::Cow, time::Duration};

use estoppel_model::{EntityId, Secret, Untrusted};
use estoppel_playbook::{Observation, journal::StepOutcome};
use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::time::Instant;

use crate::{Endpoint, Format, Http, HttpError, HttpRequest, HttpResponse, Page};

/// Longest part of a channel's answer that is kept, in characters.
const ANSWER_CHARS_MAX: usize = 200;
/// Shortest part of a channel's address that is taken for a secret by itself, in bytes.
const SECRET_PART_BYTES_MIN: usize = 16;

/// A channel, from the operator's configuration.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Its name, by which playbooks and records call it.
    pub name: EntityId,
    /// Where to.
    pub endpoint: Endpoint,
    /// How it wants to be told.
    pub format: Format,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret<String>>,
}

/// How a page is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, at least one.
    pub attempts_max: u32,
    /// Time between the first two attempts; it doubles each time.
    pub backoff: Duration,
    /// Longest time between two attempts where the channel asks for none.
    pub backoff_max: Duration,
    /// Longest time that a channel may ask for (`Retry-After`); of more, this much is waited.
    pub retry_after_max: Duration,
    /// When no further attempt is begun, counted from the first.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 6,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(20),
            retry_after_max: Duration::from_secs(60),
            deadline: Duration::from_secs(90),
        }
    }
}

/// A channel took the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The status that it answered with.
    pub status: u16,
    /// The start of its answer.
    pub answer: Untrusted<String>,
    /// How many attempts it took.
    pub attempts: u32,
    /// The key by which the channel knows a repetition.
    pub dedup_key: String,
}

/// No channel is known to have taken the page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The channel refused it, and would again.
    #[error("channel `{channel}` refused the page with status {status}: {answer:?}{}", after(*.hint))]
    Refused {
        /// The channel.
        channel: EntityId,
        /// The status.
        status: u16,
        /// The start of its answer.
        answer: Untrusted<String>,
        /// What can be done about it, where that is known.
        hint: Option<&'static str>,
        /// How many attempts were made.
        attempts: u32,
    },
    /// Each attempt failed.
    #[error("channel `{channel}` did not take the page in {attempts} attempts")]
    Failed {
        /// The channel.
        channel: EntityId,
        /// How many attempts were made.
        attempts: u32,
        /// The last attempt's.
        source: AttemptError,
    },
    /// No attempt is known to have succeeded, and one may have.
    #[error("nobody can tell whether channel `{channel}` took the page in {attempts} attempts")]
    Indeterminate {
        /// The channel.
        channel: EntityId,
        /// How many attempts were made.
        attempts: u32,
        /// The last attempt's.
        source: AttemptError,
    },
}

/// Why one attempt did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No answer.
    #[error(transparent)]
    Http(HttpError),
    /// An answer that asks to try again.
    #[error("it answered {status}")]
    Busy {
        /// The status.
        status: u16,
    },
    /// The body or a header could not be made.
    #[error("the page cannot be written: {0}")]
    Body(&'static str),
}

fn after(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!("; {hint}"))
}

impl PageError {
    /// How many attempts were made.
    pub const fn attempts(&self) -> u32 {
        match self {
            Self::Refused { attempts, .. }
            | Self::Failed { attempts, .. }
            | Self::Indeterminate { attempts, .. } => *attempts,
        }
    }

    /// What a step that meant to page came to.
    pub const fn outcome(&self) -> StepOutcome {
        match self {
            Self::Refused { .. } | Self::Failed { .. } => StepOutcome::Failed,
            Self::Indeterminate { .. } => StepOutcome::Indeterminate,
        }
    }
}

/// Pages one channel.
#[derive(Debug, Clone)]
pub struct Pager {
    http: Http,
    channel: Channel,
    retry: RetryPolicy,
}

/// What can be observed of a page that was sent by a process that is gone: nothing. Channels say
/// what they take and not what they took; it is sent again under the same key, by which the
/// channel knows it.
pub const fn observation() -> Observation {
    Observation::Unknown
}

enum Attempt {
    Taken(HttpResponse),
    Refused(HttpResponse),
    Again { error: AttemptError, ambiguous: bool, after: Option<Duration> },
}

impl Pager {
    /// A pager of this channel.
    pub const fn new(http: Http, channel: Channel, retry: RetryPolicy) -> Self {
        Self { http, channel, retry }
    }

    /// The channel's name.
    pub const fn channel(&self) -> &EntityId {
        &self.channel.name
    }

    /// Pages, and repeats it under the same key until the channel takes it, refuses it for good,
    /// or attempts or time are used up. Dropped, it stops repeating.
    ///
    /// # Errors
    /// When no attempt is known to have succeeded.
    pub async fn page(&self, page: &Page) -> Result<Receipt, PageError> {
        let begun = Instant::now();
        let channel = || self.channel.name.clone();
        let (mut attempts, mut maybe_taken) = (0, false);
        loop {
            attempts += 1;
            let (error, ambiguous, after) = match self.attempt(page).await {
                Attempt::Taken(answer) => {
                    return Ok(Receipt {
                        status: answer.status,
                        answer: self.clean(&answer.body),
                        attempts,
                        dedup_key: page.sent_dedup_key().to_owned(),
                    });
                }
                Attempt::Refused(answer) => {
                    return Err(PageError::Refused {
                        channel: channel(),
                        status: answer.status,
                        answer: self.clean(&answer.body),
                        hint: self.channel.format.hint(&answer),
                        attempts,
                    });
                }
                Attempt::Again { error, ambiguous, after } => (error, ambiguous, after),
            };
            maybe_taken |= ambiguous;
            let pause = self.pause(attempts, after);
            let late = begun.elapsed().saturating_add(pause) > self.retry.deadline;
            if attempts >= self.retry.attempts_max || late {
                let (channel, source) = (channel(), error);
                return Err(if maybe_taken {
                    PageError::Indeterminate { channel, attempts, source }
                } else {
                    PageError::Failed { channel, attempts, source }
                });
            }
            tracing::warn!(channel = %self.channel.name, attempts, %error, "page not taken, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// The time before the next attempt: what the channel asks for, else the backoff; bounded.
    fn pause(&self, attempts: u32, after: Option<Duration>) -> Duration {
        let doubled = 1_u32 << attempts.saturating_sub(1).min(16);
        match after {
            Some(after) => after.min(self.retry.retry_after_max),
            None => self.retry.backoff.saturating_mul(doubled).min(self.retry.backoff_max),
        }
    }

    async fn attempt(&self, page: &Page) -> Attempt {
        let unwritable = |what: &'static str| Attempt::Again {
            error: AttemptError::Body(what),
            ambiguous: false,
            after: None,
        };
        let Ok(body) = serde_json::to_vec(&self.channel.format.body(page)) else {
            return unwritable("its body is not JSON");
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.channel.format.content_type()));
        if let Some(token) = &self.channel.token {
            let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", token.expose())) else {
                return unwritable("the channel's token holds characters that no header may");
            };
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let endpoint = &self.channel.endpoint;
        let request = HttpRequest { method: Method::POST, endpoint, segments: &[], headers, body };
        match self.http.send(request).await {
            Ok(answer) => match answer.status {
                200..=299 if self.channel.format.takes(&answer) => Attempt::Taken(answer),
                200..=299 => Attempt::Refused(answer),
                // Too early, too many, took too long: 4xx that ask to try again.
                408 | 425 | 429 => Attempt::Again {
                    error: AttemptError::Busy { status: answer.status },
                    ambiguous: false,
                    after: answer.retry_after,
                },
                400..=499 => Attempt::Refused(answer),
                // It may have taken the page before it failed.
                status => Attempt::Again {
                    error: AttemptError::Busy { status },
                    ambiguous: true,
                    after: answer.retry_after,
                },
            },
            Err(error) => {
                let ambiguous = error.is_ambiguous();
                Attempt::Again { error: AttemptError::Http(error), ambiguous, after: None }
            }
        }
    }

    /// The start of an answer, without the secrets that it may repeat.
    fn clean(&self, body: &[u8]) -> Untrusted<String> {
        let mut text = String::from_utf8_lossy(body).into_owned();
        let routing_key = match &self.channel.format {
            Format::PagerDuty { routing_key } => Some(routing_key.expose()),
            Format::Generic | Format::Slack | Format::Teams => None,
        };
        let token = self.channel.token.as_ref().map(|token| token.expose().as_str());
        let url = self.channel.endpoint.url();
        let path = Some(url.path()).filter(|path| path.len() > 1);
        let whole = [routing_key, token, path, url.query()].into_iter().flatten();
        // A part of the address can be what makes it one that nobody guesses.
        let parts = url.path().split('/').map(Cow::Borrowed);
        let values = url.query_pairs().map(|(_, value)| value);
        let parts = parts.chain(values).filter(|part| part.len() >= SECRET_PART_BYTES_MIN);
        for secret in whole.map(Cow::Borrowed).filter(|it| !it.is_empty()).chain(parts) {
            text = text.replace(&*secret, "[secret]");
        }
        Untrusted::new(text.chars().take(ANSWER_CHARS_MAX).collect())
    }
}
