//! Who acts ([`Subject`]) and what an order reaches ([`Scope`], [`ScopeSet`]).
//!
//! The grammar of a scope: `global`, or `KIND:ID` with one of the eight [`Kind`]s, or
//! `plugin:NAME@RANGE`. Scopes combine by union only: an order reaches a subject as soon as one of
//! its scopes does.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{EntityId, IdError, VersionRange, VersionRangeError, text::quoted};

/// What kind of thing an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An agent of the user's product.
    Agent,
    /// One conversation or run of an agent.
    Session,
    /// The person on whose behalf an agent acts.
    User,
    /// One task of a session.
    Task,
    /// A customer of the user's product.
    Tenant,
    /// An extension, optionally of some versions.
    Plugin,
    /// One tool that agents call.
    Tool,
    /// A part of the user's own product; halting it is a feature flag.
    Component,
}

impl Kind {
    /// All kinds, in the order in which they are listed to people.
    pub const ALL: [Self; 8] = [
        Self::Agent,
        Self::Session,
        Self::User,
        Self::Task,
        Self::Tenant,
        Self::Plugin,
        Self::Tool,
        Self::Component,
    ];

    /// The kind's word in a scope.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Session => "session",
            Self::User => "user",
            Self::Task => "task",
            Self::Tenant => "tenant",
            Self::Plugin => "plugin",
            Self::Tool => "tool",
            Self::Component => "component",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an order reaches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything.
    Global,
    /// All that this id names. `kind` is never [`Kind::Plugin`] with a range: that is
    /// [`Scope::PluginVersions`].
    Entity {
        /// What the id names.
        kind: Kind,
        /// The name.
        id: EntityId,
    },
    /// Some versions of a plugin.
    PluginVersions {
        /// The plugin.
        name: EntityId,
        /// Which versions.
        range: VersionRange,
    },
}

/// Why a text is no scope. The message holds a suggestion where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Neither `global` nor `KIND:ID`.
    #[error("{text} is not a scope: {hint}")]
    Grammar {
        /// The text, shortened and quoted.
        text: String,
        /// What to write instead.
        hint: String,
    },
    /// The id behind the colon is wrong.
    #[error("scope {text}: {source}")]
    Id {
        /// The text, shortened and quoted.
        text: String,
        /// What is wrong with the id.
        source: IdError,
    },
    /// The range behind the `@` is wrong.
    #[error("scope {text}: {source}")]
    Range {
        /// The text, shortened and quoted.
        text: String,
        /// What is wrong with the range.
        source: VersionRangeError,
    },
    /// A set of scopes has 1 to 64.
    #[error("{count} scopes: an order has 1 to {} of them", ScopeSet::MAX)]
    Count {
        /// How many there were.
        count: usize,
    },
}

impl Scope {
    /// The scope of one id.
    pub const fn entity(kind: Kind, id: EntityId) -> Self {
        Self::Entity { kind, id }
    }

    /// Whether this scope reaches a subject.
    ///
    /// The naive rule; enforcers fold it into an index. A plugin whose version is not known is
    /// reached by every range.
    pub fn reaches(&self, subject: &Subject) -> bool {
        match self {
            Self::Global => true,
            Self::Entity { kind: Kind::Plugin, id } => {
                subject.plugin.as_ref().is_some_and(|plugin| plugin.name == *id)
            }
            Self::Entity { kind, id } => subject.id(*kind) == Some(id),
            Self::PluginVersions { name, range } => subject.plugin.as_ref().is_some_and(|plugin| {
                plugin.name == *name
                    && range.contains(plugin.version.as_ref().map(EntityId::as_str))
            }),
        }
    }

    /// The kind of what the scope names, `None` for [`Scope::Global`].
    pub const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Global => None,
            Self::Entity { kind, .. } => Some(*kind),
            Self::PluginVersions { .. } => Some(Kind::Plugin),
        }
    }
}

