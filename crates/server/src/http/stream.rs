//! `GET /v1/stream`: the WebSocket of an enforcer.
//!
//! Streams have threads of their own. An order wakes each of thousands at once: whoever gives it, or
//! the next one, must not stand in line behind them.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use estoppel_api::Role;
use estoppel_killswitch::{
    frame::{FRAME_BYTES_MAX, ToServer},
    server::{ConnectionId, Identity},
};
use estoppel_model::{Kind, Scope};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Runtime,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        handshake::server::create_response_with_body,
        protocol::{CloseFrame, Role as Side, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{extract::Caller, problem::Failure};
use crate::Server;

/// Bytes of a connection's buffers while nothing is in them: thousands are idle.
const BUFFER_BYTES: usize = 1024;
/// How long one frame may take to go out before the enforcer is taken for gone.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long the last word may take to go out.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long an enforcer may be silent; its pings come every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How soon a stream ends whose token has expired; one that is revoked ends it at once.
const TOKEN_CHECK: Duration = Duration::from_secs(2);
/// How long the answer that makes a connection a stream may take to go out.
const UPGRADE_MAX: Duration = Duration::from_secs(10);
/// Turns of streams between two looks at the sockets: an order goes out to all, or nearly, before the
/// first confirmations are read. Nothing waits for it while the threads are idle.
const TURNS: u32 = 2_048;

/// The threads of the streams.
///
/// # Errors
/// When they cannot be started.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("streams")
        .event_interval(TURNS)
        .enable_all()
        .build()
}

/// Opens the stream of an enforcer.
#[utoipa::path(get, path = "/v1/stream", tag = "enforcers", responses((status = 101)))]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
    mut request: Request,
) -> Result<Response, Failure> {
    caller.machine_or(&[Role::Agent, Role::Enforcer], Role::Admin)?;
    let response = create_response_with_body(&request, Body::empty)
        .map_err(|error| Failure::Malformed(format!("this address is a WebSocket: {error}")))?;
    // People must still get in when every enforcer that there is has come.
    let Ok(place) = Arc::clone(server.stream_places()).try_acquire_owned() else {
        return Err(Failure::Unavailable(
            "this server has as many enforcers as its file descriptors permit (ulimit -n): raise \
             the limit, or let some connect to another server"
                .to_owned(),
        ));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (tasks, streams) = (server.tasks().clone(), server.streams().clone());
    server.tasks().clone().spawn(async move {
        match tokio::time::timeout(UPGRADE_MAX, upgrade).await {
            Ok(Ok(upgraded)) => {
                let stream = async move {
                    open(server, caller, upgraded).await;
                    drop(place);
                };
                tasks.spawn_on(stream, &streams);
            }
            Ok(Err(error)) => tracing::debug!(%error, "a connection became no stream"),
            Err(_) => tracing::debug!("a connection took too long to become a stream"),
        }
    });
    Ok(response)
}

/// Serves a connection on the threads of the streams, which have their own look at the sockets:
/// where the kernel's socket is known, it moves there.
async fn open(server: Server, caller: Caller, upgraded: Upgraded) {
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(plain) => {
            let moved = plain.io.into_inner().into_std().and_then(TcpStream::from_std);
            match moved {
                Ok(socket) => serve(server, caller, socket, plain.read_buf.into()).await,
                Err(error) => tracing::debug!(%error, "a stream ended at once"),
            }
        }
        Err(secured) => serve(server, caller, TokioIo::new(secured), Vec::new()).await,
    }
}

/// Serves a stream to its end. `read` is what has come of it already.
async fn serve<S>(server: Server, caller: Caller, socket: S, read: Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let mut socket =
        WebSocketStream::from_partially_read(socket, read, Side::Server, Some(config)).await;
    let identity = identity(&caller);
    let Ok((connection, mut outgoing)) = server.switchboard().connect(identity).await else {
        return;
    };
    let mut check = tokio::time::interval(TOKEN_CHECK);
    let mut heard = tokio::time::Instant::now();
    // Made once: each of them takes a lock that all streams share.
    let (mut revoked, mut draining) = (pin!(caller.0.revoked()), pin!(server.draining()));
    let reason = loop {
        tokio::select! {
            biased;
            message = outgoing.recv() => {
                let Some(message) = message else { break "let go" };
                match tokio::time::timeout(WRITE_MAX, socket.send(message)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break "the connection broke",
                    Err(_) => break "it does not read",
                }
            }
            message = socket.next() => {
                heard = tokio::time::Instant::now();
                if let Err(reason) = hear(&server, connection, message).await {
                    break reason;
                }
            }
            _ = check.tick() => {
                if !caller.0.still_good(server.clock().now()) {
                    break "its token has expired";
                }
                if heard.elapsed() > SILENCE_MAX {
                    break "it has been silent for too long";
                }
            }
            () = &mut revoked => break "its token was revoked",
            () = &mut draining => break "the server is ending",
        }
    };
    if let Some(frame) = farewell(&server, &caller) {
        // Who does not read learns it from the connection's end.
        let _ = tokio::time::timeout(FAREWELL_MAX, socket.send(Message::Close(Some(frame)))).await;
    }
    tracing::debug!(connection = connection.0, who = %caller.0.actor, token = %caller.0.token, reason, "a stream has ended");
    server.switchboard().disconnect(connection).await;
}

/// Takes in what came of an enforcer, or says why its stream ends.
async fn hear(
    server: &Server,
    connection: ConnectionId,
    message: Option<Result<Message, Error>>,
) -> Result<(), &'static str> {
    match message {
        Some(Ok(Message::Text(text))) => {
            let frame = ToServer::read(&text).map_err(|_| "it sent what is no frame")?;
            let heard = server.switchboard().frame(connection, frame).await;
            heard.map_err(|_| "the server is ending")
        }
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
        Some(Ok(Message::Binary(_) | Message::Frame(_))) => Err("it sent what is no frame"),
        Some(Ok(Message::Close(_))) | None => Err("it left"),
        Some(Err(_)) => Err("the connection broke"),
    }
}

/// Why the server ends a stream, where that is no fault of the connection: an enforcer goes to the
/// next server at once when this one drains.
fn farewell(server: &Server, caller: &Caller) -> Option<CloseFrame> {
    let (code, reason) = if server.is_draining() {
        (CloseCode::Restart, "the server is ending")
    } else if !caller.0.still_good(server.clock().now()) {
        (CloseCode::Policy, "the token was revoked or has expired")
    } else {
        return None;
    };
    Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) })
}

/// What a token lets its bearer do on the stream. An agent's own process may hand back halts of
/// that agent alone.
fn identity(caller: &Caller) -> Identity {
    let own = estoppel_model::EntityId::new(caller.0.actor.as_str());
    let scopes = match (caller.0.role, own) {
        (Role::Agent, Ok(own)) => Some(Scope::entity(Kind::Agent, own).into()),
        _ => None,
    };
    Identity { actor: caller.0.actor.clone(), tenant: caller.0.tenant.clone(), scopes }
}
