use std::fs;

use ed25519_dalek::SigningKey;
use estoppel_ledger::{
    Checkpoint, CheckpointError, Doubt, Hash, Ledger, LedgerError, NoteError, Options, Snapshot,
    Standing, merkle,
};
use estoppel_model::{NewRecord, RecordKind};

use crate::support::{closed, copy, fill, key, open, record, tool};

#[test]
fn proofs_from_the_stored_tiles_hold() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let mut heads = vec![ledger.head()];
    for size in 1..=800 {
        fill(&ledger, size - 1, size);
        heads.push(ledger.head());
    }
    for size in [1_u64, 2, 255, 256, 257, 511, 512, 513, 700, 800] {
        let root = heads[usize::try_from(size).unwrap()].root;
        for seq in [0, 1, 254, 255, 256, 511, 512, 699, 799] {
            if seq >= size {
                continue;
            }
            let (leaf, proof) = ledger.prove_inclusion(seq, size).unwrap();
            assert!(merkle::verify_inclusion(leaf, seq, size, root, &proof), "{seq} in {size}");
            assert!(!merkle::verify_inclusion(leaf, seq ^ 1, size, root, &proof));
        }
        for old in [0_u64, 1, 3, 255, 256, 257, 512, 513, 800] {
            if old > size {
                continue;
            }
            let old_root = heads[usize::try_from(old).unwrap()].root;
            let proof = ledger.prove_consistency(old, size).unwrap();
            assert!(
                merkle::verify_consistency((old, old_root), (size, root), &proof),
                "{old} to {size}"
            );
        }
    }
    for (seq, size) in [(0, 0), (5, 5), (0, 801), (800, 801), (u64::MAX, u64::MAX)] {
        let error = ledger.prove_inclusion(seq, size).unwrap_err();
        assert!(matches!(error, LedgerError::NoSuchRecord { size: 800, .. }), "{error}");
    }
    for (old, new) in [(2, 1), (1, 801)] {
        let error = ledger.prove_consistency(old, new).unwrap_err();
        assert!(matches!(error, LedgerError::NoSuchRecord { size: 800, .. }), "{error}");
    }
}

/// Invariant *tamper-evident*: with the leaves and a record's salt anybody proves the record against
/// each checkpoint since, without the ledger.
#[test]
fn leaves_and_salts_prove_a_record_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let mut checkpoints = vec![ledger.checkpoint()];
    for size in 1..=300 {
        fill(&ledger, size - 1, size);
        checkpoints.push(ledger.checkpoint());
    }
    let leaves = ledger.leaves(300).unwrap();
    assert_eq!(leaves.len(), 300);
    let mut tree = merkle::Frontier::default();
    for (checkpoint, leaf) in checkpoints.iter().zip(leaves.iter().map(Some).chain([None])) {
        checkpoint.verify(&estoppel_ledger::verifier_key(key().verifying_key())).unwrap();
        assert_eq!(checkpoint.head().root, tree.root());
        let Some(leaf) = leaf else { break };
        tree.push(*leaf, |_, _, _| {});
    }
    for seq in [0, 1, 255, 256, 299] {
        let (mut disclosed, salt) = ledger.disclose(seq).unwrap();
        let leaf = leaves[usize::try_from(seq).unwrap()];
        assert_eq!(estoppel_ledger::leaf_of(&disclosed, &salt), leaf);
        disclosed.body.push(' ');
        assert_ne!(estoppel_ledger::leaf_of(&disclosed, &salt), leaf);
    }
    assert!(matches!(ledger.disclose(300), Err(LedgerError::NoSuchRecord { size: 300, .. })));
    assert!(matches!(ledger.leaves(301), Err(LedgerError::NoSuchRecord { size: 300, .. })));
}

