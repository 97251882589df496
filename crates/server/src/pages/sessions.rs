//! Sessions of the pages: who is signed in with which browser.
//!
//! A session is a credential derived from a personal token and never more than it: what it may do is
//! asked of the token each time, so revoking the token ends its sessions at once. The browser holds
//! 32 random bytes, the file their SHA-256. The table lives in memory, so that a person who is
//! signed in halts while every disk hangs; the file comes behind it and outlives a restart. One that
//! cannot be read costs a sign-in and nothing else.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use estoppel_model::{OrderId, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use crate::files;

/// How long a session lives without anything being done with it. Looking on does not count.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(12 * 3_600);
/// How long a session lives at all.
pub(crate) const LIFE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Use is kept as coarsely as this, so that it costs few writes.
const USE_GRAIN: Duration = Duration::from_secs(600);
/// Most sessions of one token; the oldest makes room.
const PER_TOKEN_MAX: usize = 16;
/// Most sessions.
const SESSIONS_MAX: usize = 2_000;
const FILE: &str = "sessions.json";

/// What the browser holds.
#[derive(Debug, Clone)]
pub(crate) struct Key(Secret<String>);

impl Key {
    /// Reads what a browser sent.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| Self(Secret::new(text.to_owned())))
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }

    fn stored(&self) -> String {
        hex::encode(Sha256::digest(self.expose()))
    }

    /// What each form of the session carries, which a page of another site cannot know.
    pub(crate) fn form_token(&self) -> String {
        self.derive("estoppel form", "")
    }

    /// What shows that an order's id was made by a form of this session: a link cannot carry it, so
    /// a link never comes past the form.
    pub(crate) fn seal(&self, order: OrderId) -> String {
        self.derive("estoppel order form", &order.to_string())
    }

    fn derive(&self, label: &str, of: &str) -> String {
        let text = format!("{label}\n{of}\n{}", self.expose());
        hex::encode(&Sha256::digest(text)[..16])
    }
}

/// Whether two texts are the same, in a time that does not tell where they differ.
pub(crate) fn same(one: &str, other: &str) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Session {
    token: Uuid,
    began_at: Timestamp,
    used_at: Timestamp,
}

impl Session {
    fn is_over(&self, now: Timestamp) -> bool {
        now.since(self.used_at) >= IDLE_MAX || now.since(self.began_at) >= LIFE_MAX
    }
}

/// All sessions, by the SHA-256 of each.
#[derive(Debug)]
pub(crate) struct Sessions {
    file: PathBuf,
    entries: Mutex<HashMap<String, Session>>,
    /// Counts changes; the keeper follows.
    changed: watch::Sender<u64>,
    /// Up to which change the file holds.
    kept: watch::Sender<u64>,
}

