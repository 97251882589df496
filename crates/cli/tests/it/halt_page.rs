//! Row K5: the pages over bare HTTP: who gets in, what a form must carry, and that no address acts.
//!
//! What only a browser shows is in `tests/browser/`.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::json;

use crate::stage::{PATIENCE, Server, break_ledger, sha256_hex, wait_for};

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub(crate) fn location(&self) -> &str {
        self.headers.get("location").map_or("", String::as_str)
    }

    /// The value of a hidden field.
    fn field(&self, name: &str) -> String {
        let start = format!("name=\"{name}\" value=\"");
        let rest =
            self.body.split_once(&start).unwrap_or_else(|| panic!("{name}: {}", self.body)).1;
        rest.split('"').next().unwrap().to_owned()
    }
}

/// A browser's tab: it keeps its cookie and says where its forms come from.
pub(crate) struct Tab<'a> {
    server: &'a Server,
    host: String,
    origin: Option<String>,
    cookie: String,
}

impl<'a> Tab<'a> {
    pub(crate) fn open(server: &'a Server) -> Self {
        let host = server.address().to_owned();
        Self { server, origin: Some(format!("http://{host}")), host, cookie: String::new() }
    }

    pub(crate) fn signed_in(server: &'a Server, token: &str) -> Self {
        let mut tab = Self::open(server);
        let answer = tab.post("/sign-in", &[("token", token), ("next", "/halt")]);
        assert_eq!((answer.status, answer.location()), (303, "/halt"), "{answer:?}");
        tab
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub(crate) fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        self.send("POST", path, Some(&body.join("&")))
    }

    fn send(&mut self, method: &str, path: &str, form: Option<&str>) -> Answer {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        if !self.cookie.is_empty() {
            head.push_str(&format!("Cookie: other=1; {}\r\n", self.cookie));
        }
        if let (Some(form), origin) = (form, &self.origin) {
            head.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
            head.push_str(&format!("Content-Length: {}\r\n", form.len()));
            if let Some(origin) = origin {
                head.push_str(&format!("Origin: {origin}\r\n"));
            }
        }
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{head}\r\n{}", form.unwrap_or_default()).as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        if let Some(cookie) = headers.get("set-cookie") {
            self.cookie = cookie.split(';').next().unwrap().to_owned();
        }
        Answer { status, headers, body: body.to_owned() }
    }

    /// The first action: the form's ids, then what it will hit.
    pub(crate) fn review(&mut self, kind: &str, name: &str, reason: &str) -> Answer {
        let form = self.get("/halt");
        assert_eq!(form.status, 200, "{form:?}");
        let path = format!(
            "/halt/review?order={}&seal={}&kind={kind}&name={}&reason={}",
            form.field("order"),
            form.field("seal"),
            encoded(name),
            encoded(reason)
        );
        self.get(&path)
    }

    /// The second action, with some fields replaced.
    fn confirm(&mut self, review: &Answer, instead: &[(&str, &str)]) -> Answer {
        let mut fields: Vec<(&str, String)> = ["form", "order", "seal", "scope", "reason"]
            .into_iter()
            .map(|name| (name, review.field(name)))
            .collect();
        for (name, value) in instead {
            fields.retain(|(own, _)| own != name);
            fields.push((name, (*value).to_owned()));
        }
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.post("/halt", &fields)
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

pub(crate) fn halts(server: &Server) -> Vec<serde_json::Value> {
    let (status, halts) = server.send(&server.admin, "GET", "/v1/halts", b"");
    assert_eq!(status, 200, "{halts}");
    halts.as_array().unwrap().clone()
}

/// K5: sign in, look, confirm; the order's id is the form's, so that the same form again is the same
/// halt, and the form with something else in it is none.
#[test]
fn a_form_gives_one_halt_however_often_it_is_sent() {
    let server = Server::start();
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", "abc123", "odd");
    assert_eq!(review.status, 200, "{review:?}");
    assert!(halts(&server).is_empty(), "looking halts nothing");
    let given = tab.confirm(&review, &[]);
    assert_eq!(
        (given.status, given.location()),
        (303, format!("/halts/{}", review.field("order")).as_str())
    );
    for _ in 0..3 {
        let again = tab.confirm(&review, &[]);
        assert_eq!((again.status, again.location()), (303, given.location()));
    }
    let other = tab.confirm(&review, &[("scope", "global")]);
    assert_eq!(other.status, 409, "{other:?}");
    assert!(other.body.contains("This halt was given already"), "{}", other.body);
    let found = halts(&server);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0]["scope"], &found[0]["reason"]),
        (&json!("session:abc123"), &json!("odd"))
    );
    let page = tab.get(given.location());
    assert!(page.status == 200 && page.body.contains("session:abc123"), "{page:?}");
    assert!(tab.get(&format!("{}/live", given.location())).body.contains("data-part"));
}

