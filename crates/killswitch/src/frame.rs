//! The frames of the stream between the server and an enforcer, one JSON text each.
//!
//! A session: the enforcer says [`Hello`]; the server answers [`Welcome`]. When the digests of the
//! two order sets differ, the enforcer lists what it has in the buckets that differ, each side
//! sends what the other lacks, and the server says [`ToEnforcer::InSync`]. From then on orders,
//! pings and answers, confirmations, actions and their outcomes go as they come. A frame of a kind
//! that is not known is skipped; an order of a kind that is not known refuses its scope.

use std::{borrow::Cow, collections::BTreeMap};

use estoppel_model::{EnforcerId, EntityId, IncidentId, OrderId, SignedOrder, Subject, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

use crate::break_glass::GlassUse;

/// Version of these frames.
pub const PROTOCOL: u16 = 1;
/// Longest frame, in bytes; longer ones end the connection.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most orders of one frame; more are sent in several.
pub const ORDERS_PER_FRAME_MAX: usize = 1_000;
/// Most ids of one [`ToServer::Have`], where they fall into several buckets.
pub const IDS_PER_FRAME_MAX: usize = 50_000;
/// Longest text of an order, in bytes.
pub const ORDER_BYTES_MAX: usize = 256 * 1024;

/// Longest [`Welcome::contact`], in bytes.
pub const CONTACT_BYTES_MAX: usize = 300;

/// Which enforcement point an enforcer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcerKind {
    /// In the agent's own process: it *claims*.
    Guard,
    /// In the agent's network path: it *witnesses*.
    Gateway,
    /// On the agent's host: it *witnesses*.
    Host,
}

/// Digest of an order set, as one side sees it: see [`crate::OrderSet::digest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDigest {
    /// How many orders.
    pub count: u64,
    /// SHA-256 over the 256 buckets, lower-case hex.
    pub root: String,
}

/// An enforcer's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Made by the enforcer at its start, kept over reconnects.
    pub enforcer: EnforcerId,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// A name for people, such as the host's.
    pub name: String,
    /// The subjects that it enforces, where it knows them beforehand; empty: whatever it meets.
    pub subjects: Vec<Subject>,
    /// The enforcer's own Ed25519 public key in hex, for orders given on its host while no server
    /// could be reached.
    pub key: String,
    /// The orders that it has.
    pub set: SetDigest,
    /// The last ledger checkpoint that it saw, a C2SP signed note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// What on this machine limits what it can do, in words, such as `no cgroup v2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
}

/// The server's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// The server's Ed25519 public key in hex; an enforcer keeps the first that it saw.
    pub key: String,
    /// The tenant that the enforcer's token is bound to; orders that it gives carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<EntityId>,
    /// How long a lease is.
    pub lease_ms: u64,
    /// How often to ping.
    pub ping_ms: u64,
    /// The 256 bucket digests of the orders that this enforcer may see, each 16 lower-case hex
    /// digits; absent when the sets are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<Vec<String>>,
    /// The ledger's checkpoint, a C2SP signed note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Whom to call, in the owner's words: enforcers show it with each refusal. At most
    /// [`CONTACT_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
}

/// What an enforcer sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum ToServer {
    /// The first frame.
    Hello(Box<Hello>),
    /// The orders that it has in each bucket that differs.
    Have {
        /// Bucket → ids.
        #[serde(deserialize_with = "numbered")]
        buckets: BTreeMap<u8, Vec<OrderId>>,
        /// More such frames follow: a large set is listed in several.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// Orders that the server lacks.
    Orders {
        /// The orders.
        orders: Vec<SignedOrder>,
    },
    /// Asks for a lease; the enforcer remembers when it sent this.
    Ping {
        /// Counts up.
        nonce: u64,
    },
    /// A stage of carrying out an order was reached.
    Confirm(Box<Confirmation>),
    /// What an action came to.
    Outcome(Box<Outcome>),
    /// Agents went on without a lease, by a break-glass; told on each connection, and again with
    /// more.
    BreakGlass(Box<GlassUse>),
    /// A frame of a newer version.
    #[serde(other)]
    Unknown,
}

impl ToServer {
    /// Reads a frame. As by serde, but what thousands say at once is not buffered first, as the fields
    /// of a tagged enum are: a broadcast's confirmations cost the server half as much.
    ///
    /// # Errors
    /// When it is no JSON, or a known frame with wrong fields.
    pub fn read(text: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Tagged<'a> {
            #[serde(borrow)]
            frame: Cow<'a, str>,
        }
        #[derive(Deserialize)]
        struct Ping {
            nonce: u64,
        }
        // As our own enforcers write it.
        if text.starts_with(r#"{"frame":"confirm","#) {
            return serde_json::from_str(text).map(Self::Confirm);
        }
        match &*serde_json::from_str::<Tagged<'_>>(text)?.frame {
            "confirm" => serde_json::from_str(text).map(Self::Confirm),
            "ping" => serde_json::from_str(text).map(|Ping { nonce }| Self::Ping { nonce }),
            _ => serde_json::from_str(text),
        }
    }
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum ToEnforcer {
    /// The answer to the hello.
    Welcome(Box<Welcome>),
    /// Orders, newly given or lacking.
    Orders {
        /// The orders.
        orders: Vec<SignedOrder>,
    },
    /// Asks for orders that the server lacks.
    Want {
        /// Their ids.
        orders: Vec<OrderId>,
    },
    /// All that the server has for this enforcer has been sent.
    InSync,
    /// Answers a ping and so extends the lease.
    Pong {
        /// The ping's.
        nonce: u64,
        /// How old the node's own knowledge of the ledger is; the lease is shorter by this.
        staleness_ms: u64,
    },
    /// Do something now; the same id again is the same action.
    Action(Box<Action>),
    /// Why the server ends the connection.
    Refused {
        /// For people.
        reason: String,
    },
    /// A frame of a newer version.
    #[serde(other)]
    Unknown,
}

