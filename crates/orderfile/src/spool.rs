//! A server's order spool: the only way in for orders, and a node's own memory of them.
//!
//! It is read whole before anything else starts, so that a node that comes back enforces before it
//! has recovered. A line that cannot be read is a warning that names it: the ledger has the order,
//! too. Where the line feed between two lines was damaged, both are read.
//!
//! A write that fails, as on a full disk, is undone, and the next may succeed. An fsync that fails
//! poisons the file for good: what the kernel then holds is not known, and asking again would be
//! answered with a lie. That lie outlasts the process: so what a start has read it writes again. Where
//! even that fails, the start goes on with a spool that keeps nothing, and says so: a server that
//! does not start stops nobody.
//!
//! With an order may stand the records that follow from it (its incident, the detection, the run of
//! a playbook), in the same line: whatever has the halt has these, too, and a process that ends
//! before they are in the ledger loses none of them.

use std::{borrow::Cow, collections::HashMap, io};

use estoppel_model::{NewRecord, OrderId, SignedOrder};
use serde::{Deserialize, Serialize};

use crate::{AppendFile, Folder, line};

const FILE: &str = "orders.spool";

/// The spool of a folder.
#[derive(Debug)]
pub struct OrderSpool<F> {
    file: F,
    poisoned: Option<String>,
}

/// What opening a spool found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The orders, in the order of their acceptance.
    pub orders: Vec<SignedOrder>,
    /// What follows from them, for those from which something does.
    pub follows: HashMap<OrderId, Vec<NewRecord>>,
    /// What is wrong with the file, in words for the operator.
    pub warnings: Vec<String>,
    /// What was read may not be on the disk, and what is appended will not be kept.
    pub not_durable: bool,
}

/// A line's JSON: the fields of a [`SignedOrder`], and what follows from it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'l> {
    order: Cow<'l, str>,
    key: Cow<'l, str>,
    signature: Cow<'l, str>,
    #[serde(default, skip_serializing_if = "<[NewRecord]>::is_empty")]
    follows: Cow<'l, [NewRecord]>,
}

impl<'l> Line<'l> {
    fn of(signed: &'l SignedOrder, follows: &'l [NewRecord]) -> Self {
        let SignedOrder { order, key, signature } = signed;
        Self {
            order: order.into(),
            key: key.into(),
            signature: signature.into(),
            follows: follows.into(),
        }
    }

    fn split(self) -> (SignedOrder, Vec<NewRecord>) {
        let Self { order, key, signature, follows } = self;
        let (order, key, signature) = (order.into(), key.into(), signature.into());
        (SignedOrder { order, key, signature }, follows.into_owned())
    }
}

/// Why orders are not on the disk.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// An fsync failed earlier, or a part of a write could not be undone.
    #[error("an earlier write failed ({reason}): restart the server")]
    Poisoned {
        /// How.
        reason: String,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// An order is no JSON.
    #[error("an order cannot be written")]
    Json(#[from] serde_json::Error),
}

impl<F: AppendFile> OrderSpool<F> {
    /// Name of the file, for messages.
    pub const FILE: &str = FILE;

    /// Opens the spool of a folder, which is made where it is missing.
    ///
    /// A disk that refuses to make durable what was read is no error: the spool is then poisoned from
    /// the beginning ([`Recovered::not_durable`]).
    ///
    /// # Errors
    /// When the file cannot be opened or read: halts may be in it.
    pub fn open(folder: &impl Folder<File = F>) -> io::Result<(Self, Recovered)> {
        let mut file = folder.open(FILE)?;
        let content = file.read()?;
        let mut recovered = recover(&content);
        let made = make_durable(&mut file, &content).and_then(|()| folder.sync());
        let poisoned = made.err().map(|error| error.to_string());
        if let Some(reason) = &poisoned {
            recovered.not_durable = true;
            recovered.warnings.push(format!(
                "{FILE}: the disk does not make it durable ({reason}): halts are taken, and not kept \
                 here; mend the disk and restart the server"
            ));
        }
        Ok((Self { file, poisoned }, recovered))
    }

    /// Appends orders by one write and one fsync. They are on the disk when this returns.
    ///
    /// # Errors
    /// When the disk refuses now, or refused an fsync before: then none of these is kept.
    pub fn append<'o>(
        &mut self,
        orders: impl IntoIterator<Item = &'o SignedOrder>,
    ) -> Result<(), AppendError> {
        self.append_with(orders.into_iter().map(|order| (order, [].as_slice())))
    }

    /// As [`OrderSpool::append`], each order with the records that follow from it.
    ///
    /// # Errors
    /// As of [`OrderSpool::append`].
    pub fn append_with<'o>(
        &mut self,
        orders: impl IntoIterator<Item = (&'o SignedOrder, &'o [NewRecord])>,
    ) -> Result<(), AppendError> {
        if let Some(reason) = &self.poisoned {
            return Err(AppendError::Poisoned { reason: reason.clone() });
        }
        let lines = orders.into_iter().map(|(order, follows)| Line::of(order, follows));
        let lines: String = lines.map(|line| line::encode(&line)).collect::<Result<_, _>>()?;
        let before = self.file.length()?;
        if let Err(error) = self.file.append(lines.as_bytes()) {
            // A full disk leaves a part of a line, which must not be glued to the next one.
            if let Err(error) = self.file.truncate(before) {
                self.poisoned = Some(error.to_string());
            }
            return Err(error.into());
        }
        self.file.sync().map_err(|error| {
            self.poisoned = Some(error.to_string());
            error.into()
        })
    }
}

