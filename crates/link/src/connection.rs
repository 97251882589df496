//! The WebSocket to one of the servers, made again whenever it is lost.
//!
//! Servers are tried in turn, at once while there is one that was not tried in this round, then
//! after a pause with jitter that doubles up to two seconds: short beside a lease, and no stampede
//! of thousands of enforcers when a server comes back.

use std::{sync::Arc, time::Duration};

use estoppel_api::Trust;
use estoppel_killswitch::{
    enforcer::Input,
    frame::{FRAME_BYTES_MAX, ToEnforcer, ToServer},
};
use estoppel_model::{Secret, Untrusted};
use futures_util::{FutureExt as _, Sink, SinkExt as _, Stream, StreamExt as _};
use rand::RngExt as _;
use tokio_tungstenite::tungstenite::{
    self, Message,
    client::IntoClientRequest as _,
    handshake::client::Request,
    http::{HeaderValue, header},
    protocol::WebSocketConfig,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{LinkError, station::Station};

/// Longest time for name resolution, TCP, TLS and the upgrade together.
const CONNECT_MAX: Duration = Duration::from_secs(4);
/// Longest time that one frame may take to leave.
const WRITE_MAX: Duration = Duration::from_secs(4);
/// Bytes that are read at once; an agent's process should not pay for more.
const BUFFER_BYTES: usize = 16 * 1024;
/// Longest time for the closing handshake.
const CLOSE_MAX: Duration = Duration::from_millis(250);
const STOPPED: &str = "stopped";
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Connects to the servers in turn.
pub(crate) struct Connector {
    servers: Vec<Server>,
    trust: Trust,
}

struct Server {
    url: Url,
    request: Request,
}

impl Connector {
    pub(crate) fn new(
        servers: &[Url],
        token: &Secret<String>,
        trust: Trust,
    ) -> Result<Self, LinkError> {
        if servers.is_empty() {
            return Err(LinkError::NoServer);
        }
        // With TLS the process needs a provider; one that is set already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()))
            .map_err(|_| LinkError::Token)?;
        bearer.set_sensitive(true);
        let server = |url: &Url| {
            let wrong = || LinkError::ServerUrl { url: url.to_string() };
            let mut stream = url.join("/v1/stream").map_err(|_| wrong())?;
            let scheme = match url.scheme() {
                "http" => "ws",
                "https" => "wss",
                _ => return Err(wrong()),
            };
            stream.set_scheme(scheme).map_err(|()| wrong())?;
            let mut request = stream.as_str().into_client_request().map_err(|_| wrong())?;
            request.headers_mut().insert(header::AUTHORIZATION, bearer.clone());
            Ok(Server { url: url.clone(), request })
        };
        Ok(Self { servers: servers.iter().map(server).collect::<Result<_, _>>()?, trust })
    }

    pub(crate) async fn run(self, station: Arc<Station>, stop: CancellationToken) {
        let mut failures = 0_usize;
        for server in self.servers.iter().cycle() {
            let problem = session(server, &self.trust, &station, &stop).await;
            let said = station.problem().as_ref() == Some(&problem);
            if station.disconnected(problem.clone()) {
                failures = 0;
            }
            // That we end ourselves is nothing to warn of.
            if !stop.is_cancelled() && (!said || failures == 0) {
                tracing::warn!(server = %server.url, problem, "not connected");
            }
            let pause = reconnect_pause(failures, self.servers.len());
            failures += 1;
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// How long an enforcer waits before it connects again, after this many failures in a row.
///
/// Zero while there is a server that was not tried in this round; then 50 ms, doubled by the round up
/// to 2 s, of which a random half is left out.
pub fn reconnect_pause(failures: usize, servers: usize) -> Duration {
    // Within a round the next server is tried at once.
    if !(failures + 1).is_multiple_of(servers) {
        return Duration::ZERO;
    }
    let round = u32::try_from(failures / servers).unwrap_or(u32::MAX).min(16);
    let longest = PAUSE_MIN.saturating_mul(1 << round).min(PAUSE_MAX);
    rand::rng().random_range(longest / 2..=longest)
}

/// One connection from its making to its end; returns why it ended.
async fn session(
    server: &Server,
    trust: &Trust,
    station: &Station,
    stop: &CancellationToken,
) -> String {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let connecting = tokio_tungstenite::connect_async_tls_with_config(
        server.request.clone(),
        Some(config),
        true,
        trust.rustls().map(tokio_tungstenite::Connector::Rustls),
    );
    let connecting = tokio::time::timeout(CONNECT_MAX, connecting);
    let socket = match stop.run_until_cancelled(connecting).await {
        None => return STOPPED.to_owned(),
        Some(result) => result,
    };
    let socket = match socket {
        Ok(Ok((socket, _response))) => socket,
        Ok(Err(error)) => return unreachable(&server.url, &error),
        Err(_) => return format!("{}: no answer within {CONNECT_MAX:?}", server.url),
    };
    let (mut sink, mut stream) = socket.split();
    // What an earlier connection was hung up for is no reason to end this one.
    let _ = station.hang_up.notified().now_or_never();
    station.connected(&server.url);
    let reason = tokio::select! {
        reason = read(&mut stream, station) => reason,
        reason = write(&mut sink, station) => reason,
        () = station.hang_up.notified() => {
            station.problem().unwrap_or_else(|| "the connection is given up".to_owned())
        }
        () = stop.cancelled() => STOPPED.to_owned(),
    };
    // The last words, such as what an action came to, are worth a moment.
    let _ = tokio::time::timeout(CLOSE_MAX, async {
        while let Some(frame) = station.next_frame() {
            feed(&mut sink, &frame).await?;
        }
        sink.close().await
    })
    .await;
    reason
}

fn unreachable(url: &Url, error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Http(response) => match response.status().as_u16() {
            401 => format!("{url}: the token is not known there, or has expired"),
            403 => format!("{url}: the token is not an enforcer's"),
            400 if url.scheme() == "http" => {
                format!("{url}: answered 400 instead of a stream: write https:// if it speaks TLS")
            }
            status => format!("{url}: answered {status} instead of a stream"),
        },
        error @ tungstenite::Error::Io(_) if error.to_string().contains("UnknownIssuer") => {
            format!("{url}: {error}: for a private CA set ESTOPPEL_CA to its certificate")
        }
        error => format!("{url}: {error}"),
    }
}

async fn read<S>(stream: &mut S, station: &Station) -> String
where
    S: Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
{
    loop {
        let text = match stream.next().await {
            Some(Ok(Message::Text(text))) => text,
            // Pings of the protocol are answered by the library.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Binary(_))) => return "the server sent no text".to_owned(),
            Some(Ok(Message::Close(Some(frame)))) => {
                let reason = Untrusted::new(frame.reason.as_str()).inline(100);
                return format!("the server has closed: {reason}");
            }
            Some(Ok(Message::Close(None))) | None => return "the server has closed".to_owned(),
            Some(Err(error)) => return format!("the connection broke: {error}"),
        };
        match serde_json::from_str::<ToEnforcer>(&text) {
            Ok(frame) => station.step(Input::Frame(frame)),
            Err(error) => return format!("the server sent no frame: {error}"),
        }
    }
}

async fn write<S>(sink: &mut S, station: &Station) -> String
where
    S: Sink<Message, Error = tungstenite::Error> + Unpin,
{
    loop {
        let written = async {
            match station.next_frame() {
                Some(frame) => feed(sink, &frame).await.map(|()| true),
                None => sink.flush().await.map(|()| false),
            }
        };
        match tokio::time::timeout(WRITE_MAX, written).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => station.frames.notified().await,
            Ok(Err(error)) => return format!("the connection broke: {error}"),
            Err(_) => return "the server takes no frames".to_owned(),
        }
    }
}

async fn feed<S>(sink: &mut S, frame: &ToServer) -> Result<(), tungstenite::Error>
where
    S: Sink<Message, Error = tungstenite::Error> + Unpin,
{
    match serde_json::to_string(frame) {
        Ok(text) => sink.feed(Message::text(text)).await,
        Err(error) => {
            tracing::error!(%error, "a frame cannot be written and is left out");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_the_round_and_stay_below_a_lease() {
        assert_eq!(reconnect_pause(0, 3), Duration::ZERO);
        assert_eq!(reconnect_pause(1, 3), Duration::ZERO);
        assert!((PAUSE_MIN / 2..=PAUSE_MIN).contains(&reconnect_pause(2, 3)));
        assert_eq!(reconnect_pause(3, 3), Duration::ZERO);
        assert!((PAUSE_MIN..=PAUSE_MIN * 2).contains(&reconnect_pause(5, 3)));
        assert!((PAUSE_MIN / 2..=PAUSE_MIN).contains(&reconnect_pause(0, 1)));
        for failures in [10, 1_000, usize::MAX - 1] {
            assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&reconnect_pause(failures, 1)));
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        let check = |servers: &[&str], token: &str| {
            let servers: Vec<Url> = servers.iter().map(|url| url.parse().unwrap()).collect();
            Connector::new(&servers, &Secret::new(token.to_owned()), Trust::system())
                .err()
                .map(|e| e.to_string())
        };
        assert_eq!(check(&["http://127.0.0.1:1", "https://[::1]:2"], "t"), None);
        assert!(check(&[], "t").unwrap().contains("ESTOPPEL_URL"));
        assert!(check(&["ftp://x"], "t").unwrap().contains("http://HOST:PORT"));
        let error = check(&["http://x"], "a\nb").unwrap();
        assert!(error.contains("header") && !error.contains("a\nb"), "{error}");
    }
}
