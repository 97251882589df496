//! The vault's custody: for each capture a chain of signed events, and the holds on incidents, as
//! records of the ledger.
//!
//! Invariants:
//! - An event's key in the ledger is made of its capture and its place, and the ledger keeps the
//!   first record of a key: of two that continue one chain at one place, one is kept.
//! - A capture is held while any hold of its incident has no recorded release. Nothing else ends
//!   one: no time, no closed incident, no absence.
//! - An event that does not continue its chain is not folded in; [`crate::bundle`] and the ledger's
//!   own verification name it.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use estoppel_model::{Actor, Id, IncidentId, NewRecord, Record, RecordKind, Timestamp, Untrusted};
use serde::{Deserialize, Serialize};

use crate::{
    CaptureId, Digest, Signatory,
    custody::{CustodyAction, CustodyEntry, CustodyEvent, Head},
    named::Hold,
    signature::sign,
};

/// What is signed begins with this, so that no other text of the key's passes for an event.
const DOMAIN: &[u8] = b"estoppel.dev/custody/1\n";

/// Names one hold.
pub type HoldId = Id<Hold>;

/// What happened to a capture in the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultEntry {
    /// The incident that the capture serves.
    pub case: IncidentId,
    /// The item that it is about, by its id in the manifest; absent: the whole capture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Untrusted<String>>,
    /// What, by whom, from where to where, and what for.
    #[serde(flatten)]
    pub entry: CustodyEntry,
}

/// One event of a capture's chain, as its text.
pub type VaultEvent = CustodyEvent<VaultEntry>;

/// Body of an `evidence.custody` record: the event's text, byte for byte as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedEvent {
    /// The [`VaultEvent`], JSON text. The next event names its SHA-256.
    pub event: String,
    /// Who signed.
    pub key: Signatory,
    /// Ed25519 over `estoppel.dev/custody/1`, a line feed and `event`; 128 hex digits.
    pub signature: String,
}

impl SignedEvent {
    /// The kind of the record.
    pub const KIND: RecordKind = RecordKind::new("evidence.custody");

    /// The event that continues a chain.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no value of these types brings about.
    pub fn sign(
        mut head: Head,
        entry: &VaultEntry,
        key: &SigningKey,
    ) -> Result<Self, serde_json::Error> {
        let event = head.append(entry)?;
        let signature = sign(key, &[DOMAIN, event.as_bytes()].concat());
        Ok(Self { event, key: Signatory::of(key), signature })
    }

    /// Whether the key that it names signed it.
    pub fn is_signed(&self) -> bool {
        self.key.signed(&[DOMAIN, self.event.as_bytes()].concat(), &self.signature)
    }

    /// Reads the event.
    ///
    /// # Errors
    /// When the text is none.
    pub fn read(&self) -> Result<VaultEvent, serde_json::Error> {
        serde_json::from_str(&self.event)
    }

    /// The record, whose key lets the first at its place be kept.
    ///
    /// # Errors
    /// As [`SignedEvent::sign`].
    pub fn record(&self, at: Timestamp) -> Result<NewRecord, serde_json::Error> {
        let event = self.read()?;
        let key = format!("custody/{}/{}", event.entry.entry.capture, event.seq);
        NewRecord::json(Self::KIND, Some(key), at, self)
    }
}

/// An incident's evidence may not be disposed of, until this hold is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldPlaced {
    /// The hold.
    pub hold: HoldId,
    /// Whose evidence, also what is captured later.
    pub incident: IncidentId,
    /// Why.
    pub reason: Untrusted<String>,
    /// Who.
    pub by: Actor,
}

/// A hold ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReleased {
    /// The hold.
    pub hold: HoldId,
    /// Its incident.
    pub incident: IncidentId,
    /// Why.
    pub reason: Untrusted<String>,
    /// Who.
    pub by: Actor,
}

impl HoldPlaced {
    /// The kind of the record.
    pub const KIND: RecordKind = RecordKind::new("evidence.hold");

    /// The record.
    ///
    /// # Errors
    /// When the body cannot be written as JSON, which a value of this type always can.
    pub fn record(&self, at: Timestamp) -> Result<NewRecord, serde_json::Error> {
        NewRecord::json(Self::KIND, Some(format!("hold/{}", self.hold)), at, self)
    }
}

impl HoldReleased {
    /// The kind of the record.
    pub const KIND: RecordKind = RecordKind::new("evidence.hold_released");