/// What to write instead of a text that is no scope.
fn suggestion(text: &str) -> String {
    const FORM: &str = "write `global` or KIND:ID, such as `session:abc123`";
    let (word, id) =
        text.split_once([':', '=', '/', ' ']).map_or((text, None), |(word, id)| (word, Some(id)));
    let word = word.trim().to_lowercase();
    let nearest = std::iter::once("global")
        .chain(Kind::ALL.map(Kind::as_str))
        .map(|known| (strsim::damerau_levenshtein(&word, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .map(|(_, known)| known);
    let id = id.map(str::trim).filter(|id| EntityId::new(id).is_ok() && id.is_ascii());
    match (nearest, id) {
        (Some("global"), _) => "did you mean `global`?".to_owned(),
        (Some(known), Some(id)) => format!("did you mean `{known}:{id}`?"),
        (Some(known), None) => format!("`{known}` needs an id, as in `{known}:abc123`"),
        (None, _) => {
            let kinds = Kind::ALL.map(Kind::as_str).join(", ");
            format!("{FORM}; the kinds are {kinds}")
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text == "global" {
            return Ok(Self::Global);
        }
        let grammar = || ScopeError::Grammar { text: quoted(text), hint: suggestion(text) };
        let (word, id) = text.split_once(':').ok_or_else(grammar)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(grammar)?;
        let entity = |id: &str| {
            EntityId::new(id).map_err(|source| ScopeError::Id { text: quoted(text), source })
        };
        // `@org/name@>=2`: the `@` that opens a range is never the first character.
        match id.char_indices().skip(1).filter(|(_, c)| *c == '@').last() {
            Some((at, _)) if kind == Kind::Plugin => Ok(Self::PluginVersions {
                name: entity(&id[..at])?,
                range: id[at + 1..]
                    .parse()
                    .map_err(|source| ScopeError::Range { text: quoted(text), source })?,
            }),
            _ => Ok(Self::Entity { kind, id: entity(id)? }),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Entity { kind, id } => write!(f, "{kind}:{id}"),
            Self::PluginVersions { name, range } => write!(f, "plugin:{name}@{range}"),
        }
    }
}
impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A union of 1 to 64 scopes, sorted and without duplicates; on the wire one text or an array.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopeSet(Vec<Scope>);

impl ScopeSet {
    /// Most scopes of one order.
    pub const MAX: usize = 64;

    /// The union of the scopes.
    ///
    /// # Errors
    /// When there are none or more than 64.
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, ScopeError> {
        let mut scopes: Vec<Scope> = scopes.into_iter().collect();
        scopes.sort_unstable();
        scopes.dedup();
        if (1..=Self::MAX).contains(&scopes.len()) {
            Ok(Self(scopes))
        } else {
            Err(ScopeError::Count { count: scopes.len() })
        }
    }

    /// The scopes, sorted.
    pub fn iter(&self) -> std::slice::Iter<'_, Scope> {
        self.0.iter()
    }

    /// Whether one of the scopes reaches the subject.
    pub fn reaches(&self, subject: &Subject) -> bool {
        self.0.iter().any(|scope| scope.reaches(subject))
    }
}

impl From<Scope> for ScopeSet {
    fn from(scope: Scope) -> Self {
        Self(vec![scope])
    }
}
impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " + " };
            write!(f, "{separator}{scope}")?;
        }
        Ok(())
    }
}
impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}
impl<'de> Deserialize<'de> for ScopeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ScopeSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a scope such as \"session:abc123\", or an array of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ScopeSet, E> {
                text.parse::<Scope>().map(ScopeSet::from).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<ScopeSet, A::Error> {
                let mut scopes = Vec::new();
                while let Some(scope) = seq.next_element()? {
                    scopes.push(scope);
                    if scopes.len() > ScopeSet::MAX {
                        break;
                    }
                }
                ScopeSet::new(scopes).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A plugin in use; a version that is not known is reached by every range.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginRef {
    /// The plugin's name.
    pub name: EntityId,
    /// Its version, as its publisher writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<EntityId>,
}

/// Who acts: what is known of the session, user, task and so on behind a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is the `Kind` of its name")]
pub struct Subject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PluginRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<EntityId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<EntityId>,
}

