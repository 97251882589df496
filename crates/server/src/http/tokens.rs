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
use estoppel_killswitch::server::LOCAL_ACTOR_PREFIX;
use estoppel_model::{NewRecord, RecordKind};
use uuid::Uuid;

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::{Server, credential};

const MINTED: RecordKind = RecordKind::new("token.minted");
const REVOKED: RecordKind = RecordKind::new("token.revoked");
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
    if [LOCAL_ACTOR_PREFIX, "estoppel:"].iter().any(|ours| request.name.as_str().starts_with(ours))
    {
        return Err(Failure::Unprocessable(
            "names that begin with `local:` or `estoppel:` are for halts given on a host and for the server itself".to_owned(),
        ));
    }
    let now = server.clock().now();
    let (minted, summary) = server.tokens().mint(&request, now).map_err(Failure::internal)?;
    record(&server, &caller, MINTED, &summary).await?;
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

/// Ends a token; its streams end within seconds.
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
    let now = server.clock().now();
    let revoked = server.tokens().revoke(id, now).map_err(Failure::internal)?;
    let summary = revoked.ok_or_else(|| Failure::NotFound(format!("no token has the id {id}")))?;
    record(&server, &caller, REVOKED, &summary).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn record(
    server: &Server,
    caller: &Caller,
    kind: RecordKind,
    token: &TokenSummary,
) -> Result<(), Failure> {
    let body = serde_json::json!({
        "token": token.id, "name": token.name, "role": token.role, "tenant": token.tenant,
        "expires_at": token.expires_at, "by": caller.0.actor,
    });
    let key = format!("{kind}/{}", token.id);
    let record =
        NewRecord::json(kind, Some(key), server.clock().now(), &body).map_err(Failure::internal)?;
    server.journal().append(record).await?;
    Ok(())
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
