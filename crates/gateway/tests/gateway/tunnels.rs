//! CONNECT: nothing goes on before the ClientHello has been judged.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use estoppel_gateway::Mode;
use estoppel_model::FlowVerdict::{Allowed, Blocked, WouldBlock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Answers, Harness, PATIENCE, Sink, client_hello, config, policy, provider, tls_client,
};

/// A TLS server that answers each line with itself.
fn tls_echo() -> SocketAddr {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let certificate =
        CertificateDer::from_pem_slice(include_bytes!("../data/secure.example.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../data/secure.example.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut bytes = [0; 1_024];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..count]).unwrap();
        }
    });
    address
}

/// A whole TLS session through the gateway, with a certificate that is checked.
#[tokio::test]
async fn a_tls_session_goes_through_unopened() {
    let mut config = config(&[("secure.example:443", tls_echo())]);
    config.policy = policy(Mode::Enforce, &["secure.example"]);
    let harness = Harness::start(config).await;
    let socket = harness.tunnel("secure.example:443").await.into_std().unwrap();
    let echoed = tokio::task::spawn_blocking(move || {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut socket = socket;
        let mut tls = tls_client("secure.example");
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(&echoed.await.unwrap(), b"hello");
    assert_eq!(harness.orders.verdicts(1).await, [Allowed]);
    let row = &harness.orders.rows()[0];
    assert_eq!(row.protocol.as_ref().unwrap().raw(), "tls");
    assert!(row.bytes_sent.unwrap() > 5 && row.bytes_received.unwrap() > 5);
}

async fn harness(mode: Mode, entries: &[&str]) -> (Harness, Sink) {
    let sink = Sink::start(Answers::Nothing).await;
    let mut config = config(&[("good.example:443", sink.address)]);
    config.policy = policy(mode, entries);
    config.limits.client_hello_timeout = Duration::from_millis(300);
    (Harness::start(config).await, sink)
}

/// Reads until the gateway hangs up; the TLS alert that says so.
async fn refused(client: &mut TcpStream) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, client.read_to_end(&mut bytes)).await.unwrap();
    if read.is_ok() {
        assert_eq!(bytes, [21, 3, 3, 0, 2, 2, 49], "access_denied");
    }
}

/// In every mode: another name, no name, no TLS, or nothing at all, and no byte goes on.
#[tokio::test]
async fn nothing_goes_on_before_the_client_hello_is_judged() {
    for mode in [Mode::Learn, Mode::Observe, Mode::Enforce] {
        let (harness, sink) = harness(mode, &["good.example"]).await;
        let other = client_hello("evil.example");
        let nameless = client_hello("192.0.2.1");
        let half = &client_hello("good.example")[..100];
        let cases: [&[u8]; 6] =
            [&other, &nameless, b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", half, b""];
        for bytes in cases {
            let mut client = harness.tunnel("good.example:443").await;
            client.write_all(bytes).await.unwrap();
            refused(&mut client).await;
        }
        assert_eq!(harness.orders.verdicts(6).await, [Blocked; 6]);
        assert_eq!((sink.count(), harness.sent()), (0, 0), "{mode}");
    }
}

/// A name that differs from the CONNECT request's is let through when it is listed itself.
#[tokio::test]
async fn a_listed_name_may_stand_in_for_another() {
    let (harness, sink) =
        harness(Mode::Enforce, &["good.example", "cdn.example", "far.example:8443"]).await;
    let hello = client_hello("cdn.example");
    let mut client = harness.tunnel("good.example:443").await;
    client.write_all(&hello).await.unwrap();
    sink.received(hello.len()).await;
    // Listed, but for another port.
    let mut client = harness.tunnel("good.example:443").await;
    client.write_all(&client_hello("far.example")).await.unwrap();
    refused(&mut client).await;
    // Listed, but blocked by an order.
    harness.block("global", "cdn.example").await;
    let mut client = harness.tunnel("good.example:443").await;
    client.write_all(&hello).await.unwrap();
    refused(&mut client).await;
    assert_eq!(sink.count(), hello.len());
}

/// A ClientHello that comes byte by byte arrives as it was sent.
#[tokio::test]
async fn a_client_hello_in_pieces_is_put_together() {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = Harness::start(config(&[("good.example:443", sink.address)])).await;
    let mut client = harness.tunnel("good.example:443").await;
    client.set_nodelay(true).unwrap();
    let hello = client_hello("good.example");
    for byte in &hello {
        assert_eq!(sink.count(), 0);
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    client.write_all(b"then data").await.unwrap();
    sink.received(hello.len() + 9).await;
    assert!(sink.text().ends_with("then data"));
}

/// Observed and not listed: reported when the tunnel is asked for, before it is open.
#[tokio::test]
async fn an_unlisted_tunnel_is_reported_at_once() {
    let (harness, _sink) = harness(Mode::Observe, &[]).await;
    let _client = harness.tunnel("good.example:443").await;
    assert_eq!(harness.orders.verdicts(1).await, [WouldBlock]);
}