/// K5: "a link alone never acts".
#[test]
fn no_address_changes_anything_when_it_is_opened() {
    let server = Server::start();
    server.admin("POST", "/kill-switch", &json!({ "scope": "session:a", "reason": "stays" }));
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", "b", "x");
    let (order, seal, form) = (review.field("order"), review.field("seal"), review.field("form"));
    let all =
        format!("order={order}&seal={seal}&form={form}&scope=session:b&reason=x&halt={order}");
    for path in [
        "/",
        "/halt",
        "/halt?scope=global&reason=now",
        "/halts",
        "/halts?live",
        "/release",
        "/release?halt=x",
        "/sign-in",
        "/sign-in?next=/halt",
        "/sign-out",
        "/halt/live",
        "/i/IR-2026-001",
        "/i/nothing",
    ] {
        tab.get(path);
        tab.get(&format!("{path}{}{all}", if path.contains('?') { '&' } else { '?' }));
        tab.send("HEAD", path, None);
    }
    let found = halts(&server);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(tab.get("/halt").status, 200, "still signed in");
    // What a stranger made up leads to the form, filled in, and not to the question.
    let made_up = tab
        .get("/halt/review?kind=global&reason=x&order=01890a5d-ac96-774b-bcce-b302099a8057&seal=0");
    assert_eq!(made_up.status, 422);
    assert!(
        made_up.body.contains("check what the link filled in")
            && !made_up.body.contains("id=\"confirm\"")
    );
}

/// K5: a form needs a session, its form token, its seal, its origin and an address that is ours.
#[test]
fn a_form_that_lacks_something_does_nothing() {
    let server = Server::start();
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", "abc123", "odd");
    let own = (tab.host.clone(), tab.origin.clone(), tab.cookie.clone());
    let mut refused =
        |change: &dyn Fn(&mut Tab<'_>), instead: &[(&str, &str)], status: u16, says: &str| {
            change(&mut tab);
            let answer = tab.confirm(&review, instead);
            assert_eq!(answer.status, status, "{says}: {answer:?}");
            assert!(answer.body.contains(says), "{says}: {}", answer.body);
            (tab.host, tab.origin, tab.cookie) = own.clone();
        };
    let nothing = |_: &mut Tab<'_>| {};
    refused(
        &nothing,
        &[("form", "00000000000000000000000000000000")],
        403,
        "of an earlier session",
    );
    refused(&nothing, &[("form", "")], 403, "Nothing was done");
    refused(&nothing, &[("seal", "00")], 422, "go on");
    refused(&nothing, &[("order", "01890a5d-ac96-774b-bcce-b302099a8057")], 422, "go on");
    refused(&nothing, &[("reason", " ")], 422, "say why");
    refused(&nothing, &[("scope", "sesion:a")], 422, "choose what");
    refused(&|tab| tab.cookie.clear(), &[], 401, "signed out");
    refused(&|tab| tab.cookie.push('0'), &[], 401, "signed out");
    refused(&|tab| tab.origin = None, &[], 403, "did not come from a page of this server");
    refused(&|tab| tab.origin = Some("null".into()), &[], 403, "did not come from");
    refused(
        &|tab| tab.origin = Some("https://attacker.example".into()),
        &[],
        403,
        "did not come from",
    );
    refused(&|tab| tab.host = "attacker.example".into(), &[], 421, "not known to be this server");
    // DNS rebinding: name and origin agree, and neither is ours.
    let rebound = |tab: &mut Tab<'_>| {
        tab.host = "attacker.example:7600".into();
        tab.origin = Some("http://attacker.example:7600".into());
    };
    refused(&rebound, &[], 421, "public_url");
    let huge = "x".repeat(300_000);
    refused(&nothing, &[("reason", &huge)], 400, "Nothing was done");
    assert!(halts(&server).is_empty());
    // Pages, too, are shown under our own addresses only.
    let mut elsewhere =
        Tab { host: "attacker.example".into(), ..Tab::signed_in(&server, &server.admin) };
    assert_eq!(elsewhere.get("/halt").status, 421);
    // A cookie is nothing to the API: it takes tokens.
    assert_eq!(tab.get("/v1/halts").status, 401);
    assert_eq!(tab.confirm(&review, &[]).status, 303, "and untouched it works");
}

