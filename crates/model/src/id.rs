//! Ids. Each kind of id is a type of its own, so that one cannot be passed for another.

use std::{fmt, marker::PhantomData, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::{Timestamp, text::quoted};

/// A UUID (version 7 where Estoppel makes it: in order of time), typed by what it names.
pub struct Id<T> {
    uuid: Uuid,
    of: PhantomData<fn() -> T>,
}

/// What [`Id`]s can name.
pub mod named {
    /// An order.
    #[derive(Debug)]
    pub enum Order {}
    /// An incident.
    #[derive(Debug)]
    pub enum Incident {}
    /// A run of a playbook.
    #[derive(Debug)]
    pub enum Run {}
    /// One connected enforcer: a guard, a gateway or a host.
    #[derive(Debug)]
    pub enum Enforcer {}
}

/// Names an order; made by the client, so that a retry is the same order.
pub type OrderId = Id<named::Order>;
/// Names an incident from its first moment; the ledger gives it a number later.
pub type IncidentId = Id<named::Incident>;
/// Names a run of a playbook.
pub type RunId = Id<named::Run>;
/// Names one running enforcer.
pub type EnforcerId = Id<named::Enforcer>;

impl<T> Id<T> {
    /// A new id, in order of time (RFC 9562, version 7).
    pub fn new() -> Self {
        Self::from_uuid(Uuid::now_v7())
    }

    /// The id with this UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self { uuid, of: PhantomData }
    }

    /// The UUID.
    pub const fn as_uuid(&self) -> Uuid {
        self.uuid
    }

    /// The UUID's 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.uuid.as_bytes()
    }
}

impl<T> Default for Id<T> {
    fn default() -> Self {
        Self::new()
    }
}
impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uuid.cmp(&other.uuid)
    }
}
impl<T> std::hash::Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}
impl<T> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid.hyphenated(), f)
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<T> FromStr for Id<T> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::parse_str(text)
            .map(Self::from_uuid)
            .map_err(|_| IdError::NotUuid { text: quoted(text) })
    }
}
impl<T> Serialize for Id<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de, T> Deserialize<'de> for Id<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// An id of ours must be a UUID.
    #[error("{text} is not an id: expected a UUID")]
    NotUuid {
        /// The text, shortened and quoted.
        text: String,
    },
    /// An id of a user's own (a session, a task) must say something.
    #[error("an id must not be empty")]
    Empty,
    /// An id of a user's own is at most [`EntityId::BYTES_MAX`] bytes.
    #[error("{text} is {bytes} bytes long: an id has at most {} bytes", EntityId::BYTES_MAX)]
    TooLong {
        /// The start of the text, quoted.
        text: String,
        /// How long it is.
        bytes: usize,
    },
    /// No white space, no control characters, nothing that hides or turns text.
    #[error("{text} holds the character U+{code:04X}, which an id must not")]
    Forbidden {
        /// The text, shortened and quoted.
        text: String,
        /// The character's code point.
        code: u32,
    },
    /// An incident's number has its own shape.
    #[error("{text} is not an incident number: expected IR-YYYY-NNN, such as IR-2026-001")]
    NotNumber {
        /// The text, shortened and quoted.
        text: String,
    },
}

/// A name that the user's own product gave: of a session, a user, a task, a tenant, an agent.
///
/// 1 to 256 bytes without white space, control characters or invisible and bidirectional
/// formatting characters. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(Arc<str>);

impl EntityId {
    /// Longest id, in bytes of UTF-8.
    pub const BYTES_MAX: usize = 256;

    /// Reads an id.
    ///
    /// # Errors
    /// When the text is empty, too long, or holds a character that an id must not.
    pub fn new(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(IdError::TooLong { text: quoted(text), bytes: text.len() });
        }
        if let Some(bad) = text.chars().find(|c| c.is_whitespace() || crate::text::is_invisible(*c))
        {
            return Err(IdError::Forbidden { text: quoted(text), code: bad.into() });
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
impl FromStr for EntityId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}
impl Serialize for EntityId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for EntityId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Who did something: a person, a machine's token or a part of Estoppel, such as `alice` or
/// `detector:egress`. The name comes from the token or the code, never from a request's body.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actor(EntityId);

impl Actor {
    /// The actor of this name.
    ///
    /// # Errors
    /// As [`EntityId::new`].
    pub fn new(name: &str) -> Result<Self, IdError> {
        EntityId::new(name).map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An incident's number for people, `IR-YYYY-NNN`, counted within the year (row P7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncidentNumber {
    year: i16,
    count: u32,
}

impl IncidentNumber {
    /// The `count`th incident of `year`, counted from 1.
    pub const fn new(year: i16, count: u32) -> Self {
        Self { year, count }
    }

    /// The first free number in the year of `at`, given the last number that was given out.
    pub fn following(last: Option<Self>, at: Timestamp) -> Self {
        match last {
            Some(last) if last.year >= at.year() => Self { year: last.year, count: last.count + 1 },
            _ => Self { year: at.year(), count: 1 },
        }
    }
}

impl fmt::Display for IncidentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IR-{:04}-{:03}", self.year, self.count)
    }
}
impl fmt::Debug for IncidentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for IncidentNumber {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let number = || {
            let (year, count) = text.strip_prefix("IR-")?.split_once('-')?;
            let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            (year.len() == 4 && count.len() >= 3 && digits(year) && digits(count)).then_some(())?;
            Some(Self { year: year.parse().ok()?, count: count.parse().ok()? })
        };
        number().ok_or_else(|| IdError::NotNumber { text: quoted(text) })
    }
}
impl Serialize for IncidentNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for IncidentNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_id_refuses_what_could_deceive_a_reader() {
        for (text, code) in
            [("a b", 0x20), ("a\u{1b}[2J", 0x1b), ("a\u{202e}b", 0x202e), ("a\u{200b}", 0x200b)]
        {
            let error = EntityId::new(text).unwrap_err();
            assert!(
                matches!(error, IdError::Forbidden { code: found, .. } if found == code),
                "{error}"
            );
            assert!(error.to_string().is_ascii(), "the error itself must be inert: {error}");
        }
        assert_eq!(EntityId::new(""), Err(IdError::Empty));
        assert!(EntityId::new(&"x".repeat(256)).is_ok());
        assert!(matches!(
            EntityId::new(&"x".repeat(257)),
            Err(IdError::TooLong { bytes: 257, .. })
        ));
        assert!(EntityId::new("müller@example.com/ß|,'").is_ok());
    }

    #[test]
    fn an_incident_number_counts_within_its_year() {
        let at: Timestamp = "2026-12-31T23:59:59Z".parse().unwrap();
        let first = IncidentNumber::following(None, at);
        assert_eq!(first.to_string(), "IR-2026-001");
        let second = IncidentNumber::following(Some(first), at);
        assert_eq!(second.to_string(), "IR-2026-002");
        let new_year: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(IncidentNumber::following(Some(second), new_year).to_string(), "IR-2027-001");
        // A clock that was set back must not give a number twice.
        let third = IncidentNumber::following(Some(IncidentNumber::new(2027, 1)), at);
        assert_eq!(third.to_string(), "IR-2027-002");
        assert_eq!("IR-2026-1234".parse(), Ok(IncidentNumber::new(2026, 1234)));
        for text in ["IR-26-001", "IR-2026-01", "ir-2026-001", "IR-2026-+01", ""] {
            assert!(text.parse::<IncidentNumber>().is_err(), "{text}");
        }
    }
}
