//! What the log says of requests: an id that the answer carries, too, the route, the status, the
//! time. Never a path, a header or a body: those are a stranger's, or a secret.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{Server, metrics::Answered};

/// Under this header an answer carries the id by which the log knows its request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Follows a request to its answer.
pub(crate) async fn follow(State(server): State<Server>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = Uuid::now_v7();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    // At this level the id is with every line of the log, whatever its filter.
    let span = tracing::error_span!("request", %id, method = method(request.method()), route);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(status, took_us, "answered"));
    server.metrics().requests.get_or_create(&Answered { route, status }).inc();
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A method may be any word.
fn method(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