/// The addresses of pages, read where the router names them; what streams (`/live`) is part of one.
fn addresses() -> Vec<String> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/pages/mod.rs");
    let text = std::fs::read_to_string(file).unwrap();
    let named = text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let pages: Vec<String> =
        named.filter(|path| *path != "/" && !path.ends_with("/live")).map(str::to_owned).collect();
    assert!(pages.len() >= 7, "{pages:?}");
    pages
}

/// K5: from every page the button is one step away, also from those that say that something is wrong.
#[test]
fn every_page_links_to_the_button() {
    let server = Server::start();
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", "abc123", "odd");
    let given = tab.confirm(&review, &[]);
    let mut seen = 0;
    let mut links = |answer: Answer, status: u16, what: &str| {
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(answer.headers["content-type"].starts_with("text/html"), "{what}: {answer:?}");
        assert!(answer.body.contains("<a href=\"/halt\""), "{what}: {}", answer.body);
        seen += 1;
    };
    for path in addresses() {
        let order = given.location().strip_prefix("/halts/").unwrap();
        let path = path.replace("{id}", order);
        for (who, answer) in
            [("signed in", tab.get(&path)), ("a stranger", Tab::open(&server).get(&path))]
        {
            let status = match path.as_str() {
                "/sign-out" => 405,
                // Without what the form fills in.
                "/halt/review" => 422,
                // No incident's number.
                "/i/{incident}" => 404,
                _ => 200,
            };
            if answer.status == 303 {
                let to = answer.location();
                assert!(to == "/halt" || to.starts_with("/sign-in"), "{path}: {answer:?}");
            } else {
                links(answer, status, &format!("{path}, {who}"));
            }
        }
    }
    let unknown = "/halts/01890a5d-ac96-774b-bcce-b302099a8057";
    links(tab.get(unknown), 404, unknown);
    let review = tab.review("session", "other", "odd");
    links(tab.confirm(&review, &[("reason", " ")]), 422, "no reason");
    links(tab.confirm(&review, &[("form", "")]), 403, "a form of another session");
    links(tab.confirm(&review, &[("reason", &"x".repeat(300_000))]), 400, "a huge form");
    assert_eq!(tab.confirm(&review, &[]).status, 303);
    links(tab.confirm(&review, &[("scope", "global")]), 409, "the same id for another halt");
    links(tab.post("/sign-in", &[("token", "est_admin_wrong")]), 401, "a wrong token");
    let own = tab.cookie.clone();
    tab.cookie.clear();
    links(tab.confirm(&review, &[]), 401, "signed out");
    tab.cookie = own;
    tab.origin = Some("https://attacker.example".into());
    links(tab.confirm(&review, &[]), 403, "a foreign form");
    tab.host = "attacker.example".into();
    links(tab.get("/halt"), 421, "another name");
    assert!(seen >= 15, "{seen} pages");
}

