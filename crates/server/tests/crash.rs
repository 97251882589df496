//! A server is killed (SIGKILL) after each record of a run's journal, then started again: no run is
//! lost, no destructive effect comes twice, a repeated page carries the same deduplication key.
//!
//! This program is its own server: started with `serve`, it is the server that dies.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, speaks the test runner's language, and polls another process"
)]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use estoppel_connect::{
    Channel, Endpoint, Format, Http, HttpLimits, Pager, Plaintext, RetryPolicy,
};
use estoppel_eventlog::WorkerCommand;
use estoppel_link::{
    EventBuffer, Link, LinkConfig, LinkEvent, OnLost,
    frame::{ActionResult, EnforcerKind, Outcome, Settlement, Verb},
};
use estoppel_model::{EntityId, Secret, Subject, SystemClock};
use estoppel_server::{EgressResponse, Server, ServerConfig};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PATIENCE: Duration = Duration::from_secs(60);
const SESSION: &str = "hijacked";
/// As `prompt-injection`, and then it kills: the one thing that cannot be taken back.
const PLAYBOOK: &str = r"
format: estoppel.playbook/v1
name: prompt-injection
title: Contain and kill
description: Halts, freezes, captures, kills, pages.
inputs:
  incident.session: { type: session, description: The session. }
  incident.destination: { type: destination, required: false, description: Where data went. }
  incident.title: { type: text, description: What happened. }
steps:
  - id: halt
    action: halt
    with: { scope: '${incident.session}', reason: '${incident.title}' }
  - id: freeze
    action: freeze
    with: { session: '${incident.session}' }
    within: 30s
  - id: capture
    action: capture
    needs: [freeze]
    with: { session: '${incident.session}' }
    within: 30s
  - id: kill
    action: kill
    needs: [capture]
    requires_evidence: [capture]
    with: { session: '${incident.session}' }
    within: 30s
  - id: page
    action: notify
    with: { summary: '${incident.title}' }
    within: 30s
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => serve(&args),
        Some("sql-worker") => estoppel_eventlog::worker::main(),
        // What a test runner asks of a program that is one test.
        Some("--list") => {
            let ignored = args.iter().any(|arg| arg == "--ignored");
            if !ignored {
                println!("a_run_outlasts_a_crash_after_each_record: test");
            }
            ExitCode::SUCCESS
        }
        _ => {
            a_run_outlasts_a_crash_after_each_record();
            println!("a_run_outlasts_a_crash_after_each_record ok");
            ExitCode::SUCCESS
        }
    }
}

/// The server that dies after the record of the given number.
fn serve(args: &[String]) -> ExitCode {
    let (data, pager, crash_after) = (&args[2], &args[3], args[4].parse::<usize>().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let worker = WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: vec!["sql-worker".into()],
        };
        let channel = Channel {
            name: EntityId::new("webhook").unwrap(),
            endpoint: Endpoint::parse(pager, Plaintext::LoopbackOnly).unwrap(),
            format: Format::Generic,
            token: None,
        };
        let http = Http::new(HttpLimits::default()).unwrap();
        let written = AtomicUsize::new(0);
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            egress: EgressResponse::Auto,
            playbooks: Some(Path::new(data).join("playbooks")),
            pager: Some(Pager::new(http, channel, RetryPolicy::default())),
            after_append: Some(Arc::new(move |kind| {
                let of_run =
                    kind.as_str().starts_with("run.") || kind.as_str().starts_with("step.");
                if of_run && written.fetch_add(1, Ordering::SeqCst) + 1 == crash_after {
                    let own = rustix::process::getpid();
                    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                }
            })),
            ..ServerConfig::new(Path::new(data).join("data"), worker)
        };
        let running = Server::start(config).await.unwrap();
        running.recovered().await;
        println!("{}", running.address());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

struct Process {
    child: Child,
    address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(folder: &Path, pager: &str, crash_after: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", folder.to_str().unwrap(), pager, &crash_after.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    fn died(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a request; `None` when the server died over it.
    fn send(&self, folder: &Path, method: &str, path: &str, body: &str) -> Option<Value> {
        let token = std::fs::read_to_string(folder.join("data/admin.token")).unwrap();
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        serde_json::from_str(body).ok()
    }
}

/// The processes of a session on a host: killed once, and then there are none.
#[derive(Debug, Default)]
struct World {
    dead: bool,
    kills: usize,
    frozen: bool,
    captures: usize,
    /// Actions by id: the same one again is answered and not done again.
    answered: BTreeMap<uuid::Uuid, (ActionResult, String)>,
}

impl World {
    fn act(&mut self, id: uuid::Uuid, verb: Verb) -> (ActionResult, String) {
        if let Some(answer) = self.answered.get(&id) {
            return answer.clone();
        }
        let answer = match verb {
            _ if self.dead => (ActionResult::NoSuchSubject, "no processes".to_owned()),
            Verb::Freeze => {
                self.frozen = true;
                (ActionResult::Done, "3 processes frozen".to_owned())
            }
            Verb::Capture => {
                self.captures += 1;
                (ActionResult::Done, "captured".to_owned())
            }
            Verb::Kill => {
                self.kills += 1;
                self.dead = true;
                (ActionResult::Done, "3 processes killed".to_owned())
            }
            Verb::Thaw | Verb::Observe => (ActionResult::Done, "3 processes".to_owned()),
        };
        if verb != Verb::Observe {
            self.answered.insert(id, answer.clone());
        }
        answer
    }
}

/// A host as the server sees one, over the real link.
fn host(
    address: &str,
    token: String,
    world: Arc<Mutex<World>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let config = LinkConfig {
        servers: vec![format!("http://{address}").parse().unwrap()],
        token: Secret::new(token),
        kind: EnforcerKind::Host,
        name: "test host".to_owned(),
        subjects: vec![Subject::session(EntityId::new(SESSION).unwrap())],
        state_dir: None,
        on_lost: OnLost::Refuse,
        gaps: Vec::new(),
        events: EventBuffer::default(),
        trust: estoppel_link::Trust::system(),
    };
    let (link, mut events) =
        Link::start(config, Arc::new(SystemClock), tasks, stop.clone()).unwrap();
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Ordered(order) => link.settled(order.id, Settlement::default()),
                LinkEvent::Action(action) => {
                    let (result, observed) = world.lock().unwrap().act(action.id, action.verb);
                    link.outcome(Outcome {
                        action: action.id,
                        result,
                        observed,
                        detail: Value::Null,
                    });
                }
                _ => {}
            }
        }
    });
}

