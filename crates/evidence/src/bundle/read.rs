//! Reading a bundle: each byte is hashed or expected, and what it holds fits together.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use super::{
    BundleError, BundledRecord, CHECKPOINT_NAME, CUSTODY_NAME, ENVELOPE_NAME, FIXED_NAMES,
    LEAF_BYTES, LEAVES_NAME, Predicate, archive, bytes_max, envelope, manifest_name,
    statement::{BundledCapture, Statement, Subject},
};
use crate::{
    CaptureId, Digest, Hashed, Hasher, HoldPlaced, HoldReleased, Manifest, SealedManifest,
    Signatory, SignedEvent, VaultEvent,
    custody::{CustodyAction, Head},
};

const PIECE_BYTES: usize = 128 * 1024;
/// Most bytes of all manifests together.
const MANIFESTS_BYTES_MAX: u64 = 64 << 20;

/// A bundle that was read to its end and fits together.
///
/// Whose key signed it, and whether the ledger that it shows is the one that it was, is for its
/// reader to see to.
#[derive(Debug)]
pub struct Bundle {
    /// What it says of itself.
    pub predicate: Predicate,
    /// The manifests of its captures.
    pub manifests: BTreeMap<CaptureId, (SealedManifest, Manifest)>,
    /// The contents that it holds.
    pub blobs: Vec<Hashed>,
    /// The records of its custody and holds.
    pub records: Vec<BundledRecord>,
    /// The custody events among them.
    pub events: Vec<VaultEvent>,
    /// The ledger's checkpoint, unchecked.
    pub checkpoint: String,
    /// The ledger's leaves, unchecked.
    pub leaves: Vec<u8>,
}

/// Reads a bundle, and gives each blob piece by piece to `on_blob`. A blob is proved only when the
/// whole bundle was read: until then its pieces are a stranger's.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn read(
    source: &mut dyn Read,
    on_blob: &mut dyn FnMut(&Digest, &[u8]) -> io::Result<()>,
) -> Result<Bundle, BundleError> {
    let mut entries = Entries { source };
    let (payload, key) = envelope::open(&entries.first(ENVELOPE_NAME)?)?;
    let statement = Statement::read(&payload, &key)?;
    let manifests_bytes = statement.subject.iter().filter(|it| !it.is_blob());
    let manifests_bytes: u64 =
        manifests_bytes.skip(FIXED_NAMES.len()).map(|subject| subject.content().bytes).sum();
    if manifests_bytes > MANIFESTS_BYTES_MAX {
        let why = format!("its manifests have {manifests_bytes} bytes together");
        return Err(BundleError::statement(why));
    }

    let mut files: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for subject in &statement.subject {
        if subject.is_blob() {
            let digest = subject.content().sha256;
            entries.next(subject, &mut |piece| on_blob(&digest, piece))?;
        } else {
            let mut content = Vec::new();
            entries.next(subject, &mut |piece| {
                content.extend_from_slice(piece);
                Ok(())
            })?;
            files.insert(&subject.name, content);
        }
    }
    entries.end(statement.subject.last().map_or(ENVELOPE_NAME, |subject| &subject.name))?;

    let mut text = |name: &str| {
        let content = files.remove(name).unwrap_or_default();
        String::from_utf8(content)
            .map_err(|_| BundleError::statement(format!("{name} is not UTF-8")))
    };
    let (checkpoint, custody) = (text(CHECKPOINT_NAME)?, text(CUSTODY_NAME)?);
    let manifests = manifests(&statement, &mut text)?;
    let leaves = files.remove(LEAVES_NAME).unwrap_or_default();
    if !leaves.len().is_multiple_of(LEAF_BYTES) {
        return Err(BundleError::statement("ledger/leaves ends within a leaf"));
    }
    check_items(&statement, &manifests)?;
    let (records, events) = check_custody(&custody, &statement.predicate)?;
    let blobs = statement.blobs().into_values().collect();
    Ok(Bundle {
        predicate: statement.predicate,
        manifests,
        blobs,
        records,
        events,
        checkpoint,
        leaves,
    })
}

/// The archive's entries, one after the other.
struct Entries<'s> {
    source: &'s mut dyn Read,
}