/// K5, DESIGN "Security": what a page says to the browser, and what the cookie is.
#[test]
fn pages_are_framed_cached_and_sniffed_by_nobody() {
    let server = Server::start();
    let mut tab = Tab::open(&server);
    let answer = tab.post("/sign-in", &[("token", &server.admin)]);
    let cookie = &answer.headers["set-cookie"];
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "plaintext on loopback: {cookie}");
    assert!(!answer.location().contains("est_"), "the token is in no address");
    for path in ["/halt", "/halts", "/halt/live", "/release", "/sign-in"] {
        let page = tab.get(path);
        let header = |name: &str| page.headers.get(name).map_or("", String::as_str);
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'self'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "same-origin", "{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{path}");
        let inline = page.body.contains("style=\"")
            || page.body.contains("onclick")
            || page.body.contains("<script>");
        assert!(!inline, "{path}");
        assert!(!page.body.contains(&server.admin), "{path}");
    }
    let page = tab.get("/halt").body;
    let style = page.split("rel=\"stylesheet\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let style = tab.get(style);
    assert!(style.status == 200 && style.headers["cache-control"].contains("immutable"));
    assert_eq!(tab.get("/assets/nothing.css").status, 404);
    let home = tab.get("/");
    assert_eq!((home.status, home.location()), (303, "/halt"));
}

/// K5: the public address of a server behind a proxy, with TLS before it.
#[test]
fn a_configured_name_is_ours_and_its_cookie_is_secure() {
    let server = Server::start_with("[serve]\npublic_url = \"https://halt.example.com\"\n");
    let mut tab = Tab::open(&server);
    tab.host = "halt.example.com".into();
    tab.origin = Some("http://halt.example.com".into());
    assert_eq!(tab.post("/sign-in", &[("token", &server.admin)]).status, 403, "without TLS");
    tab.origin = Some("https://halt.example.com".into());
    let answer = tab.post("/sign-in", &[("token", &server.admin)]);
    assert_eq!(answer.status, 303, "{answer:?}");
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.starts_with("__Host-estoppel-") && cookie.contains("; Secure"), "{cookie}");
    assert_eq!(tab.get("/halts").status, 200);
    tab.host = "halt.example.org".into();
    assert_eq!(tab.get("/halts").status, 421);
}

/// K5: people sign in, machines do not; wrong tokens are told to wait, good ones are not.
#[test]
fn only_people_sign_in_and_a_flood_locks_nobody_out() {
    let server = Server::start();
    for role in ["agent", "enforcer", "ingest"] {
        let token = server.token(&format!("machine-{role}"), role, None);
        let answer = Tab::open(&server).post("/sign-in", &[("token", &token)]);
        assert_eq!(answer.status, 403, "{role}: {answer:?}");
        assert!(answer.body.contains("a machine") && !answer.headers.contains_key("set-cookie"));
    }
    let wrong = |text: &str| Tab::open(&server).post("/sign-in", &[("token", text)]);
    let first = wrong("est_admin_00");
    assert!(first.status == 401 && first.body.contains("not known here"), "{first:?}");
    assert!(!first.body.contains("est_admin_00"), "what was typed is not repeated");
    assert_eq!(wrong("").status, 401);
    let told =
        (0..60).map(|n| wrong(&format!("est_admin_{n}"))).find(|answer| answer.status == 429);
    assert_eq!(told.unwrap().headers["retry-after"], "60");
    Tab::signed_in(&server, &server.admin);
    // Where to go on to is an address of ours, whatever was asked for.
    for next in [
        "https://attacker.example",
        "//attacker.example/halt",
        "/\\attacker.example",
        "/halt\r\nX: 1",
    ] {
        let answer =
            Tab::open(&server).post("/sign-in", &[("token", &server.admin), ("next", next)]);
        assert_eq!((answer.status, answer.location()), (303, "/halt"), "{next:?}");
    }
}

