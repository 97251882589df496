//! A small bundle over a real ledger, for both verifiers.

use std::{io, path::Path, process::Command};

use ed25519_dalek::SigningKey;
use estoppel_evidence::{
    Gap, Item, Manifest, ProcessState, SCHEMA, SignedEvent, VaultEntry,
    custody::{CustodyEntry, Head},
    named,
};
use estoppel_ledger::Options;
use estoppel_model::{IncidentId, NewRecord, RecordKind, Subject};

use super::*;

const BLOBS: [&[u8]; 2] = [b"maps", b"status"];
/// How many records the ledger had when the bundle was made, and in the end.
const MADE_AT: u64 = 9;
const END: u64 = 12;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn at() -> Timestamp {
    Timestamp::from_micros(1_770_000_000_000_000)
}

fn manifest() -> Manifest {
    let items = BLOBS.iter().enumerate().map(|(index, content)| Item {
        id: format!("4711/{index}"),
        process: None,
        method: "read".to_owned(),
        started_at: at(),
        ended_at: at(),
        bytes: content.len() as u64,
        sha256: Digest::of(content),
        stored_sha256: Digest::of(content),
        gaps: vec![],
    });
    Manifest {
        schema: SCHEMA,
        id: CaptureId::new(),
        case: None,
        order: None,
        subject: Subject::default(),
        host: "host-1".to_owned(),
        boot_id: None,
        operator: Actor::new("host:host-1").unwrap(),
        authority: "halt by alice".to_owned(),
        tool: Tool { name: "estoppel".into(), version: "0".into(), sha256: None },
        state: ProcessState::Frozen,
        containment: "own cgroup".to_owned(),
        started_at: at(),
        ended_at: at(),
        items: items.collect(),
        redacted: vec![],
        gaps: vec![Gap { what: "4711/exe".into(), why: "deadline".into() }],
    }
}

/// A bundle, and checkpoints of its ledger: `checkpoints[size]`.
struct Small {
    contents: Box<dyn Fn() -> Contents>,
    checkpoints: Vec<Checkpoint>,
}

fn small() -> Small {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), key(), Options::default()).unwrap();
    let (manifest, incident) = (manifest(), IncidentId::new());
    let sealed = manifest.seal().unwrap();
    let mut checkpoints = vec![Checkpoint::clone(&ledger.checkpoint())];
    let mut head = Head::default();
    let mut places = BTreeSet::new();
    let mut of_ledger = None;
    for seq in 0..END {
        let action = match seq {
            3 => Some(CustodyAction::Acquire),
            5 => Some(CustodyAction::Copy),
            8 => Some(CustodyAction::Export),
            _ => None,
        };
        let record = match action {
            None => NewRecord {
                kind: RecordKind::new("test.note"),
                key: None,
                at: at(),
                body: "{}".to_owned(),
            },
            Some(action) => {
                let entry = VaultEntry {
                    case: incident,
                    item: None,
                    entry: CustodyEntry {
                        capture: manifest.id,
                        time: at(),
                        actor: Actor::new("alice").unwrap(),
                        action,
                        from: None,
                        to: None,
                        purpose: "court".to_owned(),
                        hash_before: None,
                        hash_after: Some(sealed.digest()),
                        result: "2 items".to_owned(),
                    },
                };
                let signed = SignedEvent::sign(head, &entry, &key()).unwrap();
                head.append(&entry).unwrap();
                places.insert(seq);
                signed.record(at()).unwrap()
            }
        };
        ledger.append(record).wait().unwrap();
        checkpoints.push(Checkpoint::clone(&ledger.checkpoint()));
        if seq + 1 == MADE_AT {
            of_ledger = Some(super::of_ledger(&ledger, &places).unwrap());
        }
    }
    let (checkpoint, leaves, records) = of_ledger.unwrap();
    let bundle = Id::<named::Bundle>::new();
    let contents = move || Contents {
        predicate: Predicate {
            bundle,
            created_at: at(),
            created_by: Actor::new("alice").unwrap(),
            purpose: "court".to_owned(),
            tool: Tool { name: "estoppel".into(), version: "0".into(), sha256: None },
            key: Signatory::of(&key()),
            captures: vec![BundledCapture {
                capture: manifest.id,
                incident,
                number: None,
                manifest: sealed.digest(),
                custody: head,
                disposed: false,
            }],
            missing: vec![],
        },
        records: records.clone(),
        checkpoint: checkpoint.clone(),
        leaves: leaves.clone(),
        manifests: vec![sealed.clone()],
        blobs: BLOBS.iter().map(|blob| Hashed::of(blob)).collect(),
    };
    Small { contents: Box::new(contents), checkpoints }
}

