//! Tokens: who calls, and what they may do.
//!
//! The table lives in memory, so that a halt is authorised while every disk hangs. Its file holds
//! hashes only; the ledger has the history. A token is 32 random bytes, so a plain SHA-256 is
//! enough to keep it, and looking the hash up gives nothing away through time.

use std::{collections::HashMap, path::PathBuf, sync::Mutex};

use estoppel_api::{Role, TokenMinted, TokenRequest, TokenSummary};
use estoppel_model::{Actor, EntityId, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{StartError, files};

/// How long a person's token is good for when nothing else was said, in days.
const PERSONAL_DAYS: u64 = 90;
const FILE: &str = "tokens.json";
const ADMIN_FILE: &str = "admin.token";

/// Who calls, from the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The token's id.
    pub token: Uuid,
    /// The name that records show.
    pub actor: Actor,
    /// What they may do.
    pub role: Role,
    /// The only tenant that they reach.
    pub tenant: Option<EntityId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    id: Uuid,
    name: EntityId,
    role: Role,
    #[serde(default)]
    tenant: Option<EntityId>,
    created_at: Timestamp,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    revoked_at: Option<Timestamp>,
    #[serde(skip)]
    last_used_at: Option<Timestamp>,
}

/// All tokens, by the SHA-256 of each.
#[derive(Debug)]
pub(crate) struct Tokens {
    file: PathBuf,
    entries: Mutex<HashMap<String, Entry>>,
}

/// Why a caller is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// No such token.
    #[error("the token is not known here")]
    Unknown,
    /// Its time is over.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// Somebody revoked it.
    #[error("the token was revoked at {0}")]
    Revoked(Timestamp),
}

impl Tokens {
    /// Reads the tokens of a data folder. At the first start it makes the admin's and writes it to
    /// `admin.token`.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the table is broken.
    pub(crate) fn open(data: &std::path::Path, now: Timestamp) -> Result<Self, StartError> {
        let file = data.join(FILE);
        let io = |source| StartError::File { path: file.clone(), source };
        let entries = match files::read_if_there(&file).map_err(io)? {
            Some(content) => serde_json::from_slice(&content)
                .map_err(|source| StartError::Tokens { path: file.clone(), source })?,
            None => HashMap::new(),
        };
        let first = entries.is_empty();
        let tokens = Self { file, entries: Mutex::new(entries) };
        if first {
            let admin = data.join(ADMIN_FILE);
            let request = TokenRequest {
                name: EntityId::new("admin").map_err(|_| StartError::Random)?,
                role: Role::Admin,
                tenant: None,
                // The way in must not lock itself after some months.
                expires_at: Some(Timestamp::from_micros(i64::MAX / 2)),
            };
            let (minted, _) = tokens.mint(&request, now)?;
            files::write_private(&admin, minted.token.as_bytes())
                .map_err(|source| StartError::File { path: admin.clone(), source })?;
        }
        Ok(tokens)
    }

