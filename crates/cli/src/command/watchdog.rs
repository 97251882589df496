//! What pages when the server dies: before the leases are over and every agent stops.
//!
//! A process of its own, so that it outlives a server that is killed, stopped or stuck. The server
//! sends it a line for each heartbeat, with the number of enforcers whose lease is alive; when none
//! comes for a third of a lease it asks the server's address, for it may have been started anew,
//! and pages when that does not answer either. It ends when the server has, after that.
//!
//! It only tells people. Nothing here prolongs a lease or lets an agent go on.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use estoppel_connect::{Page, PageAction, Pager};
use estoppel_model::{Clock as _, IncidentId, Severity, SystemClock, Timestamp, Untrusted};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::Instant,
};

use super::hidden;
use crate::{args::LogFormat, config::Config};

/// How long a line may take into the watchdog's pipe.
const WRITE_MAX: Duration = Duration::from_millis(200);
/// How soon a watchdog that ended is started again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long the server's address may take to show that a new server is there.
const ASK_MAX: Duration = Duration::from_secs(1);

/// The server's side: keeps a watchdog running and feeds it.
pub(super) struct Watchdog {
    program: PathBuf,
    args: Vec<OsString>,
    running: Option<(Child, ChildStdin)>,
    started: Option<Instant>,
}

impl Watchdog {
    /// One that pages as the configuration of this file says.
    pub(super) fn new(program: PathBuf, config: &Path, lease: Duration, health: &str) -> Self {
        let args = vec![
            hidden::WATCHDOG.into(),
            config.into(),
            lease.as_millis().to_string().into(),
            health.into(),
        ];
        Self { program, args, running: None, started: None }
    }

    /// Tells it that the server lives, and how many enforcers hold a lease.
    pub(super) async fn beat(&mut self, enforcers: usize) {
        if self.running.is_none() && self.started.is_none_or(|at| at.elapsed() > AGAIN_AFTER) {
            self.start();
        }
        let Some((_, pipe)) = &mut self.running else { return };
        let line = format!("{enforcers}\n");
        let written = tokio::time::timeout(WRITE_MAX, pipe.write_all(line.as_bytes())).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::error!("the watchdog has ended: nobody would page for this server's death");
            self.running = None;
        }
    }

    fn start(&mut self) {
        self.started = Some(Instant::now());
        let child = Command::new(&self.program)
            .args(&self.args)
            // It may hold a password, and is none of the watchdog's business.
            .env_remove("ESTOPPEL_REDIS")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A signal for the server's group is not for its watchdog.
            .process_group(0)
            .spawn();
        match child {
            Ok(mut child) => self.running = child.stdin.take().map(|pipe| (child, pipe)),
            Err(error) => tracing::error!(%error, "the watchdog cannot be started"),
        }
    }
}

/// The watchdog itself: `CONFIG LEASE_MS HEALTH_URL`.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    crate::output::start_log(std::env::var("ESTOPPEL_LOG").ok().as_deref(), LogFormat::Text);
    let (Some(config), Some(lease), Some(health)) = (args.next(), args.next(), args.next()) else {
        return ExitCode::FAILURE;
    };
    let lease = lease.to_str().and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let pager = Config::read(Path::new(&config))
        .ok()
        .and_then(|config| super::serve::pager(&config).ok().flatten());
    let (Some(lease), Some(pager)) = (lease, pager) else { return ExitCode::FAILURE };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    let health = health.to_string_lossy().into_owned();
    runtime.block_on(Watch { lease, pager, health, dedup_key: String::new() }.run(heartbeats()));
    ExitCode::SUCCESS
}

struct Watch {
    lease: Duration,
    pager: Pager,
    health: String,
    /// Of the page that was sent and is not resolved; empty: none.
    dedup_key: String,
}

impl Watch {
    async fn run(mut self, mut heartbeats: mpsc::Receiver<usize>) {
        let (mut enforcers, mut beat, mut at) = (0, Instant::now(), SystemClock.now());
        loop {
            let next = tokio::time::timeout_at(beat + self.lease / 3, heartbeats.recv()).await;
            match next {
                Ok(Some(count)) => {
                    (enforcers, beat, at) = (count, Instant::now(), SystemClock.now());
                    self.resolve(enforcers).await;
                }
                ended => {
                    let ended = ended.is_ok();
                    tokio::time::sleep_until(beat + self.lease / 3).await;
                    if enforcers > 0 && self.dedup_key.is_empty() && !self.answers().await {
                        self.trigger(enforcers, at).await;
                    }
                    if ended {
                        return;
                    }
                    // It is stuck: what it says next, it says when it has come to itself.
                    match heartbeats.recv().await {
                        Some(count) => {
                            (enforcers, beat, at) = (count, Instant::now(), SystemClock.now());
                            self.resolve(enforcers).await;
                        }
                        None => return,
                    }
                }
            }
        }
    }

    /// Whether there is a server: the same one, or one that was started in its place.
    async fn answers(&self) -> bool {
        let Ok(url) = self.health.parse::<url::Url>() else { return false };
        let Ok(addresses) = url.socket_addrs(|| None) else { return false };
        let Some(address) = addresses.first() else { return false };
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
            let request = "GET /healthz HTTP/1.1\r\nHost: watchdog\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await.ok()?;
            BufReader::new(stream).lines().next_line().await.ok()?
        };
        let answer = tokio::time::timeout(ASK_MAX, ask).await;
        matches!(answer, Ok(Some(line)) if line.starts_with("HTTP/1.1 200"))
    }

    async fn trigger(&mut self, enforcers: usize, last_beat: Timestamp) {
        let until = last_beat + self.lease;
        self.dedup_key = format!("estoppel/leases/{}", IncidentId::new());
        let summary = format!(
            "Estoppel on {} does not answer: leases expire at {until}, and {enforcers} enforcers \
             then stop their agents. Start it again",
            super::enforcer::host_name()
        );
        tracing::error!(summary, "the server is dead");
        self.page(summary, PageAction::Trigger).await;
    }

    async fn resolve(&mut self, enforcers: usize) {
        if self.dedup_key.is_empty() {
            return;
        }
        let host = super::enforcer::host_name();
        let summary =
            format!("Estoppel on {host} answers again; {enforcers} enforcers hold a lease");
        self.page(summary, PageAction::Resolve).await;
        self.dedup_key.clear();
    }

    async fn page(&self, summary: String, action: PageAction) {
        let page = Page {
            incident: IncidentId::new(),
            number: None,
            severity: Severity::Critical,
            summary: Untrusted::new(summary),
            url: None,
            incident_url: None,
            halt: None,
            dedup_key: self.dedup_key.clone(),
            checkpoint: None,
            at: SystemClock.now(),
            subject: "global".to_owned(),
            action,
        };
        if let Err(error) = self.pager.page(&page).await {
            tracing::error!(%error, "nobody could be paged");
        }
    }
}

/// The server's heartbeats; no more come when it has ended.
fn heartbeats() -> mpsc::Receiver<usize> {
    let (sender, heartbeats) = mpsc::channel(1);
    // A thread of its own, which nobody waits for: a read of standard input cannot be cancelled.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let Ok(enforcers) = line.parse() else { return };
            if sender.blocking_send(enforcers).is_err() {
                return;
            }
        }
    });
    heartbeats
}
