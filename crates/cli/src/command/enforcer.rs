//! What `gateway` and `run` have in common: a link, and the policy that follows the server's.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use estoppel_api::{Client, GatewayPolicy};
use estoppel_gateway::{Gateway, HostOverride, Mode, Policy};
use estoppel_link::frame::EnforcerKind;
use estoppel_link::{Link, LinkConfig, LinkEvent, OnLost};
use estoppel_model::{Actor, Subject, SystemClock};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    args::Connect,
    error::{CommandError, Exit, Result},
};

/// How often a gateway asks for its policy.
const POLICY_EVERY: Duration = Duration::from_secs(2);
/// How long a start waits for the server's policy, and where one is kept.
const POLICY_WAIT: Duration = Duration::from_secs(30);
const POLICY_WAIT_KEPT: Duration = Duration::from_secs(5);
/// The last policy, in a state folder.
const POLICY_FILE: &str = "policy.json";

/// What distinguishes one enforcer from another.
pub(super) struct Role {
    pub kind: EnforcerKind,
    pub name: String,
    pub subjects: Vec<Subject>,
    pub state: Option<PathBuf>,
    pub on_lost: OnLost,
    pub gaps: Vec<String>,
}

/// The servers that the operator has named.
pub(super) fn servers(connect: &Connect) -> Result<Vec<url::Url>> {
    connect
        .url
        .split(',')
        .map(|url| url.trim().parse())
        .collect::<std::result::Result<Vec<url::Url>, _>>()
        .map_err(|error| {
            let error = anyhow::Error::new(error)
                .context(format!("`{}` is not a server's address", connect.url));
            CommandError::new(Exit::Usage, error)
        })
}

/// Starts a link to the server.
pub(super) fn link(
    connect: &Connect,
    role: Role,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(Link, mpsc::Receiver<LinkEvent>)> {
    let config = LinkConfig {
        subjects: role.subjects,
        state_dir: role.state,
        on_lost: role.on_lost,
        gaps: role.gaps,
        trust: connect.trust()?,
        ..LinkConfig::new(servers(connect)?, connect.token()?, role.kind, role.name)
    };
    Link::start(config, Arc::new(SystemClock), tasks, stop)
        .map_err(|error| CommandError::new(Exit::Usage, error))
}

/// This host's name, for people.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Who does something on this host without a token: whoever may read the folder.
pub(super) fn local_actor() -> Result<Actor> {
    let uid = rustix::process::geteuid().as_raw();
    Actor::new(&format!("local:uid-{uid}@{}", host_name()))
        .map_err(|error| CommandError::new(Exit::Failed, error))
}

/// Waits for the server's policy. Without one nobody knows what the gateway is to enforce; the last one
/// that is kept in the state folder holds while no server answers, as it does for a gateway that runs.
pub(super) async fn policy(
    client: &Client,
    state: Option<&Path>,
    stop: &CancellationToken,
) -> Result<GatewayPolicy> {
    let ask = async {
        loop {
            match client.gateway_policy().await {
                Ok(policy) => return Ok(policy),
                Err(error @ estoppel_api::ClientError::Refused(_)) => {
                    let error = CommandError::from(error);
                    if error.exit != Exit::Unreachable {
                        return Err(error);
                    }
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let kept = state.and_then(kept_policy);
    let wait = if kept.is_some() { POLICY_WAIT_KEPT } else { POLICY_WAIT };
    tokio::select! {
        answer = tokio::time::timeout(wait, ask) => match (answer, kept) {
            (Ok(answer), _) => answer.inspect(|policy| keep_policy(state, policy)),
            (Err(_), Some(kept)) => {
                tracing::warn!("no server answers; the last policy that is known holds");
                Ok(kept)
            }
            (Err(_), None) => {
                let url = client.url();
                Err(CommandError::message(Exit::Unreachable, format!("no answer from {url} for {} s", POLICY_WAIT.as_secs()))
                    .hint("is `estoppel serve` running there? set ESTOPPEL_URL or --url for another address"))
            }
        },
        () = stop.cancelled() => Err(CommandError::message(Exit::Failed, "ended before it began")),
    }
}

/// The policy that an earlier run has kept; one that cannot be read is none.
fn kept_policy(state: &Path) -> Option<GatewayPolicy> {
    let text = std::fs::read(state.join(POLICY_FILE)).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(%error, "the kept policy cannot be read"))
        .ok()
}

/// Keeps a policy for a start without any server, whole or not at all.
fn keep_policy(state: Option<&Path>, policy: &GatewayPolicy) {
    let Some(state) = state else { return };
    let unfinished = state.join("policy.new");
    let kept = serde_json::to_vec(policy).map_err(std::io::Error::from).and_then(|text| {
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, state.join(POLICY_FILE))
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "the policy cannot be kept for a start without a server");
    }
}

/// The policy in the gateway's terms.
pub(super) fn parsed(policy: &GatewayPolicy) -> Result<Policy> {
    let failed = |error: anyhow::Error| {
        CommandError::new(Exit::Failed, error.context("the server's policy cannot be used"))
    };
    let Some(domains) = &policy.domains else { return Ok(Policy::default()) };
    let mode: Mode = policy.mode.parse().map_err(|error| failed(anyhow::anyhow!("{error}")))?;
    let allowlist =
        estoppel_extract::Allowlist::parse(domains).map_err(|error| failed(error.into()))?;
    Ok(Policy { mode, allowlist: Arc::new(allowlist) })
}

/// Keeps the gateway's policy that of the server. While no answer comes, the last one holds.
pub(super) async fn follow_policy(
    client: Client,
    gateway: Gateway,
    mut known: GatewayPolicy,
    state: Option<PathBuf>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLICY_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let Ok(policy) = client.gateway_policy().await else { continue };
        if policy == known {
            continue;
        }
        match parsed(&policy) {
            Ok(parsed) => {
                gateway.set_policy(parsed);
                keep_policy(state.as_deref(), &policy);
                known = policy;
            }
            Err(error) => {
                tracing::error!(error = %error.error, "the server's policy cannot be used")
            }
        }
    }
}

/// Reads `NAME:PORT=ADDRESS:PORT` arguments.
pub(super) fn overrides(texts: &[String]) -> Result<Vec<HostOverride>> {
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|error: estoppel_gateway::HostOverrideError| {
                CommandError::new(Exit::Usage, error)
            })
        })
        .collect()
}

/// Resolves when the process is asked to end.
pub(super) async fn asked_to_end() {
    match EndSignals::new() {
        Ok(mut signals) => signals.next().await,
        Err(_) => std::future::pending().await,
    }
}

/// SIGTERM and SIGINT, each of which is heard from the making of this on.
pub(super) struct EndSignals {
    term: Signal,
    int: Signal,
}

impl EndSignals {
    /// # Errors
    /// When the system does not let them be heard.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Resolves with the next of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
