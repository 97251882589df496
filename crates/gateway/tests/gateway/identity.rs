//! Who is behind a connection: proved by a credential, never by a name.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use estoppel_api::CredentialRequest;
use estoppel_gateway::{
    Identity,
    credential::{Credential, mint},
};
use estoppel_model::{Clock as _, EntityId, FlowVerdict::Blocked, Subject, SystemClock};

use crate::support::{Answers, Control, Harness, Sink, config};

async fn harness() -> (Harness, Sink) {
    let sink = Sink::start(Answers::Http).await;
    let server = Control::start().await;
    let mut config = config(&[("good.example:80", sink.address)]);
    let server_key = server.client.gateway_policy().await.unwrap().key;
    config.identity = Identity::Credential { server_key };
    (server.gateway(config).await, sink)
}

/// A credential that the server mints.
async fn password(harness: &Harness, session: &str) -> String {
    let subject = Subject::session(EntityId::new(session).unwrap());
    let request = CredentialRequest { subject, seconds: Some(60) };
    harness.server.client.mint_credential(&request).await.unwrap().credential
}

/// One that somebody else has signed.
fn forged(session: &str) -> String {
    let subject = Subject::session(EntityId::new(session).unwrap());
    let exp = SystemClock.now() + Duration::from_secs(60);
    let key = SigningKey::from_bytes(&[2; 32]);
    mint(&key, &Credential { subject, exp }).unwrap().expose().clone()
}

async fn fetch(harness: &Harness, user: &str, password: &str) -> String {
    let basic = STANDARD.encode(format!("{user}:{password}"));
    let request = format!(
        "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\
         Proxy-Authorization: Basic {basic}\r\nConnection: close\r\n\r\n"
    );
    harness.exchange(&request).await
}

#[tokio::test]
async fn a_credential_names_the_session() {
    let (harness, sink) = harness().await;
    let (one, two) = (password(&harness, "one").await, password(&harness, "two").await);
    let answer = fetch(&harness, "estoppel", &one).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let rows = harness.orders.rows_when(|rows| rows.len() == 1).await;
    assert_eq!(rows[0].session_id.as_ref().unwrap().as_str(), "one");
    assert!(!sink.text().to_lowercase().contains("proxy-authorization"), "{}", sink.text());
    // An order reaches the session that the credential names.
    harness.halt("session:one").await;
    assert!(fetch(&harness, "estoppel", &one).await.starts_with("HTTP/1.1 403"));
    assert!(fetch(&harness, "estoppel", &two).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn whoever_proves_nothing_is_refused_and_recorded() {
    let (harness, sink) = harness().await;
    let (one, two) = (password(&harness, "one").await, password(&harness, "two").await);
    let mut attempts = vec![harness.fetch("good.example").await];
    attempts.push(fetch(&harness, "estoppel", &forged("one")).await);
    attempts.push(fetch(&harness, "estoppel", "session:one").await);
    attempts.push(fetch(&harness, "one", &one).await);
    // The session of one credential under the signature of another.
    let (payload, _) = one.rsplit_once('.').unwrap();
    let (_, signature) = two.rsplit_once('.').unwrap();
    attempts.push(fetch(&harness, "estoppel", &format!("{payload}.{signature}")).await);
    let connect = "CONNECT good.example:443 HTTP/1.1\r\nHost: good.example:443\r\n\r\n";
    attempts.push(harness.exchange(connect).await);
    for answer in &attempts {
        assert!(answer.starts_with("HTTP/1.1 407"), "{answer}");
        assert!(answer.contains("proxy-authenticate: Basic"), "{answer}");
    }
    assert_eq!(harness.orders.verdicts(attempts.len()).await, vec![Blocked; attempts.len()]);
    let row = &harness.orders.rows()[0];
    assert!(row.session_id.is_none());
    assert_eq!(row.destination.as_ref().unwrap().raw(), "good.example");
    assert_eq!(sink.connections(), 0);
}
