//! Text from agents, documents and tools, which is hostile to us, too.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that an agent, its tools or its input wrote (invariant *inert*).
///
/// It has no `Display` on purpose: each sink (HTML, terminal, Markdown, CSV, SQL) takes it through
/// [`Untrusted::raw`] and escapes for itself. `Debug` escapes everything but printable ASCII.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks a text as untrusted.
    pub const fn new(text: T) -> Self {
        Self(text)
    }

    /// The text as it came. Whoever calls this escapes it for where it goes.
    pub const fn raw(&self) -> &T {
        &self.0
    }

    /// The text as it came, by value.
    pub fn into_raw(self) -> T {
        self.0
    }
}

impl<T: AsRef<str>> Untrusted<T> {
    /// The text for one line of a terminal or a log: at most `chars_max` characters, control,
    /// invisible and bidirectional characters written as `\u{..}`.
    pub fn inline(&self, chars_max: usize) -> String {
        let mut out = String::new();
        for (count, c) in self.0.as_ref().chars().enumerate() {
            if count == chars_max {
                out.push_str("...");
                break;
            }
            if crate::text::is_invisible(c) {
                out.extend(c.escape_unicode());
            } else {
                out.push(c);
            }
        }
        out
    }
}

impl<T: AsRef<str>> fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::quoted(self.0.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_inert_in_a_line() {
        let text = Untrusted::new("ok\u{1b}[2J\u{202e}\r\nroot#");
        assert_eq!(text.inline(80), "ok\\u{1b}[2J\\u{202e}\\u{d}\\u{a}root#");
        assert_eq!(text.inline(2), "ok...");
        assert!(!format!("{text:?}").contains('\u{1b}'));
    }
}
