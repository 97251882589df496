//! Host, gateway and server together, around a real confined process (rows P4, P5, P7, K1).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::{
    drills::wait_for_enforcers,
    hosted::{Hosted, Site, example, is_root},
    stage::{Server, sha256_hex, wait_for},
};

fn allow(server: &Server, domain: &str) {
    let (status, answer) = server.admin("PUT", "/v1/allowlist", &json!({ "domains": [domain] }));
    assert_eq!(status, 200, "{answer}");
}

fn incident_of(server: &Server, order: &str) -> Option<Value> {
    let (_, incidents) = server.admin("GET", "/v1/incidents", &Value::Null);
    incidents.as_array()?.iter().find_map(|summary| {
        let number = summary["number"].as_str()?;
        let (_, incident) = server.admin("GET", &format!("/v1/incidents/{number}"), &Value::Null);
        let mut halts = incident["halts"].as_array()?.iter();
        halts.any(|halt| halt["order"] == order).then_some(incident)
    })
}

/// Whether a whole capture has arrived: the manifest comes after its items.
fn is_delivered(incident: &Value) -> bool {
    let sealed = |item: &Value| {
        item["item"].as_str().is_some_and(|id| id.starts_with("manifest of capture"))
    };
    incident["evidence"].as_array().is_some_and(|evidence| evidence.iter().any(sealed))
}

/// The manifest of a whole capture of the incident, its digest, and the capture's address.
fn manifest_of(server: &Server, incident: &Value) -> (String, Value, Value) {
    let sha256 = incident["evidence"].as_array().unwrap().iter().find_map(|item| {
        let id = item["item"].as_str()?;
        id.starts_with("manifest").then(|| item["sha256"].clone())
    });
    let sha256 = sha256.unwrap();
    let captures = server.json(&["evidence", "list"]);
    let mut captures = captures.as_array().unwrap().iter();
    let capture = captures.find(|it| it["manifest_sha256"] == sha256).unwrap();
    let path = format!("/v1/evidence/captures/{}", capture["capture"].as_str().unwrap());
    let manifest = fetch(server, &format!("{path}?purpose=test"));
    assert_eq!(sha256_hex(&manifest), sha256.as_str().unwrap());
    (path, sha256, serde_json::from_slice(&manifest).unwrap())
}

/// Each item of a capture of the incident is there, and is what its hash says.
fn check_evidence(server: &Server, incident: &Value) {
    let (capture, manifest, _) = manifest_of(server, incident);
    let evidence = incident["evidence"].as_array().unwrap();
    let is_of_it =
        |item: &&Value| item["manifest_sha256"] == manifest && item["sha256"] != manifest;
    for item in evidence.iter().filter(is_of_it) {
        let sha256 = item["sha256"].as_str().unwrap();
        let content = fetch(server, &format!("{capture}/items/{sha256}?purpose=test"));
        assert_eq!(sha256_hex(&content), sha256, "{item}");
        assert_eq!(content.len() as u64, item["bytes"].as_u64().unwrap(), "{item}");
    }
    let is_maps = |item: &&Value| item["item"].as_str().is_some_and(|id| id.ends_with("/maps"));
    assert!(evidence.iter().any(|item| is_maps(&item)), "no maps: {incident}");
}

/// The bytes of an answer, which need not be text.
fn fetch(server: &Server, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let (host, token) = (server.address(), &server.admin);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer));
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(head + 4)
}

