//! `POST /v1/sql`: read-only queries over the event log.

use axum::{Json, extract::State};
use estoppel_api::{Problem, Role, SqlColumn, SqlRequest, SqlTable};
use estoppel_eventlog::{Access, SqlError, SqlLimits};

use super::{
    extract::{Caller, JsonBody},
    problem::Failure,
};
use crate::Server;

/// Runs one SELECT. A token that is bound to a tenant sees that tenant's rows alone.
#[utoipa::path(
    post, path = "/v1/sql", tag = "events", request_body = SqlRequest,
    responses((status = 200, body = SqlTable), (status = 400, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem))
)]
pub(crate) async fn post(
    State(server): State<Server>,
    caller: Caller,
    JsonBody(request): JsonBody<SqlRequest>,
) -> Result<Json<SqlTable>, Failure> {
    caller.at_least(Role::Viewer)?;
    let access = Access { tenant: caller.0.tenant.clone(), limits: server.sql_limits() };
    query(&server, &request.query, access).await.map(Json)
}

/// Runs a query; also for the report.
pub(crate) async fn query(
    server: &Server,
    query: &str,
    access: Access,
) -> Result<SqlTable, Failure> {
    let table = server.events()?.sql(query, access).await.map_err(|error| match error {
        SqlError::Query { .. } => Failure::Malformed(error.to_string()),
        SqlError::Forbidden { .. } | SqlError::Limit { .. } => {
            Failure::Unprocessable(error.to_string())
        }
        SqlError::Busy | SqlError::Worker { .. } | SqlError::Damaged { .. } | SqlError::Closed => {
            Failure::Unavailable(error.to_string())
        }
        SqlError::Engine { .. } => Failure::internal(error),
    })?;
    if table.lost_events > 0 {
        tracing::warn!(lost = table.lost_events, "a query ran over a damaged event log");
    }
    let columns = table
        .columns
        .into_iter()
        .map(|column| SqlColumn { name: column.name, kind: column.type_name })
        .collect();
    Ok(SqlTable {
        columns,
        rows: table.rows,
        truncated: table.truncated,
        elapsed_ms: table.elapsed.as_secs_f64() * 1000.0,
    })
}

/// The limits of people's queries.
pub(crate) fn limits(seconds: std::time::Duration) -> SqlLimits {
    SqlLimits { time: seconds, ..SqlLimits::default() }
}
