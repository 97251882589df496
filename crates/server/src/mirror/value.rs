//! The JSON under a key, and the keys themselves.
//!
//! What Estoppel writes has one form. What it reads comes from people's own tools and from nobody
//! that it knows: Python's `json.dumps`, a typed command line, another program's data. So reading is
//! generous towards a halt: whatever says that it is active, in JSON or in what was meant to be
//! JSON, is active. Texts of strangers stay `Untrusted` and short.

use std::sync::Arc;

use estoppel_model::{Actor, OrderId, Scope, ScopeError, Timestamp, Untrusted};
use serde::Serialize;

use super::book::ACTOR;

/// What all keys begin with; the scope follows.
pub(super) const PREFIX: &str = "kill_switch:";
/// Longest name of a key, in bytes; no scope's is as long.
pub(super) const NAME_BYTES_MAX: usize = 1_024;
/// Longest value that is read; of a longer one, the beginning.
pub(super) const VALUE_BYTES_MAX: usize = 64 << 10;
/// Longest text that is taken over from a value, in characters.
const TEXT_CHARS_MAX: usize = 300;
/// Longest reason that is made of such texts, in bytes; an order's own bound is wider.
const REASON_BYTES_MAX: usize = 1_500;

/// A key that belongs to a scope. Its name is not always the scope's canonical text
/// (`plugin:x@>= 2` is `plugin:x@>=2`), but what it says is of the same scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    name: Arc<str>,
    scope: Scope,
}

/// Why a key belongs to no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    /// It is not of ours.
    #[error("the key does not begin with `{PREFIX}`")]
    Foreign,
    /// Whoever made it meant something else, or harm: nothing of it is taken over.
    #[error("the key has {0} bytes: at most {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// It is not text.
    #[error("the key is not UTF-8")]
    NotText,
    /// What follows the prefix is no scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

impl Key {
    /// The key under which Estoppel keeps a scope.
    pub(super) fn of(scope: &Scope) -> Self {
        Self { name: format!("{PREFIX}{scope}").into(), scope: scope.clone() }
    }

    /// The scope of a key that was found.
    ///
    /// # Errors
    /// When it belongs to none.
    pub(super) fn parse(name: &[u8]) -> Result<Self, KeyError> {
        let rest = name.strip_prefix(PREFIX.as_bytes()).ok_or(KeyError::Foreign)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(KeyError::TooLong(name.len()));
        }
        let text = std::str::from_utf8(rest).map_err(|_| KeyError::NotText)?;
        let scope = text.parse()?;
        Ok(Self { name: format!("{PREFIX}{text}").into(), scope })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn scope(&self) -> &Scope {
        &self.scope
    }
}

/// What is written, in the order in which people read it.
#[derive(Debug, Serialize)]
pub(super) struct Written<'a> {
    pub active: bool,
    pub reason: &'a str,
    pub activated_by: &'a Actor,
    pub timestamp: Timestamp,
    pub order_id: OrderId,
}

impl Written<'_> {
    /// The value's text.
    pub(super) fn text(&self) -> String {
        // Plain data, which always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What stands at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an empty text.
    Nothing,
    /// Somebody says that the scope is to stop.
    Active(Claim),
    /// It says that it is not active.
    Inactive,
    /// It says neither.
    Unreadable(Unreadable),
}

/// What an active value says of itself; nothing of it is proved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Claim {
    /// The order that it states, which may be ours or another server's.
    pub order: Option<OrderId>,
    /// When it was activated.
    pub at: Option<Timestamp>,
    reason: Option<Untrusted<String>>,
    by: Option<Untrusted<String>>,
    /// The beginning of the text, where it was not JSON.
    raw: Option<Untrusted<String>>,
}

/// Why a value says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// A list, a hash, a set.
    #[error("it is not a string")]
    Type,
    /// JSON without `active`, or with one that is neither true nor false.
    #[error("its `active` is neither true nor false")]
    Active,
    /// No JSON, and no word of being active.
    #[error("it is not JSON")]
    Json,
}

