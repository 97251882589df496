//! The ClientHello reader against real ClientHellos, broken ones, and arbitrary bytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use estoppel_extract::{
    Host,
    client_hello::{CLIENT_HELLO_BYTES_MAX, ClientHello, Flaw, sni},
};
use proptest::prelude::*;
use rustls::pki_types::ServerName;

/// What rustls sends first to a server of this name.
fn real_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// One ClientHello with the given extensions, in one record.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let vector =
        |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
    let extensions = extensions
        .iter()
        .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector(data.clone())].concat())
        .collect();
    let body = [
        vec![3, 3],
        vec![7; 32],
        vec![0],
        vector(vec![0x13, 0x01]),
        vec![1, 0],
        vector(extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    record(&message)
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[22, 3, 1], &length[..], message].concat()
}

/// The data of a server_name extension.
fn names(names: &[(u8, &str)]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| {
            let length = u16::try_from(name.len()).unwrap().to_be_bytes();
            [&[*kind], &length[..], name.as_bytes()].concat()
        })
        .collect();
    [&u16::try_from(list.len()).unwrap().to_be_bytes()[..], &list].concat()
}

fn named(name: &str) -> ClientHello {
    ClientHello::Sni(Host::Name(name.to_owned()))
}

#[test]
fn a_real_client_hello_names_its_server() {
    let bytes = real_hello("api.example.com");
    assert_eq!(sni(&bytes), named("api.example.com"));
    // Whatever follows the ClientHello belongs to the connection.
    assert_eq!(sni(&[&bytes[..], b"early data"].concat()), named("api.example.com"));
    // To an address rustls sends no name.
    assert_eq!(sni(&real_hello("192.0.2.1")), ClientHello::NoSni);
}

#[test]
fn every_prefix_needs_more() {
    let bytes = real_hello("api.example.com");
    for length in 0..bytes.len() {
        assert_eq!(sni(&bytes[..length]), ClientHello::NeedMore, "{length} bytes");
    }
}

#[test]
fn a_hello_in_many_records_is_put_together() {
    let bytes = real_hello("api.example.com");
    for size in [1, 2, 3, 5, 100] {
        let fragmented: Vec<u8> = bytes[5..].chunks(size).flat_map(record).collect();
        assert_eq!(sni(&fragmented), named("api.example.com"), "{size} bytes a record");
        assert_eq!(sni(&fragmented[..fragmented.len() - 1]), ClientHello::NeedMore);
    }
}

#[test]
fn what_is_not_tls_is_told_apart() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", &[0x80, 0x2e, 1, 0, 2], &[22, 2, 0]] {
        assert_eq!(sni(bytes), ClientHello::NotTls, "{bytes:?}");
    }
}

#[test]
fn names_are_brought_into_normal_form() {
    assert_eq!(sni(&hello(&[(0, names(&[(0, "API.Example.COM")]))])), named("api.example.com"));
    assert_eq!(sni(&hello(&[(16, vec![0, 0])])), ClientHello::NoSni);
    assert_eq!(sni(&hello(&[])), ClientHello::NoSni);
}

#[test]
fn what_a_server_could_read_differently_is_malformed() {
    let check = |bytes: &[u8], expect: Flaw| {
        assert_eq!(sni(bytes), ClientHello::Malformed(expect));
    };
    let name = || names(&[(0, "good.example")]);
    check(&hello(&[(0, name()), (0, names(&[(0, "evil.example")]))]), Flaw::Doubled);
    check(&hello(&[(0, names(&[(0, "good.example"), (0, "evil.example")]))]), Flaw::Names);
    check(&hello(&[(0, names(&[(1, "good.example")]))]), Flaw::Names);
    check(&hello(&[(0, names(&[]))]), Flaw::Length);
    check(&hello(&[(0, names(&[(0, "192.0.2.1")]))]), Flaw::Address);
    check(&hello(&[(0, [name(), vec![0]].concat())]), Flaw::Length);
    assert!(matches!(
        sni(&hello(&[(0, names(&[(0, "good.example\0.evil.example")]))])),
        ClientHello::Malformed(Flaw::Host(_))
    ));
    // A second message behind the ClientHello in the same record.
    let mut two = hello(&[(0, name())])[5..].to_vec();
    two.extend([20, 0, 0, 0]);
    check(&record(&two), Flaw::Length);
    // Another message, an empty record, another type of record in between, a record too long.
    check(&record(&[2, 0, 0, 1, 0]), Flaw::Message);
    check(&[22, 3, 1, 0, 0, 1], Flaw::Record);
    let bytes = hello(&[(0, name())]);
    check(&[&record(&bytes[5..20])[..], &[21, 3, 1, 0, 2, 1, 0]].concat(), Flaw::Record);
    check(&[22, 3, 1, 0x40, 0x01, 1], Flaw::Record);
    // A length that does not fit into the bound is refused before the rest has come.
    check(&[22, 3, 1, 0x40, 0x00, 1, 0, 0x40, 0x01], Flaw::TooLong);
}

#[test]
fn a_hello_without_an_end_is_given_up() {
    let mut bytes = Vec::new();
    // 16,300 bytes of body announced, in records of one byte: the headers exceed the bound.
    let message = [&[1, 0, 0x3f, 0xac][..], &vec![3; 16_300]].concat();
    for byte in message {
        bytes.extend(record(&[byte]));
    }
    assert_eq!(sni(&bytes[..CLIENT_HELLO_BYTES_MAX - 1]), ClientHello::NeedMore);
    assert_eq!(sni(&bytes), ClientHello::Malformed(Flaw::TooLong));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = sni(&bytes);
        let _ = sni(&[&[22, 3, 1][..], &bytes].concat());
    }

    /// A changed byte is read as something, without a panic, and never as an address.
    #[test]
    fn damaged_hellos_never_panic(at in 0_usize..400, value in any::<u8>(), cut in 0_usize..400) {
        let mut bytes = hello(&[(16, vec![0, 0]), (0, names(&[(0, "good.example")]))]);
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let ClientHello::Sni(host) = sni(&bytes) {
            prop_assert!(host.address().is_none());
        }
    }

    /// More bytes never take a verdict back: what was judged stays judged.
    #[test]
    fn a_verdict_is_final(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
        let bytes = [&[22, 3, 1, 0, 40, 1, 0, 0, 36][..], &bytes].concat();
        let prefix = &bytes[..cut.min(bytes.len())];
        let early = sni(prefix);
        if early != ClientHello::NeedMore {
            prop_assert_eq!(sni(&bytes), early);
        }
    }
}
