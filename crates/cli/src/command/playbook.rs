//! `playbook`.

use std::process::ExitCode;

use estoppel_api::{ApproveRequest, RunSummary};

use crate::{
    args::{Connect, PlaybookCommand},
    error::Result,
    output::{Output, inline},
};

/// `estoppel playbook`.
pub(crate) async fn playbook(
    command: PlaybookCommand,
    connect: &Connect,
    output: &Output,
) -> Result {
    let client = connect.client()?;
    let (run, step, approve, reason) = match command {
        PlaybookCommand::Runs => {
            output.answer(&client.runs().await?, |runs| match runs.as_slice() {
                [] => "no runs".to_owned(),
                runs => runs.iter().map(lines).collect::<Vec<_>>().join("\n"),
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        PlaybookCommand::Approve { run, step, reason } => (run, step, true, reason),
        PlaybookCommand::Decline { run, step, reason } => (run, step, false, reason),
    };
    let request = ApproveRequest { approve, reason };
    let run = match step {
        None => client.approve(run, &request).await?,
        Some(step) => client.approve_step(run, &step, &request).await?,
    };
    output.answer(&run, lines)?;
    Ok(ExitCode::SUCCESS)
}

fn lines(run: &RunSummary) -> String {
    let mut lines =
        vec![format!("{} {}: {} since {}", run.id, run.playbook, run.state, run.started_at)];
    lines.extend(run.steps.iter().map(|step| {
        let observed = step.observed.as_deref().unwrap_or_default();
        format!("  {:14} {:10} {:14} {}", step.id, step.action, step.state, inline(observed))
    }));
    lines.join("\n")
}
