//! `run`: an agent, confined, with a gateway of its own and a host enforcer beside it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use estoppel_api::Client;
use estoppel_gateway::{
    ControlPlane, Gateway, GatewayConfig, Identity as Who, Limits, LinkAuthority, Source,
    SystemResolver,
};
use estoppel_host::{
    CaptureLimits, Captured, Containment, GuardAccess, Identity, Mode, NetworkMode, Prepared,
    RunConfig, SuperviseConfig, Wiring, control,
};
use estoppel_link::{Link, OnLost, frame::EnforcerKind};
use estoppel_model::{Actor, EntityId, Secret, Subject, SystemClock};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::enforcer;
use crate::{
    args::{Connect, RunArgs},
    error::{CommandError, Exit, Result},
    output::Output,
};

/// Where the doors for `halt --local` are.
pub(super) fn run_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        PathBuf::from("/run/estoppel")
    } else {
        let uid = rustix::process::geteuid().as_raw();
        std::env::var_os("XDG_RUNTIME_DIR")
            .map_or_else(|| PathBuf::from(format!("/tmp/estoppel-{uid}")), PathBuf::from)
            .join("estoppel")
    }
}

/// How long a start waits for the first lease.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long a capture that could not be sent waits.
const RESEND: Duration = Duration::from_secs(2);
/// How long the end waits for evidence to be sent.
const DELIVER_WAIT: Duration = Duration::from_secs(30);

/// `estoppel run`.
pub(crate) fn run(args: RunArgs, connect: &Connect, output: &Output) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(supervise(args, connect, output));
    // A capture's thread that hangs in a read must not keep us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn supervise(args: RunArgs, connect: &Connect, output: &Output) -> Result {
    let mut subject = args.subject.clone().subject();
    let session = subject.session.get_or_insert_with(new_session).clone();
    let state = args.state.clone().unwrap_or_else(|| default_state(&session));
    let evidence = state.join("evidence");
    let client = connect.client()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // Before the confinement is made: what is not there yet cannot be hidden from the agent.
    std::fs::create_dir_all(&state).map_err(|error| {
        let error =
            anyhow::Error::new(error).context(format!("state folder `{}`", state.display()));
        CommandError::new(Exit::Failed, error).hint("give another folder with --state")
    })?;

    let mut prepared = prepare(&args, connect, &client, &subject, &state).await?;
    let listener = prepared.take_listener();
    let on_lost = if args.allow_on_lost { OnLost::Allow } else { OnLost::Refuse };
    let name = |what: &str| format!("{what} {} {session}", enforcer::host_name());
    let role = enforcer::Role {
        kind: EnforcerKind::Host,
        name: name("host"),
        subjects: vec![subject.clone()],
        state: Some(state.join("host")),
        on_lost,
        gaps: prepared_gaps(listener.is_some()),
    };
    let (host, host_events) = enforcer::link(connect, role, &tasks, stop.clone())?;
    if let Some(listener) = listener {
        let kept = state.join("gateway");
        let role = enforcer::Role {
            kind: EnforcerKind::Gateway,
            name: name("gateway"),
            subjects: vec![subject.clone()],
            state: Some(kept.clone()),
            on_lost,
            gaps: Vec::new(),
        };
        let (link, events) = enforcer::link(connect, role, &tasks, stop.clone())?;
        let known = enforcer::policy(&client, Some(&kept), &stop).await?;
        let source = Source { subject: subject.clone(), process: "agent".to_owned(), pid: None };
        let config = GatewayConfig {
            identity: Who::Fixed(source),
            policy: enforcer::parsed(&known)?,
            hosts: enforcer::overrides(&args.resolve)?,
            own_addresses: client.url().socket_addrs(|| None).unwrap_or_default(),
            limits: Limits::default(),
            control: Some(ControlPlane {
                servers: enforcer::servers(connect)?,
                trust: connect.trust()?,
            }),
            resolver: Arc::new(SystemResolver),
            clock: Arc::new(SystemClock),
        };
        let authority = Arc::new(LinkAuthority::new(link.clone()));
        let gateway = Gateway::start(config, authority, events, listener, &tasks, stop.clone())
            .map_err(|error| CommandError::new(Exit::Failed, error))?;
        tasks.spawn(enforcer::follow_policy(
            client.clone(),
            gateway,
            known,
            Some(kept),
            stop.clone(),
        ));
        ready(&link, args.allow_on_lost).await?;
    }
    ready(&host, args.allow_on_lost).await?;

    let mode = if args.observe { Mode::Observe } else { Mode::Enforce };
    let agent = match prepared.start(&host, mode) {
        Ok(agent) => agent,
        // The code that a shell gives, as scripts around the wrapped command expect it.
        Err(error) => {
            let code = ExitCode::from(error.exit_code());
            output.error(&refused(error));
            return Ok(code);
        }
    };
    output.note(&format!("estoppel: {}", said(agent.containment(), &session)));

    let (local, requests) = mpsc::channel(16);
    match control::Door::open(&run_dir()) {
        Ok(door) => {
            let (door_tasks, stop) = (tasks.clone(), stop.clone());
            let clock = Arc::new(SystemClock);
            tasks.spawn(async move { control::serve(door, local, clock, &door_tasks, stop).await });
        }
        Err(error) => {
            output.note(&format!("estoppel: `halt --local` does not reach this agent: {error}"))
        }
    }
    let (captured, captures) = mpsc::channel(16);
    let operator = operator()?;
    let delivery =
        tasks.spawn(deliver(client, captures, evidence.clone(), operator.clone(), stop.clone()));
    let config =
        SuperviseConfig { subject, mode, evidence, limits: CaptureLimits::default(), operator };
    let wiring = Wiring {
        orders: host,
        events: host_events,
        local: requests,
        captured,
        clock: Arc::new(SystemClock),
    };
    let exit = estoppel_host::supervise(agent, config, wiring, stop.child_token()).await?;
    // The channel's sender is gone with the supervisor, so delivery ends when all is sent.
    if tokio::time::timeout(DELIVER_WAIT, delivery).await.is_err() {
        output.note("estoppel: evidence could not be sent and stays in the state folder");
    }
    stop.cancel();
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    Ok(ExitCode::from(exit.exit_code()))
}

