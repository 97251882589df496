//! The style sheet, the script and the icon. They are in the binary; their addresses carry a part of
//! their SHA-256, so that a browser keeps them for good and never mixes two versions.

use std::sync::LazyLock;

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use sha2::{Digest as _, Sha256};

use crate::Server;

const STYLE: &str = include_str!("../../templates/page.css");
const SCRIPT: &str = include_str!("../../templates/page.js");
const ICON: &str = include_str!("../../templates/icon.svg");

/// Where the assets are.
#[derive(Debug)]
pub(super) struct Assets {
    pub style: String,
    pub script: String,
    pub icon: String,
}

pub(super) static ASSETS: LazyLock<Assets> = LazyLock::new(|| {
    let at = |content: &str, extension: &str| {
        format!("/assets/{}.{extension}", hex::encode(&Sha256::digest(content)[..8]))
    };
    Assets { style: at(STYLE, "css"), script: at(SCRIPT, "js"), icon: at(ICON, "svg") }
});

pub(super) fn router() -> Router<Server> {
    Router::new().route("/assets/{name}", get(asset))
}

async fn asset(Path(name): Path<String>) -> Response {
    let path = format!("/assets/{name}");
    let (content, kind) = if path == ASSETS.style {
        (STYLE, "text/css; charset=utf-8")
    } else if path == ASSETS.script {
        (SCRIPT, "text/javascript; charset=utf-8")
    } else if path == ASSETS.icon {
        (ICON, "image/svg+xml")
    } else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    (headers, content).into_response()
}