/// A halt that was given on the host while the server was dead is handed back, opens an incident,
/// and its evidence is delivered into it.
#[test]
fn real_a_local_halt_gets_its_incident_and_its_evidence_when_the_server_is_back() {
    let server = Server::start();
    let Some(agent) = Hosted::start(&server, "local-halt", &[]) else { return };
    let (server, halted) = server.away_while(|| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["--json", "halt", "session:local-halt", "--reason", "server is down", "--local"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!agent.acts(), "frozen without any server");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    });
    let order = halted[0]["order"].as_str().unwrap().to_owned();
    let incident = wait_for("the evidence in the halt's incident", || {
        let incident = incident_of(&server, &order)?;
        is_delivered(&incident).then_some(incident)
    });
    check_evidence(&server, &incident);
    let (_, _, manifest) = manifest_of(&server, &incident);
    assert_eq!(manifest["order"], order.as_str());
    assert_eq!(manifest["state"], "frozen");
    let (_, state) = server.admin("GET", "/kill-switch?scope=session:local-halt", &Value::Null);
    assert_eq!(state["active"], true, "{state}");
    assert!(!agent.acts(), "still frozen");
}

/// Evidence by a halt's id: nothing of a halt that is not there, of another tenant, or of another
/// manifest.
#[test]
fn evidence_of_a_halt_is_bound_to_what_the_enforcer_may_see() {
    let server = Server::start();
    let (_, halt) =
        server.admin("POST", "/kill-switch", &json!({ "scope": "tenant:acme", "reason": "r" }));
    let id = halt["id"].as_str().unwrap();
    wait_for("the incident", || incident_of(&server, id));
    let path = format!("/v1/halts/{id}/evidence");
    let own = server.token("own", "enforcer", Some("acme"));
    let other = server.token("other", "enforcer", Some("other"));
    let agent = server.token("agent", "agent", Some("acme"));
    assert_eq!(server.send(&agent, "POST", &path, b"{}").0, 403, "no enforcer");
    assert_eq!(server.send(&other, "POST", &path, b"{}").0, 404, "another tenant's halt");
    assert_eq!(server.send(&own, "POST", &path, b"{}").0, 422, "its own, but no manifest");
    let nobodys = format!("/v1/halts/{}/evidence", uuid::Uuid::now_v7());
    assert_eq!(server.send(&own, "POST", &nobodys, b"{}").0, 404);
}

/// A pager that takes pages in and answers none until it is told to.
struct Pager {
    url: String,
    taken: Arc<AtomicUsize>,
    answers: Arc<AtomicBool>,
}

impl Pager {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pager = Self {
            url: format!("http://{}/page", listener.local_addr().unwrap()),
            taken: Arc::default(),
            answers: Arc::default(),
        };
        let (taken, answers) = (Arc::clone(&pager.taken), Arc::clone(&pager.answers));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (taken, answers) = (Arc::clone(&taken), Arc::clone(&answers));
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let (mut line, mut length) = (String::new(), 0);
                    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                        if let Some(value) =
                            line.to_ascii_lowercase().strip_prefix("content-length:")
                        {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    if reader.read_exact(&mut body).is_err() {
                        return;
                    }
                    taken.fetch_add(1, Ordering::SeqCst);
                    if answers.load(Ordering::SeqCst) {
                        let _ = stream.write_all(
                            b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                        );
                    } else {
                        // Until the other side gives up, or dies.
                        let _ = stream.read(&mut [0]);
                    }
                });
            }
        });
        pager
    }
}

