//! Who looks at a page, and what a form must carry to act.
//!
//! A page asks for the address under which it was reached, and for a session whose token is still
//! good. A form also asks for its origin and for the session's form token. What fails here has done
//! nothing, and the answer says so.

use std::time::Duration;

use axum::{
    Form,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use estoppel_api::Role;
use estoppel_model::Timestamp;

use super::{
    form::{Fields, Wish, address},
    problem, see_other,
    sessions::{IDLE_MAX, Key, LIFE_MAX, same},
    site::{Site, SiteError},
};
use crate::{Server, http::extract::Caller, token::Identity};

/// A person who is signed in and looks at a page.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    pub site: Site,
    pub key: Key,
    pub identity: Identity,
    pub query: Fields,
}

impl Visitor {
    /// As the API knows them.
    pub(crate) fn caller(&self) -> Caller {
        Caller(self.identity.clone())
    }

    /// An address of ours as it is handed on, in a chat for instance: under the public name, else
    /// under the one by which they came.
    pub(crate) fn whole(&self, server: &Server, address: &str) -> String {
        let public = server.config().public_url.as_ref().map(ToString::to_string);
        format!("{}{address}", public.unwrap_or_else(|| self.site.address()))
    }

    /// Whether they may do what needs this role.
    pub(crate) fn may(&self, role: Role) -> bool {
        self.identity.role.is_personal() && self.identity.role >= role
    }
}

impl FromRequestParts<Server> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Response> {
        let site = site(&parts.headers, server).map_err(|error| problem::site(&error))?;
        let query = query(parts);
        // A page that reloads itself is not a person who does something.
        let looks_on = parts.uri.path().ends_with("/live") || query.all("live").next().is_some();
        match signed_in(&parts.headers, &site, server, !looks_on) {
            Some((key, identity)) => Ok(Self { site, key, identity, query }),
            None if parts.uri.path().ends_with("/live") => {
                Err(StatusCode::UNAUTHORIZED.into_response())
            }
            None => {
                let here = parts.uri.path_and_query().map_or("/halt", |here| here.as_str());
                Err(see_other(&address("/sign-in", &[("next", here)])))
            }
        }
    }
}

/// A form that a person who is signed in has sent from one of our pages.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub visitor: Visitor,
    pub fields: Fields,
}

impl FromRequest<Server> for Act {
    type Rejection = Response;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Response> {
        let headers = request.headers().clone();
        let site = site(&headers, server).map_err(|error| problem::site(&error))?;
        own_form(&site, &headers, server).map_err(|error| problem::site(&error))?;
        let signed_in = signed_in(&headers, &site, server, true);
        let fields = fields(request, server).await?;
        let Some((key, identity)) = signed_in else {
            let next = Wish::of(&fields).href();
            return Err(problem::signed_out(&address("/sign-in", &[("next", &next)])));
        };
        if !same(fields.one("form"), &key.form_token()) {
            return Err(problem::stale_form(&Wish::of(&fields).href()));
        }
        let visitor = Visitor { site, key, identity, query: Fields::default() };
        Ok(Self { visitor, fields })
    }
}

/// A form of our own that needs no session: signing in.
#[derive(Debug)]
pub(crate) struct Stranger {
    pub site: Site,
    pub fields: Fields,
}

impl FromRequest<Server> for Stranger {
    type Rejection = Response;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Response> {
        let site = site(request.headers(), server).map_err(|error| problem::site(&error))?;
        own_form(&site, request.headers(), server).map_err(|error| problem::site(&error))?;
        let fields = fields(request, server).await?;
        Ok(Self { site, fields })
    }
}

/// Somebody who looks at the page for signing in.
#[derive(Debug)]
pub(crate) struct Passer {
    /// Whether they are signed in already.
    pub signed_in: bool,
    pub query: Fields,
}

impl FromRequestParts<Server> for Passer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Response> {
        let site = site(&parts.headers, server).map_err(|error| problem::site(&error))?;
        let signed_in = signed_in(&parts.headers, &site, server, false).is_some();
        Ok(Self { signed_in, query: query(parts) })
    }
}

fn site(headers: &HeaderMap, server: &Server) -> Result<Site, SiteError> {
    let config = server.config();
    let tls = config.tls.is_some();
    Site::of(headers, config.public_url.as_ref(), tls)
}

fn own_form(site: &Site, headers: &HeaderMap, server: &Server) -> Result<(), SiteError> {
    site.sent_form(headers, server.config().public_url.as_ref())
}

fn query(parts: &Parts) -> Fields {
    // What cannot be read fills nothing in.
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    Fields::new(pairs.map(|Query(pairs)| pairs).unwrap_or_default())
}

async fn fields(request: Request, server: &Server) -> Result<Fields, Response> {
    let form = Form::<Vec<(String, String)>>::from_request(request, server).await;
    form.map(|Form(pairs)| Fields::new(pairs)).map_err(|error| problem::form(&error.body_text()))
}

/// The session of a request, if it has one and its token is good and a person's.
fn signed_in(
    headers: &HeaderMap,
    site: &Site,
    server: &Server,
    acts: bool,
) -> Option<(Key, Identity)> {
    let now = server.clock().now();
    let name = cookie_name(server, site.https);
    cookies(headers, &name)
        .filter_map(Key::parse)
        .find_map(|key| Some((key.clone(), identity(server, &key, acts, now)?)))
}

fn identity(server: &Server, key: &Key, acts: bool, now: Timestamp) -> Option<Identity> {
    let token = server.sessions().token(key, acts, now)?;
    // Whoever was revoked since, or has expired, is nobody.
    server.tokens().holder(token, now).ok().filter(|identity| identity.role.is_personal())
}

/// The values of all cookies of a name: a neighbour on this host could have set one, too.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(own, _)| *own == name)
        .map(|(_, value)| value)
        .take(4)
}

/// Cookies know no ports: each server's has a name of its own, so that two on one host do not sign
/// each other's visitors out. Over TLS the prefix keeps neighbouring sites from setting it.
fn cookie_name(server: &Server, https: bool) -> String {
    let key = server.key().public();
    let prefix = if https { "__Host-" } else { "" };
    format!("{prefix}estoppel-{}", &key[..8])
}

/// The header that gives a browser its session.
///
/// `SameSite=Lax`: an on-call person who follows a link from a chat must find the page and not a
/// sign-in. No address acts when it is merely opened, and forms ask for their origin besides.
pub(crate) fn cookie(server: &Server, https: bool, key: Option<&Key>) -> String {
    let name = cookie_name(server, https);
    let (value, age) = key.map_or(("", Duration::ZERO), |key| (key.expose(), LIFE_MAX));
    let secure = if https { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", age.as_secs())
}

/// How long a session lasts, in words.
pub(crate) fn session_lasts() -> String {
    format!("{} hours after you last did something", IDLE_MAX.as_secs() / 3_600)
}
