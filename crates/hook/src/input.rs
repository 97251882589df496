//! What an agent hands in: one JSON object, from a program that may have been taken over.
//!
//! Unknown fields are left alone, since agents add some with each version. A field that is there
//! twice, or of another type than the documentation says, makes the whole input malformed: an input
//! with two readings is refused. What goes into the audit log is bounded here.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::moment::{self, Dialect, Form, Moment};

/// Largest input that is read, in bytes. Tools that write files have the files in it.
pub const INPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest params or result that are handed on whole, in bytes.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// How much of larger ones is, in characters.
const START_CHARS: usize = 4 * 1024;
/// Longest name of an event, and of other texts that are only recorded, in characters.
const NAME_CHARS: usize = 128;
/// Longest path, in characters.
const PATH_CHARS: usize = 1_024;

/// Why an input says nothing that could be judged.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// There is none.
    #[error("the agent handed in nothing: a hook reads one JSON object on its standard input")]
    Empty,
    /// There is too much.
    #[error("the agent handed in more than {INPUT_BYTES_MAX} bytes")]
    TooLarge,
    /// It is something else than hooks hand in.
    #[error("the agent's input is no JSON object")]
    NoObject,
    /// It is not JSON, or a field is twice there or of another type than is documented.
    #[error("the agent's input is malformed")]
    Malformed(#[source] serde_json::Error),
    /// It names no event.
    #[error("the agent's input names no event: `hook_event_name` is missing")]
    NoEvent,
    /// A halt of a session could not reach it.
    #[error("the agent's input names no session: `session_id` is missing")]
    NoSession,
}

/// What the agent tells, in one dialect for all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// The event, in the agent's word for it.
    pub event: String,
    /// The session.
    pub session: String,
    /// The tool, where one is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The MCP server that the tool belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Which call of a tool it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use: Option<String>,
    /// What the tool is called with, or what the person wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    /// What came out of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The sub-agent that acts, where it is one: a task of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_agent: Option<String>,
    /// Its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_agent_type: Option<String>,
    /// The folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The agent's mode of permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<String>,
}

impl Call {
    /// What is about to happen, or has.
    pub fn moment(&self) -> Moment {
        moment::of(&self.event).map_or(Moment::Other, |(_, moment, _)| moment)
    }

    /// How it is refused.
    pub fn form(&self) -> Form {
        form(Some(&self.event))
    }
}

/// How an event is refused, also one that could not be read.
pub fn form(event: Option<&str>) -> Form {
    event.and_then(moment::of).map_or(Form::Exit, |(_, _, form)| form)
}

/// The fields of all dialects that are read.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    hook_event_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    conversation_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_use_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    command: Option<&'a RawValue>,
    #[serde(borrow, default)]
    file_path: Option<&'a RawValue>,
    #[serde(borrow, default)]
    agent_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    agent_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    cwd: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    permission_mode: Option<Cow<'a, str>>,
}

/// Reads an input.
///
/// # Errors
/// When nothing can be judged by it.
pub fn parse(input: &[u8]) -> Result<Call, InputError> {
    if input.len() > INPUT_BYTES_MAX {
        return Err(InputError::TooLarge);
    }
    match input.trim_ascii_start().first() {
        None => return Err(InputError::Empty),
        Some(b'{') => {}
        Some(_) => return Err(InputError::NoObject),
    }
    let fields: Fields<'_> = serde_json::from_slice(input).map_err(InputError::Malformed)?;
    let event = fields.hook_event_name.ok_or(InputError::NoEvent)?;
    // Cursor's conversation is what others call a session; what it calls a session is the same.
    let session = fields.session_id.or(fields.conversation_id);
    let session = session.filter(|id| !id.is_empty()).ok_or(InputError::NoSession)?;
    let (dialect, moment, _) =
        moment::of(&event).unwrap_or((Dialect::ClaudeCode, Moment::Other, Form::Exit));
    let params = fields.tool_input.or(fields.prompt).or(fields.command).or(fields.file_path);
    let result = fields.tool_response.or(fields.tool_output).or(fields.error);
    let tool = fields.tool_name.as_deref();
    Ok(Call {
        event: start(&event, NAME_CHARS),
        // What is too long for an id is refused where ids are made, not cut to another's.
        session: session.into_owned(),
        plugin: tool.and_then(|tool| plugin(dialect, tool)).map(str::to_owned),
        tool: tool.map(str::to_owned),
        tool_use: fields.tool_use_id.map(|id| start(&id, NAME_CHARS)),
        params: params.map(bounded),
        result: if moment == Moment::AfterTool { result.map(bounded) } else { None },
        sub_agent: fields.agent_id.filter(|id| !id.is_empty()).map(Cow::into_owned),
        sub_agent_type: fields.agent_type.map(|name| start(&name, NAME_CHARS)),
        cwd: fields.cwd.map(|path| start(&path, PATH_CHARS)),
        permission_mode: fields.permission_mode.map(|mode| start(&mode, NAME_CHARS)),
    })
}

/// The event that an input names, also one of which nothing else can be read: how it is refused
/// depends on it.
pub fn event_of(input: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Name<'a> {
        #[serde(borrow)]
        hook_event_name: Cow<'a, str>,
    }
    let name: Name<'_> = serde_json::from_slice(input).ok()?;
    Some(name.hook_event_name.into_owned())
}

/// The MCP server in a tool's name: `mcp__SERVER__TOOL`. A server whose own name holds two
/// underscores in a row is known by what stands before them.
fn plugin(dialect: Dialect, tool: &str) -> Option<&str> {
    match dialect {
        Dialect::ClaudeCode | Dialect::GeminiCli => {
            let (server, _) = tool.strip_prefix("mcp__")?.split_once("__")?;
            Some(server).filter(|server| !server.is_empty())
        }
        // `MCP:TOOL` does not say whose.
        Dialect::Cursor => None,
    }
}

