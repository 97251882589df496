//! `token`.

use std::process::ExitCode;

use estoppel_api::{CredentialRequest, TokenRequest};

use crate::{
    args::{Connect, TokenCommand},
    error::Result,
    output::{Output, table},
};

/// `estoppel token`.
pub(crate) async fn token(command: TokenCommand, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    match command {
        TokenCommand::Mint { name, role, tenant, expires } => {
            let request = TokenRequest { name, role, tenant, expires_at: expires };
            let minted = client.mint_token(&request).await?;
            // The token alone on standard output, so that `TOKEN=$(...)` works.
            output.note(&format!(
                "token {} for {} ({role}){}; it is shown this once",
                minted.id,
                request.name,
                minted.expires_at.map_or_else(String::new, |at| format!(", until {at}"))
            ));
            output.answer(&minted, |minted| minted.token.clone())?;
        }
        TokenCommand::List => output.answer(&client.tokens().await?, |tokens| {
            let or_dash = |at: &Option<estoppel_model::Timestamp>| {
                at.map_or_else(|| "-".to_owned(), |at| at.to_string())
            };
            let rows: Vec<Vec<String>> = tokens
                .iter()
                .map(|token| {
                    vec![
                        token.id.to_string(),
                        token.name.clone(),
                        token.role.to_string(),
                        token.tenant.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                        or_dash(&token.expires_at),
                        or_dash(&token.last_used_at),
                        or_dash(&token.revoked_at),
                    ]
                })
                .collect();
            table(&["id", "name", "role", "tenant", "expires", "last used", "revoked"], &rows)
        })?,
        TokenCommand::Revoke { id } => {
            client.revoke_token(id).await?;
            output.answer(&serde_json::json!({ "revoked": id }), |_| format!("revoked {id}"))?;
        }
        TokenCommand::Gateway { subject } => {
            let request = CredentialRequest { subject: subject.subject(), seconds: None };
            let minted = client.mint_credential(&request).await?;
            output.note(&format!(
                "good until {}; use it as the proxy's password: http://estoppel:CREDENTIAL@GATEWAY",
                minted.expires_at
            ));
            output.answer(&minted, |minted| minted.credential.clone())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
