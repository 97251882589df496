//! What is read of each process, in which order and how.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::Duration,
};

use estoppel_evidence::{
    Digest, Gap, Hashed, Item, Redaction,
    redact::{self, cmdline, environ},
};
use estoppel_model::{Clock, Timestamp, Untrusted};
use serde::Serialize;

use super::{CaptureLimits, gap, reader::Reader, store::Store};
use crate::Process;

/// Files of `/proc/PID` that come first since they change fastest, were the processes not frozen.
const STATE: &[&str] =
    &["stat", "status", "cmdline", "environ", "maps", "cgroup", "mountinfo", "loginuid", "limits"];
/// Files of the network namespace, read once for each.
const NETWORK: &[&str] = &["tcp", "tcp6", "udp", "udp6", "unix", "route", "arp", "raw", "netlink"];
/// Links that say where the process lives.
const LINKS: &[&str] = &[
    "exe",
    "cwd",
    "root",
    "ns/net",
    "ns/mnt",
    "ns/pid",
    "ns/user",
    "ns/ipc",
    "ns/uts",
    "ns/cgroup",
    "ns/time",
];
/// Most open files of one process.
const FDS_MAX: usize = 4_096;
/// How long copying one executable may take.
const EXE_WITHIN: Duration = Duration::from_secs(10);

/// One open file.
#[derive(Serialize)]
struct OpenFile {
    fd: String,
    target: String,
    fdinfo: String,
}

/// A content as it was read.
struct Content {
    bytes: Vec<u8>,
    gaps: Vec<String>,
}

/// Collects items and gaps.
pub(super) struct Items<'a> {
    store: &'a Store,
    reader: Reader,
    limits: CaptureLimits,
    clock: &'a dyn Clock,
    items: Vec<Item>,
    redacted: Vec<Redaction>,
    gaps: Vec<Gap>,
    /// Network namespaces that were read.
    networks: BTreeSet<String>,
    /// Executables that are stored, by device and inode.
    executables: BTreeMap<(u64, u64), (Hashed, Vec<String>)>,
}

impl<'a> Items<'a> {
    pub(super) fn new(
        store: &'a Store,
        reader: Reader,
        limits: CaptureLimits,
        clock: &'a dyn Clock,
    ) -> Self {
        Self {
            store,
            reader,
            limits,
            clock,
            items: Vec::new(),
            redacted: Vec::new(),
            gaps: Vec::new(),
            networks: BTreeSet::new(),
            executables: BTreeMap::new(),
        }
    }

    /// Reads all processes: their state first, their executables last.
    pub(super) fn of_processes(&mut self, mut processes: Vec<Process>) {
        let most = self.limits.processes_max;
        if processes.len() > most {
            self.gaps.push(Gap {
                what: format!("{} processes", processes.len() - most),
                why: format!("a capture takes at most {most}, those with the lowest pids"),
            });
            processes.truncate(most);
        }
        let processes: Vec<Arc<Process>> = processes.into_iter().map(Arc::new).collect();
        for process in &processes {
            if self.reader.is_over() {
                self.too_late(&process.pid().to_string());
                continue;
            }
            for file in STATE {
                self.file(process, file);
            }
            self.content(process, "fds", "readlink fd/*, read fdinfo/*", open_files);
            self.content(process, "links", "readlink", |process| Ok(links(process)));
            self.network(process);
        }
        for process in &processes {
            self.exe(process);
            if process.has_ended() {
                // Of a process that has ended the kernel gives some files, and empty ones.
                let why = "it ended while it was read: items may be empty".to_owned();
                self.gaps.push(Gap { what: process.pid().to_string(), why });
            }
        }
    }

