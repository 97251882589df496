//! A server is killed (SIGKILL) at each moment of a halt by detection, from the halt itself over
//! every record to the end of the run, then started again: no run is lost, no destructive effect
//! comes twice, a repeated page carries the same deduplication key, and what nobody can tell ends
//! `indeterminate`.
//!
//! This program is its own server: started with `serve`, it is the server that dies. The moments are
//! not listed here: a play without a crash writes them down, and each is then played with one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, speaks the test runner's language, and polls another process"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
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

/// As above, and the kill waits for everything else: its record is the last of its kind.
const PLAYBOOK_KILL_LAST: &str = r"
format: estoppel.playbook/v1
name: prompt-injection
title: Contain and kill
description: Halts, captures, kills.
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
    needs: [halt]
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
";

/// The moments are dealt to so many tests, which go on beside each other.
const HANDS: usize = 8;

type Test = (String, Box<dyn Fn()>);

fn tests() -> Vec<Test> {
    let dealt = (1..=HANDS).map(|hand| -> Test {
        let name = format!("a_run_outlasts_a_crash_at_each_moment_{hand}_of_{HANDS}");
        (name, Box::new(move || a_run_outlasts_a_crash_at_each_moment(hand)))
    });
    let asked: Test = (
        "a_question_outlasts_a_crash_after_the_events_were_acknowledged".to_owned(),
        Box::new(a_question_outlasts_a_crash_after_the_events_were_acknowledged),
    );
    let unknown: Test = (
        "what_can_be_neither_observed_nor_repeated_ends_indeterminate".to_owned(),
        Box::new(what_can_be_neither_observed_nor_repeated_ends_indeterminate),
    );
    dealt.chain([asked, unknown]).collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => serve(&args),
        Some("sql-worker") => estoppel_eventlog::worker::main(),
        // What a test runner asks.
        Some("--list") => {
            if !args.iter().any(|arg| arg == "--ignored") {
                for (name, _) in tests() {
                    println!("{name}: test");
                }
            }
            ExitCode::SUCCESS
        }
        _ => {
            let wanted: Vec<&String> =
                args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
            for (name, test) in tests() {
                if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(*wanted)) {
                    test();
                    println!("{name} ok");
                }
            }
            ExitCode::SUCCESS
        }
    }
}

