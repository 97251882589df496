//! The shapes, and what they have in common.

use serde_json::{Value, json};

use super::{chat_completions, messages, responses, script::Answer};

/// When every answer was made, in seconds: the fake reads no clock.
pub(super) const CREATED_AT: u64 = 1_770_260_400;
/// Characters of a tool call's arguments in one piece.
const ARGUMENT_CHARS: usize = 12;

/// A vendor's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    ChatCompletions,
    Responses,
    Messages,
}

/// An answer in a vendor's shape.
pub(super) struct Shaped {
    /// As one JSON document.
    pub(super) whole: Value,
    /// As a stream.
    pub(super) frames: Vec<Frame>,
}

/// One server-sent event.
pub(super) struct Frame {
    pub(super) event: Option<&'static str>,
    pub(super) data: String,
    /// Whether it holds a piece of what is said.
    pub(super) is_piece: bool,
}

impl Frame {
    /// The event as it is written.
    pub(super) fn text(&self) -> String {
        match self.event {
            Some(event) => format!("event: {event}\ndata: {}\n\n", self.data),
            None => format!("data: {}\n\n", self.data),
        }
    }
}

impl Dialect {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    pub(super) fn shape(self, answer: &Answer, asked: &Value, call: usize) -> Shaped {
        let shape = match self {
            Self::ChatCompletions => chat_completions::shape,
            Self::Responses => responses::shape,
            Self::Messages => messages::shape,
        };
        shape(answer, asked, call)
    }

    pub(super) fn error(self, message: &str) -> Value {
        match self {
            Self::ChatCompletions | Self::Responses => json!({"error": {
                "message": message, "type": "invalid_request_error", "param": null, "code": null,
            }}),
            Self::Messages => json!({"type": "error", "error": {
                "type": "invalid_request_error", "message": message,
            }}),
        }
    }
}

/// The model's name, which every shape gives back.
pub(super) fn model_of(asked: &Value) -> Value {
    asked.get("model").cloned().unwrap_or_else(|| json!("fake"))
}

/// What is said, word by word.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// A tool call's arguments, some characters at a time.
pub(super) fn argument_pieces(arguments: &str) -> Vec<String> {
    let chars: Vec<char> = arguments.chars().collect();
    chars.chunks(ARGUMENT_CHARS).map(|piece| piece.iter().collect()).collect()
}