/// Invariant *tamper-evident*: enforcers keep the last checkpoint and compare at hello.
#[test]
fn a_checkpoint_that_was_kept_elsewhere_shows_a_restored_copy_and_another_history() {
    let dir = closed(300);
    let backup = copy(dir.path());
    let ledger = open(dir.path()).unwrap();
    let early = ledger.checkpoint();
    fill(&ledger, 300, 320);
    let late = ledger.checkpoint();
    assert_eq!(ledger.compare(&early).unwrap(), Standing::Continues);
    assert_eq!(ledger.compare(&late).unwrap(), Standing::Continues);

    let restored = open(backup.path()).unwrap();
    assert_eq!(restored.compare(&early).unwrap(), Standing::Continues);
    assert_eq!(restored.compare(&late).unwrap(), Standing::RolledBack { missing: 20 });
    // It goes on with the same records, but their salts differ: another history.
    fill(&restored, 300, 330);
    assert_eq!(restored.compare(&late).unwrap(), Standing::Rewritten);
    assert_eq!(restored.compare(&early).unwrap(), Standing::Continues);

    let other = tempfile::tempdir().unwrap();
    let other = Ledger::open(other.path(), SigningKey::from_bytes(&[9; 32]), Options::default());
    let error = other.unwrap().compare(&late).unwrap_err();
    assert!(matches!(error, LedgerError::Checkpoint(CheckpointError::OtherOrigin)), "{error}");
    let forged = late.as_str().replacen("\n320\n", "\n300\n", 1);
    let error = ledger.compare(&Checkpoint::parse(&forged).unwrap()).unwrap_err();
    let signature = CheckpointError::Note(NoteError::Signature);
    assert!(matches!(error, LedgerError::Checkpoint(found) if found == signature), "{error}");
}

const NOT_SIGNED: Snapshot = Snapshot::Doubtful(Doubt::NotSigned);

#[test]
fn a_snapshot_comes_back_or_does_not_exist() {
    let dir = closed(300);
    let ledger = open(dir.path()).unwrap();
    let kept = |size, state: &[u8]| Snapshot::Kept { size, state: state.to_vec() };
    assert_eq!(ledger.snapshot_get("orders").unwrap(), Snapshot::Absent);
    ledger.snapshot_put("orders", 290, b"state\n\n\0of orders").unwrap();
    ledger.snapshot_put("empty", 0, b"").unwrap();
    assert_eq!(ledger.snapshot_get("orders").unwrap(), kept(290, b"state\n\n\0of orders"));
    assert_eq!(ledger.snapshot_get("empty").unwrap(), kept(0, b""));
    ledger.snapshot_put("orders", 300, b"newer").unwrap();
    assert_eq!(ledger.snapshot_get("orders").unwrap(), kept(300, b"newer"));
    // A folder in its place is none, either.
    fs::create_dir(dir.path().join("snapshots/folder.snapshot")).unwrap();
    let found = ledger.snapshot_get("folder").unwrap();
    assert!(matches!(found, Snapshot::Doubtful(Doubt::Unreadable(_))), "{found:?}");

    let error = ledger.snapshot_put("orders", 301, b"").unwrap_err();
    assert!(matches!(error, LedgerError::NoSuchRecord { size: 300, .. }), "{error}");
    for name in ["", "../orders", "a/b", "A", "a.b", "\u{202e}", &"x".repeat(65)] {
        let error = ledger.snapshot_put(name, 0, b"").unwrap_err();
        assert!(matches!(error, LedgerError::SnapshotName { .. }), "{error}");
        assert!(ledger.snapshot_get(name).is_err());
        assert!(error.to_string().is_ascii());
    }
}

#[test]
fn a_snapshot_with_any_bit_flipped_does_not_exist() {
    let dir = closed(3);
    let ledger = open(dir.path()).unwrap();
    ledger.snapshot_put("orders", 3, b"halted: global").unwrap();
    let path = dir.path().join("snapshots/orders.snapshot");
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).unwrap();
        assert_eq!(ledger.snapshot_get("orders").unwrap(), NOT_SIGNED, "byte {at}");
        fs::write(&path, &bytes[..at]).unwrap();
        assert_eq!(ledger.snapshot_get("orders").unwrap(), NOT_SIGNED, "cut at {at}");
    }
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(ledger.snapshot_get("orders").unwrap(), Snapshot::Kept { size: 3, .. }));
    // Under another name it would be another fold's state.
    fs::copy(&path, dir.path().join("snapshots/incidents.snapshot")).unwrap();
    assert_eq!(ledger.snapshot_get("incidents").unwrap(), NOT_SIGNED);
}

