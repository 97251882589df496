//! Clients that are slow, greedy, ambiguous or plainly wrong.

use std::time::Duration;

use estoppel_model::FlowVerdict::Blocked;
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    Answers, Harness, PATIENCE, Sink, answer, client_hello, config, ending, head, reset,
};

async fn harness() -> (Harness, Sink) {
    let sink = Sink::start(Answers::Http).await;
    (Harness::start(config(&[("good.example:80", sink.address)])).await, sink)
}

/// What has two readings is refused, and no byte of it reaches the destination.
#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let (harness, sink) = harness().await;
    let line = "POST http://good.example/ HTTP/1.1\r\n";
    let host = "Host: good.example\r\n";
    let cases = [
        format!("{line}Host: evil.example\r\n\r\n"),
        format!("{line}{host}{host}\r\n"),
        format!("{line}{host}Host: evil.example\r\n\r\n"),
        format!("{line}\r\n"),
        format!("{line}Host: good.example:81\r\n\r\n"),
        format!("{line}{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        format!("{line}{host}Content-Length: +5\r\n\r\nhello"),
        format!("{line}{host}Transfer-Encoding: gzip\r\n\r\n"),
        format!("{line}{host}Transfer-Encoding: chunked, identity\r\n\r\n"),
        format!("{line}{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\n"),
        format!("GET https://good.example/ HTTP/1.1\r\n{host}\r\n"),
        format!("GET ftp://good.example/ HTTP/1.1\r\n{host}\r\n"),
        "GET http://a@good.example/ HTTP/1.1\r\nHost: a@good.example\r\n\r\n".to_owned(),
        "GET http://good.example:0/ HTTP/1.1\r\nHost: good.example:0\r\n\r\n".to_owned(),
        "GET http://good%2eexample/ HTTP/1.1\r\nHost: good%2eexample\r\n\r\n".to_owned(),
        "CONNECT good.example HTTP/1.1\r\nHost: good.example\r\n\r\n".to_owned(),
        "CONNECT http://good.example:443/ HTTP/1.1\r\nHost: good.example:443\r\n\r\n".to_owned(),
        "GET http://good.example/ HTTP/1.1\nHost : good.example\r\n\r\n".to_owned(),
        "\x16\x03\x01\x00\x05hello\r\n\r\n".to_owned(),
    ];
    for request in &cases {
        let answer = harness.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
    }
    assert_eq!((sink.connections(), harness.sent()), (0, 0));
    let rows = harness.orders.rows();
    assert!(!rows.is_empty() && rows.iter().all(|row| row.verdict == Some(Blocked)));
}

/// A message with two lengths is read by its chunks; what goes on has one, and ends there.
#[tokio::test]
async fn a_smuggled_request_stays_behind() {
    let lengths = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ];
    for lengths in lengths {
        let (harness, sink) = harness().await;
        let request = format!(
            "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\n{lengths}\r\n0\r\n\r\n\
             GET http://good.example/smuggled HTTP/1.1\r\nHost: good.example\r\n\r\n"
        );
        // The rest is never read, so the connection ends with a reset.
        let mut client = harness.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let _ = ending(&mut client).await;
        assert!(!sink.text().contains("smuggled"), "{}", sink.text());
        assert!(!sink.text().to_lowercase().contains("content-length"), "{}", sink.text());
    }
}

