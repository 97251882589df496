//! What went wrong, as a page: what it was, whether anything was done, and where to go on.

use askama::Template;
use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse as _, Response},
};

use super::{Frame, page, site::SiteError, view::Shown, visitor::Visitor};
use crate::{Server, http::problem::Failure};

/// A way on.
#[derive(Debug)]
pub(super) struct Link {
    pub href: String,
    pub text: &'static str,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct Problem {
    frame: Frame,
    title: &'static str,
    detail: Shown,
    hint: String,
    links: Vec<Link>,
}

/// The page of a request that failed in the API's own hands.
pub(super) fn failure(
    server: &Server,
    visitor: &Visitor,
    failure: Failure,
    links: Vec<Link>,
) -> Response {
    let (title, detail) = (failure.title(), Shown::text(&failure.to_string()));
    let hint = failure.hint().unwrap_or_default().to_owned();
    // It also writes the cause into the log.
    let status = failure.into_response().status();
    let frame = Frame::new(server, Some(visitor), "problem", "It did not work");
    page(status, &Problem { frame, title, detail, hint, links })
}

/// A page with a message of our own.
pub(super) fn said(
    server: &Server,
    visitor: &Visitor,
    status: StatusCode,
    title: &'static str,
    detail: String,
    links: Vec<Link>,
) -> Response {
    let frame = Frame::new(server, Some(visitor), "problem", title);
    let detail = Shown::text(&detail);
    page(status, &Problem { frame, title, detail, hint: String::new(), links })
}

/// The smallest page, for those of whom nothing is known.
#[derive(Template)]
#[template(path = "bare.html")]
struct Bare<'a> {
    title: &'a str,
    detail: &'a str,
    hint: &'a str,
    link: &'a str,
    link_text: &'a str,
}

fn bare(status: StatusCode, bare: &Bare<'_>) -> Response {
    match bare.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(_) => status.into_response(),
    }
}

pub(super) fn site(error: &SiteError) -> Response {
    let status = match error {
        SiteError::NoHost => StatusCode::BAD_REQUEST,
        SiteError::Unknown { .. } => StatusCode::MISDIRECTED_REQUEST,
        SiteError::Foreign => StatusCode::FORBIDDEN,
    };
    let hint = match error {
        SiteError::NoHost => "",
        SiteError::Unknown { .. } => {
            "Reach it by its IP address or localhost, or set `public_url` under `[serve]` in estoppel.toml to the address that people use."
        }
        SiteError::Foreign => {
            "Open the page itself and try again there. Behind a proxy, set `public_url` under `[serve]` in estoppel.toml to the address that people use."
        }
    };
    let detail = error.to_string();
    bare(
        status,
        &Bare {
            title: "Nothing was done",
            detail: &detail,
            hint,
            link: "/halt",
            link_text: "Open the page",
        },
    )
}

pub(super) fn form(error: &str) -> Response {
    bare(
        StatusCode::BAD_REQUEST,
        &Bare {
            title: "Nothing was done",
            detail: "the form could not be read",
            hint: &Shown::text(error).to_string(),
            link: "/halt",
            link_text: "Back",
        },
    )
}

/// A form came, and nobody is signed in any more.
pub(super) fn signed_out(sign_in: &str) -> Response {
    bare(
        StatusCode::UNAUTHORIZED,
        &Bare {
            title: "Nothing was done: you are signed out",
            detail: "the session is over, or its token was revoked",
            hint: "Sign in, and what you typed is there again.",
            link: sign_in,
            link_text: "Sign in",
        },
    )
}

/// A form came that was made for another session.
pub(super) fn stale_form(again: &str) -> Response {
    bare(
        StatusCode::FORBIDDEN,
        &Bare {
            title: "Nothing was done: the form is of an earlier session",
            detail: "somebody has signed in with this browser since the page was opened",
            hint: "Open it again: what you typed is there.",
            link: again,
            link_text: "Open it again",
        },
    )
}

/// The address exists, and does not take this kind of request: a form's address that was opened.
pub(super) fn method() -> Response {
    let response = bare(
        StatusCode::METHOD_NOT_ALLOWED,
        &Bare {
            title: "Nothing was done",
            detail: "this address takes only what one of our forms sends",
            hint: "",
            link: "/halt",
            link_text: "Open the page",
        },
    );
    ([(header::ALLOW, "GET, POST")], response).into_response()
}
