//! A shared gateway and a server, both of the real binary, over the real link (rows P1, P5, P9, K7):
//! the allowlist, halts and blocks over HTTP, and the rows by SQL, held against what the destination
//! itself has counted.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    drills::{Running, free_port, wait_for_enforcers},
    stage::{LISTEN, PATIENCE, Server, wait_for},
};

/// A destination that takes everything, answers a GET, and counts.
struct Sink {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    /// Connections that are open.
    open: Arc<AtomicU64>,
}

impl Sink {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sink = Self { address, bytes: Arc::default(), open: Arc::default() };
        let (bytes, open) = (Arc::clone(&sink.bytes), Arc::clone(&sink.open));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (bytes, open) = (Arc::clone(&bytes), Arc::clone(&open));
                open.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        bytes.fetch_add(count as u64, Ordering::SeqCst);
                        if buffer.starts_with(b"GET") {
                            let _ = stream.write_all(
                                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                            );
                            break;
                        }
                    }
                    drop(stream);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        sink
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    fn open_connections(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }
}

/// A gateway to which both names are the sink.
struct Shared {
    proxy: SocketAddr,
    sink: Sink,
    _running: Running,
}

impl Shared {
    fn start(server: &Server) -> Self {
        let sink = Sink::open();
        let proxy = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let child = Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["gateway", "--listen", &proxy.to_string(), "--state"])
            .arg(server.data.with_file_name("gateway"))
            .args(["--resolve", &format!("good.example:80={}", sink.address)])
            .args(["--resolve", &format!("evil.example:80={}", sink.address)])
            .env("ESTOPPEL_URL", &server.url)
            .env("ESTOPPEL_TOKEN", server.token("gateway", "enforcer", None))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let shared = Self { proxy, sink, _running: Running(child) };
        wait_for_enforcers(server, 1);
        wait_for("the gateway", || TcpStream::connect(proxy).ok());
        shared
    }

    /// The proxy as the agent of a session writes it.
    fn credential(server: &Server, session: &str) -> String {
        let body = json!({ "subject": { "session": session } });
        let (_, minted) = server.admin("POST", "/v1/gateway/credentials", &body);
        minted["credential"].as_str().unwrap().to_owned()
    }

    /// What curl gets through the gateway: the status and the body.
    fn get(&self, credential: &str, name: &str) -> (u16, String) {
        let proxy = format!("http://estoppel:{credential}@{}", self.proxy);
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "", "-m", "20", "-w", "\n%{http_code}", "-x", &proxy])
            .arg(format!("http://{name}/"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// An upload that goes on until it is cut.
    fn upload(&self, credential: &str, name: &str) -> Upload {
        let mut stream = TcpStream::connect(self.proxy).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let basic = STANDARD.encode(format!("estoppel:{credential}"));
        let head = format!(
            "POST http://{name}/ HTTP/1.1\r\nHost: {name}\r\nProxy-Authorization: Basic {basic}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let before = self.sink.bytes();
        let mut upload = Upload(stream);
        upload.chunk().unwrap();
        wait_for("the upload's bytes", || (self.sink.bytes() >= before + 10_000).then_some(()));
        upload
    }
}

struct Upload(TcpStream);

impl Upload {
    fn chunk(&mut self) -> std::io::Result<()> {
        self.0.write_all(&[b"2710\r\n".as_slice(), &[b'x'; 10_000], b"\r\n"].concat())
    }

    /// Waits for the reset.
    fn is_cut(&mut self) {
        let error = std::io::copy(&mut self.0, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

fn allow(server: &Server, domains: &Value) {
    let (status, answer) = server.admin("PUT", "/v1/allowlist", &json!({ "domains": domains }));
    assert_eq!(status, 200, "{answer}");
}

/// Waits until a session's last row on a name says so. Others may come before: an open flow reports
/// its bytes now and then.
fn ends_as(server: &Server, session: &str, name: &str, verdict: &str) {
    wait_for(&format!("the row `{verdict}`"), || {
        (verdicts(server, session, name).last()? == verdict).then_some(())
    });
}

/// The verdicts of a session's flows to a name, in order.
fn verdicts(server: &Server, session: &str, name: &str) -> Vec<String> {
    let query = format!(
        "SELECT verdict FROM network_log WHERE session_id = '{session}' AND destination = '{name}' \
         ORDER BY timestamp"
    );
    server.sql(&query).iter().map(|row| row[0].as_str().unwrap().to_owned()).collect()
}

/// Waits until the rows of a session say how many bytes it has sent.
fn sent(server: &Server, session: &str, bytes: u64) {
    let query = format!("SELECT SUM(bytes_sent) FROM network_log WHERE session_id = '{session}'");
    let mut last = Value::Null;
    wait_for(&format!("{bytes} bytes in the network log"), || {
        last = server.sql(&query)[0][0].clone();
        (last.as_u64() == Some(bytes)).then_some(())
    });
}

/// Row P1: learned while there is no list; then the unlisted is reported or refused, as the mode
/// says, from the next look of the gateway on.
#[test]
fn a_list_that_is_set_takes_hold_in_each_mode() {
    for (mode, status, verdict) in [("observe", 200, "would_block"), ("enforce", 403, "blocked")] {
        let server = Server::start_with(&format!("[egress]\nmode = \"{mode}\"\n"));
        let gateway = Shared::start(&server);
        let credential = Shared::credential(&server, "s1");
        assert_eq!(gateway.get(&credential, "evil.example").0, 200, "{mode}: without a list");
        ends_as(&server, "s1", "evil.example", "allowed");
        allow(&server, &json!(["good.example"]));
        let mut asked = 1;
        wait_for("the list at the gateway", || {
            asked += 1;
            let (found, body) = gateway.get(&credential, "evil.example");
            assert!(found != 403 || body.contains("destination-unlisted"), "{body}");
            let last = wait_for("the row", || {
                let rows = verdicts(&server, "s1", "evil.example");
                (rows.len() >= asked).then(|| rows.last().unwrap().clone())
            });
            (found == status && last == verdict).then_some(())
        });
        assert_eq!(gateway.get(&credential, "good.example").0, 200, "{mode}");
        sent(&server, "s1", gateway.sink.bytes());
    }
}

/// Row P5: a list that becomes narrower also cuts what is under way.
#[test]
fn a_narrower_list_cuts_open_flows() {
    let server = Server::start_with("[egress]\nmode = \"enforce\"\n");
    allow(&server, &json!(["good.example", "evil.example"]));
    let gateway = Shared::start(&server);
    let credential = Shared::credential(&server, "s1");
    let mut evil = gateway.upload(&credential, "evil.example");
    let mut good = gateway.upload(&credential, "good.example");
    allow(&server, &json!(["good.example"]));
    evil.is_cut();
    good.chunk().unwrap();
    wait_for("the end of one", || (gateway.sink.open_connections() == 1).then_some(()));
    ends_as(&server, "s1", "evil.example", "cut");
}

/// Rows K7, P5, P9: of two sessions the halted one is cut in the middle of its upload, its new
/// flows are refused with the order, and confirmation, log and destination agree on the bytes; a
/// release lets it go on.
#[test]
fn a_halt_cuts_one_session_and_all_agree_on_the_bytes() {
    let server = Server::start();
    let gateway = Shared::start(&server);
    let (one, two) = (Shared::credential(&server, "one"), Shared::credential(&server, "two"));
    let mut upload = gateway.upload(&one, "evil.example");
    for _ in 0..20 {
        upload.chunk().unwrap();
    }
    let halt = server.json(&["halt", "session:one", "--reason", "it leaks", "--wait"]);
    upload.is_cut();
    wait_for("the sink's end", || (gateway.sink.open_connections() == 0).then_some(()));
    let bytes = gateway.sink.bytes();
    let word = &halt["enforcers"][0];
    assert_eq!((&halt["state"], &word["kind"]), (&json!("settled"), &json!("gateway")), "{halt}");
    assert_eq!(word["settlement"]["connections_cut"], 1, "{halt}");
    assert_eq!(word["settlement"]["bytes_out"], bytes, "{halt}");
    sent(&server, "one", bytes);
    ends_as(&server, "one", "evil.example", "cut");

    let (status, refused) = gateway.get(&one, "good.example");
    let refused: Value = serde_json::from_str(&refused).unwrap();
    assert_eq!((status, &refused["order"]["id"]), (403, &halt["id"]), "{refused}");
    assert_eq!(refused["order"]["reason"], "it leaks");
    assert_eq!(gateway.get(&two, "good.example").0, 200, "the other session goes on");
    ends_as(&server, "one", "good.example", "blocked");

    let id = halt["id"].as_str().unwrap();
    server.json(&["release", "session:one", "--reason", "looked at", "--halt", id]);
    wait_for("the release", || (gateway.get(&one, "good.example").0 == 200).then_some(()));
}

/// Row P5: `block` cuts the flow to its destination and no other, and keeps it closed for that
/// scope.
#[test]
fn a_block_cuts_and_refuses_its_destination() {
    let server = Server::start();
    let gateway = Shared::start(&server);
    let (one, two) = (Shared::credential(&server, "one"), Shared::credential(&server, "two"));
    let mut evil = gateway.upload(&one, "evil.example");
    let mut good = gateway.upload(&one, "good.example");
    let args = ["block", "evil.example", "--scope", "session:one", "--reason", "exfiltration"];
    let output = server.cli(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    evil.is_cut();
    let before = gateway.sink.bytes();
    good.chunk().unwrap();
    wait_for("the other upload", || (gateway.sink.bytes() >= before + 10_000).then_some(()));
    let (status, refused) = gateway.get(&one, "evil.example");
    assert!(status == 403 && refused.contains("exfiltration"), "{status} {refused}");
    assert_eq!(gateway.get(&two, "evil.example").0, 200, "of another session it is not blocked");
    ends_as(&server, "one", "evil.example", "blocked");
    assert!(verdicts(&server, "one", "evil.example").contains(&"cut".to_owned()));
}

/// Invariant *lease*: when the server is gone the gateway cuts and refuses as soon as its lease is
/// over; the rows of that time are there when a server is back, and so is the way out.
#[test]
fn a_dead_server_ends_what_flows_and_loses_no_row() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("estoppel.toml"), "[serve]\nlease_seconds = 2\n").unwrap();
    let server = Server::at(&folder.path().join("data"));
    let gateway = Shared::start(&server);
    let credential = Shared::credential(&server, "s1");
    let mut upload = gateway.upload(&credential, "evil.example");
    let address = server.address().to_owned();
    let data = server.data.clone();
    drop(server);
    upload.is_cut();
    let (status, refused) = gateway.get(&credential, "good.example");
    assert!(status == 403 && refused.contains("lease-lost"), "{status} {refused}");
    let server = Server::at_in(&data, &[(LISTEN, &address)]);
    wait_for("the way out", || (gateway.get(&credential, "good.example").0 == 200).then_some(()));
    ends_as(&server, "s1", "evil.example", "cut");
    let rows = verdicts(&server, "s1", "good.example");
    assert_eq!(rows.first().map(String::as_str), Some("blocked"), "{rows:?}");
    sent(&server, "s1", gateway.sink.bytes());
}

/// Row R5: a session that has no guard runs over a limit at its gateway: what it has open is cut, the server
/// is told, opens a runaway incident and halts the session everywhere; another session goes on, and a
/// lead's release lets this one begin anew.
#[test]
fn a_session_without_a_guard_that_runs_away_is_stopped_at_its_gateway() {
    let server = Server::start();
    let gateway = Shared::start(&server);
    let (one, two) = (Shared::credential(&server, "one"), Shared::credential(&server, "two"));
    let limited = server.cli(&[
        "limit",
        "session:one",
        "--steps",
        "3",
        "--reason",
        "it may not go on forever",
    ]);
    assert!(limited.status.success(), "{limited:?}");
    let mut upload = gateway.upload(&one, "evil.example");
    let refused = wait_for("the limit at the gateway", || {
        let (status, body) = gateway.get(&one, "good.example");
        (status == 403).then_some(body)
    });
    upload.is_cut();
    let refused: Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused["type"], "urn:estoppel:problem:limit-exceeded", "{refused}");
    assert_eq!(
        (&refused["limit"]["breaker"], &refused["limit"]["max"]),
        (&json!("steps"), &json!(3.0))
    );

    let runaways = || {
        let incidents = server.admin("GET", "/v1/incidents", &Value::Null).1;
        incidents.as_array().unwrap().iter().filter(|it| it["kind"] == "runaway").count()
    };
    wait_for("the incident", || (runaways() > 0).then_some(()));
    wait_for("the playbook's halt and limits", || {
        let runs = server.admin("GET", "/v1/runs", &Value::Null).1;
        let steps = runs[0]["steps"].as_array()?;
        steps.iter().any(|it| it["action"] == "limit" && it["state"] == "done").then_some(())
    });
    let state = server.admin("GET", "/kill-switch?scope=session:one", &Value::Null).1;
    let reason = state["halts"][0]["reason"].as_str().unwrap();
    for part in
        ["session one ran away: ", " of at most 3, as its gateway counts requests and tunnels"]
    {
        assert!(reason.contains(part), "{reason}");
    }
    let halts = state["halts"].as_array().unwrap();
    wait_for("the order in the refusal", || {
        let refused: Value = serde_json::from_str(&gateway.get(&one, "good.example").1).unwrap();
        assert_eq!(refused["limit"]["breaker"], "steps", "{refused}");
        halts.iter().any(|halt| halt["id"] == refused["order"]["id"]).then_some(())
    });
    assert_eq!(gateway.get(&two, "good.example").0, 200, "the other session goes on");

    let released = server.cli(&["release", "session:one", "--reason", "it was looked at"]);
    assert!(released.status.success(), "{released:?}");
    wait_for("the release", || (gateway.get(&one, "good.example").0 == 200).then_some(()));
    assert_eq!(runaways(), 1, "it was told once");
}
