//! `allowlist`.

use std::process::ExitCode;

use estoppel_api::Allowlist;

use crate::{
    args::{AllowlistCommand, Connect},
    error::Result,
    output::{Output, table},
};

/// `estoppel allowlist`.
pub(crate) async fn allowlist(
    command: AllowlistCommand,
    connect: &Connect,
    output: &Output,
) -> Result {
    let client = connect.client()?;
    match command {
        AllowlistCommand::Set { domains } => {
            let list = Allowlist { domains: Some(domains) };
            output.answer(&client.set_allowlist(&list).await?, lines)?;
        }
        AllowlistCommand::Clear => {
            output.answer(&client.set_allowlist(&Allowlist { domains: None }).await?, lines)?;
        }
        AllowlistCommand::Show => output.answer(&client.allowlist().await?, lines)?,
        AllowlistCommand::Suggest => {
            output.answer(&client.allowlist_suggestions().await?, |suggestions| {
                let rows: Vec<Vec<String>> = suggestions
                    .iter()
                    .map(|line| {
                        vec![line.domain.clone(), line.flows.to_string(), line.sessions.to_string()]
                    })
                    .collect();
                table(&["domain", "flows", "sessions"], &rows)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(list: &Allowlist) -> String {
    match &list.domains {
        None => "no allowlist is set: egress is learned, and unlisted egress stops nobody\n\
                 see what was learned with `estoppel allowlist suggest`"
            .to_owned(),
        Some(domains) if domains.is_empty() => {
            "the allowlist is empty: nothing may be reached".to_owned()
        }
        Some(domains) => domains.join("\n"),
    }
}
