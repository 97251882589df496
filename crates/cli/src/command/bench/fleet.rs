//! A server and a guard in this process, over real sockets: event to halt, durable ingest.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use estoppel_api::{Allowlist, Client, Role, TokenRequest};
use estoppel_eventlog::WorkerCommand;
use estoppel_link::{
    Link, LinkConfig, LinkEvent,
    frame::{EnforcerKind, Settlement},
};
use estoppel_model::{EntityId, Secret, SystemClock};
use estoppel_server::{EgressResponse, Running, Server, ServerConfig};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{super::hidden, distribution, failed};
use crate::error::Result;

const EVENTS: usize = 50;
const BATCHES: usize = 60;
const BATCH: usize = 1_000;

/// A server on a folder of its own, and a client with the admin's token.
pub(super) struct Stage {
    running: Running,
    pub(super) client: Client,
    folder: PathBuf,
}

impl Stage {
    pub(super) async fn open(name: &str) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("estoppel-bench-{}-{name}", std::process::id()));
        let worker = WorkerCommand {
            program: std::env::current_exe()?,
            args: vec![hidden::SQL_WORKER.into()],
        };
        let config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            egress: EgressResponse::Auto,
            automatic_halts_per_hour: 1_000_000,
            ..ServerConfig::new(folder.clone(), worker)
        };
        let running = Server::start(config).await.map_err(failed)?;
        running.recovered().await;
        let token = std::fs::read_to_string(running.admin_token_file())?;
        let client = Client::new(&format!("http://{}", running.address()), Secret::new(token))?;
        Ok(Self { running, client, folder })
    }

    async fn close(self) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.end().await)?)
    }

    /// Ends the server in order; its data folder.
    pub(super) async fn end(self) -> PathBuf {
        self.running.stop().await;
        self.folder
    }

    async fn token(&self, role: Role) -> Result<String> {
        let name = EntityId::new("bench").map_err(failed)?;
        let request = TokenRequest::new(name, role);
        Ok(self.client.mint_token(&request).await?.token)
    }

    /// Connects a guard that settles at once; when it is told something comes out.
    pub(super) async fn guard(
        &self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<mpsc::Receiver<Instant>> {
        let (told, first) = mpsc::channel(1_024);
        let servers = vec![self.client.url().clone()];
        let token = Secret::new(self.token(Role::Agent).await?);
        let config = LinkConfig::new(servers, token, EnforcerKind::Guard, "guard");
        let (link, mut events) =
            Link::start(config, Arc::new(SystemClock), tasks, stop.clone()).map_err(failed)?;
        let settling = link.clone();
        tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                if let LinkEvent::Ordered(order) = event {
                    let _ = told.send(Instant::now()).await;
                    settling.settled(order.id, Settlement::default());
                }
            }
        });
        link.ready().await;
        Ok(first)
    }
}

/// From posting the event to the halt's arrival at a guard.
pub(super) async fn detect() -> Result<Value> {
    let stage = Stage::open("detect").await?;
    stage
        .client
        .set_allowlist(&Allowlist { domains: Some(vec!["good.example".to_owned()]) })
        .await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let mut told = stage.guard(&tasks, &stop).await?;
    let mut samples = Vec::new();
    for index in 0..EVENTS {
        let event = json!({
            "kind": "network", "session_id": format!("s{index}"), "destination": "evil.example",
            "port": 443, "verdict": "would_block"
        });
        let begun = Instant::now();
        let (posted, at) =
            tokio::join!(stage.client.events(event.to_string().into_bytes()), told.recv());
        posted?;
        samples.extend(at.map(|at| at.saturating_duration_since(begun)));
        // The playbook's block of the destination comes to the guard, too.
        while tokio::time::timeout(Duration::from_millis(100), told.recv())
            .await
            .is_ok_and(|at| at.is_some())
        {}
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    stage.close().await?;
    Ok(json!({ "event_posted_to_halt_at_guard": distribution(samples) }))
}

/// Audit events, acknowledged after the disk has them.
pub(super) async fn ingest() -> Result<Value> {
    let stage = Stage::open("ingest").await?;
    let line = |index: usize| {
        json!({
            "kind": "audit", "session_id": format!("s{}", index % 100), "action": "call", "tool": "search",
            "params": { "q": format!("query {index}") }, "result": "ok", "input_tokens": 100, "estimated_cost": 0.001
        })
    };
    let batch: String = (0..BATCH).map(|index| format!("{}\n", line(index))).collect();
    let begun = Instant::now();
    for _ in 0..BATCHES {
        stage.client.events(batch.clone().into_bytes()).await?;
    }
    let elapsed = begun.elapsed();
    let rows = BATCHES * BATCH;
    stage.close().await?;
    Ok(json!({
        "rows": rows,
        "batch": BATCH,
        "seconds": elapsed.as_secs_f64(),
        "rows_per_second": rows as f64 / elapsed.as_secs_f64(),
    }))
}
