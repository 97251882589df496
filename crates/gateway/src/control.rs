//! The way of an agent's own guard to its servers, where the agent reaches nothing but this listener.
//!
//! A guard speaks to the gateway as if that were the server: in origin form, while everything that
//! is to be proxied names its destination. Invariants:
//!
//! - Exactly `GET /v1/stream` and `POST /v1/events` go on, without a query. No other address of the
//!   server can be reached here, whatever token the agent holds.
//! - Where they go is the operator's configuration; nothing in a request says it.
//! - The guard's own token goes along and none is added: who has none gets the server's 401.
//! - Each request is framed anew from the fields that are named here. The connection becomes bytes
//!   both ways only when the server has answered 101 to the stream's request, and reads frames from
//!   there on, no requests.
//!
//! Orders and the lease are not asked here: the guard of a halted agent must hear the halt, confirm
//! it, and hear its release. Nothing of this is a row of `network_log`: it leaves for no destination.
//! Of the bodies nothing is kept, and how long they may be is the server's matter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use estoppel_link::Trust;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional_with_sizes,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{
    GatewayError,
    problem::{Body, Problem},
};

/// Most requests under way at a time, streams included: one stream for each guard of one agent.
const PLACES: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a server may take to answer the request for a stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one batch of events may take, its answer included.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the guard's side of a stream may take to become one.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Longest answer that is passed on, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const COPY_BYTES: usize = 8 * 1024;

/// What goes on of a request for events.
const EVENTS_FIELDS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::CONTENT_TYPE, header::CONTENT_ENCODING];
/// What goes on of a request for a stream.
const STREAM_FIELDS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION];
/// What comes back of an answer.
const ANSWER_FIELDS: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::WWW_AUTHENTICATE];

/// The servers that an agent's own guard reaches through its gateway's listener.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Addresses of servers of one deployment; the next one is taken when one does not answer.
    pub servers: Vec<Url>,
    /// Who may vouch for them, where they speak TLS.
    pub trust: Trust,
}

/// What a guard may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Stream,
    Events,
}

impl Wish {
    /// What a request in origin form asks for; `None`: nothing that goes on.
    pub(crate) fn of(request: &Request<Incoming>) -> Option<Self> {
        let uri = request.uri();
        if uri.authority().is_some() || uri.query().is_some() {
            return None;
        }
        [(Method::GET, Self::Stream), (Method::POST, Self::Events)]
            .into_iter()
            .find(|(method, wish)| request.method() == method && uri.path() == wish.path())
            .map(|(_, wish)| wish)
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Stream => "/v1/stream",
            Self::Events => "/v1/events",
        }
    }
}

/// Passes on what a guard may ask for.
#[derive(Debug)]
pub(crate) struct Control {
    http: reqwest::Client,
    servers: Vec<Url>,
    /// The server that answered last.
    current: AtomicUsize,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Control {
    /// # Errors
    /// When there is no server, or TLS cannot be used.
    pub(crate) fn new(
        plane: ControlPlane,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, GatewayError> {
        if plane.servers.is_empty() {
            return Err(GatewayError::NoServer);
        }
        // Already set is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        if let Some(tls) = plane.trust.rustls() {
            builder = builder.tls_backend_preconfigured(Arc::unwrap_or_clone(tls));
        }
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .redirect(reqwest::redirect::Policy::none())
            // An upgrade is a matter of HTTP/1.
            .http1_only()
            .no_proxy()
            .build()
            .map_err(GatewayError::Control)?;
        Ok(Self {
            http,
            servers: plane.servers,
            current: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(PLACES)),
            tasks,
            stop,
        })
    }

    /// Passes a request on, and its answer back.
    pub(crate) async fn pass_on(&self, wish: Wish, request: Request<Incoming>) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Problem::too_many(PLACES).into_response();
        };
        let answered = match wish {
            Wish::Events => self.events(request).await,
            Wish::Stream => self.stream(request, place).await,
        };
        answered.unwrap_or_else(Problem::into_response)
    }

    async fn events(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let (head, body) = request.into_parts();
        let fields = only(&head.headers, &EVENTS_FIELDS);
        let response = self
            .ask(Wish::Events, |http, url| {
                http.post(url)
                    .headers(fields)
                    .timeout(EVENTS_TIMEOUT)
                    .body(reqwest::Body::wrap(body))
            })
            .await?;
        answer(response).await
    }

    async fn stream(
        &self,
        mut request: Request<Incoming>,
        place: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, Problem> {
        let asked = request.headers().get(header::UPGRADE);
        if !asked.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return Err(Problem::request("the stream is a WebSocket".to_owned()));
        }
        let mut fields = only(request.headers(), &STREAM_FIELDS);
        fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let asking = self.ask(Wish::Stream, |http, url| http.get(url).headers(fields));
        let response = timeout(STREAM_TIMEOUT, asking)
            .await
            .unwrap_or_else(|_elapsed| Err(self.failed(self.current.load(Relaxed))))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return answer(response).await;
        }
        let mut opened = Response::new(Either::Left(Full::default()));
        *opened.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *opened.headers_mut() = only(response.headers(), &[header::SEC_WEBSOCKET_ACCEPT]);
        let headers = opened.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let (guard, stop) = (hyper::upgrade::on(&mut request), self.stop.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(carry(guard, response)).await;
            drop(place);
        });
        Ok(opened)
    }

    /// Asks the server that answered last. Bodies are not kept, so that nothing can be asked twice:
    /// when it fails, the next request goes to the next server.
    async fn ask(
        &self,
        wish: Wish,
        request: impl FnOnce(&reqwest::Client, Url) -> reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Problem> {
        let index = self.current.load(Relaxed);
        let mut url = self.servers[index].clone();
        url.set_path(wish.path());
        url.set_query(None);
        match request(&self.http, url).send().await {
            Ok(response) => {
                if response.status().is_server_error() {
                    self.next_after(index);
                }
                Ok(response)
            }
            Err(error) => {
                // The error names the address, which is the operator's, and no field.
                tracing::debug!(%error, "no server for an agent's guard");
                Err(self.failed(index))
            }
        }
    }

    fn failed(&self, index: usize) -> Problem {
        self.next_after(index);
        Problem::server_unreachable()
    }

    fn next_after(&self, index: usize) {
        let next = (index + 1) % self.servers.len();
        // Another request may have gone on already.
        let _ = self.current.compare_exchange(index, next, Relaxed, Relaxed);
    }
}

/// Carries the bytes of a stream until either side ends it.
async fn carry(guard: OnUpgrade, server: reqwest::Response) {
    let guard: Upgraded = match timeout(UPGRADE_TIMEOUT, guard).await {
        Ok(Ok(guard)) => guard,
        _ => return,
    };
    let mut server = match server.upgrade().await {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(%error, "a server's stream did not open");
            return;
        }
    };
    let mut guard = TokioIo::new(guard);
    let copied =
        copy_bidirectional_with_sizes(&mut guard, &mut server, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a guard's stream ended early");
    }
}

/// The server's answer, with its body if that is of an answer's size.
async fn answer(mut response: reqwest::Response) -> Result<Response<Body>, Problem> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => {
                body.extend_from_slice(&chunk);
            }
            Ok(None) => break,
            Ok(Some(_)) | Err(_) => return Err(Problem::server_unreachable()),
        }
    }
    let mut passed = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *passed.status_mut() = response.status();
    *passed.headers_mut() = only(response.headers(), &ANSWER_FIELDS);
    Ok(passed)
}

fn only(fields: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(names.len() + 2);
    for name in names {
        if let Some(value) = fields.get(name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}