/// A pager that remembers the keys of the pages that came.
fn pager() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/page", listener.local_addr().unwrap());
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&keys);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            // A server that is killed while it pages leaves half a request behind.
            let Ok(page) = serde_json::from_slice::<Value>(&body) else { continue };
            seen.lock().unwrap().push(page["id"].as_str().unwrap().to_owned());
            let mut stream = stream;
            let _ = stream.write_all(
                b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    (url, keys)
}

fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_run_outlasts_a_crash_after_each_record() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let mut boundary = 1;
    while crash_after(boundary) {
        boundary += 1;
    }
    // Start, five steps of two records each, end.
    assert!(boundary > 12, "only {boundary} boundaries were tried");
}

/// Plays the whole of it with a crash after the given record; whether there was one.
fn crash_after(boundary: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("playbooks")).unwrap();
    std::fs::write(folder.path().join("playbooks/prompt-injection.yaml"), PLAYBOOK).unwrap();
    let (pager, pages) = pager();
    let world = Arc::new(Mutex::new(World::default()));
    let mut server = Process::start(folder.path(), &pager, boundary);
    let send = |server: &Process, method: &str, path: &str, body: &str| {
        server.send(folder.path(), method, path, body)
    };
    send(&server, "PUT", "/v1/allowlist", r#"{"domains":["good.example"]}"#).unwrap();
    let minted =
        send(&server, "POST", "/v1/tokens", r#"{"name":"host","role":"enforcer"}"#).unwrap();
    let token = minted["token"].as_str().unwrap().to_owned();
    let connect = |server: &Process| {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        host(&server.address, token.clone(), Arc::clone(&world), &tasks, &stop);
        stop
    };
    let connected = |server: &Process| {
        send(server, "GET", "/v1/status", "").is_some_and(|status| {
            status["enforcers"].as_array().is_some_and(|all| {
                all.iter().any(|one| one["connected"] == true && !one["lease_until"].is_null())
            })
        })
    };
    let mut stop = connect(&server);
    wait_for("the host", || connected(&server).then_some(()));
    let event = json!([{ "kind": "network", "session_id": SESSION, "destination": "evil.example", "port": 443, "verdict": "would_block" }]);
    // The server may die over it: what counts is what its ledger says then.
    let _ = send(&server, "POST", "/v1/events", &event.to_string());
    let ended = |server: &Process| {
        let runs = send(server, "GET", "/v1/runs", "")?;
        let run = runs.as_array()?.first()?.clone();
        (run["state"] != "running").then_some(run)
    };
    let mut crashed = false;
    let run = wait_for("the end of the run", || {
        if server.died() {
            assert!(!crashed, "it dies once");
            crashed = true;
            stop.cancel();
            server = Process::start(folder.path(), &pager, usize::MAX);
            stop = connect(&server);
        }
        ended(&server)
    });
    // The end's own record may be the one after which it dies.
    if !crashed {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) && !server.died() {
            std::thread::sleep(Duration::from_millis(10));
        }
        crashed = server.died();
        if crashed {
            server = Process::start(folder.path(), &pager, usize::MAX);
            assert_eq!(ended(&server).unwrap()["state"], run["state"]);
        }
    }
    stop.cancel();
    let world = world.lock().unwrap();
    assert_eq!(run["state"], "completed", "crash after record {boundary}: {run}");
    assert_eq!(world.kills, 1, "crash after record {boundary}: killed once: {run}");
    assert!(world.frozen && world.captures >= 1, "crash after record {boundary}");
    let keys: std::collections::BTreeSet<String> = pages.lock().unwrap().iter().cloned().collect();
    assert_eq!(keys.len(), 1, "crash after record {boundary}: one key for all pages: {keys:?}");
    let runs = send(&server, "GET", "/v1/runs", "").unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1, "no second run: {runs}");
    let halted =
        send(&server, "GET", &format!("/kill-switch?scope=session:{SESSION}"), "").unwrap();
    assert_eq!(halted["halts"].as_array().unwrap().len(), 1, "one halt: {halted}");
    crashed
}
