//! `break-glass`: files by which agents go on for a while although no server answers.

use std::{path::Path, process::ExitCode};

use estoppel_api::{BreakGlassMade, BreakGlassRequest, BreakGlassSummary};
use estoppel_model::{Clock as _, SystemClock};
use estoppel_server::StartError;

use crate::{
    args::{BreakGlassCommand, Connect, Expiry},
    error::{CommandError, Exit, Result},
    output::{Output, inline, table},
};

/// `estoppel break-glass`.
pub(crate) async fn break_glass(
    command: BreakGlassCommand,
    connect: &Connect,
    output: &Output,
) -> Result {
    match command {
        BreakGlassCommand::Create { until, use_max, reason, enforcer, tenant, data } => {
            let until = match until {
                Expiry::At(at) => at,
                Expiry::After(seconds) => {
                    SystemClock.now() + std::time::Duration::from_secs(seconds)
                }
                Expiry::Never => {
                    let error = "a break-glass ends: --until takes a time, or a span such as 7d";
                    return Err(CommandError::message(Exit::Usage, error));
                }
            };
            let use_seconds_max = Some(use_max.duration().as_secs());
            let request = BreakGlassRequest { until, use_seconds_max, reason, enforcer, tenant };
            let made = match data {
                None => connect.client()?.make_break_glass(&request).await?,
                Some(data) => local(&data, request)?,
            };
            let BreakGlassSummary { audience, until, .. } = &made.break_glass;
            let audience = inline(audience);
            output.note(&format!(
                "for {audience}, good until {until}, each for {use_max}; put it as break-glass.json into an \
                 enforcer's state folder"
            ));
            // The file alone on standard output, so that it can be written by `>`.
            output.answer(&made, |made| made.file.clone())?;
        }
        BreakGlassCommand::List => {
            output.answer(&connect.client()?.break_glasses().await?, |files| list(files))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(files: &[BreakGlassSummary]) -> String {
    if files.is_empty() {
        return "no break-glass file was made or used".to_owned();
    }
    let rows: Vec<Vec<String>> = files
        .iter()
        .map(|file| {
            let used: u64 = file.uses.iter().map(|used| used.used_seconds).sum();
            vec![
                file.id.to_string(),
                file.issued_by.to_string(),
                file.until.to_string(),
                file.audience.clone(),
                format!("{} enforcers, {used} s", file.uses.len()),
                file.reason.clone(),
            ]
        })
        .collect();
    table(&["id", "by", "until", "for", "used", "why"], &rows)
}

/// Makes a file from the key of a data folder. Who may read that is the server's owner.
fn local(data: &Path, request: BreakGlassRequest) -> Result<BreakGlassMade> {
    let actor = super::enforcer::local_actor()?;
    let made = estoppel_server::create_break_glass_locally(data, request, actor, SystemClock.now());
    made.map_err(|error| match error {
        StartError::BreakGlass(_) => CommandError::new(Exit::Usage, error),
        _ => CommandError::new(Exit::Failed, error),
    })
}
