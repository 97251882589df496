//! Preserves what the host's `/proc` knows of the agent's processes.
//!
//! Read while they are frozen, the most volatile first, each item with its SHA-256, into a folder of
//! its own on this host: content by digest in `blobs/`, then `manifest.json` and `custody.jsonl`.
//! The folder is evidence by itself; delivering it to a server comes after.
//!
//! The processes are hostile and so is what they left: reads can hang, sizes have no bound, text is
//! any bytes. Every item has a deadline and a cap, the whole capture has both, too, and whatever was
//! not preserved is a gap in the manifest. Not captured: memory, the file system, containers.

mod items;
mod reader;
mod store;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use estoppel_evidence::{
    CaptureId, Digest, Gap, Manifest, ManifestError, ProcessState, SCHEMA, SealedManifest, Tool,
    custody::{self, CustodyAction, CustodyEntry},
};
use estoppel_model::{Actor, Clock, IncidentId, OrderId, Subject};

use self::{items::Items, reader::Reader, store::Store};
use crate::Process;

/// Marks a folder whose content a server has acknowledged.
const DELIVERED: &str = "delivered";
/// Largest manifest that is read back.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Bounds of one capture.
#[derive(Debug, Clone, Copy)]
pub struct CaptureLimits {
    /// Most processes.
    pub processes_max: usize,
    /// Longest item, but for executables.
    pub item_bytes_max: u64,
    /// Longest executable.
    pub exe_bytes_max: u64,
    /// All items together.
    pub total_bytes_max: u64,
    /// How long one item may take, but for executables.
    pub item_within: Duration,
    /// How long all of it may take.
    pub total_within: Duration,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self {
            processes_max: 128,
            item_bytes_max: 8 * 1024 * 1024,
            exe_bytes_max: 256 * 1024 * 1024,
            total_bytes_max: 1024 * 1024 * 1024,
            item_within: Duration::from_secs(2),
            total_within: Duration::from_secs(20),
        }
    }
}

/// What a capture is made for and under which circumstances.
#[derive(Debug, Clone)]
pub struct CaptureRequest {
    /// The incident, where it is known.
    pub case: Option<IncidentId>,
    /// The order that set it off.
    pub order: Option<OrderId>,
    /// Whose processes.
    pub subject: Subject,
    /// Who carries it out.
    pub operator: Actor,
    /// On whose authority.
    pub authority: String,
    /// What the processes do meanwhile.
    pub state: ProcessState,
    /// The containment that holds.
    pub containment: String,
}

/// Why nothing was captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The folder for the evidence cannot be used.
    #[error("evidence folder `{path}`: {source}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest cannot be written or read.
    #[error("evidence folder `{path}`: {source}")]
    Manifest {
        /// The capture's folder.
        path: PathBuf,
        /// Why not.
        source: ManifestError,
    },
}

impl CaptureError {
    fn folder(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Folder { path: path.to_owned(), source }
    }
}

/// A capture that lies in its folder on this host.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The capture.
    pub id: CaptureId,
    /// The incident that it serves, where it is known.
    pub case: Option<IncidentId>,
    /// The order that set it off.
    pub order: Option<OrderId>,
    /// Its folder.
    pub folder: PathBuf,
    /// The manifest's text and digest.
    pub manifest: SealedManifest,
    /// How many items there are.
    pub items: usize,
    /// How many gaps there are.
    pub gaps: usize,
    /// Length of all items.
    pub bytes: u64,
    /// The blobs, each once: what to deliver, under which digest.
    pub blobs: Vec<(Digest, PathBuf)>,
}

/// Captures processes into a new folder below `evidence`. Blocks, at most little longer than
/// `limits.total_within`.
///
/// # Errors
/// When the folder or the manifest cannot be written. Whatever else fails is a gap.
pub fn capture(
    processes: Vec<Process>,
    request: &CaptureRequest,
    limits: &CaptureLimits,
    evidence: &Path,
    clock: &dyn Clock,
) -> Result<Captured, CaptureError> {
    let id = CaptureId::new();
    let started_at = clock.now();
    let store = Store::create(&evidence.join(id.to_string()), limits.total_bytes_max)
        .map_err(CaptureError::folder(evidence))?;
    let reader = Reader::new(Instant::now() + limits.total_within);
    let mut items = Items::new(&store, reader, *limits, clock);
    items.of_processes(processes);
    let (items, redacted, gaps, tool_sha256) = items.finish();
    let manifest = Manifest {
        schema: SCHEMA,
        id,
        case: request.case,
        order: request.order,
        subject: request.subject.clone(),
        host: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .map(|text| text.trim().to_owned()),
        operator: request.operator.clone(),
        authority: request.authority.clone(),
        tool: Tool {
            name: "estoppel".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: tool_sha256,
        },
        state: request.state,
        containment: request.containment.clone(),
        started_at,
        ended_at: clock.now(),
        items,
        redacted,
        gaps,
    };
    let captured = Captured::write(&store, manifest, clock)?;
    store.sync().map_err(CaptureError::folder(&captured.folder))?;
    Ok(captured)
}

