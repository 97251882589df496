//! Events as bytes in the log and as rows of the two tables.
//!
//! The bytes of an event are fixed when it is appended and hashed as they stand. They are: the
//! kind (one byte, 0 audit, 1 network), the event's id (16 bytes), the arrival in microseconds
//! (`i64`, little-endian), and the event's JSON with its fields in the order of `model`. Two values
//! are brought into one form before: a JSON *text* in a raw column is re-encoded with the fewest
//! escapes, and a count above 2^63 - 1 becomes 2^63 - 1. So the bytes can be made again from a row.

use std::borrow::Cow;

use arrow::{
    array::{
        ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringViewBuilder,
        TimestampMicrosecondBuilder, UInt8Builder, UInt64Builder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use estoppel_model::{AuditEvent, Event, NetworkEvent, ReceivedEvent, Timestamp};
use serde_json::value::RawValue;
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

/// Bytes before an event's JSON.
pub(crate) const HEAD_BYTES: usize = 1 + 16 + 8;
/// The zone of every time. Arrow reads offsets without a zone database, names only with one.
pub(crate) const UTC: &str = "+00:00";

/// One of the two tables of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventTable {
    AuditLog,
    NetworkLog,
}

#[derive(Clone, Copy)]
enum Type {
    Time,
    Text,
    Int,
    Real,
    /// Which raw columns held a JSON text; one bit each, in the order of the columns.
    Bits,
    Seq,
}

const AUDIT: &[(&str, Type)] = &[
    ("timestamp", Type::Time),
    ("session_id", Type::Text),
    ("user_id", Type::Text),
    ("task_id", Type::Text),
    ("agent_id", Type::Text),
    ("requester_tenant_id", Type::Text),
    ("accessed_tenant_id", Type::Text),
    ("action", Type::Text),
    ("tool", Type::Text),
    ("plugin", Type::Text),
    ("plugin_version", Type::Text),
    ("params", Type::Text),
    ("result", Type::Text),
    ("model", Type::Text),
    ("input_tokens", Type::Int),
    ("output_tokens", Type::Int),
    ("estimated_cost", Type::Real),
    ("duration_ms", Type::Real),
    ("decision", Type::Text),
    ("trace_id", Type::Text),
    ("span_id", Type::Text),
    ("detections", Type::Text),
    ("attributes", Type::Text),
    ("received_at", Type::Time),
    ("event_id", Type::Text),
];
const NETWORK: &[(&str, Type)] = &[
    ("timestamp", Type::Time),
    ("session_id", Type::Text),
    ("agent_id", Type::Text),
    ("task_id", Type::Text),
    ("tenant_id", Type::Text),
    ("source_process", Type::Text),
    ("pid", Type::Int),
    ("plugin", Type::Text),
    ("destination", Type::Text),
    ("port", Type::Int),
    ("protocol", Type::Text),
    ("bytes_sent", Type::Int),
    ("bytes_received", Type::Int),
    ("duration_ms", Type::Real),
    ("verdict", Type::Text),
    ("received_at", Type::Time),
    ("event_id", Type::Text),
];
/// Columns behind the visible ones, kept so that an event's bytes can be made again from its row.
const HIDDEN: &[(&str, Type)] = &[("_seq", Type::Seq), ("_json_texts", Type::Bits)];

static STORED: LazyLock<[SchemaRef; 2]> = LazyLock::new(|| [stored(AUDIT), stored(NETWORK)]);
static VISIBLE: LazyLock<[SchemaRef; 2]> =
    LazyLock::new(|| [schema(AUDIT.iter()), schema(NETWORK.iter())]);

fn stored(columns: &[(&'static str, Type)]) -> SchemaRef {
    schema(columns.iter().chain(HIDDEN))
}

fn schema<'a>(columns: impl Iterator<Item = &'a (&'static str, Type)>) -> SchemaRef {
    let field = |(name, of): &(&'static str, Type)| {
        let (data_type, nullable) = match of {
            Type::Time => (DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())), false),
            // Views, not offsets: megabytes of params in many rows outgrow 32-bit offsets.
            Type::Text => (DataType::Utf8View, *name != "event_id"),
            Type::Int => (DataType::Int64, true),
            Type::Real => (DataType::Float64, true),
            Type::Seq => (DataType::UInt64, false),
            Type::Bits => (DataType::UInt8, false),
        };
        Field::new(*name, data_type, nullable)
    };
    Arc::new(Schema::new(columns.map(field).collect::<Vec<_>>()))
}

impl EventTable {
    pub(crate) const ALL: [Self; 2] = [Self::AuditLog, Self::NetworkLog];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AuditLog => "audit_log",
            Self::NetworkLog => "network_log",
        }
    }

    /// The column that says whose row it is: a tenant's own people see only rows with their name.
    pub(crate) const fn tenant_column(self) -> &'static str {
        match self {
            Self::AuditLog => "requester_tenant_id",
            Self::NetworkLog => "tenant_id",
        }
    }

    /// The columns that people see.
    pub(crate) fn visible(self) -> SchemaRef {
        Arc::clone(&VISIBLE[self as usize])
    }

    /// The columns that are stored: the visible ones first, then the hidden.
    pub(crate) fn stored(self) -> SchemaRef {
        Arc::clone(&STORED[self as usize])
    }

    const fn columns(self) -> &'static [(&'static str, Type)] {
        match self {
            Self::AuditLog => AUDIT,
            Self::NetworkLog => NETWORK,
        }
    }
}