/// The server that dies at the given moment, once the test has made the file `armed`.
fn serve(args: &[String]) -> ExitCode {
    let (folder, pager, crash_at) = (Path::new(&args[2]).to_owned(), &args[3], args[4].clone());
    let (egress, lease) = (&args[5], args[6].parse().unwrap());
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
        let seen = Mutex::new(HashMap::<String, usize>::new());
        let (armed, log) = (folder.join("armed"), folder.join("moments"));
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            lease: Duration::from_secs(lease),
            egress: if egress == "auto" { EgressResponse::Auto } else { EgressResponse::Ask },
            playbooks: Some(folder.join("playbooks")),
            pager: Some(Pager::new(http, channel, RetryPolicy::default())),
            at_moment: Some(Arc::new(move |moment| {
                if !armed.exists() {
                    return;
                }
                // The lock is held over the death: no other moment comes to pass after it.
                let mut seen = seen.lock().unwrap();
                let count = seen.entry(moment.to_string()).or_default();
                *count += 1;
                let name = format!("{moment} {count}");
                let mut log =
                    std::fs::File::options().append(true).create(true).open(&log).unwrap();
                writeln!(log, "{name}").unwrap();
                if name == crash_at {
                    let own = rustix::process::getpid();
                    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                    loop {
                        std::thread::park();
                    }
                }
            })),
            ..ServerConfig::new(folder.join("data"), worker)
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

/// What a server is started with beside its folder.
#[derive(Debug, Clone, Copy)]
struct Policy {
    egress: &'static str,
    lease_s: u64,
}

const ACTS: Policy = Policy { egress: "auto", lease_s: 15 };

impl Process {
    fn start(folder: &Path, pager: &str, crash_at: &str, policy: Policy) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", folder.to_str().unwrap(), pager, crash_at])
            .args([policy.egress, &policy.lease_s.to_string()])
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

/// A folder, a pager and a host; servers come and go.
struct Play {
    folder: tempfile::TempDir,
    policy: Policy,
    pager: String,
    pages: Arc<Mutex<Vec<String>>>,
    world: Arc<Mutex<World>>,
    server: Process,
    token: String,
    host: CancellationToken,
    event: String,
}

impl Play {
    /// Everything up to the event, which is not sent yet.
    fn begin(playbook: &str, policy: Policy, crash_at: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("playbooks")).unwrap();
        std::fs::write(folder.path().join("playbooks/prompt-injection.yaml"), playbook).unwrap();
        let (pager, pages) = pager();
        let server = Process::start(folder.path(), &pager, crash_at, policy);
        let send = |method: &str, path: &str, body: &str| {
            server.send(folder.path(), method, path, body).unwrap()
        };
        send("PUT", "/v1/allowlist", r#"{"domains":["good.example"]}"#);
        let minted = send("POST", "/v1/tokens", r#"{"name":"host","role":"enforcer"}"#);
        let event = json!([{
            "kind": "network", "id": uuid::Uuid::now_v7(), "session_id": SESSION,
            "destination": "evil.example", "port": 443, "verdict": "would_block",
        }]);
        let mut play = Self {
            policy,
            pager,
            pages,
            world: Arc::default(),
            server,
            token: minted["token"].as_str().unwrap().to_owned(),
            host: CancellationToken::new(),
            event: event.to_string(),
            folder,
        };
        play.connect_host();
        wait_for("the host", || play.is_host_connected().then_some(()));
        std::fs::write(play.folder.path().join("armed"), "").unwrap();
        play
    }

    fn connect_host(&mut self) {
        let tasks = TaskTracker::new();
        self.host = CancellationToken::new();
        host(&self.server.address, self.token.clone(), Arc::clone(&self.world), &tasks, &self.host);
    }

    fn is_host_connected(&self) -> bool {
        self.ask("/v1/status").is_some_and(|status| {
            status["enforcers"].as_array().is_some_and(|all| {
                all.iter().any(|one| one["connected"] == true && !one["lease_until"].is_null())
            })
        })
    }

    /// Sends the event; whether it was acknowledged.
    fn send_event(&self) -> bool {
        self.server.send(self.folder.path(), "POST", "/v1/events", &self.event).is_some()
    }

    fn ask(&self, path: &str) -> Option<Value> {
        self.server.send(self.folder.path(), "GET", path, "")
    }

    /// Another server on the same folder, which does not die.
    fn restart(&mut self) {
        self.host.cancel();
        self.server = Process::start(self.folder.path(), &self.pager, "-", self.policy);
    }

    fn run_in(&self, states: &[&str]) -> Option<Value> {
        let runs = self.ask("/v1/runs")?;
        let run = runs.as_array()?.first()?.clone();
        states.contains(&run["state"].as_str()?).then_some(run)
    }

    fn incident(&self) -> Option<Value> {
        let incidents = self.ask("/v1/incidents")?;
        let all = incidents.as_array()?;
        assert!(all.len() < 2, "one incident: {incidents}");
        self.ask(&format!("/v1/incidents/{}", all.first()?["number"].as_str()?))
    }

    /// Everything that follows from the event is written.
    fn is_over(&self) -> bool {
        self.run_in(&["completed"]).is_some()
            && self.incident().is_some_and(|incident| {
                let has = |list: &str, count| {
                    incident[list].as_array().is_some_and(|entries| entries.len() >= count)
                };
                has("halts", 1) && has("pages", 2) && has("contained", 1)
            })
    }

    fn moments(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("moments")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        self.host.cancel();
    }
}

/// Moments that a play has at least: five steps, two pages.
const MOMENTS: [&str; 18] = [
    "spool due 1",
    "spool kept 1",
    "order due 1",
    "order kept 1",
    "incident.opened due 1",
    "incident.opened kept 1",
    "incident.halted due 1",
    "incident.detection due 1",
    "run.started due 1",
    "run.started kept 1",
    "step.intent due 5",
    "step.intent kept 5",
    "step.result due 5",
    "step.result kept 5",
    "incident.page due 2",
    "incident.page kept 2",
    "run.ended due 1",
    "run.ended kept 1",
];

fn a_run_outlasts_a_crash_at_each_moment(hand: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let play = Play::begin(PLAYBOOK, ACTS, "-");
    assert!(play.send_event());
    wait_for("the end without a crash", || play.is_over().then_some(()));
    // What is durable may be seen by others before its writer comes to say so.
    let moments = wait_for("all moments", || {
        let moments = play.moments();
        let has = |moment: &&str| moments.iter().any(|seen| seen == moment);
        MOMENTS.iter().all(has).then_some(moments)
    });
    drop(play);
    for moment in moments.iter().skip(hand - 1).step_by(HANDS) {
        crash_at(moment);
    }
}

/// Plays the whole of it with a crash at a moment.
fn crash_at(moment: &str) {
    let mut play = Play::begin(PLAYBOOK, ACTS, moment);
    let acknowledged = play.send_event();
    wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
    let is_kept = play
        .moments()
        .iter()
        .any(|moment| ["spool kept 1", "run.started kept 1"].contains(&moment.as_str()));
    play.restart();
    play.connect_host();
    // Until the spool has the halt, or the ledger the run (they do not wait for each other), both may
    // be lost with the process, and the events' sender has no answer: a guard or gateway sends again.
    // From then on nobody needs to.
    if !is_kept {
        assert!(!acknowledged, "crash at `{moment}`: acknowledged before anything was on the disk");
        assert!(play.send_event());
    }
    let run = wait_for(&format!("the end of the run after a crash at `{moment}`"), || {
        play.run_in(&["completed", "failed", "indeterminate"])
    });
    assert_eq!(run["state"], "completed", "crash at `{moment}`: {run}");
    let incident = wait_for("the page", || {
        play.incident()
            .filter(|incident| incident["pages"].as_array().is_some_and(|p| !p.is_empty()))
    });
    // The sender that has no answer sends the same again: nothing comes of it a second time.
    assert!(play.send_event());
    let runs = play.ask("/v1/runs").unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1, "crash at `{moment}`: no second run: {runs}");
    let halted = play.ask(&format!("/kill-switch?scope=session:{SESSION}")).unwrap();
    assert_eq!(halted["halts"].as_array().unwrap().len(), 1, "crash at `{moment}`: {halted}");
    let count = |list: &str| incident[list].as_array().map_or(0, Vec::len);
    assert_eq!(count("halts"), 1, "crash at `{moment}`: {incident}");
    assert_eq!(count("detections"), 1, "crash at `{moment}`: {incident}");
    let world = play.world.lock().unwrap();
    assert_eq!(world.kills, 1, "crash at `{moment}`: killed once: {run}");
    assert!(world.frozen && world.captures >= 1, "crash at `{moment}`");
    let keys: BTreeSet<String> = play.pages.lock().unwrap().iter().cloned().collect();
    assert_eq!(keys.len(), 1, "crash at `{moment}`: one key for all pages: {keys:?}");
    let id = incident["id"].as_str().unwrap();
    assert!(keys.contains(&format!("estoppel/{id}")), "crash at `{moment}`: {keys:?}");
}

/// No halt is given, so no spool has it: the sender's answer waits for the ledger instead.
fn a_question_outlasts_a_crash_after_the_events_were_acknowledged() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let asks = Policy { egress: "ask", ..ACTS };
    for moment in [
        "incident.opened due 1",
        "incident.opened kept 1",
        "run.started due 1",
        "run.started kept 1",
    ] {
        let mut play = Play::begin(PLAYBOOK, asks, moment);
        let acknowledged = play.send_event();
        wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
        assert!(!acknowledged, "acknowledged at `{moment}`, before the question was written");
        play.restart();
        assert!(play.send_event(), "the sender sends again");
        let run = wait_for("the question", || play.run_in(&["asking"]));
        assert_eq!(run["incident"], play.incident().unwrap()["id"], "crash at `{moment}`");
        assert_eq!(play.ask("/v1/runs").unwrap().as_array().unwrap().len(), 1);
        wait_for("a page", || (!play.pages.lock().unwrap().is_empty()).then_some(()));
    }
}

/// The server dies around a kill and the host never comes back: whether the processes are dead
/// cannot be seen, and a kill is not repeated in the dark (*verified-effect*).
fn what_can_be_neither_observed_nor_repeated_ends_indeterminate() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let policy = Policy { lease_s: 2, ..ACTS };
    for (moment, kills) in [("step.intent kept 4", 0), ("step.result due 4", 1)] {
        let mut play = Play::begin(PLAYBOOK_KILL_LAST, policy, moment);
        play.send_event();
        wait_for(&format!("the crash at `{moment}`"), || play.server.died().then_some(()));
        play.restart();
        let run = wait_for("the end", || play.run_in(&["completed", "failed", "indeterminate"]));
        assert_eq!(run["state"], "indeterminate", "crash at `{moment}`: {run}");
        let steps = run["steps"].as_array().unwrap();
        let kill =
            steps.iter().find(|step| step["step"] == "kill" || step["id"] == "kill").unwrap();
        assert_eq!(kill["state"], "indeterminate", "crash at `{moment}`: {kill}");
        // A host that comes back later finds nothing to do.
        play.connect_host();
        wait_for("the host", || play.is_host_connected().then_some(()));
        assert_eq!(play.world.lock().unwrap().kills, kills, "crash at `{moment}`");
    }
}
