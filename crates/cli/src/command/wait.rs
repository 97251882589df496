//! `halt --wait`: follows a halt until everybody has settled, and says how that came about.
//!
//! On a terminal one line is rewritten; elsewhere each change is a line. Whatever ends the wait, the
//! halt stays in force: only a release ends it.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use estoppel_api::{Client, ClientError, EnforcerProgress, HaltAccepted, HaltState, HaltStatus};

use super::status;
use crate::{
    error::{Exit, Result},
    output::Output,
};

/// How often it asks: first, and later.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// Follows a halt for at most `limit`.
pub(super) async fn wait(
    client: &Client,
    accepted: &HaltAccepted,
    limit: Duration,
    output: &Output,
) -> Result {
    let mut line = Line::new(output);
    let begun = Instant::now();
    let mut poll = POLL.0;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let found = loop {
        match client.halt_status(accepted.id).await {
            Ok(found) => {
                line.show(begun.elapsed(), &progress(&found));
                let done = !matches!(found.state, HaltState::Sent | HaltState::Refusing);
                if done || begun.elapsed() >= limit {
                    break found;
                }
            }
            // The halt is in force; only the view of it is lost for a moment.
            Err(error @ ClientError::Unreachable { .. }) if begun.elapsed() < limit => {
                line.show(begun.elapsed(), &format!("{error}; the halt is in force"));
            }
            Err(error) => {
                line.end();
                return Err(error.into());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            _ = &mut interrupted => {
                line.end();
                output.note(&format!(
                    "the halt stays in force: only `estoppel release` ends it\nfollow it with `estoppel status --halt {}`",
                    accepted.id
                ));
                return Ok(ExitCode::from(Exit::Interrupted));
            }
        }
        poll = (poll * 2).min(POLL.1);
    };
    line.end();
    output.answer(&found, |found| format!("{}\n{}", status::halt_lines(found), summary(found)))?;
    Ok(code(&found))
}

/// The line of progress.
struct Line {
    shown: String,
    rewrites: bool,
    silent: bool,
}

impl Line {
    fn new(output: &Output) -> Self {
        let rewrites = std::io::stderr().is_terminal();
        Self { shown: String::new(), rewrites, silent: output.is_json() }
    }

    fn show(&mut self, elapsed: Duration, text: &str) {
        if self.silent || (self.shown == text && !self.rewrites) {
            return;
        }
        text.clone_into(&mut self.shown);
        let line = format!("{:7.3} s  {}", elapsed.as_secs_f64(), crate::output::inline(text));
        let mut stderr = std::io::stderr().lock();
        // Standard error that is closed cannot be told so.
        let _ = if self.rewrites {
            write!(stderr, "\r\u{1b}[K{line}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{line}")
        };
    }

    fn end(&self) {
        if self.rewrites && !self.silent && !self.shown.is_empty() {
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}

/// One line on how far a halt is.
fn progress(status: &HaltStatus) -> String {
    let mut line = status::counts(status);
    if let Some(until) = status.unknown_until {
        line.push_str("; ");
        line.push_str(&status::unknown(until));
    }
    line
}

fn is_stuck(enforcer: &EnforcerProgress) -> bool {
    let stuck = enforcer.settlement.get("not_interruptible");
    enforcer.expected && stuck.and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty())
}

/// What it came to, in a sentence.
fn summary(status: &HaltStatus) -> String {
    let slowest = status
        .enforcers
        .iter()
        .filter(|it| it.expected)
        .filter_map(|it| it.settled_after_us)
        .max()
        .map_or_else(String::new, |us| {
            format!(", the slowest after {:.1} ms", us as f64 / 1_000.0)
        });
    let stuck = status.enforcers.iter().filter(|it| is_stuck(it)).count();
    let over = status.settled + status.by_lease + status.gone;
    let waiting = status.expected.saturating_sub(over);
    if let (Some(until), false, 0) =
        (status.unknown_until, status.state == HaltState::Released, waiting)
    {
        return format!(
            "NOT SETTLED: the {} enforcers that are known have settled, or have no lease, but {}",
            status.expected,
            status::unknown(until)
        );
    }
    match status.state {
        HaltState::Released => "released meanwhile".to_owned(),
        _ if waiting > 0 => format!(
            "NOT SETTLED: {waiting} of {} enforcers have not settled; each refuses at the latest when its lease is over",
            status.expected
        ),
        HaltState::Unsettled => format!(
            "carried out, but {} of {} enforcers refused and were gone before they settled: their leases stop them, and what became of their work in flight is not known",
            status.gone, status.expected
        ),
        _ if stuck > 0 => format!(
            "settled, but {stuck} enforcers name work that could not be interrupted{slowest}"
        ),
        _ if let Some(until) = status.break_glass_until => format!(
            "settled: {} confirmed{slowest}; {} did not answer, and {}",
            status.settled,
            status.by_lease,
            status::break_glass(until)
        ),
        _ if status.by_lease > 0 => format!(
            "settled: {} confirmed{slowest}; {} did not answer and are stopped by their leases",
            status.settled, status.by_lease
        ),
        _ if status.expected == 0 => "in force; no enforcer was connected".to_owned(),
        _ => format!("settled: all {} confirmed{slowest}", status.settled),
    }
}

fn code(status: &HaltStatus) -> ExitCode {
    match status.state {
        HaltState::Released => ExitCode::SUCCESS,
        HaltState::Unsettled => Exit::Unsettled.into(),
        HaltState::Settled if status.enforcers.iter().any(is_stuck) => {
            Exit::NotInterruptible.into()
        }
        HaltState::Settled if status.by_lease > 0 => Exit::ByLease.into(),
        HaltState::Settled => ExitCode::SUCCESS,
        HaltState::Sent | HaltState::Refusing => Exit::NotSettled.into(),
    }
}
