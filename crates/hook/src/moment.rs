//! Which moments agents tell of, by the names of each agent's documentation, and in which form each
//! of them takes a refusal.
//!
//! The forms differ where it matters: exit code 2 refuses a tool call of Claude Code, but at the end
//! of a turn it makes Claude go on. So each event has its own row. An event that no row names is
//! refused in the form that stops most.

/// Whose words an event is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Claude Code; Codex CLI and VS Code use its names and its exit codes.
    ClaudeCode,
    /// Gemini CLI.
    GeminiCli,
    /// Cursor.
    Cursor,
}

/// What is about to happen, or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A tool is about to be called.
    BeforeTool,
    /// A tool was called; what came out has not gone back to the model.
    AfterTool,
    /// A person's prompt is about to be worked on.
    Prompt,
    /// The agent's turn ends.
    TurnEnd,
    /// A sub-agent ends.
    SubagentEnd,
    /// The session ends.
    SessionEnd,
    /// Anything else, such as the start of a session or a call of the model.
    Other,
}

/// How an agent is told that something must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Claude Code, a tool: `permissionDecision`, and exit code 2.
    Permission,
    /// Claude Code, a permission: a decision alone, since its exit code is not read.
    PermissionRequest,
    /// Claude Code, a prompt: `decision: block`, and exit code 2.
    Block,
    /// Claude Code, what came out of a tool: `decision: block`, without an exit code.
    Withhold,
    /// `continue: false`, and exit code 2, with the reason on standard error.
    Exit,
    /// `continue: false` alone: here exit code 2 would make the agent go on.
    Continue,
    /// Gemini CLI: `decision: deny`.
    Deny,
    /// Cursor, a tool: `permission: deny`, and exit code 2.
    CursorPermission,
    /// Cursor, a prompt: `continue: false` with a message.
    CursorPrompt,
    /// It cannot be refused.
    Told,
}

/// A row: an event's name, whose it is, what it means, and how it is refused.
type Row = (&'static str, Dialect, Moment, Form);

const ROWS: [Row; 43] = {
    use {Dialect as D, Form as F, Moment as M};
    [
        // https://code.claude.com/docs/en/hooks, "Exit code 2 behavior per event".
        ("PreToolUse", D::ClaudeCode, M::BeforeTool, F::Permission),
        ("PostToolUse", D::ClaudeCode, M::AfterTool, F::Withhold),
        ("PostToolUseFailure", D::ClaudeCode, M::AfterTool, F::Withhold),
        ("PostToolBatch", D::ClaudeCode, M::Other, F::Exit),
        ("PermissionRequest", D::ClaudeCode, M::Other, F::PermissionRequest),
        ("UserPromptSubmit", D::ClaudeCode, M::Prompt, F::Block),
        ("UserPromptExpansion", D::ClaudeCode, M::Other, F::Exit),
        ("Stop", D::ClaudeCode, M::TurnEnd, F::Continue),
        ("StopFailure", D::ClaudeCode, M::TurnEnd, F::Told),
        ("SubagentStart", D::ClaudeCode, M::Other, F::Continue),
        ("SubagentStop", D::ClaudeCode, M::SubagentEnd, F::Continue),
        ("SessionStart", D::ClaudeCode, M::Other, F::Continue),
        ("SessionEnd", D::ClaudeCode, M::SessionEnd, F::Told),
        ("PreCompact", D::ClaudeCode, M::Other, F::Exit),
        ("PostCompact", D::ClaudeCode, M::Other, F::Told),
        ("ConfigChange", D::ClaudeCode, M::Other, F::Exit),
        ("TaskCreated", D::ClaudeCode, M::Other, F::Exit),
        ("TaskCompleted", D::ClaudeCode, M::Other, F::Continue),
        ("TeammateIdle", D::ClaudeCode, M::Other, F::Continue),
        ("Elicitation", D::ClaudeCode, M::Other, F::Exit),
        ("Notification", D::ClaudeCode, M::Other, F::Told),
        ("InstructionsLoaded", D::ClaudeCode, M::Other, F::Told),
        // https://geminicli.com/docs/hooks/reference; its SessionStart, SessionEnd and Notification
        // have the names above and ignore what is answered.
        ("BeforeTool", D::GeminiCli, M::BeforeTool, F::Deny),
        ("AfterTool", D::GeminiCli, M::AfterTool, F::Deny),
        ("BeforeAgent", D::GeminiCli, M::Prompt, F::Deny),
        ("AfterAgent", D::GeminiCli, M::TurnEnd, F::Continue),
        ("BeforeModel", D::GeminiCli, M::Other, F::Deny),
        ("AfterModel", D::GeminiCli, M::Other, F::Deny),
        ("BeforeToolSelection", D::GeminiCli, M::Other, F::Told),
        ("PreCompress", D::GeminiCli, M::Other, F::Told),
        // https://cursor.com/docs/hooks.
        ("preToolUse", D::Cursor, M::BeforeTool, F::CursorPermission),
        ("postToolUse", D::Cursor, M::AfterTool, F::Told),
        ("postToolUseFailure", D::Cursor, M::AfterTool, F::Told),
        ("beforeShellExecution", D::Cursor, M::Other, F::CursorPermission),
        ("beforeMCPExecution", D::Cursor, M::Other, F::CursorPermission),
        ("beforeReadFile", D::Cursor, M::Other, F::CursorPermission),
        ("beforeTabFileRead", D::Cursor, M::Other, F::CursorPermission),
        ("subagentStart", D::Cursor, M::Other, F::CursorPermission),
        ("subagentStop", D::Cursor, M::SubagentEnd, F::Told),
        ("beforeSubmitPrompt", D::Cursor, M::Prompt, F::CursorPrompt),
        ("stop", D::Cursor, M::TurnEnd, F::Told),
        ("sessionStart", D::Cursor, M::Other, F::Told),
        ("sessionEnd", D::Cursor, M::SessionEnd, F::Told),
    ]
};

/// What an event's name says. Returns nothing for a name that no documentation has.
pub fn of(event: &str) -> Option<(Dialect, Moment, Form)> {
    let row = ROWS.iter().find(|(name, ..)| *name == event)?;
    Some((row.1, row.2, row.3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_once() {
        for (index, (name, ..)) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|(other, ..)| other != name), "{name}");
        }
    }

    /// At the end of a turn exit code 2 makes Claude Code go on (its page on hooks).
    #[test]
    fn nothing_that_ends_is_refused_by_an_exit_code() {
        for (name, _, moment, form) in ROWS {
            let ends = matches!(moment, Moment::TurnEnd | Moment::SubagentEnd | Moment::SessionEnd);
            let named = matches!(name, "TaskCompleted" | "TeammateIdle");
            assert!(!(ends || named) || matches!(form, Form::Continue | Form::Told), "{name}");
        }
    }

    #[test]
    fn every_call_of_a_tool_and_every_prompt_can_be_refused() {
        for (name, _, moment, form) in ROWS {
            let before = matches!(moment, Moment::BeforeTool | Moment::Prompt);
            assert!(!before || form != Form::Told, "{name}");
        }
    }
}
