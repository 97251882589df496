use std::sync::Arc;

use ed25519_dalek::SigningKey;
use estoppel_ledger::{Ledger, Options};
use estoppel_model::{NewRecord, Record, RecordKind, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Journal,
    snapshot::{self, Story, StoryError},
    state::{DECIDING, State},
};
use crate::{metrics::Metrics, order};

/// Hostile enough for a person's text, and none of it may change on the way.
const TEXT: &str = "\u{202e}<b>\"\\\u{0}\u{1f4a3}\n";

const PLAYBOOKS: [&str; 3] = [
    "format: estoppel.playbook/v1\nname: a\ntitle: A\ninputs:\n  s: { type: session }\nsteps:\n  \
     - { id: freeze, action: freeze, with: { session: '${s}' } }\n  \
     - { id: tell, action: notify, with: { summary: look } }\n",
    "format: estoppel.playbook/v1\nname: b\ntitle: B\ninputs:\n  s: { type: session }\nsteps:\n  \
     - { id: freeze, action: freeze, with: { session: '${s}' } }\n",
    "no playbook at all",
];

/// One of a few ids.
fn id(family: char, n: usize) -> String {
    format!("0000000{family}-0000-7000-8000-00000000000{}", n % 3)
}

/// One record of each kind that a fold of the server reads, made from small numbers: so that records
/// meet, repeat and contradict one another.
fn body(choice: usize, a: usize, b: usize) -> (&'static str, Value) {
    let (incident, order, run) = (id('a', a), id('b', b), id('c', b));
    let session = json!({ "session": format!("s{a}") });
    let (by, at) = ("alice", "2026-02-05T03:00:00.000001Z");
    match choice {
        0 => (
            "incident.opened",
            json!({ "id": incident, "title": TEXT, "kind": "runaway", "severity": "high", "source": "halt", "scope": format!("session:s{b}"), "subject": session, "by": by }),
        ),
        1 => (
            "incident.joined",
            json!({ "incident": incident, "source": "detection", "subject": session, "what": TEXT, "by": by }),
        ),
        2 => ("incident.noted", json!({ "incident": incident, "text": TEXT, "by": by })),
        3 => {
            ("incident.assigned", json!({ "incident": incident, "to": format!("b{b}"), "by": by }))
        }
        4 => ("incident.root_cause", json!({ "incident": incident, "text": TEXT, "by": by })),
        5 => ("incident.closed", json!({ "incident": incident, "reason": TEXT, "by": by })),
        6 => (
            "incident.detection",
            json!({ "incident": incident, "detection": format!("d{b}"), "rule": "egress.unlisted", "severity": "low", "subject": session, "evidence": [run], "summary": TEXT, "destination": "evil.example:443", "event_at": at, "received_at": at }),
        ),
        7 => (
            "incident.halted",
            json!({ "incident": incident, "order": order, "what": "halt", "scope": "global", "reason": TEXT, "by": by, "accepted_at": at, "enforcers": u64::MAX }),
        ),
        8 => (
            "incident.confirmed",
            json!({ "incident": incident, "order": order, "enforcer": run, "kind": "guard", "name": TEXT, "stage": (["unsupported", "refusing", "settled"][(a + b) % 3]), "confirmed_at": at, "after_us": b, "bytes_out": u64::MAX, "not_interruptible": [TEXT], "observed_only": b == 1 }),
        ),
        9 => (
            "incident.contained",
            json!({ "incident": incident, "order": order, "enforcers": 2, "settled": b, "by_lease": 0 }),
        ),
        10 => (
            "incident.silent",
            json!({ "incident": incident, "order": order, "enforcers": [{ "enforcer": run, "kind": "host", "name": TEXT, "lease_until": at }] }),
        ),
        11 => (
            "incident.released",
            json!({ "incident": incident, "orders": [order], "reason": TEXT, "by": by }),
        ),
        12 => (
            "incident.page",
            json!({ "incident": incident, "channel": "c", "dedup_key": "k", "attempts": 1, "result": (["accepted", "failed", "indeterminate"][b % 3]), "receipt": TEXT, "reason": TEXT }),
        ),
        13 => (
            "evidence.added",
            json!({ "incident": incident, "item": TEXT, "method": "m", "origin": "o", "sha256": "00", "bytes": 1, "manifest_sha256": "11", "captured_at": at, "gaps": [TEXT] }),
        ),
        14 => (
            "run.started",
            json!({ "run": run, "incident": incident, "playbook": "a", "source": PLAYBOOKS[a % 2], "inputs": { "s": "x" }, "mode": (["live", "drill"][a % 2]), "asks": b == 2, "by": by }),
        ),
        15 => (
            "step.intent",
            json!({ "run": run, "index": a % 3, "step": "freeze", "action": "freeze", "attempt": 1 }),
        ),
        16 => (
            "step.result",
            json!({ "run": run, "index": a % 3, "step": "freeze", "action": "freeze", "attempt": 1, "outcome": (["done", "failed", "skipped"][a % 3]), "observed": TEXT, "detail": { "n": 1.5 } }),
        ),
        17 => ("step.approved", json!({ "run": run, "index": a % 3, "by": by, "role": "lead" })),
        18 => (
            "step.evidence_waived",
            json!({ "run": run, "index": a % 3, "by": by, "reason": TEXT }),
        ),
        19 => ("run.decided", json!({ "run": run, "approve": a == 1, "by": by, "reason": TEXT })),
        20 => (
            "run.ended",
            json!({ "run": run, "outcome": (["completed", "failed", "declined"][a % 3]) }),
        ),
        21 => (
            "drill.started",
            json!({ "id": run, "order": order, "by": by, "started_at": at, "outcome": "running" }),
        ),
        22 => (
            "drill.ended",
            json!({ "id": run, "order": order, "by": by, "started_at": at, "ended_at": at, "outcome": "failed", "reasons": [TEXT], "expected": 1, "enforcers": [{ "name": TEXT, "kind": "guard" }] }),
        ),
        23 => (
            "allowlist.set",
            json!({ "domains": (["a.example", "b.example"][..a % 3].to_vec()), "by": by }),
        ),
        24 => (
            "release.requested",
            json!({ "id": run, "scope": "global", "halts": [order], "reason": TEXT, "by": by, "at": at, "expires_at": at }),
        ),
        25 => ("order", json!({ "order": "{}", "key": "k", "signature": "s" })),
        26 => ("of.a_newer_version", json!({ "n": a })),
        27 => ("incident.noted", json!({ "n": a })),
        _ => (
            "run.started",
            json!({ "run": run, "incident": incident, "playbook": "a", "source": PLAYBOOKS[2], "inputs": {}, "mode": "live", "by": by }),
        ),
    }
}

