//! Python values as JSON for the audit log, without running any Python code.
//!
//! Parameters and results are whatever an agent's tools are called with. No `__str__`, `__repr__` or
//! `__iter__` of theirs is called: it could raise, block or be hostile. What is neither a text, a
//! number, a truth value, `None`, a mapping of the built-in kind nor a sequence of it is recorded as
//! the name of its type. Depth and volume are bounded while writing, so that one huge value costs
//! neither time nor memory beyond the bound.

use std::cell::Cell;

use pyo3::{
    prelude::*,
    types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};

/// Deepest nesting that is written.
const DEPTH_MAX: usize = 24;
/// About how many bytes are written of one value. The guard shortens what is over 64 KiB, and says
/// how much there was; this keeps that from being a gigabyte.
const BYTES_MAX: usize = 256 * 1024;
/// Stands for what was too deep or too much.
const WHAT_IS_LEFT_OUT: &str = "...";

/// A Python value on its way to JSON.
pub(crate) struct Json<'a, 'py> {
    value: &'a Bound<'py, PyAny>,
    depth: usize,
    /// Bytes that may still be written of the whole.
    left: &'a Cell<usize>,
}

/// Calls `with` with the value as something that can be serialised.
pub(crate) fn as_json<R>(value: &Bound<'_, PyAny>, with: impl FnOnce(&Json<'_, '_>) -> R) -> R {
    let left = Cell::new(BYTES_MAX);
    with(&Json { value, depth: 0, left: &left })
}

impl Json<'_, '_> {
    /// Takes its part of what may be written; whether there was that much.
    fn take(&self, bytes: usize) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(bytes));
        left >= bytes
    }

    fn text<S: Serializer>(&self, text: &Bound<'_, PyString>, to: S) -> Result<S::Ok, S::Error> {
        // Lone surrogates are no text elsewhere: they become U+FFFD.
        let text = text.to_string_lossy();
        let room = self.left.get();
        if self.take(text.len()) {
            return to.serialize_str(&text);
        }
        let mut end = room.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        to.collect_str(&format_args!("{}{WHAT_IS_LEFT_OUT}", &text[..end]))
    }

    fn sequence<'py, S: Serializer>(
        &self,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let mut sequence = to.serialize_seq(None)?;
        for item in items {
            if !self.take(2) {
                sequence.serialize_element(WHAT_IS_LEFT_OUT)?;
                break;
            }
            sequence.serialize_element(&self.below(&item))?;
        }
        sequence.end()
    }

    fn mapping<S: Serializer>(&self, dict: &Bound<'_, PyDict>, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (key, value) in dict.iter() {
            if !self.take(4) {
                map.serialize_entry(WHAT_IS_LEFT_OUT, WHAT_IS_LEFT_OUT)?;
                break;
            }
            match key.cast::<PyString>() {
                Ok(key) => {
                    let key = key.to_string_lossy();
                    self.take(key.len());
                    map.serialize_key(&*key)?;
                }
                Err(_) => map.serialize_key(&key_of(&key))?,
            }
            map.serialize_value(&self.below(&value))?;
        }
        map.end()
    }

    fn below<'b, 'py>(&'b self, value: &'b Bound<'py, PyAny>) -> Json<'b, 'py> {
        Json { value, depth: self.depth + 1, left: self.left }
    }
}

impl Serialize for Json<'_, '_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let value = self.value;
        self.take(1);
        if value.is_none() {
            to.serialize_unit()
        } else if let Ok(text) = value.cast::<PyString>() {
            self.text(text, to)
        } else if let Ok(truth) = value.cast::<PyBool>() {
            to.serialize_bool(truth.is_true())
        } else if let Ok(number) = value.cast::<PyInt>() {
            match (number.extract::<i64>(), number.extract::<u64>()) {
                (Ok(number), _) => to.serialize_i64(number),
                (_, Ok(number)) => to.serialize_u64(number),
                // Wider than a number of JSON is anywhere read: its decimal form is quadratic.
                _ => to.serialize_str("<int of more than 64 bits>"),
            }
        } else if let Ok(number) = value.cast::<PyFloat>() {
            // Neither infinities nor NaN are JSON: serde writes `null`.
            to.serialize_f64(number.value())
        } else if self.depth >= DEPTH_MAX {
            to.serialize_str(WHAT_IS_LEFT_OUT)
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.mapping(dict, to)
        } else if let Ok(list) = value.cast::<PyList>() {
            self.sequence(list.iter(), to)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.sequence(tuple.iter(), to)
        } else if let Ok(bytes) = value.cast::<PyBytes>() {
            to.collect_str(&format_args!("<{} bytes>", bytes.as_bytes().len()))
        } else if let Ok(bytes) = value.cast::<PyByteArray>() {
            to.collect_str(&format_args!("<{} bytes>", bytes.len()))
        } else {
            to.serialize_str(&type_of(value))
        }
    }
}

/// The name of a value's type: it comes from code, not from data.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().name();
    name.map_or_else(|_| "object".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn type_of(value: &Bound<'_, PyAny>) -> String {
    format!("<{}>", type_name(value))
}

/// A key that is no text.
fn key_of(key: &Bound<'_, PyAny>) -> String {
    if key.is_none() {
        return "None".to_owned();
    }
    key.extract::<i64>().map_or_else(|_| type_of(key), |number| number.to_string())
}