/// K5: a session outlives a restart, and ends with its token, and by signing out.
#[test]
fn a_session_is_as_good_as_its_token() {
    let server = Server::start();
    let (_, minted) =
        server.admin("POST", "/v1/tokens", &json!({ "name": "rita", "role": "responder" }));
    let token = minted["token"].as_str().unwrap().to_owned();
    let (cookie, leaving) = {
        let mut leaving = Tab::signed_in(&server, &token);
        let gone = leaving.cookie.clone();
        let form = leaving.get("/halt").field("form");
        assert_eq!(leaving.post("/sign-out", &[("form", &form)]).location(), "/sign-in");
        (Tab::signed_in(&server, &token).cookie, gone)
    };
    let key = cookie.split_once('=').unwrap().1;
    let hash = sha256_hex(key.as_bytes());
    let kept = wait_for("the session's file, which a sign-in does not wait for", || {
        let kept = std::fs::read_to_string(server.data.join("sessions.json")).ok()?;
        kept.contains(&hash).then_some(kept)
    });
    assert!(!kept.contains(key), "the file holds hashes");
    let server = server.crash_and_restart();
    let mut tab = Tab { cookie: leaving, ..Tab::open(&server) };
    assert!(tab.get("/halt").location().starts_with("/sign-in"), "signed out is signed out");
    let mut tab = Tab { cookie, ..Tab::open(&server) };
    assert_eq!(tab.get("/halt").status, 200, "nobody signs in twice for a restart");
    let review = tab.review("session", "abc123", "odd");
    server.admin(
        "DELETE",
        &format!("/v1/tokens/{}", minted["id"].as_str().unwrap()),
        &serde_json::Value::Null,
    );
    assert_eq!(tab.confirm(&review, &[]).status, 401);
    assert_eq!(tab.get("/halt/live").status, 401);
    assert_eq!(tab.get("/halts?live").location(), "/sign-in?next=%2Fhalts%3Flive");
    assert!(halts(&server).is_empty());
    wait_for("the ledger's records of signing in and out", || {
        let files = std::fs::read_dir(server.data.join("ledger")).unwrap();
        let bytes: Vec<u8> = files
            .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap_or_default())
            .collect();
        let holds = |kind: &[u8]| bytes.windows(kind.len()).any(|part| part == kind);
        (holds(b"session.opened") && holds(b"session.closed")).then_some(())
    });
}

