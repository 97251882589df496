//! Bundles of evidence, with the ledger that their custody is in: made for a request, verified
//! offline.
//!
//! `evidence` knows the file; here it is joined to the ledger: each custody record is one of the
//! leaves, the leaves are those of the checkpoint, and of a checkpoint that was kept elsewhere, if
//! there is one. Only that shows whose key signed, and that the ledger was not rolled back since.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use estoppel_evidence::{
    CaptureId, Digest, Hashed, Kept, Signatory, Tool,
    bundle::{
        self, Absent, BundleError, BundledCapture, BundledRecord, Contents, LEAF_BYTES, LEAVES_MAX,
        Predicate, SealedBundle,
    },
    custody::CustodyAction,
};
use estoppel_ledger::{
    Checkpoint, CheckpointError, Hash, Ledger, LedgerError, leaf_of, merkle::Frontier, verifier_key,
};
use estoppel_model::{Actor, Id, Timestamp};
use serde::Serialize;

use crate::{Server, custody::Deed, http::problem::Failure, vault::Vault};

/// What a bundle holds, once it is verified.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Names the bundle.
    pub bundle: String,
    /// The key that signed all of it.
    pub key: Signatory,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub created_by: Actor,
    /// What for.
    pub purpose: String,
    /// The captures.
    pub captures: Vec<BundledCapture>,
    /// How many custody events it has.
    pub events: u64,
    /// How many contents.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What it lacks, and says so.
    pub missing: Vec<Absent>,
    /// How many records its ledger had.
    pub records: u64,
    /// Whether a key or a checkpoint from elsewhere showed whose it is. Otherwise anybody can have
    /// made it.
    pub key_proved: bool,
    /// How many records a checkpoint from elsewhere showed to be those that they were; absent: an
    /// older bundle, or one of a ledger that was rolled back, would look the same.
    pub not_rolled_back_before: Option<u64>,
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file itself.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A custody record is not one of the ledger.
    #[error(
        "custody.jsonl, line {line}: the ledger's leaf {seq} is another: it is not the record that \
         was kept"
    )]
    Leaf {
        /// Which, counted from 1.
        line: usize,
        /// Its place in the ledger.
        seq: u64,
    },
    /// The leaves are not what the bundle's checkpoint covers.
    #[error("ledger/leaves are not what ledger/checkpoint covers")]
    Leaves,
    /// A checkpoint cannot be used.
    #[error("{which}: {source}")]
    Checkpoint {
        /// Which.
        which: &'static str,
        /// Why not.
        source: CheckpointError,
    },
    /// The ledger had more records when the given checkpoint was signed.
    #[error(
        "rolled back: the bundle's ledger has {have} records, and had {kept} when the given \
         checkpoint was signed"
    )]
    RolledBack {
        /// How many the bundle's has.
        have: u64,
        /// How many it had.
        kept: u64,
    },
    /// The ledger's history is another.
    #[error("rewritten: the first {kept} records are not those of the given checkpoint")]
    Rewritten {
        /// How many the checkpoint covers.
        kept: u64,
    },
    /// It is signed by another key.
    #[error("it is signed by key {found}, not by the given {expected}")]
    Key {
        /// Whose it should be.
        expected: Box<Signatory>,
        /// Whose it is.
        found: Box<Signatory>,
    },
}