/// The server is killed while a playbook runs on a real host, and started again on the same folder
/// and port: the run completes, the processes were frozen once and never thawed, the evidence is
/// there.
#[test]
fn real_a_playbook_outlasts_the_servers_death() {
    if !is_root() {
        return;
    }
    let pager = Pager::open();
    let server = Server::start_with(&format!(
        "[egress]\nresponse = \"auto\"\n[paging]\nurl = \"{}\"\n",
        pager.url
    ));
    allow(&server, "good.example");
    let Some(agent) = Hosted::start(&server, "crashed", &[]) else { return };
    let event = json!([{ "kind": "network", "session_id": "crashed", "destination": "evil.example", "port": 443, "verdict": "would_block" }]);
    let (status, answer) = server.events(event.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    wait_for("the page's step, which keeps the run open", || {
        (pager.taken.load(Ordering::SeqCst) > 0).then_some(())
    });
    let runs = |server: &Server| server.admin("GET", "/v1/runs", &Value::Null).1;
    assert_eq!(runs(&server)[0]["state"], "running");
    wait_for("the freeze", || (!agent.acts()).then_some(()));
    let beats = agent.beats();
    let (server, ()) = server.away_while(|| pager.answers.store(true, Ordering::SeqCst));
    let run = wait_for("the end of the run", || {
        let runs = runs(&server);
        assert_eq!(runs.as_array().unwrap().len(), 1, "{runs}");
        (runs[0]["state"] != "running").then(|| runs[0].clone())
    });
    assert_eq!(run["state"], "completed", "{run}");
    assert_eq!(agent.beats(), beats, "never thawed in between");
    let (_, state) = server.admin("GET", "/kill-switch?scope=session:crashed", &Value::Null);
    let halts = state["halts"].as_array().unwrap();
    assert_eq!(halts.len(), 1, "{state}");
    let incident = wait_for("the evidence", || {
        let incident = incident_of(&server, halts[0]["id"].as_str()?)?;
        is_delivered(&incident).then_some(incident)
    });
    check_evidence(&server, &incident);
}

/// The agent's own view of the network, in each mode, with the real link between all three.
#[test]
fn real_egress_is_learned_observed_and_refused() {
    for mode in ["learn", "observe", "enforce"] {
        let server = Server::start_with(&format!("[egress]\nmode = \"{mode}\"\n"));
        let (good, evil) = (Site::open(), Site::open());
        let good_url = format!("good.example:{}", good.address.port());
        let evil_url = format!("evil.example:{}", evil.address.port());
        if mode != "learn" {
            allow(&server, &good_url);
        }
        let options = [
            "--resolve",
            &good.resolve("good.example"),
            "--resolve",
            &evil.resolve("evil.example"),
        ];
        let Some(agent) = Hosted::start(&server, mode, &options) else { return };
        let get = |url: &str| agent.does(&format!("curl -sS -m 20 http://{url}/"));
        assert_eq!(get(&good_url), "hello", "{mode}");
        let evil_said = get(&evil_url);
        if mode == "enforce" {
            assert!(evil_said.contains("destination-unlisted"), "{evil_said}");
            assert_eq!(evil.connections(), 0, "not a byte");
        } else {
            assert_eq!(evil_said, "hello", "{mode}");
        }
        // Without the proxy there is no way out, in no mode.
        let around =
            agent.does(&format!("curl -sS --noproxy '*' -m 5 http://{}/ || true", evil.address));
        assert!(!around.contains("hello"), "{mode}: {around}");
        let verdict = wait_for("the flow in the network log", || {
            let rows =
                server.sql("SELECT verdict FROM network_log WHERE destination = 'evil.example'");
            rows.first().map(|row| row[0].as_str().unwrap().to_owned())
        });
        let expected = match mode {
            "enforce" => "blocked",
            "observe" => "would_block",
            _ => "allowed",
        };
        assert_eq!(verdict, expected, "{mode}");
    }
}

/// A block refuses one destination; a halt cuts what is in flight and freezes, and everybody says so.
#[test]
fn real_a_block_refuses_and_a_halt_cuts_what_is_in_flight() {
    let server = Server::start();
    let (good, other) = (Site::open(), Site::open());
    let options =
        ["--resolve", &good.resolve("good.example"), "--resolve", &other.resolve("other.example")];
    let Some(agent) = Hosted::start(&server, "cut", &options) else { return };
    let get = |name: &str, port: u16| agent.does(&format!("curl -sS -m 20 http://{name}:{port}/"));
    assert_eq!(get("other.example", other.address.port()), "hello");
    let output =
        server.cli(&["block", "other.example", "--scope", "session:cut", "--reason", "it leaks"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let refused = wait_for("the block", || {
        let said = get("other.example", other.address.port());
        (said != "hello").then_some(said)
    });
    assert!(refused.contains("it leaks"), "{refused}");
    assert_eq!(get("good.example", good.address.port()), "hello", "the others go on");
    agent.does(&format!(
        "curl -sS -m 60 http://good.example:{}/slow > slow 2>&1 & sleep 0.1",
        good.address.port()
    ));
    wait_for("the stream", || (good.streaming() == 1).then_some(()));
    let halt = server.json(&["halt", "session:cut", "--reason", "stop", "--wait"]);
    wait_for("the cut", || (good.streaming() == 0).then_some(()));
    assert!(!agent.acts(), "frozen");
    let words = halt["enforcers"].as_array().unwrap();
    let sum =
        |key: &str| words.iter().filter_map(|word| word["settlement"][key].as_u64()).sum::<u64>();
    assert!(sum("connections_cut") >= 1, "{halt}");
    assert!(sum("processes_frozen") >= 1, "{halt}");
    let released = server.json(&[
        "release",
        "session:cut",
        "--reason",
        "looked at",
        "--halt",
        halt["id"].as_str().unwrap(),
    ]);
    assert!(!released["halts"].as_array().unwrap().is_empty(), "{released}");
    wait_for("the thaw", || agent.acts().then_some(()));
}

/// K3, K7: a guard of the agent's own, inside of its network namespace, reaches its server through
/// the gateway: it gets a lease, hears a halt that is no business of the host's, confirms it, hears
/// the release, and its events arrive. Nothing else of the server, and nobody else, is reached so.
#[test]
fn real_a_guard_inside_reaches_its_server_and_nothing_else() {
    let server = Server::start();
    let token = server.token("inside", "agent", None);
    let file = server.data.with_file_name("guard.token");
    std::fs::write(&file, &token).unwrap();
    let options = ["--guard-token-file", file.to_str().unwrap()];
    let Some(agent) = Hosted::start(&server, "guarded", &options) else { return };
    agent.bring(&example("guarded"), "guarded");
    agent.does("./guarded guarded >> steps 2>&1 &");
    let steps = |what: &str| agent.read("steps").matches(what).count();
    wait_for("the guard's steps", || (steps("done") > 0).then_some(()));
    wait_for_enforcers(&server, 3);

    let halt = server.json(&["halt", "tool:fetch", "--reason", "it fetches too much", "--wait"]);
    assert_eq!((&halt["state"], &halt["expected"]), (&json!("settled"), &json!(3)), "{halt}");
    let words = halt["enforcers"].as_array().unwrap();
    let word = words.iter().find(|word| word["kind"] == "guard").unwrap();
    assert!(!word["settled_at"].is_null() && word["witness"] == false, "{word}");
    wait_for("the refusal", || (steps("it fetches too much") > 0).then_some(()));
    assert!(agent.acts(), "the host is not meant by a halt of a tool");
    let (id, before) = (halt["id"].as_str().unwrap(), steps("done"));
    server.json(&["release", "tool:fetch", "--reason", "looked at", "--halt", id]);
    wait_for("the guard's steps again", || (steps("done") > before).then_some(()));
    let rows = "SELECT COUNT(*) FROM audit_log WHERE tool = 'fetch' AND decision = 'denied'";
    wait_for("its events", || (server.sql(rows)[0][0].as_u64() > Some(0)).then_some(()));

    // As hostile as can be: with the admin's own token, and around the gateway.
    let ask = |method: &str, token: &str, path: &str| {
        agent.does(&format!(
            "curl -s --noproxy '*' -m 10 -o /dev/null -w '%{{http_code}}' --path-as-is -X {method} \
             -H 'Authorization: Bearer {token}' -d '{{}}' \"$ESTOPPEL_URL{path}\""
        ))
    };
    for (method, path) in [
        ("POST", "/v1/sql"),
        ("POST", "/kill-switch"),
        ("POST", "/kill-switch/release"),
        ("GET", "/v1/status"),
        ("GET", "/v1/stream?x"),
        ("POST", "/v1/events/../sql"),
        ("GET", "/halt"),
    ] {
        assert_eq!(ask(method, &server.admin, path), "403", "{method} {path}");
    }
    assert_eq!(ask("POST", "wrong", "/v1/events"), "401", "no token is added");
    assert_eq!(agent.does("printf %s \"$ESTOPPEL_TOKEN\""), token, "its own, not the host's");
    assert_eq!(agent.does("env | grep -c ^ESTOPPEL_").trim(), "2", "address and token alone");
    for way in ["--noproxy '*'", "-x \"$ESTOPPEL_URL\""] {
        let script =
            format!("curl -s {way} -m 5 -o /dev/null -w '%{{http_code}}' {}/healthz", server.url);
        let found = agent.does(&format!("{script} || true"));
        assert!(found == "000" || found == "403", "{way}: {found}");
    }

    // The session's halt freezes the guard with the agent, whoever is first: it is stopped by the
    // host's word, and by its lease.
    let halt = server.json(&["halt", "session:guarded", "--reason", "stop"]);
    wait_for("the host's word", || {
        let path = format!("/v1/halts/{}", halt["id"].as_str()?);
        let (_, status) = server.admin("GET", &path, &Value::Null);
        let words = status["enforcers"].as_array()?.clone();
        let host = words.iter().find(|word| word["kind"] == "host")?;
        (host["settlement"]["processes_frozen"].as_u64() >= Some(2)).then_some(())
    });
    let before = steps("");
    assert!(!agent.acts());
    assert_eq!(steps(""), before, "the guarded process is frozen, too");
}

/// Invariant *lease*, at real hosts: when the server dies, one agent is frozen as soon as the lease is
/// over and goes on when a server is back; the other's owner has chosen that it goes on.
#[test]
fn real_an_agent_without_a_server_is_frozen_unless_its_owner_chose_otherwise() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("estoppel.toml"), "[serve]\nlease_seconds = 2\n").unwrap();
    let server = Server::at(&folder.path().join("data"));
    let Some(refusing) = Hosted::start(&server, "refusing", &[]) else { return };
    let Some(allowing) = Hosted::start(&server, "allowing", &["--allow-on-lost"]) else { return };
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert!(status.to_string().contains("when its lease is over"), "the choice is shown: {status}");
    let (_server, ()) = server.away_while(|| {
        wait_for("the freeze", || (!refusing.acts()).then_some(()));
        assert!(allowing.acts(), "as its owner chose");
    });
    wait_for("the thaw", || refusing.acts().then_some(()));
}

/// The command's own: its exit status, and its terminal. Ours: 126 and 127, as shells have them.
#[test]
fn real_the_exit_status_and_the_terminal_are_the_commands_own() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let token = server.token("host", "enforcer", None);
    let state = server.data.with_file_name("state");
    let run = |session: &str, command: &str| {
        let line = format!(
            "{} run --session {session} --state {} -- {command}",
            env!("CARGO_BIN_EXE_estoppel"),
            state.display()
        );
        // A terminal of its own, whose output is that of the command.
        std::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            // A folder that the agent may not search would make it 126.
            .env("PATH", "/usr/bin:/bin")
            .env("ESTOPPEL_URL", &server.url)
            .env("ESTOPPEL_TOKEN", &token)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    let ended = run("own", "sh -c 'tty; exit 7'");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.code(), Some(7), "{said}");
    assert!(said.contains("/dev/pts/"), "{said}");
    assert_eq!(run("own", "no-such-program-anywhere").status.code(), Some(127));
    server.json(&["halt", "session:halted", "--reason", "it leaks"]);
    let refused = run("halted", "sh -c 'echo it ran'");
    let said = String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(126), "{said}");
    assert!(said.contains("it leaks") && !said.contains("it ran\r"), "{said}");
}

