//! `simulate`: replays one seed with a trace, or runs many and says what happened in them.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Instant,
};

use estoppel_simulation::{Bug, Failure, Scenario, fleet, minimise, run_many, run_scenario};

const USAGE: &str = "\
simulate SEED [--planted BUG]                      replay one seed, with a trace
simulate --seeds N [--from SEED] [--planted BUG]   run many
simulate --fleet N [--from SEED]                   one server and N enforcers: what they cost, as JSON

    simulate 42
    simulate --seeds 100000
    simulate --seeds 500 --planted halt-expires
    simulate --fleet 100000

Ends with status 1 when an invariant is broken, and says which and how to replay it.
";

fn main() -> ExitCode {
    let output = match Order::read(std::env::args().skip(1)) {
        Ok(Order::One { seed, planted }) => one(seed, planted),
        Ok(Order::Many { seeds, from, planted }) => many(seeds, from, planted),
        Ok(Order::Fleet { enforcers, from }) => costs(enforcers, from),
        Ok(Order::Help) => Ok(USAGE.to_owned()),
        Err(wrong) => Err(format!("simulate: {wrong}\n\n{USAGE}")),
    };
    let (text, code) = match output {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    // Whoever reads no longer wants to know.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}

/// What is asked for.
enum Order {
    Help,
    One { seed: u64, planted: Option<Bug> },
    Many { seeds: u64, from: u64, planted: Option<Bug> },
    Fleet { enforcers: u64, from: u64 },
}

impl Order {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut seed, mut seeds, mut enforcers) = (None, None, None);
        let (mut from, mut planted) = (0, None);
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
            match argument.as_str() {
                "--help" | "-h" => return Ok(Self::Help),
                "--seeds" => seeds = Some(number(&value()?)?),
                "--fleet" => enforcers = Some(number(&value()?)?),
                "--from" => from = number(&value()?)?,
                "--planted" => planted = Some(bug(&value()?)?),
                other => seed = Some(number(other)?),
            }
        }
        match (seed, seeds, enforcers) {
            (Some(seed), None, None) => Ok(Self::One { seed, planted }),
            (None, Some(seeds), None) => Ok(Self::Many { seeds, from, planted }),
            (None, None, Some(enforcers)) if planted.is_none() => {
                Ok(Self::Fleet { enforcers, from })
            }
            (None, None, Some(_)) => Err("nothing is planted in a fleet".to_owned()),
            _ => Err("give a seed, `--seeds` or `--fleet`".to_owned()),
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn bug(name: &str) -> Result<Bug, String> {
    let names = || Bug::ALL.map(Bug::name).join(", ");
    Bug::ALL
        .into_iter()
        .find(|bug| bug.name() == name)
        .ok_or_else(|| format!("`{name}` is no planted bug: {}", names()))
}

/// Replays a seed; of a failure also the shortest scenario that was found to fail alike.
fn one(seed: u64, planted: Option<Bug>) -> Result<String, String> {
    let scenario = Scenario::of(seed);
    let report = run_scenario(seed, &scenario, planted, true);
    let mut text = format!("seed {seed}: {scenario}");
    text.extend(report.trace.iter().map(|line| format!("{line}\n")));
    let Some((_, failure)) = report.failure else { return Ok(format!("{text}nothing is wrong\n")) };
    let shortest = minimise(seed, &scenario, planted, &failure);
    let again = run_scenario(seed, &shortest, planted, true);
    text.push_str("\nThe shortest that was found to fail alike: ");
    text.push_str(&shortest.to_string());
    text.extend(again.trace.iter().map(|line| format!("{line}\n")));
    Err(text)
}

fn many(seeds: u64, from: u64, planted: Option<Bug>) -> Result<String, String> {
    let began = Instant::now();
    let (coverage, failed) = run_many(from..from + seeds, planted);
    let mut text = format!("{coverage}{:<24}{:>14.1?}\n", "took", began.elapsed());
    if failed.is_empty() {
        return Ok(text);
    }
    for (seed, failure) in failed.iter().take(10) {
        text.push_str(&line(*seed, failure));
    }
    // Writing to a text cannot fail.
    let _ = writeln!(text, "{} of {seeds} seeds failed", failed.len());
    Err(text)
}

/// What a fleet costs; or, on standard output all the same, what is wrong with it.
fn costs(enforcers: u64, from: u64) -> Result<String, String> {
    let report = fleet(usize::try_from(enforcers).unwrap_or(usize::MAX), from)?;
    let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
    Ok(format!("{text}\n"))
}

fn line(seed: u64, failure: &Failure) -> String {
    format!("seed {seed}: {failure}\n    replay it: ./dev simulate {seed}\n")
}
