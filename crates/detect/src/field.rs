//! The texts inside a JSON field of an event, as far as they are inspected.

use std::borrow::Cow;

use serde_json::{Value, value::RawValue};

/// Most bytes of one field that are inspected.
pub(crate) const INSPECTED_BYTES_MAX: usize = 64 * 1024;
/// How much of that is taken from the end: a payload behind padding must not go unseen.
const TAIL_BYTES: usize = 16 * 1024;

/// The texts of a field, one a line.
pub(crate) struct FieldText {
    /// The texts, at most [`INSPECTED_BYTES_MAX`] bytes and a mark between head and tail.
    pub(crate) text: String,
    /// Whether something in the middle was left out.
    pub(crate) cut: bool,
}

/// Takes the texts out of a field: values and keys, since both reach the model.
pub(crate) fn texts(field: &RawValue) -> FieldText {
    let Ok(value) = serde_json::from_str::<Value>(field.get()) else {
        // A field that was accepted is JSON; should it ever not be, its bytes are text all the same.
        return bounded(Cow::Borrowed(field.get()));
    };
    let mut all = String::new();
    let mut open = vec![&value];
    while let Some(value) = open.pop() {
        match value {
            Value::String(text) => line(&mut all, text),
            Value::Array(items) => open.extend(items.iter().rev()),
            Value::Object(fields) => {
                for (key, value) in fields {
                    if key.len() > 40 {
                        line(&mut all, key);
                    }
                    open.push(value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    bounded(Cow::Owned(all))
}

fn line(all: &mut String, text: &str) {
    all.push_str(text);
    all.push('\n');
}

fn bounded(all: Cow<'_, str>) -> FieldText {
    if all.len() <= INSPECTED_BYTES_MAX {
        return FieldText { text: all.into_owned(), cut: false };
    }
    let head = all.floor_char_boundary(INSPECTED_BYTES_MAX - TAIL_BYTES);
    let tail = all.ceil_char_boundary(all.len() - TAIL_BYTES);
    FieldText { text: format!("{}\n{}", &all[..head], &all[tail..]), cut: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> FieldText {
        texts(serde_json::from_str::<Box<RawValue>>(json).unwrap().as_ref())
    }

    #[test]
    fn texts_are_found_at_any_depth() {
        let found = of(r#"{"a":[1,{"b":"one"},"two"],"c":null,"d":"line\nbreak"}"#).text;
        for text in ["one", "two", "line\nbreak"] {
            assert!(found.contains(text), "{found}");
        }
        assert_eq!(of("\"alone\"").text, "alone\n");
        assert_eq!(of("42").text, "");
    }

    #[test]
    fn of_a_long_field_both_ends_are_inspected() {
        let json = serde_json::to_string(&format!("START{}END", "ä".repeat(100_000))).unwrap();
        let found = of(&json);
        assert!(found.cut);
        assert!(found.text.len() <= INSPECTED_BYTES_MAX + 1, "{}", found.text.len());
        assert!(found.text.starts_with("START") && found.text.ends_with("END\n"));
    }
}
