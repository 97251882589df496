//! Slack's incoming webhooks: a message of Block Kit's blocks.
//!
//! Invariants:
//! - What an agent or a person wrote stands in `plain_text` objects, which read no markup, and in the
//!   text of the notification; in both `&`, `<` and `>` are escaped, so that it holds neither a
//!   mention (`<!channel>`, `<@U...>`) nor a link.
//! - The one `mrkdwn` object holds Estoppel's own words and addresses, and is `verbatim`.
//! - Every text is within the length that Slack documents for its place.
//!
//! There are no buttons: Slack reports each press to the app, which would have to be one that answers.
//! An incoming webhook knows no key either, so that a repetition after an answer that got lost is a
//! second message.

use serde_json::{Value, json};

use super::Page;
use crate::HttpResponse;

/// Longest text of a `header` block.
const HEADER_UNITS_MAX: usize = 150;
/// Longest text of a text object.
const TEXT_UNITS_MAX: usize = 3_000;
/// Longest text of a section's field.
const FIELD_UNITS_MAX: usize = 2_000;

/// The message.
pub(super) fn message(page: &Page) -> Value {
    let (heading, line) = (page.heading(), page.line());
    let fields: Vec<Value> = page
        .facts()
        .iter()
        .map(|(name, value)| plain(&format!("{name}\n{value}"), FIELD_UNITS_MAX))
        .collect();
    let mut blocks = vec![
        json!({ "type": "header", "text": plain(&heading, HEADER_UNITS_MAX) }),
        json!({ "type": "section", "text": plain(&line, TEXT_UNITS_MAX), "fields": fields }),
    ];
    let links: Vec<String> = page
        .links()
        .iter()
        // The bar would end the address.
        .map(|(label, url)| format!("<{}|{label}>", escaped(url.as_str()).replace('|', "%7C")))
        .collect();
    if !links.is_empty() {
        let text = json!({ "type": "mrkdwn", "text": links.join("\n"), "verbatim": true });
        blocks.push(json!({ "type": "section", "text": text }));
    }
    // Cut, it would prove nothing.
    let checkpoint = page.checkpoint.as_deref().filter(|it| units(&escaped(it)) <= TEXT_UNITS_MAX);
    if let Some(checkpoint) = checkpoint.filter(|checkpoint| !checkpoint.is_empty()) {
        let elements = [
            plain("Ledger checkpoint, proof of what was written by then:", TEXT_UNITS_MAX),
            plain(checkpoint, TEXT_UNITS_MAX),
        ];
        blocks.push(json!({ "type": "context", "elements": elements }));
    }
    json!({
        // For notifications and screen readers: what shows blocks does not show it.
        "text": bounded(&format!("{heading}: {line}"), TEXT_UNITS_MAX),
        "blocks": blocks,
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

/// Whether Slack posted the message: it says `ok`, and nothing that merely answers 200 does.
pub(super) fn takes(answer: &HttpResponse) -> bool {
    // Where the status came and the rest did not, the status counts.
    !answer.complete || answer.body.trim_ascii() == b"ok"
}

/// What can be done about one of the errors that Slack documents for incoming webhooks.
pub(super) fn hint(answer: &HttpResponse) -> Option<&'static str> {
    Some(match answer.body.trim_ascii() {
        b"channel_is_archived" => {
            "the channel is archived: bring it back, or make a webhook for another channel"
        }
        b"channel_not_found" => {
            "the channel is gone: make a webhook for another one and put its address into the \
             variable that `paging.url_env` names"
        }
        b"no_service" | b"no_team" | b"no_active_hooks" | b"invalid_token" => {
            "the webhook was removed or its address is not complete: make a new one and put its \
             address into the variable that `paging.url_env` names"
        }
        b"action_prohibited" => {
            "the workspace does not let this webhook post there: ask its administrators"
        }
        b"invalid_payload" => "Slack does not take the message's form: please report this",
        _ if answer.status < 300 => "it did not say `ok`: is the address that of a Slack webhook?",
        _ => return None,
    })
}

/// A text object that reads no markup. Slack takes no empty one.
fn plain(text: &str, units_max: usize) -> Value {
    let text = if text.trim().is_empty() { "(no text)" } else { text };
    json!({ "type": "plain_text", "text": bounded(text, units_max), "emoji": false })
}

/// The text with Slack's three control characters as entities.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            other => out.push(other),
        }
    }
    out
}

/// The same, in at most so many units of UTF-16, and cut between two characters.
fn bounded(text: &str, units_max: usize) -> String {
    let whole = escaped(text);
    if units(&whole) <= units_max {
        return whole;
    }
    let (mut out, mut length) = (String::new(), "...".len());
    for c in text.chars() {
        let next = escaped(c.encode_utf8(&mut [0; 4]));
        length += units(&next);
        if length > units_max {
            break;
        }
        out.push_str(&next);
    }
    out + "..."
}

/// The length as the strictest reader counts it.
fn units(text: &str) -> usize {
    text.encode_utf16().count()
}
