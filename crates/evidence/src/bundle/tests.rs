//! A small bundle, and everything that can be done to it.

use std::io;

use ed25519_dalek::SigningKey;
use estoppel_model::{Actor, Id, IncidentId};

use super::*;
use crate::{
    Hashed, HoldPlaced, Manifest, Signatory, SignedEvent, Tool,
    chains::tests::entry,
    custody::{CustodyAction, Head},
    manifest::tests::manifest,
};

const BLOBS: [&[u8]; 2] = [b"maps", b""];

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// What [`small`] is made of, to be changed.
struct Made {
    capture: Manifest,
    incident: IncidentId,
    /// Actions of the capture's chain.
    actions: Vec<CustodyAction>,
    disposed: bool,
    missing: Vec<Absent>,
    blobs: Vec<Hashed>,
}

impl Made {
    fn new() -> Self {
        Self {
            capture: manifest(&BLOBS),
            incident: IncidentId::new(),
            actions: vec![CustodyAction::Acquire, CustodyAction::Export],
            disposed: false,
            missing: vec![],
            blobs: BLOBS.iter().map(|blob| Hashed::of(blob)).collect(),
        }
    }

    fn contents(&self) -> Contents {
        let sealed = self.capture.seal().unwrap();
        let mut head = Head::default();
        let mut records = Vec::new();
        for (index, action) in self.actions.iter().enumerate() {
            let mut entry = entry(self.incident, self.capture.id, *action);
            entry.entry.hash_after = Some(sealed.digest());
            let signed = SignedEvent::sign(head, &entry, &key()).unwrap();
            head.append(&entry).unwrap();
            let new = signed.record(entry.entry.time).unwrap();
            let (kind, body, at) = (new.kind, new.body, new.at);
            let record = Record { seq: 2 * index as u64, kind, key: new.key, at, body };
            records.push(BundledRecord::of(record, &[9; 32]));
        }
        Contents {
            predicate: Predicate {
                bundle: Id::new(),
                created_at: "2026-02-05T04:00:00Z".parse().unwrap(),
                created_by: Actor::new("alice").unwrap(),
                purpose: "court".to_owned(),
                tool: Tool { name: "estoppel".into(), version: "0.1.0".into(), sha256: None },
                key: Signatory::of(&key()),
                captures: vec![BundledCapture {
                    capture: self.capture.id,
                    incident: self.incident,
                    number: None,
                    manifest: sealed.digest(),
                    custody: head,
                    disposed: self.disposed,
                }],
                missing: self.missing.clone(),
            },
            records,
            checkpoint: "unchecked here\n".to_owned(),
            leaves: vec![0; 3 * LEAF_BYTES],
            manifests: vec![sealed],
            blobs: self.blobs.clone(),
        }
    }
}

fn open(digest: &Digest) -> io::Result<&'static [u8]> {
    let blob = BLOBS.iter().find(|blob| Digest::of(blob) == *digest);
    blob.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn write(contents: Contents) -> Vec<u8> {
    let sealed = contents.seal(&key()).unwrap();
    let mut file = Vec::new();
    sealed.write(&mut file, open).unwrap();
    assert_eq!(file.len() as u64, sealed.bytes());
    file
}

fn small() -> Vec<u8> {
    write(Made::new().contents())
}

fn run(file: &[u8]) -> Result<Bundle, BundleError> {
    read(&mut &*file, &mut |_, _| Ok(()))
}

/// How many bytes of a bundle hold the README and the script, whose digests are checked like any
/// other's: only some of their positions are tried.
fn is_tried(file: &[u8], at: usize) -> bool {
    let find = |text: &[u8]| file.windows(text.len()).position(|part| part == text).unwrap();
    let (from, to) = (find(README.as_bytes()), find(SCRIPT.as_bytes()) + SCRIPT.len());
    !(from..to).contains(&at) || at.is_multiple_of(97)
}

