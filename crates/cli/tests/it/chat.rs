//! Row K5: the link in a chat: from a page in Slack or Teams to the form, and no further by itself.

use std::sync::mpsc::Receiver;

use serde_json::{Value, json};

use crate::{
    halt_page::{Tab, halts},
    stage::{PATIENCE, Server, wait_for},
    watchdog::channel_answering,
};

const PUBLIC: &str = "https://halt.example.com";
/// The part of a webhook's address that lets whoever knows it write into the chat.
const HOOK: &str = "services/T00000000/B00000000/hunter2hunter2hunter2XX";

/// A server that pages a chat, which answers so.
fn start(format: &str, (status, body): (&'static str, &'static str)) -> (Server, Receiver<Value>) {
    let (url, pages) = channel_answering(status, body);
    let config = format!(
        "[serve]\npublic_url = \"{PUBLIC}\"\n[paging]\nformat = \"{format}\"\nurl_env = \"HOOK\""
    );
    let variables = [("HOOK", &*format!("{url}{HOOK}")), ("ESTOPPEL_LOG", "trace")];
    (Server::start_in(&config, &variables), pages)
}

/// The next page that says this.
fn page(pages: &Receiver<Value>, says: &str) -> Value {
    loop {
        let page = pages.recv_timeout(PATIENCE).unwrap();
        if page.to_string().contains(says) {
            return page;
        }
    }
}

/// The paths of the links to us, in the order of the message.
fn links(page: &Value) -> Vec<String> {
    let text = page.to_string();
    let behind = text.split(PUBLIC).skip(1);
    behind.map(|rest| rest.split(['|', '"', '>']).next().unwrap().to_owned()).collect()
}

/// A halt pages the chat; its links ask a stranger to sign in, show a responder the form filled in, and
/// change nothing.
#[test]
fn a_link_in_a_chat_opens_the_form_and_halts_nothing() {
    for (format, answer) in [("slack", ("200 OK", "ok")), ("teams", ("202 Accepted", ""))] {
        let (server, pages) = start(format, answer);
        let wish = json!({ "scope": "session:a&b", "reason": "odd <!channel>" });
        let (status, halt) = server.admin("POST", "/kill-switch", &wish);
        assert!((200..300).contains(&status), "{halt}");
        let id = halt["id"].as_str().unwrap();
        let sent = page(&pages, "odd");
        assert!(format != "slack" || !sent.to_string().contains("<!channel>"), "{sent}");
        let links = links(&sent);
        let [incident, form] = links.as_slice() else { panic!("{format}: {links:?}") };
        assert_eq!(form, "/halt?scope=session:a%26b", "{format}");

        let mut stranger = Tab::open(&server);
        for link in [incident, form] {
            let answer = stranger.get(link);
            assert_eq!(answer.status, 303, "{answer:?}");
            assert!(answer.location().starts_with("/sign-in?next="), "{answer:?}");
            let fields = [("token", server.admin.as_str()), ("next", link.as_str())];
            let answer = Tab::open(&server).post("/sign-in", &fields);
            assert_eq!((answer.status, answer.location()), (303, link.as_str()), "{answer:?}");
        }
        let mut tab = Tab::signed_in(&server, &server.admin);
        let filled = tab.get(form);
        assert!(filled.status == 200 && filled.body.contains("a&#38;b"), "{}", filled.body);
        assert_eq!(halts(&server).len(), 1, "opening a link halts nothing");

        // With a slow disk the page goes out before the incident has its number.
        let number = wait_for("the incident's number", || {
            let (_, known) = server.admin("GET", "/v1/incidents", &Value::Null);
            known[0]["number"].as_str().map(str::to_owned)
        });
        let halt_page = format!("/halts/{id}");
        let short = format!("/i/{number}");
        assert!([&halt_page, &short].contains(&incident), "{incident}");
        // The incident's record of its halt follows that of its beginning.
        let led = wait_for("the halt in its incident", || {
            let led = tab.get(&short);
            (led.location() == halt_page).then_some(led)
        });
        assert_eq!(led.status, 303, "{led:?}");
        let shown = tab.get(&halt_page).body;
        assert!(shown.contains(&format!("{PUBLIC}{short}")), "the link to hand on: {shown}");
        let review = tab.review("session", "x y", "why");
        assert_eq!(review.status, 422, "no such name: {review:?}");
        let review = tab.review("session", "x+y", "why");
        let handed = format!("{PUBLIC}/halt?scope=session:x%2By&#38;reason=why");
        assert!(review.body.contains(&handed), "{}", review.body);

        let release = json!({ "scope": "session:a&b", "reason": "over", "halts": [id] });
        let (status, released) = server.admin("POST", "/kill-switch/release", &release);
        assert!((200..300).contains(&status), "{released}");
        let led = tab.get(&short);
        assert_eq!(led.location(), halt_page, "the address lasts: {led:?}");

        let report = json!({ "title": "another's invoice", "subject": { "session": "s+1" } });
        let (status, opened) = server.admin("POST", "/v1/incidents", &report);
        assert_eq!(status, 201, "{opened}");
        let short = format!("/i/{}", opened["number"].as_str().unwrap());
        let form = "/halt?scope=session:s%2B1";
        assert_eq!(self::links(&page(&pages, "invoice")), [&short, form]);
        assert_eq!(tab.get(&short).location(), form, "nothing of it is halted");
        for unknown in ["/i/IR-1999-001", "/i/nothing"] {
            let answer = tab.get(unknown);
            assert_eq!(answer.status, 404, "{answer:?}");
            assert!(answer.body.contains("All halts in force"), "{}", answer.body);
        }
        assert!(!server.log().contains("hunter2"), "{}", server.log());
    }
}