/// K5: anyone on call may stop; starting needs a lead, a reason and the halts by name.
#[test]
fn the_page_holds_to_roles_and_tenants() {
    let server = Server::start();
    let token = |name: &str, role: &str, tenant| server.token(name, role, tenant);
    let mut viewer = Tab::signed_in(&server, &token("vera", "viewer", None));
    assert!(viewer.get("/halt").body.contains("you may look"));
    let mut responder = Tab::signed_in(&server, &token("rita", "responder", None));
    let mut lead = Tab::signed_in(&server, &token("lena", "lead", None));
    let review = responder.review("session", "a", "odd");
    responder.confirm(&review, &[]);
    let review = responder.review("session", "b", "odd");
    responder.confirm(&review, &[]);
    let ids: Vec<String> =
        halts(&server).iter().map(|halt| halt["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2);
    assert!(responder.get("/release").body.contains("needs a lead"));
    let release = |tab: &mut Tab<'_>, form: &Answer, reason: &str, ids: &[&String]| {
        let (token, order, seal) = (form.field("form"), form.field("order"), form.field("seal"));
        let mut fields =
            vec![("form", &*token), ("order", &order), ("seal", &seal), ("reason", reason)];
        fields.extend(ids.iter().map(|id| ("halt", id.as_str())));
        tab.post("/release", &fields)
    };
    let form = wait_for("the ledger", || {
        let form = lead.get("/release");
        form.body.contains("name=\"order\"").then_some(form)
    });
    assert!(release(&mut lead, &form, "safe", &[]).body.contains("tick the halts"));
    assert!(release(&mut lead, &form, "", &[&ids[0]]).body.contains("`reason` is empty"));
    assert_eq!(halts(&server).len(), 2);
    // A responder with a form of theirs is refused by the same rule as everywhere.
    let own = responder.review("session", "c", "x");
    assert_eq!(release(&mut responder, &own, "please", &[&ids[0]]).status, 403);
    let done = release(&mut lead, &form, "safe", &[&ids[0]]);
    assert_eq!(
        (done.status, done.location()),
        (303, format!("/halt?released={}", ids[0]).as_str()),
        "{done:?}"
    );
    let again = release(&mut lead, &form, "safe", &[&ids[0]]);
    assert_eq!((again.status, again.location()), (303, done.location()), "the same release");
    assert_eq!(halts(&server).len(), 1, "what is not named stays");
    assert!(lead.get(done.location()).body.contains("is released"));
    // What is merely claimed by a link is not said.
    let lie = lead.get(&format!("/halt?released={}", ids[1])).body;
    assert!(!lie.contains("is released"));
    let mut acme = Tab::signed_in(&server, &token("ann", "lead", Some("acme")));
    let wide = acme.review("global", "", "x");
    assert_eq!(wide.status, 403, "{wide:?}");
    let own = acme.review("session", "theirs", "x");
    assert_eq!(acme.confirm(&own, &[]).status, 303);
    let mut beta = Tab::signed_in(&server, &token("ben", "lead", Some("beta")));
    assert!(!beta.get("/halt").body.contains("session:theirs"), "another tenant's");
    let path = format!("/halts/{}", own.field("order"));
    assert_eq!(beta.get(&path).status, 404);
    assert_eq!(lead.get(&path).status, 200);
}

/// Invariant *inert*: what strangers wrote is text on every page.
#[test]
fn what_strangers_wrote_is_text() {
    let server = Server::start();
    let name = "\"><script>alert(1)</script>";
    let reason = "</textarea><script>alert(2)</script>\n\u{202e}turned";
    let body = json!({ "scope": format!("session:{name}"), "reason": reason });
    let (status, halt) = server.admin("POST", "/kill-switch", &body);
    assert_eq!(status, 202, "{halt}");
    let event = json!([{ "kind": "audit", "session_id": name, "user_id": name }]);
    assert_eq!(server.events(event.to_string().as_bytes()).0, 200);
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", name, reason);
    let filled = format!("/halt?scope=session:{}&reason={}", encoded(name), encoded(reason));
    let bodies = [
        review.body.clone(),
        tab.get("/halt").body,
        tab.get(&filled).body,
        tab.get("/halts").body,
        tab.get("/halt/live").body,
        tab.get("/release").body,
        tab.get(&format!("/halts/{}", halt["id"].as_str().unwrap())).body,
        tab.get(&format!("/halts/{}", encoded(name))).body,
    ];
    for body in &bodies {
        assert!(!body.contains("<script>alert") && body.contains("alert(1)"), "{body}");
    }
    for body in &bodies[3..7] {
        assert!(!body.contains('\u{202e}') && body.contains("\\u{202e}turned"), "{body}");
    }
    // What it sends back is what was typed, to the letter.
    assert_eq!(
        tab.confirm(&review, &[("reason", reason), ("scope", &format!("session:{name}"))]).status,
        303
    );
    let given = halts(&server).pop().unwrap();
    assert_eq!(
        (given["scope"].as_str(), given["reason"].as_str()),
        (body["scope"].as_str(), Some(reason))
    );
}

/// K5, K7: what a halt would hit, over the API and on the page; asking changes nothing.
#[test]
fn what_a_halt_will_hit_is_shown_first() {
    let server = Server::start();
    let events = json!([
        { "kind": "audit", "session_id": "abc123", "user_id": "bob", "agent_id": "crm", "tool": "mail" },
        { "kind": "audit", "session_id": "def456", "user_id": "eve", "agent_id": "crm" },
        { "kind": "network", "session_id": "def456", "destination": "x.example", "bytes_sent": 1 },
    ]);
    assert_eq!(server.events(events.to_string().as_bytes()).0, 200);
    let plan = |scope: &str| server.admin("POST", "/v1/halts/plan", &json!({ "scope": scope })).1;
    let found = plan("agent:crm");
    assert_eq!((&found["session_count"], &found["user_count"]), (&json!(2), &json!(2)), "{found}");
    assert_eq!(found["sessions"][0]["subject"]["session"], "abc123", "{found}");
    assert_eq!(plan("tool:mail")["session_count"], 1);
    assert_eq!(plan("global")["session_count"], 2);
    let misspelt = plan("session:abc132");
    assert_eq!(
        (&misspelt["unknown"], &misspelt["did_you_mean"]),
        (&json!(true), &json!("session:abc123"))
    );
    let mut tab = Tab::signed_in(&server, &server.admin);
    let review = tab.review("session", "abc132", "odd");
    assert!(review.body.contains("Did you mean session:abc123?"), "{}", review.body);
    assert!(review.body.contains("No enforcer is connected"), "{}", review.body);
    let review = tab.review("agent", "crm", "odd");
    assert!(review.body.contains("2 sessions") && review.body.contains("of 1 agent, 2 users"));
    assert!(halts(&server).is_empty());
    tab.confirm(&review, &[]);
    assert!(
        tab.review("agent", "crm", "more").body.contains("Halted already: agent:crm, by admin")
    );
    let viewer = server.token("vera", "viewer", Some("acme"));
    let (status, _) = server.send(&viewer, "POST", "/v1/halts/plan", b"{\"scope\":\"global\"}");
    assert_eq!(status, 403, "wider than its tenant");
}

/// Invariant *stop-never-waits*: the page halts while the ledger cannot be opened, and says how the
/// halt is kept.
#[test]
fn the_page_halts_while_the_ledger_is_broken() {
    let server = Server::start();
    let cookie = Tab::signed_in(&server, &server.admin).cookie;
    server.ready();
    let data = server.data.clone();
    let folder = server.crash_with(|| break_ledger(&data));
    let server = Server::at(&data);
    let mut tab = Tab { cookie, ..Tab::open(&server) };
    let review = tab.review("session", "abc123", "odd");
    let begun = std::time::Instant::now();
    let given = tab.confirm(&review, &[]);
    assert_eq!(given.status, 303, "{given:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    wait_for("the disk", || {
        tab.get(given.location()).body.contains("on the disk of this server").then_some(())
    });
    wait_for("the warning", || {
        tab.get("/halt").body.contains("the ledger is not open").then_some(())
    });
    drop(folder);
}

