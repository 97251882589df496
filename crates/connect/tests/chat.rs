//! Pages in a chat, against receivers that hold to what Slack and Microsoft document (rows K2, K5).
//!
//! Slack: <https://docs.slack.dev/reference/block-kit/blocks>, `.../composition-objects/text-object`,
//! <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>. Teams: the schema of
//! Adaptive Cards 1.4 (<https://adaptivecards.io/explorer>) and the limits in
//! <https://learn.microsoft.com/connectors/teams>. Both as of 2026-11-23.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::IntoResponse};
use estoppel_connect::{
    Channel, Endpoint, Format, HaltLink, HaltTarget, Http, HttpLimits, Page, PageAction, PageError,
    Pager, Plaintext, RetryPolicy,
};
use estoppel_model::{EntityId, Kind, Secret, Severity, Untrusted};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SLACK_PATH: &str = "/services/T00000000/B00000000/hunter2hunter2hunter2XX";
const TEAMS_PATH: &str = "/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke\
                          ?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0\
                          &sig=hunter2hunter2hunter2hunter2hunter2hunter2Z";

/// Texts that would do something in a chat.
const HOSTILE: [&str; 14] = [
    "<!channel> <!here> <!everyone> <@U012AB3CD> <#C012AB3CD> <!subteam^S012AB3CD>",
    "<https://evil.example|Open the incident>",
    "[Open the incident](https://evil.example) ![x](https://evil.example/x.png)",
    "&lt;!channel&gt; &amp;lt;!channel&amp;gt; &#60;!channel&#62;",
    "*bold* _italic_ ~struck~ `code` ```block``` :rotating_light:",
    "# heading\n> quote\n- list\r\n1. list",
    "{{DATE(2017-02-14T06:08:00Z, SHORT)}} {{{TIME(2017-02-14T06:08:00Z)}}} ${expression} @{triggerBody()}",
    "<at>everyone</at> <b>b</b><script>alert(1)</script>",
    "zero\u{200b}width\u{feff} right\u{202e}to left\u{2066} tag\u{e0041}",
    "\u{1b}[2J\u{7}\u{0}",
    "",
    "   ",
    "\",\"blocks\":[],\"x\":\"",
    "|https://evil.example>",
];

/// What Slack's documentation says of a message, as far as Estoppel's use it; everything else is an error.
mod slack {
    use super::{Value, units};

    pub(super) fn check(message: &Value) -> Result<(), String> {
        known(message, &["text", "blocks", "unfurl_links", "unfurl_media"])?;
        let text = message["text"].as_str().ok_or("no text")?;
        bounded(text, 1, 40_000)?;
        inert(text)?;
        let blocks = message["blocks"].as_array().ok_or("no blocks")?;
        if blocks.is_empty() || blocks.len() > 50 {
            return Err(format!("{} blocks", blocks.len()));
        }
        blocks.iter().try_for_each(block)
    }

    fn block(block: &Value) -> Result<(), String> {
        match block["type"].as_str() {
            Some("header") => {
                known(block, &["type", "text"])?;
                plain(&block["text"], 150)
            }
            Some("section") => {
                known(block, &["type", "text", "fields"])?;
                let fields = block.get("fields").map_or(Ok([].as_slice()), |fields| {
                    fields.as_array().map(Vec::as_slice).ok_or("fields are no array")
                })?;
                if fields.len() > 10 {
                    return Err(format!("{} fields", fields.len()));
                }
                fields.iter().try_for_each(|field| plain(field, 2_000))?;
                text(&block["text"], 3_000)
            }
            Some("context") => {
                known(block, &["type", "elements"])?;
                let elements = block["elements"].as_array().ok_or("no elements")?;
                if elements.is_empty() || elements.len() > 10 {
                    return Err(format!("{} elements", elements.len()));
                }
                elements.iter().try_for_each(|element| plain(element, 3_000))
            }
            other => Err(format!("a block {other:?}")),
        }
    }

    fn text(object: &Value, max: usize) -> Result<(), String> {
        match object["type"].as_str() {
            Some("mrkdwn") => {
                known(object, &["type", "text", "verbatim"])?;
                let text = object["text"].as_str().ok_or("no text")?;
                bounded(text, 1, max)?;
                text.lines().try_for_each(link)
            }
            _ => plain(object, max),
        }
    }