impl Subject {
    /// The subject of a session alone.
    pub fn session(id: EntityId) -> Self {
        Self { session: Some(id), ..Self::default() }
    }

    /// The id of this kind, where it is known; of a plugin, its name.
    pub fn id(&self, kind: Kind) -> Option<&EntityId> {
        match kind {
            Kind::Agent => self.agent.as_ref(),
            Kind::Session => self.session.as_ref(),
            Kind::User => self.user.as_ref(),
            Kind::Task => self.task.as_ref(),
            Kind::Tenant => self.tenant.as_ref(),
            Kind::Plugin => self.plugin.as_ref().map(|plugin| &plugin.name),
            Kind::Tool => self.tool.as_ref(),
            Kind::Component => self.component.as_ref(),
        }
    }

    /// The ids that are known, with their kinds.
    pub fn ids(&self) -> impl Iterator<Item = (Kind, &EntityId)> {
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.id(kind)?)))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (kind, id) in self.ids() {
            write!(f, "{separator}{kind}:{id}")?;
            separator = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_and_written_alike() {
        for text in [
            "global",
            "session:abc123",
            "user:müller@example.com",
            "task:urn:x:1",
            "component:vector_search",
            "plugin:scraper",
            "plugin:scraper@>=2.1",
            "plugin:@org/scraper@>=2.1,<3",
            "plugin:@org/scraper",
        ] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        assert_eq!("plugin:x@>= 2.1".parse::<Scope>().unwrap().to_string(), "plugin:x@>=2.1");
    }

    #[test]
    fn a_wrong_scope_gets_a_suggestion() {
        let check = |text: &str, expect: &str| {
            let message = text.parse::<Scope>().unwrap_err().to_string();
            assert!(message.contains(expect), "{text}: {message}");
        };
        check("sesion:abc123", "did you mean `session:abc123`?");
        check("Session:abc123", "did you mean `session:abc123`?");
        check("session=abc123", "did you mean `session:abc123`?");
        check("GLOBAL", "did you mean `global`?");
        check("session", "`session` needs an id");
        check("session:", "an id must not be empty");
        check("everything", "the kinds are agent, session");
        check("", "write `global` or KIND:ID");
        check("plugin:scraper@new", "`new` is not a version comparison");
        check("session:a b", "U+0020");
    }

    #[test]
    fn a_set_is_a_text_or_an_array() {
        let one: ScopeSet = serde_json::from_str("\"session:a\"").unwrap();
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"session:a\"");
        let two: ScopeSet = serde_json::from_str("[\"user:u\",\"session:a\",\"user:u\"]").unwrap();
        assert_eq!(serde_json::to_string(&two).unwrap(), "[\"session:a\",\"user:u\"]");
        for bad in ["[]", "3", "{}", "null"] {
            assert!(serde_json::from_str::<ScopeSet>(bad).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..65).map(|index| format!("user:{index}")).collect();
        let error = serde_json::from_value::<ScopeSet>(many.into()).unwrap_err();
        assert!(error.to_string().contains("1 to 64"), "{error}");
    }

    #[test]
    fn a_scope_reaches_by_exact_name_only() {
        let mut subject = Subject::session(EntityId::new("abc").unwrap());
        subject.plugin = Some(PluginRef { name: EntityId::new("scraper").unwrap(), version: None });
        let check = |scope: &str, expect: bool, subject: &Subject| {
            assert_eq!(scope.parse::<Scope>().unwrap().reaches(subject), expect, "{scope}");
        };
        check("global", true, &subject);
        check("session:abc", true, &subject);
        check("session:ab", false, &subject);
        check("user:abc", false, &subject);
        check("plugin:scraper", true, &subject);
        check("plugin:scraper@>=2", true, &subject);
        subject.plugin.as_mut().unwrap().version = Some(EntityId::new("1.9").unwrap());
        check("plugin:scraper@>=2", false, &subject);
        check("plugin:scraper", true, &subject);
    }
}
