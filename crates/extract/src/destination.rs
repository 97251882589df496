//! A host, with or without a port, in the one form in which it is compared, listed and recorded.
//!
//! A name is lower case, in A-labels (UTS 46), without a trailing dot. An address is written as
//! the standard library writes it; IPv6 that carries IPv4 becomes the IPv4 address. Spellings that
//! some resolver takes for an address (`2130706433`, `0x7f.1`, `127.1`, full-width digits) are
//! refused, and so are user-info, percent-encoding and anything else with two readings.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use estoppel_model::{Destination, text::quoted};
use idna::{
    AsciiDenyList,
    uts46::{DnsLength, Hyphens, Uts46},
};

use crate::address;

/// Longest name, in bytes of its A-label form (RFC 1035, section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;
/// Longest text that is read at all; a U-label form may be longer than the A-label form.
const TEXT_BYTES_MAX: usize = 1_024;

/// A host in normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name.
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

/// A host in normal form and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

/// Why a text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is left.
    #[error("the host is empty")]
    Empty,
    /// Longer than any name.
    #[error("{text} is {bytes} bytes long: a host has at most {HOST_BYTES_MAX}")]
    TooLong {
        /// The start of the text, quoted.
        text: String,
        /// How long it is.
        bytes: usize,
    },
    /// An empty label, or one of more than 63 bytes.
    #[error("{text} has a label that is empty or longer than 63 bytes")]
    Label {
        /// The text, shortened and quoted.
        text: String,
    },
    /// A character that no host has.
    #[error("{text} is not a host: `{}` may not stand in one", character.escape_default())]
    Character {
        /// The text, shortened and quoted.
        text: String,
        /// The first such character.
        character: char,
    },
    /// `user@host`, which people misread.
    #[error("{text} holds an `@`: write the host alone, without user or password")]
    UserInfo {
        /// The text, shortened and quoted.
        text: String,
    },
    /// A percent sign, be it an encoding or an IPv6 zone.
    #[error("{text} holds a `%`: write the host plainly, without encoding or zone")]
    Percent {
        /// The text, shortened and quoted.
        text: String,
    },
    /// Not valid under UTS 46.
    #[error("{text} is not a valid internationalised name")]
    Idna {
        /// The text, shortened and quoted.
        text: String,
    },
    /// An address in a spelling that different programs read differently.
    #[error("{text} is an unusual spelling of an address: write it as 192.0.2.1 or [2001:db8::1]")]
    AddressSpelling {
        /// The text, shortened and quoted.
        text: String,
    },
    /// The port is missing, 0, too large, or not plain digits.
    #[error("{text} has no valid port: write HOST:PORT with a port of 1 to 65535")]
    Port {
        /// The text, shortened and quoted.
        text: String,
    },
}

impl Host {
    /// Reads a host: a name, an IPv4 address, an IPv6 address with or without brackets.
    ///
    /// # Errors
    /// When the text is no host, or one that could be read in two ways.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(HostError::TooLong { text: quoted(text), bytes: text.len() });
        }
        if text.contains('@') {
            return Err(HostError::UserInfo { text: quoted(text) });
        }
        if text.contains('%') {
            return Err(HostError::Percent { text: quoted(text) });
        }
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bracketed.is_some() || text.contains(':') {
            let address = bracketed
                .unwrap_or(text)
                .parse::<Ipv6Addr>()
                .map_err(|_| HostError::AddressSpelling { text: quoted(text) })?;
            return Ok(Self::from(IpAddr::V6(address)));
        }
        parse_name(text)
    }

    /// The address, when the host is one.
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::Address(address) => Some(*address),
        }
    }
}

