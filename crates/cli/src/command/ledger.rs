//! `ledger`: works on the files alone, live or a copy, without a server.

use std::{path::Path, process::ExitCode};

use estoppel_ledger::{Checkpoint, Truncation, VerifyReport, verify};

use crate::{
    args::LedgerCommand,
    error::{CommandError, Exit, Result},
    output::Output,
};

/// `estoppel ledger`.
pub(crate) fn ledger(command: &LedgerCommand, output: &Output) -> Result {
    match command {
        LedgerCommand::Verify { data, checkpoint } => {
            verify_folder(data, checkpoint.as_deref(), output)
        }
        LedgerCommand::Checkpoint { data } => {
            let file = folder(data).join("checkpoint");
            let note = std::fs::read_to_string(&file).map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("`{}`", file.display()));
                CommandError::new(Exit::NotFound, error)
                    .hint("give the server's data folder with --data")
            })?;
            output.answer(&serde_json::json!({ "checkpoint": note }), |_| note.clone())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The ledger of a data folder, or the folder itself if it is a ledger's copy.
fn folder(data: &Path) -> std::path::PathBuf {
    let inner = data.join("ledger");
    if inner.is_dir() { inner } else { data.to_owned() }
}

fn verify_folder(data: &Path, checkpoint: Option<&Path>, output: &Output) -> Result {
    let kept = match checkpoint {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                let error =
                    anyhow::Error::new(error).context(format!("checkpoint `{}`", file.display()));
                CommandError::new(Exit::Usage, error)
            })?;
            let parsed = Checkpoint::parse(&text).map_err(|error| {
                let error =
                    anyhow::Error::new(error).context(format!("checkpoint `{}`", file.display()));
                CommandError::new(Exit::Usage, error)
            })?;
            Some(parsed)
        }
    };
    let report = verify(&folder(data), kept.as_ref()).map_err(|error| {
        CommandError::new(Exit::Failed, error).hint("give the server's data folder with --data")
    })?;
    let damaged = !report.is_intact();
    output.answer(&report, lines)?;
    Ok(if damaged { Exit::Damaged.into() } else { ExitCode::SUCCESS })
}

fn lines(report: &VerifyReport) -> String {
    let mut lines = vec![format!("{} records", report.records)];
    if let Some(key) = &report.key {
        lines.push(format!("key {key}"));
    }
    lines.extend(report.damages.iter().map(|damage| format!("DAMAGED: {damage}")));
    let unlisted = report.damages_found.saturating_sub(report.damages.len() as u64);
    if unlisted > 0 {
        lines.push(format!("and {unlisted} more"));
    }
    lines.push(match report.truncation {
        Truncation::CannotBeSeen => {
            "no checkpoint was given: records cut off at the end cannot be seen. \
             Give one that was kept elsewhere (a page carries it) with --checkpoint"
                .to_owned()
        }
        Truncation::NotBefore { size } => {
            format!("nothing is missing of the {size} records that the given checkpoint covers")
        }
        Truncation::Contradicted => "the given checkpoint does not fit this ledger".to_owned(),
    });
    if report.is_intact() {
        lines.push("intact".to_owned());
    }
    lines.join("\n")
}
