//! One connection of a client: reads requests, finds out who and where to, judges, hands over.

use std::{convert::Infallible, sync::Arc};

use estoppel_extract::HostPort;
use estoppel_model::{FlowVerdict, Secret};
use http::{Method, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Limits, Source,
    control::{Control, Wish},
    credential::Verifier,
    dial::{DialError, Dialler},
    flow::{FlowGuard, Flows, Uncounted, Upstream},
    forward,
    policy::Listing,
    problem::{Body, Problem},
    tunnel,
    wire::Wire,
};

/// The most headers that one head may have.
const HEADERS_MAX: usize = 128;

/// How it is known who is behind a connection.
pub(crate) enum Who {
    Fixed(Arc<Source>),
    Credential(Verifier),
}

/// What all connections share.
pub(crate) struct Proxy {
    pub(crate) who: Who,
    pub(crate) dialler: Dialler,
    pub(crate) flows: Arc<Flows>,
    pub(crate) limits: Limits,
    pub(crate) control: Option<Control>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Proxy {
    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Self>, wire: Wire) {
        let io = TokioIo::new(wire.clone());
        let proxy = Arc::clone(&self);
        let client = wire.clone();
        let service = service_fn(move |request| {
            let proxy = Arc::clone(&proxy);
            let client = client.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request, client).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size(self.limits.head_bytes_max)
            .max_headers(HEADERS_MAX)
            .half_close(false)
            .serve_connection(io, service)
            .with_upgrades();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => wire.reset(),
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "a client's connection ended early");
            }
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, client: Wire) -> Response<Body> {
        let tunnel = request.method() == Method::CONNECT;
        let protocol = if tunnel { "tls" } else { "http" };
        let source = match self.identify(&request) {
            Ok(source) => source,
            Err(problem) => {
                let named = request.uri().authority().map_or("", |authority| authority.as_str());
                self.flows.refused(&Source::default(), protocol, named);
                return problem.into_response();
            }
        };
        if let Some(control) = &self.control
            && !tunnel
            && request.uri().authority().is_none()
        {
            return match Wish::of(&request) {
                Some(wish) => control.pass_on(wish, request).await,
                None => {
                    self.flows.refused(&source, protocol, "");
                    Problem::not_passed_on().into_response()
                }
            };
        }
        let target = if tunnel { tunnel_target(&request) } else { forward::target(&request) };
        let target = match target {
            Ok(target) => target,
            Err(problem) => {
                let named = request.uri().authority().map_or("", |authority| authority.as_str());
                self.flows.refused(&source, protocol, named);
                return problem.into_response();
            }
        };
        let guard = self.flows.open(source, target, protocol, client);
        let connected = self.connect(&guard).await;
        match connected {
            Err(problem) => problem.with_contact(self.flows.authority().contact()).into_response(),
            Ok(upstream) if tunnel => tunnel::accept(&self, guard, request, upstream),
            Ok(upstream) => forward::forward(&self, guard, request, upstream).await,
        }
    }

    fn identify(&self, request: &Request<Incoming>) -> Result<Arc<Source>, Problem> {
        match &self.who {
            Who::Fixed(source) => Ok(Arc::clone(source)),
            Who::Credential(verifier) => {
                let header = request.headers().get(header::PROXY_AUTHORIZATION);
                // Whatever is in the header does not reach a log.
                let header = header.map(|value| Secret::new(value.as_bytes()));
                let header = header.as_ref().map(|value| *value.expose());
                verifier
                    .verify_header(header, self.flows.clock().now())
                    .map(|subject| Arc::new(Source { subject, ..Source::default() }))
                    .map_err(Problem::identity)
            }
        }
    }

    /// Judges the flow and connects it to its destination.
    async fn connect(&self, guard: &FlowGuard) -> Result<Upstream, Problem> {
        let flow = guard.flow();
        if let Some(cause) = flow.refusal() {
            flow.conclude(FlowVerdict::Blocked);
            return Err(Problem::refused(&cause, flow.target.to_string()));
        }
        match flow.listing {
            Listing::Allowed => {}
            // At once, and not when it ends: this is what detection works on.
            Listing::WouldBlock => self.flows.report(flow),
            Listing::Blocked => {
                flow.conclude(FlowVerdict::Blocked);
                return Err(Problem::unlisted(flow.target.to_string()));
            }
        }
        if let Err(uncounted) = self.flows.count(flow).await {
            let destination = flow.target.to_string();
            let problem = match uncounted {
                Uncounted::TooSoon(too_soon) => Problem::too_soon(too_soon, destination),
                Uncounted::Over(cause) => Problem::refused(&cause, destination),
                Uncounted::Ended => return Err(self.ended(guard)),
            };
            flow.conclude(FlowVerdict::Blocked);
            return Err(problem);
        }
        let policy = self.flows.policy();
        let dialled = tokio::select! {
            biased;
            () = flow.ending.cancelled() => return Err(self.ended(guard)),
            dialled = self.dialler.dial(flow, &policy.allowlist) => dialled,
        };
        match dialled {
            Ok(wire) => Ok(flow.connect(wire, Arc::clone(self.flows.clock()))),
            Err(error) => {
                flow.conclude(match error {
                    DialError::Address { .. } | DialError::Refused(_) => FlowVerdict::Blocked,
                    _ => FlowVerdict::Failed,
                });
                Err(Problem::dial(&error, flow.target.to_string()))
            }
        }
    }

    /// The answer to a flow that was ended before it was connected. The client has been reset and
    /// will not read it.
    fn ended(&self, guard: &FlowGuard) -> Problem {
        let flow = guard.flow();
        match flow.refusal() {
            Some(cause) => Problem::refused(&cause, flow.target.to_string()),
            None => Problem::no_answer(flow.target.to_string()),
        }
    }
}

/// The destination of a CONNECT request.
fn tunnel_target(request: &Request<Incoming>) -> Result<HostPort, Problem> {
    let authority = request
        .uri()
        .authority()
        .filter(|_| request.uri().path_and_query().is_none())
        .ok_or_else(|| Problem::request("CONNECT needs HOST:PORT".to_owned()))?;
    HostPort::parse(authority.as_str(), None).map_err(|error| Problem::request(error.to_string()))
}
