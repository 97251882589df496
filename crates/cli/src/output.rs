//! What a command prints: answers on standard output, all else on standard error.
//!
//! With `--json` standard output is exactly one JSON document, also of an error. Text of strangers
//! is printed through [`inline`] alone, so that no escape code of an agent reaches a terminal.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::error::ErrorKind;
use estoppel_model::Untrusted;
use serde::Serialize;
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{
    args::LogFormat,
    error::{CommandError, Exit},
};

/// Where a command's answer goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether scripts read this.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints the answer: as JSON, or as the lines that `human` makes of it.
    pub(crate) fn answer<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), CommandError> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { human(value) };
        self.write(text.trim_end())
    }

    /// Prints text as it is, such as a report.
    pub(crate) fn write(self, text: &str) -> Result<(), CommandError> {
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            // Whoever reads has seen enough, as `head` does.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }

    /// Says something beside the answer, such as progress; never in the way of a script.
    pub(crate) fn note(self, text: &str) {
        // Standard error that is closed cannot be told so.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Prints a failure and gives its exit code.
    pub(crate) fn error(self, failed: &CommandError) -> ExitCode {
        let mut causes = failed.error.chain().map(ToString::to_string);
        let first = causes.next().unwrap_or_default();
        // A source is printed once: some libraries repeat it in their own message.
        let mut said = vec![first];
        for cause in causes {
            if !said.iter().any(|text| text.contains(&cause)) {
                said.push(cause);
            }
        }
        let said: Vec<String> = said.iter().map(|text| inline(text)).collect();
        if self.json {
            let document = serde_json::json!({
                "error": said.join(": "), "hints": failed.hints, "exit_code": failed.exit as u8
            });
            let _ = self.write(&document.to_string());
        } else {
            self.note(&format!("error: {}", said.join("\n  because ")));
            for hint in &failed.hints {
                self.note(&format!("hint: {}", inline(hint)));
            }
        }
        failed.exit.into()
    }
}

/// Prints what is wrong with the arguments, or the help that was asked for, and gives the exit code.
pub(crate) fn misuse(wrong: &clap::Error, words: impl Iterator<Item = OsString>) -> ExitCode {
    // What follows `--` is another program's.
    let json = words.take_while(|word| word != "--").any(|word| word == "--json");
    if json && wrong.use_stderr() {
        return Output::new(true).error(&misused(wrong));
    }
    // Standard output that is closed cannot be told so.
    let _ = wrong.print();
    ExitCode::from(u8::try_from(wrong.exit_code()).unwrap_or(Exit::Usage as u8))
}

/// The same for scripts: clap's paragraphs, of which the first is the error and tips are hints.
fn misused(wrong: &clap::Error) -> CommandError {
    if wrong.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return CommandError::message(Exit::Usage, "a subcommand is missing")
            .hint("`--help` lists them");
    }
    let text = wrong.render().to_string();
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = text.split("\n\n").map(line);
    let first = paragraphs.next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
    let mut error = CommandError::message(Exit::Usage, first);
    error.hints.extend(
        paragraphs
            .filter(|said| !said.is_empty())
            .map(|said| said.strip_prefix("tip: ").map_or(said.clone(), str::to_owned)),
    );
    error
}

/// A stranger's text for one line of a terminal.
pub(crate) fn inline(text: &str) -> String {
    Untrusted::new(text).inline(2_000)
}

/// Lines of columns, each as wide as its widest cell; cells are made inert.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| Untrusted::new(cell).inline(120)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([header.get(column).map_or(0, |name| name.chars().count())])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Starts the log on standard error. `filter` as in RUST_LOG; absent: warnings.
pub(crate) fn start_log(filter: Option<&str>, format: LogFormat) {
    let filter =
        EnvFilter::try_new(filter.unwrap_or("warn")).unwrap_or_else(|_| EnvFilter::new("warn"));
    let layer = tracing_subscriber::fmt::layer().with_target(false).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.with_writer(|| OneLine(std::io::stderr())).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    // A second subscriber can only come from a test; the first one stays.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// Longest line of the log, in characters.
const LOG_CHARS_MAX: usize = 16_384;

/// Writes each event of the log as one line, whatever its fields hold: what an agent says can
/// neither begin a line of its own nor reach the terminal. The log hands in one event at a time.
struct OneLine<W>(W);

impl<W: std::io::Write> std::io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
        let line = Untrusted::new(text.as_ref()).inline(LOG_CHARS_MAX);
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant inert.
    #[test]
    fn an_event_of_the_log_is_one_line() {
        let mut out = Vec::new();
        OneLine(&mut out).write_all(b"WARN said \x1b[2J\nERROR forged\xe2\x80\xae\n").unwrap();
        let expect = "WARN said \\u{1b}[2J\\u{a}ERROR forged\\u{202e}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expect);
        let mut long = Vec::new();
        OneLine(&mut long).write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert!(long.len() < LOG_CHARS_MAX + 8);
    }

    /// The arguments are a stranger's text, too.
    #[test]
    fn wrong_arguments_are_an_error_with_hints() {
        use clap::Parser as _;
        let misuse = |words: &[&str]| {
            misused(&crate::args::Args::try_parse_from(words).map(drop).unwrap_err())
        };
        let wrong = misuse(&["estoppel", "halt", "global", "--reson", "r"]);
        assert_eq!(wrong.exit, Exit::Usage);
        assert_eq!(wrong.error.to_string(), "unexpected argument '--reson' found");
        let hints = wrong.hints.join("; ");
        assert!(hints.contains("a similar argument exists: '--reason'"), "{hints}");
        assert!(hints.contains("Usage: estoppel halt"), "{hints}");
        let none = misuse(&["estoppel", "incident"]);
        assert_eq!(none.error.to_string(), "a subcommand is missing");
        let several = misuse(&["estoppel", "halt", "--wait", "--plan"]);
        assert!(!several.error.to_string().contains('\n'), "{}", several.error);
    }

    #[test]
    fn a_table_lines_up_and_is_inert() {
        let rows = vec![
            vec!["a".to_owned(), "\u{1b}[2Jx".to_owned()],
            vec!["bbb".to_owned(), "y".to_owned()],
        ];
        assert_eq!(table(&["id", "text"], &rows), "id   text\na    \\u{1b}[2Jx\nbbb  y");
    }
}