fn write(contents: Contents) -> Vec<u8> {
    let mut file = Vec::new();
    let open = |digest: &Digest| {
        let blob = BLOBS.into_iter().find(|blob| Digest::of(blob) == *digest);
        blob.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    contents.seal(&key()).unwrap().write(&mut file, open).unwrap();
    file
}

fn run(file: &[u8], given: Option<&Checkpoint>) -> Result<Verified, VerifyError> {
    verify(&mut &*file, given, None)
}

/// Invariant *tamper-evident*: every roll-back behind a checkpoint, and every other history.
#[test]
fn a_rolled_back_or_rewritten_ledger_is_found_by_each_checkpoint() {
    let small = small();
    let file = write((small.contents)());
    let verified = run(&file, None).unwrap();
    assert!(!verified.key_proved && verified.not_rolled_back_before.is_none());
    assert_eq!((verified.events, verified.blobs, verified.records), (3, 2, MADE_AT));
    let other = self::small();
    for (size, (kept, others)) in (0..).zip(small.checkpoints.iter().zip(&other.checkpoints)) {
        assert_eq!(kept.head().size, size);
        match run(&file, Some(kept)) {
            Ok(verified) => {
                assert!(size <= MADE_AT);
                assert_eq!(verified.not_rolled_back_before, Some(size));
            }
            Err(VerifyError::RolledBack { have: MADE_AT, kept }) => {
                assert!(kept == size && size > MADE_AT);
            }
            Err(error) => panic!("{size}: {error}"),
        }
        match run(&file, Some(others)) {
            Ok(_) => assert_eq!(size, 0, "of nothing there is one history"),
            Err(VerifyError::Rewritten { kept }) => assert!(kept == size && size <= MADE_AT),
            Err(VerifyError::RolledBack { .. }) => assert!(size > MADE_AT),
            Err(error) => panic!("{size}: {error}"),
        }
    }
}

/// Whoever has the key can sign anything: records and leaves must be the ledger's all the same.
#[test]
fn what_is_not_the_ledgers_is_found() {
    let small = small();
    let check = |change: &dyn Fn(&mut Contents), expect: &str| {
        let mut contents = (small.contents)();
        change(&mut contents);
        let error = run(&write(contents), None).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(&|it| it.records[1].seq = 4, "leaf 4 is another");
    check(&|it| it.records[2].seq = 400, "leaf 400 is another");
    check(&|it| it.records[0].at_us += 1, "leaf 3 is another");
    check(&|it| it.records[0].key.push('x'), "leaf 3 is another");
    check(&|it| it.records[0].salt = "zz".to_owned(), "leaf 3 is another");
    check(&|it| it.leaves[0] ^= 1, "not what ledger/checkpoint covers");
    check(&|it| it.leaves.truncate(8 * LEAF_BYTES), "leaf 8 is another");
    check(&|it| it.leaves.extend([0; LEAF_BYTES]), "not what ledger/checkpoint covers");
    check(&|it| it.leaves.push(0), "ends within a leaf");
    check(&|it| it.checkpoint = it.checkpoint.replace("\n9\n", "\n8\n"), "ledger/checkpoint:");
    check(&|it| it.checkpoint = small.checkpoints[8].to_string(), "not what ledger/checkpoint");
    check(&|it| it.checkpoint.clear(), "ledger/checkpoint:");
}

#[test]
fn the_key_is_asked_for_where_one_is_given() {
    let file = write((small().contents)());
    let key = |seed| Signatory::of(&SigningKey::from_bytes(&[seed; 32]));
    assert!(verify(&mut &*file, None, Some(&key(5))).unwrap().key_proved);
    let error = verify(&mut &*file, None, Some(&key(6))).unwrap_err();
    assert!(matches!(error, VerifyError::Key { .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let other = SigningKey::from_bytes(&[6; 32]);
    let other = Ledger::open(folder.path(), other, Options::default()).unwrap();
    let error = run(&file, Some(&other.checkpoint())).unwrap_err();
    assert!(matches!(error, VerifyError::Checkpoint { .. }), "{error}");
}

/// The script that ships in each bundle finds what the binary finds: a change of each position, cuts,
/// roll-backs, other histories; and its signatures are those of RFC 8032.
#[test]
fn real_the_script_finds_what_the_binary_finds() {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "python3 is missing");
        return;
    }
    let (small, other) = (self::small(), self::small());
    let folder = tempfile::tempdir().unwrap();
    let put = |name: String, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
    };
    put("bundle.tar".to_owned(), &write((small.contents)()));
    for (size, checkpoint) in (0..).zip(&small.checkpoints) {
        let kind = if size <= MADE_AT { "kept" } else { "later" };
        put(format!("{kind}-{size}"), checkpoint.as_str().as_bytes());
    }
    for size in [1, 8, 9] {
        put(format!("other-{size}"), other.checkpoints[size].as_str().as_bytes());
    }
    let scripts = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        std::fs::write(scripts.path().join(name), text).unwrap();
        scripts.path().join(name)
    };
    let verifier = script("verify_bundle.py", bundle::SCRIPT);
    let harness = script("every_position.py", include_str!("every_position.py"));
    let python = |args: &[&Path]| {
        let mut command = Command::new("python3");
        // Isolated: what the machine has installed beside the standard library is not seen.
        command.args(["-I", "-B"]).args(args).output().unwrap()
    };
    let output = python(&[&harness, &verifier, folder.path()]);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");

    let bundle = folder.path().join("bundle.tar");
    let good =
        python(&[&verifier, &bundle, "--checkpoint".as_ref(), &folder.path().join("kept-9")]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stdout));
    let old =
        python(&[&verifier, &bundle, "--checkpoint".as_ref(), &folder.path().join("later-12")]);
    assert_eq!(old.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&old.stdout).contains("rolled back"));
}