/// Verifies a bundle, against a checkpoint or a key from elsewhere where there is one.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn verify(
    source: &mut dyn Read,
    given: Option<&Checkpoint>,
    key: Option<&Signatory>,
) -> Result<Verified, VerifyError> {
    let found = bundle::read(source, &mut |_, _| Ok(()))?;
    let signatory = found.predicate.key;
    if let Some(expected) = key.filter(|expected| **expected != signatory) {
        let (expected, found) = (Box::new(*expected), Box::new(signatory));
        return Err(VerifyError::Key { expected, found });
    }
    let ledger_key = verifier_key(*signatory.key());
    let checked = |which, checkpoint: &Checkpoint| {
        checkpoint.verify(&ledger_key).map_err(|source| VerifyError::Checkpoint { which, source })
    };
    let (leaves, _) = found.leaves.as_chunks::<LEAF_BYTES>();
    for (index, record) in found.records.iter().enumerate() {
        let expected = usize::try_from(record.seq).ok().and_then(|seq| leaves.get(seq));
        let disclosed = record.disclosed().map(|(record, salt)| leaf_of(&record, &salt));
        if expected.is_none() || expected != disclosed.as_ref().map(Hash::as_bytes) {
            return Err(VerifyError::Leaf { line: index + 1, seq: record.seq });
        }
    }
    let which = "ledger/checkpoint";
    let checkpoint = Checkpoint::parse(&found.checkpoint)
        .map_err(|source| VerifyError::Checkpoint { which, source })?;
    checked(which, &checkpoint)?;
    let kept = given.map(|given| checked("the given checkpoint", given).map(|()| given.head()));
    let kept = kept.transpose()?;
    let head = checkpoint.head();
    if let Some(kept) = kept.filter(|kept| kept.size > head.size) {
        return Err(VerifyError::RolledBack { have: head.size, kept: kept.size });
    }
    let mut tree = Frontier::default();
    let mut kept_root = kept.map(|_| Hash::empty_root());
    for leaf in leaves {
        tree.push(Hash::from_bytes(*leaf), |_, _, _| {});
        if kept.is_some_and(|kept| kept.size == tree.size()) {
            kept_root = Some(tree.root());
        }
    }
    if (tree.size(), tree.root()) != (head.size, head.root) {
        return Err(VerifyError::Leaves);
    }
    if let Some(kept) = kept.filter(|kept| kept_root != Some(kept.root)) {
        return Err(VerifyError::Rewritten { kept: kept.size });
    }
    let Predicate { bundle, created_at, created_by, purpose, captures, missing, .. } =
        found.predicate;
    Ok(Verified {
        bundle: bundle.to_string(),
        key: signatory,
        created_at,
        created_by,
        purpose,
        captures,
        events: found.events.len() as u64,
        blobs: found.blobs.len() as u64,
        bytes: found.blobs.iter().map(|blob| blob.bytes).sum(),
        missing,
        records: head.size,
        key_proved: given.is_some() || key.is_some(),
        not_rolled_back_before: kept.map(|kept| kept.size),
    })
}

/// Makes a bundle of these captures: the export is in each one's chain before this returns, and in
/// the bundle, too.
pub(crate) async fn make(
    server: &Server,
    captures: Vec<(CaptureId, Kept)>,
    by: Actor,
    purpose: String,
) -> Result<SealedBundle, Failure> {
    let ledger = server.journal().ledger()?.clone();
    if ledger.head().size.saturating_add(captures.len() as u64) > LEAVES_MAX as u64 {
        return Err(Failure::Unprocessable(format!(
            "the ledger has {} records: a bundle proves itself by at most {LEAVES_MAX}",
            ledger.head().size
        )));
    }
    let id: Id<_> = Id::new();
    let (mut manifests, mut wanted) = (Vec::new(), BTreeSet::new());
    for (_, kept) in &captures {
        let (sealed, manifest) = server.manifest_of(kept).await?;
        manifests.push(sealed);
        if kept.disposed_at.is_none() {
            wanted.extend(manifest.items.iter().map(|item| item.stored_sha256));
        }
    }
    let vault = server.vault().clone();
    let measured = tokio::task::spawn_blocking(move || measure(&vault, wanted));
    let (blobs, missing) = measured.await.map_err(Failure::internal)?;
    for (capture, kept) in &captures {
        let deed = Deed {
            capture: *capture,
            case: kept.case,
            item: None,
            actor: by.clone(),
            action: CustodyAction::Export,
            from: Some("vault".to_owned()),
            to: Some(format!("bundle {id}")),
            purpose: purpose.clone(),
            result: format!("a bundle of {} contents, {} missing", blobs.len(), missing.len()),
        };
        server.record_custody(deed, kept.manifest).await?;
    }
    let (captures, places) = bundled(server, &captures)?;
    let predicate = Predicate {
        bundle: id,
        created_at: server.clock().now(),
        created_by: by,
        purpose,
        tool: Tool {
            name: "estoppel".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: None,
        },
        key: Signatory::of(server.key().signing()),
        captures,
        missing,
    };
    let key = server.key().signing().clone();
    let sealed = tokio::task::spawn_blocking(move || {
        let of_ledger = of_ledger(&ledger, &places).map_err(Failure::internal)?;
        let (checkpoint, leaves, records) = of_ledger;
        let contents = Contents { predicate, records, checkpoint, leaves, manifests, blobs };
        contents.seal(&key).map_err(|error| Failure::Unprocessable(error.to_string()))
    });
    sealed.await.map_err(Failure::internal)?
}