    /// Makes a token. What the second value holds is for the ledger.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub(crate) fn mint(
        &self,
        request: &TokenRequest,
        now: Timestamp,
    ) -> Result<(TokenMinted, TokenSummary), StartError> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| StartError::Random)?;
        let token = format!("est_{}_{}", request.role, hex::encode(random));
        let day = std::time::Duration::from_secs(86_400);
        let until = request.role.is_personal().then(|| now + day * PERSONAL_DAYS as u32);
        let entry = Entry {
            id: Uuid::now_v7(),
            name: request.name.clone(),
            role: request.role,
            tenant: request.tenant.clone(),
            created_at: now,
            expires_at: request.expires_at.or(until).filter(|at| at.as_micros() < i64::MAX / 2),
            revoked_at: None,
            last_used_at: None,
        };
        let minted =
            TokenMinted { id: entry.id, token: token.clone(), expires_at: entry.expires_at };
        let summary = entry.summary();
        let mut entries = self.lock();
        entries.insert(hash(&token), entry);
        self.write(&entries)?;
        Ok((minted, summary))
    }

    /// The token of a machine that belongs to this server, kept in a file of its data folder; made
    /// anew when there is none that is good.
    ///
    /// # Errors
    /// When the file or the table cannot be written.
    pub(crate) fn machine(
        &self,
        name: &str,
        role: Role,
        now: Timestamp,
    ) -> Result<Secret<String>, StartError> {
        let file = self.file.with_file_name(format!("{name}.token"));
        let io = |source| StartError::File { path: file.clone(), source };
        if let Some(kept) = files::read_if_there(&file).map_err(io)?
            && let Ok(token) = String::from_utf8(kept)
            && self.identify(&Secret::new(&token), now).is_ok_and(|known| known.role == role)
        {
            return Ok(Secret::new(token));
        }
        let name = EntityId::new(name).map_err(|_| StartError::Random)?;
        let request = TokenRequest { name, role, tenant: None, expires_at: None };
        let (minted, _) = self.mint(&request, now)?;
        files::write_private(&file, minted.token.as_bytes()).map_err(io)?;
        Ok(Secret::new(minted.token))
    }

    /// Ends a token. `None` when there is none of this id.
    ///
    /// # Errors
    /// When the table cannot be written; the token is revoked in memory all the same.
    pub(crate) fn revoke(
        &self,
        id: Uuid,
        now: Timestamp,
    ) -> Result<Option<TokenSummary>, StartError> {
        let mut entries = self.lock();
        let Some(entry) = entries.values_mut().find(|entry| entry.id == id) else {
            return Ok(None);
        };
        entry.revoked_at.get_or_insert(now);
        let summary = entry.summary();
        self.write(&entries)?;
        Ok(Some(summary))
    }

    /// Tells who presents a token.
    ///
    /// # Errors
    /// When nobody may with it.
    pub(crate) fn identify(
        &self,
        token: &Secret<&str>,
        now: Timestamp,
    ) -> Result<Identity, TokenError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&hash(token.expose())).ok_or(TokenError::Unknown)?;
        if let Some(at) = entry.revoked_at {
            return Err(TokenError::Revoked(at));
        }
        if let Some(at) = entry.expires_at.filter(|at| *at <= now) {
            return Err(TokenError::Expired(at));
        }
        entry.last_used_at = Some(now);
        let actor = Actor::new(entry.name.as_str()).map_err(|_| TokenError::Unknown)?;
        Ok(Identity { token: entry.id, actor, role: entry.role, tenant: entry.tenant.clone() })
    }

    /// Whether a token that was good at connecting still is.
    pub(crate) fn still_good(&self, id: Uuid, now: Timestamp) -> bool {
        self.lock().values().any(|entry| {
            entry.id == id
                && entry.revoked_at.is_none()
                && entry.expires_at.is_none_or(|at| at > now)
        })
    }

    /// All tokens, oldest first, without themselves.
    pub(crate) fn list(&self) -> Vec<TokenSummary> {
        let mut all: Vec<_> = self.lock().values().map(Entry::summary).collect();
        all.sort_by_key(|token| token.id);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        // A panic while the table was held cannot have left it half changed: each change is one insert.
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self, entries: &HashMap<String, Entry>) -> Result<(), StartError> {
        let json = serde_json::to_vec_pretty(entries)
            .map_err(|source| StartError::Tokens { path: self.file.clone(), source })?;
        files::write_private(&self.file, &json)
            .map_err(|source| StartError::File { path: self.file.clone(), source })
    }
}

impl Entry {
    fn summary(&self) -> TokenSummary {
        TokenSummary {
            id: self.id,
            name: self.name.to_string(),
            role: self.role,
            tenant: self.tenant.clone(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            last_used_at: self.last_used_at,
            revoked_at: self.revoked_at,
        }
    }
}

fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_770_000_000_000_000) + Duration::from_secs(seconds)
    }

    #[test]
    fn the_admin_token_is_made_once_and_kept_as_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        Tokens::open(dir.path(), at(0)).unwrap();
        let admin = std::fs::read_to_string(dir.path().join(ADMIN_FILE)).unwrap();
        let again = Tokens::open(dir.path(), at(1)).unwrap();
        let identity = again.identify(&Secret::new(&admin), at(86_400 * 400)).unwrap();
        assert_eq!((identity.role, identity.actor.as_str()), (Role::Admin, "admin"));
        let table = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!table.contains(&admin[10..]), "the table must not hold the token");
        assert_eq!(again.list().len(), 1);
    }

    #[test]
    fn a_token_ends_by_time_and_by_revocation() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path(), at(0)).unwrap();
        let request = |role| TokenRequest {
            name: EntityId::new("alice").unwrap(),
            role,
            tenant: None,
            expires_at: None,
        };
        let (alice, _) = tokens.mint(&request(Role::Responder), at(0)).unwrap();
        let token = Secret::new(alice.token.as_str());
        assert!(tokens.identify(&token, at(86_400 * 90 - 1)).is_ok());
        assert_eq!(
            tokens.identify(&token, at(86_400 * 90)),
            Err(TokenError::Expired(at(86_400 * 90)))
        );
        let (machine, _) = tokens.mint(&request(Role::Agent), at(0)).unwrap();
        assert_eq!(machine.expires_at, None);
        tokens.revoke(machine.id, at(5)).unwrap();
        tokens.revoke(machine.id, at(9)).unwrap();
        let token = Secret::new(machine.token.as_str());
        assert_eq!(tokens.identify(&token, at(10)), Err(TokenError::Revoked(at(5))));
        assert!(!tokens.still_good(machine.id, at(10)));
        let reopened = Tokens::open(dir.path(), at(11)).unwrap();
        assert_eq!(reopened.identify(&token, at(11)), Err(TokenError::Revoked(at(5))));
        assert_eq!(tokens.identify(&Secret::new("est_admin_0"), at(0)), Err(TokenError::Unknown));
        assert!(tokens.revoke(Uuid::nil(), at(0)).unwrap().is_none());
    }
}