async fn prepare(
    args: &RunArgs,
    connect: &Connect,
    client: &Client,
    subject: &Subject,
    state: &Path,
) -> Result<Prepared> {
    let mut config = RunConfig::new(args.command.clone(), subject.clone());
    config.identity = Identity::Other { uid: args.uid, gid: args.uid };
    config.hide.push(state.to_owned());
    config.hide.extend(connect.token_file.clone());
    config.guard = GuardAccess {
        servers: connect.url.clone(),
        ca: connect.ca.clone(),
        token: guard_token(args, connect)?,
    };
    if let Some(proxy) = &args.proxy {
        let request = estoppel_api::CredentialRequest { subject: subject.clone(), seconds: None };
        let minted = client.mint_credential(&request).await?;
        config.network = NetworkMode::NamespaceOr(Secret::new(format!(
            "http://estoppel:{}@{proxy}",
            minted.credential
        )));
    }
    tokio::task::spawn_blocking(move || Prepared::new(config))
        .await
        .map_err(|error| CommandError::new(Exit::Failed, error))?
        .map_err(|error| {
            refused(error).hint("`estoppel doctor` says what this machine permits")
                .hint("--proxy ADDR:PORT of an `estoppel gateway` runs it without a network namespace, and weaker")
        })
}

/// The token of the agent's own guard, which the agent can read: it must not be an enforcer's.
fn guard_token(args: &RunArgs, connect: &Connect) -> Result<Option<Secret<String>>> {
    let Some(file) = &args.guard_token_file else { return Ok(None) };
    let token = super::token_of(file)?;
    if token.expose() == connect.token()?.expose() {
        let message = format!(
            "`{}` holds the token that `estoppel run` itself uses, which the agent must not get",
            file.display()
        );
        return Err(CommandError::message(Exit::Usage, message)
            .hint("make one for the guard: estoppel token create NAME --role agent"));
    }
    Ok(Some(token))
}