    fn plain(object: &Value, max: usize) -> Result<(), String> {
        if object["type"] != "plain_text" {
            return Err(format!("strangers' text outside of `plain_text`: {object}"));
        }
        known(object, &["type", "text", "emoji"])?;
        let text = object["text"].as_str().ok_or("no text")?;
        bounded(text, 1, max)?;
        inert(text)
    }

    /// The only markup that is expected: a link to Estoppel with Estoppel's own words.
    fn link(line: &str) -> Result<(), String> {
        let inner = line.strip_prefix('<').and_then(|line| line.strip_suffix('>'));
        let (url, label) = inner.and_then(|inner| inner.split_once('|')).ok_or("no link")?;
        inert(url)?;
        let ours = url.starts_with("https://halt.example.com/");
        let plain = label.chars().all(|c| c.is_ascii_alphabetic() || " .".contains(c));
        if ours && plain { Ok(()) } else { Err(format!("the link {line}")) }
    }

    /// Slack reads `<...>` as a mention or a link, and `&` as the start of an entity.
    fn inert(text: &str) -> Result<(), String> {
        let entities = ["&amp;", "&lt;", "&gt;"];
        let loose = text
            .match_indices('&')
            .find(|(at, _)| !entities.iter().any(|entity| text[*at..].starts_with(entity)));
        let shows = text.chars().all(|c| c == '\n' || !estoppel_model::text::is_invisible(c));
        if text.contains(['<', '>']) || loose.is_some() || !shows {
            return Err(format!("markup: {text:?}"));
        }
        Ok(())
    }

    fn bounded(text: &str, min: usize, max: usize) -> Result<(), String> {
        let units = units(text);
        if (min..=max).contains(&units) { Ok(()) } else { Err(format!("{units} of {max} units")) }
    }

    pub(super) fn known(object: &Value, keys: &[&str]) -> Result<(), String> {
        let object = object.as_object().ok_or("no object")?;
        match object.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(format!("the key {key}")),
            None => Ok(()),
        }
    }
}

/// What Microsoft documents of a message with an Adaptive Card, as far as Estoppel's use it.
mod teams {
    use super::{Value, slack::known};

    pub(super) fn check(message: &Value) -> Result<(), String> {
        // The limit is 28 KB, and senders have met 21.
        let bytes = message.to_string().len();
        if bytes > 21_000 {
            return Err(format!("{bytes} bytes"));
        }
        known(message, &["type", "attachments"])?;
        let [attachment] = message["attachments"].as_array().ok_or("no attachments")?.as_slice()
        else {
            return Err("several attachments".to_owned());
        };
        known(attachment, &["contentType", "contentUrl", "content"])?;
        if message["type"] != "message"
            || attachment["contentType"] != "application/vnd.microsoft.card.adaptive"
            || !attachment["contentUrl"].is_null()
        {
            return Err(format!("not a card: {message}"));
        }
        let card = &attachment["content"];
        known(card, &["$schema", "type", "version", "body", "actions"])?;
        if card["type"] != "AdaptiveCard" || card["version"] != "1.4" {
            return Err(format!("not a card: {card}"));
        }
        card["body"].as_array().ok_or("no body")?.iter().try_for_each(element)?;
        let actions = card.get("actions").map_or(Ok([].as_slice()), |actions| {
            actions.as_array().map(Vec::as_slice).ok_or("actions are no array")
        })?;
        if actions.len() > 6 {
            return Err("more actions than Teams shows".to_owned());
        }
        actions.iter().try_for_each(action)
    }

    /// `TextBlock` and `FactSet` read Markdown, so that no text may stand in them.
    fn element(element: &Value) -> Result<(), String> {
        known(element, &["type", "inlines"])?;
        if element["type"] != "RichTextBlock" {
            return Err(format!("an element that may read Markdown: {element}"));
        }
        let runs = element["inlines"].as_array().ok_or("no inlines")?;
        runs.iter().try_for_each(|run| {
            known(run, &["type", "text", "size", "weight", "isSubtle", "fontType"])?;
            let text = run["text"].as_str().ok_or("no text")?;
            let shows = text.chars().all(|c| c == '\n' || !estoppel_model::text::is_invisible(c));
            if run["type"] != "TextRun" || text.is_empty() || text.contains("{{") || !shows {
                return Err(format!("a run: {run}"));
            }
            Ok(())
        })
    }

