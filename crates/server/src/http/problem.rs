//! How a handler fails: a problem document (RFC 9457) for the caller, the cause for the log.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use estoppel_api::{HaltSummary, Problem, Role};
use estoppel_model::Untrusted;

/// Longest detail that is sent back, in characters: it may repeat what the caller sent.
const DETAIL_CHARS_MAX: usize = 600;

/// A request that fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No token, or one that is nobody's.
    #[error("{0}")]
    Unauthenticated(String),
    /// The token's role is not enough.
    #[error("this needs the role {needs}; the token of {who} is for {has}")]
    Forbidden { needs: &'static str, who: String, has: Role },
    /// The token is bound to a tenant and asks for more.
    #[error("the token is bound to tenant `{tenant}`: {what}")]
    OtherTenant { tenant: String, what: String },
    /// The body or a parameter is wrong.
    #[error("{0}")]
    Malformed(String),
    /// The body is well-formed and cannot be done.
    #[error("{0}")]
    Unprocessable(String),
    /// The body is too large.
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    /// By policy another person must do this.
    #[error("{0}")]
    SecondPerson(String),
    /// It was asked for too often.
    #[error("{0}")]
    TooMany(String),
    /// Nothing of this name.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("this address does not take this method")]
    Method,
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// A release that names no halts, where several are active.
    #[error("{detail}")]
    WhichHalts { detail: String, halts: Vec<HaltSummary> },
    /// There is no room for it.
    #[error("{0}")]
    Full(String),
    /// A part of the server is not ready or does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Something that the caller cannot mend.
    #[error("the server failed; its log says why")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    /// A failure whose cause is for the log alone.
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    /// What kind of failure it is, for people.
    pub(crate) const fn title(&self) -> &'static str {
        self.kind().2
    }

    /// What to do about it.
    pub(crate) const fn hint(&self) -> Option<&'static str> {
        self.kind().3
    }

    const fn kind(&self) -> (StatusCode, &'static str, &'static str, Option<&'static str>) {
        match self {
            Self::Unauthenticated(_) => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "No valid token",
                Some(
                    "send `Authorization: Bearer TOKEN`; the first start wrote the admin's token to DATA/admin.token",
                ),
            ),
            Self::Forbidden { .. } => (
                StatusCode::FORBIDDEN,
                "role",
                "The token's role is not enough",
                Some("`estoppel token create NAME --role ROLE` makes a token of another role"),
            ),
            Self::OtherTenant { .. } => {
                (StatusCode::FORBIDDEN, "tenant", "The token is bound to a tenant", None)
            }
            Self::Malformed(_) => {
                (StatusCode::BAD_REQUEST, "malformed", "The request is malformed", None)
            }
            Self::Unprocessable(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "unprocessable",
                "The request cannot be done",
                None,
            ),
            Self::TooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "The body is too large",
                Some("send it in several requests"),
            ),
            Self::SecondPerson(_) => (
                StatusCode::FORBIDDEN,
                "second-person",
                "Another person must do this",
                Some("two tokens of one name are one person"),
            ),
            Self::TooMany(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "too-many", "It was asked for too often", None)
            }
            Self::NotFound(_) => {
                (StatusCode::NOT_FOUND, "not-found", "There is no such thing", None)
            }
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "Wrong method",
                Some("see /openapi.json"),
            ),
            Self::Conflict(_) => {
                (StatusCode::CONFLICT, "conflict", "It contradicts what is there", None)
            }
            Self::WhichHalts { .. } => (
                StatusCode::CONFLICT,
                "which-halts",
                "A release names the halts that it ends",
                Some("send `halts`: the ids listed in this answer that shall end"),
            ),
            Self::Full(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, "full", "There is no room for it", None)
            }
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "A part of the server does not answer",
                Some("halts are taken all the same; try this again in some seconds"),
            ),
            Self::Internal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server failed", None)
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, kind, title, hint) = self.kind();
        if let Self::Internal(cause) = &self {
            tracing::error!(cause = &**cause as &dyn std::error::Error, "a request failed");
        }
        let detail = Untrusted::new(self.to_string()).inline(DETAIL_CHARS_MAX);
        let halts = match self {
            Self::WhichHalts { halts, .. } => halts,
            _ => Vec::new(),
        };
        let problem = Problem {
            kind: format!("urn:estoppel:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            hint: hint.map(str::to_owned),
            halts,
        };
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