    /// The record; the first release of a hold stands.
    ///
    /// # Errors
    /// When the body cannot be written as JSON, which a value of this type always can.
    pub fn record(&self, at: Timestamp) -> Result<NewRecord, serde_json::Error> {
        NewRecord::json(Self::KIND, Some(format!("hold/{}/released", self.hold)), at, self)
    }
}

/// A capture that the vault has, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The incident that it serves.
    pub case: IncidentId,
    /// SHA-256 of its manifest.
    pub manifest: Digest,
    /// Where it came from.
    pub origin: Option<String>,
    /// When it came.
    pub since: Timestamp,
    /// What it came to, such as `41 items, 3 gaps`.
    pub summary: String,
    /// When its contents were disposed of.
    pub disposed_at: Option<Timestamp>,
    /// Where its chain stands.
    pub head: Head,
    /// The ledger's places of its chain, in order.
    pub records: Vec<u64>,
}

/// A hold that was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldView {
    /// The record.
    pub placed: HoldPlaced,
    /// When.
    pub since: Timestamp,
    /// Its place in the ledger.
    pub record: u64,
    /// Its end, with its place in the ledger.
    pub released: Option<(HoldReleased, Timestamp, u64)>,
}

/// All chains and holds: a fold over the ledger's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    captures: BTreeMap<CaptureId, Kept>,
    holds: BTreeMap<HoldId, HoldView>,
}

impl Chains {
    /// The kinds of records that are folded.
    pub const KINDS: [RecordKind; 3] = [SignedEvent::KIND, HoldPlaced::KIND, HoldReleased::KIND];

    /// Takes a record in; others than [`Chains::KINDS`] change nothing.
    pub fn apply(&mut self, record: &Record) {
        if record.kind == SignedEvent::KIND {
            if let Ok(signed) = record.parse::<SignedEvent>()
                && let Ok(event) = signed.read()
            {
                self.take(record.seq, event, Digest::of(signed.event.as_bytes()));
            }
        } else if record.kind == HoldPlaced::KIND {
            if let Ok(placed) = record.parse::<HoldPlaced>() {
                let (since, seq) = (record.at, record.seq);
                self.holds.entry(placed.hold).or_insert(HoldView {
                    placed,
                    since,
                    record: seq,
                    released: None,
                });
            }
        } else if record.kind == HoldReleased::KIND
            && let Ok(released) = record.parse::<HoldReleased>()
            && let Some(hold) = self.holds.get_mut(&released.hold)
            && hold.released.is_none()
        {
            hold.released = Some((released, record.at, record.seq));
        }
    }

    fn take(&mut self, seq: u64, event: VaultEvent, digest: Digest) {
        let VaultEntry { case, entry, .. } = event.entry;
        let begins = matches!(entry.action, CustodyAction::Acquire | CustodyAction::Transfer);
        if begins
            && event.seq == 0
            && event.prev_hash.is_none()
            && let Some(manifest) = entry.hash_after
        {
            self.captures.entry(entry.capture).or_insert(Kept {
                case,
                manifest,
                origin: entry.from,
                since: entry.time,
                summary: entry.result,
                disposed_at: None,
                head: Head { count: 1, last: Some(digest) },
                records: vec![seq],
            });
            return;
        }
        let Some(kept) = self.captures.get_mut(&entry.capture) else { return };
        if (event.seq, event.prev_hash) != (kept.head.count, kept.head.last) {
            return;
        }
        kept.head = Head { count: event.seq + 1, last: Some(digest) };
        kept.records.push(seq);
        if entry.action == CustodyAction::Dispose {
            kept.disposed_at = Some(entry.time);
        }
    }

    /// A capture.
    pub fn capture(&self, id: CaptureId) -> Option<&Kept> {
        self.captures.get(&id)
    }

    /// All captures, the oldest first.
    pub fn captures(&self) -> impl DoubleEndedIterator<Item = (CaptureId, &Kept)> {
        self.captures.iter().map(|(id, kept)| (*id, kept))
    }

    /// A hold.
    pub fn hold(&self, id: HoldId) -> Option<&HoldView> {
        self.holds.get(&id)
    }

    /// All holds, released ones, too; the oldest first.
    pub fn holds(&self) -> impl DoubleEndedIterator<Item = &HoldView> {
        self.holds.values()
    }