/// K5, K8: by policy a release of the page waits for another person, who sends the same form.
#[test]
fn a_release_on_the_page_waits_for_a_second_person() {
    let server = Server::start_with("[serve]\ntwo_persons = [\"global\"]\n");
    let (_, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "global", "reason": "r" }));
    let id = halt["id"].as_str().unwrap();
    wait_for("the halt in the ledger", || {
        let (_, status) = server.admin("GET", &format!("/v1/halts/{id}"), &serde_json::Value::Null);
        (status["durable"] == "ledger").then_some(())
    });
    let release = |name: &str, token: &str| {
        let mut tab = Tab::signed_in(&server, token);
        let form = tab.get("/release");
        let fields: Vec<(&str, String)> =
            ["form", "order", "seal"].into_iter().map(|field| (field, form.field(field))).collect();
        let mut fields: Vec<(&str, &str)> =
            fields.iter().map(|(field, value)| (*field, value.as_str())).collect();
        let reason = format!("{name} has looked");
        fields.extend([("halt", id), ("reason", reason.as_str())]);
        tab.post("/release", &fields)
    };
    let (lea, max) = (server.token("lea", "lead", None), server.token("max", "lead", None));
    for _ in 0..2 {
        let answer = release("lea", &lea);
        assert_eq!(answer.status, 202, "{answer:?}");
        assert!(answer.body.contains("A second person must approve"), "{answer:?}");
        assert_eq!(halts(&server).len(), 1, "nothing is released, however often she asks");
    }
    let pending = server.json(&["status"])["releases_pending"].clone();
    assert_eq!(pending[0]["requested_by"], "lea", "{pending}");
    let answer = release("max", &max);
    assert_eq!(answer.status, 303, "{answer:?}");
    assert!(answer.location().contains(id), "{answer:?}");
    assert!(halts(&server).is_empty());
}