impl Captured {
    fn write(store: &Store, manifest: Manifest, clock: &dyn Clock) -> Result<Self, CaptureError> {
        let folder = store.folder();
        let sealed = manifest
            .seal()
            .map_err(|source| CaptureError::Manifest { path: folder.to_owned(), source })?;
        store
            .write("manifest.json", sealed.text().as_bytes())
            .map_err(CaptureError::folder(folder))?;
        let captured = Self::of(folder.to_owned(), &manifest, sealed);
        captured.record(CustodyEntry {
            capture: captured.id,
            time: clock.now(),
            actor: manifest.operator.clone(),
            action: CustodyAction::Acquire,
            from: Some(format!("host {} {}", manifest.host, manifest.subject)),
            to: Some(folder.display().to_string()),
            purpose: manifest.authority.clone(),
            hash_before: None,
            hash_after: Some(captured.manifest.digest()),
            result: format!("{} items, {} gaps", captured.items, captured.gaps),
        })?;
        Ok(captured)
    }

    fn of(folder: PathBuf, manifest: &Manifest, sealed: SealedManifest) -> Self {
        let mut digests: Vec<Digest> =
            manifest.items.iter().map(|item| item.stored_sha256).collect();
        digests.sort_unstable();
        digests.dedup();
        let blob = |digest: Digest| (digest, folder.join(store::BLOBS).join(digest.to_string()));
        Self {
            id: manifest.id,
            case: manifest.case,
            order: manifest.order,
            manifest: sealed,
            items: manifest.items.len(),
            gaps: manifest.gaps.len()
                + manifest.items.iter().map(|item| item.gaps.len()).sum::<usize>(),
            bytes: manifest.items.iter().map(|item| item.bytes).sum(),
            blobs: digests.into_iter().map(blob).collect(),
            folder,
        }
    }

    /// Reads a capture back from its folder.
    ///
    /// # Errors
    /// When there is no manifest, as after a crash in the middle, or one that cannot be read.
    pub fn open(folder: &Path) -> Result<(Self, Manifest), CaptureError> {
        let path = folder.join("manifest.json");
        let length = fs::metadata(&path).map_err(CaptureError::folder(&path))?.len();
        if length > MANIFEST_BYTES_MAX {
            let error = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{length} bytes: at most {MANIFEST_BYTES_MAX}"),
            );
            return Err(CaptureError::folder(&path)(error));
        }
        let text = fs::read_to_string(&path).map_err(CaptureError::folder(&path))?;
        let (sealed, manifest) = SealedManifest::open(text, None)
            .map_err(|source| CaptureError::Manifest { path, source })?;
        Ok((Self::of(folder.to_owned(), &manifest, sealed), manifest))
    }

    /// Records that a server has acknowledged every blob and the manifest.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn mark_delivered(
        &self,
        to: &str,
        by: &Actor,
        clock: &dyn Clock,
    ) -> Result<(), CaptureError> {
        self.record(CustodyEntry {
            capture: self.id,
            time: clock.now(),
            actor: by.clone(),
            action: CustodyAction::Transfer,
            from: Some(self.folder.display().to_string()),
            to: Some(to.to_owned()),
            purpose: "delivery".to_owned(),
            hash_before: Some(self.manifest.digest()),
            hash_after: Some(self.manifest.digest()),
            result: format!("{} blobs acknowledged", self.blobs.len()),
        })?;
        let mark = self.folder.join(DELIVERED);
        fs::write(&mark, to).map_err(CaptureError::folder(&mark))
    }

    /// Appends to the chain in `custody.jsonl`.
    fn record(&self, entry: CustodyEntry) -> Result<(), CaptureError> {
        use std::io::Write as _;
        let path = self.folder.join("custody.jsonl");
        let invalid = |error: String| {
            CaptureError::folder(&path)(io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(CaptureError::folder(&path))?,
        };
        custody::verify(text.lines(), None).map_err(|error| invalid(error.to_string()))?;
        let mut head = custody::Head {
            count: text.lines().count() as u64,
            last: text.lines().last().map(|line| Digest::of(line.as_bytes())),
        };
        let line = head.append(entry).map_err(|error| invalid(error.to_string()))?;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| {
                writeln!(file, "{line}")?;
                file.sync_all()
            })
            .map_err(CaptureError::folder(&path))
    }
}

/// The captures below a folder that no server has acknowledged, the oldest first.
///
/// One that was cut off by a crash, and so has no manifest, is left where it is and logged.
pub fn pending_captures(evidence: &Path) -> Vec<Captured> {
    let Ok(folders) = fs::read_dir(evidence) else { return Vec::new() };
    let mut pending: Vec<Captured> = folders
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| folder.join(store::BLOBS).is_dir() && !folder.join(DELIVERED).exists())
        .filter_map(|folder| match Captured::open(&folder) {
            Ok((captured, _)) => Some(captured),
            Err(error) => {
                tracing::warn!(%error, "a capture is incomplete");
                None
            }
        })
        .collect();
    pending.sort_by_key(|captured| captured.id);
    pending
}

/// What an error means for a reader of the manifest.
fn gap(what: impl Into<String>, error: &io::Error) -> Gap {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "it was gone".to_owned(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            "the process had ended".to_owned()
        }
        _ => error.to_string(),
    };
    Gap { what: what.into(), why }
}