fn refused(error: estoppel_host::RunError) -> CommandError {
    CommandError::new(Exit::Failed, error)
}

fn prepared_gaps(namespace: bool) -> Vec<String> {
    if namespace {
        Vec::new()
    } else {
        vec!["no network namespace: the proxy can be gone around".to_owned()]
    }
}

async fn ready(link: &Link, allow: bool) -> Result<()> {
    if tokio::time::timeout(READY_WAIT, link.ready()).await.is_ok() || allow {
        return Ok(());
    }
    let status = link.status();
    let problem = status.problem.unwrap_or_else(|| "it did not answer".to_owned());
    Err(CommandError::message(Exit::Unreachable, format!("no lease from the server: {problem}"))
        .hint(
            "an agent starts only once its orders are known; --allow-on-lost is the other choice",
        ))
}

fn said(containment: &Containment, session: &EntityId) -> String {
    format!("session {session}: {containment}")
}

fn operator() -> Result<Actor> {
    Actor::new(&format!("host:{}", enforcer::host_name()))
        .map_err(|error| CommandError::new(Exit::Failed, error))
}

fn new_session() -> EntityId {
    let text = format!("run-{}", uuid::Uuid::now_v7());
    // A UUID holds nothing that an id must not.
    EntityId::new(&text).unwrap_or_else(|_| unreachable!("`{text}` is an id"))
}

fn default_state(session: &EntityId) -> PathBuf {
    // The session's name is a stranger's: hex keeps it one folder's name.
    let name: String = session.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/estoppel/run")
    } else {
        std::env::var_os("HOME")
            .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
            .join(".local/state/estoppel/run")
    };
    base.join(name.get(..120).unwrap_or(&name))
}

/// Sends captures to the server, also those of earlier runs, until no more can come.
async fn deliver(
    client: Client,
    mut captures: mpsc::Receiver<Captured>,
    evidence: PathBuf,
    operator: Actor,
    stop: CancellationToken,
) {
    let mut open = true;
    let mut pending = estoppel_host::pending_captures(&evidence);
    while open || !pending.is_empty() {
        let mut left = Vec::new();
        for captured in pending.drain(..) {
            match send(&client, &captured, &operator).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(capture = %captured.id, error = %error.error, "evidence waits for the server");
                    left.push(captured);
                }
            }
        }
        pending = left;
        tokio::select! {
            captured = captures.recv(), if open => match captured {
                Some(captured) => pending.push(captured),
                None => open = false,
            },
            () = tokio::time::sleep(RESEND), if !pending.is_empty() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Sends the contents, then the manifest; again is no error.
async fn send(client: &Client, captured: &Captured, operator: &Actor) -> Result<()> {
    for (digest, path) in &captured.blobs {
        let content = tokio::fs::read(path).await?;
        client.put_evidence(&digest.to_string(), content).await?;
    }
    let manifest = captured.manifest.text().to_owned();
    let accepted = match (captured.case, captured.order) {
        (Some(case), _) => client.add_evidence(case, manifest).await?,
        // Of `halt --local`: the server opens the incident when the halt is handed back.
        (None, Some(order)) => client.add_evidence_to_halt(order, manifest).await?,
        (None, None) => return Ok(()),
    };
    if !accepted.missing.is_empty() {
        return Err(CommandError::message(
            Exit::Failed,
            format!("{} items are missing at the server", accepted.missing.len()),
        ));
    }
    captured
        .mark_delivered(client.url().as_str(), operator, &SystemClock)
        .map_err(|error| CommandError::new(Exit::Failed, error))
}
