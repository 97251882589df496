//! The order spool: the only way in for orders, and a node's own memory of them.
//!
//! A text file, one signed order a line behind the CRC-32C of the line. It is read whole before
//! anything else starts, so that a node that comes back enforces before it has recovered. Appends
//! go through a thread of their own: a disk that hangs delays what is said of durability, never a
//! broadcast. An fsync that fails poisons the file: what the kernel then holds is not known.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::mpsc,
};

use estoppel_model::{OrderId, SignedOrder};
use tokio::sync::oneshot;

use crate::StartError;

const FILE: &str = "orders.spool";
/// Orders that wait for the disk; more are in force without being kept, and say so.
const QUEUE_MAX: usize = 10_000;

/// What opening a spool found.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The orders, in the order of their acceptance.
    pub orders: Vec<SignedOrder>,
    /// What is wrong with the file, in words for the operator.
    pub warnings: Vec<String>,
}

/// Hands orders to the spool's thread.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    queue: mpsc::SyncSender<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: OrderId,
    order: SignedOrder,
    kept: oneshot::Sender<Result<(), SpoolError>>,
}

/// Why an order is in force but not on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SpoolError {
    /// The disk refused.
    #[error("order {id} is in force, but not kept: {reason}")]
    Disk { id: OrderId, reason: String },
    /// Too many wait, or the thread has ended.
    #[error("order {id} is in force, but not kept: the spool does not keep up")]
    Busy { id: OrderId },
}

impl Spool {
    /// Opens the spool of a data folder and starts its thread.
    ///
    /// # Errors
    /// When the file cannot be opened or read. A torn or broken line is a warning: the ledger has
    /// the order, too, and to refuse to start would be to stop nothing.
    pub(crate) fn open(data: &Path) -> Result<(Self, Recovered), StartError> {
        let path = data.join(FILE);
        let io = |source| StartError::File { path: path.clone(), source };
        let mut file =
            fs::OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(io)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io)?;
        let recovered = recover(&content);
        if content.last().is_some_and(|byte| *byte != b'\n') {
            // A torn line was never acknowledged; a new one must not be glued to it.
            let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            file.set_len(whole as u64).map_err(io)?;
            file.seek(io::SeekFrom::End(0)).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        fs::File::open(data).and_then(|dir| dir.sync_all()).map_err(io)?;
        let (queue, entries) = mpsc::sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("order-spool".to_owned())
            .spawn(move || Writer { path, file, poisoned: None }.run(&entries))
            .map_err(|source| StartError::File { path: data.join(FILE), source })?;
        Ok((Self { queue }, recovered))
    }

    /// Keeps an order. Returns at once; the receiver learns when it is on disk.
    pub(crate) fn keep(
        &self,
        id: OrderId,
        order: SignedOrder,
    ) -> oneshot::Receiver<Result<(), SpoolError>> {
        let (kept, receiver) = oneshot::channel();
        if let Err(mpsc::TrySendError::Full(entry) | mpsc::TrySendError::Disconnected(entry)) =
            self.queue.try_send(Entry { id, order, kept })
        {
            // Nobody waits any more: then nobody needs to know.
            let _ = entry.kept.send(Err(SpoolError::Busy { id }));
        }
        receiver
    }
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: fs::File,
    poisoned: Option<String>,
}

impl Writer {
    fn run(mut self, entries: &mpsc::Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            let mut group = vec![first];
            group.extend(entries.try_iter().take(999));
            let result = self.append(&group);
            if let Err(reason) = &result {
                tracing::error!(path = %self.path.display(), reason, "orders are in force but not kept");
            }
            for Entry { id, kept, .. } in group {
                let reason = result.clone();
                let _ = kept.send(reason.map_err(|reason| SpoolError::Disk { id, reason }));
            }
        }
    }

    fn append(&mut self, group: &[Entry]) -> Result<(), String> {
        if let Some(reason) = &self.poisoned {
            return Err(format!("an earlier write failed ({reason}): restart the server"));
        }
        let lines: String = group.iter().filter_map(|entry| line(&entry.order)).collect();
        let before = self.file.metadata().map(|metadata| metadata.len());
        let written = self.file.write_all(lines.as_bytes());
        if let Err(error) = written {
            // A full disk leaves a part of a line, which must not be glued to the next one.
            let undone = before.and_then(|length| self.file.set_len(length));
            if let Err(error) = undone {
                self.poisoned = Some(error.to_string());
            }
            return Err(error.to_string());
        }
        self.file.sync_data().map_err(|error| {
            self.poisoned = Some(error.to_string());
            error.to_string()
        })
    }
}

fn line(order: &SignedOrder) -> Option<String> {
    // A signed order is three texts, which always serialise.
    let json = serde_json::to_string(order).ok()?;
    Some(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

fn recover(content: &[u8]) -> Recovered {
    let mut recovered = Recovered { orders: Vec::new(), warnings: Vec::new() };
    let mut lines = content.split(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let last = lines.peek().is_none();
        if line.is_empty() {
            continue;
        }
        match parse(line) {
            Some(order) => recovered.orders.push(order),
            None if last => recovered
                .warnings
                .push(format!("{FILE}: the last line is torn; it was never acknowledged")),
            None => recovered.warnings.push(format!(
                "{FILE}: line {} is damaged; the ledger may have the order",
                index + 1
            )),
        }
    }
    recovered
}

fn parse(line: &[u8]) -> Option<SignedOrder> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
    (u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(json)).then_some(())?;
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> SignedOrder {
        SignedOrder { order: text.to_owned(), key: "k".to_owned(), signature: "s".to_owned() }
    }

    fn keep(spool: &Spool, text: &str) {
        spool.keep(OrderId::new(), order(text)).blocking_recv().unwrap().unwrap();
    }

    fn texts(recovered: &Recovered) -> Vec<&str> {
        recovered.orders.iter().map(|order| order.order.as_str()).collect()
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, found) = Spool::open(dir.path()).unwrap();
        assert!(found.orders.is_empty());
        keep(&spool, "a\nb");
        keep(&spool, "c");
        let (_, found) = Spool::open(dir.path()).unwrap();
        assert_eq!(texts(&found), ["a\nb", "c"]);
        assert!(found.warnings.is_empty());
    }

    #[test]
    fn a_torn_end_costs_nothing_that_was_acknowledged() {
        let whole = [line(&order("a")).unwrap(), line(&order("b")).unwrap()].concat();
        let first = line(&order("a")).unwrap().len();
        for cut in first..whole.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), &whole[..cut]).unwrap();
            let (spool, _) = Spool::open(dir.path()).unwrap();
            keep(&spool, "c");
            let (_, found) = Spool::open(dir.path()).unwrap();
            assert_eq!(texts(&found), ["a", "c"], "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named_and_the_others_are_kept() {
        let lines = ["a", "b", "c"].map(|text| line(&order(text)).unwrap());
        let whole = lines.concat();
        for at in lines[0].len()..lines[0].len() + lines[1].len() - 1 {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 0x01;
            if bytes[at] == b'\n' {
                continue;
            }
            let found = recover(&bytes);
            assert_eq!(texts(&found), ["a", "c"], "flipped at {at}");
            assert!(found.warnings[0].contains("line 2"), "{:?}", found.warnings);
        }
    }
}
