//! Tokens: who calls, and what they may do.
//!
//! The table lives in memory, so that a halt is authorised while every disk hangs: nothing that
//! writes a file holds the table's lock meanwhile. Its file holds hashes only. A token is 32 random
//! bytes, so a plain SHA-256 is enough to keep it, and looking the hash up gives nothing away
//! through time.
//!
//! A revoked token is nobody's from that instant, and what it has open is told so. The ledger has
//! the history: what it could not be told when it happened it is told at the next start.
//!
//! Whoever owns the data folder can always make an admin's token with the server stopped
//! ([`create_locally`]): losing the last one locks nobody out.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use estoppel_api::{Role, TokenMinted, TokenRequest, TokenSummary};
use estoppel_killswitch::{SERVER_ACTOR_PREFIX, server::LOCAL_ACTOR_PREFIX};
use estoppel_model::{Actor, EntityId, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{StartError, files, mirror};

mod last_use;

use last_use::LastUse;

const DAY: Duration = Duration::from_secs(86_400);
/// How long a token is good for when nothing else was said.
const PERSONAL_LIFE: Duration = Duration::from_secs(90 * 86_400);
const MACHINE_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long before its end a token is warned of.
const SOON: Duration = Duration::from_secs(14 * 86_400);
const FILE: &str = "tokens.json";
const ADMIN_FILE: &str = "admin.token";
/// Who makes the tokens of the server itself.
const ITSELF: &str = "estoppel:serve";

/// Who calls, from the token.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The token's id.
    pub token: Uuid,
    /// The name that records show.
    pub actor: Actor,
    /// What they may do.
    pub role: Role,
    /// The only tenant that they reach.
    pub tenant: Option<EntityId>,
    expires_at: Option<Timestamp>,
    revoked: CancellationToken,
}

impl Identity {
    /// Whether the token, good when it was shown, still is.
    pub(crate) fn still_good(&self, now: Timestamp) -> bool {
        !self.revoked.is_cancelled() && self.expires_at.is_none_or(|at| at > now)
    }

    /// Resolves when the token is revoked.
    pub(crate) async fn revoked(&self) {
        self.revoked.cancelled().await;
    }
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
    created_by: Option<Actor>,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    revoked_at: Option<Timestamp>,
    #[serde(default)]
    revoked_by: Option<Actor>,
    #[serde(skip)]
    revoked: CancellationToken,
    #[serde(skip)]
    last_use: LastUse,
}

type Table = HashMap<String, Entry>;

/// All tokens, by the SHA-256 of each.
#[derive(Debug)]
pub(crate) struct Tokens {
    file: PathBuf,
    entries: RwLock<Table>,
    /// Held by whoever changes the table, until the change is on the disk.
    changing: Mutex<()>,
}

/// A change that the ledger is to have.
#[derive(Debug)]
pub(crate) struct Change {
    /// The token.
    pub token: TokenSummary,
    /// Whether it was revoked, and not made.
    pub revoked: bool,
    /// Who did it.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
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

/// Why a token cannot be made as it is wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Two ends.
    #[error("more than one of `expires_at`, `lifetime_seconds` and `never_expires` is given")]
    TwoEnds,
    /// It would end before it begins.
    #[error("the token would end at {0}, which is not in the future")]
    Over(Timestamp),
    /// What the server itself, and halts that no token gives, are called.
    #[error(
        "a token cannot be named `{0}`: `redis` and names that begin with `local:` or `estoppel:` are \
         for halts that come from Redis, are given on a host, and for the server itself"
    )]
    Reserved(EntityId),
    /// More than a century is `never`.
    #[error("`lifetime_seconds` is {0}: at most 3153600000 (100 years), or `never_expires`")]
    TooLong(u64),
}

impl Tokens {
    /// Reads the tokens of a data folder. At the first start it makes the admin's and writes it to
    /// `admin.token`.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the table is broken.
    pub(crate) fn open(data: &Path, now: Timestamp) -> Result<Self, StartError> {
        let tokens = match Self::read(data)? {
            Some(tokens) => tokens,
            None => Self::of(data, Table::new()),
        };
        if tokens.read_entries().is_empty() {
            let admin = data.join(ADMIN_FILE);
            let name = EntityId::new("admin").map_err(|_| StartError::Random)?;
            // The way in must not lock itself after some months.
            let request =
                TokenRequest { never_expires: true, ..TokenRequest::new(name, Role::Admin) };
            let (minted, _) = tokens.mint(&request, None, &itself()?, now)?;
            files::write_private(&admin, minted.token.as_bytes())
                .map_err(|source| StartError::File { path: admin.clone(), source })?;
        }
        Ok(tokens)
    }

    /// The tokens of a folder that has some.
    fn read(data: &Path) -> Result<Option<Self>, StartError> {
        let file = data.join(FILE);
        let io = |source| StartError::File { path: file.clone(), source };
        let Some(content) = files::read_if_there(&file).map_err(io)? else { return Ok(None) };
        let table: Table = serde_json::from_slice(&content)
            .map_err(|source| StartError::Tokens { path: file.clone(), source })?;
        let uses = last_use::read(data);
        for entry in table.values() {
            if let Some(at) = uses.get(&entry.id) {
                entry.last_use.touch(*at);
            }
        }
        Ok(Some(Self::of(data, table)))
    }