/// Fields that belong to a hop, or that a client names as such, stay behind.
#[tokio::test]
async fn only_the_destinations_own_fields_go_on() {
    let (harness, sink) = harness().await;
    let answer = harness
        .exchange(
            "GET http://good.example/a?b HTTP/1.1\r\nHost: good.example\r\n\
             Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\n\
             Connection: close, X-Hop, Host\r\nX-Hop: 1\r\nTE: trailers\r\nUpgrade: websocket\r\n\
             X-Kept: 2\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_lowercase().contains("keep-alive: x"), "{answer}");
    let got = sink.text().to_lowercase();
    assert!(got.starts_with("get /a?b http/1.1\r\n"), "{got}");
    assert!(got.contains("host: good.example") && got.contains("x-kept: 2"), "{got}");
    for field in ["proxy-", "x-hop", "te:", "upgrade", "c2vjcmv0"] {
        assert!(!got.contains(field), "{field} in {got}");
    }
}

/// One connection may carry several requests; each is judged for itself.
#[tokio::test]
async fn a_connection_is_kept_and_each_request_judged() {
    let (harness, sink) = harness().await;
    let mut client = harness.connect().await;
    let request = b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n";
    for _ in 0..2 {
        client.write_all(request).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
        let mut body = [0; 2];
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut body).await.unwrap();
    }
    harness.halt("global").await;
    client.write_all(request).await.unwrap();
    // Either the request meets the halt, or the flow before it is still being let go of and takes
    // the connection along.
    match ending(&mut client).await {
        Ok(()) => assert_eq!(sink.connections(), 2),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(sink.connections(), 2);
}

#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let mut config = config(&[]);
    config.limits.head_timeout = Duration::from_millis(200);
    let harness = Harness::start(config).await;
    let mut client = harness.connect().await;
    client.write_all(b"GET http://good.example/ HTTP/1.1\r\nHost: go").await.unwrap();
    let mut silent = harness.connect().await;
    // Well below the default bound, so that it is this one that held.
    for client in [&mut client, &mut silent] {
        let _ = tokio::time::timeout(Duration::from_secs(10), ending(client)).await.unwrap();
    }
}

#[tokio::test]
async fn a_head_has_a_largest_size() {
    let (harness, sink) = harness().await;
    let line = "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n";
    for head in [
        format!("{line}X: {}\r\n\r\n", "x".repeat(200_000)),
        format!("{line}{}\r\n", "X: y\r\n".repeat(1_000)),
        format!("GET http://good.example/{} HTTP/1.1\r\n", "x".repeat(200_000)),
    ] {
        let mut client = harness.connect().await;
        // The gateway may hang up in the middle of it.
        let _ = client.write_all(head.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut bytes).await;
        let answer = String::from_utf8_lossy(&bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn there_is_room_for_so_many_connections() {
    let sink = Sink::start(Answers::Http).await;
    let mut config = config(&[("good.example:80", sink.address)]);
    config.limits.connections_max = 1;
    let harness = Harness::start(config).await;
    let mut first = harness.connect().await;
    let request = b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n";
    first.write_all(request).await.unwrap();
    assert!(head(&mut first).await.starts_with("HTTP/1.1 200"));
    reset(&mut harness.connect().await).await;
    assert_eq!(harness.gateway.stats().connections_open, 1);
    drop(first);
    // The place becomes free when the gateway has seen the end of the first connection.
    loop {
        let mut next = harness.connect().await;
        if next.write_all(request).await.is_ok() {
            let mut byte = [0; 1];
            if let Ok(1) = tokio::io::AsyncReadExt::read(&mut next, &mut byte).await {
                break;
            }
        }
    }
}

/// A tunnel is a connection as long as it is open, and not only until it has become one.
#[tokio::test]
async fn a_tunnel_holds_its_place() {
    let sink = Sink::start(Answers::Nothing).await;
    let mut config = config(&[("good.example:443", sink.address)]);
    config.limits.connections_max = 1;
    let harness = Harness::start(config).await;
    let mut tunnel = harness.tunnel("good.example:443").await;
    let hello = client_hello("good.example");
    tunnel.write_all(&hello).await.unwrap();
    sink.received(hello.len()).await;
    reset(&mut harness.connect().await).await;
    assert_eq!(harness.gateway.stats().connections_open, 1);
    drop(tunnel);
    harness.orders.rows_when(|rows| rows.len() == 1).await;
    let free = async {
        while harness.gateway.stats().connections_open > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap();
}

/// A client that hangs up in the middle of its upload ends the flow, with the bytes counted.
#[tokio::test]
async fn a_client_that_leaves_ends_its_flow() {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = Harness::start(config(&[("good.example:80", sink.address)])).await;
    let mut client = harness.connect().await;
    let request = "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\
                   Content-Length: 1000\r\n\r\nhalf";
    client.write_all(request.as_bytes()).await.unwrap();
    sink.received(1).await;
    drop(client);
    sink.ended(1).await;
    let rows = harness.orders.rows_when(|rows| !rows.is_empty()).await;
    assert_eq!(rows[0].bytes_sent, Some(sink.count() as u64));
}

#[tokio::test]
async fn an_answer_without_an_end_is_passed_on() {
    let (harness, _sink) = harness().await;
    let mut client = harness.connect().await;
    let request = "HEAD http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\
                   Connection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(answer(&mut client).await.starts_with("HTTP/1.1 200"));
}
