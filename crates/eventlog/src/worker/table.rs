//! The tables as DataFusion sees them: rows in memory and sealed files as one.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arrow::{
    array::{RecordBatch, StringBuilder, UInt16Builder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, memory::DataSourceExec},
    common::{DFSchema, DataFusionError, Result, ScalarValue},
    datasource::{
        memory::MemorySourceConfig,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
        table_schema::TableSchema,
    },
    execution::object_store::ObjectStoreUrl,
    logical_expr::{
        BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType, utils::conjunction,
    },
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};

use super::{hot::Hot, lock, tenant};
use crate::{
    AllowedDestination, SqlError,
    layout::{Seal, SealedFile, SealedTable},
    row::EventTable,
    wal::recover::check,
};

/// Where sealed files are to the engine: a store of this one folder, the only one that it has.
pub(super) const STORE: &str = "segments://";
/// Columns that are long: reading them only for rows that match is worth evaluating filters twice.
const WIDE_COLUMNS: [&str; 4] = ["params", "result", "detections", "attributes"];
/// In how many parts rows in memory are read side by side.
const HOT_PARTITIONS: usize = 2;

/// The rows of `allowlist`.
#[derive(Debug, Clone)]
pub(super) struct Allowlist(RecordBatch);

impl Default for Allowlist {
    fn default() -> Self {
        Self(RecordBatch::new_empty(Self::schema()))
    }
}

impl Allowlist {
    pub(super) fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("domain", DataType::Utf8, false),
            Field::new("port", DataType::UInt16, true),
            Field::new("entry", DataType::Utf8, false),
        ]))
    }

    pub(super) fn new(rows: &[AllowedDestination]) -> Self {
        let (mut domains, mut entries) = (StringBuilder::new(), StringBuilder::new());
        let mut ports = UInt16Builder::new();
        for row in rows {
            domains.append_value(&row.domain);
            ports.append_option(row.port);
            entries.append_value(&row.entry);
        }
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(domains.finish()), Arc::new(ports.finish()), Arc::new(entries.finish())];
        // The columns are of one length and of the schema's types by construction.
        RecordBatch::try_new(Self::schema(), columns).map_or_else(|_| Self::default(), Self)
    }

    pub(super) fn batch(&self) -> RecordBatch {
        self.0.clone()
    }
}

/// Sealed files that were hashed already in this process's life.
#[derive(Debug, Clone, Default)]
pub(super) struct Checked(Arc<Mutex<HashSet<SealedFile>>>);

impl Checked {
    /// Checks a file against its manifest, once. Bad Parquet metadata can panic the engine, so no
    /// byte of a file is parsed before.
    async fn check(&self, folder: &Path, file: &SealedFile) -> Result<()> {
        if lock(&self.0).contains(file) {
            return Ok(());
        }
        let (folder, name) = (folder.to_owned(), file.clone());
        let checked = tokio::task::spawn_blocking(move || check(&folder, &name)).await;
        match checked {
            Ok(Ok(())) => {
                lock(&self.0).insert(file.clone());
                Ok(())
            }
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "checking it failed".to_owned(),
                };
                let damaged = SqlError::Damaged { file: file.name.clone(), reason };
                Err(DataFusionError::External(Box::new(damaged)))
            }
        }
    }
}

/// One of the two tables of events, as of one snapshot.
#[derive(Debug)]
pub(super) struct Events {
    table: EventTable,
    hot: Vec<RecordBatch>,
    sealed: Vec<SealedTable>,
    folder: PathBuf,
    checked: Checked,
    /// Only this tenant's rows.
    pub(super) tenant: Option<String>,
}

/// The tables of a snapshot, up to which `hot` has been loaded.
pub(super) fn tables(
    hot: &Hot,
    seals: &[Arc<Seal>],
    folder: &Path,
    checked: &Checked,
) -> Result<HashMap<EventTable, Events>, SqlError> {
    let mut tables = HashMap::new();
    for table in EventTable::ALL {
        let sealed = seals.iter().flat_map(|seal| &seal.tables);
        let events = Events {
            table,
            hot: hot.batches(table)?,
            sealed: sealed.filter(|sealed| sealed.table == table).cloned().collect(),
            folder: folder.to_owned(),
            checked: checked.clone(),
            tenant: None,
        };
        tables.insert(table, events);
    }
    Ok(tables)
}

#[async_trait]
impl TableProvider for Events {
    fn schema(&self) -> SchemaRef {
        self.table.visible()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters are welcome for what they can skip, but the engine evaluates them itself.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let visible = self.table.visible();
        let wanted =
            projection.cloned().unwrap_or_else(|| (0..visible.fields().len()).collect::<Vec<_>>());
        let mut read = wanted.clone();
        if self.tenant.is_some() {
            read.push(visible.index_of(self.table.tenant_column())?);
        }
        let mut parts = Vec::new();
        if !self.hot.is_empty() {
            parts.push(self.scan_hot(&read)?);
        }
        let window = Window::of(filters);
        let sealed: Vec<&SealedTable> =
            self.sealed.iter().filter(|sealed| window.overlaps(sealed)).collect();
        for sealed in &sealed {
            self.checked.check(&self.folder, &sealed.file).await?;
        }
        if !sealed.is_empty() {
            parts.push(self.scan_sealed(session, &sealed, &read, filters)?);
        }
        let all = match parts.len() {
            0 => Arc::new(EmptyExec::new(Arc::new(visible.project(&read)?))),
            1 => parts.remove(0),
            _ => UnionExec::try_new(parts)?,
        };
        match &self.tenant {
            None => Ok(all),
            Some(tenant) => tenant::only(all, tenant, Arc::new(visible.project(&wanted)?)),
        }
    }
}