    fn of(data: &Path, table: Table) -> Self {
        Self { file: data.join(FILE), entries: RwLock::new(table), changing: Mutex::new(()) }
    }

    /// When a token that is wished for ends; `None`: by revocation alone.
    ///
    /// # Errors
    /// When the wish contradicts itself, or the name is not a token's.
    pub(crate) fn end(
        request: &TokenRequest,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, WishError> {
        const SECONDS_MAX: u64 = 100 * 365 * 86_400;
        let name = request.name.as_str();
        if [LOCAL_ACTOR_PREFIX, SERVER_ACTOR_PREFIX].iter().any(|ours| name.starts_with(ours))
            || name == mirror::ACTOR
        {
            return Err(WishError::Reserved(request.name.clone()));
        }
        let usual = if request.role.is_personal() { PERSONAL_LIFE } else { MACHINE_LIFE };
        let end = match (request.expires_at, request.lifetime_seconds, request.never_expires) {
            (None, None, true) => return Ok(None),
            (None, None, false) => now + usual,
            (Some(at), None, false) => at,
            (None, Some(seconds), false) if seconds > SECONDS_MAX => {
                return Err(WishError::TooLong(seconds));
            }
            (None, Some(seconds), false) => now + Duration::from_secs(seconds),
            _ => return Err(WishError::TwoEnds),
        };
        if end <= now { Err(WishError::Over(end)) } else { Ok(Some(end)) }
    }

    /// Makes a token that ends as [`Tokens::end`] said.
    ///
    /// # Errors
    /// When the table cannot be written; then there is no such token.
    pub(crate) fn mint(
        &self,
        request: &TokenRequest,
        end: Option<Timestamp>,
        by: &Actor,
        now: Timestamp,
    ) -> Result<(TokenMinted, Change), StartError> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| StartError::Random)?;
        let token = format!("est_{}_{}", request.role, hex::encode(random));
        let entry = Entry {
            id: Uuid::now_v7(),
            name: request.name.clone(),
            role: request.role,
            tenant: request.tenant.clone(),
            created_at: now,
            created_by: Some(by.clone()),
            expires_at: end,
            revoked_at: None,
            revoked_by: None,
            revoked: CancellationToken::new(),
            last_use: LastUse::default(),
        };
        let minted = TokenMinted { id: entry.id, token: token.clone(), expires_at: end };
        let change = Change { token: entry.summary(), revoked: false, by: by.clone(), at: now };
        let key = hash(&token);
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody has it yet, so it may wait for the disk.
        let mut table = self.read_entries().clone();
        table.insert(key.clone(), entry.clone());
        self.write(&table)?;
        self.write_entries().insert(key, entry);
        Ok((minted, change))
    }

    /// Takes back a token that nobody was given.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub(crate) fn forget(&self, id: Uuid) -> Result<(), StartError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_entries().retain(|_, entry| entry.id != id);
        let table = self.read_entries().clone();
        self.write(&table)
    }

    /// The token of a machine that belongs to this server, kept in a file of its data folder; made
    /// anew when there is none that is good. It ends with the folder, not by time.
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
        let (minted, _) = self.mint(&TokenRequest::new(name, role), None, &itself()?, now)?;
        files::write_private(&file, minted.token.as_bytes()).map_err(io)?;
        Ok(Secret::new(minted.token))
    }

    /// Ends a token, at once; what it has open is told. `None` when there is none of this id.
    ///
    /// # Errors
    /// When the table cannot be written; the token is revoked until a restart all the same.
    pub(crate) fn revoke(
        &self,
        id: Uuid,
        by: &Actor,
        now: Timestamp,
    ) -> Result<Option<Change>, StartError> {
        let change = {
            let mut entries = self.write_entries();
            let Some(entry) = entries.values_mut().find(|entry| entry.id == id) else {
                return Ok(None);
            };
            let at = *entry.revoked_at.get_or_insert(now);
            let by = entry.revoked_by.get_or_insert_with(|| by.clone()).clone();
            entry.revoked.cancel();
            Change { token: entry.summary(), revoked: true, by, at }
        };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.read_entries().clone();
        self.write(&table)?;
        Ok(Some(change))
    }

    /// Tells who presents a token. Touches no disk.
    ///
    /// # Errors
    /// When nobody may with it.
    pub(crate) fn identify(
        &self,
        token: &Secret<&str>,
        now: Timestamp,
    ) -> Result<Identity, TokenError> {
        let key = hash(token.expose());
        self.read_entries().get(&key).ok_or(TokenError::Unknown)?.take(now)
    }

    /// Tells who holds the token of an id: a session of the pages is as good as its token.
    ///
    /// # Errors
    /// When nobody may with it any more.
    pub(crate) fn holder(&self, id: Uuid, now: Timestamp) -> Result<Identity, TokenError> {
        let entries = self.read_entries();
        let entry = entries.values().find(|entry| entry.id == id).ok_or(TokenError::Unknown)?;
        entry.take(now)
    }

    /// All tokens, oldest first, without themselves.
    pub(crate) fn list(&self) -> Vec<TokenSummary> {
        let mut all: Vec<_> = self.read_entries().values().map(Entry::summary).collect();
        all.sort_by_key(|token| token.id);
        all
    }

    /// All that was made and revoked by somebody who is known, for a ledger that may lack it.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let entries = self.read_entries();
        let mut changes: Vec<Change> = entries
            .values()
            .flat_map(|entry| {
                let made = entry.created_by.clone().map(|by| (false, by, entry.created_at));
                let revoked = entry.revoked_by.clone().zip(entry.revoked_at);
                let revoked = revoked.map(|(by, at)| (true, by, at));
                made.into_iter().chain(revoked).map(|(revoked, by, at)| Change {
                    token: entry.summary(),
                    revoked,
                    by,
                    at,
                })
            })
            .collect();
        changes.sort_by_key(|change| change.at);
        changes
    }

    /// What ends within two weeks, in words for an operator.
    pub(crate) fn ending_soon(&self, now: Timestamp) -> Vec<String> {
        let mut soon: Vec<(Timestamp, String)> = self
            .read_entries()
            .values()
            .filter(|entry| entry.revoked_at.is_none())
            .filter_map(|entry| {
                let at = entry.expires_at.filter(|at| *at > now && at.since(now) < SOON)?;
                let days = at.since(now).as_secs() / DAY.as_secs();
                let left =
                    if days == 0 { "less than a day".to_owned() } else { format!("{days} d") };
                let (name, role) = (&entry.name, entry.role);
                let text = format!(
                    "the token of {name} ({role}) ends at {at}, in {left}: \
                     `estoppel token create {name} --role {role}` makes the next one"
                );
                Some((at, text))
            })
            .collect();
        soon.sort();
        soon.into_iter().map(|(_, text)| text).collect()
    }

    /// Keeps when each token was last used; a crash loses some minutes of it.
    ///
    /// # Errors
    /// As the operating system reports.
    pub(crate) fn keep_last_uses(&self) -> std::io::Result<()> {
        let uses: Vec<(Uuid, Timestamp)> = self
            .read_entries()
            .values()
            .filter_map(|entry| Some((entry.id, entry.last_use.at()?)))
            .collect();
        last_use::write(self.file.with_file_name(last_use::FILE).as_path(), uses)
    }

    fn read_entries(&self) -> RwLockReadGuard<'_, Table> {
        // A panic while the table was held cannot have left it half changed: each change is one
        // insert or one entry's.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_entries(&self) -> RwLockWriteGuard<'_, Table> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, table: &Table) -> Result<(), StartError> {
        let json = serde_json::to_vec_pretty(table)
            .map_err(|source| StartError::Tokens { path: self.file.clone(), source })?;
        files::write_private(&self.file, &json)
            .map_err(|source| StartError::File { path: self.file.clone(), source })
    }
}