/// The agent must not get what `run` itself acts by.
#[test]
fn an_agent_does_not_get_the_enforcers_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "an-enforcers-token\n").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["run", "--session", "s", "--guard-token-file"])
        .arg(&file)
        .arg("--state")
        .arg(folder.path().join("state"))
        .args(["--", "true"])
        .env("ESTOPPEL_URL", "http://127.0.0.1:1")
        .env("ESTOPPEL_TOKEN", "an-enforcers-token")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--role agent") && !said.contains("an-enforcers-token"), "{said}");
}

/// `run --observe` freezes nothing, and its word does not count as a stop.
#[test]
fn real_an_observed_agent_goes_on_and_says_so() {
    let server = Server::start();
    let Some(agent) = Hosted::start(&server, "observed", &["--observe"]) else { return };
    let (_, halt) = server.admin(
        "POST",
        "/kill-switch",
        &json!({ "scope": "session:observed", "reason": "would it stop?" }),
    );
    let id = halt["id"].as_str().unwrap();
    wait_for("the host's word", || {
        let (_, status) = server.admin("GET", &format!("/v1/halts/{id}"), &Value::Null);
        let words = status["enforcers"].as_array()?.clone();
        words.iter().any(|word| word["settlement"]["observed_only"] == true).then_some(())
    });
    assert!(agent.acts(), "nothing is frozen");
    let incident = wait_for("the incident", || incident_of(&server, id));
    assert_eq!(incident["state"], "open", "an observer's word contains nothing: {incident}");
}

