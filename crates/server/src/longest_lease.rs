//! How long the leases may be that servers before this start gave.
//!
//! A server that was started again does not know to whom the one before it gave leases, only that
//! the last of them is over when the longest has passed since its own start. That length may have
//! been another one then, so it is kept in a file, which is written before a lease of that length
//! is given, and says less again only when the longer ones are over. A process that ends at any
//! moment leaves a length that is not too short.
//!
//! Where the file is missing or cannot be read although the folder has served before (a restored
//! backup, an older version's folder), the longest lease is taken that any enforcer accepts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use estoppel_killswitch::LEASE_MAX;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::files;

const FILE: &str = "longest-lease.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    longest_lease_ms: u64,
}

/// The file in a data folder.
#[derive(Debug)]
pub(crate) struct LongestLease {
    path: PathBuf,
    own: Duration,
    /// What the file says, as far as it was written.
    kept: Option<Duration>,
}

impl LongestLease {
    /// Reads how long the leases of before may be, `None` in a folder that was never served, and
    /// writes what holds from now on. What could not be read or written is told in words; it keeps
    /// no server from its start.
    pub(crate) fn open(
        data: &Path,
        served_before: bool,
        own: Duration,
    ) -> (Self, Option<Duration>, Option<String>) {
        let path = data.join(FILE);
        let (before, kept, mut warning) = match read(&path) {
            Ok(Some(kept)) => (Some(kept), Some(kept), None),
            Ok(None) => (served_before.then_some(LEASE_MAX), None, None),
            Err(reason) => {
                let path = path.display();
                let longest = LEASE_MAX.as_secs();
                let text = format!("`{path}` cannot be read ({reason}): {longest} s are assumed");
                (Some(LEASE_MAX), None, Some(text))
            }
        };
        let mut this = Self { path, own, kept };
        if let Err(error) = this.keep(before.map_or(own, |before| before.max(own))) {
            let path = this.path.display();
            warning = Some(format!(
                "`{path}` cannot be written ({error}): after the next start enforcers may be \
                 missing in what is told of a halt"
            ));
        }
        (this, before, warning)
    }

    /// The leases of before are over: only those of this server are left.
    ///
    /// # Errors
    /// When the file cannot be written; what it says is too long then, which costs time alone.
    pub(crate) fn those_before_are_over(&mut self) -> std::io::Result<()> {
        self.keep(self.own)
    }

    /// Waits until the leases of before are over, and keeps that; ends with the server.
    pub(crate) async fn outlive(mut self, before: Duration, stop: CancellationToken) {
        // The timer stands still while the machine sleeps: it may be late, and never early.
        if stop.run_until_cancelled(tokio::time::sleep(before)).await.is_none() {
            return;
        }
        let kept = tokio::task::spawn_blocking(move || self.those_before_are_over()).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "the longest lease is not kept; the next start waits for longer");
        }
    }

    fn keep(&mut self, longest: Duration) -> std::io::Result<()> {
        if self.kept == Some(longest) {
            return Ok(());
        }
        let longest_lease_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let content = serde_json::to_vec(&Kept { longest_lease_ms })?;
        files::write_private(&self.path, &content)?;
        self.kept = Some(longest);
        Ok(())
    }
}

fn read(path: &Path) -> std::io::Result<Option<Duration>> {
    let Some(content) = files::read_if_there(path)? else { return Ok(None) };
    let kept: Kept = serde_json::from_slice(&content)?;
    Ok(Some(Duration::from_millis(kept.longest_lease_ms).min(LEASE_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Each start with what it finds; `passed` is whether it lived until the leases of before were
    /// over.
    #[test]
    fn the_longest_lease_outlasts_starts_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let start = |served_before, own, passed: bool| {
            let (mut lease, before, warning) =
                LongestLease::open(dir.path(), served_before, seconds(own));
            assert_eq!(warning, None);
            if passed {
                lease.those_before_are_over().unwrap();
            }
            before
        };
        assert_eq!(start(false, 15, true), None, "nobody served this folder");
        assert_eq!(start(true, 15, false), Some(seconds(15)));
        assert_eq!(start(true, 120, false), Some(seconds(15)));
        assert_eq!(start(true, 15, false), Some(seconds(120)), "from now on, for 120 s");
        assert_eq!(start(true, 15, false), Some(seconds(120)), "it ended before they had passed");
        assert_eq!(start(true, 15, true), Some(seconds(120)));
        assert_eq!(start(true, 15, true), Some(seconds(15)));
    }

    #[test]
    fn what_is_missing_or_damaged_counts_as_the_longest() {
        let dir = tempfile::tempdir().unwrap();
        let open = || LongestLease::open(dir.path(), true, seconds(15));
        let (_, before, warning) = open();
        assert_eq!((before, warning), (Some(LEASE_MAX), None), "an older version's folder");
        for content in ["", "{", "{\"longest_lease_ms\":-1}", "{\"longest_lease_ms\":1,\"x\":2}"] {
            std::fs::write(dir.path().join(FILE), content).unwrap();
            let (_, before, warning) = open();
            assert_eq!(before, Some(LEASE_MAX), "{content}");
            assert!(warning.unwrap().contains("cannot be read"), "{content}");
        }
        std::fs::write(dir.path().join(FILE), format!("{{\"longest_lease_ms\":{}}}", u64::MAX))
            .unwrap();
        assert_eq!(open().1, Some(LEASE_MAX), "no enforcer accepts more");
    }

    /// A disk that takes nothing keeps no server from stopping agents.
    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        // A folder in its place can be neither read nor replaced, also not by root.
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        let (_, before, warning) = LongestLease::open(dir.path(), true, seconds(15));
        assert_eq!(before, Some(LEASE_MAX));
        assert!(warning.unwrap().contains("cannot be written"));
    }
}
