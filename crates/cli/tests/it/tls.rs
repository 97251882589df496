//! The API over TLS: halts, a guard's stream, a certificate that is replaced meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Output},
};

use estoppel_link::Trust;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    guards::Guards,
    stage::{Server, signal, wait_for},
};

/// A private CA, and the files of a server that it vouches for.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes a new certificate for 127.0.0.1 and its key; returns the certificate.
    fn issue(&self, folder: &Path) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        // Of another name than its issuer: OpenSSL would take it for signed by itself.
        params.distinguished_name.push(DnType::CommonName, "a server");
        let cert = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
        cert.der().to_vec()
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).unwrap();
    }
}

struct Stage {
    server: Server,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.issue(folder.path());
        authority.write(&folder.path().join("ca.pem"));
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        let variables = [("ESTOPPEL_TLS_CERT", cert.as_str()), ("ESTOPPEL_TLS_KEY", key.as_str())];
        let server = Server::start_in("", &variables);
        assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
        Self { server, authority, folder }
    }

    fn cli(&self, ca: Option<&str>, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_estoppel"));
        if let Some(ca) = ca {
            command.env("ESTOPPEL_CA", self.folder.path().join(ca));
        }
        command
            .args(args)
            .env("ESTOPPEL_URL", &self.server.url)
            .env("ESTOPPEL_TOKEN", &self.server.admin)
            .output()
            .unwrap()
    }

    /// The certificate that a client is shown now.
    fn shown(&self) -> String {
        let address = self.server.url.strip_prefix("https://").unwrap();
        let script = "openssl s_client -connect \"$0\" </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256";
        let output = Command::new("sh").args(["-c", script, address]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A halt reaches a guard over TLS, before and after the certificate was replaced.
#[test]
fn halts_and_streams_go_over_tls_and_outlast_a_new_certificate() {
    let stage = Stage::new();
    let made = wait_for("the server's recovery", || {
        let made = stage.cli(Some("ca.pem"), &["token", "create", "bot", "--role", "agent"]);
        made.status.success().then_some(made)
    });
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let trust = Trust::only(&stage.folder.path().join("ca.pem")).unwrap();
    let guards = Guards::trusting(&stage.server.url, &token, 1, &trust);
    let halt = |scope: &str| {
        let halted = stage.cli(Some("ca.pem"), &["halt", scope, "--reason", "r"]);
        assert!(halted.status.success(), "{}", text(&halted));
    };
    let in_force = |count: usize| {
        wait_for("the halt", || (guards.first().status().orders_in_force == count).then_some(()));
    };
    halt("session:one");
    in_force(1);
    let first = stage.shown();
    assert!(first.contains("Fingerprint="), "{first}");

    stage.authority.issue(stage.folder.path());
    signal(stage.server.pid(), "HUP");
    let second = wait_for("the certificate of a signal", || {
        Some(stage.shown()).filter(|shown| *shown != first && shown.contains("Fingerprint="))
    });
    halt("session:two");
    in_force(2);

    // A bad one keeps the old one and complains.
    std::fs::write(stage.folder.path().join("cert.pem"), "nonsense").unwrap();
    wait_for("the complaint", || {
        let status = stage.cli(Some("ca.pem"), &["status"]);
        text(&status).contains("the new certificate cannot be used").then_some(())
    });
    assert_eq!(stage.shown(), second);
    halt("session:three");
    in_force(3);

    // A good one is found without a signal.
    stage.authority.issue(stage.folder.path());
    wait_for("the certificate of a file", || {
        Some(stage.shown()).filter(|shown| *shown != second && shown.contains("Fingerprint="))
    });
    let status = text(&stage.cli(Some("ca.pem"), &["status"]));
    assert!(!status.contains("cannot be used"), "{status}");
    guards.end();
}

/// Who does not trust the server, or does not speak TLS, is told what is wrong.
#[test]
fn strangers_and_plain_http_are_told_what_is_wrong() {
    let stage = Stage::new();
    Authority::new().write(&stage.folder.path().join("other.pem"));
    for ca in [None, Some("other.pem")] {
        let refused = stage.cli(ca, &["status"]);
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
        assert!(text(&refused).contains("ESTOPPEL_CA"), "{}", text(&refused));
    }
    let missing = stage.cli(Some("none.pem"), &["status"]);
    assert_eq!(missing.status.code(), Some(2), "{}", text(&missing));
    assert!(text(&missing).contains("none.pem"));

    let address = stage.server.url.strip_prefix("https://").unwrap();
    let plain = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--url", &format!("http://{address}"), "status"])
        .env("ESTOPPEL_TOKEN", &stage.server.admin)
        .output()
        .unwrap();
    assert!(!plain.status.success());
    assert!(text(&plain).contains("https://"), "{}", text(&plain));

    // Neither a token that was sent in the clear nor garbage is answered otherwise.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::stage::PATIENCE)).unwrap();
    stream
        .write_all(b"POST /kill-switch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("speaks TLS"), "{answer}");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"\x16\x03\x01\x00\x05hello").unwrap();
    let mut alert = Vec::new();
    stream.set_read_timeout(Some(crate::stage::PATIENCE)).unwrap();
    let _ = stream.read_to_end(&mut alert);
    assert!(!alert.starts_with(b"HTTP"), "{alert:?}");
}

/// A client that connects and says nothing is let go, and keeps nobody else waiting.
#[test]
fn a_handshake_is_bounded_and_in_nobodys_way() {
    let stage = Stage::new();
    let address = stage.server.url.strip_prefix("https://").unwrap();
    let mut silent: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
    let halted = stage.cli(Some("ca.pem"), &["halt", "global", "--reason", "r"]);
    assert!(halted.status.success(), "{}", text(&halted));
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(crate::stage::PATIENCE)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0, "it is closed");
}

/// Nobody listens in the clear on an address that others reach, unless told to.
#[test]
fn an_open_address_needs_tls() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["serve", "--no-gateway", "--listen", "192.0.2.1:7600", "--data"])
            .arg(folder.path().join("data"))
            .args(more)
            .output()
            .unwrap()
    };
    let refused = serve(&[]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(text(&refused).contains("tls_cert"), "{}", text(&refused));
    let half = serve(&["--tls-cert", "x.pem"]);
    assert_eq!(half.status.code(), Some(2), "{}", text(&half));
    let none = serve(&["--tls-cert", "no-such.pem", "--tls-key", "no-such.pem"]);
    assert!(text(&none).contains("no-such.pem"), "{}", text(&none));
}

