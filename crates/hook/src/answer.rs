//! What an agent is answered, in its own form.
//!
//! To let something go is to say nothing: a hook that says `allow` would overrule the permissions
//! that a person set. A refusal ends the whole turn where the session itself is refused, and only the
//! call where a tool or a plugin is.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::moment::Form;

/// The exit code by which agents know that something is refused.
pub const REFUSED: u8 = 2;

/// A refusal, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The text for the agent's user.
    pub text: String,
    /// The same with who, why, since when, which incident and whom to call, on one line.
    pub line: String,
    /// Whether the session itself is refused, and not only this tool or plugin.
    pub whole: bool,
}

impl Refusal {
    /// A refusal for want of something, such as a server that answers.
    pub fn for_want(why: &str) -> Self {
        let line = format!("Estoppel refuses: {why}.");
        Self { text: line.clone(), line, whole: true }
    }
}

/// What a hook's process prints, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// For standard output: nothing, or one JSON object.
    pub stdout: String,
    /// For standard error: nothing, or the reason.
    pub stderr: String,
    /// The exit code.
    pub code: u8,
}

impl Reply {
    /// The answer that lets it go.
    pub fn go() -> Self {
        Self::default()
    }

    /// The answer that refuses it; `event` is the event's name in the agent's words.
    pub fn refuse(form: Form, event: &str, refusal: &Refusal) -> Self {
        let line = refusal.line.as_str();
        let end = json!({ "continue": false, "stopReason": line });
        match form {
            Form::Permission => {
                let specific = json!({
                    "hookSpecificOutput": {
                        "hookEventName": event,
                        "permissionDecision": "deny",
                        "permissionDecisionReason": line,
                    }
                });
                Self::exit(&if refusal.whole { with(specific, &end) } else { specific }, line)
            }
            Form::PermissionRequest => Self::said(&json!({
                "hookSpecificOutput": {
                    "hookEventName": event,
                    "decision": { "behavior": "deny", "message": line },
                }
            })),
            Form::Block => Self::exit(&with(block(line), &end), line),
            Form::Withhold => Self::said(&with(block(line), &end)),
            Form::Exit => Self::exit(&end, line),
            Form::Continue => Self::said(&end),
            Form::Deny => {
                let deny = json!({ "decision": "deny", "reason": line });
                Self::said(&if refusal.whole { with(deny, &end) } else { deny })
            }
            Form::CursorPermission => {
                let deny = json!({
                    "permission": "deny", "user_message": refusal.text, "agent_message": line
                });
                Self::exit(&deny, line)
            }
            Form::CursorPrompt => Self::said(&json!({ "continue": false, "user_message": line })),
            Form::Told => Self { stderr: line.to_owned(), ..Self::go() },
        }
    }

    fn exit(stdout: &Value, stderr: &str) -> Self {
        Self { stdout: stdout.to_string(), stderr: stderr.to_owned(), code: REFUSED }
    }

    fn said(stdout: &Value) -> Self {
        Self { stdout: stdout.to_string(), ..Self::go() }
    }
}

fn block(line: &str) -> Value {
    json!({ "decision": "block", "reason": line })
}

/// An object with the fields of another one added.
fn with(mut object: Value, more: &Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::form;

    fn refused(event: &str, whole: bool) -> (Value, Reply) {
        let refusal = Refusal { text: "Suspended.".into(), line: "Suspended. Why.".into(), whole };
        let reply = Reply::refuse(form(Some(event)), event, &refusal);
        let said = serde_json::from_str(&reply.stdout).unwrap_or(Value::Null);
        (said, reply)
    }

    /// K4: a halted session's tool call is denied with the reason, and its turn ends.
    #[test]
    fn a_tool_is_denied_and_the_turn_ends() {
        let (said, reply) = refused("PreToolUse", true);
        assert_eq!(
            said,
            json!({
                "continue": false,
                "stopReason": "Suspended. Why.",
                "hookSpecificOutput": {
                    "hookEventName": "PreToolUse",
                    "permissionDecision": "deny",
                    "permissionDecisionReason": "Suspended. Why.",
                }
            })
        );
        // Versions that read no JSON with this code, and Codex, read standard error.
        assert_eq!((reply.code, reply.stderr.as_str()), (2, "Suspended. Why."));
        let (said, reply) = refused("PreToolUse", false);
        assert_eq!((said.get("continue"), reply.code), (None, 2), "only the tool is refused");
    }

    #[test]
    fn each_event_is_refused_in_its_own_form() {
        let check = |event: &str, code: u8, expect: Value| {
            let (said, reply) = refused(event, true);
            assert_eq!((said, reply.code), (expect, code), "{event}");
            assert_eq!(reply.stderr.is_empty(), code == 0, "{event}");
        };
        let end = json!({"continue": false, "stopReason": "Suspended. Why."});
        let blocked = with(block("Suspended. Why."), &end);
        check("UserPromptSubmit", 2, blocked.clone());
        check("PostToolUse", 0, blocked);
        for event in ["Stop", "SubagentStart", "SubagentStop", "SessionStart", "AfterAgent"] {
            check(event, 0, end.clone());
        }
        for event in ["PreCompact", "PostToolBatch", "OfTomorrow"] {
            check(event, 2, end.clone());
        }
        let deny = json!({"decision": "deny", "reason": "Suspended. Why."});
        check("BeforeTool", 0, with(deny.clone(), &end));
        check("BeforeModel", 0, with(deny, &end));
        check(
            "preToolUse",
            2,
            json!({"permission": "deny", "user_message": "Suspended.", "agent_message": "Suspended. Why."}),
        );
        let prompt = json!({"continue": false, "user_message": "Suspended. Why."});
        check("beforeSubmitPrompt", 0, prompt);
        let (said, _) = refused("PermissionRequest", true);
        assert_eq!(said["hookSpecificOutput"]["decision"]["behavior"], "deny");
    }

    #[test]
    fn what_cannot_be_refused_only_gets_a_word_beside_it() {
        let (said, reply) = refused("SessionEnd", true);
        assert_eq!((said, reply.code), (Value::Null, 0));
        assert!(!reply.stderr.is_empty());
    }

    /// To say `allow` would overrule a person's own permissions.
    #[test]
    fn to_let_go_is_to_say_nothing() {
        assert_eq!(Reply::go(), Reply { stdout: String::new(), stderr: String::new(), code: 0 });
    }
}
