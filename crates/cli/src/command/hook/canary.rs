//! The proof after an install: the command that stands in the settings refuses a canary.
//!
//! The command is read back from the settings and run by a shell, with the input that Claude Code
//! gives it. A session that the resident process was told to refuse must be refused, and another one
//! be let go: so it is not refused for another reason. What that does not prove is said: that a halt
//! comes from the server (`estoppel drill kill-switch` does, at this process too), and that the agent
//! calls its hooks.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use estoppel_hook::{
    answer::REFUSED,
    client::{self, Until},
    config::Config,
    settings::{self, Place, Source},
    wire::{Answer, Request, Standing},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::error::{CommandError, Exit, Result};

/// What a hook's process may take beyond its own deadline.
const BEYOND: Duration = Duration::from_secs(5);

/// What was tried.
#[derive(Debug, Serialize)]
pub(super) struct Proof {
    /// The command, as it stands in the settings.
    command: String,
    /// Whether it refused the canary, as Claude Code understands it.
    canary_refused: bool,
    /// Whether it let another session go.
    other_let_go: bool,
    /// The server that the hook's resident process is in step with.
    server: Option<String>,
    /// What else it said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

impl Proof {
    pub(super) const fn holds(&self) -> bool {
        self.canary_refused && self.other_let_go
    }

    /// The proof for people: what holds, and what it does not show.
    pub(super) fn lines(&self) -> Vec<String> {
        let inline = crate::output::inline;
        let word = |good| if good { "ok   " } else { "FAULT" };
        let mut lines = vec![
            format!(
                "{} the command of the settings refuses a canary session",
                word(self.canary_refused)
            ),
            match &self.server {
                Some(server) => format!("ok    it is in step with {}", inline(server)),
                None => {
                    "FAULT no server answers it: every step is refused until one does".to_owned()
                }
            },
            format!("{} it lets another session go", word(self.other_let_go)),
        ];
        lines.extend(self.problems.iter().map(|problem| format!("      {}", inline(problem))));
        lines.push(
            "not tried: that a halt comes from the server (`estoppel drill kill-switch` tries it, at \
             this hook too)"
                .to_owned(),
        );
        lines.push(
            "not tried: that Claude Code calls it: open a new session, and look at /hooks"
                .to_owned(),
        );
        lines
    }
}

/// Tries the hook that stands in the settings.
pub(super) fn prove(settings: &Path, state: &Path, config: &Config) -> Result<Proof> {
    let text = std::fs::read_to_string(settings)?;
    let source = Source { place: Place::User, path: String::new(), text };
    let installed = settings::installed(&[source]);
    let [hook] = installed.as_slice() else {
        let message = "the settings do not hold the hook that was written";
        return Err(CommandError::message(Exit::Failed, message));
    };
    let mut problems = Vec::new();
    let standing = standing(state, config);
    let server = match standing {
        Ok(standing) => standing.connected_to.filter(|_| standing.lease).or_else(|| {
            problems.extend(standing.problem);
            None
        }),
        Err(error) => {
            problems.push(format!("{error:#}"));
            None
        }
    };
    let canary = format!("estoppel-canary-{}", Uuid::now_v7());
    let asked = Request::Canary { session: canary.clone() };
    if let Err(error) = client::ask(config, state, &asked, &Until::from_now(config.deadline())) {
        problems.push(format!("{:#}", anyhow::Error::new(error)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let try_it = |event: &str, session: &str| {
        runtime.block_on(run(&hook.command, event, session, config.deadline() + BEYOND))
    };
    let refused = try_it("PreToolUse", &canary)?;
    let canary_refused = refused.code == Some(i32::from(REFUSED)) && refused.denies("canary");
    if !canary_refused {
        problems.push(refused.said());
    }
    let other = format!("estoppel-trial-{}", Uuid::now_v7());
    let let_go = try_it("PreToolUse", &other)?;
    let other_let_go = let_go.code == Some(0) && let_go.stdout.is_empty();
    if !other_let_go {
        problems.push(let_go.said());
    }
    // So that nobody waits for the trial's tool.
    try_it("SessionEnd", &other)?;
    Ok(Proof { command: hook.command.clone(), canary_refused, other_let_go, server, problems })
}

/// How the resident process stands, which is started where it is not there.
pub(super) fn standing(state: &Path, config: &Config) -> anyhow::Result<Standing> {
    let until = Until::from_now(config.deadline());
    let wait_ms = config.deadline_ms.saturating_mul(4) / 5;
    match client::ask(config, state, &Request::Standing { wait_ms }, &until)? {
        Answer::Standing(standing) => Ok(standing),
        other => Err(anyhow::anyhow!("the resident process answered {other:?}")),
    }
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Whether Claude Code reads a denial, for this reason.
    fn denies(&self, reason: &str) -> bool {
        let answer: Value = serde_json::from_str(&self.stdout).unwrap_or_default();
        let decision = &answer["hookSpecificOutput"];
        decision["permissionDecision"] == "deny"
            && decision["permissionDecisionReason"].as_str().is_some_and(|it| it.contains(reason))
            && self.stderr.contains(reason)
    }

    fn said(&self) -> String {
        let code =
            self.code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
        format!("{code}: {}{}", self.stderr.trim(), self.stdout.trim())
    }
}

/// Runs the command as Claude Code does: by a shell, with the event on standard input.
async fn run(command: &str, event: &str, session: &str, within: Duration) -> Result<Ran> {
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let input = json!({
        "session_id": session,
        "transcript_path": null,
        "cwd": folder.to_string_lossy(),
        "permission_mode": "default",
        "hook_event_name": event,
        "tool_name": "estoppel-trial",
        "tool_input": {},
        "tool_use_id": "toolu_estoppel_trial",
        "reason": "other",
    });
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says so by its code.
        let _ = stdin.write_all(input.to_string().as_bytes()).await;
    }
    let output = match tokio::time::timeout(within, child.wait_with_output()).await {
        Ok(output) => output?,
        Err(_) => {
            let message = format!("the hook did not end within {} s", within.as_secs());
            return Err(CommandError::message(Exit::Failed, message));
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Ran {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
