//! `token`.

use std::{path::Path, process::ExitCode};

use estoppel_api::{CredentialRequest, TokenMinted, TokenRequest};
use estoppel_model::{Clock as _, SystemClock};
use estoppel_server::StartError;

use crate::{
    args::{Connect, Expiry, TokenCommand},
    error::{CommandError, Exit, Result},
    output::{Output, table},
};

/// `estoppel token`.
pub(crate) async fn token(command: TokenCommand, connect: &Connect, output: &Output) -> Result {
    match command {
        TokenCommand::Create { name, role, tenant, expires, data } => {
            let (expires_at, lifetime_seconds) = match expires {
                Some(Expiry::At(at)) => (Some(at), None),
                Some(Expiry::After(seconds)) => (None, Some(seconds)),
                Some(Expiry::Never) | None => (None, None),
            };
            let never_expires = expires == Some(Expiry::Never);
            let request =
                TokenRequest { name, role, tenant, expires_at, lifetime_seconds, never_expires };
            let minted = match data {
                None => connect.client()?.mint_token(&request).await?,
                Some(data) => local(&data, &request)?,
            };
            // The token alone on standard output, so that `TOKEN=$(...)` works.
            let until = minted
                .expires_at
                .map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {at}"));
            output.note(&format!(
                "{} token {} for {} ({role}), {until}; it is shown this once",
                role.kind(),
                minted.id,
                request.name,
            ));
            output.answer(&minted, |minted| minted.token.clone())?;
        }
        TokenCommand::List => output.answer(&connect.client()?.tokens().await?, |tokens| {
            let or_dash = |at: &Option<estoppel_model::Timestamp>| {
                at.map_or_else(|| "-".to_owned(), |at| at.to_string())
            };
            let rows: Vec<Vec<String>> = tokens
                .iter()
                .map(|token| {
                    vec![
                        token.id.to_string(),
                        token.name.clone(),
                        token.kind.to_string(),
                        token.role.to_string(),
                        token.tenant.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                        or_dash(&token.expires_at),
                        or_dash(&token.last_used_at),
                        or_dash(&token.revoked_at),
                    ]
                })
                .collect();
            table(
                &["id", "name", "kind", "role", "tenant", "expires", "last used", "revoked"],
                &rows,
            )
        })?,
        TokenCommand::Revoke { id } => {
            connect.client()?.revoke_token(id).await?;
            output.answer(&serde_json::json!({ "revoked": id }), |_| format!("revoked {id}"))?;
        }
        TokenCommand::Gateway { subject } => {
            let request = CredentialRequest { subject: subject.subject(), seconds: None };
            let minted = connect.client()?.mint_credential(&request).await?;
            output.note(&format!(
                "good until {}; use it as the proxy's password: http://estoppel:CREDENTIAL@GATEWAY",
                minted.expires_at
            ));
            output.answer(&minted, |minted| minted.credential.clone())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a token in a data folder whose server is stopped. Who may read the folder is its owner.
fn local(data: &Path, request: &TokenRequest) -> Result<TokenMinted> {
    let actor = super::enforcer::local_actor()?;
    let made = estoppel_server::create_token_locally(data, request, &actor, SystemClock.now());
    made.map_err(|error| match error {
        StartError::Wish(_) => CommandError::new(Exit::Usage, error),
        StartError::Locked { .. } => CommandError::new(Exit::Conflict, error).hint(
            "stop it first: enforcers go on until their leases are over, halts stay in force",
        ),
        _ => CommandError::new(Exit::Failed, error),
    })
}
