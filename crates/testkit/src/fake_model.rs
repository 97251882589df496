//! A model server that says what a script says: for tests of agents and of what stands around them.
//!
//! It speaks three shapes: OpenAI's chat completions (`POST /v1/chat/completions`) and responses
//! (`POST /v1/responses`), and Anthropic's messages (`POST /v1/messages`), each whole or as server-sent
//! events, with text and tool calls. The vendors' own Python clients read all of it, in strict mode; a
//! test of `sdk/python` holds that.
//!
//! Any [`Script`] answer may be slow, or stand still after some pieces until it is told to go on. What
//! was asked is kept, with how each answer ended: so a test can prove that a stream was cut
//! ([`Ended::ClientLeft`]) and that nothing was asked afterwards.
//!
//! | path | what |
//! |---|---|
//! | `GET /_/requests` | what was asked: an array of [`Asked`] |
//! | `GET /_/requests/N?state=S` | the call `N` once its state is `S`; 408 when it is not within ten seconds |
//! | `POST /_/go_on` | answers that stand still go on |
//! | `PUT /_/script` | another script; what was asked is forgotten |
//!
//! It listens on loopback only, asks for no key, judges no request beyond its shape, and counts no
//! tokens: usage is what the script says.

mod answering;
mod chat_completions;
mod dialect;
mod messages;
mod record;
mod responses;
mod script;

use std::{io, net::Ipv4Addr, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{dialect::Dialect, record::Record};
pub use self::{
    record::{Asked, Ended},
    script::{Answer, Script, ToolCall, Usage, WhenOver},
};

/// Largest request that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// A running fake; it is gone when this is dropped.
#[derive(Debug)]
pub struct FakeModel {
    url: String,
    record: Arc<Record>,
    stop: CancellationToken,
}

impl FakeModel {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(script: Script) -> io::Result<Self> {
        Self::start_at(0, script).await
    }

    /// Starts one on this port of 127.0.0.1; 0 is a free one.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn start_at(port: u16, script: Script) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let record = Arc::new(Record::new(script));
        let stop = CancellationToken::new();
        let router = router(Arc::clone(&record));
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            stopped.run_until_cancelled(async { axum::serve(listener, router).await }).await
        });
        Ok(Self { url, record, stop })
    }

    /// Its address, such as `http://127.0.0.1:40123`. Anthropic's clients take it as it is, OpenAI's
    /// with `/v1` behind it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was asked since the start, or since the last script.
    pub fn requests(&self) -> Vec<Asked> {
        self.record.all()
    }

    /// Resolves with a call once it has this state; `None` when it has not within ten seconds.
    pub async fn until(&self, call: usize, state: Ended) -> Option<Asked> {
        self.record.until(call, state).await
    }

    /// Lets answers that stand still go on.
    pub fn go_on(&self) {
        self.record.go_on();
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn router(record: Arc<Record>) -> Router {
    let ask = |dialect: Dialect| {
        post(move |State(record): State<Arc<Record>>, body: String| async move {
            answering::answer(&record, dialect, &body).await
        })
    };
    Router::new()
        .route(Dialect::ChatCompletions.path(), ask(Dialect::ChatCompletions))
        .route(Dialect::Responses.path(), ask(Dialect::Responses))
        .route(Dialect::Messages.path(), ask(Dialect::Messages))
        .route("/_/requests", get(requests))
        .route("/_/requests/{call}", get(request))
        .route("/_/go_on", post(go_on))
        .route("/_/script", put(script))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(record)
}

async fn requests(State(record): State<Arc<Record>>) -> Json<Vec<Asked>> {
    Json(record.all())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Until {
    state: Ended,
}

async fn request(
    State(record): State<Arc<Record>>,
    Path(call): Path<usize>,
    Query(Until { state }): Query<Until>,
) -> Result<Json<Asked>, (StatusCode, String)> {
    record.until(call, state).await.map(Json).ok_or_else(|| {
        let is = record.all().get(call).map_or_else(
            || "was not made".to_owned(),
            |asked| format!("is `{}`", asked.state.as_str()),
        );
        (StatusCode::REQUEST_TIMEOUT, format!("call {call} {is}, not `{}`", state.as_str()))
    })
}

async fn go_on(State(record): State<Arc<Record>>) {
    record.go_on();
}

async fn script(
    State(record): State<Arc<Record>>,
    body: String,
) -> Result<(), (StatusCode, String)> {
    let script = serde_json::from_str(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("not a script: {error}")))?;
    record.begin_anew(script);
    Ok(())
}