/// Without root: another process group, signals, a proxy that can be gone around; it says all of
/// that, egress goes through the gateway of `--proxy`, and a halt stops it.
#[test]
fn real_without_root_a_halt_still_stops_and_the_gaps_are_said() {
    if !is_root() {
        return;
    }
    let server = Server::start_with("[egress]\nmode = \"enforce\"\n");
    let (good, evil) = (Site::open(), Site::open());
    let good_url = format!("good.example:{}", good.address.port());
    allow(&server, &good_url);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("127.0.0.1:{port}");
    let mut gateway = std::process::Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["gateway", "--listen", &proxy])
        .args(["--resolve", &good.resolve("good.example")])
        .args(["--resolve", &evil.resolve("evil.example")])
        .env("ESTOPPEL_URL", &server.url)
        .env("ESTOPPEL_TOKEN", server.token("gateway", "enforcer", None))
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the gateway", || TcpStream::connect(&proxy).ok());
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let agent = Hosted::start_as(&server, "rootless", &["--proxy", &proxy], &nobody);
    let said = agent.said();
    assert!(said.contains("session rootless"), "{said}");
    assert!(!said.contains("own cgroup (freezable)"), "it claims no more than it has: {said}");
    assert_eq!(agent.does(&format!("curl -sS -m 20 http://{good_url}/")), "hello");
    let refused =
        agent.does(&format!("curl -sS -m 20 http://evil.example:{}/", evil.address.port()));
    assert!(refused.contains("destination-unlisted"), "{refused}");
    let halt = server.json(&["halt", "session:rootless", "--reason", "stop", "--wait"]);
    let words = halt["enforcers"].as_array().unwrap();
    let frozen: u64 =
        words.iter().filter_map(|word| word["settlement"]["processes_frozen"].as_u64()).sum();
    assert!(frozen >= 1, "{halt}");
    let host = words.iter().find(|word| word["kind"] == "host").unwrap();
    let containment = host["settlement"]["containment"].as_str().unwrap();
    for gap in ["its network is not contained", "by signals"] {
        assert!(containment.contains(gap), "{gap}: {containment}");
    }
    assert!(!agent.acts(), "stopped by signals");
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    assert!(status.to_string().contains("the proxy can be gone around"), "{status}");
    drop(agent);
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}
