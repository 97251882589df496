//! `bench`: measures this build on this machine, beside what a user would pick instead, and prints
//! JSON. Ratios hold; absolute times of a shared machine are noise.

mod check;
mod fleet;
mod guards;
mod hook;
mod scale;
mod served;
mod start;
mod swarm;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    args::BenchArgs,
    error::{CommandError, Exit, Result},
    output::Output,
};

const ALL: [&str; 8] = ["check", "hook", "halt", "scale", "detect", "ingest", "start", "leak"];

pub(super) use guards::main as guards;
pub(super) use swarm::main as swarm;

/// `estoppel bench`.
pub(crate) fn bench(args: &BenchArgs, output: &Output) -> Result {
    if let Some(unknown) = args.what.iter().find(|what| !ALL.contains(&what.as_str())) {
        let message =
            format!("`{}` is no benchmark: {}", crate::output::inline(unknown), ALL.join(", "));
        return Err(CommandError::message(Exit::Usage, message));
    }
    let wanted = |what: &str| args.what.is_empty() || args.what.iter().any(|wanted| wanted == what);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut results = serde_json::Map::new();
    for what in ALL.into_iter().filter(|what| wanted(what)) {
        output.note(&format!("estoppel bench: {what} ..."));
        let result = match what {
            "check" => check::run()?,
            "hook" => runtime.block_on(hook::run())?,
            "halt" => runtime.block_on(scale::halt(args.guards))?,
            "scale" => runtime.block_on(scale::scale(args.subscribers))?,
            "detect" => runtime.block_on(fleet::detect())?,
            "ingest" => runtime.block_on(fleet::ingest())?,
            "start" => runtime.block_on(start::run(args.records))?,
            _ => leak()?,
        };
        results.insert(what.to_owned(), result);
    }
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    results.insert("profile".to_owned(), profile.into());
    // Scripts read it, with or without --json.
    output.write(&serde_json::to_string_pretty(&Value::from(results))?)?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes that leak in the demo, end to end.
fn leak() -> Result<Value> {
    let mut plays = Vec::new();
    for enforce in [false, true] {
        let folder =
            std::env::temp_dir().join(format!("estoppel-bench-{}-{enforce}", std::process::id()));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--json", "demo", "--folder"]).arg(&folder);
        if enforce {
            command.arg("--enforce");
        }
        let played = command.output()?;
        let played: Value = serde_json::from_slice(&played.stdout)?;
        std::fs::remove_dir_all(&folder)?;
        plays.push(json!({
            "mode": if enforce { "enforce" } else { "observe" },
            "bytes_at_attacker": played["bytes_at_attacker"],
            "bytes_after_settled": played["bytes_after_settled"],
            "timeline": played["timeline"],
        }));
    }
    Ok(plays.into())
}

fn failed(error: impl Into<anyhow::Error>) -> CommandError {
    CommandError::new(Exit::Failed, error)
}

/// What of many durations people ask for, in microseconds.
fn distribution(mut samples: Vec<Duration>) -> Value {
    samples.sort_unstable();
    let at = |share: f64| {
        let last = samples.len().saturating_sub(1);
        let index = (share * last as f64).round() as usize;
        samples.get(index).map(|sample| sample.as_secs_f64() * 1e6)
    };
    json!({ "count": samples.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0) })
}

/// Runs something, and says how long it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed())
}
