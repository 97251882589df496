//! `demo`: a hijacked agent, or one that runs away, is stopped, preserved and reported, on this machine.
//!
//! Everything is the product's own: the server, the gateway and the host are this binary, started as
//! a user would start them; what is shown is asked over the API, and the attacker's own count of
//! what reached it is held against the records.

mod agent;
mod python;
mod runaway;
mod services;
mod stage;
mod timeline;

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitCode, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use estoppel_api::{Allowlist, Client, HaltState, HaltStatus, SqlRequest, TokenRequest};
use estoppel_model::{Clock as _, EntityId, OrderId, Secret, SystemClock, Timestamp};
use python::reachable;
use serde_json::Value;
use stage::{SINK_NAME, SITE_NAME, Stage};
use timeline::Timeline;

use super::hidden;
use crate::{
    args::{DemoArgs, DemoScenario},
    error::{CommandError, Exit, Result},
    output::Output,
};

/// How long each part of the play may take before it is given up; ten times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent may take to end.
const AGENT_PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
/// The session that gets hijacked.
const SESSION: &str = "support-4711";

pub(crate) use agent::main as agent;

/// `estoppel demo`.
pub(crate) fn demo(args: &DemoArgs, output: &Output) -> Result {
    // What is missing is said before anything is begun.
    let python = match args.scenario {
        DemoScenario::Hijack => None,
        DemoScenario::Runaway => Some(python::Python::find(args.python.as_deref())?),
    };
    let folder = folder(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let good = match &python {
            None => play(args, &folder, output).await?,
            Some(python) => runaway::play(python, &folder, output).await?,
        };
        Ok(if good { ExitCode::SUCCESS } else { Exit::Failed.into() })
    })
}

fn folder(args: &DemoArgs) -> Result<PathBuf> {
    let folder = args.folder.clone().unwrap_or_else(|| {
        let now = SystemClock.now().to_string();
        let digits: String = now.chars().filter(char::is_ascii_digit).take(14).collect();
        PathBuf::from(format!("estoppel-demo-{digits}"))
    });
    std::fs::create_dir(&folder).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("folder `{}`", folder.display()));
        CommandError::new(Exit::Usage, error)
            .hint("give a folder that does not exist yet with --folder")
    })?;
    Ok(folder.canonicalize()?)
}

