//! Tokens and the roles that they carry.

use std::{fmt, str::FromStr};

use estoppel_model::{EntityId, Subject, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What a token may do. The roles of people include those before them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A machine that may send events.
    Ingest,
    /// An agent's own process: a guard's stream, checks, events.
    Agent,
    /// A gateway or a host: stream, events, evidence, allowlist.
    Enforcer,
    /// A person who may look.
    Viewer,
    /// On call: may halt, block, run, note, and approve what is reversible.
    Responder,
    /// May release and approve what is destructive.
    Lead,
    /// May set the allowlist, mint tokens and configure.
    Admin,
}

/// The text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a role: viewer, responder, lead, admin; for machines agent, enforcer, ingest")]
pub struct RoleError(String);

impl Role {
    /// All roles.
    pub const ALL: [Self; 7] = [
        Self::Viewer,
        Self::Responder,
        Self::Lead,
        Self::Admin,
        Self::Agent,
        Self::Enforcer,
        Self::Ingest,
    ];

    /// The role's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Agent => "agent",
            Self::Enforcer => "enforcer",
            Self::Viewer => "viewer",
            Self::Responder => "responder",
            Self::Lead => "lead",
            Self::Admin => "admin",
        }
    }

    /// Whether it is a person's role.
    pub const fn is_personal(self) -> bool {
        matches!(self, Self::Viewer | Self::Responder | Self::Lead | Self::Admin)
    }

    /// Whose tokens carry it.
    pub const fn kind(self) -> TokenKind {
        if self.is_personal() { TokenKind::Personal } else { TokenKind::Machine }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(estoppel_model::text::quoted(text)))
    }
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Who will use it: the name that records show.
    #[schema(value_type = String, example = "alice")]
    pub name: EntityId,
    /// What it may do.
    pub role: Role,
    /// The only tenant whose events it sends and whose orders it sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant: Option<EntityId>,
    /// When it ends. At most one of this and the next two; none of them: after 90 days for a
    /// person, after 365 for a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// For how long it is good, in seconds, by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
    /// It ends by revocation alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
}

impl TokenRequest {
    /// A token of this role for the usual time, bound to no tenant.
    pub const fn new(name: EntityId, role: Role) -> Self {
        Self {
            name,
            role,
            tenant: None,
            expires_at: None,
            lifetime_seconds: None,
            never_expires: false,
        }
    }
}

/// Whose a token is. Follows from the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A person's.
    Personal,
    /// A machine's: an agent, an enforcer, a sender of events.
    Machine,
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Personal => "personal",
            Self::Machine => "machine",
        })
    }
}

/// The answer to minting a token. The token itself is shown this once.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
pub struct TokenMinted {
    /// Names the token, for revocation.
    pub id: Uuid,
    /// The token.
    pub token: String,
    /// When it ends.
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
}

/// One token, without itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenSummary {
    /// Names the token.
    pub id: Uuid,
    /// Who uses it.
    pub name: String,
    /// Whose it is.
    pub kind: TokenKind,
    /// What it may do.
    pub role: Role,
    /// The only tenant that it reaches.
    #[schema(value_type = Option<String>)]
    pub tenant: Option<EntityId>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When it ends.
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    #[schema(value_type = Option<String>)]
    pub revoked_at: Option<Timestamp>,
}

/// `POST /v1/gateway/credentials`: an identity that an agent shows to a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialRequest {
    /// Whom the gateway shall take the bearer for.
    #[schema(value_type = Object)]
    pub subject: Subject,
    /// How long it is good for, in seconds: at most 30 days, absent: one day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// A credential for a gateway: the password of the proxy URL.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CredentialMinted {
    /// The credential.
    pub credential: String,
    /// When it ends.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}