impl Found {
    /// Reads a value, of which at most [`VALUE_BYTES_MAX`] bytes and one are here.
    pub(super) fn read(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Nothing;
        }
        let json = if bytes.len() > VALUE_BYTES_MAX {
            None
        } else {
            serde_json::from_slice::<serde_json::Value>(bytes).ok()
        };
        let Some(value) = json else {
            let text = String::from_utf8_lossy(bytes);
            return if says_active(&text) {
                let raw = Some(Untrusted::new(text.chars().take(TEXT_CHARS_MAX).collect()));
                Self::Active(Claim { raw, ..Claim::default() })
            } else {
                Self::Unreadable(Unreadable::Json)
            };
        };
        let (active, claim) = match &value {
            serde_json::Value::Object(fields) => {
                (fields.get("active").and_then(truth), Claim::of(fields))
            }
            other => (truth(other), Claim::default()),
        };
        match active {
            Some(true) => Self::Active(claim),
            Some(false) => Self::Inactive,
            None => Self::Unreadable(Unreadable::Active),
        }
    }
}

impl Claim {
    fn of(fields: &serde_json::Map<String, serde_json::Value>) -> Self {
        let text = |name: &str| {
            let text: String = fields.get(name)?.as_str()?.chars().take(TEXT_CHARS_MAX).collect();
            (!text.trim().is_empty()).then(|| Untrusted::new(text))
        };
        Self {
            order: fields.get("order_id").and_then(|id| id.as_str()?.parse().ok()),
            at: fields.get("timestamp").and_then(time),
            reason: text("reason"),
            by: text("activated_by"),
            raw: None,
        }
    }

    /// The reason of a halt that follows from it: one line, inert, short enough for an order.
    pub(super) fn reason(&self) -> String {
        let inline = |text: &Untrusted<String>| text.inline(TEXT_CHARS_MAX);
        let mut reason = match (&self.reason, &self.raw) {
            (Some(reason), _) => inline(reason),
            (None, Some(raw)) => format!("a value that is not JSON says so: {}", inline(raw)),
            (None, None) => "no reason was written".to_owned(),
        };
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        reason.truncate(end);
        match &self.by {
            // Another server's, which has said so already.
            Some(by) if by.raw() == ACTOR => reason,
            Some(by) => {
                let by = by.inline(40);
                format!("{reason} (written to Redis, says by {by})")
            }
            None => format!("{reason} (written to Redis)"),
        }
    }
}

/// Whether a JSON value means true or false.
fn truth(value: &serde_json::Value) -> Option<bool> {
    match value {
        serde_json::Value::Null => Some(false),
        serde_json::Value::Bool(value) => Some(*value),
        serde_json::Value::Number(number) => Some(number.as_f64().is_none_or(|n| n != 0.0)),
        serde_json::Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" | "none" | "null" | "" => Some(false),
            _ => None,
        },
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => None,
    }
}

/// RFC 3339, or seconds since 1970 as `time.time()` gives them.
fn time(value: &serde_json::Value) -> Option<Timestamp> {
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(seconds) => {
            let micros = seconds.as_f64()? * 1e6;
            // Until the year 5138; what lies beyond is no count of seconds.
            (0.0..1e17).contains(&micros).then(|| Timestamp::from_micros(micros as i64))
        }
        _ => None,
    }
}