const CHOICES: usize = 29;
/// Those of them that are what they say.
const GOOD: usize = 27;

fn record(seq: u64, choice: usize, a: usize, b: usize) -> Record {
    let (kind, body) = body(choice, a, b);
    Record {
        seq,
        kind: RecordKind::new(kind),
        key: (kind == "order").then(|| format!("order/{}", id('b', b))),
        at: Timestamp::from_micros(1_770_260_400_000_000 + i64::try_from(seq).unwrap()),
        body: body.to_string(),
    }
}

fn folded(records: &[Record]) -> State {
    let mut state = State::default();
    for record in records {
        state.apply(record);
    }
    state
}

/// As a start does it, with what decides selected as the ledger selects it.
fn from_snapshot(records: &[Record], cut: usize) -> State {
    let bytes = Story::of(&folded(&records[..cut])).encode().unwrap();
    let mut state = Story::decode(&bytes).unwrap().state(cut as u64);
    let decides = |record: &&Record| {
        DECIDING.contains(&record.kind)
            || record.key.as_deref().is_some_and(|key| key.starts_with(order::KEYS))
    };
    records[..cut].iter().filter(decides).for_each(|record| state.decide(record));
    records[cut..].iter().for_each(|record| state.apply(record));
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Invariant starting-always-does, and the state as it was, for every cut.
    #[test]
    fn a_snapshot_and_the_rest_are_the_whole(
        choices in prop::collection::vec((0..CHOICES, 0..3_usize, 0..3_usize), 1..48)
    ) {
        let records: Vec<Record> =
            (0..).zip(&choices).map(|(seq, (choice, a, b))| record(seq, *choice, *a, *b)).collect();
        let whole = folded(&records);
        for cut in 0..=records.len() {
            prop_assert_eq!(&from_snapshot(&records, cut), &whole, "cut at {}", cut);
        }
    }
}

