//! Break-glass: agents go on for a while although no server answers, by a file that the server's key
//! signed and that somebody put into an enforcer's state folder.
//!
//! It is the one exception to invariant *lease*, and a narrow one. It ends no order: what an enforcer
//! knows as halted stays halted. It ends twice: at an instant of the wall clock, and after so much
//! time on the boot clock, summed over restarts, so that a wall clock that is set back prolongs
//! nothing. Time is paid for before it is used, in slices of [`SLICE`]: a use counts from the moment at
//! which it is on the disk, and a process that dies loses what is left of its slice and wins nothing.
//!
//! A halt that an enforcer never heard of it cannot hold to: that is what whoever makes the file
//! decides. It decides nothing by itself, reads no file and no clock: see [`crate::enforcer`].

use std::{collections::BTreeMap, time::Duration};

use estoppel_model::{Actor, Boottime, EntityId, SignedOrder, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Now, Signatures};

/// Largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 16 * 1024;
/// The file's name in a state folder.
pub const FILE_NAME: &str = "break-glass.json";
/// Longest time from a file's making to its end, whatever it says.
pub const VALID_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Longest that an enforcer goes on by one file, whatever it says.
pub const USE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an enforcer goes on at a time without writing that it does.
pub const SLICE: Duration = Duration::from_secs(10);
/// How long it goes on after a lease that it really had, while the first slice is written: what is in
/// flight is not cut for a disk.
pub const GRACE: Duration = Duration::from_secs(2);
/// How far an enforcer's clock may be behind the server's.
const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(5 * 60);
/// Most files of which an enforcer remembers the use.
const FILES_MAX: usize = 64;
/// First line of what is signed. It is no JSON: neither an order nor this can pass for the other.
const LABEL: &str = "estoppel break-glass v1\n";

/// What a break-glass file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakGlass {
    /// Names it, for records.
    pub id: Uuid,
    /// Who made it.
    pub issued_by: Actor,
    /// When.
    pub issued_at: Timestamp,
    /// When it ends, by the wall clock; [`VALID_MAX`] after its making at the latest.
    pub until: Timestamp,
    /// How long an enforcer goes on by it, in all; at most [`USE_MAX`].
    pub use_seconds_max: u64,
    /// Why it was made.
    pub reason: String,
    /// Which enforcers it is for.
    pub audience: GlassAudience,
}

/// Which enforcers a file is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlassAudience {
    /// All of the server's.
    Everyone,
    /// Those of this name.
    Enforcer(String),
    /// Those whose token is bound to this tenant.
    Tenant(EntityId),
}

impl std::fmt::Display for GlassAudience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everyone => f.write_str("every enforcer"),
            Self::Enforcer(name) => write!(f, "enforcer {name:?}"),
            Self::Tenant(tenant) => write!(f, "enforcers of tenant {tenant}"),
        }
    }
}

/// A break-glass file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedBreakGlass {
    /// The JSON of a [`BreakGlass`], byte for byte as it was signed.
    pub break_glass: String,
    /// The server's public key, lower-case hex.
    pub key: String,
    /// Ed25519 over [`SignedBreakGlass::signed_text`] as an order's text, lower-case hex.
    pub signature: String,
}

impl SignedBreakGlass {
    /// What is signed, as the text of an order that no reader of orders takes.
    pub fn signed_text(break_glass: &str) -> String {
        format!("{LABEL}{break_glass}")
    }

    /// The file of a statement whose [`SignedBreakGlass::signed_text`] was signed.
    pub fn of(break_glass: String, signed: SignedOrder) -> Self {
        Self { break_glass, key: signed.key, signature: signed.signature }
    }

    /// Whether the signature is the server's, and what it is under.
    ///
    /// # Errors
    /// When it is another key's, the signature is wrong, or it cannot be read.
    pub fn open(
        &self,
        server_key: &str,
        signatures: &dyn Signatures,
    ) -> Result<BreakGlass, GlassError> {
        if self.key != server_key {
            return Err(GlassError::Foreign);
        }
        let signed = SignedOrder {
            order: Self::signed_text(&self.break_glass),
            key: self.key.clone(),
            signature: self.signature.clone(),
        };
        if self.break_glass.len() > FILE_BYTES_MAX || !signatures.are_valid(&signed) {
            return Err(GlassError::Forged);
        }
        serde_json::from_str(&self.break_glass).map_err(|_| GlassError::Unreadable)
    }
}