/// Writes what was read again, with an end to its last line, and syncs it.
fn make_durable(file: &mut impl AppendFile, content: &[u8]) -> io::Result<()> {
    file.rewrite(content)?;
    // What is appended must not be glued to a last line without an end. One of which nothing can be
    // read is torn and was never acknowledged.
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    match content.get(whole..) {
        None | Some([]) => {}
        Some(last) if !read(last).is_empty() => file.append(b"\n")?,
        Some(_) => file.truncate(whole as u64)?,
    }
    file.sync()
}

/// Reads the content of a spool's file, which may be a copy.
pub fn recover(content: &[u8]) -> Recovered {
    let mut recovered = Recovered::default();
    let mut lines = content.split(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let last = lines.peek().is_none();
        if line.is_empty() {
            continue;
        }
        if let Some(line) = line::decode::<Line<'_>>(line) {
            recovered.take(line);
            continue;
        }
        let found = read(line);
        let number = index + 1;
        recovered.warnings.push(match found.len() {
            0 if last => format!("{FILE}: the last line is torn; it was never acknowledged"),
            0 => format!("{FILE}: line {number} is damaged; the ledger may have the order"),
            count => format!(
                "{FILE}: line {number} is damaged; {count} whole in it are kept, the ledger may have \
                 others"
            ),
        });
        found.into_iter().for_each(|line| recovered.take(line));
    }
    recovered
}

impl Recovered {
    fn take(&mut self, line: Line<'_>) {
        let (order, follows) = line.split();
        if !follows.is_empty()
            && let Ok(parsed) = order.parse()
        {
            self.follows.insert(parsed.id, follows);
        }
        self.orders.push(order);
    }
}

