//! Custody: who did what to a piece of evidence, as a chain of lines.
//!
//! Each line holds the SHA-256 of the line before it, so that a line that was changed, left out or
//! put in between is found. Lines cut off at the end are not: for that the chain's head is recorded
//! in the ledger, whose checkpoints are signed.
//!
//! A host keeps such a chain beside each capture. The vault's chains are records of the ledger
//! ([`crate::Chains`]).

use estoppel_model::{Actor, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{CaptureId, Digest};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CustodyAction {
    /// Evidence was taken from its source.
    Acquire,
    /// It was compared with its manifest.
    Verify,
    /// Somebody looked at it.
    Access,
    /// It was copied.
    Copy,
    /// It went to another keeper.
    Transfer,
    /// It left Estoppel.
    Export,
    /// Something was made out of it.
    Derive,
    /// It was deleted.
    Dispose,
}

impl CustodyAction {
    /// The action's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Verify => "verify",
            Self::Access => "access",
            Self::Copy => "copy",
            Self::Transfer => "transfer",
            Self::Export => "export",
            Self::Derive => "derive",
            Self::Dispose => "dispose",
        }
    }
}

/// What happened, before it has its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustodyEntry {
    /// The capture that it is about.
    pub capture: CaptureId,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What.
    pub action: CustodyAction,
    /// Where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What for.
    pub purpose: String,
    /// The manifest's digest before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_before: Option<Digest>,
    /// The manifest's digest after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_after: Option<Digest>,
    /// What it came to, such as `41 items, 3 gaps`.
    pub result: String,
}

/// One line of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustodyEvent<E = CustodyEntry> {
    /// Its place, counted from 0.
    pub seq: u64,
    /// SHA-256 of the line before, without its line feed; absent at the first.
    pub prev_hash: Option<Digest>,
    /// What happened.
    #[serde(flatten)]
    pub entry: E,
}

/// Where a chain stands: enough to append, and to see later that nothing was cut off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many lines there are.
    pub count: u64,
    /// SHA-256 of the last.
    pub last: Option<Digest>,
}

/// The chain is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// A line that is no custody event.
    #[error("custody line {line}: {source}")]
    Json {
        /// Which, counted from 0.
        line: u64,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A line that does not follow the one before it.
    #[error(
        "custody line {line} does not follow the line before: something was changed, left out or put in"
    )]
    Broken {
        /// Which, counted from 0.
        line: u64,
    },
    /// The chain is not as long as its head says, or ends otherwise.
    #[error(
        "the custody chain ends after {found} lines, its recorded head is {expected}: lines were cut off or changed"
    )]
    Head {
        /// How many lines the head counts.
        expected: u64,
        /// How many there are.
        found: u64,
    },
}

impl Head {
    /// Puts an entry in its place and returns its line, without a line feed.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no value of these types brings about.
    pub fn append<E: Serialize>(&mut self, entry: E) -> Result<String, serde_json::Error> {
        let event = CustodyEvent { seq: self.count, prev_hash: self.last, entry };
        let line = serde_json::to_string(&event)?;
        *self = Self { count: self.count + 1, last: Some(Digest::of(line.as_bytes())) };
        Ok(line)
    }
}

/// Reads a chain and proves it, up to `head` where one is known.
///
/// # Errors
/// Names the first line that does not fit.
pub fn verify<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    head: Option<Head>,
) -> Result<Vec<CustodyEvent>, CustodyError> {
    let mut events = Vec::new();
    let mut at = Head::default();
    for text in lines {
        let line = at.count;
        let event: CustodyEvent =
            serde_json::from_str(text).map_err(|source| CustodyError::Json { line, source })?;
        if (event.seq, event.prev_hash) != (at.count, at.last) {
            return Err(CustodyError::Broken { line });
        }
        at = Head { count: at.count + 1, last: Some(Digest::of(text.as_bytes())) };
        events.push(event);
    }
    match head {
        Some(head) if head != at => {
            Err(CustodyError::Head { expected: head.count, found: at.count })
        }
        _ => Ok(events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: usize) -> (Head, Vec<String>) {
        let mut head = Head::default();
        let capture = CaptureId::new();
        let lines = (0..count)
            .map(|index| {
                head.append(CustodyEntry {
                    capture,
                    time: "2026-02-05T03:00:00Z".parse().unwrap(),
                    actor: Actor::new("host:h").unwrap(),
                    action: CustodyAction::Acquire,
                    from: None,
                    to: Some("/var/lib/estoppel".into()),
                    purpose: "halt".into(),
                    hash_before: None,
                    hash_after: Some(Digest::of(b"x")),
                    result: format!("{index} items"),
                })
                .unwrap()
            })
            .collect();
        (head, lines)
    }

    fn run(lines: &[String], head: Option<Head>) -> Result<Vec<CustodyEvent>, CustodyError> {
        verify(lines.iter().map(String::as_str), head)
    }

    #[test]
    fn a_changed_dropped_swapped_or_repeated_line_is_found() {
        let (head, lines) = chain(4);
        assert_eq!(run(&lines, Some(head)).unwrap().len(), 4);
        for at in 0..lines.len() {
            let mut changed = lines.clone();
            changed[at] = changed[at].replace("items", "jtems");
            assert!(run(&changed, Some(head)).is_err(), "changed {at}");
            let mut dropped = lines.clone();
            dropped.remove(at);
            assert!(run(&dropped, Some(head)).is_err(), "dropped {at}");
            let mut repeated = lines.clone();
            repeated.insert(at, lines[at].clone());
            assert!(run(&repeated, Some(head)).is_err(), "repeated {at}");
        }
        let mut swapped = lines.clone();
        swapped.swap(1, 2);
        assert!(matches!(run(&swapped, None), Err(CustodyError::Broken { line: 1 })));
    }

    #[test]
    fn a_cut_end_is_found_only_with_the_head() {
        let (head, lines) = chain(3);
        assert!(run(&lines[..2], None).is_ok());
        let error = run(&lines[..2], Some(head)).unwrap_err();
        assert!(matches!(error, CustodyError::Head { expected: 3, found: 2 }), "{error}");
    }
}
