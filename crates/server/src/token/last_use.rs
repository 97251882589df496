//! When a token was last used, to the minute.
//!
//! An atomic beside the token, so that authorising writes to no disk and takes no lock that it would
//! not take anyway. It is kept in a file of its own now and then: of no weight for who may do what,
//! so a file that is missing or damaged is a table of zeroes, and a warning.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use estoppel_model::Timestamp;
use uuid::Uuid;

use crate::files;

/// The file in the data folder.
pub(super) const FILE: &str = "tokens-last-use.json";
const MINUTE_US: i64 = 60_000_000;
const NEVER: i64 = i64::MIN;

/// The minute of the last use; clones share it.
#[derive(Debug, Clone)]
pub(super) struct LastUse(Arc<AtomicI64>);

impl Default for LastUse {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(NEVER)))
    }
}

impl LastUse {
    /// Notes a use. A clock that went back changes nothing.
    pub(super) fn touch(&self, now: Timestamp) {
        let minute = now.as_micros() - now.as_micros().rem_euclid(MINUTE_US);
        if self.0.load(Ordering::Relaxed) < minute {
            self.0.fetch_max(minute, Ordering::Relaxed);
        }
    }

    /// The minute of the last use.
    pub(super) fn at(&self) -> Option<Timestamp> {
        Some(self.0.load(Ordering::Relaxed)).filter(|at| *at != NEVER).map(Timestamp::from_micros)
    }
}

/// What the file of a data folder says.
pub(super) fn read(data: &Path) -> HashMap<Uuid, Timestamp> {
    let path = data.join(FILE);
    let read = files::read_if_there(&path).map_err(|error| error.to_string());
    let uses = read.and_then(|content| match content {
        None => Ok(HashMap::new()),
        Some(content) => serde_json::from_slice(&content).map_err(|error| error.to_string()),
    });
    uses.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error, "it is not known when tokens were last used");
        HashMap::new()
    })
}

/// Writes the file.
pub(super) fn write(
    path: &Path,
    uses: impl IntoIterator<Item = (Uuid, Timestamp)>,
) -> std::io::Result<()> {
    let uses: BTreeMap<Uuid, Timestamp> = uses.into_iter().collect();
    files::write_private(path, &serde_json::to_vec_pretty(&uses)?)
}