/// The whole lines in one that is damaged, or lacks its end: each may be followed by a byte that was
/// a line feed.
fn read(damaged: &[u8]) -> Vec<Line<'static>> {
    let begins = line::begins(damaged);
    let ends = begins.iter().skip(1).copied().chain([damaged.len()]);
    let whole = |(begin, end): (&usize, usize)| {
        let line = damaged.get(*begin..end)?;
        line::decode(line).or_else(|| line::decode(line.split_last()?.1))
    };
    begins.iter().zip(ends).filter_map(whole).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::RealFolder;

    fn order(text: &str) -> SignedOrder {
        SignedOrder { order: text.to_owned(), key: "k".to_owned(), signature: "s".to_owned() }
    }

    fn open(dir: &tempfile::TempDir) -> (OrderSpool<fs::File>, Recovered) {
        OrderSpool::open(&RealFolder::at(dir.path())).unwrap()
    }

    fn line(text: &str) -> String {
        line::encode(&Line::of(&order(text), &[])).unwrap()
    }

    fn texts(recovered: &Recovered) -> Vec<&str> {
        recovered.orders.iter().map(|order| order.order.as_str()).collect()
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, found) = open(&dir);
        assert!(found.orders.is_empty());
        spool.append([&order("a\nb")]).unwrap();
        spool.append([&order("c"), &order("d")]).unwrap();
        let (_, found) = open(&dir);
        assert_eq!(texts(&found), ["a\nb", "c", "d"]);
        assert!(found.warnings.is_empty());
    }

    /// A folder of a disk that takes writes and syncs nothing.
    struct NeverSynced(RealFolder);

    #[derive(Debug)]
    struct NeverSyncedFile(fs::File);

    impl Folder for NeverSynced {
        type File = NeverSyncedFile;

        fn open(&self, name: &str) -> io::Result<NeverSyncedFile> {
            self.0.open(name).map(NeverSyncedFile)
        }

        fn create(&self, name: &str) -> io::Result<NeverSyncedFile> {
            self.0.create(name).map(NeverSyncedFile)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.0.rename(from, to)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
    }

    impl AppendFile for NeverSyncedFile {
        fn length(&self) -> io::Result<u64> {
            self.0.length()
        }

        fn read(&mut self) -> io::Result<Vec<u8>> {
            self.0.read()
        }

        fn rewrite(&mut self, content: &[u8]) -> io::Result<()> {
            self.0.rewrite(content)
        }

        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.append(bytes)
        }

        fn truncate(&mut self, length: u64) -> io::Result<()> {
            self.0.truncate(length)
        }

        fn sync(&mut self) -> io::Result<()> {
            Err(io::Error::other("the disk is broken"))
        }
    }

    /// Invariants stop-never-waits and acknowledged-is-kept: what is there stops, and nothing is said
    /// to be kept.
    #[test]
    fn a_disk_that_syncs_nothing_hides_no_order_and_keeps_none() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).0.append([&order("a")]).unwrap();
        let folder = NeverSynced(RealFolder::at(dir.path()));
        let (mut spool, found) = OrderSpool::open(&folder).unwrap();
        assert_eq!(texts(&found), ["a"]);
        assert!(found.not_durable);
        assert!(found.warnings[0].contains("the disk is broken"), "{:?}", found.warnings);
        for text in ["b", "c"] {
            let error = spool.append([&order(text)]).unwrap_err();
            assert!(matches!(error, AppendError::Poisoned { .. }), "{error}");
        }
        let (mut spool, found) = open(&dir);
        assert_eq!((texts(&found), found.not_durable), (vec!["a"], false));
        spool.append([&order("d")]).unwrap();
    }

    #[test]
    fn what_follows_from_an_order_is_kept_in_its_line_and_lines_of_before_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let halt = estoppel_model::Order {
            id: OrderId::new(),
            scope: estoppel_model::Scope::Global.into(),
            reason: "r".to_owned(),
            issued_by: estoppel_model::Actor::new("a").unwrap(),
            issued_at: estoppel_model::Timestamp::from_micros(1),
            incident: None,
            tenant: None,
            body: estoppel_model::OrderBody::Halt { until: None },
        };
        let signed = order(&serde_json::to_string(&halt).unwrap());
        let kind = estoppel_model::RecordKind::new("incident.opened");
        let at = estoppel_model::Timestamp::from_micros(2);
        let follows = [NewRecord { kind, key: Some("k".to_owned()), at, body: "{}\n".to_owned() }];
        // As the first version wrote it: a signed order and nothing else.
        fs::write(dir.path().join(FILE), line::encode(&order("old")).unwrap()).unwrap();
        let (mut spool, _) = open(&dir);
        spool.append_with([(&signed, follows.as_slice())]).unwrap();
        let (_, found) = open(&dir);
        assert_eq!(texts(&found), ["old", signed.order.as_str()]);
        assert_eq!(found.follows, HashMap::from([(halt.id, follows.to_vec())]));
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    }

    #[test]
    fn a_torn_end_costs_nothing_that_was_acknowledged() {
        let whole = [line("a"), line("b")].concat();
        let first = line("a").len();
        for cut in first..whole.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), &whole[..cut]).unwrap();
            let (mut spool, found) = open(&dir);
            // Where only the line feed is missing, the order is there, and stays.
            let there: &[&str] = if cut + 1 == whole.len() { &["a", "b"] } else { &["a"] };
            assert_eq!(texts(&found), there, "cut at {cut}");
            spool.append([&order("c")]).unwrap();
            let (_, found) = open(&dir);
            assert_eq!(texts(&found), [there, &["c"]].concat(), "cut at {cut}");
        }
    }

    /// An order whose text looks like the begin of another line.
    fn halt(number: u32) -> SignedOrder {
        let text = format!(r#"{{"id":"{number}","reason":"}}x12345678 {{"}}"#);
        SignedOrder { order: text, key: "ab".repeat(32), signature: "01".repeat(64) }
    }

    /// Each byte of three lines becomes each of ten others. It is found, the other lines are read, and
    /// nothing is read that was not written; opening the spool on such a file and appending loses
    /// nothing more.
    #[test]
    fn every_flipped_byte_of_a_line_is_found_and_costs_no_other_line() {
        let orders = [halt(1), halt(2), halt(3)];
        let lines = orders.each_ref().map(|it| line::encode(&Line::of(it, &[])).unwrap());
        let whole = lines.concat().into_bytes();
        let line_of = |at: usize| whole[..at].iter().filter(|byte| **byte == b'\n').count();
        let dir = tempfile::tempdir().unwrap();
        for (at, byte) in whole.iter().enumerate() {
            let flips = (0..8).map(|bit| byte ^ (1 << bit)).chain([!byte, b'\n']);
            for flipped in flips.filter(|flipped| flipped != byte) {
                let mut content = whole.clone();
                content[at] = flipped;
                let found = recover(&content);
                let what = format!("byte {at} is {flipped:#04x}: {:?}", found.warnings);
                assert!(!found.warnings.is_empty(), "{what}");
                let named = |number: usize| {
                    found.warnings.iter().any(|it| it.contains(&format!("line {number} ")))
                };
                // What becomes a line feed ends a line before.
                let number = line_of(at) + 1;
                assert!(named(number) || flipped == b'\n' && named(number + 1), "{what}");
                // A damaged line feed costs nothing, any other byte its own order.
                let mut expect: Vec<&SignedOrder> = orders.iter().collect();
                if *byte != b'\n' {
                    expect.remove(line_of(at));
                }
                assert_eq!(found.orders.iter().collect::<Vec<_>>(), expect, "{what}");
            }
            let mut content = whole.clone();
            content[at] ^= 1 << (at % 8);
            let before = recover(&content).orders;
            fs::write(dir.path().join(FILE), content).unwrap();
            let (mut spool, _) = open(&dir);
            spool.append([&halt(4)]).unwrap();
            let (_, found) = open(&dir);
            assert_eq!(found.orders, [before, vec![halt(4)]].concat(), "byte {at}");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named_and_the_others_are_kept() {
        let lines = ["a", "b", "c"].map(line);
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
