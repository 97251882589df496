//! One batch to one of the servers, and what became of it.

use std::{sync::Arc, time::Duration};

use estoppel_api::{IngestReport, Rejected, Trust};
use estoppel_model::{Secret, Untrusted};
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use url::Url;

use super::UploadError;
use crate::spool::Line;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Posted {
    /// A server has judged every event.
    Judged {
        /// Events that it keeps.
        accepted: u64,
        /// Events that it will never take.
        rejected: u64,
    },
    /// Nobody can tell; all of it is to be sent again.
    Failed {
        /// Why, for the log.
        reason: String,
        /// The server's own wish.
        retry_after: Option<Duration>,
    },
}

/// How one request ended.
enum Answer {
    Report(IngestReport),
    /// The server does not take these bytes, whenever they are sent.
    BatchRefused(StatusCode),
    Failed {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// Posts batches.
#[derive(Debug)]
pub(super) struct Post {
    http: reqwest::Client,
    authorization: HeaderValue,
    endpoints: Vec<Url>,
    /// The endpoint that answered last.
    current: usize,
}

impl Post {
    pub(super) fn new(
        servers: Vec<Url>,
        token: &Secret<String>,
        trust: &Trust,
    ) -> Result<Self, UploadError> {
        // Already set is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", token.expose()))
            .map_err(|_| UploadError::Token)?;
        authorization.set_sensitive(true);
        let mut builder = reqwest::Client::builder();
        if let Some(tls) = trust.rustls() {
            builder = builder.tls_backend_preconfigured(Arc::unwrap_or_clone(tls));
        }
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // The variables of an agent's environment lead to the gateway, or anywhere.
            .no_proxy()
            .build()
            .map_err(UploadError::Client)?;
        let endpoints = servers
            .into_iter()
            .map(|mut server| {
                server.set_path("/v1/events");
                server.set_query(None);
                server
            })
            .collect();
        Ok(Self { http, authorization, endpoints, current: 0 })
    }

    /// Sends a batch to the server that answered last, then to the others, until one judges it.
    pub(super) async fn send(&mut self, lines: &[&Line]) -> Posted {
        let mut failed = Posted::Failed { reason: "no server is given".into(), retry_after: None };
        for _ in 0..self.endpoints.len() {
            failed = self.send_to_current(lines).await;
            if matches!(failed, Posted::Judged { .. }) {
                return failed;
            }
            self.current = (self.current + 1) % self.endpoints.len();
        }
        failed
    }

    /// Sends a batch to one server. A batch that is refused as a whole is halved until the events
    /// that are to blame stand alone: they must not take their neighbours along.
    async fn send_to_current(&self, lines: &[&Line]) -> Posted {
        let (mut accepted, mut rejected) = (0, 0);
        let mut parts = vec![lines];
        while let Some(part) = parts.pop() {
            match self.request(part).await {
                Answer::Report(report) => {
                    let refused = log_rejected(&report);
                    rejected += refused;
                    accepted += (part.len() as u64).saturating_sub(refused);
                }
                Answer::BatchRefused(status) if part.len() == 1 => {
                    tracing::warn!(%status, "an event was refused");
                    rejected += 1;
                }
                Answer::BatchRefused(_) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Answer::Failed { reason, retry_after } => {
                    return Posted::Failed { reason, retry_after };
                }
            }
        }
        Posted::Judged { accepted, rejected }
    }

    async fn request(&self, lines: &[&Line]) -> Answer {
        let failed = |reason: String| Answer::Failed { reason, retry_after: None };
        let mut body = Vec::with_capacity(lines.iter().map(|line| line.json.len() + 1).sum());
        for line in lines {
            body.extend_from_slice(line.json.as_bytes());
            body.push(b'\n');
        }
        let sent = self
            .http
            .post(self.endpoints[self.current].clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(body)
            .send()
            .await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => return failed(root_cause(&error)),
        };
        let status = response.status();
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => match read_report(response).await {
                Ok(report) if judged_all(&report, lines.len()) => Answer::Report(report),
                Ok(_) => failed("the answer accounts for fewer events than were sent".into()),
                Err(reason) => failed(reason),
            },
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Answer::BatchRefused(status),
            // A token that is not valid, a proxy in between, a server that is starting: all of it
            // can be put right, and the events are still there then.
            _ => Answer::Failed {
                reason: format!("the server answered {status}"),
                retry_after: retry_after(&response),
            },
        }
    }
}

/// Whether a report says of every event what became of it; `accepted` includes duplicates.
fn judged_all(report: &IngestReport, events: usize) -> bool {
    report.accepted.saturating_add(rejected_count(report)) >= events
}

fn rejected_count(report: &IngestReport) -> usize {
    report.rejected_count.max(report.rejected.len())
}

fn log_rejected(report: &IngestReport) -> u64 {
    if let Some(Rejected { index, error }) = report.rejected.first() {
        // The server repeats parts of the event, which is an agent's text.
        let error = Untrusted::new(error).inline(200);
        tracing::warn!(
            count = rejected_count(report), first_index = index, %error, "events were refused"
        );
    }
    rejected_count(report) as u64
}

async fn read_report(mut response: reqwest::Response) -> Result<IngestReport, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| root_cause(&error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer has more than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| "the answer is not a report on events".to_owned())
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The innermost error, such as `Connection refused (os error 111)`: the outer ones repeat the
/// address.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
