//! `backup` and `restore`: work on the files alone.

use std::{path::Path, process::ExitCode};

use estoppel_model::{Clock as _, SystemClock};
use estoppel_server::backup::{self, Backup, BackupError};

use crate::{
    args::{BackupArgs, BackupCommand},
    error::{CommandError, Exit, Result},
    output::Output,
};

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        let exit = match &error {
            BackupError::NoData { .. } | BackupError::NoBackup { .. } => Exit::NotFound,
            BackupError::NotEmpty { .. } => Exit::Conflict,
            BackupError::Damaged { .. } | BackupError::List { .. } => Exit::Damaged,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

/// `estoppel backup`.
pub(crate) fn backup(args: &BackupArgs, output: &Output) -> Result {
    match (&args.command, &args.to) {
        (Some(BackupCommand::Verify { from }), _) => {
            let found = backup::verify(from)?;
            output
                .answer(&found, |found| format!("{} is whole: {}", from.display(), what(found)))?;
        }
        (None, Some(to)) => {
            let made = backup::make(&args.data, to, SystemClock.now())?;
            output.note("it holds the server's key and tokens, not encrypted: keep it as safe");
            output.answer(&made, |made| format!("{}: {}", to.display(), what(made)))?;
        }
        // The arguments ask for one of the two.
        (None, None) => return Err(CommandError::message(Exit::Usage, "give a folder with --to")),
    }
    Ok(ExitCode::SUCCESS)
}

/// `estoppel restore`.
pub(crate) fn restore(from: &Path, data: &Path, output: &Output) -> Result {
    let restored = backup::restore(from, data)?;
    output.note(
        "halts that were given after it was made come back from the enforcers that have them; \
         tokens that were revoked since are good again",
    );
    output.answer(&restored, |restored| format!("{}: {}", data.display(), what(restored)))?;
    Ok(ExitCode::SUCCESS)
}

fn what(backup: &Backup) -> String {
    let bytes: u64 = backup.files.values().map(|file| file.bytes).sum();
    format!(
        "{} files, {bytes} bytes, {} records of the ledger, made at {}",
        backup.files.len(),
        backup.ledger_records,
        backup.made_at
    )
}