    /// The holds of an incident that have no release.
    pub fn holding(&self, incident: IncidentId) -> impl Iterator<Item = &HoldView> {
        self.holds().filter(move |it| it.placed.incident == incident && it.released.is_none())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(case: IncidentId, capture: CaptureId, action: CustodyAction) -> VaultEntry {
        let manifest = Digest::of(b"manifest");
        VaultEntry {
            case,
            item: None,
            entry: CustodyEntry {
                capture,
                time: "2026-02-05T03:00:00Z".parse().unwrap(),
                actor: Actor::new("alice").unwrap(),
                action,
                from: Some("host-1".to_owned()),
                to: Some("vault".to_owned()),
                purpose: "halt".to_owned(),
                hash_before: None,
                hash_after: Some(manifest),
                result: "2 items".to_owned(),
            },
        }
    }

    fn record(seq: u64, new: NewRecord) -> Record {
        Record { seq, kind: new.kind, key: new.key, at: new.at, body: new.body }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn at() -> Timestamp {
        Timestamp::from_micros(1)
    }

    #[test]
    fn a_chain_takes_what_continues_it_and_nothing_else() {
        let (case, capture) = (IncidentId::new(), CaptureId::new());
        let mut chains = Chains::default();
        let mut seq = 10;
        let mut apply = |chains: &mut Chains, head: Head, action| {
            let signed = SignedEvent::sign(head, &entry(case, capture, action), &key()).unwrap();
            assert!(signed.is_signed());
            seq += 1;
            chains.apply(&record(seq, signed.record(at()).unwrap()));
        };
        apply(&mut chains, Head::default(), CustodyAction::Access);
        assert!(chains.capture(capture).is_none(), "nothing begins with a look");
        apply(&mut chains, Head::default(), CustodyAction::Acquire);
        let first = chains.capture(capture).unwrap().head;
        apply(&mut chains, first, CustodyAction::Access);
        let second = chains.capture(capture).unwrap().head;
        assert_eq!(second.count, 2);
        // A fork of the chain, a gap in it, and a second beginning.
        apply(&mut chains, first, CustodyAction::Dispose);
        apply(&mut chains, Head { count: 7, ..second }, CustodyAction::Dispose);
        apply(&mut chains, Head::default(), CustodyAction::Acquire);
        let kept = chains.capture(capture).unwrap();
        assert_eq!((kept.head, kept.disposed_at), (second, None));
        assert_eq!(kept.records, [12, 13]);
        apply(&mut chains, second, CustodyAction::Dispose);
        assert!(chains.capture(capture).unwrap().disposed_at.is_some());
    }

    #[test]
    fn an_event_that_was_changed_is_not_signed() {
        let (case, capture) = (IncidentId::new(), CaptureId::new());
        let entry = entry(case, capture, CustodyAction::Acquire);
        let signed = SignedEvent::sign(Head::default(), &entry, &key()).unwrap();
        for at in 0..signed.event.len() {
            let mut bytes = signed.event.clone().into_bytes();
            bytes[at] ^= 1;
            let changed =
                SignedEvent { event: String::from_utf8(bytes).unwrap(), ..signed.clone() };
            assert!(!changed.is_signed(), "byte {at}");
        }
        let other = Signatory::of(&SigningKey::from_bytes(&[2; 32]));
        assert!(!SignedEvent { key: other, ..signed }.is_signed());
    }

    #[test]
    fn a_hold_ends_by_its_own_release_alone() {
        let incident = IncidentId::new();
        let by = Actor::new("alice").unwrap();
        let reason = || Untrusted::new("litigation".to_owned());
        let mut chains = Chains::default();
        let mut seq = 0;
        let mut apply = |chains: &mut Chains, new: NewRecord| {
            seq += 1;
            chains.apply(&record(seq, new));
        };
        let holds: Vec<HoldId> = (0..2).map(|_| HoldId::new()).collect();
        for hold in &holds {
            let placed = HoldPlaced { hold: *hold, incident, reason: reason(), by: by.clone() };
            apply(&mut chains, placed.record(at()).unwrap());
        }
        let release = |hold| HoldReleased { hold, incident, reason: reason(), by: by.clone() };
        apply(&mut chains, release(HoldId::new()).record(at()).unwrap());
        assert_eq!(chains.holding(incident).count(), 2, "one that is not there ends none");
        apply(&mut chains, release(holds[0]).record(at()).unwrap());
        let left: Vec<HoldId> = chains.holding(incident).map(|it| it.placed.hold).collect();
        assert_eq!(left, [holds[1]]);
        assert_eq!(chains.holding(IncidentId::new()).count(), 0);
    }
}
