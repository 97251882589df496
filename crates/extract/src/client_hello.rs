//! The server name in the first bytes of a TLS connection (RFC 8446 section 4.1.2, RFC 6066
//! section 3), read without opening the connection.
//!
//! What a server could read differently from us is malformed: a doubled extension, several names,
//! a name that is an address, a message that shares its record with another one. At most 16 KiB are
//! looked at. With encrypted ClientHello the name is the outer one, which is where a connection
//! claims to go. What happens inside the encryption, a renegotiation or an HTTP `Host` for
//! instance, is not seen here.

use crate::{Host, HostError};

/// Most bytes that are read in search of the ClientHello, record headers included.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const RECORD_BYTES_MAX: usize = 1 << 14;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// The ClientHello is not complete; give more bytes.
    NeedMore,
    /// A ClientHello without a server name.
    NoSni,
    /// A ClientHello for this server.
    Sni(Host),
    /// Not TLS, or SSL 2.
    NotTls,
    /// TLS, but wrong.
    Malformed(Flaw),
}

/// What is wrong with a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It has no end within the bound.
    #[error("the ClientHello is longer than {CLIENT_HELLO_BYTES_MAX} bytes")]
    TooLong,
    /// A length points outside of what holds it, or something is left over.
    #[error("a length in the ClientHello is wrong")]
    Length,
    /// The record is too long, empty, or of another type.
    #[error("the ClientHello is not in handshake records")]
    Record,
    /// The first message is another one.
    #[error("the first message is not a ClientHello")]
    Message,
    /// An extension stands twice.
    #[error("an extension stands twice in the ClientHello")]
    Doubled,
    /// There is not exactly one name of a host.
    #[error("the ClientHello does not name exactly one host")]
    Names,
    /// The name is no host name.
    #[error("the ClientHello's server name is none: {0}")]
    Host(#[from] HostError),
    /// The name is an address, which RFC 6066 forbids.
    #[error("the ClientHello's server name is an address")]
    Address,
}

/// Returns what the bytes at the start of a connection say.
pub fn sni(bytes: &[u8]) -> ClientHello {
    match read(bytes) {
        Ok(found) => found,
        Err(flaw) => ClientHello::Malformed(flaw),
    }
}

fn read(bytes: &[u8]) -> Result<ClientHello, Flaw> {
    let complete = bytes.len() >= CLIENT_HELLO_BYTES_MAX;
    let bytes = &bytes[..bytes.len().min(CLIENT_HELLO_BYTES_MAX)];
    let more = || if complete { Err(Flaw::TooLong) } else { Ok(ClientHello::NeedMore) };
    let mut rest = bytes;
    let mut message = Vec::new();
    loop {
        match rest {
            [] => return more(),
            [kind, ..] if *kind != RECORD_HANDSHAKE => {
                return if message.is_empty() {
                    Ok(ClientHello::NotTls)
                } else {
                    Err(Flaw::Record)
                };
            }
            [_, major, ..] if *major != 3 => {
                return if message.is_empty() {
                    Ok(ClientHello::NotTls)
                } else {
                    Err(Flaw::Record)
                };
            }
            [_, _, _, high, low, body @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                // An empty handshake record is forbidden (RFC 8446, section 5.1).
                if length == 0 || length > RECORD_BYTES_MAX {
                    return Err(Flaw::Record);
                }
                let fragment = &body[..length.min(body.len())];
                message.extend_from_slice(fragment);
                // The type and the length are judged before the rest has come.
                if message.first().is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO) {
                    return Err(Flaw::Message);
                }
                if let [_, a, b, c, hello @ ..] = message.as_slice() {
                    let expected = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                    if expected > CLIENT_HELLO_BYTES_MAX {
                        return Err(Flaw::TooLong);
                    }
                    if hello.len() > expected {
                        return Err(Flaw::Length);
                    }
                    if hello.len() == expected && fragment.len() == length {
                        return client_hello(hello);
                    }
                }
                if body.len() < length {
                    return more();
                }
                rest = &body[length..];
            }
            _ => return more(),
        }
    }
}

/// Reads the body of the message.
fn client_hello(body: &[u8]) -> Result<ClientHello, Flaw> {
    let mut body = Reader(body);
    body.take(2)?; // legacy_version
    body.take(32)?; // random
    body.vector_u8()?; // legacy_session_id
    body.vector_u16()?; // cipher_suites
    body.vector_u8()?; // legacy_compression_methods
    if body.0.is_empty() {
        return Ok(ClientHello::NoSni);
    }
    let mut extensions = Reader(body.vector_u16()?);
    body.end()?;
    let mut seen = Vec::new();
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector_u16()?;
        if seen.contains(&kind) {
            return Err(Flaw::Doubled);
        }
        seen.push(kind);
        if kind == EXTENSION_SERVER_NAME {
            name = Some(server_name(data)?);
        }
    }
    Ok(name.map_or(ClientHello::NoSni, ClientHello::Sni))
}

fn server_name(data: &[u8]) -> Result<Host, Flaw> {
    let mut data = Reader(data);
    let mut list = Reader(data.vector_u16()?);
    data.end()?;
    if list.u8()? != NAME_TYPE_HOST {
        return Err(Flaw::Names);
    }
    let name = list.vector_u16()?;
    if !list.0.is_empty() {
        return Err(Flaw::Names);
    }
    let name = str::from_utf8(name).ok().filter(|name| name.is_ascii()).ok_or(Flaw::Names)?;
    match Host::parse(name)? {
        Host::Address(_) => Err(Flaw::Address),
        host => Ok(host),
    }
}

/// Reads lengths and what they measure.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Flaw::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Flaw> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Flaw> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self) -> Result<&'a [u8], Flaw> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector_u16(&mut self) -> Result<&'a [u8], Flaw> {
        let length = self.u16()?;
        self.take(length.into())
    }

    const fn end(&self) -> Result<(), Flaw> {
        if self.0.is_empty() { Ok(()) } else { Err(Flaw::Length) }
    }
}