/// One record of each kind, in an order in which each has an effect.
fn one_of_each() -> Vec<Record> {
    (0..).zip(0..GOOD).map(|(seq, choice)| record(seq, choice, 0, 0)).collect()
}

/// A fold that changes, or what is written of it, is another version: a snapshot of the old one must
/// be ignored. If this fails, count up `VERSION` in `snapshot.rs` and write the hash that it names.
#[test]
fn a_change_of_the_folds_is_a_new_version() {
    const STORY_OF_VERSION_1: &str =
        "11cf852839a1b08cbc19e310335f1621924ff6e9e1bf88a4b7deb7bd0c24e481";
    let state = folded(&one_of_each());
    assert_eq!((state.incidents.unreadable(), state.runs.unreadable()), (0, [].as_slice()));
    assert_eq!((state.drills.latest_first().count(), state.orders.len()), (1, 1));
    assert_ne!(state.release_requests, crate::release::Requests::default());
    assert!(state.allowlist.is_some());
    let incident = state.incidents.iter().next().unwrap();
    assert!(incident.assigned.is_some() && incident.closed.is_some());
    assert_eq!(incident.runs[0].steps.len(), 1);
    let bytes = Story::of(&state).encode().unwrap();
    let json = bytes.split_inclusive(|byte| *byte == b'\n').skip(1).collect::<Vec<_>>().concat();
    assert_eq!(hex::encode(Sha256::digest(json)), STORY_OF_VERSION_1);
}

#[test]
fn a_story_of_another_version_is_none() {
    let bytes = Story::of(&folded(&one_of_each())).encode().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in
        [("story 1 of", "story 2 of"), ("story 1 of ", "story 1 of 9"), ("est", "Est")]
    {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text);
        assert!(matches!(Story::decode(other.as_bytes()), Err(StoryError::Version)), "{from}");
    }
    let cut = &text.as_bytes()[..text.len() - 1];
    assert!(matches!(Story::decode(cut), Err(StoryError::Json(_))));
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn appended(dir: &std::path::Path, records: &[Record]) -> Ledger {
    let ledger = Ledger::open(dir, key(), Options::default()).unwrap();
    for record in records {
        let Record { kind, key, at, body, .. } = record.clone();
        ledger.append(NewRecord { kind, key, at, body }).wait().unwrap();
    }
    ledger
}

fn opened(dir: &std::path::Path) -> (Journal, super::Begun) {
    let journal = Journal::closed(None, Arc::new(Metrics::new(false)));
    let begun = journal.open(dir, key()).unwrap();
    (journal, begun)
}

/// Even one that is signed and says that nothing ever happened takes no order, no request and no
/// allowlist away.
#[test]
fn a_snapshot_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let records = one_of_each();
    let ledger = appended(dir.path(), &records);
    let empty = Story::of(&State::default()).encode().unwrap();
    ledger.snapshot_put("story", records.len() as u64, &empty).unwrap();
    drop(ledger);
    let whole = folded(&records);
    let (journal, begun) = opened(dir.path());
    assert_eq!((begun.from, begun.ignored), (records.len() as u64, None));
    journal.read(|state| {
        assert_eq!(state.incidents.iter().count(), 0, "the planted one was used");
        assert_eq!(state.orders, whole.orders);
        assert_eq!(state.release_requests, whole.release_requests);
        assert_eq!(state.allowlist, whole.allowlist);
    });
}

