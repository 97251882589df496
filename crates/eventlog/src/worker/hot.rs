//! Rows that are not sealed yet, in memory as Arrow batches.
//!
//! Each segment is read once, up to where the latest request says that it is durable. A query takes
//! the batches that are there when its request comes: requests are taken in order and each names
//! all that was durable, so it sees neither less nor a row twice.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use arrow::array::RecordBatch;

use crate::{
    SqlError,
    row::{BothRows, EventTable, Rows},
    wal::{Segment, scan},
};

/// Rows of a batch.
pub(super) const BATCH_ROWS: usize = 8192;

pub(super) struct Hot {
    folder: PathBuf,
    segments: Vec<HotSegment>,
}

struct HotSegment {
    first_seq: u64,
    read_to: u64,
    next_seq: u64,
    lost: u64,
    rows: BothRows,
    full: [Vec<RecordBatch>; 2],
}

impl HotSegment {
    fn new(first_seq: u64) -> Self {
        Self {
            first_seq,
            read_to: 0,
            next_seq: first_seq,
            lost: 0,
            rows: BothRows::new(),
            full: [Vec::new(), Vec::new()],
        }
    }

    fn rows(&self) -> usize {
        let full: usize = self.full.iter().flatten().map(RecordBatch::num_rows).sum();
        full + self.rows.audit.len() + self.rows.network.len()
    }

    fn push(&mut self, seq: u64, event: &[u8]) -> Result<(), SqlError> {
        if self.rows.push(seq, event).is_err() {
            self.lost += 1;
        }
        for table in EventTable::ALL {
            let rows = self.rows.of(table);
            if rows.len() >= BATCH_ROWS {
                self.full[table as usize].push(rows.finish().map_err(engine)?);
            }
        }
        Ok(())
    }

    fn load(&mut self, folder: &std::path::Path, to: &Segment) -> Result<(), SqlError> {
        let length = to.end.saturating_sub(self.read_to);
        if length == 0 {
            return Ok(());
        }
        let path = folder.join(to.file_name());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, self.read_to)).map_err(
            |error| SqlError::Engine { message: format!("{}: {error}", to.file_name()) },
        )?;
        let mut failed = Ok(());
        let first = self.next_seq;
        let offset = self.read_to;
        let scanned = scan(&bytes, offset, first, |seq, event| {
            if failed.is_ok() {
                failed = self.push(seq, event);
            }
        });
        failed?;
        self.lost += scanned.holes.iter().map(|hole| hole.lost).sum::<u64>();
        // All of this was durable, so what cannot be read at its end is damage as well.
        let missing = to.next_seq.saturating_sub(scanned.next_seq);
        let salvaged = scanned.tail_events.iter().filter(|(seq, _)| *seq < to.next_seq);
        self.lost += missing;
        for (seq, event) in salvaged {
            self.lost -= 1;
            self.push(*seq, event)?;
        }
        (self.read_to, self.next_seq) = (to.end, to.next_seq);
        Ok(())
    }
}

impl Hot {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder, segments: Vec::new() }
    }

    /// Reads what has become durable since the last time.
    pub(super) fn load(&mut self, wal: &[Segment]) -> Result<(), SqlError> {
        // What a snapshot no longer names is sealed: the query reads it from there.
        self.segments.retain(|hot| wal.iter().any(|segment| segment.first_seq == hot.first_seq));
        for segment in wal {
            let known = self.segments.iter().position(|hot| hot.first_seq == segment.first_seq);
            let index = known.unwrap_or_else(|| {
                self.segments.push(HotSegment::new(segment.first_seq));
                self.segments.len() - 1
            });
            let loaded = self.segments[index].load(&self.folder, segment);
            if loaded.is_err() {
                // Half of a segment must not pass for the whole: read it anew next time.
                self.segments.remove(index);
                return loaded;
            }
        }
        Ok(())
    }

    /// Drops rows that are sealed.
    pub(super) fn forget(&mut self, next_seq: u64) {
        self.segments.retain(|segment| segment.first_seq >= next_seq);
    }

    /// The rows of a table.
    pub(super) fn batches(&self, table: EventTable) -> Result<Vec<RecordBatch>, SqlError> {
        let mut batches = Vec::new();
        for segment in &self.segments {
            batches.extend(segment.full[table as usize].iter().cloned());
            let rows: &Rows = segment.rows.as_of(table);
            if rows.len() > 0 {
                batches.push(rows.copy().map_err(engine)?);
            }
        }
        Ok(batches)
    }

    pub(super) fn rows(&self) -> u64 {
        self.segments.iter().map(HotSegment::rows).sum::<usize>() as u64
    }

    pub(super) fn lost(&self) -> u64 {
        self.segments.iter().map(|segment| segment.lost).sum()
    }
}

fn engine(error: impl std::fmt::Display) -> SqlError {
    SqlError::Engine { message: error.to_string() }
}