/// A value as it is, or its start where it is large.
fn bounded(value: &RawValue) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Shortened {
        truncated: bool,
        bytes: usize,
        start: String,
    }
    let json = value.get();
    if json.len() <= WHOLE_BYTES_MAX {
        return value.to_owned();
    }
    let shortened =
        Shortened { truncated: true, bytes: json.len(), start: start(json, START_CHARS) };
    to_raw_value(&shortened).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn start(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(json: &str) -> Call {
        parse(json.as_bytes()).unwrap()
    }

    /// The example of Claude Code's page on hooks.
    #[test]
    fn claude_codes_own_example_is_read() {
        let call = call(
            r#"{"session_id":"abc123","prompt_id":"550e8400-e29b-41d4-a716-446655440000",
            "transcript_path":"/home/user/.claude/projects/t.jsonl","cwd":"/home/user/my-project",
            "permission_mode":"default","hook_event_name":"PreToolUse","tool_name":"Bash",
            "tool_input":{"command":"npm test","timeout":120000},"tool_use_id":"toolu_01ABC123"}"#,
        );
        assert_eq!((call.event.as_str(), call.session.as_str()), ("PreToolUse", "abc123"));
        assert_eq!((call.tool.as_deref(), call.plugin.as_deref()), (Some("Bash"), None));
        assert_eq!(call.tool_use.as_deref(), Some("toolu_01ABC123"));
        assert_eq!(call.moment(), Moment::BeforeTool);
        assert!(call.params.unwrap().get().contains("npm test"));
    }

    #[test]
    fn an_mcp_servers_name_is_its_plugins() {
        let plugin = |event: &str, tool: &str| {
            call(&format!(
                r#"{{"session_id":"a","hook_event_name":"{event}","tool_name":"{tool}"}}"#
            ))
            .plugin
        };
        assert_eq!(plugin("PreToolUse", "mcp__github__create_issue").as_deref(), Some("github"));
        assert_eq!(plugin("BeforeTool", "mcp__a__b__c").as_deref(), Some("a"));
        assert_eq!(plugin("PreToolUse", "mcp____x"), None);
        assert_eq!(plugin("PreToolUse", "mcp__github"), None);
        assert_eq!(plugin("preToolUse", "MCP:create_issue"), None);
    }

    #[test]
    fn dialects_are_told_apart_by_their_events() {
        let moment = |json: &str| {
            let call = call(json);
            (call.moment(), call.form())
        };
        let gemini = r#"{"session_id":"g","hook_event_name":"BeforeTool","tool_name":"read_file","timestamp":"t"}"#;
        assert_eq!(moment(gemini), (Moment::BeforeTool, Form::Deny));
        let cursor =
            r#"{"conversation_id":"c","hook_event_name":"beforeSubmitPrompt","prompt":"p"}"#;
        assert_eq!(moment(cursor), (Moment::Prompt, Form::CursorPrompt));
        let codex = r#"{"session_id":"x","turn_id":"1","hook_event_name":"PreToolUse","tool_name":"apply_patch","transcript_path":null,"model":"m"}"#;
        assert_eq!(moment(codex), (Moment::BeforeTool, Form::Permission));
        let unknown = r#"{"session_id":"x","hook_event_name":"OfTomorrow"}"#;
        assert_eq!(moment(unknown), (Moment::Other, Form::Exit));
    }

    #[test]
    fn what_cannot_be_judged_is_an_error_of_its_own() {
        let check = |input: &[u8], expect: &str| {
            let error = parse(input).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(b"", "nothing");
        check(b" \n", "nothing");
        check(b"{", "malformed");
        check(br#"["Stop","a"]"#, "no JSON object");
        check(b"\xff\xfe", "no JSON object");
        check(b"{\"session_id\":\"\xff\"}", "malformed");
        check(br#"{"session_id":7,"hook_event_name":"Stop"}"#, "malformed");
        check(br#"{"session_id":"a","session_id":"b","hook_event_name":"Stop"}"#, "malformed");
        check(br#"{"session_id":"a"}"#, "hook_event_name");
        check(br#"{"hook_event_name":"Stop"}"#, "session_id");
        check(br#"{"session_id":"","hook_event_name":"Stop"}"#, "session_id");
        check(&vec![b' '; INPUT_BYTES_MAX + 1], "more than");
        let deep = format!(
            r#"{{"session_id":"a","hook_event_name":"PreToolUse","tool_input":{}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        parse(deep.as_bytes()).unwrap();
    }

    #[test]
    fn the_event_of_a_malformed_input_is_found_where_it_can_be() {
        let stop = br#"{"session_id":7,"hook_event_name":"Stop"}"#;
        assert_eq!(event_of(stop).as_deref(), Some("Stop"));
        assert_eq!(event_of(b"{"), None);
    }

    #[test]
    fn what_is_large_is_shortened() {
        let input = format!(
            r#"{{"session_id":"a","hook_event_name":"PreToolUse","tool_input":{{"content":"{}"}},"cwd":"{}"}}"#,
            "é".repeat(WHOLE_BYTES_MAX),
            "/x".repeat(PATH_CHARS)
        );
        let call = call(&input);
        let params: serde_json::Value = serde_json::from_str(call.params.unwrap().get()).unwrap();
        assert_eq!(params["truncated"], true);
        assert_eq!(params["start"].as_str().unwrap().chars().count(), START_CHARS);
        assert_eq!(call.cwd.unwrap().chars().count(), PATH_CHARS);
    }
}