/// An event's bytes, as the log keeps them.
///
/// # Errors
/// When the event cannot be written as JSON.
pub(crate) fn encode(received: ReceivedEvent) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(512);
    let kind = match &received.event {
        Event::Audit(_) => 0,
        Event::Network(_) => 1,
    };
    out.push(kind);
    out.extend_from_slice(received.id.as_bytes());
    out.extend_from_slice(&received.received_at.as_micros().to_le_bytes());
    match received.event {
        Event::Audit(mut event) => {
            event.id = Some(received.id);
            event.timestamp = Some(received.timestamp);
            let AuditEvent { params, result, detections, attributes, .. } = &mut *event;
            for raw in [params, result, detections, attributes] {
                canonical_text(raw);
            }
            clamp(&mut event.input_tokens);
            clamp(&mut event.output_tokens);
            serde_json::to_writer(&mut out, &event)?;
        }
        Event::Network(mut event) => {
            event.id = Some(received.id);
            event.timestamp = Some(received.timestamp);
            clamp(&mut event.bytes_sent);
            clamp(&mut event.bytes_received);
            serde_json::to_writer(&mut out, &event)?;
        }
    }
    Ok(out)
}

/// The id in an event's bytes.
pub(crate) fn id_of(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes.get(1..17)?).ok()
}

fn clamp(count: &mut Option<u64>) {
    if let Some(count) = count {
        *count = (*count).min(i64::MAX.unsigned_abs());
    }
}

fn canonical_text(raw: &mut Option<Box<RawValue>>) {
    let Some(value) = raw.as_deref() else { return };
    // A text with half a surrogate pair is no text in Rust: it stays as it came.
    if let Some(text) = json_text(value)
        && let Ok(canonical) = serde_json::value::to_raw_value(&text)
    {
        *raw = Some(canonical);
    }
}

/// The text, if the JSON value is one.
fn json_text(value: &RawValue) -> Option<String> {
    value.get().starts_with('"').then(|| serde_json::from_str(value.get()).ok()).flatten()
}

enum Cell<'a> {
    Null,
    Text(Cow<'a, str>),
    Int(i64),
    Real(f64),
}

impl Cell<'_> {
    fn int(count: Option<impl TryInto<i64>>) -> Self {
        count.map_or(Cell::Null, |count| Cell::Int(count.try_into().unwrap_or(i64::MAX)))
    }

    fn real(number: Option<f64>) -> Self {
        number.map_or(Cell::Null, Cell::Real)
    }
}

fn text<'a>(of: Option<&'a (impl AsRef<str> + ?Sized)>) -> Cell<'a> {
    of.map_or(Cell::Null, |of| Cell::Text(Cow::Borrowed(of.as_ref())))
}

/// The bytes in the log are none that this version could have written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("the event's bytes are too short or of an unknown kind")]
    Head,
    #[error("the event's JSON cannot be read")]
    Json(#[from] serde_json::Error),
}

enum Builder {
    Time(TimestampMicrosecondBuilder),
    Text(StringViewBuilder),
    Int(Int64Builder),
    Real(Float64Builder),
    Bits(UInt8Builder),
    Seq(UInt64Builder),
}

/// Rows of one table on their way into an Arrow batch.
pub(crate) struct Rows {
    table: EventTable,
    columns: Vec<Builder>,
    rows: usize,
}

