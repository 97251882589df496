//! `GET /v1/stream`: the WebSocket of an enforcer.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use estoppel_api::Role;
use estoppel_killswitch::{
    frame::{FRAME_BYTES_MAX, ToServer},
    server::Identity,
};
use estoppel_model::{Kind, Scope};

use super::{extract::Caller, problem::Failure};
use crate::Server;

/// Bytes of a connection's buffers while nothing is in them: thousands are idle.
const BUFFER_BYTES: usize = 2 * 1024;
/// How long one frame may take to go out before the enforcer is taken for gone.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long the last word may take to go out.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long an enforcer may be silent; its pings come every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How soon a stream ends whose token has expired; one that is revoked ends it at once.
const TOKEN_CHECK: Duration = Duration::from_secs(2);

/// Opens the stream of an enforcer.
#[utoipa::path(get, path = "/v1/stream", tag = "enforcers", responses((status = 101)))]
pub(crate) async fn get(
    State(server): State<Server>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    caller.machine_or(&[Role::Agent, Role::Enforcer], Role::Admin)?;
    // People must still get in when every enforcer that there is has come.
    let Ok(place) = Arc::clone(server.stream_places()).try_acquire_owned() else {
        return Err(Failure::Unavailable(
            "this server has as many enforcers as its file descriptors permit (ulimit -n): raise \
             the limit, or let some connect to another server"
                .to_owned(),
        ));
    };
    let upgrade = upgrade
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(FRAME_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| {
        let tasks = server.tasks().clone();
        // The upgrade's own task must outlive no shutdown: the tracked one does the work.
        async move {
            let _ = tasks.spawn(serve(server, caller, socket)).await;
            drop(place);
        }
    }))
}

async fn serve(server: Server, caller: Caller, mut socket: WebSocket) {
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
            message = socket.recv() => {
                heard = tokio::time::Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => {
                        let Ok(frame) = serde_json::from_str::<ToServer>(&text) else {
                            break "it sent what is no frame";
                        };
                        if server.switchboard().frame(connection, frame).await.is_err() {
                            break "the server is ending";
                        }
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => break "it sent what is no frame",
                    Some(Ok(Message::Close(_))) | None => break "it left",
                    Some(Err(_)) => break "the connection broke",
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
    farewell(&server, &caller, &mut socket).await;
    tracing::debug!(connection = connection.0, who = %caller.0.actor, token = %caller.0.token, reason, "a stream has ended");
    server.switchboard().disconnect(connection).await;
}

/// Says why the server ends a stream, where that is no fault of the connection: an enforcer goes to
/// the next server at once when this one drains.
async fn farewell(server: &Server, caller: &Caller, socket: &mut WebSocket) {
    let (code, reason) = if server.is_draining() {
        (close_code::RESTART, "the server is ending")
    } else if !caller.0.still_good(server.clock().now()) {
        (close_code::POLICY, "the token was revoked or has expired")
    } else {
        return;
    };
    let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
    // Who does not read learns it from the connection's end.
    let _ = tokio::time::timeout(FAREWELL_MAX, socket.send(Message::Close(Some(frame)))).await;
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