    fn action(action: &Value) -> Result<(), String> {
        known(action, &["type", "title", "url"])?;
        let (title, url) = (action["title"].as_str(), action["url"].as_str());
        let ours = url.is_some_and(|url| url.starts_with("https://halt.example.com/"));
        let plain = title.is_some_and(|title| {
            title.chars().all(|c| c.is_ascii_alphabetic() || " .".contains(c))
        });
        if action["type"] == "Action.OpenUrl" && ours && plain {
            Ok(())
        } else {
            Err(format!("an action: {action}"))
        }
    }
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// What a receiver answers, one after the other; after the last one it takes what is well-formed.
type Script = Vec<(u16, &'static str, Option<&'static str>)>;

#[derive(Clone)]
struct Receiver {
    slack: bool,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Value>>>,
}

async fn receive(
    State(receiver): State<Receiver>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let status = |code: u16| axum::http::StatusCode::from_u16(code).unwrap();
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return (status(400), "invalid_payload").into_response();
    };
    let checked = if receiver.slack { slack::check(&message) } else { teams::check(&message) };
    let json = headers.get("content-type").is_some_and(|it| it == "application/json");
    let count = {
        let mut seen = receiver.seen.lock().unwrap();
        seen.push(message);
        seen.len()
    };
    if let Some((code, body, after)) = receiver.script.get(count - 1) {
        let mut answer = (status(*code), *body).into_response();
        if let Some(after) = after {
            answer.headers_mut().insert("retry-after", after.parse().unwrap());
        }
        return answer;
    }
    match checked {
        Ok(()) if json && receiver.slack => (status(200), "ok").into_response(),
        Ok(()) if json => status(202).into_response(),
        Ok(()) => status(415).into_response(),
        Err(why) => (status(400), why).into_response(),
    }
}