    /// Returns what was collected, and the digest of our own executable.
    pub(super) fn finish(mut self) -> (Vec<Item>, Vec<Redaction>, Vec<Gap>, Option<Digest>) {
        let tool = self.reader.read(EXE_WITHIN, || {
            let mut hasher = estoppel_evidence::Hasher::default();
            let mut file = std::fs::File::open("/proc/self/exe")?;
            let mut piece = vec![0; 128 * 1024];
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(hasher.finish().sha256),
                    length => hasher.update(&piece[..length]),
                }
            }
        });
        (self.items, self.redacted, self.gaps, tool.ok())
    }

    fn too_late(&mut self, what: &str) {
        let why = "the time for the whole capture was over".to_owned();
        self.gaps.push(Gap { what: what.to_owned(), why });
    }

    fn file(&mut self, process: &Arc<Process>, name: &'static str) {
        let most = self.limits.item_bytes_max;
        let method = format!("read /proc/{}/{name}", process.pid());
        self.content(process, name, &method, move |process| read_capped(process.file(name)?, most));
    }

    /// The network as the process sees it; several processes of one namespace see the same.
    fn network(&mut self, process: &Arc<Process>) {
        let reading = Arc::clone(process);
        let namespace = self.reader.read(self.limits.item_within, move || reading.link("ns/net"));
        if namespace.is_ok_and(|namespace| self.networks.insert(namespace)) {
            let most = self.limits.item_bytes_max;
            for table in NETWORK {
                let name = format!("net/{table}");
                let method = format!("read /proc/{}/{name}", process.pid());
                let path = name.clone();
                self.content(process, &name, &method, move |process| {
                    read_capped(process.file(&path)?, most)
                });
            }
        }
    }

    /// Reads one content, redacts it where secrets are to be expected, and stores it.
    fn content(
        &mut self,
        process: &Arc<Process>,
        name: &str,
        method: &str,
        read: impl FnOnce(&Process) -> io::Result<Content> + Send + 'static,
    ) {
        let id = format!("{}/{name}", process.pid());
        let started_at = self.clock.now();
        let reading = Arc::clone(process);
        let content = self.reader.read(self.limits.item_within, move || read(&reading));
        let Content { mut bytes, gaps } = match content {
            Ok(content) => content,
            // A kernel without IPv6, ARP or audit has no such table: nothing is missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !process.has_ended() => return,
            Err(error) => return self.gaps.push(gap(id, &error)),
        };
        let redaction = match name {
            "environ" => Some(environ(whole_entries(&bytes, &gaps))),
            "cmdline" => Some(cmdline(whole_entries(&bytes, &gaps))),
            _ => None,
        };
        if let Some(redaction) = redaction {
            bytes = redaction.content;
            self.record(&id, redaction.redacted);
        }
        match self.store.put(&bytes) {
            Ok(hashed) => self.item(process, id, method.to_owned(), started_at, hashed, gaps),
            Err(error) => self.gaps.push(gap(id, &error)),
        }
    }

    fn record(&mut self, item: &str, redacted: Vec<redact::Redacted>) {
        self.redacted.extend(redacted.into_iter().map(|redacted| Redaction {
            item: item.to_owned(),
            name: Untrusted::new(redacted.name.into_raw()),
            rule: redacted.rule.as_str().to_owned(),
            bytes: redacted.bytes,
        }));
    }

    /// The bytes of what the process runs, once for each file.
    fn exe(&mut self, process: &Arc<Process>) {
        let id = format!("{}/exe", process.pid());
        let method = format!("copy /proc/{}/exe", process.pid());
        let started_at = self.clock.now();
        let reading = Arc::clone(process);
        let opened = self.reader.read(self.limits.item_within, move || {
            let file = reading.exe()?;
            let metadata = file.metadata()?;
            Ok((file, (metadata.dev(), metadata.ino()), metadata.len()))
        });
        let (mut file, inode, length) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.gaps.push(gap(id, &error)),
        };
        if let Some((hashed, gaps)) = self.executables.get(&inode).cloned() {
            return self.item(process, id, method, started_at, hashed, gaps);
        }
        let (store, most) = (self.store.clone(), self.limits.exe_bytes_max);
        let copied = self.reader.read(EXE_WITHIN, move || store.copy(&mut file, most));
        match copied {
            Ok((hashed, more)) => {
                let gaps = if more { vec![cut_at(most, length)] } else { Vec::new() };
                self.executables.insert(inode, (hashed, gaps.clone()));
                self.item(process, id, method, started_at, hashed, gaps);
            }
            Err(error) => self.gaps.push(gap(id, &error)),
        }
    }

    fn item(
        &mut self,
        process: &Process,
        id: String,
        method: String,
        started_at: Timestamp,
        hashed: Hashed,
        gaps: Vec<String>,
    ) {
        self.items.push(Item {
            id,
            process: Some(process.reference()),
            method,
            started_at,
            ended_at: self.clock.now(),
            bytes: hashed.bytes,
            sha256: hashed.sha256,
            stored_sha256: hashed.sha256,
            gaps,
        });
    }
}

/// Of a content that was cut, what is before the last NUL: a secret cut in two may not be known for
/// one.
fn whole_entries<'a>(bytes: &'a [u8], gaps: &[String]) -> &'a [u8] {
    if gaps.is_empty() {
        return bytes;
    }
    &bytes[..bytes.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1)]
}

fn cut_at(most: u64, of: u64) -> String {
    format!("cut at {most} of {of} bytes")
}

fn read_capped(file: std::fs::File, most: u64) -> io::Result<Content> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    let mut gaps = Vec::new();
    if bytes.len() as u64 > most {
        bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        gaps.push(format!("cut at {most} bytes"));
    }
    Ok(Content { bytes, gaps })
}

/// The open files, one JSON object a line.
fn open_files(process: &Process) -> io::Result<Content> {
    let (names, more) = process.names("fd", FDS_MAX)?;
    let mut gaps = Vec::new();
    if more {
        gaps.push(format!("more than {FDS_MAX} open files: only those"));
    }
    let mut bytes = Vec::new();
    for fd in names {
        let text = |result: io::Result<String>| result.unwrap_or_else(|error| error.to_string());
        let info = process.small_file(&format!("fdinfo/{fd}"));
        let file = OpenFile {
            target: text(process.link(&format!("fd/{fd}"))),
            fdinfo: text(info.map(|info| String::from_utf8_lossy(&info).into_owned())),
            fd,
        };
        serde_json::to_writer(&mut bytes, &file)?;
        bytes.push(b'\n');
    }
    Ok(Content { bytes, gaps })
}

/// Where the process lives, as a JSON object.
fn links(process: &Process) -> Content {
    let links: BTreeMap<&str, String> =
        LINKS.iter().filter_map(|name| Some((*name, process.link(name).ok()?))).collect();
    // A map of texts is always JSON.
    let bytes = serde_json::to_vec(&links).unwrap_or_default();
    Content { bytes, gaps: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_was_cut_in_two_is_not_kept() {
        let cut = ["cut at 9 bytes".to_owned()];
        assert_eq!(whole_entries(b"A=1\0B=sk-0", &cut), b"A=1\0");
        assert_eq!(whole_entries(b"B=sk-0", &cut), b"");
        assert_eq!(whole_entries(b"A=1\0B=2", &[]), b"A=1\0B=2");
    }
}
