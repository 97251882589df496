//! `evidence`: what hosts captured, who did what with it, and bundles of it.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use estoppel_api::{
    CaptureSummary, CaptureVerified, Client, CustodyLine, DisposeRequest, ExportRequest, FileError,
    HoldRequest, HoldSummary, ReleaseHoldRequest, VerifyCaptureRequest,
};
use estoppel_evidence::{Hasher, Item, Manifest, SealedManifest, Signatory};
use estoppel_ledger::Checkpoint;
use estoppel_server::bundle::{self, Verified, VerifyError};
use serde_json::json;
use uuid::Uuid;

use super::block_on;
use crate::{
    args::{Connect, EvidenceCommand},
    error::{CommandError, Exit, Result},
    output::{Output, inline, table},
};

/// `estoppel evidence`.
pub(crate) fn evidence(command: EvidenceCommand, connect: &Connect, output: &Output) -> Result {
    match command {
        // Without a server, and without a token.
        EvidenceCommand::Verify { bundle: Some(bundle), checkpoint, key, .. } => {
            verify_bundle(&bundle, checkpoint.as_deref(), key.as_deref(), output)
        }
        command => block_on(ask(command, connect, output)),
    }
}

async fn ask(command: EvidenceCommand, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    match command {
        EvidenceCommand::List { incident } => {
            let mut captures = client.captures().await?;
            if let Some(incident) = incident {
                captures.retain(|it| {
                    it.incident.is_some_and(|number| number.to_string() == incident)
                        || it.incident_id.to_string() == incident
                });
            }
            output.answer(&captures, |captures| captures_table(captures))?;
        }
        EvidenceCommand::Show { capture, purpose, item, output: to } => {
            let text = client.manifest(capture, &purpose).await?;
            match (item, to) {
                (Some(item), Some(to)) => {
                    save(&client, capture, &purpose, &find(&text, &item)?, &to, output).await?;
                }
                _ if output.is_json() => output.write(&text)?,
                _ => output.write(&manifest_lines(&open(&text)?))?,
            }
        }
        EvidenceCommand::Export { incident, capture, output: to, purpose } => {
            let request = ExportRequest { incident, captures: capture, purpose };
            let mut file = NewFile::create(&to)?;
            let bytes = client.export_evidence(&request, |piece| file.write(piece)).await?;
            file.keep()?;
            output.answer(&json!({ "file": to, "bytes": bytes }), |_| {
                let to = to.display();
                format!("{to}: {bytes} bytes\nverify it with `estoppel evidence verify {to} --checkpoint FILE`")
            })?;
        }
        EvidenceCommand::Verify { capture: Some(capture), purpose, .. } => {
            let request = VerifyCaptureRequest { purpose: purpose.unwrap_or_default() };
            let verified = client.verify_capture(capture, &request).await?;
            output.answer(&verified, findings)?;
            if !verified.findings.is_empty() {
                return Ok(Exit::Damaged.into());
            }
        }
        // The arguments ask for one of the two.
        EvidenceCommand::Verify { .. } => {
            return Err(CommandError::message(Exit::Usage, "give a bundle, or --capture"));
        }
        EvidenceCommand::Hold { incident: Some(incident), reason } => {
            let request = HoldRequest { incident, reason: reason.unwrap_or_default() };
            let placed = client.hold(&request).await?;
            output.answer(&placed, |placed| {
                format!("held: hold {}\nend it with `estoppel evidence release`", placed.hold)
            })?;
        }
        EvidenceCommand::Hold { .. } => {
            output.answer(&client.holds().await?, |holds| holds_table(holds))?;
        }
        EvidenceCommand::Release { hold, reason } => {
            let released = client.release_hold(hold, &ReleaseHoldRequest { reason }).await?;
            output.answer(&released, |released| format!("released hold {}", released.hold))?;
        }
        EvidenceCommand::Dispose { capture, reason } => {
            let disposed = client.dispose(capture, &DisposeRequest { reason }).await?;
            output.answer(&disposed, |it| {
                format!(
                    "{} contents with {} bytes are gone; {} stay with other captures",
                    it.contents_removed, it.bytes_removed, it.contents_shared
                )
            })?;
        }
        EvidenceCommand::Log { capture } => {
            output.answer(&client.custody(capture).await?, |lines| log_table(lines))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<FileError> for CommandError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Client(error) => error.into(),
            error => Self::new(Exit::Failed, error).hint("nothing was kept: try again"),
        }
    }
}