fn parse_name(text: &str) -> Result<Host, HostError> {
    // Characters first: UTS 46 answers for all that is not ASCII, this for all that is.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(character) = text.chars().find(|c| c.is_ascii() && !plain(*c)) {
        return Err(HostError::Character { text: quoted(text), character });
    }
    // Hyphens in places three and four are in daily use (`r3---sn.example`), so only those at the
    // ends of a label are refused; every `xn--` label is decoded and checked all the same.
    let ascii = Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| HostError::Idna { text: quoted(text) })?;
    if let Some(character) = ascii.chars().find(|c| !plain(*c)) {
        return Err(HostError::Character { text: quoted(text), character });
    }
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > HOST_BYTES_MAX {
        return Err(HostError::TooLong { text: quoted(text), bytes: name.len() });
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(HostError::Label { text: quoted(text) });
    }
    // Whatever ends in a number is an address to some parser (WHATWG URL, section 3.5).
    let last = name.rsplit('.').next().unwrap_or_default();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if digits(last) || hex {
        return text
            .parse::<Ipv4Addr>()
            .map(|address| Host::Address(IpAddr::V4(address)))
            .map_err(|_| HostError::AddressSpelling { text: quoted(text) });
    }
    Ok(Host::Name(name.to_owned()))
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(address::carried(address))
    }
}

/// The form that is recorded and listed: an IPv6 address has no brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => fmt::Display::fmt(address, f),
        }
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text)
    }
}

