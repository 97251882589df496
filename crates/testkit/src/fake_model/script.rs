//! What the fake model says, call by call.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Answers in the order in which calls take them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Each is given once: to the first call whose request it is for.
    pub answers: Vec<Answer>,
    /// What a call gets that no answer is left for.
    #[serde(default)]
    pub when_over: WhenOver,
}

/// What a call gets that no answer is left for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenOver {
    /// An error of status 400, which clients do not try again.
    #[default]
    Refuse,
    /// The last answer of the script, over and over: a runaway agent's model.
    RepeatLast,
}

/// One answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// Only for a request whose text holds this, such as a sub-agent's instructions.
    #[serde(rename = "for")]
    pub for_text: Option<String>,
    /// What is said, before any tool calls.
    pub text: Option<String>,
    /// Tools that are to be called.
    pub tool_calls: Vec<ToolCall>,
    /// What the answer is said to have cost.
    pub usage: Usage,
    /// Pause before each piece of the answer, in milliseconds.
    pub pause_ms: u64,
    /// Stands still after so many pieces of a stream, until it is told to go on; an answer that is
    /// no stream stands still before it begins. A piece is a word, or some characters of a tool
    /// call's arguments.
    pub hold_after: Option<usize>,
    /// Answers with an error of this HTTP status instead.
    pub status: Option<u16>,
}

/// A tool that is to be called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// What it is called with.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// The arguments as models write them: a JSON text.
    pub(crate) fn arguments_text(&self) -> String {
        Value::Object(self.arguments.clone()).to_string()
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Tokens that went in.
    pub input_tokens: u64,
    /// Tokens that came out.
    pub output_tokens: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { input_tokens: 10, output_tokens: 5 }
    }
}
