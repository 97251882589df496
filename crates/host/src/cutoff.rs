//! Cuts a cgroup off the network in the kernel: nothing more goes out, on connections that are
//! established, too, some microseconds after the word.
//!
//! Five small eBPF programs are asked by the kernel before a process of the cgroup connects or sends
//! (`ebpf/cutoff.bpf.c`; its bytecode is in our binary). They refuse while the cgroup is cut off, and
//! from a deadline on that the supervisor keeps pushing ahead: what a supervisor that was killed left
//! behind is off the network by itself (*lease*). For that the programs are pinned in a file system,
//! so that they outlive it.
//!
//! What it does not reach: unix sockets (`RunConfig::hide`), and sockets that were made outside of
//! the cgroup and handed in. Needs root, Linux 5.8 and cgroup v2; see bpf(2), cgroups(7).

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData, MapError},
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError,
        links::{FdLink, PinnedLink},
    },
};
use estoppel_model::Boottime;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

static BYTECODE: &[u8] = aya::include_bytes_aligned!("../ebpf/cutoff.bpf.o");
/// The programs that are asked about addresses.
const ADDRESS_PROGRAMS: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];
/// The one that is asked about packets.
const PACKET_PROGRAM: &str = "egress";
/// Where the programs are pinned: our own mount, which agents do not see (`DEFAULT_HIDDEN`).
const PINS: &str = "/run/estoppel/bpf";
/// Beside the pins: which cgroup they are of.
const CGROUP: &str = "cgroup";

/// Places in the map `orders`.
const CUT: u32 = 0;
const DEADLINE_NS: u32 = 1;
/// Places in the map `counts`.
const REFUSED: u32 = 0;
const BYTES_OUT: u32 = 1;
const LAST_OUT_NS: u32 = 2;

/// Why a cgroup cannot be cut off in the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutoffError {
    /// Most often for want of rights.
    #[error("the kernel does not take the memory of the programs that cut the network: {0}")]
    Load(#[from] EbpfError),
    /// Most often because the kernel is too old.
    #[error("the kernel does not take program `{name}` that cuts the network: {source}")]
    Program { name: &'static str, source: ProgramError },
    #[error("the memory of the programs that cut the network cannot be reached: {0}")]
    Map(#[from] MapError),
    #[error("the programs that cut the network cannot be made to outlive this process: {0}")]
    Pin(#[from] PinError),
    #[error("cannot open {path}: {source}")]
    Cgroup { path: PathBuf, source: io::Error },
}

/// What the kernel has counted of a cgroup's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Attempts to connect, and packets, that were refused.
    pub(crate) refused: u64,
    /// Bytes that went out, with the headers of their packets.
    pub(crate) bytes_out: u64,
    /// When the last packet went out, if one did.
    pub(crate) last_out: Option<Boottime>,
}

/// The programs at work on a cgroup. Dropping it takes them off, if no process is left there.
pub(crate) struct Cutoff {
    orders: Array<MapData, u64>,
    counts: Array<MapData, u64>,
    hold: Hold,
}

impl fmt::Debug for Cutoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutoff").field("hold", &self.hold).finish_non_exhaustive()
    }
}

/// What keeps the programs at work.
#[derive(Debug)]
enum Hold {
    /// Pins, until they are removed.
    Pins { cgroup: PathBuf, folder: PathBuf, links: Vec<PinnedLink> },
    /// File descriptors, as long as this process lives.
    Descriptors { _links: Vec<FdLink>, why: String },
}

impl Cutoff {
    /// Puts the programs to work on a cgroup. Blocks for about a millisecond.
    pub(crate) fn attach(cgroup: &Path) -> Result<Self, CutoffError> {
        let folder = fs::File::open(cgroup)
            .map_err(|source| CutoffError::Cgroup { path: cgroup.to_owned(), source })?;
        // The programs read no structures of the kernel, whose description takes 200 ms to load.
        let mut programs = EbpfLoader::new().btf(None).load(BYTECODE)?;
        let mut links = Vec::new();
        for name in ADDRESS_PROGRAMS {
            links
                .push((name, attach_to_addresses(&mut programs, name, &folder).map_err(at(name))?));
        }
        let name = PACKET_PROGRAM;
        links.push((name, attach_to_packets(&mut programs, &folder).map_err(at(name))?));
        let orders = array(&mut programs, "orders")?;
        let counts = array(&mut programs, "counts")?;
        Ok(Self { orders, counts, hold: Hold::new(cgroup, links)? })
    }

    /// Nothing goes out from here on.
    pub(crate) fn cut(&mut self) -> Result<(), CutoffError> {
        Ok(self.orders.set(CUT, 1, 0)?)
    }

