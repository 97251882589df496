//! The whole way: a halt given to a server, over the stream, to the reset and back to the
//! confirmation that the server counts; the rows by the uploader.

use estoppel_model::FlowVerdict;
use tokio::io::AsyncWriteExt as _;

use crate::support::{Answers, Harness, SESSION, Sink, client_hello, config, reset};

/// Rows K7, P4, P5: from the halt to both confirmations and the last row, with one count of bytes.
#[tokio::test]
async fn a_halt_travels_from_the_server_to_the_reset_and_back() {
    let sink = Sink::start(Answers::Nothing).await;
    let harness = Harness::start(config(&[("evil.example:443", sink.address)])).await;
    let mut client = harness.tunnel("evil.example:443").await;
    let hello = client_hello("evil.example");
    client.write_all(&hello).await.unwrap();
    sink.received(hello.len()).await;

    let halt = harness.halt(&format!("session:{SESSION}")).await;
    reset(&mut client).await;
    sink.ended(1).await;
    let status = harness.status_when(halt.id, |status| status.settled == 1).await;
    assert_eq!((status.expected, status.refusing, status.by_lease), (1, 1, 0));
    let word = &status.enforcers[0];
    assert_eq!((word.kind.as_str(), word.name.as_str()), ("gateway", "gateway-1"));
    assert!(word.witness && word.settled_after_us >= word.refusing_after_us, "{word:?}");
    assert_eq!(word.settlement["connections_cut"], 1, "{word:?}");
    assert_eq!(word.settlement["bytes_out"], sink.count() as u64, "{word:?}");
    let rows = harness.orders.rows_when(|rows| !rows.is_empty()).await;
    assert_eq!(rows[0].verdict, Some(FlowVerdict::Cut));
    assert_eq!(rows[0].bytes_sent, Some(sink.count() as u64));
    harness.delivered(1).await;
}
