//! Write-ahead segments made into Parquet files.
//!
//! The segments are read again from disk, a batch at a time, so sealing needs little memory and
//! hashes what is really there. The files count only once the server has written the manifest.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use estoppel_model::Timestamp;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use sha2::{Digest, Sha256};

use super::hot::BATCH_ROWS;
use crate::{
    SqlError,
    layout::{SEAL_VERSION, Seal, SealedFile, SealedTable, stem},
    merkle::MerkleTree,
    row::{BothRows, EventTable, id_of},
    wal::{Segment, recover::Folders, scan},
};

/// Rows of a row group: what can be skipped by its statistics and bloom filters.
const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows of a page.
const PAGE_ROWS: usize = 8 * 1024;
/// Columns by which investigators look for a needle.
const BLOOM_COLUMNS: [&str; 4] = ["session_id", "task_id", "user_id", "destination"];
/// Columns whose values hardly repeat and are long.
const PAYLOAD_COLUMNS: [&str; 4] = ["params", "result", "detections", "attributes"];

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Parquet(#[from] ParquetError),
    #[error("{0}")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Writes the files of a sealed segment and makes them durable. The manifest is the caller's.
pub(super) fn seal(folders: &Folders, segments: &[Segment]) -> Result<Seal, SqlError> {
    let failed = |error: Failure| SqlError::Engine { message: format!("sealing: {error}") };
    write(folders, segments).map_err(failed)
}

fn write(folders: &Folders, segments: &[Segment]) -> Result<Seal, Failure> {
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to seal").into());
    };
    let stem = stem(first.first_seq, last.next_seq);
    let ids = format!("{stem}.ids");
    let mut sealing = Sealing {
        rows: BothRows::new(),
        tables: EventTable::ALL.map(|table| TableFile::new(&folders.segments, &stem, table)),
        ids: HashingFile::create(&folders.segments.join(&ids))?,
        merkle: MerkleTree::default(),
        events: 0,
        lost: 0,
    };
    for segment in segments {
        sealing.segment(&folders.wal, segment)?;
    }
    sealing.flush(1)?;
    let [audit, network] = sealing.tables;
    let tables = [audit.finish()?, network.finish()?].into_iter().flatten().collect();
    let ids = sealing.ids.finish(ids)?;
    File::open(&folders.segments)?.sync_all()?;
    Ok(Seal {
        version: SEAL_VERSION,
        first_seq: first.first_seq,
        next_seq: last.next_seq,
        events: sealing.events,
        lost: sealing.lost,
        merkle_root: hex::encode(sealing.merkle.root()),
        tables,
        ids,
        sealed_at: Timestamp::default(),
    })
}

struct Sealing {
    rows: BothRows,
    tables: [TableFile; 2],
    ids: HashingFile,
    merkle: MerkleTree,
    events: u64,
    lost: u64,
}

impl Sealing {
    fn segment(&mut self, folder: &Path, segment: &Segment) -> Result<(), Failure> {
        let mut bytes = std::fs::read(folder.join(segment.file_name()))?;
        bytes.truncate(usize::try_from(segment.end).unwrap_or(usize::MAX));
        let mut failed = Ok(());
        let scanned = scan(&bytes, 0, segment.first_seq, |seq, event| {
            if failed.is_ok() {
                failed = self.event(seq, event);
            }
        });
        failed?;
        self.lost += scanned.holes.iter().map(|hole| hole.lost).sum::<u64>();
        self.lost += segment.next_seq.saturating_sub(scanned.next_seq);
        for (seq, event) in scanned.tail_events.iter().filter(|(seq, _)| *seq < segment.next_seq) {
            self.lost -= 1;
            self.event(*seq, event)?;
        }
        Ok(())
    }

    fn event(&mut self, seq: u64, event: &[u8]) -> Result<(), Failure> {
        let (Ok((table, at)), Some(id)) = (self.rows.push(seq, event), id_of(event)) else {
            self.lost += 1;
            return Ok(());
        };
        self.tables[table as usize].saw(at);
        self.merkle.push(event);
        self.ids.write_all(id.as_bytes())?;
        self.events += 1;
        self.flush(BATCH_ROWS)
    }

    fn flush(&mut self, rows_min: usize) -> Result<(), Failure> {
        for table in EventTable::ALL {
            let rows = self.rows.of(table);
            if rows.len() >= rows_min {
                self.tables[table as usize].write(&rows.finish()?)?;
            }
        }
        Ok(())
    }
}

struct TableFile {
    folder: PathBuf,
    name: String,
    table: EventTable,
    writer: Option<ArrowWriter<HashingFile>>,
    rows: u64,
    earliest: Timestamp,
    latest: Timestamp,
}

impl TableFile {
    fn new(folder: &Path, stem: &str, table: EventTable) -> Self {
        Self {
            folder: folder.to_owned(),
            name: format!("{stem}.{}.parquet", table.name()),
            table,
            writer: None,
            rows: 0,
            earliest: Timestamp::from_micros(i64::MAX),
            latest: Timestamp::from_micros(i64::MIN),
        }
    }

    fn saw(&mut self, at: Timestamp) {
        self.earliest = self.earliest.min(at);
        self.latest = self.latest.max(at);
    }

    fn write(&mut self, batch: &arrow::array::RecordBatch) -> Result<(), Failure> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let file = HashingFile::create(&self.folder.join(&self.name))?;
                let properties = Some(properties(self.table));
                none.insert(ArrowWriter::try_new(file, self.table.stored(), properties)?)
            }
        };
        writer.write(batch)?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn finish(self) -> Result<Option<SealedTable>, Failure> {
        let Some(writer) = self.writer else { return Ok(None) };
        let file = writer.into_inner()?.finish(self.name)?;
        let Self { table, rows, earliest, latest, .. } = self;
        Ok(Some(SealedTable { table, file, rows, earliest, latest }))
    }
}

fn properties(table: EventTable) -> WriterProperties {
    let column = |name: &str| ColumnPath::from(name);
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_created_by("estoppel".to_owned());
    for name in ["timestamp", "received_at", "_seq"] {
        properties = properties
            .set_column_dictionary_enabled(column(name), false)
            .set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    let schema = table.stored();
    for field in schema.fields() {
        let name = field.name().as_str();
        if BLOOM_COLUMNS.contains(&name) {
            properties = properties.set_column_bloom_filter_enabled(column(name), true);
        }
        if PAYLOAD_COLUMNS.contains(&name) {
            properties = properties
                .set_column_dictionary_enabled(column(name), false)
                .set_column_statistics_enabled(column(name), EnabledStatistics::None);
        }
        if name == "event_id" {
            properties = properties.set_column_dictionary_enabled(column(name), false);
        }
    }
    properties.build()
}

/// A file that is hashed while it is written.
struct HashingFile {
    file: io::BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashingFile {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: io::BufWriter::new(File::create(path)?), hash: Sha256::new(), bytes: 0 })
    }

    fn finish(mut self, name: String) -> io::Result<SealedFile> {
        self.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(SealedFile { name, bytes: self.bytes, sha256: hex::encode(self.hash.finalize()) })
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