impl Entry {
    /// Who uses it now, if it is good.
    fn take(&self, now: Timestamp) -> Result<Identity, TokenError> {
        if let Some(at) = self.revoked_at {
            return Err(TokenError::Revoked(at));
        }
        if let Some(at) = self.expires_at.filter(|at| *at <= now) {
            return Err(TokenError::Expired(at));
        }
        self.last_use.touch(now);
        let actor = Actor::new(self.name.as_str()).map_err(|_| TokenError::Unknown)?;
        Ok(Identity {
            token: self.id,
            actor,
            role: self.role,
            tenant: self.tenant.clone(),
            expires_at: self.expires_at,
            revoked: self.revoked.clone(),
        })
    }

    fn summary(&self) -> TokenSummary {
        TokenSummary {
            id: self.id,
            name: self.name.to_string(),
            kind: self.role.kind(),
            role: self.role,
            tenant: self.tenant.clone(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            last_used_at: self.last_use.at(),
            revoked_at: self.revoked_at,
        }
    }
}

/// Makes a token in a data folder whose server is stopped: the way back in for its owner. The
/// server writes it into the ledger at its next start, with the name of who made it.
///
/// # Errors
/// When a server runs on the folder, the folder holds no tokens, or the wish contradicts itself.
pub fn create_locally(
    data: &Path,
    request: &TokenRequest,
    by: &Actor,
    now: Timestamp,
) -> Result<TokenMinted, StartError> {
    if !data.join(FILE).exists() {
        return Err(StartError::NoServer { path: data.to_owned() });
    }
    let _lock = crate::start::lock_folder(data)?;
    let tokens =
        Tokens::read(data)?.ok_or_else(|| StartError::NoServer { path: data.to_owned() })?;
    let end = Tokens::end(request, now)?;
    tokens.mint(request, end, by, now).map(|(minted, _)| minted)
}

fn itself() -> Result<Actor, StartError> {
    Actor::new(ITSELF).map_err(|_| StartError::Random)
}

fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

#[cfg(test)]
mod tests;