/// A file that is whole or not there, readable by its owner alone.
struct NewFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self> {
        let named = |error: io::Error| {
            let exit = match error.kind() {
                io::ErrorKind::AlreadyExists => Exit::Conflict,
                _ => Exit::Failed,
            };
            let error = anyhow::Error::new(error).context(format!("`{}`", path.display()));
            CommandError::new(exit, error)
        };
        if path.symlink_metadata().is_ok() {
            return Err(named(io::ErrorKind::AlreadyExists.into()));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", Uuid::now_v7()));
        let part = PathBuf::from(part);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&part).map_err(named)?;
        Ok(Self { path: path.to_owned(), part, file, kept: false })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)
    }

    fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Unlike a rename it replaces nothing that came there meanwhile.
        fs::hard_link(&self.part, &self.path)?;
        self.kept = true;
        fs::remove_file(&self.part)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // It may be gone already.
            let _ = fs::remove_file(&self.part);
        }
    }
}

fn open(text: &str) -> Result<Manifest> {
    let opened = SealedManifest::open(text.to_owned(), None);
    opened.map(|(_, manifest)| manifest).map_err(|error| CommandError::new(Exit::Failed, error))
}

fn find(text: &str, name: &str) -> Result<Item> {
    let items = open(text)?.items;
    let named = |item: &Item| item.id == name || item.stored_sha256.to_string() == name;
    items.into_iter().find(named).ok_or_else(|| {
        CommandError::message(Exit::NotFound, format!("the capture has no item `{name}`"))
            .hint("`estoppel evidence show` without --item lists them")
    })
}

async fn save(
    client: &Client,
    capture: Uuid,
    purpose: &str,
    item: &Item,
    to: &Path,
    output: &Output,
) -> Result<()> {
    let mut file = NewFile::create(to)?;
    let mut hasher = Hasher::default();
    let sha256 = item.stored_sha256.to_string();
    let take = |piece: &[u8]| {
        hasher.update(piece);
        file.write(piece)
    };
    let bytes = client.item(capture, &sha256, purpose, take).await?;
    let found = hasher.finish().sha256;
    if found != item.stored_sha256 {
        let message = format!("what came has SHA-256 {found}, not {sha256}");
        return Err(CommandError::message(Exit::Damaged, message));
    }
    file.keep()?;
    output.answer(&json!({ "file": to, "bytes": bytes, "sha256": sha256 }), |_| {
        format!("{}: {bytes} bytes, SHA-256 {sha256}", to.display())
    })
}

fn verify_bundle(
    file: &Path,
    checkpoint: Option<&Path>,
    key: Option<&str>,
    output: &Output,
) -> Result {
    let key: Option<Signatory> = key
        .map(str::parse)
        .transpose()
        .map_err(|error: estoppel_evidence::KeyError| CommandError::new(Exit::Usage, error))?;
    let usage = |path: &Path, error: anyhow::Error| {
        CommandError::new(Exit::Usage, error.context(format!("`{}`", path.display())))
    };
    let given = match checkpoint {
        None => None,
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| usage(path, error.into()))?;
            Some(Checkpoint::parse(&text).map_err(|error| usage(path, error.into()))?)
        }
    };
    let opened = File::open(file).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("`{}`", file.display()));
        CommandError::new(Exit::NotFound, error)
    })?;
    match bundle::verify(
        &mut BufReader::with_capacity(1 << 17, opened),
        given.as_ref(),
        key.as_ref(),
    ) {
        Ok(verified) => {
            output.answer(&verified, verified_lines)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let hint = match &error {
                VerifyError::RolledBack { .. } => {
                    "give a checkpoint from before the export; if this one is, the ledger lost records"
                }
                VerifyError::Checkpoint { .. } => "is the checkpoint of the same server?",
                _ => "ask for the bundle again; this file proves nothing",
            };
            Err(CommandError::new(Exit::Damaged, error).hint(hint))
        }
    }
}

