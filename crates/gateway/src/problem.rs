//! Answers to refused requests: problem documents (RFC 9457) that say what and why.

use std::sync::Arc;

use bytes::Bytes;
use estoppel_link::{Refusal, TooSoon};
use estoppel_model::{Excess, Order, OrderBody, Untrusted};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::Serialize;

use crate::{credential::CredentialError, dial::DialError, flow::Cause};

/// Longest contact that an answer repeats, in characters.
const CONTACT_CHARS_MAX: usize = 300;

/// The body of an answer: a document of ours, or the destination's own.
pub(crate) type Body = Either<Full<Bytes>, Incoming>;

/// Why a request is refused. Small, since it is the error of every step towards an answer.
#[derive(Debug)]
pub(crate) struct Problem(Box<Document>);

/// The problem document, apart from what HTTP itself says.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Ordered>,
    /// The limit that the task is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Excess>,
    /// In how many seconds to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u64>,
    /// Whom to call, made inert.
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<String>,
}

/// What a client may know of an order that reaches it.
#[derive(Debug, Serialize)]
struct Ordered {
    id: String,
    scope: String,
    reason: String,
    issued_by: String,
    issued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    incident: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: String) -> Self {
        let status = status.as_u16();
        Self(Box::new(Document {
            kind,
            title,
            status,
            detail,
            destination: None,
            order: None,
            limit: None,
            retry_after_s: None,
            contact: None,
        }))
    }

    /// The request itself is wrong.
    pub(crate) fn request(detail: String) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "urn:estoppel:problem:bad-request",
            "The request is not one that a proxy takes",
            detail,
        )
    }

    /// Nobody is known to be behind the request.
    pub(crate) fn identity(error: CredentialError) -> Self {
        Self::new(
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            "urn:estoppel:problem:identity-required",
            "The gateway does not know who sends",
            error.to_string(),
        )
    }

    /// The destination is not on the allowlist.
    pub(crate) fn unlisted(destination: String) -> Self {
        let detail = format!(
            "{destination} is not on the allowlist; an operator sets the list with \
             `estoppel allowlist set`"
        );
        let mut problem = Self::new(
            StatusCode::FORBIDDEN,
            "urn:estoppel:problem:destination-unlisted",
            "The destination is not on the allowlist",
            detail,
        );
        problem.0.destination = Some(destination);
        problem
    }

    /// A limit bounds the requests of each minute, and there were as many.
    pub(crate) fn too_soon(too_soon: TooSoon, destination: String) -> Self {
        let mut problem = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "urn:estoppel:problem:too-many-requests",
            "A limit bounds the requests of each minute",
            format!("{too_soon}, to {destination}"),
        );
        problem.0.destination = Some(destination);
        // Who waits for whole seconds must not come too early.
        problem.0.retry_after_s =
            too_soon.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        problem
    }

    /// An order, a limit or the lease forbids it.
    pub(crate) fn refused(cause: &Cause, destination: String) -> Self {
        let (kind, title, detail, order) = match cause {
            Cause::Order(order) => (
                "urn:estoppel:problem:halted",
                "An order forbids this",
                format!(
                    "{} by {} since {}: {}",
                    if matches!(order.body, OrderBody::Block { .. }) {
                        "blocked"
                    } else {
                        "halted"
                    },
                    order.issued_by,
                    order.issued_at,
                    Untrusted::new(&order.reason).inline(300)
                ),
                Some(Ordered::of(order)),
            ),
            Cause::Limit { trip, order } => (
                "urn:estoppel:problem:limit-exceeded",
                "The task is over a limit",
                format!(
                    "{}: {}; a request or a tunnel counts as one step and one call here; it stays \
                     stopped until a lead releases its halt",
                    trip.holder, trip.excess
                ),
                order.as_deref().map(Ordered::of),
            ),
            Cause::Refused(refusal) => (
                match refusal {
                    Refusal::NotYetConnected => "urn:estoppel:problem:not-yet-connected",
                    _ => "urn:estoppel:problem:lease-lost",
                },
                "The gateway cannot tell whether this may go on",
                refusal.to_string(),
                None,
            ),
            Cause::Policy | Cause::Stop | Cause::Idle => {
                ("urn:estoppel:problem:ended", "The request was ended", String::new(), None)
            }
        };
        let mut problem = Self::new(StatusCode::FORBIDDEN, kind, title, detail);
        problem.0.destination = Some(destination);
        problem.0.order = order;
        if let Cause::Limit { trip, .. } = cause {
            problem.0.limit = Some(trip.excess);
        }
        problem
    }

    /// The address is none of those by which a guard reaches its server.
    pub(crate) fn not_passed_on() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "urn:estoppel:problem:not-passed-on",
            "This is not passed on to the server",
            "here an agent's own guard reaches GET /v1/stream and POST /v1/events of its server, and \
             nothing else of it; to send elsewhere, use this as a proxy"
                .to_owned(),
        )
    }

    /// No server answers a guard's request.
    pub(crate) fn server_unreachable() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "urn:estoppel:problem:server-unreachable",
            "The server does not answer",
            "the server gave no answer that could be passed on; the next request tries the next \
             one, if there are several"
                .to_owned(),
        )
    }

    /// As many of a guard's requests are under way as may be.
    pub(crate) fn too_many(most: usize) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "urn:estoppel:problem:too-many",
            "Too many requests of guards are under way",
            format!("at most {most} at a time, streams included"),
        )
    }

    /// Adds whom to call, where an order or the lease is the cause.
    pub(crate) fn with_contact(mut self, contact: Option<Untrusted<Arc<str>>>) -> Self {
        if self.0.status == StatusCode::FORBIDDEN.as_u16() {
            self.0.contact = contact.map(|contact| contact.inline(CONTACT_CHARS_MAX));
        }
        self
    }

    /// The destination cannot be connected to.
    pub(crate) fn dial(error: &DialError, destination: String) -> Self {
        let (status, kind, title) = match error {
            DialError::Refused(cause) => return Self::refused(cause, destination),
            DialError::Address { .. } => (
                StatusCode::FORBIDDEN,
                "urn:estoppel:problem:address-not-public",
                "The destination's address is not public",
            ),
            DialError::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "urn:estoppel:problem:destination-silent",
                "The destination does not answer",
            ),
            DialError::Resolve(_) | DialError::Connect(_) => (
                StatusCode::BAD_GATEWAY,
                "urn:estoppel:problem:destination-unreachable",
                "The destination cannot be reached",
            ),
        };
        let mut problem = Self::new(status, kind, title, format!("{destination}: {error}"));
        problem.0.destination = Some(destination);
        problem
    }

    /// The destination took the connection and then gave no valid answer.
    pub(crate) fn no_answer(destination: String) -> Self {
        let mut problem = Self::new(
            StatusCode::BAD_GATEWAY,
            "urn:estoppel:problem:no-answer",
            "The destination gave no answer",
            format!("{destination} closed the connection or broke the protocol"),
        );
        problem.0.destination = Some(destination);
        problem
    }

    /// The answer; the connection is closed behind it.
    pub(crate) fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let json = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = Response::new(Either::Left(Full::new(Bytes::from(json))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            let basic = HeaderValue::from_static("Basic realm=\"estoppel\"");
            headers.insert(header::PROXY_AUTHENTICATE, basic);
        }
        response
    }
}

impl Ordered {
    fn of(order: &Order) -> Self {
        Self {
            id: order.id.to_string(),
            scope: order.scope.to_string(),
            reason: order.reason.clone(),
            issued_by: order.issued_by.to_string(),
            issued_at: order.issued_at.to_string(),
            incident: order.incident.map(|incident| incident.to_string()),
        }
    }
}
