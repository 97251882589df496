//! Takes secrets out of environments and command lines before they are hashed and kept.
//!
//! A secret is known by the name of what holds it or by its own shape ([`Rule`]). What is taken out
//! leaves `[redacted RULE N bytes]` in its place and one [`Redacted`] with name, rule and length:
//! no hash, since a short secret is found again by trying. Of a long text (a script on a command
//! line, a URL) only the secret goes, since the rest is what an investigator needs.
//!
//! Bytes in, bytes out: a hostile process writes its environment as it likes. This errs on the side
//! of redacting. It does not find a secret that neither its name nor its shape gives away.

mod shape;

use estoppel_model::Untrusted;

/// Longest name that a record repeats, in characters.
const NAME_CHARS_MAX: usize = 256;

/// Why something was taken for a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The variable's or flag's name says so.
    Name,
    /// `NAME=value` or `"name": value` within a text, with a name that says so.
    Assignment,
    /// User information of a URL.
    Userinfo,
    /// A PEM block.
    Pem,
    /// Three Base64 parts joined by dots, the first of them a JSON object.
    Jwt,
    /// The prefix of an issuer's tokens, such as `sk-`, `AKIA` or `ghp_`.
    Token,
    /// What follows `Bearer` or `Basic`.
    Authorization,
}

impl Rule {
    /// The rule's word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Assignment => "assignment",
            Self::Userinfo => "userinfo",
            Self::Pem => "pem",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::Authorization => "authorization",
        }
    }
}

/// One secret that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// The variable, or the argument's place such as `argument 3`.
    pub name: Untrusted<String>,
    /// Why.
    pub rule: Rule,
    /// Length of what was taken out.
    pub bytes: u64,
}

/// What is left, and what was taken out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redaction {
    /// The content without its secrets.
    pub content: Vec<u8>,
    /// The secrets' records, in order.
    pub redacted: Vec<Redacted>,
}

/// Redacts `/proc/PID/environ`: entries `NAME=value`, each ended by a NUL.
pub fn environ(content: &[u8]) -> Redaction {
    let mut out = Redaction::default();
    for (index, entry) in content.split_inclusive(|byte| *byte == 0).enumerate() {
        let (text, end) = split_end(entry);
        match text.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = (&text[..at], &text[at + 1..]);
                let label = printable(name);
                out.content.extend_from_slice(&text[..=at]);
                if shape::secret_name(name) && !value.is_empty() {
                    out.replace(label, Rule::Name, value);
                } else {
                    out.text(&label, value);
                }
            }
            // A process may have overwritten its environment with anything.
            None => out.text(&format!("entry {index}"), text),
        }
        out.content.extend_from_slice(end);
    }
    out
}

/// Redacts `/proc/PID/cmdline`: arguments, each ended by a NUL.
pub fn cmdline(content: &[u8]) -> Redaction {
    let mut out = Redaction::default();
    // Whether the argument before was a flag whose value this one is.
    let mut flag = None;
    for (index, argument) in content.split_inclusive(|byte| *byte == 0).enumerate() {
        let (text, end) = split_end(argument);
        let label = format!("argument {index}");
        match flag.take() {
            Some(Flag::Secret) if !text.is_empty() => out.replace(label, Rule::Name, text),
            Some(Flag::User) if text.contains(&b':') => out.replace(label, Rule::Name, text),
            _ => out.text(&label, text),
        }
        out.content.extend_from_slice(end);
        if index > 0 {
            flag = Flag::of(text);
        }
    }
    out
}

/// A flag whose value is the next argument.
#[derive(Debug, Clone, Copy)]
enum Flag {
    /// `--token`, `-password`: the value is a secret.
    Secret,
    /// `-u`, `--user` of curl and its kin: the value is one when it holds a colon.
    User,
}

impl Flag {
    fn of(argument: &[u8]) -> Option<Self> {
        let name = argument.strip_prefix(b"--").or_else(|| argument.strip_prefix(b"-"))?;
        if argument == b"-u" || argument == b"--user" || argument == b"--proxy-user" {
            Some(Self::User)
        } else if name.len() > 1 && !name.contains(&b'=') && shape::secret_name(name) {
            Some(Self::Secret)
        } else {
            None
        }
    }
}

impl Redaction {
    /// Appends a text without the secrets in it.
    fn text(&mut self, name: &str, text: &[u8]) {
        let mut done = 0;
        for (span, rule) in shape::secrets(text) {
            self.content.extend_from_slice(&text[done..span.start]);
            done = span.end;
            self.replace(name.to_owned(), rule, &text[span]);
        }
        self.content.extend_from_slice(&text[done..]);
    }

    fn replace(&mut self, name: String, rule: Rule, secret: &[u8]) {
        let bytes = secret.len() as u64;
        self.content
            .extend_from_slice(format!("[redacted {} {bytes} bytes]", rule.as_str()).as_bytes());
        self.redacted.push(Redacted { name: Untrusted::new(name), rule, bytes });
    }
}

fn split_end(entry: &[u8]) -> (&[u8], &[u8]) {
    match entry {
        [text @ .., 0] => (text, &entry[text.len()..]),
        text => (text, &[]),
    }
}

fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
