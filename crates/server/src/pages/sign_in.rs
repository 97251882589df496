//! Signing in with a personal token, and out.
//!
//! A token has 32 random bytes, so guessing is hopeless; what is limited is the noise that guesses
//! make. A good token is never refused for somebody else's bad ones: a flood must not lock the people
//! out who could stop it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use askama::Template;
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use estoppel_model::{NewRecord, RecordKind, Secret, Timestamp};

use super::{
    Frame, page, see_other,
    sessions::Key,
    visitor::{Act, Passer, Stranger, cookie, session_lasts},
};
use crate::{
    Server,
    token::{Identity, TokenError},
};

const SIGNED_IN: RecordKind = RecordKind::new("session.opened");
const SIGNED_OUT: RecordKind = RecordKind::new("session.closed");
/// How long signing in waits for the disk to keep the session.
const KEPT_WAIT: Duration = Duration::from_millis(250);
/// Wrong tokens that are answered as such in a minute; further ones are told to wait.
const WRONG_PER_MINUTE_MAX: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
/// Pause between attempts to write the sessions.
const RETRY: Duration = Duration::from_secs(1);
/// Longest address to go on to, in bytes.
const NEXT_BYTES_MAX: usize = 8 * 1024;

/// Counts wrong tokens over a minute.
#[derive(Debug, Default)]
pub(crate) struct Wrong(Mutex<(Timestamp, u32)>);

impl Wrong {
    /// Counts one more; whether there were too many.
    fn another(&self, now: Timestamp) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(window.0) >= MINUTE || now < window.0 {
            *window = (now, 0);
        }
        window.1 = window.1.saturating_add(1);
        if window.1 == WRONG_PER_MINUTE_MAX {
            tracing::warn!(
                "many wrong tokens are tried at /sign-in; good ones are taken all the same"
            );
        }
        window.1 > WRONG_PER_MINUTE_MAX
    }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn {
    frame: Frame,
    problem: Option<String>,
    next: String,
    lasts: String,
}

fn form(server: &Server, next: &str, problem: Option<String>) -> SignIn {
    let frame = Frame::new(server, None, "sign-in", "Sign in");
    SignIn { frame, problem, next: local(next).to_owned(), lasts: session_lasts() }
}

/// Where to go on to: an address of ours, or the button.
fn local(next: &str) -> &str {
    let path = next.split(['?', '#']).next().unwrap_or_default();
    let ours = ["/halt", "/halts", "/release"].contains(&path)
        || ["/halt/", "/halts/", "/i/"].iter().any(|folder| path.starts_with(folder));
    let plain = next.len() <= NEXT_BYTES_MAX
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if ours && plain { next } else { "/halt" }
}

/// `GET /sign-in`.
pub(super) async fn show(State(server): State<Server>, passer: Passer) -> Response {
    let next = passer.query.one("next");
    if passer.signed_in {
        return see_other(local(next));
    }
    page(StatusCode::OK, &form(&server, next, None))
}

/// `POST /sign-in`.
pub(super) async fn sign_in(State(server): State<Server>, stranger: Stranger) -> Response {
    let Stranger { site, fields } = stranger;
    let now = server.clock().now();
    let next = fields.one("next");
    let refuse = |status, problem: String| page(status, &form(&server, next, Some(problem)));
    let identity = match server.tokens().identify(&Secret::new(fields.one("token")), now) {
        Ok(identity) if identity.role.is_personal() => identity,
        Ok(identity) => {
            let problem = format!(
                "This token is a machine's (role {}). People sign in with a personal one.",
                identity.role
            );
            return refuse(StatusCode::FORBIDDEN, problem);
        }
        Err(_) if server.wrong_tokens().another(now) => {
            let problem =
                "Many wrong tokens were tried: wait a minute. A good one is taken at once.";
            let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, problem.to_owned());
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            return response;
        }
        Err(TokenError::Unknown) => {
            let problem =
                "This token is not known here. Was it copied whole, and from this server?";
            return refuse(StatusCode::UNAUTHORIZED, problem.to_owned());
        }
        Err(error) => {
            let problem = format!("No entry: {error}. An admin makes a new one.");
            return refuse(StatusCode::UNAUTHORIZED, problem);
        }
    };
    let Some(key) = server.sessions().begin(identity.token, now) else {
        let problem = "The system gave no random bytes: use `estoppel halt` from a shell.";
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, problem.to_owned());
    };
    server.sessions().kept(KEPT_WAIT).await;
    record(&server, SIGNED_IN, &identity, now);
    with_cookie(see_other(local(next)), &cookie(&server, site.https, Some(&key)))
}

/// `POST /sign-out`.
pub(super) async fn sign_out(State(server): State<Server>, act: Act) -> Response {
    let visitor = act.visitor;
    end(&server, &visitor.key, &visitor.identity);
    server.sessions().kept(KEPT_WAIT).await;
    with_cookie(see_other("/sign-in"), &cookie(&server, visitor.site.https, None))
}

fn end(server: &Server, key: &Key, identity: &Identity) {
    server.sessions().end(key);
    record(server, SIGNED_OUT, identity, server.clock().now());
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    match HeaderValue::from_str(cookie) {
        Ok(mut value) => {
            value.set_sensitive(true);
            response.headers_mut().insert(header::SET_COOKIE, value);
            response
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Writes into the ledger who signed in or out; nobody waits for it.
fn record(server: &Server, kind: RecordKind, identity: &Identity, now: Timestamp) {
    let body = serde_json::json!({
        "token": identity.token, "name": identity.actor, "role": identity.role,
    });
    let journal = server.journal().clone();
    server.tasks().spawn(async move {
        let kept = match NewRecord::json(kind, None, now, &body) {
            Ok(record) => {
                journal.append(record).await.map(|_| ()).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            tracing::warn!(error, "that somebody signed in or out is not in the ledger");
        }
    });
}

/// Writes the sessions behind what is done with them, until the server ends.
pub(crate) async fn keep_sessions(server: Server) {
    let write = |server: Server| async move {
        let written = tokio::task::spawn_blocking(move || server.sessions().write()).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the sessions cannot be written: a restart would sign people out");
        }
    };
    while server.stays(server.sessions().dirty()).await {
        write(server.clone()).await;
        // A disk that does not take it is tried once a second.
        if server.sessions().is_dirty() && !server.stays(tokio::time::sleep(RETRY)).await {
            break;
        }
    }
    if server.sessions().is_dirty() {
        write(server).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_nowhere_else() {
        for ours in
            ["/halt", "/halt?scope=session:a", "/halts", "/halts/0190?live", "/release?halt=1"]
        {
            assert_eq!(local(ours), ours);
        }
        for theirs in [
            "",
            "//attacker.example",
            "https://attacker.example/halt",
            "/\\attacker.example",
            "/halt\\x",
            "/haltx",
            "/sign-out",
            "javascript:alert(1)",
            "/halt?x=\r\nSet-Cookie: a",
            "/halt?x=ä",
            " /halt",
        ] {
            assert_eq!(local(theirs), "/halt", "{theirs}");
        }
        assert_eq!(local(&format!("/halt?{}", "x".repeat(9_000))), "/halt");
    }

    #[test]
    fn wrong_tokens_are_counted_by_the_minute() {
        let wrong = Wrong::default();
        let start = Timestamp::from_micros(1_770_000_000_000_000);
        for _ in 0..WRONG_PER_MINUTE_MAX {
            assert!(!wrong.another(start));
        }
        assert!(wrong.another(start + Duration::from_secs(59)));
        assert!(!wrong.another(start + MINUTE));
    }
}