impl Sessions {
    /// Reads the sessions of a data folder. With one that cannot be read, everybody signs in again.
    pub(crate) fn open(data: &Path) -> Self {
        let file = data.join(FILE);
        let read =
            files::read_if_there(&file).map_err(|error| error.to_string()).and_then(|text| {
                text.map_or_else(
                    || Ok(HashMap::new()),
                    |text| serde_json::from_slice(&text).map_err(|error| error.to_string()),
                )
            });
        let entries = read.unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), error, "the sessions cannot be read: people sign in again");
            HashMap::new()
        });
        Self {
            file,
            entries: Mutex::new(entries),
            changed: watch::Sender::new(0),
            kept: watch::Sender::new(0),
        }
    }

    /// Begins a session with a token; `None` when the system gives no random bytes.
    pub(crate) fn begin(&self, token: Uuid, now: Timestamp) -> Option<Key> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).ok()?;
        let key = Key(Secret::new(hex::encode(random)));
        let mut entries = self.lock();
        entries.retain(|_, session| !session.is_over(now));
        let own = |session: &Session| session.token == token;
        while entries.values().filter(|session| own(session)).count() >= PER_TOKEN_MAX {
            drop_oldest(&mut entries, own);
        }
        while entries.len() >= SESSIONS_MAX {
            drop_oldest(&mut entries, |_| true);
        }
        entries.insert(key.stored(), Session { token, began_at: now, used_at: now });
        drop(entries);
        self.change();
        Some(key)
    }

    /// The token behind a session. `acts`: the person does something and does not merely look on.
    pub(crate) fn token(&self, key: &Key, acts: bool, now: Timestamp) -> Option<Uuid> {
        let mut entries = self.lock();
        let session = entries.get_mut(&key.stored()).filter(|session| !session.is_over(now))?;
        let token = session.token;
        if acts && now.since(session.used_at) >= USE_GRAIN {
            session.used_at = now;
            drop(entries);
            self.change();
        }
        Some(token)
    }

    /// Ends a session.
    pub(crate) fn end(&self, key: &Key) {
        if self.lock().remove(&key.stored()).is_some() {
            self.change();
        }
    }

    /// Waits until the file holds what has changed so far, at most as long as given.
    pub(crate) async fn kept(&self, patience: Duration) {
        let changed = *self.changed.borrow();
        let mut kept = self.kept.subscribe();
        let reached = kept.wait_for(|kept| *kept >= changed);
        // A disk that does not answer costs a sign-in after the next restart.
        let _ = tokio::time::timeout(patience, reached).await;
    }

    /// Whether something has changed that the file does not hold.
    pub(crate) fn is_dirty(&self) -> bool {
        *self.changed.borrow() > *self.kept.borrow()
    }

    /// Resolves when something has changed that the file does not hold.
    pub(crate) async fn dirty(&self) {
        let mut changed = self.changed.subscribe();
        let kept = *self.kept.borrow();
        // The sender is our own and cannot be gone.
        let _ = changed.wait_for(|changed| *changed > kept).await;
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written; the sessions go on in memory.
    pub(crate) fn write(&self) -> std::io::Result<()> {
        let changed = *self.changed.borrow();
        let json = serde_json::to_vec(&*self.lock())?;
        files::write_private(&self.file, &json)?;
        self.kept.send_replace(changed);
        Ok(())
    }

    fn change(&self) {
        self.changed.send_modify(|changed| *changed += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        // Each change is one insert or removal: a panic leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_oldest(entries: &mut HashMap<String, Session>, of: impl Fn(&Session) -> bool) {
    let oldest = entries
        .iter()
        .filter(|(_, session)| of(session))
        .min_by_key(|(_, session)| session.used_at)
        .map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        entries.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_770_000_000_000_000) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_session_outlives_a_restart_and_is_kept_as_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path());
        let token = Uuid::now_v7();
        let key = sessions.begin(token, at(0)).unwrap();
        sessions.write().unwrap();
        let file = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!file.contains(key.expose()), "the file must not hold the key");
        let again = Sessions::open(dir.path());
        let sent = Key::parse(key.expose()).unwrap();
        assert_eq!(again.token(&sent, false, at(1)), Some(token));
        again.end(&sent);
        assert_eq!(again.token(&sent, false, at(1)), None);
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert_eq!(Sessions::open(dir.path()).token(&sent, false, at(1)), None);
    }

    #[test]
    fn a_session_ends_when_nothing_is_done_and_at_last_anyway() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path());
        let token = Uuid::now_v7();
        let idle = sessions.begin(token, at(0)).unwrap();
        let hour = 3_600;
        assert_eq!(sessions.token(&idle, false, at(11 * hour)), Some(token));
        assert_eq!(sessions.token(&idle, false, at(12 * hour)), None, "looking on is no use");
        let busy = sessions.begin(token, at(0)).unwrap();
        for hours in 1..168 {
            assert_eq!(sessions.token(&busy, true, at(hours * hour)), Some(token), "{hours} h");
        }
        assert_eq!(sessions.token(&busy, true, at(168 * hour)), None);
    }

    #[test]
    fn sessions_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path());
        let token = Uuid::now_v7();
        let keys: Vec<Key> =
            (0..=PER_TOKEN_MAX as u64).map(|n| sessions.begin(token, at(n)).unwrap()).collect();
        let good = keys.iter().filter(|key| sessions.token(key, false, at(99)).is_some()).count();
        assert_eq!(good, PER_TOKEN_MAX);
        assert_eq!(sessions.token(&keys[0], false, at(99)), None, "the oldest makes room");
        for _ in 0..SESSIONS_MAX + 5 {
            sessions.begin(Uuid::now_v7(), at(100)).unwrap();
        }
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
    }

    #[test]
    fn what_forms_carry_belongs_to_one_session() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path());
        let one = sessions.begin(Uuid::now_v7(), at(0)).unwrap();
        let other = sessions.begin(Uuid::now_v7(), at(0)).unwrap();
        let (order, next) = (OrderId::new(), OrderId::new());
        assert_ne!(one.form_token(), other.form_token());
        assert_ne!(one.seal(order), other.seal(order));
        assert_ne!(one.seal(order), one.seal(next));
        assert_eq!(one.seal(order), Key::parse(one.expose()).unwrap().seal(order));
        assert!(!one.expose().contains(&one.form_token()));
        for wrong in ["", "abc", &"x".repeat(64), &"a".repeat(65)] {
            assert!(Key::parse(wrong).is_none(), "{wrong}");
        }
    }
}
