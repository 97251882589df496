//! The wall between tenants: a stream that lets only one tenant's rows through.
//!
//! It stands below everything that a query can say. A filter of the engine would not do: the
//! optimizer may run a query's own expressions before it, and their errors (`cannot cast 'secret'
//! to integer`) would tell what other tenants' rows hold. The engine cannot look into a
//! [`PartitionStream`], so nothing of the query runs behind it.

use std::sync::Arc;

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::SchemaRef,
};
use datafusion::{
    common::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures_util::{StreamExt, stream};

/// The rows of `all` whose last column is `tenant`, without that column.
pub(super) fn only(
    all: Arc<dyn ExecutionPlan>,
    tenant: &str,
    schema: SchemaRef,
) -> Result<Arc<dyn ExecutionPlan>> {
    let partitions = all.output_partitioning().partition_count();
    let walls = (0..partitions).map(|partition| -> Arc<dyn PartitionStream> {
        Arc::new(Wall {
            all: Arc::clone(&all),
            partition,
            tenant: tenant.into(),
            schema: Arc::clone(&schema),
        })
    });
    let rows =
        StreamingTableExec::try_new(Arc::clone(&schema), walls.collect(), None, [], false, None)?;
    Ok(Arc::new(rows))
}

#[derive(Debug)]
struct Wall {
    all: Arc<dyn ExecutionPlan>,
    partition: usize,
    tenant: Arc<str>,
    schema: SchemaRef,
}

impl PartitionStream for Wall {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (tenant, schema) = (Arc::clone(&self.tenant), Arc::clone(&self.schema));
        let rows = match self.all.execute(self.partition, context) {
            Ok(rows) => rows.map(move |batch| own_rows(&batch?, &tenant, &schema)).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

fn own_rows(batch: &RecordBatch, tenant: &str, schema: &SchemaRef) -> Result<RecordBatch> {
    let last = batch.num_columns().checked_sub(1).ok_or_else(no_tenant)?;
    let tenants = batch.column(last).as_string_view_opt().ok_or_else(no_tenant)?;
    // A row without a tenant is nobody's: only those who see all see it.
    let own: BooleanArray = tenants.iter().map(|of| Some(of == Some(tenant))).collect();
    let rows = filter_record_batch(batch, &own)?;
    let count = rows.num_rows();
    let (_, mut columns, _) = rows.into_parts();
    columns.truncate(last);
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(count));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn no_tenant() -> DataFusionError {
    DataFusionError::Internal("a batch without its tenant column".to_owned())
}
