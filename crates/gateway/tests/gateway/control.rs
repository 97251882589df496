//! The way of an agent's own guard to its server, through the gateway: two addresses, the guard's
//! own token, and nothing else.

use std::{path::Path, sync::Arc};

use estoppel_api::Role;
use estoppel_gateway::ControlPlane;
use estoppel_link::{
    Link, LinkConfig, LinkEvent, Trust,
    frame::{EnforcerKind, Settlement},
};
use estoppel_model::{Event, Secret, SystemClock};
use estoppel_server::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::support::{Control, Harness, PATIENCE, SESSION, answer, config, head, subject};

/// A gateway that leads guards to its own server.
async fn harness(server: Control) -> Harness {
    let servers = vec![server.url()];
    harness_to(server, servers).await
}

async fn harness_to(server: Control, servers: Vec<Url>) -> Harness {
    let mut config = config(&[]);
    config.control = Some(ControlPlane { servers, trust: server.trust.clone() });
    server.gateway(config).await
}

/// A guard that knows of no server but the gateway's listener, and speaks no TLS.
struct Guard {
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    stop: CancellationToken,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Guard {
    async fn connect(harness: &Harness) -> Self {
        let token = Secret::new(harness.server.token("agent-1", Role::Agent).await);
        let url = format!("http://{}", harness.gateway.local_addr()).parse().unwrap();
        let config = LinkConfig::new(vec![url], token, EnforcerKind::Guard, "guard");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (link, events) =
            Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap();
        assert!(timeout(PATIENCE, link.ready()).await.is_ok(), "{:?}", link.status());
        Self { link, events, stop }
    }

    /// Waits for an order, and says that it is carried out.
    async fn settles(&mut self) {
        let waiting = async {
            while let Some(event) = self.events.recv().await {
                if let LinkEvent::Ordered(order) = event {
                    self.link.settled(order.id, Settlement::default());
                    return;
                }
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    }
}

/// K7, K3: the guard gets its lease, hears a halt and confirms it, although the halt is of the
/// gateway's own session; its events arrive.
async fn a_guard_is_served(harness: Harness) {
    let mut guard = Guard::connect(&harness).await;
    guard.link.view().check(&subject()).unwrap();
    let halt = harness.halt(&format!("session:{SESSION}")).await;
    guard.settles().await;
    guard.link.view().check(&subject()).unwrap_err();
    let status = harness.status_when(halt.id, |status| status.settled == 2).await;
    let mut kinds: Vec<_> = status.enforcers.iter().map(|word| word.kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["gateway", "guard"], "{status:?}");
    let event = r#"{"kind":"audit","session_id":"abc123","action":"call","tool":"search"}"#;
    guard.link.uploader().send(Event::parse(event).unwrap());
    let delivered = async {
        while guard.link.status().events.delivered == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, delivered).await.is_ok(), "{:?}", guard.link.status());
    assert!(harness.orders.rows().is_empty(), "none of it is a flow of the agent's");
}

#[tokio::test]
async fn a_guard_reaches_its_server_through_the_gateway() {
    a_guard_is_served(harness(Control::start().await).await).await;
}

/// The gateway speaks TLS outwards and trusts whom its operator trusts.
#[tokio::test]
async fn a_guard_reaches_a_tls_server_without_speaking_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, ca) = certificate(folder.path());
    let trust = Trust::only(&ca).unwrap();
    let server = Control::with(|config| config.tls = Some(tls), trust).await;
    assert_eq!(server.url().scheme(), "https");
    a_guard_is_served(harness(server).await).await;
}

/// A certificate of 127.0.0.1 by a private CA; its files, and the CA's.
fn certificate(folder: &Path) -> (TlsFiles, std::path::PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &ca).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files =
        TlsFiles { cert: file("cert.pem", cert.pem()), key: file("key.pem", key.serialize_pem()) };
    (files, file("ca.pem", ca.pem()))
}

/// A server that is away is passed over with the next request.
#[tokio::test]
async fn the_next_server_is_tried() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let server = Control::start().await;
    let servers = vec![away, server.url()];
    a_guard_is_served(harness_to(server, servers).await).await;
}