/// How far an order has been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The order's kind is not known here; its scope is refused.
    Unsupported,
    /// No new work starts.
    Refusing,
    /// Work in flight has ended, or is named as not interruptible. It implies [`Stage::Refusing`], from
    /// the order's arrival on: an enforcer that has nothing in flight says this alone.
    Settled,
}

/// An enforcer's word on one order; repeated after each reconnect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The order.
    pub order: OrderId,
    /// How far.
    pub stage: Stage,
    /// When, by the enforcer's wall clock.
    pub at: Timestamp,
    /// Time from the order's arrival here to this stage, on the boot clock.
    pub after_us: u64,
    /// What was done; only with [`Stage::Settled`].
    #[serde(default, skip_serializing_if = "Settlement::is_empty")]
    pub settlement: Settlement,
}

/// What settling came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settlement {
    /// Steps that were cancelled.
    pub steps_cancelled: u64,
    /// Connections that were cut.
    pub connections_cut: u64,
    /// Processes that are frozen.
    pub processes_frozen: u64,
    /// When the last byte of what the scope reaches went out, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_byte_at: Option<Timestamp>,
    /// Bytes that went out for what the scope reaches, as far as it was counted here.
    pub bytes_out: u64,
    /// Work that could not be interrupted, each with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_interruptible: Vec<String>,
    /// The containment that really holds, in words, such as `cgroup frozen, own network namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containment: Option<String>,
    /// The enforcer observes only: this is what it would have stopped.
    pub observed_only: bool,
    /// Of a drill's canary alone ([`crate::canary_of`]): whether this enforcer's own check refuses
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_refused: Option<bool>,
}

impl Settlement {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something that a host or a gateway does once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Names the action; a repetition carries the same.
    pub id: Uuid,
    /// The incident that it serves.
    pub incident: IncidentId,
    /// Upon whom.
    pub subject: Subject,
    /// What to do.
    pub verb: Verb,
}

/// Reads a map whose keys are numbers. Serde buffers the fields of a tagged enum and forgets there
/// that JSON can have texts as keys only.
fn numbered<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u8, Vec<OrderId>>, D::Error> {
    BTreeMap::<String, Vec<OrderId>>::deserialize(deserializer)?
        .into_iter()
        .map(|(bucket, ids)| Ok((bucket.parse().map_err(de::Error::custom)?, ids)))
        .collect()
}

/// Splits orders into frames' worth, by count and by bytes.
pub(crate) fn batches(orders: impl IntoIterator<Item = SignedOrder>) -> Vec<Vec<SignedOrder>> {
    let mut batches: Vec<Vec<SignedOrder>> = Vec::new();
    let mut bytes = 0;
    for order in orders {
        // An order's text is quoted once more in the frame, which at most doubles it: control
        // characters are escapes in it already.
        let size = 2 * order.order.len() + order.key.len() + order.signature.len() + 64;
        match batches.last_mut() {
            Some(last)
                if last.len() < ORDERS_PER_FRAME_MAX && bytes + size <= FRAME_BYTES_MAX / 2 =>
            {
                last.push(order);
                bytes += size;
            }
            _ => {
                batches.push(vec![order]);
                bytes = size;
            }
        }
    }
    batches
}

/// What a host can do to the processes of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Freeze the processes.
    Freeze,
    /// Let frozen processes go on; refused while a halt reaches the subject.
    Thaw,
    /// Capture evidence of the processes.
    Capture,
    /// Kill the processes.
    Kill,
    /// Say what state the processes are in, and change nothing.
    Observe,
}

/// What an action came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The action.
    pub action: Uuid,
    /// Whether the effect was observed.
    pub result: ActionResult,
    /// What was observed, for people and records, such as `3 processes frozen`.
    pub observed: String,
    /// Machine-readable detail; of a capture, its manifest.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// Whether an action had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionResult {
    /// The effect was observed.
    Done,
    /// It was tried and did not work.
    Failed,
    /// Nothing here is of the subject.
    NoSuchSubject,
    /// It may have worked; it could not be observed.
    Indeterminate,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short way to read a frame takes and refuses what the long one does.
    #[test]
    fn a_frame_is_read_alike_both_ways() {
        let confirm = r#"{"frame":"confirm","order":"01a204ef-33bf-757a-83c1-f48c09102871","stage":"settled","at":"2026-11-22T20:25:14.944158Z","after_us":7,"settlement":{"steps_cancelled":2},"new":1}"#;
        let known = [
            confirm,
            r#"{"nonce":7,"frame":"ping"}"#,
            r#"{"frame":"p\u0069ng","nonce":7}"#,
            r#"{"frame":"have","buckets":{"7":[]},"more":true}"#,
            r#"{"frame":"orders","orders":[]}"#,
            r#"{"frame":"of a newer version","nonce":"x"}"#,
        ];
        for text in known {
            let long = serde_json::from_str::<ToServer>(text).unwrap();
            assert_eq!(ToServer::read(text).unwrap(), long, "{text}");
        }
        let wrong = [
            "",
            "7",
            "{}",
            r#"{"frame":"ping"}"#,
            r#"{"frame":"ping","nonce":-1}"#,
            r#"{"frame":"ping","nonce":1}{"#,
            r#"{"frame":7,"nonce":1}"#,
            r#"{"frame":"confirm","stage":"settled"}"#,
            &confirm.replace("settled", "done"),
        ];
        for text in wrong {
            assert!(serde_json::from_str::<ToServer>(text).is_err(), "{text}");
            assert!(ToServer::read(text).is_err(), "{text}");
        }
    }
}