/// Whom to call is said where the page is not live, as text.
#[test]
fn a_page_that_is_not_live_says_whom_to_call() {
    let contact = "security <b>on call</b>, +49 30 1234";
    let server = Server::start_with(&format!("[serve]\ncontact = \"{contact}\"\n"));
    let page = Tab::signed_in(&server, &server.admin).get("/halts").body;
    let banner = page.split_once("id=\"stale\"").unwrap().1.split_once("</div>").unwrap().0;
    assert!(banner.contains("Whom to call"), "{banner}");
    assert!(banner.contains("+49 30 1234") && !banner.contains("<b>"), "{banner}");
    let without = Server::start();
    let page = Tab::signed_in(&without, &without.admin).get("/halts").body;
    assert!(!page.contains("Whom to call"));
}

/// A page on the telephone leads to the halt's page under the public address, or to where one is given.
#[test]
fn a_pages_link_leads_to_the_page_of_the_halt() {
    let (channel, pages) = crate::watchdog::channel();
    let server = Server::start_with(&format!(
        "[serve]\npublic_url = \"https://halt.example.com\"\n[paging]\nurl = \"{channel}\"\n"
    ));
    let link = |incident: &serde_json::Value| loop {
        let page: serde_json::Value = pages.recv_timeout(PATIENCE).unwrap();
        if page["data"]["incident"] == *incident {
            let found = links(&page);
            assert_eq!(found.len(), 1, "{page}");
            return found[0].clone();
        }
    };
    let (_, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "session:a b", "reason": "r" }));
    assert!(halt["id"].is_null(), "no such name: {halt}");
    let (_, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "session:a", "reason": "r" }));
    let id = halt["id"].as_str().unwrap();
    let address = link(&halt["incident"]);
    assert_eq!(address, format!("https://halt.example.com/halts/{id}"));
    let mut tab = Tab::signed_in(&server, &server.admin);
    let page = tab.get(address.strip_prefix("https://halt.example.com").unwrap());
    assert_eq!(page.status, 200, "{page:?}");
    let report = json!({ "title": "it shows another's invoice", "subject": { "session": "s+1" } });
    let (status, opened) = server.admin("POST", "/v1/incidents", &report);
    assert_eq!(status, 201, "{opened}");
    let address = link(&opened["id"]);
    assert_eq!(address, "https://halt.example.com/halt?scope=session:s%2B1");
    let page = tab.get(address.strip_prefix("https://halt.example.com").unwrap());
    assert!(page.status == 200 && page.body.contains("s+1"), "the form is filled in: {page:?}");
    assert_eq!(halts(&server).len(), 1, "and nothing is done");
}

/// The addresses in a page, wherever its channel puts them.
fn links(page: &serde_json::Value) -> Vec<String> {
    match page {
        serde_json::Value::String(text) if text.starts_with("https://halt.") => vec![text.clone()],
        serde_json::Value::Array(parts) => parts.iter().flat_map(links).collect(),
        serde_json::Value::Object(parts) => parts.values().flat_map(links).collect(),
        _ => Vec::new(),
    }
}
