//! The HTTP API. One module an address family; a handler turns wire types into calls and back.
//!
//! The kill switch's own addresses run on the orders' runtime; everything else is handed to the
//! work runtime, so that no parse of a large batch stands between an operator and a halt.

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use tracing::Instrument as _;
use utoipa::OpenApi as _;

use crate::Server;

mod allowlist;
mod break_glass;
mod drills;
mod events;
mod evidence;
pub(crate) mod extract;
mod halted;
pub(crate) mod health;
mod holds;
pub(crate) mod incidents;
pub(crate) mod kill_switch;
pub(crate) mod limits;
pub(crate) mod listener;
mod metrics;
mod openapi;
pub(crate) mod problem;
mod request_log;
mod runs;
pub(crate) mod sql;
mod status;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod tokens;
mod vault;

use problem::Failure;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Estoppel",
        description = "Stops AI agents, proves that they stopped, and keeps the evidence."
    ),
    paths(
        kill_switch::halt,
        kill_switch::state,
        kill_switch::release,
        kill_switch::list,
        kill_switch::plan,
        kill_switch::status,
        kill_switch::block,
        limits::post,
        limits::list,
        kill_switch::approve_release,
        kill_switch::releases_pending,
        drills::kill_switch,
        drills::list,
        break_glass::make,
        break_glass::list,
        stream::get,
        events::post,
        sql::post,
        allowlist::get,
        allowlist::put,
        allowlist::suggest,
        allowlist::policy,
        incidents::open,
        incidents::list,
        incidents::get,
        incidents::report,
        incidents::note,
        incidents::assign,
        incidents::close,
        evidence::put,
        evidence::add,
        evidence::add_to_halt,
        vault::list,
        vault::show,
        vault::item,
        vault::log,
        vault::verify,
        vault::export,
        vault::dispose,
        holds::list,
        holds::place,
        holds::release,
        runs::list,
        runs::approve,
        runs::approve_step,
        tokens::mint,
        tokens::list,
        tokens::revoke,
        tokens::credential,
        status::get,
        health::live,
        health::ready,
        metrics::get
    )
)]
struct Document;

/// The OpenAPI document of all addresses.
pub fn openapi() -> utoipa::openapi::OpenApi {
    openapi::completed(Document::openapi())
}

/// All addresses.
pub(crate) fn router(server: Server) -> Router {
    let stop = Router::new()
        .route("/kill-switch", post(kill_switch::halt).get(kill_switch::state))
        .route("/kill-switch/release", post(kill_switch::release))
        .route("/v1/halts", get(kill_switch::list))
        .route("/v1/halts/plan", post(kill_switch::plan))
        .route("/v1/halts/{id}", get(kill_switch::status))
        .route("/v1/releases", get(kill_switch::releases_pending))
        .route("/v1/releases/{id}/approve", post(kill_switch::approve_release))
        .route("/v1/blocks", post(kill_switch::block))
        .route("/v1/limits", post(limits::post).get(limits::list))
        .route("/v1/stream", get(stream::get))
        .route("/healthz", get(health::live))
        .layer(middleware::from_fn_with_state(server.clone(), on_own_task));
    let work = Router::new()
        .route("/v1/drills", get(drills::list))
        .route("/v1/drills/kill-switch", post(drills::kill_switch))
        .route("/v1/break-glass", post(break_glass::make).get(break_glass::list))
        .route("/v1/events", post(events::post))
        .route("/v1/sql", post(sql::post))
        .route("/v1/allowlist", get(allowlist::get).put(allowlist::put))
        .route("/v1/allowlist/suggest", get(allowlist::suggest))
        .route("/v1/gateway/policy", get(allowlist::policy))
        .route("/v1/incidents", post(incidents::open).get(incidents::list))
        .route("/v1/incidents/{id}", get(incidents::get))
        .route("/v1/incidents/{id}/report", get(incidents::report))
        .route("/v1/incidents/{id}/notes", post(incidents::note))
        .route("/v1/incidents/{id}/assign", post(incidents::assign))
        .route("/v1/incidents/{id}/close", post(incidents::close))
        .route("/v1/incidents/{id}/evidence", post(evidence::add))
        .route("/v1/halts/{id}/evidence", post(evidence::add_to_halt))
        .route("/v1/evidence/{sha256}", put(evidence::put))
        .route("/v1/evidence", get(vault::list))
        .route("/v1/evidence/export", post(vault::export))
        .route("/v1/evidence/captures/{id}", get(vault::show))
        .route("/v1/evidence/captures/{id}/items/{sha256}", get(vault::item))
        .route("/v1/evidence/captures/{id}/log", get(vault::log))
        .route("/v1/evidence/captures/{id}/verify", post(vault::verify))
        .route("/v1/evidence/captures/{id}/dispose", post(vault::dispose))
        .route("/v1/evidence/holds", get(holds::list).post(holds::place))
        .route("/v1/evidence/holds/{id}/release", post(holds::release))
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/{id}/approve", post(runs::approve))
        .route("/v1/runs/{run}/steps/{step}/approve", post(runs::approve_step))
        .route("/v1/tokens", post(tokens::mint).get(tokens::list))
        .route("/v1/tokens/{id}", axum::routing::delete(tokens::revoke))
        .route("/v1/gateway/credentials", post(tokens::credential))
        .route("/v1/status", get(status::get))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::get))
        .route("/openapi.json", get(|| async { axum::Json(openapi()) }))
        .layer(middleware::from_fn_with_state(server.clone(), on_work_runtime));
    let pages =
        crate::pages::router().layer(middleware::from_fn_with_state(server.clone(), on_own_task));
    stop.merge(work)
        .fallback(|| async {
            Failure::NotFound("there is nothing at this address; see /openapi.json".to_owned())
        })
        .method_not_allowed_fallback(|| async { Failure::Method })
        .layer(middleware::map_response(inert))
        .merge(pages)
        .layer(middleware::from_fn_with_state(server.clone(), request_log::follow))
        .with_state(server)
}

/// What is told to anybody at `metrics_listen`: nothing of a person, nothing that acts.
pub(crate) fn health_router(server: Server) -> Router {
    Router::new()
        .route("/metrics", get(metrics::open))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(|| async {
            Failure::NotFound("here are /metrics, /healthz and /readyz alone".to_owned())
        })
        .method_not_allowed_fallback(|| async { Failure::Method })
        .layer(middleware::map_response(inert))
        .with_state(server)
}

/// What is told to who connects while the server drains.
pub(crate) fn draining_router(server: Server) -> Router {
    let ending = || async {
        Failure::Unavailable(
            "the server is ending: ask another, or this one when it is back".to_owned(),
        )
    };
    Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(ending)
        .layer(middleware::map_response(inert))
        .with_state(server)
}

/// Runs a handler in a task of its own: a client that hangs up does not end a halt half way.
async fn on_own_task(State(server): State<Server>, request: Request, next: Next) -> Response {
    match server.tasks().spawn(next.run(request).in_current_span()).await {
        Ok(response) => response,
        Err(error) => Failure::internal(error).into_response(),
    }
}

/// As [`on_own_task`], and away from the orders' threads.
async fn on_work_runtime(State(server): State<Server>, request: Request, next: Next) -> Response {
    match server.tasks().spawn_on(next.run(request).in_current_span(), server.work()).await {
        Ok(response) => response,
        Err(error) => Failure::internal(error).into_response(),
    }
}

/// No answer of the API is to be sniffed, framed or kept by a cache.
async fn inert(mut response: Response) -> Response {
    use axum::http::{HeaderValue, header};
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}
