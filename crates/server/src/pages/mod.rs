//! The pages: a button that every on-call person can reach (row K5).
//!
//! Rendered here, plain forms, nothing that needs a script: the script makes confirmations live and
//! sends a halt again when the server was away. A page acts only by a form (POST) of a person who is
//! signed in, which carries the session's form token and says where it came from; what it asks for
//! then goes through the API's own handlers, so that roles, tenants and policies are judged in one
//! place. An address alone (GET) never changes anything: it fills forms in.
//!
//! The pages run on the orders' runtime and wait for no disk: whoever is signed in halts while the
//! ledger hangs.

mod assets;
mod follow;
mod form;
mod halt;
mod hits;
mod overview;
mod problem;
mod release;
pub(crate) mod sessions;
mod short;
mod sign_in;
pub(crate) mod site;
mod view;
mod visitor;

use askama::Template;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{Html, IntoResponse as _, Response},
    routing::{get, post},
};
use estoppel_api::Role;

use self::{
    assets::{ASSETS, Assets},
    view::{Moment, Shown},
    visitor::Visitor,
};
use crate::Server;

pub(crate) use self::{
    form::address,
    overview::Views,
    short::short_address,
    sign_in::{Wrong, keep_sessions},
};

/// Longest form, in bytes: a reason and some ids.
const FORM_BYTES_MAX: usize = 256 * 1024;

/// Scripts, styles and pictures from here only; no frame around us; forms go nowhere else; one
/// place in the script may write markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types live";

/// The addresses of the pages.
pub(crate) fn router() -> Router<Server> {
    Router::new()
        .route("/", get(async || see_other("/halt")))
        .route("/halt", get(halt::show).post(halt::confirm))
        .route("/halt/review", get(halt::review))
        .route("/halt/live", get(overview::live))
        .route("/halts", get(overview::watch))
        .route("/halts/{id}", get(follow::show))
        .route("/halts/{id}/live", get(follow::live))
        .route("/i/{incident}", get(short::lead))
        .route("/release", get(release::show).post(release::confirm))
        .route("/sign-in", get(sign_in::show).post(sign_in::sign_in))
        .route("/sign-out", post(sign_in::sign_out))
        .method_not_allowed_fallback(async || problem::method())
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(middleware::map_response(guarded))
        .merge(assets::router())
}

/// What keeps a page to itself. The referrer stays with our own pages; without one at all, browsers
/// would send our own forms with the origin `null`.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
    response
}

/// What stands around each page.
#[derive(Debug)]
struct Frame {
    title: &'static str,
    /// Which page it is, for the navigation and the style.
    here: &'static str,
    who: Option<Who>,
    now: Moment,
    lease_seconds: u64,
    /// Whom to call, in the owner's words.
    contact: Option<Shown>,
    version: &'static str,
    assets: &'static Assets,
}

/// Who is signed in.
#[derive(Debug)]
struct Who {
    name: Shown,
    role: Role,
    tenant: Option<Shown>,
    /// What each of their forms carries.
    form: String,
    releases: bool,
}

impl Frame {
    fn new(
        server: &Server,
        visitor: Option<&Visitor>,
        here: &'static str,
        title: &'static str,
    ) -> Self {
        let now = server.clock().now();
        let who = visitor.map(|visitor| Who {
            name: Shown::name(&visitor.identity.actor),
            role: visitor.identity.role,
            tenant: visitor.identity.tenant.as_ref().map(Shown::name),
            form: visitor.key.form_token(),
            releases: visitor.may(Role::Lead),
        });
        Self {
            title,
            here,
            who,
            now: Moment::new(now, now),
            lease_seconds: server.config().lease.as_secs(),
            contact: server.config().contact.as_deref().map(Shown::name),
            version: env!("CARGO_PKG_VERSION"),
            assets: &ASSETS,
        }
    }
}

fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            let text =
                "The page could not be made; the log says why. `estoppel halt` works all the same.";
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// Leads the browser to another page of ours, by GET.
fn see_other(address: &str) -> Response {
    // Addresses of ours are ASCII without control characters; what is not leads to the button.
    let location =
        HeaderValue::from_str(address).unwrap_or_else(|_| HeaderValue::from_static("/halt"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}
