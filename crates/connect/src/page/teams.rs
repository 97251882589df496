//! Microsoft Teams' Workflows webhooks ("when a Teams webhook request is received"): a message with
//! one Adaptive Card.
//!
//! Invariants:
//! - All text of the card stands in runs of a `RichTextBlock`, which read no Markdown, unlike
//!   `TextBlock` and `FactSet`; the card names no mention, and a name in its text is none.
//! - What would be a function (`{{DATE(...)}}`) to a run is none.
//! - The message stays under the 28 KB that Teams takes.
//!
//! A workflow answers 202 when it has begun: that the card was posted stands in its own run history.

use serde_json::{Value, json};

use super::Page;
use crate::HttpResponse;

/// Longest checkpoint, in bytes; a longer one is left out, since cut it would prove nothing.
const CHECKPOINT_BYTES_MAX: usize = 2_000;

/// The message.
pub(super) fn message(page: &Page) -> Value {
    let mut body = vec![
        block(json!([
            { "type": "TextRun", "text": page.heading(), "size": "Large", "weight": "Bolder" }
        ])),
        block(json!([{ "type": "TextRun", "text": inert(&page.line()) }])),
    ];
    for (name, value) in page.facts() {
        body.push(block(json!([
            { "type": "TextRun", "text": format!("{name}: "), "weight": "Bolder" },
            { "type": "TextRun", "text": inert(&value) },
        ])));
    }
    let checkpoint = page.checkpoint.as_deref().filter(|it| it.len() <= CHECKPOINT_BYTES_MAX);
    if let Some(checkpoint) = checkpoint.filter(|checkpoint| !checkpoint.is_empty()) {
        body.push(block(json!([
            {
                "type": "TextRun",
                "text": "Ledger checkpoint, proof of what was written by then:\n",
                "isSubtle": true,
            },
            {
                "type": "TextRun",
                "text": inert(checkpoint),
                "fontType": "Monospace",
                "isSubtle": true,
            },
        ])));
    }
    let actions: Vec<Value> = page
        .links()
        .iter()
        .map(
            |(label, url)| json!({ "type": "Action.OpenUrl", "title": label, "url": url.as_str() }),
        )
        .collect();
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    });
    if !actions.is_empty() {
        card["actions"] = actions.into();
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": card,
        }],
    })
}

/// What can be done about an error of the service that runs workflows.
pub(super) fn hint(answer: &HttpResponse) -> Option<&'static str> {
    let says = |code: &str| String::from_utf8_lossy(&answer.body).contains(code);
    Some(if says("WorkflowTriggerIsNotEnabled") {
        "the workflow is turned off or was deleted: turn it on, or make a new one and put its \
         address into the variable that `paging.url_env` names"
    } else if says("WorkflowNotFound") {
        "the workflow is gone: make a new one and put its address into the variable that \
         `paging.url_env` names"
    } else if answer.status == 401 {
        "the workflow must let anyone trigger it, and the address must be whole, `sig=` included"
    } else if answer.status == 413 {
        "Teams finds the message too large: please report this"
    } else {
        return None;
    })
}

/// A paragraph whose runs read no Markdown.
fn block(inlines: Value) -> Value {
    json!({ "type": "RichTextBlock", "inlines": inlines })
}

/// The text without what a card would compute: no two braces open side by side.
fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '{' && out.ends_with('{') {
            out.push(' ');
        }
        out.push(c);
    }
    // A run may not be empty.
    if out.trim().is_empty() { "(no text)".to_owned() } else { out }
}