/// Row K5: signed in over the server's own TLS, the cookie never goes anywhere in the clear.
#[test]
fn a_page_over_tls_has_a_secure_cookie() {
    let stage = Stage::new();
    wait_for("the server's recovery", || {
        let status = stage.cli(Some("ca.pem"), &["status"]);
        status.status.success().then_some(())
    });
    let ca = stage.folder.path().join("ca.pem");
    let curl = |args: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "-i", "-m", "20", "--cacert"])
            .arg(&ca)
            .args(args)
            .output();
        text(&output.unwrap())
    };
    let url = &stage.server.url;
    let token = format!("token={}", stage.server.admin.trim());
    let sign_in = |origin: &str| {
        let origin = format!("Origin: {origin}");
        curl(&["-H", &origin, "--data-urlencode", &token, &format!("{url}/sign-in")])
    };
    let signed_in = sign_in(url);
    assert!(signed_in.starts_with("HTTP/1.1 303 "), "{signed_in}");
    let cookie = signed_in
        .lines()
        .find_map(|line| line.to_ascii_lowercase().starts_with("set-cookie: ").then(|| &line[12..]))
        .unwrap();
    assert!(cookie.starts_with("__Host-estoppel-"), "{cookie}");
    for part in ["; Secure", "; HttpOnly", "; SameSite=Lax", "; Path=/"] {
        assert!(cookie.contains(part), "{part}: {cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    let page = curl(&["-H", &format!("Cookie: {pair}"), &format!("{url}/halts")]);
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("Signed in as"), "{page}");
    let plain = sign_in(&url.replace("https://", "http://"));
    assert!(plain.starts_with("HTTP/1.1 403 "), "a form of a page without TLS: {plain}");
}