/// Whether a text that is no JSON was meant to say that it is active: `{active: true}` as a shell
/// leaves it, `{'active': True}` as Python prints it, JSON that is too long or cut off.
fn says_active(text: &str) -> bool {
    let plain: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && !['"', '\'', '\\'].contains(c))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    plain.match_indices("active").any(|(at, word)| {
        let before = plain[..at].chars().next_back();
        let after = &plain[at + word.len()..];
        let value = after.strip_prefix([':', '=']).unwrap_or_default();
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            && ["true", "1", "yes", "on"]
                .iter()
                .any(|word| value.strip_prefix(word).is_some_and(ends))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: &str) -> Claim {
        match Found::read(text.as_bytes()) {
            Found::Active(claim) => claim,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Row K1: what existing tools write, and what people type at 3 AM.
    #[test]
    fn whatever_says_active_is_active() {
        for text in [
            r#"{"active": true, "reason": "r", "activated_by": "alice", "timestamp": "2026-02-05T03:00:00Z"}"#,
            r#"{"active":true}"#,
            r#"{"active": "true"}"#,
            r#"{"active": "True", "reason": null, "timestamp": 3}"#,
            r#"{"active": 1, "reason": {"nested": []}, "order_id": "x"}"#,
            r#"{"active": false, "active": true}"#,
            "true",
            "1",
            "\"true\"",
            "{active: true}",
            "{'active': True, 'reason': 'x'}",
            "active=1",
            r#"{"active": true, "reason": "cut off"#,
        ] {
            claim(text);
        }
        let long = format!(r#"{{"active": true, "reason": "{}"}}"#, "x".repeat(1 << 20));
        assert!(claim(&long[..=VALUE_BYTES_MAX]).reason().len() < 2_000);
        assert!(matches!(Found::read(b"{\"active\": true, \"reason\": \"\xff"), Found::Active(_)));
    }

    #[test]
    fn whatever_does_not_is_not() {
        let check = |text: &str, expect: Found| {
            assert_eq!(Found::read(text.as_bytes()), expect, "{text}");
        };
        for text in [r#"{"active": false}"#, r#"{"active": "False"}"#, "false", "0", "null"] {
            check(text, Found::Inactive);
        }
        check("", Found::Nothing);
        for text in ["{}", "[]", r#"{"active": []}"#, r#"{"active": "maybe"}"#] {
            check(text, Found::Unreadable(Unreadable::Active));
        }
        for text in
            ["hello", "{inactive: true}", "was_active=true", "active: trueish", "active", "{\u{0}"]
        {
            check(text, Found::Unreadable(Unreadable::Json));
        }
        check(&"[".repeat(10_000), Found::Unreadable(Unreadable::Json));
    }

    /// Invariant inert: whatever a value says becomes one short line of a reason.
    #[test]
    fn a_reason_is_short_and_inert() {
        let claim =
            claim(r#"{"active": true, "reason": "\u001b[2J\u202e<b>", "activated_by": "a\nb"}"#);
        assert_eq!(claim.reason(), "\\u{1b}[2J\\u{202e}<b> (written to Redis, says by a\\u{a}b)");
        let wide = "\u{e0001}".repeat(5_000);
        let text = serde_json::json!({ "active": true, "reason": wide, "activated_by": wide });
        let found = Found::read(text.to_string().as_bytes());
        let Found::Active(claim) = found else { panic!("{found:?}") };
        assert!(claim.reason().len() <= estoppel_model::REASON_BYTES_MAX, "{}", claim.reason());
    }

    #[test]
    fn times_are_read_as_tools_write_them() {
        let at = |value: &str| claim(&format!(r#"{{"active": true, "timestamp": {value}}}"#)).at;
        let expect = "2026-02-05T03:00:00Z".parse().unwrap();
        assert_eq!(at("\"2026-02-05T03:00:00Z\""), Some(expect));
        assert_eq!(at("\"2026-02-05T04:00:00+01:00\""), Some(expect));
        assert_eq!(at("1770260400"), Some(expect));
        assert_eq!(at("1770260400.0"), Some(expect));
        for bad in ["\"2026-02-05 03:00\"", "-1", "1e300", "null", "[]"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_a_scope() {
        for scope in ["global", "session:abc123", "plugin:scraper@>=2.1", "user:müller"] {
            let scope: Scope = scope.parse().unwrap();
            let key = Key::of(&scope);
            assert_eq!(Key::parse(key.name().as_bytes()).unwrap(), key);
        }
        let other = Key::parse(b"kill_switch:plugin:x@>= 2").unwrap();
        assert_eq!(other.name(), "kill_switch:plugin:x@>= 2");
        assert_eq!(*other.scope(), "plugin:x@>=2".parse().unwrap());
        assert_eq!(Key::parse(b"other"), Err(KeyError::Foreign));
        // A version range may hold any number of spaces.
        let spaces = |count: usize| format!("{PREFIX}plugin:x@>={}2", " ".repeat(count));
        assert!(Key::parse(spaces(900).as_bytes()).is_ok());
        for count in [NAME_BYTES_MAX, 1 << 20] {
            let name = spaces(count);
            let error = Key::parse(name.as_bytes()).unwrap_err();
            assert_eq!(error, KeyError::TooLong(name.len()));
            assert!(error.to_string().len() < 100, "{error}");
        }
        assert_eq!(Key::parse(b"kill_switch:\xff"), Err(KeyError::NotText));
        for bad in ["", "everything", "session:", "session:a b", "session:\u{202e}x"] {
            let key = format!("{PREFIX}{bad}");
            assert!(matches!(Key::parse(key.as_bytes()), Err(KeyError::Scope(_))), "{bad}");
        }
    }
}