impl Rows {
    pub(crate) fn new(table: EventTable) -> Self {
        let builder = |(_, of): &(&str, Type)| match of {
            Type::Time => Builder::Time(TimestampMicrosecondBuilder::new().with_timezone(UTC)),
            Type::Text => Builder::Text(StringViewBuilder::new()),
            Type::Int => Builder::Int(Int64Builder::new()),
            Type::Real => Builder::Real(Float64Builder::new()),
            Type::Bits => Builder::Bits(UInt8Builder::new()),
            Type::Seq => Builder::Seq(UInt64Builder::new()),
        };
        let columns = table.columns().iter().chain(HIDDEN).map(builder).collect();
        Self { table, columns, rows: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.rows
    }

    fn push(&mut self, cells: Vec<Cell<'_>>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            match (column, cell) {
                (Builder::Time(column), Cell::Int(at)) => column.append_value(at),
                // Times, bits and sequence numbers are always given: a hole is no row of ours.
                (Builder::Time(column), _) => column.append_value(0),
                (Builder::Text(column), Cell::Text(text)) => column.append_value(text),
                (Builder::Text(column), _) => column.append_null(),
                (Builder::Int(column), Cell::Int(int)) => column.append_value(int),
                (Builder::Int(column), _) => column.append_null(),
                (Builder::Real(column), Cell::Real(real)) => column.append_value(real),
                (Builder::Real(column), _) => column.append_null(),
                (Builder::Bits(column), Cell::Int(bits)) => {
                    column.append_value(u8::try_from(bits).unwrap_or(0));
                }
                (Builder::Bits(column), _) => column.append_value(0),
                (Builder::Seq(column), Cell::Int(seq)) => column.append_value(seq.unsigned_abs()),
                (Builder::Seq(column), _) => column.append_value(0),
            }
        }
        self.rows += 1;
    }

    /// A batch of the rows so far, which stay.
    ///
    /// # Errors
    /// As [`Rows::finish`].
    pub(crate) fn copy(&self) -> Result<RecordBatch, ArrowError> {
        let column = |column: &Builder| -> ArrayRef {
            match column {
                Builder::Time(column) => Arc::new(column.finish_cloned()),
                Builder::Text(column) => Arc::new(column.finish_cloned()),
                Builder::Int(column) => Arc::new(column.finish_cloned()),
                Builder::Real(column) => Arc::new(column.finish_cloned()),
                Builder::Bits(column) => Arc::new(column.finish_cloned()),
                Builder::Seq(column) => Arc::new(column.finish_cloned()),
            }
        };
        RecordBatch::try_new(self.table.stored(), self.columns.iter().map(column).collect())
    }

    /// Takes the rows out as a batch.
    ///
    /// # Errors
    /// When the columns do not fit the schema, which would be a defect of this module.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.rows = 0;
        let columns = self
            .columns
            .iter_mut()
            .map(|column| -> ArrayRef {
                match column {
                    Builder::Time(column) => Arc::new(column.finish()),
                    Builder::Text(column) => Arc::new(column.finish()),
                    Builder::Int(column) => Arc::new(column.finish()),
                    Builder::Real(column) => Arc::new(column.finish()),
                    Builder::Bits(column) => Arc::new(column.finish()),
                    Builder::Seq(column) => Arc::new(column.finish()),
                }
            })
            .collect();
        RecordBatch::try_new(self.table.stored(), columns)
    }
}

/// Rows of both tables, filled from the log.
pub(crate) struct BothRows {
    pub(crate) audit: Rows,
    pub(crate) network: Rows,
}

impl BothRows {
    pub(crate) fn new() -> Self {
        Self { audit: Rows::new(EventTable::AuditLog), network: Rows::new(EventTable::NetworkLog) }
    }

    pub(crate) const fn of(&mut self, table: EventTable) -> &mut Rows {
        match table {
            EventTable::AuditLog => &mut self.audit,
            EventTable::NetworkLog => &mut self.network,
        }
    }

    pub(crate) const fn as_of(&self, table: EventTable) -> &Rows {
        match table {
            EventTable::AuditLog => &self.audit,
            EventTable::NetworkLog => &self.network,
        }
    }

