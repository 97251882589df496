//! Pages and requests against a real HTTP server on this machine (row K2).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use estoppel_connect::{
    Channel, Endpoint, Format, Http, HttpError, HttpLimits, HttpRequest, Page, PageAction,
    PageError, Pager, Plaintext, RetryPolicy, RoutingKey,
};
use estoppel_model::{EntityId, Secret, Severity, Untrusted};
use estoppel_playbook::journal::StepOutcome;
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// What the server does with each request, one after the other; the last one again and again.
#[derive(Clone)]
enum Answer {
    Status(u16, &'static str),
    RetryAfter(u16, &'static str),
    Redirect(String),
    /// Takes the request and never answers.
    Silent,
    /// Answers 202 and a body without end.
    Huge,
    /// Answers 202, a start of a body, and never the rest.
    Stalled,
}

struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

struct Server {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Clone)]
struct Script {
    answers: Arc<Vec<Answer>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

async fn handle(
    State(script): State<Script>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let count = {
        let mut seen = script.seen.lock().unwrap();
        seen.push(Seen { path: uri.to_string(), headers, body });
        seen.len()
    };
    let answer = script.answers[(count - 1).min(script.answers.len() - 1)].clone();
    let endless = |first: &'static [u8], then_silent: bool| {
        let chunks = futures_util::stream::unfold(0_u32, move |count| async move {
            if then_silent && count > 0 {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(first)), count + 1))
        });
        (StatusCode::ACCEPTED, Body::from_stream(chunks)).into_response()
    };
    match answer {
        Answer::Status(status, body) => {
            (StatusCode::from_u16(status).unwrap(), body).into_response()
        }
        Answer::RetryAfter(status, after) => {
            (StatusCode::from_u16(status).unwrap(), [("retry-after", after)]).into_response()
        }
        Answer::Redirect(to) => (StatusCode::FOUND, [("location", to)]).into_response(),
        Answer::Silent => std::future::pending().await,
        Answer::Huge => endless(&[b'x'; 16 * 1024], false),
        Answer::Stalled => endless(b"start", true),
    }
}

impl Server {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Script { answers: Arc::new(answers), seen: seen.clone() };
        let router = Router::new().fallback(any(handle)).with_state(script);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router) => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        Self { address, seen, stop }
    }

    fn endpoint(&self) -> Endpoint {
        let text = format!("http://{}/hook/hunter2", self.address);
        Endpoint::parse(&text, Plaintext::LoopbackOnly).unwrap()
    }

    fn pager(&self, format: Format) -> Pager {
        let (name, token) = (EntityId::new("on-call").unwrap(), Secret::new("t0ken".to_owned()));
        let channel = Channel { name, endpoint: self.endpoint(), format, token: Some(token) };
        Pager::new(http(), channel, retry())
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn http() -> Http {
    let limits = HttpLimits {
        connect: Duration::from_secs(2),
        total: Duration::from_millis(400),
        request_bytes_max: 8 * 1024,
        response_bytes_max: 4 * 1024,
    };
    Http::new(limits).unwrap()
}

fn retry() -> RetryPolicy {
    RetryPolicy {
        attempts_max: 3,
        backoff: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        retry_after_max: Duration::from_millis(50),
        deadline: Duration::from_secs(20),
    }
}

fn pagerduty() -> Format {
    Format::PagerDuty { routing_key: RoutingKey::new(Secret::new(KEY.to_owned())).unwrap() }
}

fn page() -> Page {
    Page {
        incident: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        number: None,
        severity: Severity::Critical,
        summary: Untrusted::new("data went to collector.example".to_owned()),
        url: None,
        incident_url: None,
        halt: None,
        dedup_key: "run/1/4".to_owned(),
        checkpoint: None,
        at: "2026-02-05T03:00:00Z".parse().unwrap(),
        subject: "session:abc123".to_owned(),
        action: PageAction::Trigger,
    }
}

#[tokio::test]
async fn a_page_that_fails_is_repeated_under_the_same_key() {
    let taken = r#"{"status":"success","message":"Event processed","dedup_key":"run/1/4"}"#;
    let answers =
        vec![Answer::Status(500, "oops"), Answer::Status(429, ""), Answer::Status(202, taken)];
    let server = Server::start(answers).await;
    let receipt = server.pager(pagerduty()).page(&page()).await.unwrap();
    assert_eq!((receipt.status, receipt.attempts), (202, 3));
    assert_eq!(receipt.dedup_key, "run/1/4");
    assert!(receipt.answer.raw().contains("Event processed"));
    let seen = server.seen.lock().unwrap();
    let bodies: Vec<Value> =
        seen.iter().map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect();
    assert_eq!(bodies.len(), 3);
    assert!(bodies.iter().all(|body| *body == bodies[0]), "each repetition is the same");
    assert_eq!(bodies[0]["dedup_key"], "run/1/4");
    assert_eq!(bodies[0]["routing_key"], KEY);
    assert_eq!(seen[0].headers["content-type"], "application/json");
    assert_eq!(seen[0].path, "/hook/hunter2");
}

#[tokio::test]
async fn a_generic_page_says_what_it_is() {
    let server = Server::start(vec![Answer::Status(204, "")]).await;
    let receipt = server.pager(Format::Generic).page(&page()).await.unwrap();
    assert_eq!((receipt.status, receipt.attempts), (204, 1));
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen[0].headers["content-type"], "application/cloudevents+json");
    assert_eq!(seen[0].headers["authorization"], "Bearer t0ken");
}