#[test]
fn a_snapshot_of_another_history_does_not_exist() {
    let dir = closed(5);
    let ledger = open(dir.path()).unwrap();
    ledger.snapshot_put("orders", 5, b"state").unwrap();
    drop(ledger);
    let check = |other: tempfile::TempDir, doubt: Doubt| {
        fs::create_dir_all(other.path().join("snapshots")).unwrap();
        let name = "snapshots/orders.snapshot";
        fs::copy(dir.path().join(name), other.path().join(name)).unwrap();
        let ledger = open(other.path()).unwrap();
        assert_eq!(ledger.snapshot_get("orders").unwrap(), Snapshot::Doubtful(doubt));
        assert_eq!(ledger.verifier_key(), open(dir.path()).unwrap().verifier_key());
    };
    // Salts are random: no two ledgers have one history.
    check(closed(5), Doubt::OtherHistory { size: 5 });
    check(closed(6), Doubt::OtherHistory { size: 5 });
    check(closed(4), Doubt::Ahead { size: 5, have: 4 });

    let stranger = tempfile::tempdir().unwrap();
    let signer = SigningKey::from_bytes(&[9; 32]);
    assert_ne!(signer.verifying_key(), key().verifying_key());
    let foreign = Ledger::open(stranger.path(), signer, Options::default()).unwrap();
    foreign.snapshot_put("orders", 0, b"planted").unwrap();
    let name = "snapshots/orders.snapshot";
    fs::copy(stranger.path().join(name), dir.path().join(name)).unwrap();
    assert_eq!(open(dir.path()).unwrap().snapshot_get("orders").unwrap(), NOT_SIGNED);
}

/// Invariant starting-always-does: what a start must not overlook is not hidden by damage to one
/// place, and no other body is read for it.
#[test]
fn what_is_selected_cannot_be_hidden() {
    let order = || [RecordKind::new("order")];
    let of = |ledger: &Ledger| -> Result<Vec<u64>, LedgerError> {
        let found = ledger.select(ledger.head().size, &order(), "order/")?;
        found.map(|record| record.map(|record| record.seq)).collect()
    };
    let check = |sql: &str, expect: Option<&[u64]>| {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path()).unwrap();
        for n in 0..40 {
            let kind = if n % 7 == 0 { "order" } else { "orders" };
            let key = (n % 7 == 0).then(|| format!("order/{n}"));
            let record = NewRecord { kind: RecordKind::new(kind), key, ..record(n) };
            ledger.append(record).wait().unwrap();
        }
        tool(dir.path()).execute_batch(sql).unwrap();
        assert_eq!(of(&ledger).ok().as_deref(), expect, "{sql}");
    };
    let all: &[u64] = &[0, 7, 14, 21, 28, 35];
    check("", Some(all));
    // Another record's body is the verification's business.
    check("UPDATE record SET body = '[]' WHERE seq = 8", Some(all));
    check("UPDATE record SET kind = 'ordes' WHERE seq = 7", None);
    check("UPDATE record SET key = 'x' WHERE seq = 7", None);
    check("UPDATE record SET body = '[]' WHERE seq = 7", None);
    check("DELETE FROM record WHERE seq = 7", None);
    check("UPDATE record SET seq = -7 WHERE seq = 7", None);
    check("DELETE FROM record WHERE seq = 39", None);
    check("DROP INDEX record_key", None);
    check(
        "DROP INDEX record_key; \
         CREATE INDEX record_key ON record (key) WHERE key IS NOT NULL AND seq <> 7",
        None,
    );
    // Both places of one record: only the hashes show it.
    check("UPDATE record SET kind = 'x', key = 'x' WHERE seq = 7", Some(&[0, 14, 21, 28, 35]));

    let dir = closed(9);
    let ledger = open(dir.path()).unwrap();
    let noted = ledger.select(7, &[], "note/").unwrap();
    assert_eq!(noted.map(|record| record.unwrap().seq).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(ledger.select(0, &order(), "order/").unwrap().count(), 0);
}

#[test]
fn an_empty_ledger_has_the_root_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    assert_eq!(ledger.head().root, Hash::empty_root());
    assert_eq!(ledger.compare(&ledger.checkpoint()).unwrap(), Standing::Continues);
}