/// How much of a file an enforcer has used; kept over a restart, and told to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlassUse {
    /// The file, so that whoever hears of it can check it.
    pub file: SignedBreakGlass,
    /// When the first use began, by the enforcer's wall clock.
    pub first_at: Timestamp,
    /// When the last slice of time was paid for.
    pub last_at: Timestamp,
    /// Time that was paid for, on the boot clock.
    pub used_ms: u64,
}

/// Why a file does not let agents go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlassError {
    /// Nobody to compare its key with.
    #[error("this enforcer has never met its server, and cannot know who signed it")]
    NoServerKey,
    /// Of another deployment, or made by somebody.
    #[error("it is signed by another key than that of this enforcer's server")]
    Foreign,
    /// Changed after it was made.
    #[error("its signature is wrong: it was changed after it was made")]
    Forged,
    /// Of a newer version.
    #[error("it says what this version does not understand")]
    Unreadable,
    /// It is not meant.
    #[error("it is for {0}, which this one is not: make one for it")]
    NotForThis(GlassAudience),
    /// Over by the wall clock.
    #[error("it was good until {0}: make another")]
    Expired(Timestamp),
    /// The wall clock was set back.
    #[error("it was made at {0}, which is still to come by this machine's clock: set the clock")]
    ClockBehind(Timestamp),
    /// Over by the boot clock.
    #[error("it is used up, after {} s on this enforcer: make another", .0.as_secs())]
    UsedUp(Duration),
    /// One for each file is remembered.
    #[error("{FILES_MAX} files were used here: move the state folder away")]
    TooMany,
}

/// What an enforcer may do by files, and what it has done.
#[derive(Debug, Default)]
pub(crate) struct Glass {
    uses: BTreeMap<Uuid, GlassUse>,
    /// Until when it goes on, as enforcement code is told.
    until: Option<Boottime>,
    /// Until when that is paid for.
    paid_until: Option<Boottime>,
    /// A slice that is on its way to the disk.
    due: Option<Due>,
    /// What the server was told on this connection, by file.
    told: BTreeMap<Uuid, u64>,
}

#[derive(Debug)]
struct Due {
    id: Uuid,
    usage: GlassUse,
    until: Boottime,
}

/// A file that lets agents go on.
struct Admitted {
    id: Uuid,
    /// How much of its time is left, by the boot clock.
    left: Duration,
    /// How long it is good yet, by the wall clock.
    valid: Duration,
}

/// Whom a file is measured against.
pub(crate) struct Holder<'a> {
    pub(crate) name: &'a str,
    pub(crate) tenant: Option<&'a EntityId>,
    pub(crate) server_key: Option<&'a str>,
    pub(crate) signatures: &'a dyn Signatures,
    pub(crate) lease_until: Option<Boottime>,
}

impl Glass {
    pub(crate) fn new(uses: Vec<GlassUse>, holder: &Holder<'_>) -> Self {
        let known = |usage: GlassUse| {
            let glass = usage.file.open(holder.server_key?, holder.signatures).ok()?;
            Some((glass.id, usage))
        };
        let mut this = Self::default();
        for (id, usage) in uses.into_iter().filter_map(known) {
            // Of several lines of one file the longest use is the latest.
            let used = this.uses.get(&id).map_or(0, |known| known.used_ms);
            if usage.used_ms >= used {
                this.uses.insert(id, usage);
            }
        }
        this
    }

    pub(crate) const fn until(&self) -> Option<Boottime> {
        self.until
    }

    pub(crate) fn holds(&self, now: Boottime) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(crate) fn uses(&self) -> impl Iterator<Item = &GlassUse> {
        self.uses.values()
    }

    /// There is no file any more.
    pub(crate) fn withdrawn(&mut self) {
        self.due = None;
        self.until = None;
        self.paid_until = None;
    }