/// Sends a request in origin form with the admin's own token.
async fn ask(harness: &Harness, method: &str, path: &str) -> String {
    let token = &harness.server.admin;
    harness
        .exchange(&format!(
            "{method} {path} HTTP/1.1\r\nHost: estoppel\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        ))
        .await
}

/// Whatever token an agent holds: two addresses of the server, each by its one method.
#[tokio::test]
async fn nothing_else_of_the_server_can_be_reached() {
    let harness = harness(Control::start().await).await;
    harness.server.client.status().await.unwrap();
    for (method, path) in [
        ("GET", "/v1/status"),
        ("POST", "/v1/sql"),
        ("POST", "/kill-switch"),
        ("POST", "/kill-switch/release"),
        ("PUT", "/v1/allowlist"),
        ("POST", "/v1/tokens"),
        ("GET", "/healthz"),
        ("GET", "/"),
        ("OPTIONS", "*"),
        ("GET", "/v1/events"),
        ("PUT", "/v1/events"),
        ("HEAD", "/v1/stream"),
        ("POST", "/v1/stream"),
        ("GET", "/v1/stream?token=x"),
        ("GET", "//v1/stream"),
        ("GET", "/v1/stream/"),
        ("GET", "/v1/./stream"),
        ("GET", "/V1/stream"),
        ("GET", "/v1/%73tream"),
        ("POST", "/v1/events/../sql"),
        ("POST", "/v1/events%2f..%2fsql"),
        ("POST", "/v1/events;/../sql"),
    ] {
        let answer = ask(&harness, method, path).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{method} {path}: {answer}");
        let named = answer.contains("urn:estoppel:problem:not-passed-on") || method == "HEAD";
        assert!(named, "{method} {path}: {answer}");
    }
    // As a proxy it leads there neither.
    let server = harness.server.url();
    let authority = format!("127.0.0.1:{}", server.port().unwrap());
    assert!(harness.fetch(&authority).await.starts_with("HTTP/1.1 403"));
}

/// The server reads the guard's own token or none; what the gateway holds is never added.
#[tokio::test]
async fn no_token_is_added() {
    let harness = harness(Control::start().await).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for token in ["", "Authorization: Bearer wrong\r\n", "Cookie: estoppel=x\r\n"] {
        let events = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 2\r\n\
             Connection: close\r\n\r\n[]"
        );
        let answered = harness.exchange(&events).await;
        assert!(answered.starts_with("HTTP/1.1 401"), "{token}: {answered}");
        let mut client = harness.connect().await;
        let stream = format!("GET /v1/stream HTTP/1.1\r\nHost: x\r\n{token}{upgrade}\r\n");
        client.write_all(stream.as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 401"), "{token}");
    }
    // A stream that is none is not asked for, whatever the token.
    let answered = ask(&harness, "GET", "/v1/stream").await;
    assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
}

/// Opens a stream by hand.
async fn stream(harness: &Harness, token: &str) -> (TcpStream, String) {
    let mut client = harness.connect().await;
    let request = format!(
        "GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut client).await;
    (client, head)
}

/// A second request inside of the first, or behind an upgrade, reaches nothing.
#[tokio::test]
async fn a_request_inside_a_request_stays_behind() {
    let harness = harness(Control::start().await).await;
    let token = harness.server.admin.clone();
    let halt = r#"{"scope": "global", "reason": "smuggled"}"#;
    let smuggled = format!(
        "POST /kill-switch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\n\r\n{halt}",
        halt.len()
    );
    let lengths = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ];
    for lengths in lengths {
        let mut client = harness.connect().await;
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{lengths}\r\n\
             0\r\n\r\n{smuggled}"
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let _ = client.read_to_end(&mut Vec::new()).await;
    }
    let (mut client, head) = stream(&harness, &token).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client.write_all(smuggled.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, client.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the server ends a stream that holds no frames");
    assert!(!String::from_utf8_lossy(&said).contains("HTTP/1.1"), "{said:?}");
    let state = harness.server.client.kill_switch("global").await.unwrap();
    assert!(!state.active && state.halts.is_empty(), "{state:?}");
}

/// So many at a time, and a stream that ends makes room.
#[tokio::test]
async fn streams_are_bounded() {
    let harness = harness(Control::start().await).await;
    let token = harness.server.token("agent-1", Role::Agent).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let (client, head) = stream(&harness, &token).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        streams.push(client);
    }
    let (mut refused, head) = stream(&harness, &token).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(answer(&mut refused).await.contains("urn:estoppel:problem:too-many"));
    drop(streams.pop());
    let room = async {
        while !stream(&harness, &token).await.1.starts_with("HTTP/1.1 101") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, room).await.unwrap();
}

/// A gateway that others share leads no guard anywhere.
#[tokio::test]
async fn a_gateway_without_a_control_plane_is_a_proxy_alone() {
    let harness = Harness::start(config(&[])).await;
    for (method, path) in [("GET", "/v1/stream"), ("POST", "/v1/events")] {
        let answered = ask(&harness, method, path).await;
        assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
    }
}