#[test]
fn a_doubtful_snapshot_is_ignored_and_told() {
    let records = one_of_each();
    let size = records.len() as u64;
    let whole = folded(&records);
    let good = Story::of(&whole).encode().unwrap();
    let check =
        |what: &str, put: &dyn Fn(&std::path::Path, &Ledger), from: u64, told: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            let ledger = appended(dir.path(), &records);
            put(dir.path(), &ledger);
            drop(ledger);
            let (journal, begun) = opened(dir.path());
            assert_eq!(begun.from, from, "{what}");
            match told {
                None => assert_eq!(begun.ignored, None, "{what}"),
                Some(told) => {
                    assert!(begun.ignored.as_ref().unwrap().contains(told), "{what}: {begun:?}")
                }
            }
            journal.read(|state| assert_eq!(*state, whole, "{what}"));
        };
    let put = |size, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |_: &std::path::Path, ledger: &Ledger| {
            ledger.snapshot_put("story", size, &bytes).unwrap()
        }
    };
    check("none", &|_, _| {}, 0, None);
    check("a good one", &put(size, &good), size, None);
    check(
        "one of the middle",
        &put(9, &Story::of(&folded(&records[..9])).encode().unwrap()),
        9,
        None,
    );
    let other = String::from_utf8(good.clone()).unwrap().replacen("story 1", "story 0", 1);
    check("of another version", &put(size, other.as_bytes()), 0, None);
    check("no JSON", &put(size, &good[..good.len() - 2]), 0, Some("cannot be read"));
    let file = |dir: &std::path::Path| dir.join("snapshots/story.snapshot");
    let flipped = |dir: &std::path::Path, ledger: &Ledger| {
        ledger.snapshot_put("story", size, &good).unwrap();
        let mut bytes = std::fs::read(file(dir)).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(file(dir), bytes).unwrap();
    };
    check("flipped", &flipped, 0, Some("not one that this ledger signed"));
    let from_elsewhere = |longer: bool| {
        let (good, records) = (good.clone(), records.clone());
        move |dir: &std::path::Path, ledger: &Ledger| {
            let elsewhere = tempfile::tempdir().unwrap();
            let theirs = appended(elsewhere.path(), &records);
            if longer {
                theirs
                    .append(NewRecord {
                        kind: RecordKind::new("more"),
                        key: None,
                        at: Timestamp::from_micros(1),
                        body: "{}".to_owned(),
                    })
                    .wait()
                    .unwrap();
            }
            theirs.snapshot_put("story", theirs.head().size, &good).unwrap();
            ledger.snapshot_put("story", 0, b"").unwrap();
            std::fs::copy(file(elsewhere.path()), file(dir)).unwrap();
        }
    };
    check("of another history", &from_elsewhere(false), 0, Some("another Merkle root"));
    check("beyond the head", &from_elsewhere(true), 0, Some("were records lost?"));
}

/// What the text of a snapshot cannot hold, such as a time outside of all calendars.
#[tokio::test]
async fn what_would_not_come_back_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = one_of_each();
    drop(appended(dir.path(), &records));
    let (journal, _) = opened(dir.path());
    assert_eq!(snapshot::write(&journal, dir.path()).await, Ok(records.len() as u64));
    drop(journal);
    let mut strange = record(records.len() as u64, 2, 0, 0);
    strange.at = Timestamp::from_micros(i64::MAX);
    drop(appended(dir.path(), std::slice::from_ref(&strange)));
    records.push(strange);
    let (journal, begun) = opened(dir.path());
    assert_eq!(begun.from, records.len() as u64 - 1);
    let error = snapshot::write(&journal, dir.path()).await.unwrap_err();
    assert!(error.contains("does not come back"), "{error}");
    drop(journal);
    let (journal, begun) = opened(dir.path());
    assert_eq!(begun.from, records.len() as u64 - 1, "the one of before is still there");
    journal.read(|state| assert_eq!(*state, folded(&records)));
}