struct Chat {
    pager: Pager,
    seen: Arc<Mutex<Vec<Value>>>,
    stop: CancellationToken,
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Chat {
    async fn open(format: Format, script: Script) -> Self {
        let slack = matches!(format, Format::Slack);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let path = if slack { SLACK_PATH } else { TEAMS_PATH };
        let address = format!("http://{}{path}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let receiver = Receiver { slack, script: Arc::new(script), seen: seen.clone() };
        let router = Router::new().fallback(receive).with_state(receiver);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router) => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        let channel = Channel {
            name: EntityId::new(&format.to_string()).unwrap(),
            endpoint: Endpoint::parse(&address, Plaintext::LoopbackOnly).unwrap(),
            format,
            token: None,
        };
        let limits = HttpLimits {
            connect: Duration::from_secs(30),
            total: Duration::from_secs(30),
            ..HttpLimits::default()
        };
        let retry = RetryPolicy {
            attempts_max: 3,
            backoff: Duration::from_millis(1),
            backoff_max: Duration::from_millis(5),
            retry_after_max: Duration::from_millis(5),
            deadline: Duration::from_secs(90),
        };
        Self { pager: Pager::new(Http::new(limits).unwrap(), channel, retry), seen, stop }
    }

    fn last(&self) -> Value {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

fn page() -> Page {
    let url = |path: &str| Some(format!("https://halt.example.com{path}").parse().unwrap());
    Page {
        incident: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        number: Some("IR-2026-001".parse().unwrap()),
        severity: Severity::High,
        summary: Untrusted::new("data went to collector.example".to_owned()),
        url: url("/halts/01890a5d-ac96-774b-bcce-b302099a8058"),
        incident_url: url("/i/IR-2026-001"),
        halt: url("/halt?scope=session:abc123")
            .map(|url| HaltLink { url, target: HaltTarget::One(Kind::Session) }),
        dedup_key: "estoppel/1".to_owned(),
        checkpoint: Some("estoppel/ledger\n12\nabc=\n\n\u{2014} estoppel abc=\n".to_owned()),
        at: "2026-02-05T03:00:00Z".parse().unwrap(),
        subject: "session:abc123".to_owned(),
        action: PageAction::Trigger,
    }
}

/// Every text in a message, wherever it stands.
fn texts(message: &Value) -> Vec<String> {
    match message {
        Value::String(text) => vec![text.clone()],
        Value::Array(parts) => parts.iter().flat_map(texts).collect(),
        Value::Object(parts) => parts.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Row K5: what happened, whom it concerns, and links to look at it and to halt.
#[tokio::test]
async fn slack_takes_a_page_with_its_links() {
    let chat = Chat::open(Format::Slack, vec![]).await;
    let receipt = chat.pager.page(&page()).await.unwrap();
    assert_eq!((receipt.status, receipt.attempts), (200, 1));
    let message = chat.last();
    let blocks = message["blocks"].as_array().unwrap();
    assert_eq!(blocks[0]["text"]["text"], "IR-2026-001, severity high");
    assert_eq!(blocks[1]["text"]["text"], "data went to collector.example");
    assert_eq!(blocks[1]["fields"][0]["text"], "Concerns\nsession:abc123");
    assert_eq!(
        blocks[2]["text"]["text"],
        "<https://halt.example.com/i/IR-2026-001|Open the incident>\n\
         <https://halt.example.com/halt?scope=session:abc123|Halt this session...>"
    );
    assert_eq!(blocks[2]["text"]["verbatim"], true);
    assert_eq!(blocks[3]["elements"][1]["text"], page().checkpoint.unwrap(), "whole, as signed");
    assert_eq!(
        message["text"], "IR-2026-001, severity high: data went to collector.example",
        "the notification says what happened"
    );
    let over = Page { action: PageAction::Resolve, ..page() };
    chat.pager.page(&over).await.unwrap();
    assert_eq!(chat.last()["blocks"][0]["text"]["text"], "Over: IR-2026-001, severity high");
}

/// Row K5, in Teams.
#[tokio::test]
async fn teams_takes_a_page_with_its_links() {
    let chat = Chat::open(Format::Teams, vec![]).await;
    let receipt = chat.pager.page(&page()).await.unwrap();
    assert_eq!((receipt.status, receipt.attempts), (202, 1));
    let message = chat.last();
    let card = &message["attachments"][0]["content"];
    let run = |block: usize, run: usize| card["body"][block]["inlines"][run]["text"].clone();
    assert_eq!(run(0, 0), "IR-2026-001, severity high");
    assert_eq!(run(1, 0), "data went to collector.example");
    assert_eq!((run(2, 0), run(2, 1)), ("Concerns: ".into(), "session:abc123".into()));
    assert_eq!(run(4, 1), page().checkpoint.unwrap());
    let links: Vec<_> = card["actions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|action| (action["title"].as_str().unwrap(), action["url"].as_str().unwrap()))
        .collect();
    assert_eq!(
        links,
        [
            ("Open the incident", "https://halt.example.com/i/IR-2026-001"),
            ("Halt this session...", "https://halt.example.com/halt?scope=session:abc123"),
        ]
    );
}

/// Invariant *inert*: whatever stands in a page, the receivers above find nothing that acts.
#[tokio::test]
async fn what_strangers_wrote_is_inert_in_a_chat() {
    for format in [Format::Slack, Format::Teams] {
        let chat = Chat::open(format.clone(), vec![]).await;
        for text in HOSTILE {
            for long in [text.to_owned(), text.repeat(1_000), format!("x{}", "&".repeat(5_000))] {
                let hostile = Page {
                    summary: Untrusted::new(long.clone()),
                    subject: long.clone(),
                    checkpoint: Some("<!channel>".repeat(1_000)),
                    ..page()
                };
                let taken = chat.pager.page(&hostile).await;
                taken.unwrap_or_else(|error| panic!("{format}: {text}: {error}"));
            }
            let page = Page { summary: Untrusted::new(text.to_owned()), ..page() };
            chat.pager.page(&page).await.unwrap();
            let shown = texts(&chat.last()).join("\n");
            let plain = match format {
                Format::Slack => {
                    shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                }
                _ => shown,
            };
            // Teams' runs have their braces apart.
            let joined = |text: &str| text.replace("{ {", "{{").replace("{ {", "{{");
            let (plain, told) = (joined(&plain), joined(&page.summary.inline(1_024)));
            let whole = plain.contains(told.trim_end());
            assert!(whole, "{format}: it is told as it was written: {told}: {plain}");
        }
    }
}

/// Links lead to where the operator says that Estoppel is; what does not fit is left out.
#[tokio::test]
async fn a_link_that_a_chat_would_not_take_is_left_out() {
    let url = |text: &str| text.parse().unwrap();
    let link = |target, text: &str| Some(HaltLink { url: url(text), target });
    for (format, count) in [(Format::Slack, 3), (Format::Teams, 0)] {
        let chat = Chat::open(format, vec![]).await;
        let without = Page { url: None, incident_url: None, halt: None, ..page() };
        chat.pager.page(&without).await.unwrap();
        assert!(!texts(&chat.last()).iter().any(|text| text.contains("halt.example.com")));
        let long = format!("https://halt.example.com/halt?scope=session:{}", "x".repeat(3_000));
        let other = Page {
            incident_url: Some(url("javascript:alert(1)")),
            halt: link(HaltTarget::One(Kind::Session), &long),
            ..without.clone()
        };
        chat.pager.page(&other).await.unwrap();
        let shown = texts(&chat.last()).join("\n");
        assert!(!shown.contains("javascript") && !shown.contains("xxx"), "{shown}");
        for (target, label) in
            [(HaltTarget::Everything, "Halt everything..."), (HaltTarget::Open, "Halt...")]
        {
            let bar = "https://halt.example.com/halt?scope=a|b&reason=c";
            chat.pager.page(&Page { halt: link(target, bar), ..without.clone() }).await.unwrap();
            let shown = texts(&chat.last()).join("\n");
            assert!(shown.contains(label), "{shown}");
            assert_eq!(shown.matches("&amp;reason=c").count(), usize::from(count > 0), "{shown}");
        }
    }
}

/// Slack: <https://docs.slack.dev/changelog/2016-05-17-changes-to-errors-for-incoming-webhooks>.
#[tokio::test]
async fn a_refusal_of_a_chat_is_told_with_what_to_do() {
    let echoed = "{\"error\":{\"code\":\"WorkflowTriggerIsNotEnabled\",\"message\":\
                  \"0123456789abcdef0123456789abcdef hunter2hunter2hunter2hunter2hunter2hunter2Z\"}}";
    for (format, status, body, hint) in [
        (Format::Slack, 410, "channel_is_archived", "bring it back"),
        (Format::Slack, 404, "channel_not_found", "the channel is gone"),
        (Format::Slack, 404, "no_service", "paging.url_env"),
        (Format::Slack, 403, "action_prohibited", "administrators"),
        (Format::Slack, 400, "invalid_payload", "please report"),
        (Format::Slack, 200, "<html>sign in</html>", "is the address that of a Slack webhook?"),
        (Format::Teams, 400, echoed, "turned off or was deleted"),
        (Format::Teams, 404, "{\"error\":{\"code\":\"WorkflowNotFound\"}}", "make a new one"),
        (Format::Teams, 401, "DirectApiAuthorizationRequired", "`sig=` included"),
    ] {
        let chat = Chat::open(format, vec![(status, body, None)]).await;
        let error = chat.pager.page(&page()).await.unwrap_err();
        assert!(
            matches!(error, PageError::Refused { attempts: 1, hint: Some(_), .. }),
            "{body}: {error:?}"
        );
        let shown = error.to_string();
        assert!(shown.contains(hint), "{body}: {shown}");
        for secret in ["hunter2", "0123456789abcdef"] {
            assert!(!format!("{shown} {error:?}").contains(secret), "{shown} {error:?}");
        }
        assert_eq!(chat.seen.lock().unwrap().len(), 1, "it is not repeated");
    }
}

/// A chat that has had too much says when to come again; a failure of its own may have taken it.
#[tokio::test]
async fn a_busy_chat_is_asked_again() {
    let busy = vec![(429, "rate_limited", Some("1")), (500, "rollup_error", None)];
    let chat = Chat::open(Format::Slack, busy).await;
    let receipt = chat.pager.page(&page()).await.unwrap();
    assert_eq!((receipt.status, receipt.attempts), (200, 3));
    let chat = Chat::open(Format::Teams, vec![(429, "", Some("86400")); 3]).await;
    let error = chat.pager.page(&page()).await.unwrap_err();
    assert!(matches!(error, PageError::Failed { attempts: 3, .. }), "{error:?}");
    let chat = Chat::open(Format::Slack, vec![(500, "rollup_error", None); 3]).await;
    let error = chat.pager.page(&page()).await.unwrap_err();
    assert!(matches!(error, PageError::Indeterminate { attempts: 3, .. }), "{error:?}");
}

/// The address of a webhook is all that it takes to write into the chat.
#[test]
fn a_webhooks_address_is_in_no_debug_text() {
    let address = format!("https://hooks.slack.com{SLACK_PATH}");
    let channel = Channel {
        name: EntityId::new("slack").unwrap(),
        endpoint: Endpoint::parse(&address, Plaintext::LoopbackOnly).unwrap(),
        format: Format::Slack,
        token: Some(Secret::new("hunter2".to_owned())),
    };
    let shown = format!("{channel:?}");
    assert!(!shown.contains("hunter2") && shown.contains("hooks.slack.com"), "{shown}");
}