    /// A file lies there. Returns what is to be kept before time is used, if time is due to be paid.
    pub(crate) fn found(
        &mut self,
        file: &SignedBreakGlass,
        holder: &Holder<'_>,
        now: Now,
    ) -> Result<Option<GlassUse>, GlassError> {
        let admitted = self.admit(file, holder, now);
        let Admitted { id, left, valid } = admitted.inspect_err(|_| self.withdrawn())?;
        let used = self.uses.get(&id);
        if let Some(lease) = holder.lease_until
            && now.boot < lease
        {
            self.until = Some(lease + GRACE.min(left));
            return Ok(None);
        }
        let paid = self.paid_until.filter(|paid| now.boot < *paid);
        // The grace after a lease is paid for with the first slice.
        let since_lease = holder.lease_until.filter(|_| self.holds(now.boot));
        if paid.is_some_and(|paid| paid.since(now.boot) > SLICE / 2) {
            return Ok(None);
        }
        let from = paid.or(since_lease).unwrap_or(now.boot);
        let until = (now.boot + SLICE).min(now.boot + valid).min(from + left);
        let slice = until.since(from);
        if slice.is_zero() {
            return Ok(None);
        }
        let before = used.map_or(0, |usage| usage.used_ms);
        let usage = GlassUse {
            file: file.clone(),
            first_at: used.map_or(now.wall, |usage| usage.first_at),
            last_at: now.wall,
            used_ms: before.saturating_add(millis(slice)),
        };
        self.due = Some(Due { id, usage: usage.clone(), until });
        Ok(Some(usage))
    }

    /// What was to be kept is on the disk: the time that it pays for may be used.
    pub(crate) fn kept(&mut self, kept: &GlassUse) -> bool {
        let Some(due) = self.due.take_if(|due| due.usage == *kept) else { return false };
        self.uses.insert(due.id, due.usage);
        self.paid_until = Some(due.until);
        self.until = Some(due.until);
        true
    }

    /// Nothing was told on a connection that begins.
    pub(crate) fn connected(&mut self) {
        self.told.clear();
    }

    /// What the server has not been told yet on this connection.
    pub(crate) fn untold(&mut self) -> Vec<GlassUse> {
        let told = &mut self.told;
        self.uses
            .iter()
            .filter(|(id, usage)| told.insert(**id, usage.used_ms) != Some(usage.used_ms))
            .map(|(_, usage)| usage.clone())
            .collect()
    }

    fn admit(
        &self,
        file: &SignedBreakGlass,
        holder: &Holder<'_>,
        now: Now,
    ) -> Result<Admitted, GlassError> {
        let server_key = holder.server_key.ok_or(GlassError::NoServerKey)?;
        let glass = file.open(server_key, holder.signatures)?;
        let meant = match &glass.audience {
            GlassAudience::Everyone => true,
            GlassAudience::Enforcer(name) => name == holder.name,
            GlassAudience::Tenant(tenant) => Some(tenant) == holder.tenant,
        };
        if !meant {
            return Err(GlassError::NotForThis(glass.audience));
        }
        if now.wall + CLOCK_BEHIND_MAX < glass.issued_at {
            return Err(GlassError::ClockBehind(glass.issued_at));
        }
        let until = glass.until.min(glass.issued_at + VALID_MAX);
        if until <= now.wall {
            return Err(GlassError::Expired(until));
        }
        let use_max = Duration::from_secs(glass.use_seconds_max).min(USE_MAX);
        let used = self.uses.get(&glass.id).map_or(0, |usage| usage.used_ms);
        let left = use_max.saturating_sub(Duration::from_millis(used));
        // What is paid for is used before it is over.
        if left.is_zero() && self.paid_until.is_none_or(|paid| paid <= now.boot) {
            return Err(GlassError::UsedUp(use_max));
        }
        if !self.uses.contains_key(&glass.id) && self.uses.len() >= FILES_MAX {
            return Err(GlassError::TooMany);
        }
        Ok(Admitted { id: glass.id, left, valid: until.since(now.wall) })
    }
}

/// Rounded up: what is used may count for more than it was, never for less.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
