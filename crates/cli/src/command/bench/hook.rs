//! A coding agent's hook, from the start of its process to its end: what each step of an agent pays.
//! Beside it what any hook pays, a process that does nothing.

use std::{
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use estoppel_hook::{
    client::{self, Until},
    config::{Config, OnLost, deadline_ms, idle_seconds},
    input,
    wire::{Answer, Request},
};
use serde_json::{Value, json};

use super::{distribution, failed, served::Served};
use crate::error::Result;

/// Starts of each kind.
const RUNS: usize = 200;
/// A call of a tool, as Claude Code tells it.
const CALL: &[u8] = br#"{"session_id":"bench","transcript_path":"/t.jsonl","cwd":"/src","permission_mode":"default","hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":{"command":"cargo test --workspace","description":"Run the tests"},"tool_use_id":"toolu_bench"}"#;

/// Measures a hook whose resident process is there, and one that must start it.
pub(super) async fn run() -> Result<Value> {
    let served = Served::open("hook").await?;
    let state = std::env::temp_dir().join(format!("estoppel-bench-{}-hooks", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&state)?;
    let token_file = state.join("token");
    std::fs::write(&token_file, served.agent_token().await?)?;
    let config = Config {
        servers: format!("http://{}", served.address),
        token_file,
        ca_file: None,
        agent: "bench".to_owned(),
        user: "bench".to_owned(),
        on_lost: OnLost::Refuse,
        deadline_ms: deadline_ms(),
        idle_seconds: idle_seconds(),
        binary: std::env::current_exe()?,
    };
    std::fs::write(Config::file(&state), serde_json::to_vec(&config)?)?;
    let measured = measure(&state, &config);
    let ended = client::ask_running(&state, &Request::End, &Until::from_now(config.deadline()));
    ended.map_err(failed)?;
    // The resident process writes until its end.
    let _ = std::fs::remove_dir_all(&state);
    measured
}

fn measure(state: &Path, config: &Config) -> Result<Value> {
    let own = std::env::current_exe()?;
    let small = own.with_file_name("estoppel-hook");
    let hook = |program: &Path, role: Option<&str>| {
        let mut command = Command::new(program);
        command.args(role).arg("--state").arg(state);
        command
    };
    let (cold, _) = once(&mut hook(&small, None))?;
    let mut asked = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begun = Instant::now();
        let call = Box::new(input::parse(CALL).map_err(failed)?);
        let until = Until::from_now(config.deadline());
        let request = Request::Call { call, wait_ms: 0 };
        match client::ask(config, state, &request, &until).map_err(failed)? {
            Answer::Go => asked.push(begun.elapsed()),
            other => return Err(failed(anyhow::anyhow!("the hook answered {other:?}"))),
        }
    }
    Ok(json!({
        "warm": distribution(times(|| hook(&small, None))?),
        "warm_in_the_whole_binary": distribution(times(|| hook(&own, Some("hook")))?),
        "a_process_that_does_nothing": distribution(times(|| Command::new("true"))?),
        "the_question_alone": distribution(asked),
        "cold_us": cold.as_secs_f64() * 1e6,
        "binary_bytes": size(small)?,
        "whole_binary_bytes": size(own)?,
    }))
}

fn size(path: PathBuf) -> Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

fn times(command: impl Fn() -> Command) -> Result<Vec<Duration>> {
    (0..RUNS)
        .map(|_| {
            let (took, said) = once(&mut command())?;
            if said.is_empty() { Ok(took) } else { Err(failed(anyhow::anyhow!("it said {said}"))) }
        })
        .collect()
}

/// Runs a command with the call on its standard input: how long from its start to its end, and what
/// it said beyond that it may be.
fn once(command: &mut Command) -> Result<(Duration, String)> {
    let begun = Instant::now();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // `true` does not read it.
        let _ = stdin.write_all(CALL);
    }
    let output = child.wait_with_output()?;
    let took = begun.elapsed();
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        said.push_str(&output.status.to_string());
    }
    Ok((took, said))
}
