//! The signed list: an in-toto statement, and what it says of the evidence.

use std::collections::{BTreeMap, BTreeSet};

use estoppel_model::{Actor, Id, IncidentId, IncidentNumber, Timestamp, text::quoted};
use serde::{Deserialize, Serialize};

use super::{BundleError, FIXED_NAMES, archive, blob_name, bytes_max, manifest_name};
use crate::{CaptureId, Digest, Hashed, Signatory, Tool, custody::Head, named};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What the predicate is, and its version.
pub const PREDICATE_TYPE: &str = "https://estoppel.dev/evidence-bundle/v1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    pub(super) subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    pub(super) predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subject {
    pub(super) name: String,
    digest: DigestSet,
    annotations: Annotations,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestSet {
    sha256: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    bytes: u64,
}

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    /// Names the bundle.
    pub bundle: Id<named::Bundle>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub created_by: Actor,
    /// What for.
    pub purpose: String,
    /// With what.
    pub tool: Tool,
    /// The key that signs it, its custody events and the ledger's checkpoint.
    pub key: Signatory,
    /// Whose evidence it holds.
    pub captures: Vec<BundledCapture>,
    /// Contents that a manifest lists and the vault no longer has as they were.
    pub missing: Vec<Absent>,
}

/// A capture of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledCapture {
    /// The capture.
    pub capture: CaptureId,
    /// The incident that it serves.
    pub incident: IncidentId,
    /// The incident's number for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<IncidentNumber>,
    /// SHA-256 of its manifest.
    pub manifest: Digest,
    /// Where its custody chain stands, this export included.
    pub custody: Head,
    /// Whether its contents were disposed of: then they are not in the bundle.
    pub disposed: bool,
}

/// A content that is not in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// SHA-256 of what should be there.
    pub sha256: Digest,
    /// Why it is not.
    pub why: String,
}

impl Subject {
    pub(super) fn new(name: String, content: Hashed) -> Self {
        let (digest, annotations) =
            (DigestSet { sha256: content.sha256 }, Annotations { bytes: content.bytes });
        Self { name, digest, annotations }
    }

    pub(super) const fn content(&self) -> Hashed {
        Hashed { sha256: self.digest.sha256, bytes: self.annotations.bytes }
    }

    /// The digest of a blob, from its name.
    pub(super) fn is_blob(&self) -> bool {
        self.name == blob_name(&self.digest.sha256)
    }
}

impl Statement {
    pub(super) fn new(subject: Vec<Subject>, predicate: Predicate) -> Self {
        let (kind, predicate_type) = (STATEMENT_TYPE.to_owned(), PREDICATE_TYPE.to_owned());
        Self { kind, subject, predicate_type, predicate }
    }

    /// Reads a payload that `key` has signed: a list in which each name is one that a bundle has, in
    /// its place, and no larger than it may be.
    pub(super) fn read(payload: &[u8], key: &Signatory) -> Result<Self, BundleError> {
        let statement: Self = serde_json::from_slice(payload)
            .map_err(|error| BundleError::statement(error.to_string()))?;
        for (found, expected) in
            [(&statement.kind, STATEMENT_TYPE), (&statement.predicate_type, PREDICATE_TYPE)]
        {
            if found != expected {
                let found = quoted(found);
                return Err(BundleError::statement(format!(
                    "it is of type {found}, not `{expected}`; a newer estoppel may know it"
                )));
            }
        }
        if statement.predicate.key != *key {
            return Err(BundleError::statement("it names another key than the one that signed"));
        }
        statement.check_names()?;
        Ok(statement)
    }

    fn check_names(&self) -> Result<(), BundleError> {
        let wrong = |name: &str| {
            BundleError::statement(format!("{} is not a name that comes there", quoted(name)))
        };
        let mut subjects = self.subject.iter();
        for expected in FIXED_NAMES {
            let name = subjects.next().map_or("", |subject| subject.name.as_str());
            if name != expected {
                return Err(wrong(name));
            }
        }
        // Manifests, then blobs, each by its digest in rising order: none twice.
        let mut last = None;
        for subject in subjects {
            let digest = subject.content().sha256;
            let place = (subject.is_blob(), digest);
            let named = subject.is_blob() || subject.name == manifest_name(&digest);
            if !named || last.is_some_and(|last| last >= place) {
                return Err(wrong(&subject.name));
            }
            last = Some(place);
        }
        for subject in &self.subject {
            let (bytes, bytes_max) = (subject.content().bytes, bytes_max(&subject.name));
            if bytes > bytes_max.min(archive::BYTES_MAX) {
                return Err(BundleError::TooLarge { file: subject.name.clone(), bytes, bytes_max });
            }
        }
        Ok(())
    }

    /// The blobs, by digest.
    pub(super) fn blobs(&self) -> BTreeMap<Digest, Hashed> {
        self.subject
            .iter()
            .filter(|subject| subject.is_blob())
            .map(|subject| (subject.content().sha256, subject.content()))
            .collect()
    }

    /// The manifests' digests.
    pub(super) fn manifests(&self) -> BTreeSet<Digest> {
        let rest = self.subject.iter().skip(FIXED_NAMES.len());
        rest.filter(|subject| !subject.is_blob()).map(|it| it.content().sha256).collect()
    }
}
