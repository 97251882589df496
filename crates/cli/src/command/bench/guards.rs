//! Real guards' links in a process of their own: each keeps its lease, checks signatures, publishes
//! verdicts and confirms.

use std::{
    io::{BufRead as _, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use estoppel_link::{
    Link, LinkConfig, WorkInFlight,
    frame::{EnforcerKind, Settlement},
};
use estoppel_model::{Order, Secret, SystemClock};
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What the process is told, on one line of its standard input; the input's end ends it.
#[derive(Serialize, Deserialize)]
pub(super) struct Spec {
    pub server: String,
    pub token: String,
    pub guards: usize,
}

/// The process `estoppel bench-guards`; it says a line when all are connected.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "estoppel bench: the guards: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let mut stdin = std::io::stdin().lock();
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let spec: Spec = serde_json::from_str(&line).context("what to do")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    runtime.block_on(connect(&spec, &tasks, &stop))?;
    println_line("true")?;
    // Nothing more is said: this waits for the end.
    stdin.read_line(&mut line)?;
    stop.cancel();
    tasks.close();
    runtime.block_on(tasks.wait());
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// An agent that does nothing just now.
struct Idle;

impl WorkInFlight for Idle {
    fn stop(&self, _: &Arc<Order>) -> Option<Settlement> {
        Some(Settlement::default())
    }
}

async fn connect(spec: &Spec, tasks: &TaskTracker, stop: &CancellationToken) -> Result<()> {
    let server: url::Url = spec.server.parse().context("the server's address")?;
    let mut links = Vec::new();
    for index in 0..spec.guards {
        let (servers, token) = (vec![server.clone()], Secret::new(spec.token.clone()));
        let name = format!("guard {index}");
        let config = LinkConfig {
            in_flight: Some(Arc::new(Idle)),
            ..LinkConfig::new(servers, token, EnforcerKind::Guard, name)
        };
        let (link, _events) = Link::start(config, Arc::new(SystemClock), tasks, stop.clone())?;
        links.push(link);
    }
    for link in &links {
        link.ready().await;
    }
    Ok(())
}

fn println_line(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
