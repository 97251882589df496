//! The manifest of one capture.

use estoppel_model::{Actor, Id, IncidentId, OrderId, Subject, Timestamp, Untrusted};
use serde::{Deserialize, Serialize};

use crate::{Digest, Hashed};

/// Version of the manifest's fields.
pub const SCHEMA: u16 = 1;
/// Most items of one manifest that is read back.
pub const ITEMS_MAX: usize = 100_000;

/// What this crate's ids name.
pub mod named {
    /// One capture.
    #[derive(Debug)]
    pub enum Capture {}
    /// One hold on an incident's evidence.
    #[derive(Debug)]
    pub enum Hold {}
    /// One bundle.
    #[derive(Debug)]
    pub enum Bundle {}
}

/// Names one capture.
pub type CaptureId = Id<named::Capture>;

/// What was preserved at one moment on one host, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u16,
    /// Names the capture.
    pub id: CaptureId,
    /// The incident that it serves; absent when the halt was given while no server could be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<IncidentId>,
    /// The order that set the capture off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderId>,
    /// Whose processes were captured.
    pub subject: Subject,
    /// The host's name.
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`: pids and start times mean something within it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Who carried the capture out.
    pub operator: Actor,
    /// On whose authority: who gave the order, and why.
    pub authority: String,
    /// With what.
    pub tool: Tool,
    /// What state the processes were in while they were read.
    pub state: ProcessState,
    /// The containment that held, in words.
    pub containment: String,
    /// Start, by the host's wall clock.
    pub started_at: Timestamp,
    /// End, by the host's wall clock.
    pub ended_at: Timestamp,
    /// What was preserved, in the order in which it was read: the most volatile first.
    pub items: Vec<Item>,
    /// What was taken out of the items.
    pub redacted: Vec<Redaction>,
    /// What could not be preserved.
    pub gaps: Vec<Gap>,
}

/// The program that captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of its executable, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// What processes did while they were read: of running ones the items need not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// Frozen by the kernel, or stopped, before the first read and until after the last.
    Frozen,
    /// Running.
    Running,
}

/// One preserved thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Names the item within its manifest, such as `4711/maps`.
    pub id: String,
    /// The process that it is of; absent: the host or a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessRef>,
    /// How it was acquired, such as `read /proc/4711/maps`.
    pub method: String,
    /// Start of the read.
    pub started_at: Timestamp,
    /// End of the read.
    pub ended_at: Timestamp,
    /// Length of the content, after redaction.
    pub bytes: u64,
    /// SHA-256 of the content, after redaction.
    pub sha256: Digest,
    /// SHA-256 of what is stored: of the content itself as long as it is not encrypted.
    pub stored_sha256: Digest,
    /// What is missing of it, such as `cut at 8388608 bytes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
}

impl Item {
    /// What [`Item::bytes`] and [`Item::sha256`] promise of the content.
    pub const fn content(&self) -> Hashed {
        Hashed { sha256: self.sha256, bytes: self.bytes }
    }
}

/// A process, named so that a reused pid is another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// The pid, in the host's own pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to the process's start.
    pub start_ticks: u64,
}

/// A secret that was taken out. The value leaves no trace but its length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redaction {
    /// The item's id.
    pub item: String,
    /// The variable or argument that held it, as the process wrote it.
    pub name: Untrusted<String>,
    /// Why it was taken for a secret: [`crate::redact::Rule::as_str`].
    pub rule: String,
    /// Length of what was taken out.
    pub bytes: u64,
}

/// Something that is not in the manifest, though it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// What, such as an item's id.
    pub what: String,
    /// Why.
    pub why: String,
}

/// Why a text is not taken as a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the text that the digest was made of.
    #[error("the manifest's digest is {found}, not {expected}: it was changed or is another one")]
    Digest {
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// It is no manifest.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// A newer Estoppel wrote it.
    #[error("the manifest has schema {found}: this version reads {SCHEMA}; use a newer estoppel")]
    Schema {
        /// What it has.
        found: u16,
    },
    /// It is larger than any capture.
    #[error("the manifest lists {count} items: at most {ITEMS_MAX}")]
    TooManyItems {
        /// How many.
        count: usize,
    },
}

