//! One query: planned, checked that it only reads, run within its limits.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use datafusion::{
    common::{DataFusionError, Result},
    datasource::MemTable,
    execution::{
        SessionStateBuilder,
        context::{SQLOptions, SessionContext},
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        object_store::ObjectStoreRegistry,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::LogicalPlan,
    object_store::{ObjectStore, local::LocalFileSystem},
    prelude::SessionConfig,
};
use futures_util::StreamExt;
use url::Url;

use super::{
    cell,
    complete_times::CompleteTimes,
    failure,
    table::{Allowlist, Events, STORE},
};
use crate::{Column, Excess, SqlError, SqlLimit, SqlLimits, Table, row::EventTable};

/// Rows that the engine moves at a time.
const BATCH_ROWS: usize = 8192;

pub(super) struct Query {
    pub(super) text: String,
    pub(super) tenant: Option<String>,
    pub(super) limits: SqlLimits,
    pub(super) tables: HashMap<EventTable, Events>,
    pub(super) allowlist: Allowlist,
    pub(super) segments: PathBuf,
    pub(super) lost_events: u64,
}

impl Query {
    /// Runs the query. Dropping the future ends it at its next batch.
    pub(super) async fn run(self) -> Result<Table, SqlError> {
        let limits = self.limits;
        match tokio::time::timeout(limits.time, self.answer()).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(failure::over(SqlLimit::Time, &limits)),
        }
    }

    async fn answer(mut self) -> Result<Table, SqlError> {
        let (limits, lost_events) = (self.limits, self.lost_events);
        let failed = |error: DataFusionError| failure::of(&error, &limits);
        let session = self.session().map_err(failed)?;
        let state = session.state();
        let plan = state.create_logical_plan(&self.text).await.map_err(failed)?;
        allowed(&plan, self.tenant.is_some())?;
        let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
        let schema = Arc::clone(frame.schema().inner());
        let columns = schema
            .fields()
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                type_name: cell::type_name(field.data_type()),
            })
            .collect();
        let mut table = Table { columns, lost_events, ..Table::default() };
        let mut bytes = 0;
        let mut stream = frame.execute_stream().await.map_err(failed)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(failed)?;
            let cells = cell::columns(&batch).map_err(|error| failed(error.into()))?;
            for row in 0..batch.num_rows() {
                let values: Vec<_> = cells.iter().map(|column| column.value(row)).collect();
                bytes += values.iter().map(cell::bytes).sum::<usize>();
                let over = if table.rows.len() == limits.rows {
                    SqlLimit::Rows
                } else if bytes > limits.bytes {
                    SqlLimit::Bytes
                } else {
                    table.rows.push(values);
                    continue;
                };
                if limits.excess == Excess::Refuse {
                    return Err(failure::over(over, &limits));
                }
                table.truncated = true;
                return Ok(table);
            }
        }
        Ok(table)
    }

    fn session(&mut self) -> Result<SessionContext> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(self.limits.memory_bytes)))
            // Nothing is written for a query: what does not fit into its memory is refused.
            .with_disk_manager_builder(
                DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
            )
            .with_object_store_registry(Arc::new(OneFolder::new(&self.segments)?))
            .build_arc()?;
        let config = SessionConfig::new()
            .with_batch_size(BATCH_ROWS)
            .with_target_partitions(2)
            .with_information_schema(false);
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_analyzer_rule(Arc::new(CompleteTimes))
            .build();
        let session = SessionContext::new_with_state(state);
        for (table, mut events) in self.tables.drain() {
            events.tenant.clone_from(&self.tenant);
            session.register_table(table.name(), Arc::new(events))?;
        }
        let allowlist = MemTable::try_new(Allowlist::schema(), vec![vec![self.allowlist.batch()]])?;
        session.register_table("allowlist", Arc::new(allowlist))?;
        Ok(session)
    }
}

/// Whether a plan only reads.
fn allowed(plan: &LogicalPlan, tenant: bool) -> Result<(), SqlError> {
    let forbidden = |what: &str| Err(SqlError::Forbidden { what: what.to_owned() });
    let options =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    if options.verify_plan(plan).is_err() {
        let what = match plan {
            LogicalPlan::Ddl(_) => "creating or dropping",
            LogicalPlan::Dml(_) | LogicalPlan::Copy(_) => "writing",
            _ => "such a statement",
        };
        return forbidden(what);
    }
    match plan {
        // A plan tells how many rows and files there are, other tenants' included.
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) if tenant => {
            forbidden("EXPLAIN for one tenant")
        }
        _ => Ok(()),
    }
}

/// The engine's only store: the folder of sealed files.
#[derive(Debug)]
struct OneFolder(Arc<dyn ObjectStore>);

impl OneFolder {
    fn new(folder: &std::path::Path) -> Result<Self> {
        Ok(Self(Arc::new(LocalFileSystem::new_with_prefix(folder)?)))
    }
}

impl ObjectStoreRegistry for OneFolder {
    fn register_store(
        &self,
        _url: &Url,
        _store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if STORE.strip_suffix("://") == Some(url.scheme()) {
            return Ok(Arc::clone(&self.0));
        }
        Err(DataFusionError::External(Box::new(SqlError::Forbidden {
            what: "reading a file or an address".to_owned(),
        })))
    }
}
