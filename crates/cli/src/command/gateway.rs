//! `gateway`.

use std::{net::TcpListener, process::ExitCode, sync::Arc};

use estoppel_gateway::{Gateway, GatewayConfig, Identity, Limits, LinkAuthority, SystemResolver};
use estoppel_link::{OnLost, frame::EnforcerKind};
use estoppel_model::SystemClock;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::enforcer;
use crate::{
    args::{Connect, GatewayArgs},
    error::{CommandError, Exit, Result},
};

/// `estoppel gateway`.
pub(crate) fn gateway(args: &GatewayArgs, connect: &Connect) -> Result {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(args, connect))
}

async fn serve(args: &GatewayArgs, connect: &Connect) -> Result {
    let listener = TcpListener::bind(args.listen).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot listen on {}", args.listen));
        CommandError::new(Exit::Usage, error).hint("give another address with --listen")
    })?;
    let client = connect.client()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let role = enforcer::Role {
        kind: EnforcerKind::Gateway,
        name: format!("gateway {}", enforcer::host_name()),
        subjects: Vec::new(),
        state: args.state.clone(),
        on_lost: OnLost::Refuse,
        gaps: Vec::new(),
    };
    let (link, events) = enforcer::link(connect, role, &tasks, stop.clone())?;
    let known = enforcer::policy(&client, args.state.as_deref(), &stop).await?;
    let mut own = client.url().socket_addrs(|| None).unwrap_or_default();
    own.extend(&args.own_address);
    let config = GatewayConfig {
        identity: Identity::Credential { server_key: known.key.clone() },
        policy: enforcer::parsed(&known)?,
        hosts: enforcer::overrides(&args.resolve)?,
        own_addresses: own,
        limits: Limits::default(),
        // Whoever reaches a shared gateway may reach the server, too.
        control: None,
        resolver: Arc::new(SystemResolver),
        clock: Arc::new(SystemClock),
    };
    let authority = Arc::new(LinkAuthority::new(link));
    let gateway = Gateway::start(config, authority, events, listener, &tasks, stop.clone())
        .map_err(|error| CommandError::new(Exit::Failed, error))?;
    tracing::info!(address = %gateway.local_addr(), "the gateway listens");
    tasks.spawn(enforcer::follow_policy(client, gateway, known, args.state.clone(), stop.clone()));
    tokio::select! {
        () = enforcer::asked_to_end() => {}
        () = stdin_closed(), if args.until_stdin_closes => {}
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(ExitCode::SUCCESS)
}

async fn stdin_closed() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    // A thread of its own, which nobody waits for: a read of standard input cannot be cancelled.
    std::thread::spawn(move || {
        // Whatever is written there means nothing; its end, or an error, means that nobody is there.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}
