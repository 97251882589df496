//! Estoppel's stream, as far as a subscriber needs it: RFC 6455 frames over plaintext.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{
        Confirmation, EnforcerKind, Hello, PROTOCOL, SetDigest, Settlement, Stage, ToEnforcer,
        ToServer,
    },
};
use estoppel_model::{Clock as _, EnforcerId, OrderBody, OrderId, SystemClock};

use super::{Heard, Inbox, Speaker};

/// Text frame, last of its message.
const TEXT: u8 = 0x81;
/// The bit that says that a mask follows.
const MASKED: u8 = 0x80;
/// Until the server says how often.
const PING: Duration = Duration::from_secs(3);

pub(super) struct Stream {
    upgrade: String,
    empty: SetDigest,
    enforcers: Vec<EnforcerId>,
    every: Duration,
    nonce: u64,
    /// The last order that was told, as it came: it is the same for all, and each real enforcer
    /// reads it on a machine of its own.
    told: Option<Told>,
}

struct Told {
    text: String,
    order: OrderId,
    answer: Vec<u8>,
}

impl Stream {
    pub(super) fn new(address: SocketAddr, token: &str) -> Result<Self> {
        Ok(Self {
            upgrade: format!(
                "GET /v1/stream HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
                 Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
            empty: OrderSet::default().digest(&Audience::Everyone).summary(),
            enforcers: Vec::new(),
            every: PING,
            nonce: 0,
            told: None,
        })
    }

    fn heard(&mut self, text: &str, answer: &mut Vec<u8>) -> Result<Heard> {
        if let Some(told) = self.told.as_ref().filter(|told| told.text == text) {
            answer.extend_from_slice(&told.answer);
            return Ok(Heard::Told(told.order.to_string()));
        }
        // By far the most frequent, and the same for all: not worth parsing each time.
        if text.starts_with(r#"{"frame":"pong""#) {
            return Ok(Heard::Other);
        }
        match serde_json::from_str::<ToEnforcer>(text).context("a frame")? {
            ToEnforcer::Welcome(welcome) => {
                self.every = Duration::from_millis(welcome.ping_ms);
                if welcome.buckets.is_some() {
                    let buckets: BTreeMap<_, _> =
                        (0..=u8::MAX).map(|at| (at, Vec::new())).collect();
                    frame(&ToServer::Have { buckets, more: false }, answer)?;
                }
                Ok(Heard::Other)
            }
            ToEnforcer::InSync => {
                // The first ping at once, for a lease.
                answer.extend(self.beat());
                Ok(Heard::Subscribed)
            }
            ToEnforcer::Orders { orders } => {
                let [signed] = &orders[..] else { return Ok(Heard::Other) };
                let order = signed.parse()?;
                if !matches!(order.body, OrderBody::Halt { .. }) {
                    return Ok(Heard::Other);
                }
                let words = confirmation(order.id)?;
                answer.extend_from_slice(&words);
                self.told = Some(Told { text: text.to_owned(), order: order.id, answer: words });
                Ok(Heard::Told(order.id.to_string()))
            }
            ToEnforcer::Refused { reason } => bail!("the server refuses: {reason}"),
            ToEnforcer::Want { .. }
            | ToEnforcer::Pong { .. }
            | ToEnforcer::Action(_)
            | ToEnforcer::Unknown => Ok(Heard::Other),
        }
    }
}

impl Speaker for Stream {
    fn open(&mut self, subscriber: usize) -> Vec<u8> {
        while self.enforcers.len() <= subscriber {
            self.enforcers.push(EnforcerId::new());
        }
        let enforcer = self.enforcers.get(subscriber).copied().unwrap_or_else(EnforcerId::new);
        let hello = Hello {
            protocol: PROTOCOL,
            enforcer,
            kind: EnforcerKind::Guard,
            name: format!("guard {subscriber}"),
            subjects: Vec::new(),
            key: format!("{subscriber:064x}"),
            set: self.empty.clone(),
            checkpoint: None,
            gaps: Vec::new(),
        };
        let mut words = self.upgrade.clone().into_bytes();
        // Plain data, which always serialises.
        let _ = frame(&ToServer::Hello(Box::new(hello)), &mut words);
        words
    }

    fn take(&mut self, inbox: &mut Inbox, answer: &mut Vec<u8>) -> Result<Option<Heard>> {
        if !inbox.upgraded {
            let Some(end) = inbox.bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                return Ok(None);
            };
            if !inbox.bytes.starts_with(b"HTTP/1.1 101") {
                bail!("no upgrade: {}", String::from_utf8_lossy(&inbox.bytes).escape_debug());
            }
            inbox.bytes.drain(..end + 4);
            inbox.upgraded = true;
        }
        let Some((opcode, payload, whole)) = whole(&inbox.bytes) else { return Ok(None) };
        let heard = match opcode {
            TEXT => self.heard(std::str::from_utf8(payload)?, answer)?,
            _ => Heard::Other,
        };
        inbox.bytes.drain(..whole);
        Ok(Some(heard))
    }

    fn every(&self) -> Option<Duration> {
        Some(self.every)
    }

    fn beat(&mut self) -> Vec<u8> {
        self.nonce += 1;
        let mut words = Vec::new();
        // Plain data, which always serialises.
        let _ = frame(&ToServer::Ping { nonce: self.nonce }, &mut words);
        words
    }
}

/// The word of a guard that has nothing in flight: it refuses, and has settled.
fn confirmation(order: OrderId) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    let word = Confirmation {
        order,
        stage: Stage::Settled,
        at: SystemClock.now(),
        after_us: 0,
        settlement: Settlement::default(),
    };
    frame(&ToServer::Confirm(Box::new(word)), &mut said)?;
    Ok(said)
}

/// The first frame of an unmasked peer: its first byte, its payload, and its length with the header.
fn whole(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (head, length): (usize, usize) = match second {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    let whole = head.checked_add(length)?;
    Some((first, bytes.get(head..whole)?, whole))
}

/// Adds a frame, masked with zeros as RFC 6455 section 5.3 lets a client that hides nothing.
fn frame(frame: &ToServer, words: &mut Vec<u8>) -> Result<()> {
    let text = serde_json::to_vec(frame)?;
    words.push(TEXT);
    match text.len() {
        short @ ..126 => words.push(MASKED | u8::try_from(short)?),
        long => {
            words.push(MASKED | 126);
            words.extend(u16::try_from(long)?.to_be_bytes());
        }
    }
    words.extend([0; 4]);
    words.extend(text);
    Ok(())
}
