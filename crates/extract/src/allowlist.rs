//! Where agents may send to.
//!
//! An entry is `example.com` (that name and no other), `*.example.com` (names below it, not the
//! name itself), or an address with its port, `192.0.2.1:8443` or `[2001:db8::1]:8443`. A name may
//! carry a `:PORT`; without one it stands for ports 80 and 443. There is no other wildcard, no
//! range, no prefix and no suffix match, so `example.com` never lets `evilexample.com` through.

use std::{collections::HashMap, fmt, net::SocketAddr};

use estoppel_model::text::quoted;

use crate::{Host, HostError, HostPort};

/// Most entries of one list.
pub const ENTRIES_MAX: usize = 100_000;
/// The ports of a name without one.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// One line of an allowlist, in normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    host: Host,
    subdomains: bool,
    port: Option<u16>,
}

/// Where agents may send to. The empty list allows nothing.
#[derive(Debug, Clone, Default)]
pub struct Allowlist {
    entries: Vec<Entry>,
    /// Host → places in `entries`.
    by_host: HashMap<Host, Vec<usize>>,
}

/// Why a list cannot be taken; names the entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowlistError {
    /// An entry is wrong.
    #[error("allowlist entry {entry}: {hint}")]
    Entry {
        /// The entry, shortened and quoted.
        entry: String,
        /// What to write instead.
        hint: String,
    },
    /// An entry names no host.
    #[error("allowlist entry {entry}: {source}")]
    Host {
        /// The entry, shortened and quoted.
        entry: String,
        /// What is wrong with it.
        source: HostError,
    },
    /// A list has a largest size.
    #[error("the allowlist has {count} entries: at most {ENTRIES_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
}

impl Entry {
    /// Reads one entry.
    ///
    /// # Errors
    /// When it is none of the three forms; the message says what to write.
    pub fn parse(text: &str) -> Result<Self, AllowlistError> {
        let wrong = |hint: String| AllowlistError::Entry { entry: quoted(text), hint };
        if let Some(hint) = hint_for(text) {
            return Err(wrong(hint));
        }
        let (subdomains, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let host = |source| AllowlistError::Host { entry: quoted(text), source };
        // Without a port: try it as a bare host first, which also recognises a bare IPv6 address.
        let (host, port) = match Host::parse(rest) {
            Ok(host) => (host, None),
            Err(bare) if rest.contains(':') => {
                let target = HostPort::parse(rest, None).map_err(|error| {
                    host(if rest.matches(':').count() > 1 { bare } else { error })
                })?;
                (target.host, Some(target.port))
            }
            Err(error) => return Err(host(error)),
        };
        match &host {
            Host::Address(_) if subdomains => {
                Err(wrong("an address has no names below it".to_owned()))
            }
            Host::Address(address) if port.is_none() => {
                let example = SocketAddr::new(*address, 443);
                Err(wrong(format!("an address needs its port, such as `{example}`")))
            }
            Host::Name(name) if subdomains && !name.contains('.') => {
                Err(wrong(format!("`*.{name}` would let a whole top-level domain through")))
            }
            _ => Ok(Self { host, subdomains, port }),
        }
    }

    /// What the entry is called in the table `allowlist`: the name as `network_log.destination`
    /// has it, with `*.` in front where it stands for the names below.
    pub fn domain(&self) -> String {
        let wildcard = if self.subdomains { "*." } else { "" };
        format!("{wildcard}{}", self.host)
    }

    /// The port, or 80 and 443.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether the entry names an address and port, which is what reaches into a private network.
    pub const fn is_explicit_address(&self) -> bool {
        matches!(self.host, Host::Address(_))
    }

    fn covers_port(&self, port: u16) -> bool {
        self.port.map_or_else(|| DEFAULT_PORTS.contains(&port), |own| own == port)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = if self.subdomains { "*." } else { "" };
        match self.port {
            Some(port) => write!(f, "{wildcard}{}", HostPort { host: self.host.clone(), port }),
            None => write!(f, "{wildcard}{}", self.host),
        }
    }
}

impl Allowlist {
    /// Reads a list; duplicates count once.
    ///
    /// # Errors
    /// When an entry is wrong, which it names, or there are too many. No part of a wrong list is
    /// taken.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, AllowlistError> {
        if entries.len() > ENTRIES_MAX {
            return Err(AllowlistError::TooMany { count: entries.len() });
        }
        let mut parsed = entries
            .iter()
            .map(|entry| Entry::parse(entry.as_ref().trim()))
            .collect::<Result<Vec<_>, _>>()?;
        parsed.sort_unstable();
        parsed.dedup();
        let mut by_host: HashMap<Host, Vec<usize>> = HashMap::new();
        for (index, entry) in parsed.iter().enumerate() {
            by_host.entry(entry.host.clone()).or_default().push(index);
        }
        Ok(Self { entries: parsed, by_host })
    }

    /// Returns the entry that lets a host and port through, if one does.
    pub fn allows(&self, host: &Host, port: u16) -> Option<&Entry> {
        let find = |host: &Host, subdomains: bool| {
            let places = self.by_host.get(host)?;
            places
                .iter()
                .map(|place| &self.entries[*place])
                .find(|entry| entry.subdomains == subdomains && entry.covers_port(port))
        };
        find(host, false).or_else(|| {
            let Host::Name(name) = host else { return None };
            let mut rest = name.as_str();
            while let Some((_label, parent)) = rest.split_once('.') {
                if let Some(entry) = find(&Host::Name(parent.to_owned()), true) {
                    return Some(entry);
                }
                rest = parent;
            }
            None
        })
    }

