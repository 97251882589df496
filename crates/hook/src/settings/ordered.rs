//! JSON objects that keep the order and the text of what is in them.

use std::fmt::Write as _;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

use super::SettingsError;

/// An object: its fields as they are written.
#[derive(Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    // Which of the two counts, readers do not agree upon.
                    if object.get(&key).is_some() {
                        return Err(A::Error::custom(format!("`{key}` stands there twice")));
                    }
                    object.0.push((key, value));
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl Object {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.0.iter().map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(own, _)| own == key).map(|(_, value)| &**value)
    }

    /// Puts a value in the place of the one with this key, else at the end.
    pub(super) fn set(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(own, _)| own == key) {
            Some((_, place)) => *place = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.0.retain(|(own, _)| own != key);
    }

    /// The object as text, its fields on lines of their own; `level` is that of its braces.
    pub(super) fn raw(&self, level: usize) -> Result<Box<RawValue>, SettingsError> {
        let fields = self.0.iter().map(|(key, value)| {
            let key = to_raw_value(key).map_err(SettingsError::Malformed)?;
            Ok(format!("{key}: {}", value.get()))
        });
        lines('{', &fields.collect::<Result<Vec<_>, SettingsError>>()?, '}', level)
    }
}

/// A list as text, its items on lines of their own; `level` is that of its brackets.
pub(super) fn array(items: &[Box<RawValue>], level: usize) -> Result<Box<RawValue>, SettingsError> {
    let items: Vec<String> = items.iter().map(|item| item.get().to_owned()).collect();
    lines('[', &items, ']', level)
}

fn lines(
    open: char,
    items: &[String],
    close: char,
    level: usize,
) -> Result<Box<RawValue>, SettingsError> {
    let mut text = String::from(open);
    for (index, item) in items.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}\n{:width$}{item}", "", width = (level + 1) * 2);
    }
    if !items.is_empty() {
        let _ = write!(text, "\n{:width$}", "", width = level * 2);
    }
    text.push(close);
    RawValue::from_string(text).map_err(SettingsError::Malformed)
}