/// A refusal is final, and repeats no secret even when the channel does.
#[tokio::test]
async fn a_refused_page_is_not_repeated() {
    let answer = r#"{"status":"invalid event","errors":["bad key 0123456789abcdef0123456789abcdef at /hook/hunter2 for t0ken"]}"#;
    let server = Server::start(vec![Answer::Status(400, answer)]).await;
    let error = server.pager(pagerduty()).page(&page()).await.unwrap_err();
    assert!(matches!(error, PageError::Refused { status: 400, attempts: 1, .. }), "{error:?}");
    assert_eq!((error.outcome(), server.count()), (StepOutcome::Failed, 1));
    let shown = format!("{error} {error:?}");
    for secret in [KEY, "hunter2", "t0ken"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("invalid event"), "{shown}");
}

/// Nobody can tell whether a server that is silent, or answers 500, has taken the page.
#[tokio::test]
async fn a_page_without_an_answer_is_indeterminate() {
    for answer in [Answer::Silent, Answer::Status(503, "")] {
        let server = Server::start(vec![answer]).await;
        let error = server.pager(pagerduty()).page(&page()).await.unwrap_err();
        assert!(matches!(error, PageError::Indeterminate { attempts: 3, .. }), "{error:?}");
        assert_eq!((error.outcome(), server.count()), (StepOutcome::Indeterminate, 3));
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_page_that_surely_was_not_taken_has_failed() {
    let server = Server::start(vec![Answer::Status(429, "")]).await;
    let error = server.pager(pagerduty()).page(&page()).await.unwrap_err();
    assert!(matches!(error, PageError::Failed { attempts: 3, .. }), "{error:?}");
    // Nobody listens: nothing was sent.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = Endpoint::parse(&format!("http://{free}/hunter2"), Plaintext::LoopbackOnly);
    let name = EntityId::new("gone").unwrap();
    let (endpoint, format) = (endpoint.unwrap(), Format::Generic);
    let channel = Channel { name, endpoint, format, token: None };
    let error = Pager::new(http(), channel, retry()).page(&page()).await.unwrap_err();
    assert_eq!(error.outcome(), StepOutcome::Failed);
    let mut shown = format!("{error:?}");
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = source {
        shown.push_str(&error.to_string());
        source = error.source();
    }
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn what_a_channel_asks_for_is_heeded_up_to_a_bound() {
    let answers = vec![Answer::RetryAfter(429, "86400"), Answer::Status(202, "")];
    let server = Server::start(answers).await;
    let receipt = server.pager(pagerduty()).page(&page()).await.unwrap();
    assert_eq!(receipt.attempts, 2, "a day's wait is cut to the longest that is configured");
}

/// An answer cannot choose where a request goes.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Server::start(vec![Answer::Status(200, "")]).await;
    let to = format!("http://{}/stolen", target.address);
    let server = Server::start(vec![Answer::Redirect(to)]).await;
    let (endpoint, headers) = (server.endpoint(), HeaderMap::new());
    let request = HttpRequest {
        method: reqwest::Method::POST,
        endpoint: &endpoint,
        segments: &[],
        headers,
        body: Vec::new(),
    };
    let error = http().send(request).await.unwrap_err();
    assert!(matches!(error, HttpError::Redirect { status: 302, .. }), "{error:?}");
    assert!(server.pager(pagerduty()).page(&page()).await.is_err());
    assert_eq!(target.count(), 0);
}

/// The status counts; a body that is huge or never ends costs neither memory nor time.
#[tokio::test]
async fn the_answers_body_is_bounded_in_size_and_time() {
    for (answer, bytes) in [(Answer::Huge, 4 * 1024), (Answer::Stalled, 5)] {
        let server = Server::start(vec![answer]).await;
        let endpoint = server.endpoint();
        let request = HttpRequest {
            method: reqwest::Method::GET,
            endpoint: &endpoint,
            segments: &["users", "../../admin"],
            headers: HeaderMap::new(),
            body: Vec::new(),
        };
        let answer = http().send(request).await.unwrap();
        assert_eq!((answer.status, answer.body.len(), answer.complete), (202, bytes, false));
        assert_eq!(server.seen.lock().unwrap()[0].path, "/hook/hunter2/users/..%2F..%2Fadmin");
        assert_eq!(server.pager(pagerduty()).page(&page()).await.unwrap().status, 202);
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_sent() {
    let server = Server::start(vec![Answer::Status(200, "")]).await;
    let endpoint = server.endpoint();
    let request = HttpRequest {
        method: reqwest::Method::POST,
        endpoint: &endpoint,
        segments: &[],
        headers: HeaderMap::new(),
        body: vec![0; 8 * 1024 + 1],
    };
    let error = http().send(request).await.unwrap_err().to_string();
    assert_eq!(error, "the request has 8193 bytes: at most 8192");
    assert_eq!(server.count(), 0);
}