/// A short address tells nobody of another tenant's incidents.
#[test]
fn a_short_link_holds_to_tenants() {
    let server = Server::start();
    let acme = server.token("ann", "responder", Some("acme"));
    let body = json!({ "scope": "session:theirs", "reason": "r" }).to_string();
    let (status, halt) = server.send(&acme, "POST", "/kill-switch", body.as_bytes());
    assert!((200..300).contains(&status), "{halt}");
    let number = wait_for("the incident's number", || {
        let (_, known) = server.admin("GET", "/v1/incidents", &Value::Null);
        known[0]["number"].as_str().map(str::to_owned)
    });
    let short = format!("/i/{number}");
    let halt_page = format!("/halts/{}", halt["id"].as_str().unwrap());
    // The incident's record of its halt follows that of its beginning.
    wait_for("the halt in its incident", || {
        (Tab::signed_in(&server, &acme).get(&short).location() == halt_page).then_some(())
    });
    let beta = server.token("bob", "responder", Some("beta"));
    let refused = Tab::signed_in(&server, &beta).get(&short);
    assert_eq!(refused.status, 404, "{refused:?}");
    assert!(!refused.body.contains("theirs"), "{}", refused.body);
}

/// K2: what a chat refuses is told with what to do, and a halt stands however its page ends.
#[test]
fn a_chat_that_refuses_holds_up_no_halt() {
    let (server, pages) = start("slack", ("410 Gone", "channel_is_archived"));
    let wish = json!({ "scope": "session:a", "reason": "odd" });
    let (status, halt) = server.admin("POST", "/kill-switch", &wish);
    assert!((200..300).contains(&status), "{halt}");
    page(&pages, "odd");
    let path = format!("/v1/incidents/{}", halt["incident"].as_str().unwrap());
    let told = wait_for("the page's end in the incident", || {
        let (_, incident) = server.admin("GET", &path, &Value::Null);
        incident["pages"].get(0).map(ToString::to_string)
    });
    assert!(told.contains("channel_is_archived") && told.contains("bring it back"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    assert_eq!(halts(&server).len(), 1);
}