    /// Ends the cut, and lets things go out until the deadline.
    pub(crate) fn mend(&mut self, deadline: Boottime) -> Result<(), CutoffError> {
        self.allow_until(deadline)?;
        Ok(self.orders.set(CUT, 0, 0)?)
    }

    /// Sets the deadline: nothing goes out from then on, until this is called again.
    pub(crate) fn allow_until(&mut self, deadline: Boottime) -> Result<(), CutoffError> {
        Ok(self.orders.set(DEADLINE_NS, deadline.as_nanos(), 0)?)
    }

    /// What has been counted so far.
    pub(crate) fn counts(&self) -> Result<Counts, CutoffError> {
        let last = self.counts.get(&LAST_OUT_NS, 0)?;
        Ok(Counts {
            refused: self.counts.get(&REFUSED, 0)?,
            bytes_out: self.counts.get(&BYTES_OUT, 0)?,
            last_out: (last > 0).then(|| Boottime::from_nanos(last)),
        })
    }

    /// What does not hold.
    pub(crate) fn gap(&self) -> Option<String> {
        match &self.hold {
            Hold::Pins { .. } => None,
            Hold::Descriptors { why, .. } => {
                Some(format!("what a killed supervisor leaves behind is not cut off: {why}"))
            }
        }
    }
}

impl Hold {
    fn new(cgroup: &Path, links: Vec<(&'static str, FdLink)>) -> Result<Self, PinError> {
        let folder = match pins(cgroup) {
            Ok(folder) => folder,
            Err(error) => {
                let _links = links.into_iter().map(|(_, link)| link).collect();
                return Ok(Self::Descriptors { _links, why: error.to_string() });
            }
        };
        let pin = |(name, link): (_, FdLink)| link.pin(folder.join(name));
        let links = links.into_iter().map(pin).collect::<Result<_, _>>()?;
        Ok(Self::Pins { cgroup: cgroup.to_owned(), folder, links })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Self::Pins { cgroup, folder, links } = self else { return };
        let events = fs::read_to_string(cgroup.join("cgroup.events"));
        if events.is_ok_and(|events| events.lines().any(|line| line == "populated 1")) {
            // Whoever is left there has nobody who would push the deadline ahead.
            return;
        }
        for link in links.drain(..) {
            if let Err(error) = link.unpin() {
                tracing::warn!(%error, "a pin of a program that cuts the network stays");
            }
        }
        let _ = fs::remove_file(folder.join(CGROUP));
        let _ = fs::remove_dir(folder);
    }
}

/// A new folder for a cgroup's pins; those of cgroups that are gone are removed.
fn pins(cgroup: &Path) -> io::Result<PathBuf> {
    let root = Path::new(PINS);
    fs::create_dir_all(root)?;
    if statfs(root)?.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    }
    for entry in fs::read_dir(root)?.flatten() {
        // The kernel has files of its own there.
        if entry.path().is_dir() && !entry.path().join(CGROUP).exists() {
            // Best effort: programs whose cgroup is gone are asked nothing any more.
            for pin in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_file(pin.path());
            }
            let _ = fs::remove_dir(entry.path());
        }
    }
    // The cgroup's id, which no other will have until the machine starts again.
    let folder = root.join(fs::metadata(cgroup)?.ino().to_string());
    fs::create_dir(&folder)?;
    std::os::unix::fs::symlink(cgroup, folder.join(CGROUP))?;
    Ok(folder)
}

fn attach_to_addresses(
    programs: &mut Ebpf,
    name: &str,
    cgroup: &fs::File,
) -> Result<FdLink, ProgramError> {
    let program = programs.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let program: &mut CgroupSockAddr = program.try_into()?;
    program.load()?;
    // A link stands beside those of others in any case; flags are for what came before links.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    program.take_link(id)?.try_into().map_err(|_| ProgramError::NotAttached)
}

fn attach_to_packets(programs: &mut Ebpf, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program = programs.program_mut(PACKET_PROGRAM).ok_or(ProgramError::NotLoaded)?;
    let program: &mut CgroupSkb = program.try_into()?;
    program.load()?;
    let (kind, mode) = (CgroupSkbAttachType::Egress, CgroupAttachMode::Single);
    let id = program.attach(cgroup, kind, mode)?;
    program.take_link(id)?.try_into().map_err(|_| ProgramError::NotAttached)
}

fn at(name: &'static str) -> impl Fn(ProgramError) -> CutoffError {
    move |source| CutoffError::Program { name, source }
}

fn array(programs: &mut Ebpf, name: &str) -> Result<Array<MapData, u64>, MapError> {
    let missing = || MapError::InvalidName { name: name.to_owned() };
    programs.take_map(name).ok_or_else(missing)?.try_into()
}

#[cfg(test)]
mod tests;
