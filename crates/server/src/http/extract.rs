//! What handlers take out of a request: who calls, and a JSON body.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{header, request::Parts},
};
use estoppel_api::{BODY_BYTES_MAX, Role};
use estoppel_model::Secret;
use serde::de::DeserializeOwned;

use super::problem::Failure;
use crate::{Server, token::Identity};

/// The caller, by the bearer token.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Identity);

impl Caller {
    /// Lets only people of at least this role pass.
    pub(crate) fn at_least(&self, role: Role) -> Result<(), Failure> {
        if self.0.role.is_personal() && self.0.role >= role {
            return Ok(());
        }
        Err(self.forbidden(role.as_str()))
    }

    /// Lets these machines pass, and people of at least the role.
    pub(crate) fn machine_or(&self, machines: &[Role], role: Role) -> Result<(), Failure> {
        if machines.contains(&self.0.role) { Ok(()) } else { self.at_least(role) }
    }

    fn forbidden(&self, needs: &'static str) -> Failure {
        Failure::Forbidden { needs, who: self.0.actor.to_string(), has: self.0.role }
    }

    /// Lets only tokens pass that are bound to no tenant.
    pub(crate) fn unbound(&self, what: &str) -> Result<(), Failure> {
        match &self.0.tenant {
            None => Ok(()),
            Some(tenant) => {
                Err(Failure::OtherTenant { tenant: tenant.to_string(), what: what.to_owned() })
            }
        }
    }
}

impl FromRequestParts<Server> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Failure> {
        let header = parts
            .headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| Failure::Unauthenticated("the request carries no token".to_owned()))?;
        let token = header
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| Secret::new(token.trim()))
            .ok_or_else(|| {
                Failure::Unauthenticated(
                    "the Authorization header is not `Bearer TOKEN`".to_owned(),
                )
            })?;
        server
            .tokens()
            .identify(&token, server.clock().now())
            .map(Self)
            .map_err(|error| Failure::Unauthenticated(error.to_string()))
    }
}

/// A JSON body, whatever its content type says: `curl -d` sends a form's.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Server> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Server) -> Result<Self, Failure> {
        let bytes = read_body(request.into_body(), BODY_BYTES_MAX).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a body of at most `bytes_max`.
pub(crate) async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    axum::body::to_bytes(body, bytes_max).await.map_err(|error| {
        let error: Box<dyn std::error::Error> = error.into();
        let mut cause: Option<&dyn std::error::Error> = Some(&*error);
        while let Some(current) = cause {
            if current.is::<http_body_util::LengthLimitError>() {
                return Failure::TooLarge { bytes_max };
            }
            cause = current.source();
        }
        Failure::Malformed("the body broke off".to_owned())
    })
}

/// Reads JSON, with a suggestion for a misspelt field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Failure::Malformed(format!("the body is not UTF-8 (from byte {})", error.valid_up_to()))
    })?;
    if text.trim().is_empty() {
        return Err(Failure::Malformed("the body is empty: expected a JSON object".to_owned()));
    }
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let message = match nearest_field(&message) {
            Some(field) => format!("{message}; did you mean `{field}`?"),
            None => message,
        };
        Failure::Malformed(message)
    })
}

/// The field that a message of serde about an unknown one lists and that is nearest to it.
fn nearest_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, known) = rest.split_once("`, expected ")?;
    known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|field| (strsim::damerau_levenshtein(unknown, field), field))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, field)| field.to_owned())
}

#[cfg(test)]
mod tests {
    use estoppel_api::HaltRequest;

    use super::*;

    #[test]
    fn a_wrong_body_is_named() {
        let check = |body: &[u8], expect: &str| {
            let message = parse::<HaltRequest>(body).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        };
        check(b"", "the body is empty");
        check(b"{", "EOF");
        check(b"{\"reason\":\"x\",\"scoope\":\"global\"}", "did you mean `scope`?");
        check(b"{\"scope\":\"global\"}", "missing field `reason`");
        check(b"{\"reason\":\"a\",\"reason\":\"b\"}", "duplicate field");
        check(b"\xff{}", "not UTF-8");
        check(b"{\"reason\":\"x\",\"scope\":\"sesion:a\"}", "did you mean `session:a`?");
        check("[".repeat(10_000).as_bytes(), "");
    }
}