#[test]
fn a_bundle_gives_back_what_went_in() {
    let made = Made::new();
    let mut given = std::collections::BTreeMap::<Digest, Vec<u8>>::new();
    let file = write(made.contents());
    let bundle = read(&mut &*file, &mut |digest, piece| {
        given.entry(*digest).or_default().extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    assert_eq!(given[&Digest::of(b"maps")], b"maps");
    assert_eq!(bundle.manifests[&made.capture.id].1, made.capture);
    assert_eq!(bundle.events.len(), 2);
    assert_eq!(bundle.records, made.contents().records);
    assert_eq!(bundle.blobs.len(), 2);
    assert_eq!(bundle.leaves.len(), 96);
}

/// Other programs can list and unpack it.
#[test]
fn a_bundle_is_a_tar_archive() {
    let header = archive::header("blobs/x", 0o1234);
    // As GNU tar and bsdtar compute it: the sum of all bytes with blanks in its own place.
    let mut blank = header;
    blank[148..156].fill(b' ');
    let sum: u32 = blank.iter().map(|byte| u32::from(*byte)).sum();
    assert_eq!(&header[148..156], format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(&header[257..265], b"ustar\x0000");
    assert_eq!(archive::stated_bytes(&header), Some(0o1234));
    assert!(small().len().is_multiple_of(archive::BLOCK));
}

#[test]
fn every_changed_byte_is_found_and_named() {
    let good = small();
    let mut file = good.clone();
    let tried: Vec<usize> = (0..file.len()).filter(|at| is_tried(&good, *at)).collect();
    assert!(tried.len() > 8_000, "{}", tried.len());
    for at in tried {
        file[at] ^= 1;
        let error = run(&file).unwrap_err();
        assert!(!matches!(error, BundleError::Io(_)), "byte {at}: {error}");
        file[at] ^= 1;
    }
    assert!(run(&file).is_ok());
}

#[test]
fn every_cut_and_every_addition_is_found() {
    let good = small();
    for length in (0..good.len()).filter(|at| is_tried(&good, *at)) {
        let error = run(&good[..length]).unwrap_err();
        assert!(matches!(error, BundleError::CutOff { .. }), "{length} bytes: {error}");
    }
    let longer = [&good[..], b"\0"].concat();
    assert!(matches!(run(&longer), Err(BundleError::Longer)));
}

#[test]
fn entries_that_are_removed_moved_doubled_or_put_in_are_found() {
    let good = small();
    let mut entries = Vec::new();
    let mut at = 0;
    while at + archive::TRAILER_BYTES < good.len() {
        let header: [u8; archive::BLOCK] = good[at..at + archive::BLOCK].try_into().unwrap();
        let bytes = archive::entry_bytes(archive::stated_bytes(&header).unwrap()) as usize;
        entries.push(&good[at..at + bytes]);
        at += bytes;
    }
    assert_eq!(entries.len(), 9);
    let join = |entries: &[&[u8]]| [&entries.concat()[..], &[0; archive::TRAILER_BYTES]].concat();
    assert_eq!(join(&entries), good);
    for one in 0..entries.len() {
        let mut removed = entries.clone();
        removed.remove(one);
        assert!(run(&join(&removed)).is_err(), "without {one}");
        let mut doubled = entries.clone();
        doubled.insert(one, entries[one]);
        assert!(run(&join(&doubled)).is_err(), "{one} twice");
        for other in one + 1..entries.len() {
            let mut swapped = entries.clone();
            swapped.swap(one, other);
            assert!(run(&join(&swapped)).is_err(), "{one} and {other}");
        }
        let mut put_in = entries.clone();
        let hostile = archive::header("../../etc/cron.d/x", 0);
        put_in.insert(one, &hostile);
        assert!(run(&join(&put_in)).is_err(), "before {one}");
    }
}

/// Whoever has a key can sign anything: what is signed must fit together all the same.
#[test]
fn a_signed_bundle_that_does_not_fit_together_is_refused() {
    let check = |change: &dyn Fn(&mut Made), expect: &str| {
        let mut made = Made::new();
        change(&mut made);
        let error = run(&write(made.contents())).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(&|made| made.blobs.truncate(1), "is not in it");
    check(&|made| drop(made.capture.items.pop()), "no item is");
    check(&|made| made.capture.items[0].bytes = 5, "is not in it");
    check(&|made| made.disposed = true, "no item is");
    check(&|made| made.actions.push(CustodyAction::Dispose), "custody");
    check(&|made| made.actions[0] = CustodyAction::Access, "does not begin");
    check(
        &|made| made.missing.push(Absent { sha256: made.blobs[0].sha256, why: "gone".into() }),
        "missing and there",
    );
    check(
        &|made| made.missing.push(Absent { sha256: Digest::of(b"other"), why: "gone".into() }),
        "no item is",
    );
}

#[test]
fn what_is_missing_or_disposed_of_is_said() {
    let mut made = Made::new();
    let lost = made.blobs.remove(0);
    made.missing.push(Absent { sha256: lost.sha256, why: "nothing is stored".into() });
    let bundle = run(&write(made.contents())).unwrap();
    assert_eq!(bundle.predicate.missing[0].sha256, lost.sha256);
    let mut made = Made::new();
    made.blobs.clear();
    made.disposed = true;
    made.actions.insert(1, CustodyAction::Dispose);
    assert!(run(&write(made.contents())).unwrap().predicate.captures[0].disposed);
}

#[test]
fn custody_records_that_are_changed_left_out_or_moved_are_found() {
    let mut made = Made::new();
    made.actions.insert(1, CustodyAction::Access);
    let check = |change: &dyn Fn(&mut Contents), expect: &str| {
        let mut contents = made.contents();
        change(&mut contents);
        let error = run(&write(contents)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(&|it| drop(it.records.remove(0)), "line 1: it does not follow");
    check(&|it| drop(it.records.remove(1)), "line 2: it does not follow");
    check(&|it| drop(it.records.remove(2)), "cut off");
    check(&|it| it.records.swap(0, 1), "line 1: it does not follow");
    check(&|it| it.records.insert(1, it.records[0].clone()), "come after");
    check(&|it| it.records[1].body = it.records[1].body.replace("halt", "hold"), "not signed");
    check(&|it| it.records[1].kind = "order".into(), "no record of custody");
    check(
        &|it| {
            it.records[0].kind = HoldPlaced::KIND.as_str().into();
            it.records[0].body = serde_json::to_string(&HoldPlaced {
                hold: crate::HoldId::new(),
                incident: IncidentId::new(),
                reason: estoppel_model::Untrusted::new("r".to_owned()),
                by: Actor::new("bob").unwrap(),
            })
            .unwrap();
        },
        "no incident of it",
    );
}

/// Names, lengths and fields that no bundle has, signed.
#[test]
fn hostile_lists_are_refused() {
    let file = small();
    let header: [u8; archive::BLOCK] = file[..archive::BLOCK].try_into().unwrap();
    let bytes = archive::stated_bytes(&header).unwrap() as usize;
    let text = &file[archive::BLOCK..archive::BLOCK + bytes];
    let (payload, _) = envelope::open(text).unwrap();
    let payload = String::from_utf8(payload).unwrap();
    let check = |from: &str, to: &str, expect: &str| {
        let changed = payload.replacen(from, to, 1);
        assert_ne!(changed, payload, "{from}");
        let sealed = envelope::seal(changed.as_bytes(), &key()).unwrap();
        let mut hostile = archive::header(ENVELOPE_NAME, sealed.len() as u64).to_vec();
        hostile.extend(&sealed);
        hostile.extend(vec![0; archive::padding(sealed.len() as u64)]);
        hostile.extend(&file[archive::entry_bytes(bytes as u64) as usize..]);
        let error = run(&hostile).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    let blob = format!("blobs/{}", Digest::of(b"maps"));
    check(&blob, "../../../etc/cron.d/x", "not a name that comes there");
    check(&blob, "/etc/passwd", "not a name that comes there");
    check(&blob, &format!("blobs/{}", Digest::of(b"")), "not a name that comes there");
    check("README.txt", "README.TXT", "not a name that comes there");
    check("\"bytes\":4}", "\"bytes\":8589934592}", "at most");
    check("\"bytes\":96}", "\"bytes\":4294967296}", "at most");
    check("\"purpose\":", "\"porpose\":", "porpose");
    check("\"purpose\":", "\"purpose\":\"a\",\"purpose\":", "duplicate field");
    check("/v1\",\"subject\"", "/v2\",\"subject\"", "newer estoppel");
    let huge = archive::header(ENVELOPE_NAME, 1 << 30);
    assert!(matches!(run(&huge), Err(BundleError::TooLarge { .. })));
    let other = Signatory::of(&SigningKey::from_bytes(&[6; 32])).to_string();
    check(&Signatory::of(&key()).to_string(), &other, "another key");
}