/// The captures as they stand now, and the ledger's places of their custody and holds.
fn bundled(
    server: &Server,
    captures: &[(CaptureId, Kept)],
) -> Result<(Vec<BundledCapture>, BTreeSet<u64>), Failure> {
    server.journal().read(|state| {
        let (mut bundled, mut places) = (Vec::new(), BTreeSet::new());
        for (capture, _) in captures {
            let kept = state.chains.capture(*capture);
            let kept = kept.ok_or_else(|| {
                Failure::NotFound(format!("the vault has no capture {capture} any more"))
            })?;
            places.extend(&kept.records);
            bundled.push(BundledCapture {
                capture: *capture,
                incident: kept.case,
                number: state.incidents.incident(kept.case).map(|incident| incident.number),
                manifest: kept.manifest,
                custody: kept.head,
                disposed: kept.disposed_at.is_some(),
            });
        }
        let cases: BTreeSet<_> = bundled.iter().map(|capture| capture.incident).collect();
        for hold in state.chains.holds().filter(|hold| cases.contains(&hold.placed.incident)) {
            places.insert(hold.record);
            places.extend(hold.released.iter().map(|(_, _, place)| *place));
        }
        Ok((bundled, places))
    })
}

type OfLedger = (String, Vec<u8>, Vec<BundledRecord>);

/// The ledger as of now, which has all of these records.
fn of_ledger(ledger: &Ledger, places: &BTreeSet<u64>) -> Result<OfLedger, LedgerError> {
    let checkpoint = ledger.checkpoint();
    let leaves = ledger.leaves(checkpoint.head().size)?;
    let leaves = leaves.iter().flat_map(|leaf| *leaf.as_bytes()).collect();
    let mut records = Vec::new();
    for place in places {
        let (record, salt) = ledger.disclose(*place)?;
        records.push(BundledRecord::of(record, &salt));
    }
    Ok((checkpoint.to_string(), leaves, records))
}

/// Which contents are there as they were, and which are not.
fn measure(vault: &Vault, wanted: BTreeSet<Digest>) -> (Vec<Hashed>, Vec<Absent>) {
    let (mut blobs, mut missing) = (Vec::new(), Vec::new());
    for sha256 in wanted {
        match found_wrong(vault, &sha256) {
            Ok(hashed) => blobs.push(hashed),
            Err(why) => missing.push(Absent { sha256, why }),
        }
    }
    (blobs, missing)
}

/// What is stored under a digest, or why it is not what was captured.
pub(crate) fn found_wrong(vault: &Vault, sha256: &Digest) -> Result<Hashed, String> {
    match vault.measure(sha256) {
        Ok(Some(hashed)) if hashed.sha256 == *sha256 => Ok(hashed),
        Ok(Some(hashed)) => Err(format!("it was changed: its SHA-256 is {}", hashed.sha256)),
        Ok(None) => Err("nothing is stored".to_owned()),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

/// The captures of an incident, or these ones, each once.
pub(crate) fn chosen(
    server: &Server,
    incident: Option<estoppel_model::IncidentId>,
    captures: &[CaptureId],
) -> Result<Vec<(CaptureId, Kept)>, Failure> {
    let mut chosen = BTreeMap::new();
    for capture in captures {
        chosen.insert(*capture, server.kept(*capture)?);
    }
    if let Some(incident) = incident {
        server.journal().read(|state| {
            let of = state.chains.captures().filter(|(_, kept)| kept.case == incident);
            chosen.extend(of.map(|(id, kept)| (id, kept.clone())));
        });
    }
    if chosen.is_empty() {
        return Err(Failure::NotFound("the vault has no capture of it".to_owned()));
    }
    Ok(chosen.into_iter().collect())
}

#[cfg(test)]
mod tests;
