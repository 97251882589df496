//! Inputs of a run: typed, checked when the run starts, and passed on only as whole values.

use std::{collections::BTreeMap, fmt};

use estoppel_model::{Destination, EntityId, Scope, text::quoted};
use serde::Deserialize;

use crate::Playbook;

/// Longest text, in bytes of UTF-8.
pub(crate) const TEXT_BYTES_MAX: usize = 2_000;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    /// A session's id.
    Session,
    /// What an order reaches.
    Scope,
    /// A host, optionally with a port.
    Destination,
    /// A name without white space, such as a channel's.
    Name,
    /// A whole number, from 0.
    Count,
    /// An amount of US dollars, from 0, to a millionth.
    Usd,
    /// `true` or `false`.
    Flag,
    /// Words for people.
    Text,
}

impl InputType {
    /// The type's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Scope => "scope",
            Self::Destination => "destination",
            Self::Name => "name",
            Self::Count => "count",
            Self::Usd => "usd",
            Self::Flag => "flag",
            Self::Text => "text",
        }
    }

    /// Reads a value of this type.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Session => {
                EntityId::new(text).map(Value::Session).map_err(|error| error.to_string())
            }
            Self::Scope => text
                .parse()
                .map(Value::Scope)
                .map_err(|error: estoppel_model::ScopeError| error.to_string()),
            Self::Destination => text
                .parse()
                .map(Value::Destination)
                .map_err(|error: estoppel_model::DestinationError| error.to_string()),
            Self::Name => EntityId::new(text).map(Value::Name).map_err(|error| error.to_string()),
            Self::Count => text
                .parse()
                .map(Value::Count)
                .map_err(|_| format!("{} is no whole number from 0", quoted(text))),
            Self::Usd => micro_usd(text).map(|micro| Value::Usd { micro }).ok_or_else(|| {
                format!("{} is no amount of US dollars, such as `2.50`", quoted(text))
            }),
            Self::Flag => text
                .parse()
                .map(Value::Flag)
                .map_err(|_| format!("{} is neither `true` nor `false`", quoted(text))),
            Self::Text if text.len() > TEXT_BYTES_MAX => {
                Err(format!("the text has {} bytes: at most {TEXT_BYTES_MAX}", text.len()))
            }
            Self::Text => Ok(Value::Text(text.to_owned())),
        }
    }

    /// Whether a value of this type can stand where `wanted` is asked for: a session is a scope.
    pub(crate) const fn fits(self, wanted: Self) -> bool {
        matches!(
            (self, wanted),
            (Self::Session, Self::Session | Self::Scope)
                | (Self::Scope, Self::Scope)
                | (Self::Destination, Self::Destination)
                | (Self::Name, Self::Name)
                | (Self::Count, Self::Count)
                | (Self::Usd, Self::Usd)
                | (Self::Flag, Self::Flag)
                | (Self::Text, Self::Text)
        )
    }
}

impl fmt::Display for InputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value of one of the [`InputType`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the `InputType` of its name")]
pub enum Value {
    Session(EntityId),
    Scope(Scope),
    Destination(Destination),
    Name(EntityId),
    Count(u64),
    Usd {
        /// In millionths.
        micro: u64,
    },
    Flag(bool),
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) | Self::Name(id) => fmt::Display::fmt(id, f),
            Self::Scope(scope) => fmt::Display::fmt(scope, f),
            Self::Destination(destination) => fmt::Display::fmt(destination, f),
            Self::Count(count) => fmt::Display::fmt(count, f),
            Self::Usd { micro } => write!(f, "{}.{:06}", micro / MICRO, micro % MICRO),
            Self::Flag(flag) => fmt::Display::fmt(flag, f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Millionths of a dollar in one.
pub(crate) const MICRO: u64 = 1_000_000;

/// A decimal amount in millionths.
fn micro_usd(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 6 {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(MICRO)?.checked_add(part)
}

/// The inputs of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(BTreeMap<String, Value>);

/// Why a run cannot have these inputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The playbook does not know it.
    #[error("playbook `{playbook}` has no input {name}")]
    Unknown {
        /// The playbook.
        playbook: String,
        /// The input, quoted.
        name: String,
    },
    /// The playbook needs it.
    #[error("playbook `{playbook}` needs the input `{name}`, of type {of}")]
    Missing {
        /// The playbook.
        playbook: String,
        /// The input.
        name: String,
        /// Its type.
        of: InputType,
    },
    /// It is of another type.
    #[error("input `{name}`: {reason}")]
    Type {
        /// The input.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

impl Inputs {
    /// Reads inputs from text, each by the type that the playbook gives it.
    ///
    /// # Errors
    /// When one is missing, not known, or not of its type.
    pub fn read<'a>(
        playbook: &Playbook,
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InputError> {
        let mut inputs = BTreeMap::new();
        for (name, text) in texts {
            let spec = playbook.inputs.get(name).ok_or_else(|| InputError::Unknown {
                playbook: playbook.name.clone(),
                name: quoted(name),
            })?;
            let value = spec
                .of
                .parse(text)
                .map_err(|reason| InputError::Type { name: name.to_owned(), reason })?;
            inputs.insert(name.to_owned(), value);
        }
        match playbook
            .inputs
            .iter()
            .find(|(name, spec)| spec.required && !inputs.contains_key(*name))
        {
            Some((name, spec)) => Err(InputError::Missing {
                playbook: playbook.name.clone(),
                name: name.clone(),
                of: spec.of,
            }),
            None => Ok(Self(inputs)),
        }
    }

    /// The value of an input, where the run has it.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The inputs as text, as the journal keeps them.
    pub fn to_texts(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| (name.clone(), value.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_amounts_and_flags_are_read_and_written_alike() {
        let read = |of: InputType, text: &str| of.parse(text);
        assert_eq!(read(InputType::Count, "50"), Ok(Value::Count(50)));
        for (text, micro) in
            [("5", 5_000_000), ("0.25", 250_000), ("2.500001", 2_500_001), ("0", 0)]
        {
            let value = read(InputType::Usd, text).unwrap();
            assert_eq!(value, Value::Usd { micro });
            assert_eq!(read(InputType::Usd, &value.to_string()), Ok(value));
        }
        for text in ["", "-1", "1.", ".5", "1.0000001", "1e3", "5 USD", "99999999999999999999"] {
            assert!(read(InputType::Usd, text).unwrap_err().contains("2.50"), "{text}");
        }
        for text in ["", "-1", "1.5", "many"] {
            assert!(read(InputType::Count, text).is_err(), "{text}");
        }
        for flag in [true, false] {
            assert_eq!(read(InputType::Flag, &flag.to_string()), Ok(Value::Flag(flag)));
        }
        for text in ["", "yes", "True", "1"] {
            assert!(read(InputType::Flag, text).unwrap_err().contains("`true`"), "{text}");
        }
    }
}
