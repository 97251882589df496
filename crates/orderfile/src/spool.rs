//! A server's order spool: the only way in for orders, and a node's own memory of them.
//!
//! It is read whole before anything else starts, so that a node that comes back enforces before it
//! has recovered. A line that cannot be read is a warning: the ledger has the order, too.
//!
//! A write that fails, as on a full disk, is undone, and the next may succeed. An fsync that fails
//! poisons the file for good: what the kernel then holds is not known, and asking again would be
//! answered with a lie. That lie outlasts the process: so what a start has read it writes again.
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
    /// # Errors
    /// When the file cannot be opened, read or made durable.
    pub fn open(folder: &impl Folder<File = F>) -> io::Result<(Self, Recovered)> {
        let mut file = folder.open(FILE)?;
        let content = file.read()?;
        let recovered = recover(&content);
        file.rewrite(&content)?;
        // A torn line was never acknowledged; a new one must not be glued to it.
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        match content.get(whole..) {
            None | Some([]) => {}
            Some(last) if line::decode::<Line<'_>>(last).is_some() => file.append(b"\n")?,
            Some(_) => file.truncate(whole as u64)?,
        }
        file.sync()?;
        folder.sync()?;
        Ok((Self { file, poisoned: None }, recovered))
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

/// Reads the content of a spool's file, which may be a copy.
pub fn recover(content: &[u8]) -> Recovered {
    let mut recovered = Recovered::default();
    let mut lines = content.split(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let last = lines.peek().is_none();
        if line.is_empty() {
            continue;
        }
        match line::decode::<Line<'_>>(line) {
            Some(line) => {
                let (order, follows) = line.split();
                if !follows.is_empty()
                    && let Ok(parsed) = order.parse()
                {
                    recovered.follows.insert(parsed.id, follows);
                }
                recovered.orders.push(order);
            }
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