impl HostPort {
    /// Reads `HOST:PORT` or `[IPV6]:PORT`; the port may be left out where there is a default.
    ///
    /// # Errors
    /// When the host is none, or the port is missing, 0, or not plain digits.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, HostError> {
        if text.contains('@') {
            return Err(HostError::UserInfo { text: quoted(text) });
        }
        let (host, port) = split_port(text);
        let port = match (port, default_port) {
            (Some(digits), _) => parse_port(digits),
            (None, default_port) => default_port,
        };
        // An unbracketed IPv6 address cannot be told from one with a port behind it.
        if !host.starts_with('[') && host.contains(':') {
            return Err(HostError::AddressSpelling { text: quoted(text) });
        }
        let host = Host::parse(host)?;
        let port = port.ok_or_else(|| HostError::Port { text: quoted(text) })?;
        Ok(Self { host, port })
    }

    /// The same, as orders write it.
    pub fn destination(&self) -> Destination {
        Destination { host: self.host.to_string(), port: Some(self.port) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// Splits at the colon in front of the port, if there is one outside of brackets.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rfind(']') {
        Some(end) => match text[end + 1..].strip_prefix(':') {
            Some(port) => (&text[..=end], Some(port)),
            None => (text, None),
        },
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Returns the normal form of a host.
///
/// # Errors
/// As [`Host::parse`].
pub fn normalise(host: &str) -> Result<String, HostError> {
    Host::parse(host).map(|host| host.to_string())
}

/// Reads the destination of a block order, as people write it: `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
///
/// # Errors
/// When the host is none or the port is not one.
pub fn parse_destination(text: &str) -> Result<Destination, HostError> {
    if let Ok(host) = Host::parse(text) {
        return Ok(Destination { host: host.to_string(), port: None });
    }
    HostPort::parse(text, None).map(|target| target.destination())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_host_become_one() {
        let check = |text: &str, expect: &str| {
            assert_eq!(normalise(text).as_deref(), Ok(expect), "{text}");
        };
        check("example.com", "example.com");
        check("EXAMPLE.com", "example.com");
        check("example.com.", "example.com");
        check("bücher.example", "xn--bcher-kva.example");
        check("BÜCHER.example", "xn--bcher-kva.example");
        check("xn--bcher-kva.example", "xn--bcher-kva.example");
        check("ｅｘａｍｐｌｅ.com", "example.com");
        check("example。com", "example.com");
        check("exam\u{ad}ple.com", "example.com");
        check("r3---sn-4g5.example", "r3---sn-4g5.example");
        check("my_bucket.example", "my_bucket.example");
        check("localhost", "localhost");
        check("192.0.2.1", "192.0.2.1");
        check("[2001:DB8:0:0::1]", "2001:db8::1");
        check("2001:db8::1", "2001:db8::1");
        check("[::ffff:127.0.0.1]", "127.0.0.1");
        check("[::ffff:7f00:1]", "127.0.0.1");
        check("[64:ff9b::7f00:1]", "127.0.0.1");
    }

    #[test]
    fn whatever_has_two_readings_is_refused() {
        let check = |text: &str, expect: &str| {
            let message = normalise(text).map_err(|error| error.to_string());
            let message = message.expect_err(text);
            assert!(message.contains(expect), "{text}: {message}");
            assert!(message.is_ascii(), "{message}");
        };
        check("", "empty");
        check(".", "empty");
        check("..", "label");
        check("example..com", "label");
        check(".example.com", "label");
        check("example.com..", "label");
        check(&format!("{}.com", "a".repeat(64)), "label");
        check(&format!("{}com", "abcdefg.".repeat(32)), "at most 253");
        check(&"a".repeat(2_000), "2000 bytes long");
        check("user@example.com", "without user");
        check("user:pass@example.com", "without user");
        check("example.com%00.evil.io", "without encoding");
        check("%31%32%37.0.0.1", "without encoding");
        check("fe80::1%eth0", "without encoding or zone");
        check("example.com\0.evil.io", "\\u{0}");
        check("exa mple.com", "` ` may not");
        check("example.com/path", "`/` may not");
        check("example.com\\evil.io", "may not");
        check("example.com#x", "may not");
        check("example.com?x", "may not");
        check("-example.com", "internationalised");
        check("xn--a", "internationalised");
        check("xn--zzzzzz-.com", "internationalised");
        check("a\u{202e}b.com", "internationalised");
        for address in [
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "127.0.1",
            "0177.0.0.1",
            "127.0.0.01",
            "127.0.0.0x1",
            "127.0.0.1.",
            "1.2.3.4.5",
            "256.1.1.1",
            "example.com.1",
            "example.0x",
            "１２７.０.０.１",
            "127。0。0。1",
            "[127.0.0.1]",
            "[::1",
            "::1]",
            "[::1]x",
            "[::ffff:0x7f.1]",
            "1:2",
        ] {
            check(address, "spelling of an address");
        }
    }

    #[test]
    fn a_port_is_plain_digits() {
        let check = |text: &str, default: Option<u16>, expect: Option<&str>| {
            let found = HostPort::parse(text, default).ok().map(|target| target.to_string());
            assert_eq!(found.as_deref(), expect, "{text}");
        };
        check("Example.com:443", None, Some("example.com:443"));
        check("example.com", Some(80), Some("example.com:80"));
        check("example.com", None, None);
        check("[::1]:8080", None, Some("[::1]:8080"));
        check("[::1]", Some(80), Some("[::1]:80"));
        check("[::ffff:10.0.0.1]:80", None, Some("10.0.0.1:80"));
        for text in [
            "example.com:",
            "example.com:0",
            "example.com:080",
            "example.com:+80",
            "example.com: 80",
            "example.com:65536",
            "example.com:99999999999999999999",
            "example.com:80:80",
            "::1:80",
            "user@example.com:80",
            "[::1]80",
            ":80",
            "good.example:443@evil.io:443",
        ] {
            check(text, Some(80), None);
        }
    }

    #[test]
    fn a_block_names_a_host_on_all_ports_or_on_one() {
        let check = |text: &str, expect: &str| {
            let destination = parse_destination(text).unwrap();
            assert_eq!(destination.to_string(), expect);
            assert_eq!(expect.parse::<Destination>(), Ok(destination), "the order's own reader");
        };
        check("Evil.Example.", "evil.example");
        check("evil.example:443", "evil.example:443");
        check("2001:DB8::1", "2001:db8::1");
        check("[2001:db8::1]:443", "[2001:db8::1]:443");
        assert!(parse_destination("https://evil.example").is_err());
    }
}