/// A process of the play; ended with it.
struct Actor(Child);

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Actor {
    /// Asks the process to end, and waits so long for it. One that is stopped by a signal hears none,
    /// and is killed with its supervisor.
    fn end(&mut self, patience: Duration) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        self.ended_within(patience);
    }

    /// Waits until the process has ended; whether it has.
    #[expect(clippy::disallowed_methods, reason = "waits for another process")]
    fn ended_within(&mut self, patience: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < patience && !self.has_ended() {
            std::thread::sleep(LOOK);
        }
        self.has_ended()
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

async fn play(args: &DemoArgs, folder: &Path, output: &Output) -> Result<bool> {
    let say = |text: &str| output.note(text);
    let stage = Stage::open()?;
    say("Estoppel demo: an agent gets hijacked by a document. Watch it being stopped.\n");
    say(&format!("  web site  http://{SITE_NAME} (on {}), with a poisoned invoice", stage.site));
    say(&format!("  attacker  http://{SINK_NAME} (on {}), counts what reaches it", stage.sink));
    say(&format!("  pager     http://{}", stage.pager));
    let mode = if args.enforce {
        "enforce: unlisted egress is refused"
    } else {
        "observe: unlisted egress flows, so that something does leak"
    };
    say(&format!("  gateway   {mode}"));
    say(
        "  response  auto: unlisted egress alone halts the session (the default would ask a person)\n",
    );

    let allowlist = Allowlist { domains: Some(vec![format!("{SITE_NAME}:{}", stage.site.port())]) };
    let mode = if args.enforce { "enforce" } else { "observe" };
    let setting = Setting {
        mode,
        pager: stage.pager,
        allowlist,
        gateway: free_address()?,
        resolve: stage.names().to_vec(),
    };
    let (mut server, client) = serve(folder, &setting).await?;
    let begun = SystemClock.now();
    let (mut run, detour) = run_agent(folder, &stage, setting.gateway, &client, *output).await?;
    say(&format!("  agent     session {SESSION} runs under `estoppel run`\n"));

    let number = wait("an incident", || {
        let has_ended = run.has_ended();
        let incidents = client.incidents();
        async move {
            let incident = incidents.await.ok().and_then(|mut incidents| incidents.pop());
            match incident {
                Some(incident) => Some(Ok(incident.number.to_string())),
                None => has_ended.then(|| Err(ended_early())),
            }
        }
    })
    .await??;
    let status = settled(&client, &number).await?;
    // What has settled must stay settled: nothing may arrive any more.
    let at_settled = stage.loot();
    let view = wait("the evidence, the page and the end of the playbook", || async {
        let view = client.incident(&number).await.ok()?;
        let manifest = view["evidence"].as_array()?.iter().any(is_manifest);
        let paged = !view["pages"].as_array()?.is_empty() && !stage.pages().is_empty();
        let ended = view["runs"].as_array()?.iter().all(|run| !run["ended"].is_null());
        (manifest && paged && ended && !view["runs"].as_array()?.is_empty()).then_some(view)
    })
    .await?;
    let report = client.text(&format!("/v1/incidents/{number}/report")).await?;
    std::fs::write(folder.join("report.md"), &report)?;
    let reported = SystemClock.now();

    let loot = stage.loot();
    let recorded = recorded_bytes(&client).await?;
    let mut timeline = Timeline::new(begun);
    timeline.play(&stage, &view, &status, detour.get(), reported);
    output.note(&format!("\n{}", timeline.text()));
    let verdict = Verdict {
        enforce: args.enforce,
        contained: contained(&status).to_owned(),
        at_settled: at_settled.bytes,
        loot: loot.bytes,
        recorded,
        smuggled: stage.smuggled().bytes,
    };
    let document = document(folder, &number, &status, &timeline, &verdict);
    let good = verdict.is_good();
    run.end(AGENT_PATIENCE);
    server.end(PATIENCE);
    output.answer(&document, |_| closing(folder, &number, &view, &verdict))?;
    Ok(good)
}

/// Waits for the halt that an incident gets, and until every enforcer has settled it.
async fn settled(client: &Client, number: &str) -> Result<HaltStatus> {
    let halt = wait("the halt", || async {
        let view = client.incident(number).await.ok()?;
        let halt = given(&view).find(|halt| halt["what"] == "halt")?;
        halt["order"].as_str()?.parse::<OrderId>().ok()
    })
    .await?;
    wait("every enforcer to settle", || async {
        let status = client.halt_status(halt).await.ok()?;
        (status.state == HaltState::Settled).then_some(status)
    })
    .await
}

/// The orders that were given for an incident.
fn given(view: &Value) -> impl Iterator<Item = &Value> {
    view["halts"].as_array().into_iter().flatten()
}

fn is_manifest(item: &Value) -> bool {
    item["item"].as_str().is_some_and(|name| name.starts_with("manifest"))
}

/// Asks until there is an answer.
async fn wait<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if begun.elapsed() > PATIENCE {
            return Err(CommandError::message(
                Exit::Failed,
                format!("the demo waited {} s for {what} in vain", PATIENCE.as_secs()),
            )
            .hint("the logs are in the demo's folder"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What differs between the servers of the plays.
struct Setting {
    /// What gateways do with unlisted egress.
    mode: &'static str,
    pager: SocketAddr,
    allowlist: Allowlist,
    /// Where the server's own gateway listens, for an agent that can have none of its own.
    gateway: SocketAddr,
    /// What it takes for the addresses of names: `NAME:PORT=ADDR:PORT`.
    resolve: Vec<String>,
}

/// Starts the server as a user would, with the configuration in the folder.
async fn serve(folder: &Path, setting: &Setting) -> Result<(Actor, Client)> {
    let Setting { mode, pager, allowlist, gateway, resolve } = setting;
    let config = format!(
        "# The configuration of this demo. `estoppel config show` prints every key.\n\
         [serve]\ndata = {data:?}\nlisten = \"127.0.0.1:0\"\n\n\
         [egress]\nmode = \"{mode}\"\n# The default is \"ask\": a person decides about unlisted egress.\nresponse = \"auto\"\n\n\
         [gateway]\nlisten = \"{gateway}\"\nresolve = {resolve:?}\n\n\
         [paging]\nurl = \"http://{pager}/page\"\n",
        data = folder.join("data"),
    );
    let file = folder.join("estoppel.toml");
    std::fs::write(&file, config)?;
    let log = std::fs::File::create(folder.join("server.log"))?;
    let child = Command::new(std::env::current_exe()?)
        .args(["--json", "--log", "info", "serve", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let mut server = Actor(child);
    let stdout = server.0.stdout.take();
    let ready = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        // The first document is the only one: it ends with a closing brace on a line of its own.
        for line in stdout.map(BufReader::new).into_iter().flat_map(std::io::BufRead::lines) {
            let Ok(line) = line else { break };
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        text
    });
    let text = ready.await.map_err(|error| CommandError::new(Exit::Failed, error))?;
    let ready: Value = serde_json::from_str(&text).map_err(|_| {
        let log = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
        CommandError::message(Exit::Failed, format!("the server did not start: {}", log.trim()))
    })?;
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    let token = std::fs::read_to_string(text("admin_token_file"))?;
    let client = Client::new(&text("api"), Secret::new(token))?;
    wait("the server's recovery", || async { client.set_allowlist(allowlist).await.ok() }).await?;
    Ok((server, client))
}

/// An address that is free now, for the gateway beside the server.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// What the agent said of its attempt to go around the gateway, and when.
type Detour = Arc<OnceLock<(Timestamp, String)>>;

/// Runs the agent as a user would.
async fn run_agent(
    folder: &Path,
    stage: &Stage,
    gateway: SocketAddr,
    client: &Client,
    output: Output,
) -> Result<(Actor, Detour)> {
    let name =
        EntityId::new("demo-host").map_err(|error| CommandError::new(Exit::Failed, error))?;
    let request = TokenRequest::new(name, estoppel_api::Role::Enforcer);
    let token = client.mint_token(&request).await?.token;
    let program = agent_program(folder)?;
    let [site, sink] = stage.names();
    let mut child = Command::new(std::env::current_exe()?)
        .args(["run", "--session", SESSION, "--agent", "support-bot", "--user", "erika"])
        .args(["--resolve", &site, "--resolve", &sink])
        // Where the machine permits no network namespace; weaker, and said to be.
        .args(["--proxy", &gateway.to_string()])
        .arg("--state")
        .arg(folder.join("run"))
        .arg("--")
        .arg(program)
        .arg(hidden::DEMO_AGENT)
        .env("ESTOPPEL_URL", client.url().as_str())
        .env("ESTOPPEL_TOKEN", token)
        .env(agent::TASK_URL, format!("http://{SITE_NAME}:{}/invoice.html", stage.site.port()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let detour = Detour::default();
    if let Some(stderr) = child.stderr.take() {
        let detour = Arc::clone(&detour);
        std::thread::spawn(move || listen_to(stderr, &detour, output));
    }
    Ok((Actor(child), detour))
}

/// Passes on what the agent and its supervisor say, and takes note of the detour.
fn listen_to(stderr: ChildStderr, detour: &Detour, output: Output) {
    for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
        // Both sides are our own programs: nothing hostile is in there.
        output.note(&line);
        if let Some((_, outcome)) = line.split_once(agent::TRIED_AROUND) {
            detour.get_or_init(|| (SystemClock.now(), outcome.to_owned()));
        }
    }
}

fn ended_early() -> CommandError {
    CommandError::message(Exit::Failed, "the agent ended before anything happened").hint(
        "what it and `estoppel run` said stands above; the server's log is in the demo's folder",
    )
}

/// What held the agent, by the host's word.
fn contained(status: &HaltStatus) -> &str {
    let host = status.enforcers.iter().find(|word| word.kind == "host");
    host.and_then(|word| word.settlement["containment"].as_str()).unwrap_or("not known")
}

/// A copy of this binary that the agent's user may execute: ours may lie where it may not look.
fn agent_program(folder: &Path) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    if reachable(&own) {
        return Ok(own);
    }
    let here = folder.join("agent");
    let program = if reachable(&here) {
        here
    } else {
        std::env::temp_dir().join(format!("estoppel-demo-agent-{}", std::process::id()))
    };
    if std::fs::hard_link(&own, &program).is_err() {
        std::fs::copy(&own, &program)?;
    }
    Ok(program)
}

/// Bytes to the attacker by the network log.
async fn recorded_bytes(client: &Client) -> Result<u64> {
    let query = format!(
        "SELECT COALESCE(SUM(bytes_sent), 0) FROM network_log WHERE destination = '{SINK_NAME}'"
    );
    let table = client.sql(&SqlRequest { query }).await?;
    Ok(table.rows.first().and_then(|row| row.first()).and_then(Value::as_u64).unwrap_or(0))
}

/// What the play came to.
struct Verdict {
    enforce: bool,
    /// What held the agent.
    contained: String,
    /// Bytes that the attacker had when every enforcer had settled.
    at_settled: u64,
    /// Bytes that it has at the end.
    loot: u64,
    /// Bytes to it by the records.
    recorded: u64,
    /// Bytes that came to it around the gateway.
    smuggled: u64,
}

impl Verdict {
    /// Nothing came after the stop, and the attacker counts no more than the records say. A reset
    /// connection can take bytes along that were handed to the kernel, so it may count fewer. Nothing
    /// came around a gateway that is said to be the only way.
    fn is_good(&self) -> bool {
        self.loot == self.at_settled
            && self.loot <= self.recorded
            && !(self.enforce && self.loot > 0)
            && !(self.is_only_way() && self.smuggled > 0)
    }

    fn is_only_way(&self) -> bool {
        self.contained.contains("only the gateway is reachable")
    }
}

fn document(
    folder: &Path,
    number: &str,
    status: &HaltStatus,
    timeline: &Timeline,
    verdict: &Verdict,
) -> Value {
    serde_json::json!({
        "incident": number,
        "folder": folder,
        "halt": status,
        "timeline": timeline.document(),
        "bytes_at_attacker": verdict.loot,
        "bytes_recorded": verdict.recorded,
        "bytes_after_settled": verdict.loot - verdict.at_settled,
        "bytes_around_gateway": verdict.smuggled,
        "contained": verdict.contained,
        "good": verdict.is_good(),
    })
}

fn closing(folder: &Path, number: &str, view: &Value, verdict: &Verdict) -> String {
    let after = verdict.loot - verdict.at_settled;
    let agree = if verdict.loot == verdict.recorded {
        "the same as the records say".to_owned()
    } else {
        format!(
            "the records say {} (bytes in flight when the connection was reset)",
            verdict.recorded
        )
    };
    let around = match (verdict.smuggled, verdict.is_only_way()) {
        (0, _) => "none".to_owned(),
        (bytes, true) => format!("{bytes} bytes, which must not be"),
        (bytes, false) => format!(
            "{bytes} bytes, which nothing here could stop: run the demo as root for a network of the \
             agent's own (`estoppel doctor` says what this machine permits)"
        ),
    };
    let evidence = view["evidence"].as_array().map_or(0, |items| items.len().saturating_sub(1));
    let shown = folder.display();
    format!(
        "bytes that reached the attacker, by its own count: {} ({agree}), {after} after the stop\n\
         around the gateway: {around}\n\
         contained: {}\n\
         evidence: {evidence} items and their manifest, each with SHA-256, in {shown}/data/evidence\n\
         report: {shown}/report.md\n\n\
         Look around:\n  \
         estoppel ledger verify --data {shown}/data\n  \
         estoppel serve --config {shown}/estoppel.toml     (then: estoppel incident show {number})\n\
         {}\n{}",
        verdict.loot,
        crate::output::inline(&verdict.contained),
        if verdict.enforce {
            "  estoppel demo              (the gateway observes: something leaks)"
        } else {
            "  estoppel demo --enforce    (the gateway refuses: nothing leaks)"
        },
        if verdict.is_good() {
            "The agent was stopped."
        } else {
            "FAILED: the agent was NOT stopped as it should have been; please report this."
        },
    )
}
