//! Plain HTTP requests, forwarded one to a connection.
//!
//! Each request is framed anew by us, on a connection of its own that is closed behind it, so that
//! nothing that a client smuggles into a request can become a second one. Fields that belong to a
//! hop (RFC 9110, section 7.6.1) stay behind in both directions; upgrades are not forwarded.

use estoppel_extract::HostPort;
use estoppel_model::FlowVerdict;
use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{self, HeaderName},
};
use http_body_util::Either;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use crate::{
    flow::{FlowGuard, Upstream},
    problem::{Body, Problem},
    proxy::Proxy,
};

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Fields that are never forwarded.
const HOP_BY_HOP: [HeaderName; 11] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
];

/// The destination of a request in absolute form.
pub(crate) fn target(request: &Request<Incoming>) -> Result<HostPort, Problem> {
    let wrong = |detail: &str| Problem::request(detail.to_owned());
    let (Some(scheme), Some(authority)) = (request.uri().scheme_str(), request.uri().authority())
    else {
        return Err(wrong("this is a proxy: send the absolute form, http://HOST/PATH, or CONNECT"));
    };
    if scheme != "http" {
        return Err(wrong("only http:// is forwarded: for https:// use CONNECT"));
    }
    let parse = |text: &str| {
        HostPort::parse(text, Some(80)).map_err(|error| Problem::request(error.to_string()))
    };
    let target = parse(authority.as_str())?;
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(wrong("a request has exactly one Host field"));
    };
    let host = host.to_str().map_err(|_| wrong("the Host field is not a host"))?;
    if parse(host)? != target {
        return Err(wrong("the Host field names another host than the request"));
    }
    // Of a Content-Length beside it nothing is left here: hyper reads such a message by its chunks
    // and closes the connection behind it (RFC 9112, section 6.3), and we frame it anew.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (coding.as_bytes() != b"chunked" || codings.next().is_some())
    {
        return Err(wrong("the one transfer coding of a request is `chunked`"));
    }
    Ok(target)
}

/// Sends the request on and returns the answer, whose body follows as it comes.
pub(crate) async fn forward(
    proxy: &Proxy,
    guard: FlowGuard,
    request: Request<Incoming>,
    upstream: Upstream,
) -> Response<Body> {
    let flow = std::sync::Arc::clone(guard.flow());
    let destination = || flow.target.to_string();
    let handshake = http1::Builder::new()
        .max_buf_size(proxy.limits.head_bytes_max)
        .handshake(TokioIo::new(upstream));
    let (mut sender, connection) = match handshake.await {
        Ok(pair) => pair,
        Err(error) => {
            tracing::debug!(%error, "no HTTP with a destination");
            flow.conclude(FlowVerdict::Failed);
            return Problem::no_answer(destination()).into_response();
        }
    };
    proxy.tasks.spawn({
        let flow = std::sync::Arc::clone(&flow);
        async move {
            tokio::select! {
                biased;
                () = flow.ending.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "a destination's connection ended early");
                    if flow.received() == 0 && !flow.ending.is_cancelled() {
                        flow.conclude(FlowVerdict::Failed);
                    }
                }
            }
            // The connection is gone: the counts are final.
            drop(guard);
        }
    });
    match sender.send_request(rewritten(request)).await {
        Ok(mut response) => {
            strip_hop_by_hop(response.headers_mut());
            *response.version_mut() = Version::HTTP_11;
            response.map(Either::Right)
        }
        Err(error) => {
            tracing::debug!(%error, "a destination gave no answer");
            Problem::no_answer(destination()).into_response()
        }
    }
}

/// The request as the destination gets it: origin form, only its own fields.
fn rewritten(mut request: Request<Incoming>) -> Request<Incoming> {
    let path = request.uri().path_and_query().cloned();
    let uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    request
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A field that the message is framed or routed by belongs to no hop, whatever is said.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}