impl Manifest {
    /// Serialises the manifest, once and for all.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no value of these types brings about.
    pub fn seal(&self) -> Result<SealedManifest, ManifestError> {
        let text = serde_json::to_string(self)?;
        Ok(SealedManifest { digest: Digest::of(text.as_bytes()), text })
    }
}

/// A manifest's text and the digest over it: what is stored, sent and signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedManifest {
    text: String,
    digest: Digest,
}

impl SealedManifest {
    /// Takes a text that was stored or sent, and reads it.
    ///
    /// `expected` is the digest from elsewhere (the ledger, a signature). Without one a change of
    /// the text cannot be seen.
    ///
    /// # Errors
    /// When the digest differs, or the text is no manifest of a known schema.
    pub fn open(text: String, expected: Option<Digest>) -> Result<(Self, Manifest), ManifestError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: u16,
        }
        let digest = Digest::of(text.as_bytes());
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(ManifestError::Digest { expected, found: digest });
        }
        let Probe { schema } = serde_json::from_str(&text)?;
        if schema != SCHEMA {
            return Err(ManifestError::Schema { found: schema });
        }
        let manifest: Manifest = serde_json::from_str(&text)?;
        if manifest.items.len() > ITEMS_MAX {
            return Err(ManifestError::TooManyItems { count: manifest.items.len() });
        }
        Ok((Self { text, digest }, manifest))
    }

    /// The JSON text, byte for byte.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the text.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use estoppel_model::EntityId;

    use super::*;

    /// A manifest with one item for each content.
    pub(crate) fn manifest(contents: &[&[u8]]) -> Manifest {
        let at: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
        let items = contents.iter().enumerate().map(|(index, content)| Item {
            id: format!("4711/{index}"),
            process: Some(ProcessRef { pid: 4711, start_ticks: 99 }),
            method: format!("read /proc/4711/{index}"),
            started_at: at,
            ended_at: at,
            bytes: content.len() as u64,
            sha256: Digest::of(content),
            stored_sha256: Digest::of(content),
            gaps: vec![],
        });
        Manifest {
            schema: SCHEMA,
            id: CaptureId::new(),
            case: Some(IncidentId::new()),
            order: None,
            subject: Subject::session(EntityId::new("abc").unwrap()),
            host: "host-1".to_owned(),
            boot_id: None,
            operator: Actor::new("host:host-1").unwrap(),
            authority: "halt by alice".to_owned(),
            tool: Tool { name: "estoppel".into(), version: "0.1.0".into(), sha256: None },
            state: ProcessState::Frozen,
            containment: "own cgroup".to_owned(),
            started_at: at,
            ended_at: at,
            items: items.collect(),
            redacted: vec![],
            gaps: vec![Gap { what: "4711/exe".into(), why: "deadline".into() }],
        }
    }

    #[test]
    fn a_manifest_is_opened_only_by_its_digest() {
        let sealed = manifest(&[b"one", b"two"]).seal().unwrap();
        let (again, read) =
            SealedManifest::open(sealed.text().to_owned(), Some(sealed.digest())).unwrap();
        assert_eq!(again, sealed);
        assert_eq!(read.seal().unwrap(), sealed);

        for at in 0..sealed.text().len() {
            let mut bytes = sealed.text().as_bytes().to_vec();
            bytes[at] ^= 1;
            let text = String::from_utf8(bytes).unwrap();
            let error = SealedManifest::open(text, Some(sealed.digest())).unwrap_err();
            assert!(matches!(error, ManifestError::Digest { .. }), "byte {at}: {error}");
        }
    }

    #[test]
    fn what_is_no_manifest_of_this_schema_is_refused() {
        let text = manifest(&[]).seal().unwrap().text().to_owned();
        let open = |text: String| SealedManifest::open(text, None).unwrap_err().to_string();
        assert!(open(text.replace("\"schema\":1", "\"schema\":2")).contains("newer estoppel"));
        assert!(open(text.replace("\"host\"", "\"hots\"")).contains("hots"));
        assert!(open("{}".to_owned()).contains("schema"));
        assert!(open(String::new()).contains("not a manifest"));
    }
}