fn verified_lines(it: &Verified) -> String {
    let mut lines = vec![
        format!(
            "bundle {} of {} by {}: {}",
            it.bundle,
            it.created_at,
            it.created_by,
            inline(&it.purpose)
        ),
        format!(
            "{} captures, {} contents with {} bytes, {} custody events",
            it.captures.len(),
            it.blobs,
            it.bytes,
            it.events
        ),
        format!("signed by key {}", it.key),
    ];
    lines.extend(it.captures.iter().filter(|capture| capture.disposed).map(|capture| {
        format!("the contents of capture {} were disposed of before", capture.capture)
    }));
    lines.extend(
        it.missing
            .iter()
            .map(|absent| format!("MISSING {}: {}", absent.sha256, inline(&absent.why))),
    );
    if !it.key_proved {
        lines.push(
            "no checkpoint or key from elsewhere was given: anybody can have made and signed it"
                .to_owned(),
        );
    }
    lines.push(match it.not_rolled_back_before {
        Some(size) => format!("its ledger has the {size} records of the given checkpoint"),
        None => {
            "no checkpoint was given: an older bundle could pass for the newest. Give one that \
                 was kept elsewhere (a page carries it) with --checkpoint"
                .to_owned()
        }
    });
    lines.push("intact".to_owned());
    lines.join("\n")
}

fn captures_table(captures: &[CaptureSummary]) -> String {
    if captures.is_empty() {
        return "no captures".to_owned();
    }
    let rows: Vec<Vec<String>> = captures
        .iter()
        .map(|it| {
            let state = match (&it.disposed_at, it.held) {
                (Some(_), _) => "disposed",
                (None, true) => "held",
                (None, false) => "kept",
            };
            let incident =
                it.incident.map_or_else(|| it.incident_id.to_string(), |n| n.to_string());
            let origin = it.origin.clone().unwrap_or_default();
            vec![
                it.capture.to_string(),
                incident,
                state.to_owned(),
                it.since.to_string(),
                origin,
                it.summary.clone(),
            ]
        })
        .collect();
    table(&["capture", "incident", "state", "since", "from", "what"], &rows)
}

fn holds_table(holds: &[HoldSummary]) -> String {
    if holds.is_empty() {
        return "no holds".to_owned();
    }
    let rows: Vec<Vec<String>> = holds
        .iter()
        .map(|it| {
            let incident =
                it.incident.map_or_else(|| it.incident_id.to_string(), |n| n.to_string());
            let state = match &it.released {
                None => "in force".to_owned(),
                Some(end) => format!("released by {}: {}", end.by, end.reason),
            };
            let (hold, since) = (it.hold.to_string(), it.since.to_string());
            vec![hold, incident, since, it.by.clone(), it.reason.clone(), state]
        })
        .collect();
    table(&["hold", "incident", "since", "by", "reason", "state"], &rows)
}

fn log_table(lines: &[CustodyLine]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|it| {
            let from_to = [it.from.as_deref(), it.to.as_deref()].map(Option::unwrap_or_default);
            let signed = if it.signed { "signed" } else { "NOT SIGNED" };
            vec![
                it.seq.to_string(),
                it.time.to_string(),
                it.actor.clone(),
                it.action.clone(),
                it.item.clone().unwrap_or_default(),
                from_to.join(" → "),
                it.purpose.clone(),
                it.result.clone(),
                signed.to_owned(),
            ]
        })
        .collect();
    let header =
        ["event", "time", "who", "what", "item", "from → to", "purpose", "result", "signature"];
    table(&header, &rows)
}

fn findings(it: &CaptureVerified) -> String {
    let mut lines: Vec<String> =
        it.findings.iter().map(|finding| format!("DAMAGED: {}", inline(finding))).collect();
    if lines.is_empty() {
        lines.push(format!("{} items are what they were", it.items));
    }
    lines.join("\n")
}

fn manifest_lines(it: &Manifest) -> String {
    let rows: Vec<Vec<String>> = it
        .items
        .iter()
        .map(|item| {
            let digest = item.stored_sha256.to_string();
            vec![item.id.clone(), item.bytes.to_string(), digest, item.gaps.join("; ")]
        })
        .collect();
    let mut lines = vec![
        format!("capture {} of {}", it.id, inline(&it.host)),
        format!("by {} on the authority of {}", it.operator, inline(&it.authority)),
        format!("{} to {}", it.started_at, it.ended_at),
        table(&["item", "bytes", "sha256", "missing of it"], &rows),
    ];
    lines.extend(it.redacted.iter().map(|redaction| {
        let name = redaction.name.inline(200);
        format!("REDACTED in {}: {name} ({} bytes)", inline(&redaction.item), redaction.bytes)
    }));
    lines.extend(
        it.gaps.iter().map(|gap| format!("GAP {}: {}", inline(&gap.what), inline(&gap.why))),
    );
    lines.join("\n")
}