impl Entries<'_> {
    fn fill(&mut self, into: &mut [u8], file: &str) -> Result<(), BundleError> {
        self.source.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BundleError::CutOff { file: file.to_owned() },
            _ => BundleError::Io(error),
        })
    }

    fn header(&mut self, file: &str) -> Result<[u8; archive::BLOCK], BundleError> {
        let mut header = [0; archive::BLOCK];
        self.fill(&mut header, file)?;
        Ok(header)
    }

    /// The first entry, whose length stands nowhere else.
    fn first(&mut self, name: &str) -> Result<Vec<u8>, BundleError> {
        let header = self.header(name)?;
        let bytes = archive::stated_bytes(&header).filter(|b| archive::header(name, *b) == header);
        let Some(bytes) = bytes else { return Err(BundleError::Entry { file: name.to_owned() }) };
        let bytes_max = bytes_max(name);
        if bytes > bytes_max {
            return Err(BundleError::TooLarge { file: name.to_owned(), bytes, bytes_max });
        }
        let mut content = Vec::new();
        self.content(name, bytes, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    /// The next entry, which must be this one.
    fn next(
        &mut self,
        subject: &Subject,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), BundleError> {
        let (file, expected) = (subject.name.as_str(), subject.content());
        if self.header(file)? != archive::header(file, expected.bytes) {
            return Err(BundleError::Entry { file: file.to_owned() });
        }
        let found = self.content(file, expected.bytes, take)?;
        if found == expected {
            return Ok(());
        }
        let (expected, found) = (expected.sha256, found.sha256);
        Err(BundleError::Content { file: file.to_owned(), expected, found })
    }

    fn content(
        &mut self,
        file: &str,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Hashed, BundleError> {
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(bytes).unwrap_or(PIECE_BYTES))];
        let mut left = bytes;
        while left > 0 {
            let length = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
            let piece = buffer.get_mut(..length).unwrap_or_default();
            self.fill(piece, file)?;
            hasher.update(piece);
            take(piece)?;
            left -= length as u64;
        }
        let mut padding = [0; archive::BLOCK];
        let padding = padding.get_mut(..archive::padding(bytes)).unwrap_or_default();
        self.fill(padding, file)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(BundleError::Padding { file: file.to_owned() });
        }
        Ok(hasher.finish())
    }

    /// Nothing comes but the trailer.
    fn end(&mut self, last: &str) -> Result<(), BundleError> {
        let mut trailer = [0; archive::TRAILER_BYTES];
        self.fill(&mut trailer, "the end")?;
        if trailer.iter().any(|byte| *byte != 0) {
            return Err(BundleError::Padding { file: last.to_owned() });
        }
        let mut more = [0];
        loop {
            match self.source.read(&mut more) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(BundleError::Longer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

type Manifests = BTreeMap<CaptureId, (SealedManifest, Manifest)>;

/// The manifest of each capture, each exactly once.
fn manifests(
    statement: &Statement,
    text: &mut impl FnMut(&str) -> Result<String, BundleError>,
) -> Result<Manifests, BundleError> {
    let mut left = statement.manifests();
    let mut manifests = Manifests::new();
    for capture in &statement.predicate.captures {
        let (id, digest) = (capture.capture, capture.manifest);
        let file = manifest_name(&digest);
        if !left.remove(&digest) {
            let why = format!("capture {id} has no {file}, or shares it with another");
            return Err(BundleError::statement(why));
        }
        let (sealed, manifest) = SealedManifest::open(text(&file)?, Some(digest))
            .map_err(|source| BundleError::Manifest { file: file.clone(), source })?;
        if manifest.id != id {
            return Err(BundleError::statement(format!("{file} is not of capture {id}")));
        }
        manifests.insert(id, (sealed, manifest));
    }
    match left.first() {
        None => Ok(manifests),
        Some(digest) => {
            let why = format!("no capture has {}", manifest_name(digest));
            Err(BundleError::statement(why))
        }
    }
}

/// Each item is there or said to be missing, and nothing is there that no item names.
fn check_items(statement: &Statement, manifests: &Manifests) -> Result<(), BundleError> {
    let blobs = statement.blobs();
    let mut unnamed: BTreeSet<Digest> = blobs.keys().copied().collect();
    let mut missing: BTreeSet<Digest> = BTreeSet::new();
    for absent in &statement.predicate.missing {
        if blobs.contains_key(&absent.sha256) || !missing.insert(absent.sha256) {
            let why = format!("{} is missing and there, or missing twice", absent.sha256);
            return Err(BundleError::statement(why));
        }
    }
    let mut unused = missing.clone();
    let kept = statement.predicate.captures.iter().filter(|capture| !capture.disposed);
    for (_, manifest) in kept.filter_map(|capture| manifests.get(&capture.capture)) {
        for item in &manifest.items {
            let digest = item.stored_sha256;
            unnamed.remove(&digest);
            unused.remove(&digest);
            let fits = match blobs.get(&digest) {
                None => missing.contains(&digest),
                Some(blob) => digest != item.sha256 || blob.bytes == item.bytes,
            };
            if !fits {
                let why = format!("item {} of capture {} is not in it", item.id, manifest.id);
                return Err(BundleError::statement(why));
            }
        }
    }
    match unnamed.first().or_else(|| unused.first()) {
        None => Ok(()),
        Some(digest) => Err(BundleError::statement(format!("no item is {digest}"))),
    }
}

/// Each custody event is signed and continues its capture's chain, up to where that stands.
fn check_custody(
    text: &str,
    predicate: &Predicate,
) -> Result<(Vec<BundledRecord>, Vec<VaultEvent>), BundleError> {
    let mut chains: BTreeMap<CaptureId, Chain<'_>> = predicate
        .captures
        .iter()
        .map(|of| (of.capture, Chain { of, at: Head::default(), disposed: false }))
        .collect();
    let (mut records, mut events): (Vec<BundledRecord>, Vec<VaultEvent>) = Default::default();
    for (index, line) in text.lines().enumerate() {
        let wrong = |why: String| BundleError::Custody { line: index + 1, why };
        let record: BundledRecord =
            serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if records.last().is_some_and(|last| last.seq >= record.seq) {
            return Err(wrong("it does not come after the record before it".to_owned()));
        }
        if record.kind == SignedEvent::KIND.as_str() {
            let signed = serde_json::from_str(&record.body).map_err(|e| wrong(e.to_string()))?;
            let event = signed_event(&signed, &predicate.key).map_err(wrong)?;
            let chain = chains.get_mut(&event.entry.entry.capture);
            let chain = chain.ok_or_else(|| wrong("it is of no capture of it".to_owned()))?;
            chain.take(&event, &signed).map_err(wrong)?;
            events.push(event);
        } else {
            check_hold(&record, predicate).map_err(wrong)?;
        }
        records.push(record);
    }
    for chain in chains.values() {
        if chain.at != chain.of.custody || chain.disposed != chain.of.disposed {
            let why = format!(
                "the custody chain of capture {} ends after {} events, its head says {}: events \
                 were cut off or changed",
                chain.of.capture, chain.at.count, chain.of.custody.count
            );
            return Err(BundleError::Custody { line: records.len() + 1, why });
        }
    }
    Ok((records, events))
}

fn signed_event(signed: &SignedEvent, key: &Signatory) -> Result<VaultEvent, String> {
    if signed.key != *key || !signed.is_signed() {
        return Err(format!("it is not signed by key {key}"));
    }
    signed.read().map_err(|error| error.to_string())
}

/// A hold or its release, of an incident of the bundle.
fn check_hold(record: &BundledRecord, predicate: &Predicate) -> Result<(), String> {
    let read = |error: serde_json::Error| error.to_string();
    let incident = match record.kind.as_str() {
        kind if kind == HoldPlaced::KIND.as_str() => {
            serde_json::from_str::<HoldPlaced>(&record.body).map_err(read)?.incident
        }
        kind if kind == HoldReleased::KIND.as_str() => {
            serde_json::from_str::<HoldReleased>(&record.body).map_err(read)?.incident
        }
        _ => return Err("it is no record of custody".to_owned()),
    };
    let known = predicate.captures.iter().any(|capture| capture.incident == incident);
    if known { Ok(()) } else { Err("it is of no incident of it".to_owned()) }
}

struct Chain<'p> {
    of: &'p BundledCapture,
    at: Head,
    disposed: bool,
}

impl Chain<'_> {
    fn take(&mut self, event: &VaultEvent, signed: &SignedEvent) -> Result<(), String> {
        if (event.seq, event.prev_hash) != (self.at.count, self.at.last) {
            return Err("it does not follow the event before: something was changed, left out or \
                        put in"
                .to_owned());
        }
        let entry = &event.entry.entry;
        let begins = matches!(entry.action, CustodyAction::Acquire | CustodyAction::Transfer);
        if event.seq == 0 && !(begins && entry.hash_after == Some(self.of.manifest)) {
            return Err("the chain does not begin with this capture's manifest".to_owned());
        }
        if event.entry.case != self.of.incident {
            return Err("it is of another incident".to_owned());
        }
        self.disposed |= entry.action == CustodyAction::Dispose;
        self.at = Head { count: event.seq + 1, last: Some(Digest::of(signed.event.as_bytes())) };
        Ok(())
    }
}
