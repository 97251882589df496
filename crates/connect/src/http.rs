//! The HTTP executor: one request to a configured address, bounded in time and size.

use std::time::Duration;

use reqwest::{Client, Method, header::HeaderMap, redirect::Policy};

use crate::Endpoint;

/// Bounds of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// Until the answer is read, counted from the start.
    pub total: Duration,
    /// Largest body of a request, in bytes.
    pub request_bytes_max: usize,
    /// How much of an answer's body is read, in bytes.
    pub response_bytes_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(10),
            request_bytes_max: 512 * 1024,
            response_bytes_max: 64 * 1024,
        }
    }
}

/// A request. It has no `Debug`: its body and headers may hold secrets.
pub struct HttpRequest<'a> {
    /// Its method.
    pub method: Method,
    /// Where to, from the operator's configuration.
    pub endpoint: &'a Endpoint,
    /// Segments of path behind the configured one; each stays one segment.
    pub segments: &'a [&'a str],
    /// Further headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// Its status.
    pub status: u16,
    /// How long to wait before the next attempt, where the answer says.
    pub retry_after: Option<Duration>,
    /// The start of its body.
    pub body: Vec<u8>,
    /// Whether that is all of it: it was neither too large nor too slow.
    pub complete: bool,
}

/// Why there is no answer. None of these repeats the address's path, a header or a body.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The client could not be made.
    #[error("no HTTP client can be made")]
    Client(#[source] reqwest::Error),
    /// The body is too large to be sent.
    #[error("the request has {bytes} bytes: at most {bytes_max}")]
    RequestTooLarge {
        /// How many.
        bytes: usize,
        /// How many there may be.
        bytes_max: usize,
    },
    /// Nothing was sent.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// Where to.
        endpoint: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The answer points elsewhere, which is not followed.
    #[error(
        "{endpoint} answered {status}, a redirect, which is not followed: configure the address it should be"
    )]
    Redirect {
        /// Who answered.
        endpoint: String,
        /// The status.
        status: u16,
    },
    /// The request may have arrived; no answer came in time.
    #[error("{endpoint} did not answer in time, and may have got the request")]
    NoAnswer {
        /// Where to.
        endpoint: String,
        /// Why.
        source: Option<reqwest::Error>,
    },
}

impl HttpError {
    /// Whether the request may have had its effect all the same.
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::NoAnswer { .. })
    }
}

/// Sends requests. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client,
    limits: HttpLimits,
}

impl Http {
    /// An executor with these bounds.
    ///
    /// # Errors
    /// When the client cannot be made: the machine's certificates cannot be read.
    pub fn new(limits: HttpLimits) -> Result<Self, HttpError> {
        // One provider for the whole process; whoever comes first has installed the same.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(limits.connect)
            .timeout(limits.total)
            .user_agent(concat!("estoppel/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| HttpError::Client(error.without_url()))?;
        Ok(Self { client, limits })
    }

    /// Sends a request and reads the answer's start. Dropped, it gives up; the request may have
    /// been sent by then.
    ///
    /// # Errors
    /// When there is no answer, or it is a redirect. Any other status is an answer.
    pub async fn send(&self, request: HttpRequest<'_>) -> Result<HttpResponse, HttpError> {
        let HttpRequest { method, endpoint, segments, headers, body } = request;
        if body.len() > self.limits.request_bytes_max {
            let (bytes, bytes_max) = (body.len(), self.limits.request_bytes_max);
            return Err(HttpError::RequestTooLarge { bytes, bytes_max });
        }
        let url = endpoint.with_segments(segments.iter().copied());
        let sending = self.client.request(method, url).headers(headers).body(body).send();
        let answer = sending.await.map_err(|error| {
            let unsent = error.is_connect() || error.is_builder();
            let (endpoint, source) = (endpoint.to_string(), error.without_url());
            if unsent {
                HttpError::Unreachable { endpoint, source }
            } else {
                HttpError::NoAnswer { endpoint, source: Some(source) }
            }
        })?;
        let status = answer.status();
        if status.is_redirection() {
            let (endpoint, status) = (endpoint.to_string(), status.as_u16());
            return Err(HttpError::Redirect { endpoint, status });
        }
        let retry_after = answer
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs);
        let (body, complete) = self.read_body(answer).await;
        Ok(HttpResponse { status: status.as_u16(), retry_after, body, complete })
    }

    /// Reads as much of a body as may be; the status counts even when the rest does not come.
    async fn read_body(&self, mut answer: reqwest::Response) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => {
                    let room = self.limits.response_bytes_max - body.len();
                    body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
                    if chunk.len() > room {
                        return (body, false);
                    }
                }
                Ok(None) => return (body, true),
                // The total deadline, or the connection broke: the status has arrived.
                Err(_) => return (body, false),
            }
        }
    }
}
