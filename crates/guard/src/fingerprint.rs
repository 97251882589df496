//! One number for one JSON value, however it is written: the order of keys, white space and the
//! spelling of numbers (`1`, `1.0`, `1e0`) make no difference.
//!
//! The text is read once, without a tree and without recursion that a stranger could deepen; what
//! cannot be read counts as its bytes. The hash has a key of this process's own, so that nobody
//! can make two calls look alike. A value that is too large for the record comes in as its start with
//! the hash of the whole ([`crate::audit::summary`]).

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Largest integer up to which every one has a double of its own.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Makes fingerprints that can be compared with each other, and with nobody else's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fingerprints(RandomState);

impl Fingerprints {
    /// Of a JSON value; of an absent one, of its own kind.
    pub(crate) fn json(&self, json: Option<&RawValue>) -> u64 {
        let Some(json) = json else { return self.0.hash_one("absent") };
        let mut reader = serde_json::Deserializer::from_str(json.get());
        Canonical(&self.0).deserialize(&mut reader).unwrap_or_else(|_| self.text(json.get()))
    }

    /// Of a text.
    pub(crate) fn text(&self, text: &str) -> u64 {
        self.0.hash_one(("text", text))
    }

    /// Of several together, in their order.
    pub(crate) fn together(&self, parts: &[u64]) -> u64 {
        self.0.hash_one(parts)
    }
}

/// A call of a tool with what it came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) tool: &'a str,
    pub(crate) plugin: &'a str,
    pub(crate) action: &'a str,
    pub(crate) params: Option<&'a RawValue>,
    pub(crate) result: Option<&'a RawValue>,
    pub(crate) error: Option<&'a str>,
}

impl Call<'_> {
    /// The same for the same call with the same result; `None` where nobody said what that was.
    pub(crate) fn fingerprint(&self, prints: &Fingerprints) -> Option<u64> {
        let result = match (self.result, self.error) {
            (Some(result), _) => prints.json(Some(result)),
            (None, Some(error)) => prints.text(error),
            (None, None) => return None,
        };
        Some(prints.together(&[
            prints.text(self.tool),
            prints.text(self.plugin),
            prints.text(self.action),
            prints.json(self.params),
            u64::from(self.error.is_some()),
            result,
        ]))
    }
}

/// Hashes the value that it is asked to read.
#[derive(Clone, Copy)]
struct Canonical<'h>(&'h RandomState);

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<u64, E> {
        Ok(self.0.hash_one("null"))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<u64, E> {
        Ok(self.0.hash_one(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        Ok(self.0.hash_one(("integer", i128::from(value))))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        Ok(self.0.hash_one(("integer", i128::from(value))))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<u64, E> {
        if value.fract() == 0.0 && value.abs() <= EXACT_MAX {
            #[expect(clippy::cast_possible_truncation, reason = "it is an integer within bounds")]
            return Ok(self.0.hash_one(("integer", value as i128)));
        }
        Ok(self.0.hash_one(("double", value.to_bits())))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<u64, E> {
        Ok(self.0.hash_one(("string", value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<u64, A::Error> {
        let (mut all, mut count) = (0, 0_u64);
        while let Some(item) = seq.next_element_seed(self)? {
            all = self.0.hash_one((all, item));
            count += 1;
        }
        Ok(self.0.hash_one(("array", all, count)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        // A sum knows no order.
        let (mut all, mut count) = (0_u64, 0_u64);
        while let Some(key) = map.next_key_seed(self)? {
            let value = map.next_value_seed(self)?;
            all = all.wrapping_add(self.0.hash_one((key, value)));
            count += 1;
        }
        Ok(self.0.hash_one(("object", all, count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(prints: &Fingerprints, one: &str, other: &str) -> bool {
        let of = |json: &str| prints.json(Some(&RawValue::from_string(json.to_owned()).unwrap()));
        of(one) == of(other)
    }

    /// R1, R6: the same arguments are the same, however a model spells them.
    #[test]
    fn spelling_makes_no_difference_and_anything_else_does() {
        let prints = Fingerprints::default();
        for (one, other) in [
            (r#"{"a":1,"b":[1,2]}"#, "{ \"b\" : [1,\n2.0],\t\"a\": 1e0 }"),
            (r#"{"q":"é"}"#, "{\"q\":\"\\u00e9\"}"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":2,"x":1}}"#),
        ] {
            assert!(same(&prints, one, other), "{one} {other}");
        }
        for (one, other) in [
            ("1", "\"1\""),
            ("0.1", "0.10000000000000002"),
            ("[1,2]", "[2,1]"),
            ("[]", "{}"),
            ("[[]]", "[]"),
            ("null", "false"),
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#),
            (r#"{"q":"x "}"#, r#"{"q":"x"}"#),
            ("9007199254740993", "9007199254740992"),
            ("18446744073709551615", "18446744073709551614"),
            ("1e400", "1e401"),
        ] {
            assert!(!same(&prints, one, other), "{one} {other}");
        }
        assert_ne!(prints.json(None), prints.json(Some(RawValue::NULL)));
    }

    #[test]
    fn a_hostile_nesting_counts_as_its_text() {
        let prints = Fingerprints::default();
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(same(&prints, &deep("1"), &deep("1")));
        assert!(!same(&prints, &deep("1"), &deep("2")));
    }
}