    /// Adds the row of an event's bytes to its table, and says which and when the event happened.
    ///
    /// # Errors
    /// When the bytes are none that [`encode`] makes.
    pub(crate) fn push(
        &mut self,
        seq: u64,
        bytes: &[u8],
    ) -> Result<(EventTable, Timestamp), RowError> {
        let (Some(kind), Some(id), Some(received), Some(json)) = (
            bytes.first(),
            id_of(bytes),
            bytes.get(17..HEAD_BYTES).and_then(|at| at.try_into().ok()),
            bytes.get(HEAD_BYTES..),
        ) else {
            return Err(RowError::Head);
        };
        let received = i64::from_le_bytes(received);
        let id = id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned();
        let seq = Cell::Int(i64::try_from(seq).unwrap_or(i64::MAX));
        match kind {
            0 => {
                let event: AuditEvent = serde_json::from_slice(json)?;
                let at = event.timestamp.unwrap_or_default();
                let (mut cells, texts) = audit_cells(&event);
                cells.extend([Cell::Int(received), Cell::Text(id.into()), seq, Cell::Int(texts)]);
                self.audit.push(cells);
                Ok((EventTable::AuditLog, at))
            }
            1 => {
                let event: NetworkEvent = serde_json::from_slice(json)?;
                let at = event.timestamp.unwrap_or_default();
                let mut cells = network_cells(&event);
                cells.extend([Cell::Int(received), Cell::Text(id.into()), seq, Cell::Int(0)]);
                self.network.push(cells);
                Ok((EventTable::NetworkLog, at))
            }
            _ => Err(RowError::Head),
        }
    }
}

fn audit_cells(event: &AuditEvent) -> (Vec<Cell<'_>>, i64) {
    let mut texts = 0;
    let mut raw = |bit: i64, value: &'_ Option<Box<RawValue>>| match value.as_deref() {
        None => Cell::Null,
        Some(value) => match json_text(value) {
            Some(text) => {
                texts |= 1 << bit;
                Cell::Text(Cow::Owned(text))
            }
            None => Cell::Text(Cow::Owned(value.get().to_owned())),
        },
    };
    let cells = vec![
        Cell::Int(event.timestamp.unwrap_or_default().as_micros()),
        text(event.session_id.as_ref().map(|id| id.as_str())),
        text(event.user_id.as_ref().map(|id| id.as_str())),
        text(event.task_id.as_ref().map(|id| id.as_str())),
        text(event.agent_id.as_ref().map(|id| id.as_str())),
        text(event.requester_tenant_id.as_ref().map(|id| id.as_str())),
        text(event.accessed_tenant_id.as_ref().map(|id| id.as_str())),
        text(event.action.as_ref().map(|text| text.raw())),
        text(event.tool.as_ref().map(|text| text.raw())),
        text(event.plugin.as_ref().map(|text| text.raw())),
        text(event.plugin_version.as_ref().map(|text| text.raw())),
        raw(0, &event.params),
        raw(1, &event.result),
        text(event.model.as_ref().map(|text| text.raw())),
        Cell::int(event.input_tokens),
        Cell::int(event.output_tokens),
        Cell::real(event.estimated_cost),
        Cell::real(event.duration_ms),
        text(event.decision.as_ref().map(|text| text.raw())),
        text(event.trace_id.as_ref().map(|text| text.raw())),
        text(event.span_id.as_ref().map(|text| text.raw())),
        raw(2, &event.detections),
        raw(3, &event.attributes),
    ];
    (cells, texts)
}

fn network_cells(event: &NetworkEvent) -> Vec<Cell<'_>> {
    vec![
        Cell::Int(event.timestamp.unwrap_or_default().as_micros()),
        text(event.session_id.as_ref().map(|id| id.as_str())),
        text(event.agent_id.as_ref().map(|id| id.as_str())),
        text(event.task_id.as_ref().map(|id| id.as_str())),
        text(event.tenant_id.as_ref().map(|id| id.as_str())),
        text(event.source_process.as_ref().map(|text| text.raw())),
        Cell::int(event.pid),
        text(event.plugin.as_ref().map(|text| text.raw())),
        text(event.destination.as_ref().map(|text| text.raw())),
        Cell::int(event.port),
        text(event.protocol.as_ref().map(|text| text.raw())),
        Cell::int(event.bytes_sent),
        Cell::int(event.bytes_received),
        Cell::real(event.duration_ms),
        text(event.verdict.map(|verdict| verdict.as_str())),
    ]
}

#[cfg(test)]
mod tests;
