//! A play: an event, the halt that follows, and a playbook that ends in a kill.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    server::{Policy, Process},
    world::{World, host, pager},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const SESSION: &str = "hijacked";

/// What the kill, the one thing that cannot be taken back, comes beside.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kill {
    /// The freeze and the page need nothing: they go on meanwhile.
    AmidOthers,
    /// It waits for everything else: its record is the last of its kind.
    Last,
}

/// As the built-in `prompt-injection`, and then it kills.
fn playbook(kill: Kill) -> String {
    let (freeze_needs, page) = match kill {
        Kill::AmidOthers => (
            "",
            "
  - id: page
    action: notify
    with: { summary: '${incident.title}' }
    within: 30s",
        ),
        Kill::Last => ("halt", ""),
    };
    format!(
        "format: estoppel.playbook/v1
name: prompt-injection
title: Contain and kill
inputs:
  incident.session: {{ type: session, description: The session. }}
  incident.destination: {{ type: destination, required: false, description: Where data went. }}
  incident.title: {{ type: text, description: What happened. }}
steps:
  - id: halt
    action: halt
    with: {{ scope: '${{incident.session}}', reason: '${{incident.title}}' }}
  - id: freeze
    action: freeze
    needs: [{freeze_needs}]
    with: {{ session: '${{incident.session}}' }}
    within: 30s
  - id: capture
    action: capture
    needs: [freeze]
    with: {{ session: '${{incident.session}}' }}
    within: 30s
  - id: kill
    action: kill
    needs: [capture]
    requires_evidence: [capture]
    with: {{ session: '${{incident.session}}' }}
    within: 30s{page}
"
    )
}

pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
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
pub(crate) struct Play {
    folder: tempfile::TempDir,
    policy: Policy,
    pager: String,
    pub(crate) pages: Arc<Mutex<Vec<String>>>,
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) server: Process,
    token: String,
    host: CancellationToken,
    event: String,
}

impl Play {
    /// Everything up to the event, which is not sent yet.
    pub(crate) fn begin(kill: Kill, policy: Policy, crash_at: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("playbooks")).unwrap();
        std::fs::write(folder.path().join("playbooks/prompt-injection.yaml"), playbook(kill))
            .unwrap();
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

    pub(crate) fn connect_host(&mut self) {
        let tasks = TaskTracker::new();
        self.host = CancellationToken::new();
        host(&self.server.address, self.token.clone(), Arc::clone(&self.world), &tasks, &self.host);
    }

    pub(crate) fn is_host_connected(&self) -> bool {
        self.ask("/v1/status").is_some_and(|status| {
            status["enforcers"].as_array().is_some_and(|all| {
                all.iter().any(|one| one["connected"] == true && !one["lease_until"].is_null())
            })
        })
    }

    /// Sends the event; whether it was acknowledged.
    pub(crate) fn send_event(&self) -> bool {
        self.server.send(self.folder.path(), "POST", "/v1/events", &self.event).is_some()
    }

    pub(crate) fn ask(&self, path: &str) -> Option<Value> {
        self.server.send(self.folder.path(), "GET", path, "")
    }

    /// Another server on the same folder, which does not die.
    pub(crate) fn restart(&mut self) {
        self.host.cancel();
        self.server = Process::start(self.folder.path(), &self.pager, "-", self.policy);
    }

    pub(crate) fn run_in(&self, states: &[&str]) -> Option<Value> {
        let runs = self.ask("/v1/runs")?;
        let run = runs.as_array()?.first()?.clone();
        states.contains(&run["state"].as_str()?).then_some(run)
    }

    pub(crate) fn incident(&self) -> Option<Value> {
        let incidents = self.ask("/v1/incidents")?;
        let all = incidents.as_array()?;
        assert!(all.len() < 2, "one incident: {incidents}");
        self.ask(&format!("/v1/incidents/{}", all.first()?["number"].as_str()?))
    }

    /// Everything that follows from the event is written.
    pub(crate) fn is_over(&self) -> bool {
        self.run_in(&["completed"]).is_some()
            && self.incident().is_some_and(|incident| {
                let has = |list: &str, count| {
                    incident[list].as_array().is_some_and(|entries| entries.len() >= count)
                };
                has("halts", 1) && has("pages", 2) && has("contained", 1)
            })
    }

    pub(crate) fn moments(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("moments")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        self.host.cancel();
    }
}
