//! `/v1/tokens` and `/v1/gateway/credentials`.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use estoppel_api::{
    CredentialMinted, CredentialRequest, Problem, Role, TokenMinted, TokenRequest, TokenSummary,
};
use estoppel_model::{NewRecord, RecordKind};
use uuid::Uuid;

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{
    Server, credential,
    token::{Change, Tokens},
};

const MINTED: RecordKind = RecordKind::new("token.minted");
const REVOKED: RecordKind = RecordKind::new("token.revoked");
/// How often the times of last use are kept.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Longest life of a gateway credential.
const CREDENTIAL_MAX: Duration = Duration::from_secs(30 * 86_400);
const CREDENTIAL_DEFAULT: Duration = Duration::from_secs(86_400);

/// Makes a token.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = TokenMinted), (status = 403, body = Problem))
)]
pub(crate) async fn mint(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<(StatusCode, Json<TokenMinted>), Failure> {
    caller.at_least(Role::Admin)?;
    caller.unbound("it cannot mint tokens")?;
    let now = server.clock().now();
    let end =
        Tokens::end(&request, now).map_err(|error| Failure::Unprocessable(error.to_string()))?;
    // A token that nobody could be told of is not made.
    server.journal().ledger()?;
    let (making, by) = (server.clone(), caller.0.actor.clone());
    let made = on_disk(move || making.tokens().mint(&request, end, &by, now)).await?;
    let (minted, change) = made.map_err(Failure::internal)?;
    if let Err(error) = record(&server, &change).await {
        let undoing = server.clone();
        on_disk(move || undoing.tokens().forget(minted.id)).await?.map_err(Failure::internal)?;
        return Err(error);
    }
    Ok((StatusCode::CREATED, Json(minted)))
}

/// Lists the tokens.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, body = [TokenSummary])))]
pub(crate) async fn list(
    State(server): State<Server>,
    caller: Caller,
) -> Result<Json<Vec<TokenSummary>>, Failure> {
    caller.at_least(Role::Admin)?;
    caller.unbound("it cannot list tokens")?;
    Ok(Json(server.tokens().list()))
}

/// Ends a token at once, with the streams that it has open. Needs no ledger: what it lacks is
/// written at the next start.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404, body = Problem))
)]
pub(crate) async fn revoke(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Failure> {
    caller.at_least(Role::Admin)?;
    caller.unbound("it cannot revoke tokens")?;
    let (revoking, now) = (server.clone(), server.clock().now());
    let by = caller.0.actor;
    let revoked = on_disk(move || revoking.tokens().revoke(id, &by, now)).await?;
    let change = revoked
        .map_err(Failure::internal)?
        .ok_or_else(|| Failure::NotFound(format!("no token has the id {id}")))?;
    if let Err(error) = record(&server, &change).await {
        server.warn(format!("the end of token {id} is not in the ledger yet: {error}"));
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)
}

async fn record(server: &Server, change: &Change) -> Result<(), Failure> {
    let (kind, token) = (if change.revoked { REVOKED } else { MINTED }, &change.token);
    let body = serde_json::json!({
        "token": token.id, "name": token.name, "role": token.role, "tenant": token.tenant,
        "expires_at": token.expires_at, "by": change.by,
    });
    let key = format!("{kind}/{}", token.id);
    let record = NewRecord::json(kind, Some(key), change.at, &body).map_err(Failure::internal)?;
    server.journal().append(record).await?;
    Ok(())
}

/// Writes into the ledger what became of tokens while it could not be told: with the server
/// stopped, at its first start, or while the disk failed.
pub(crate) async fn reconcile(server: &Server) {
    for change in server.tokens().changes() {
        if let Err(error) = record(server, &change).await {
            let id = change.token.id;
            return server.warn(format!("the history of token {id} is not in the ledger: {error}"));
        }
    }
}

/// Keeps when tokens were last used, each minute and at the end.
pub(crate) async fn keep_last_uses(server: Server) {
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(KEEP_EVERY) => false,
            () = server.draining() => true,
        };
        let keeping = server.clone();
        match tokio::task::spawn_blocking(move || keeping.tokens().keep_last_uses()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "when tokens were last used is not kept"),
            Err(error) => tracing::error!(%error, "when tokens were last used is not kept"),
        }
        if last {
            return;
        }
    }
}

/// Makes a credential by which gateways know an agent. It is signed, so gateways need no table.
#[utoipa::path(
    post, path = "/v1/gateway/credentials", tag = "tokens", request_body = CredentialRequest,
    responses((status = 201, body = CredentialMinted), (status = 403, body = Problem))
)]
pub(crate) async fn credential(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<CredentialRequest>,
) -> Result<(StatusCode, Json<CredentialMinted>), Failure> {
    caller.machine_or(&[Role::Enforcer], Role::Responder)?;
    let mut subject = request.subject;
    if let Some(tenant) = &caller.0.tenant {
        if subject.tenant.as_ref().is_some_and(|claimed| claimed != tenant) {
            return Err(Failure::OtherTenant {
                tenant: tenant.to_string(),
                what: "it cannot make a credential for another".to_owned(),
            });
        }
        subject.tenant = Some(tenant.clone());
    }
    if subject.session.is_none() && subject.agent.is_none() {
        return Err(Failure::Unprocessable(
            "a credential needs a session or an agent: a halt must be able to reach its bearer"
                .to_owned(),
        ));
    }
    let life = request.seconds.map_or(CREDENTIAL_DEFAULT, Duration::from_secs);
    if life.is_zero() || life > CREDENTIAL_MAX {
        return Err(Failure::Unprocessable(format!(
            "`seconds` is {}: expected 1 to {}",
            life.as_secs(),
            CREDENTIAL_MAX.as_secs()
        )));
    }
    let expires_at = server.clock().now() + life;
    let credential =
        credential::mint(server.key(), &subject, expires_at).map_err(Failure::internal)?;
    Ok((StatusCode::CREATED, Json(CredentialMinted { credential, expires_at })))
}
