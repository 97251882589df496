//! What a form or an address carries: named texts, each at most once unless a list is asked for.

use std::fmt::Write as _;

use estoppel_model::{Kind, OrderId, Scope, ScopeError, text::quoted};

/// The fields of a form or of the part of an address behind the `?`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Takes decoded pairs.
    pub(crate) const fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// A field's text without white space around it; empty when it is missing or there twice.
    pub(crate) fn one<'a>(&'a self, name: &str) -> &'a str {
        let mut found = self.all(name);
        match (found.next(), found.next()) {
            (Some(value), None) => value.trim(),
            _ => "",
        }
    }

    /// All texts of a field, such as of boxes that are ticked.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The order's id that the form was made with.
    pub(crate) fn order(&self) -> Option<OrderId> {
        self.one("order").parse().ok()
    }
}

/// What the form of a halt says, as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// `global`, or a kind's word; empty while none is chosen.
    pub kind: String,
    /// The name, or a whole scope.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl Wish {
    /// Reads the fields; `scope` stands for kind and name together, as links have it.
    pub(crate) fn of(fields: &Fields) -> Self {
        let reason = fields.one("reason").replace("\r\n", "\n");
        let (mut kind, mut name) = (fields.one("kind").to_owned(), fields.one("name").to_owned());
        let scope = fields.one("scope");
        if !scope.is_empty() {
            Self { kind, name, .. } = Self::of_scope(scope);
        }
        Self { kind, name, reason }
    }

    /// A scope as it would be typed, without a reason.
    pub(crate) fn of_scope(scope: &str) -> Self {
        let (kind, name) = match scope.split_once(':').filter(|(word, _)| is_kind(word)) {
            Some((word, id)) => (word, id),
            None if scope == "global" => (scope, ""),
            // What cannot be read stays in sight, to be mended.
            None => ("", scope),
        };
        Self { kind: kind.to_owned(), name: name.to_owned(), reason: String::new() }
    }

    /// The scope that is meant. A name that is a whole scope of some kind counts as one: people
    /// paste what a page or a log says.
    ///
    /// # Errors
    /// When it is none; the message says what to write.
    pub(crate) fn scope(&self) -> Result<Scope, String> {
        let message = |error: ScopeError| error.to_string();
        if self.kind == "global" {
            return Ok(Scope::Global);
        }
        if self.name.is_empty() {
            return Err(match self.kind.as_str() {
                "" => "choose what to halt".to_owned(),
                kind => format!("which {kind}? Write its name"),
            });
        }
        if self.name == "global" {
            return Ok(Scope::Global);
        }
        if self.name.split_once(':').is_some_and(|(word, _)| is_kind(word)) {
            return self.name.parse().map_err(message);
        }
        if !is_kind(&self.kind) {
            return Err(format!("choose what {} is: a session, an agent, ...", quoted(&self.name)));
        }
        format!("{}:{}", self.kind, self.name).parse().map_err(message)
    }

    /// The address of the form with this filled in.
    pub(crate) fn href(&self) -> String {
        let scope = match self.kind.as_str() {
            "global" | "" => self.kind.clone(),
            kind => format!("{kind}:{}", self.name),
        };
        let scope = if scope.is_empty() { self.name.clone() } else { scope };
        address("/halt", &[("scope", &scope), ("reason", &self.reason)])
    }
}

fn is_kind(word: &str) -> bool {
    Kind::ALL.iter().any(|kind| kind.as_str() == word)
}

/// An address of ours with fields behind the `?`; empty ones are left out.
pub(crate) fn address(path: &str, fields: &[(&str, &str)]) -> String {
    let mut address = path.to_owned();
    for (index, (name, value)) in fields.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
        address.push(if index == 0 { '?' } else { '&' });
        address.push_str(name);
        address.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
                address.push(byte.into());
            } else {
                // Writing to a `String` cannot fail.
                let _ = write!(address, "%{byte:02X}");
            }
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::new(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn a_field_that_is_there_twice_is_not_guessed_at() {
        let sent = fields(&[("reason", " a "), ("halt", "1"), ("halt", "2")]);
        assert_eq!(sent.one("reason"), "a");
        assert_eq!(sent.one("halt"), "");
        assert_eq!(sent.all("halt").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(sent.one("nothing"), "");
    }

    #[test]
    fn a_scope_is_read_as_people_write_it() {
        let check = |kind: &str, name: &str, expect: &str| {
            let wish = Wish { kind: kind.into(), name: name.into(), reason: String::new() };
            let found = wish.scope().map_or_else(|error| error, |scope| scope.to_string());
            assert!(found.contains(expect), "{kind} {name}: {found}");
        };
        check("session", "abc123", "session:abc123");
        check("session", "agent:crm", "agent:crm");
        check("", "agent:crm", "agent:crm");
        check("task", "urn:x:1", "task:urn:x:1");
        check("plugin", "scraper@>=2", "plugin:scraper@>=2");
        check("global", "whatever stands here", "global");
        check("session", "", "which session?");
        check("", "", "choose what to halt");
        check("", "abc123", "choose what `abc123` is");
        check("sesion", "abc123", "choose what");
        check("session", "a b", "U+0020");
        check("session", "a\u{202e}b", "U+202E");
    }

    #[test]
    fn a_link_fills_the_form_in_and_reads_back() {
        let wish =
            Wish {
                kind: "user".into(), name: "müller&co?#".into(), reason: "a b+c%\"<>\n".into()
            };
        let href = wish.href();
        assert_eq!(href, "/halt?scope=user:m%C3%BCller%26co%3F%23&reason=a%20b%2Bc%25%22%3C%3E%0A");
        let back = Wish::of(&fields(&[("scope", "user:müller&co?#"), ("reason", "a b+c%\"<>\n")]));
        assert_eq!((back.kind, back.name), (wish.kind, wish.name));
        assert_eq!(Wish::of(&fields(&[("scope", "global")])).scope(), Ok(Scope::Global));
        assert_eq!(Wish::of(&fields(&[("scope", "nonsense")])).name, "nonsense");
        assert_eq!(Wish::default().href(), "/halt");
    }
}