    /// Whether an entry names exactly this address and port.
    pub fn names_address(&self, address: SocketAddr) -> bool {
        self.allows(&Host::from(address.ip()), address.port()).is_some()
    }

    /// The entries, sorted.
    pub fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.entries.iter()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<'a> IntoIterator for &'a Allowlist {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What to write instead of the mistakes that people make.
fn hint_for(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("it is empty".to_owned());
    }
    if let Some((_scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Some(match Entry::parse(host) {
            Ok(entry) => format!("write the host without scheme and path: `{entry}`"),
            Err(_) => "write the host without scheme and path".to_owned(),
        });
    }
    if text.contains('/') {
        return Some("write a host without a path; ranges of addresses are not allowed".to_owned());
    }
    if text == "*" || text == "*.*" {
        return Some("it would let everything through; use mode `learn` or `observe`".to_owned());
    }
    if let Some(parent) = text.strip_prefix('.') {
        return Some(format!("for the names below it write {}", quoted(&format!("*.{parent}"))));
    }
    let stars = text.strip_prefix("*.").unwrap_or(text);
    stars.contains('*').then(|| "a `*` may only stand in front, as in `*.example.com`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Allowlist {
        Allowlist::parse(entries).unwrap()
    }

    /// Row P1: what is not on the list is recognised, whatever the spelling.
    #[test]
    fn a_name_lets_itself_through_and_nothing_like_it() {
        let list = list(&["example.com", "*.cdn.example", "api.example:8443", "bücher.example"]);
        let check = |target: &str, expect: bool| {
            let target = HostPort::parse(target, None).unwrap();
            let found = list.allows(&target.host, target.port).is_some();
            assert_eq!(found, expect, "{target}");
        };
        check("example.com:443", true);
        check("example.com:80", true);
        check("EXAMPLE.COM.:443", true);
        check("example.com:22", false);
        check("www.example.com:443", false);
        check("evilexample.com:443", false);
        check("example.com.evil.io:443", false);
        check("example.comm:443", false);
        check("com:443", false);
        check("a.cdn.example:443", true);
        check("a.b.cdn.example:443", true);
        check("cdn.example:443", false);
        check("evilcdn.example:443", false);
        check("cdn.example.evil.io:443", false);
        check("api.example:8443", true);
        check("api.example:443", false);
        check("xn--bcher-kva.example:443", true);
        check("bucher.example:443", false);
        check("192.0.2.1:443", false);
    }

    #[test]
    fn an_address_is_listed_with_its_port() {
        let list = list(&["192.0.2.1:8443", "[2001:db8::1]:443", "127.0.0.1:9000"]);
        let check = |target: &str, expect: bool| {
            let target = HostPort::parse(target, None).unwrap();
            assert_eq!(list.allows(&target.host, target.port).is_some(), expect, "{target}");
        };
        check("192.0.2.1:8443", true);
        check("192.0.2.1:443", false);
        check("192.0.2.11:8443", false);
        check("[2001:db8:0::1]:443", true);
        check("[2001:db8::2]:443", false);
        check("[::ffff:192.0.2.1]:8443", true);
        assert!(list.names_address("127.0.0.1:9000".parse().unwrap()));
        assert!(list.names_address("[::ffff:127.0.0.1]:9000".parse().unwrap()));
        assert!(!list.names_address("127.0.0.1:9001".parse().unwrap()));
        assert!(!list.names_address("127.0.0.2:9000".parse().unwrap()));
    }

    #[test]
    fn a_wrong_entry_is_named_with_a_hint() {
        let check = |entry: &str, expect: &str| {
            let message = Allowlist::parse(&["fine.example", entry]).unwrap_err().to_string();
            assert!(message.contains(expect), "{entry}: {message}");
        };
        check("https://example.com/path", "without scheme and path: `example.com`");
        check("example.com/path", "without a path");
        check("10.0.0.0/8", "ranges");
        check("*", "learn");
        check("*.com", "top-level domain");
        check(".example.com", "`*.example.com`");
        check("ex*mple.com", "in front");
        check("*.*.example.com", "in front");
        check("192.0.2.1", "needs its port, such as `192.0.2.1:443`");
        check("2001:db8::1", "needs its port, such as `[2001:db8::1]:443`");
        check("*.192.0.2.1:80", "no names below");
        check("0x7f.1:80", "unusual spelling");
        check("example.com:https", "no valid port");
        check("example.com:0", "no valid port");
        check("user@example.com", "without user");
        check("", "it is empty");
        check("exa mple.com", "` ` may not");
    }

    #[test]
    fn a_list_is_kept_sorted_and_once() {
        let list = list(&["b.example", " A.example. ", "b.example:443", "B.EXAMPLE"]);
        let entries: Vec<String> = list.iter().map(Entry::to_string).collect();
        assert_eq!(entries, ["a.example", "b.example", "b.example:443"]);
        let many = vec!["x.example"; ENTRIES_MAX + 1];
        assert!(Allowlist::parse(&many).unwrap_err().to_string().contains("at most 100000"));
        assert!(Allowlist::default().allows(&Host::Name("x.example".to_owned()), 443).is_none());
    }

    #[test]
    fn an_entry_reads_back_as_it_is_written() {
        for text in ["a.example", "*.a.example", "*.a.example:8443", "[2001:db8::1]:443"] {
            assert_eq!(Entry::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Entry::parse("*.A.example:81").unwrap().domain(), "*.a.example");
        assert_eq!(Entry::parse("10.0.0.1:81").unwrap().domain(), "10.0.0.1");
    }
}