impl Events {
    fn scan_hot(&self, read: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let size = self.hot.len().div_ceil(HOT_PARTITIONS).max(1);
        let partitions: Vec<Vec<RecordBatch>> =
            self.hot.chunks(size).map(<[RecordBatch]>::to_vec).collect();
        let source =
            MemorySourceConfig::try_new(&partitions, self.table.stored(), Some(read.to_vec()))?;
        Ok(DataSourceExec::from_data_source(source))
    }

    fn scan_sealed(
        &self,
        session: &dyn Session,
        sealed: &[&SealedTable],
        read: &[usize],
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.table.stored();
        let wide = WIDE_COLUMNS.iter().filter_map(|name| schema.index_of(name).ok());
        let mut source = ParquetSource::new(TableSchema::from(Arc::clone(&schema)))
            .with_bloom_filter_on_read(true)
            .with_enable_page_index(true);
        match &self.tenant {
            // The engine pushes its filters down by itself.
            None => {
                let wide = wide.into_iter().any(|index| read.contains(&index));
                source = source.with_pushdown_filters(wide).with_reorder_filters(wide);
            }
            // The engine cannot look behind the tenant's wall. Filters may skip parts of files by
            // their statistics, but no expression of a query sees another tenant's row.
            Some(tenant) => {
                let column = datafusion::prelude::col(self.table.tenant_column());
                let own = column.eq(datafusion::prelude::lit(tenant.as_str()));
                let all = conjunction(filters.iter().cloned().chain([own]));
                if let Some(all) = all {
                    let schema = DFSchema::try_from(schema)?;
                    source = source.with_predicate(session.create_physical_expr(all, &schema)?);
                }
            }
        }
        let store = ObjectStoreUrl::parse(STORE)?;
        let groups = sealed
            .iter()
            .map(|sealed| {
                let file = datafusion::datasource::listing::PartitionedFile::new(
                    sealed.file.name.clone(),
                    sealed.file.bytes,
                );
                FileGroup::new(vec![file])
            })
            .collect();
        let config = FileScanConfigBuilder::new(store, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(read.to_vec()))?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// The times that a query can want, as far as its filters say so plainly.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    earliest: i64,
    latest: i64,
}

impl Window {
    fn of(filters: &[Expr]) -> Self {
        let mut window = Self { earliest: i64::MIN, latest: i64::MAX };
        for filter in filters {
            window.narrow(filter);
        }
        window
    }

    fn narrow(&mut self, filter: &Expr) {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return };
        if *op == Operator::And {
            self.narrow(left);
            self.narrow(right);
            return;
        }
        let (op, micros) = match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), Expr::Literal(value, _)) if column.name == "timestamp" => {
                (Some(*op), micros(value))
            }
            (Expr::Literal(value, _), Expr::Column(column)) if column.name == "timestamp" => {
                (op.swap(), micros(value))
            }
            _ => return,
        };
        // Both ends are taken in: a file more is read at most.
        match (op, micros) {
            (Some(Operator::Gt | Operator::GtEq), Some(at)) => {
                self.earliest = self.earliest.max(at)
            }
            (Some(Operator::Lt | Operator::LtEq), Some(at)) => self.latest = self.latest.min(at),
            (Some(Operator::Eq), Some(at)) => {
                self.earliest = self.earliest.max(at);
                self.latest = self.latest.min(at);
            }
            _ => {}
        }
    }

    fn overlaps(&self, sealed: &SealedTable) -> bool {
        sealed.earliest.as_micros() <= self.latest && sealed.latest.as_micros() >= self.earliest
    }
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(at, _) => *at,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    #[test]
    fn plain_bounds_on_the_time_choose_files() {
        let at =
            |micros| Expr::Literal(ScalarValue::TimestampMicrosecond(Some(micros), None), None);
        let between = col("timestamp").gt_eq(at(10)).and(at(20).gt(col("timestamp")));
        assert_eq!(Window::of(std::slice::from_ref(&between)), Window { earliest: 10, latest: 20 });
        assert_eq!(
            Window::of(&[between.clone(), col("timestamp").eq(at(15))]),
            Window { earliest: 15, latest: 15 }
        );
        let all = Window { earliest: i64::MIN, latest: i64::MAX };
        // Anything less plain chooses all: skipping a file too many would hide rows.
        for filter in [
            between.clone().or(col("tool").eq(lit("x"))),
            !between,
            col("received_at").gt(at(10)),
            col("timestamp").not_eq(at(10)),
        ] {
            assert_eq!(Window::of(&[filter]), all);
        }
    }
}
