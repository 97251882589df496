//! Tunnels: CONNECT, then the ClientHello is judged before a byte of it goes on.
//!
//! The server name must be the host of the CONNECT request, or be listed itself on that port:
//! otherwise a listed host would be a door to every other on the same address. What is not TLS, or
//! names no server, is refused in every mode.

use std::sync::Arc;

use estoppel_extract::{
    Host,
    client_hello::{self, CLIENT_HELLO_BYTES_MAX, ClientHello},
};
use estoppel_model::FlowVerdict;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes},
    time::timeout,
};

use crate::{
    flow::{Cause, Flow, FlowGuard, Flows, Upstream},
    problem::Body,
    proxy::Proxy,
};

const COPY_BYTES: usize = 16 * 1024;
/// A fatal TLS alert, `access_denied`: what a TLS client can show to its user.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// Why a tunnel is not opened.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the client sent nothing complete in time, or left")]
    Incomplete,
    #[error("not TLS")]
    NotTls,
    #[error("the ClientHello names no server")]
    NoName,
    #[error("the ClientHello names {name} instead of the host of the CONNECT request")]
    OtherName { name: Host },
    #[error(transparent)]
    Malformed(#[from] client_hello::Flaw),
    #[error("an order blocks the server that the ClientHello names")]
    Ordered(Cause),
}

/// Answers 200 and lets a task take over the connection.
pub(crate) fn accept(
    proxy: &Arc<Proxy>,
    guard: FlowGuard,
    request: Request<Incoming>,
    upstream: Upstream,
) -> Response<Body> {
    let task = run(Arc::clone(proxy), guard, request, upstream);
    proxy.tasks.spawn(task);
    Response::new(Either::Left(Full::default()))
}

async fn run(proxy: Arc<Proxy>, guard: FlowGuard, request: Request<Incoming>, upstream: Upstream) {
    let flow = Arc::clone(guard.flow());
    let relay = async {
        let upgraded =
            match timeout(proxy.limits.client_hello_timeout, hyper::upgrade::on(request)).await {
                Ok(Ok(upgraded)) => upgraded,
                _ => return flow.conclude(FlowVerdict::Blocked),
            };
        relay(&proxy, &flow, TokioIo::new(upgraded), upstream).await;
    };
    tokio::select! {
        biased;
        () = flow.ending.cancelled() => {}
        () = relay => {}
    }
    // The sockets are gone: the counts are final.
    drop(guard);
}

async fn relay(proxy: &Proxy, flow: &Flow, mut client: TokioIo<Upgraded>, mut upstream: Upstream) {
    let limit = proxy.limits.client_hello_timeout;
    let judged = match timeout(limit, read_client_hello(&mut client)).await {
        Ok(Ok((bytes, name))) => judge(&proxy.flows, flow, &name).map(|()| bytes),
        Ok(Err(refused)) => Err(refused),
        Err(_elapsed) => Err(Refused::Incomplete),
    };
    let bytes = match judged {
        Ok(bytes) => bytes,
        Err(refused) => {
            tracing::info!(
                destination = %flow.target,
                subject = %flow.source.subject,
                %refused,
                "a tunnel was refused"
            );
            if let Refused::Ordered(Cause::Order(order)) = &refused {
                tracing::info!(order = %order.id, "by this order");
            }
            flow.conclude(FlowVerdict::Blocked);
            // Best effort: the refusal stands whether or not the client reads it.
            let _ = timeout(limit, client.write_all(&ACCESS_DENIED)).await;
            let _ = timeout(limit, client.shutdown()).await;
            return;
        }
    };
    if upstream.write_all(&bytes).await.is_err() {
        return;
    }
    let copied =
        copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a tunnel ended early");
    }
}

/// Reads until the ClientHello is complete; returns it with all that came, and the server's name.
async fn read_client_hello(client: &mut TokioIo<Upgraded>) -> Result<(Vec<u8>, Host), Refused> {
    let mut bytes = Vec::with_capacity(2_048);
    loop {
        let room = (CLIENT_HELLO_BYTES_MAX - bytes.len()) as u64;
        match client.take(room).read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(Refused::Incomplete),
            Ok(_) => {}
        }
        match client_hello::sni(&bytes) {
            ClientHello::NeedMore => {}
            ClientHello::Sni(name) => return Ok((bytes, name)),
            ClientHello::NoSni => return Err(Refused::NoName),
            ClientHello::NotTls => return Err(Refused::NotTls),
            ClientHello::Malformed(flaw) => return Err(flaw.into()),
        }
    }
}

fn judge(flows: &Flows, flow: &Flow, name: &Host) -> Result<(), Refused> {
    if *name == flow.target.host {
        return Ok(());
    }
    if let Some(cause) = flow.refusal_of(name) {
        return Err(Refused::Ordered(cause));
    }
    // Listed, and not merely learned or observed: a name that differs is never an accident.
    match flows.policy().allowlist.allows(name, flow.target.port) {
        Some(_) => Ok(()),
        None => Err(Refused::OtherName { name: name.clone() }),
    }
}
