//! The forensic report: the records, and what the event log answers about the incident's subject.

use estoppel_api::SqlTable;
use estoppel_eventlog::{Access, SqlLimits};
use estoppel_extract::{Allowlist, Host};
use estoppel_incident::{
    IncidentView,
    record::IncidentKind,
    report::{self, Answer, AuditSummary, Call, Damage, DestinationBytes, Findings, Spent, Tasks},
};
use estoppel_model::{EntityId, Kind, LIMIT_ACTION, Scope, Timestamp, Untrusted};
use serde_json::Value;

use crate::{Server, http::sql};

/// Most calls that are read for a proposal of breakers.
const CALLS_MAX: usize = 20_000;

/// Writes the report as it stands now. A query that fails is stated in it, not left out.
pub(crate) async fn report(
    server: &Server,
    view: &IncidentView,
    tenant: Option<EntityId>,
) -> String {
    let allowlist = server.responder().policy().allowlist.clone();
    let damage = match view.opened.body.kind {
        IncidentKind::Runaway => damage(server, view, tenant.clone()).await,
        _ => None,
    };
    let (destinations, audit) = match filter(view) {
        None => {
            let nobody = || "the incident names no session, task, agent or user".to_owned();
            (
                Answer { query: "none".to_owned(), result: Err(nobody()) },
                Answer { query: "none".to_owned(), result: Err(nobody()) },
            )
        }
        Some(Filter { network, audit }) => {
            let query = format!(
                "SELECT destination, port, COUNT(*), SUM(bytes_sent), SUM(bytes_received), \
                 MIN(timestamp), MAX(timestamp) FROM network_log WHERE {network} \
                 GROUP BY destination, port ORDER BY SUM(bytes_sent) DESC"
            );
            let rows = ask(server, &query, tenant.clone()).await;
            let result = rows.map(|table| {
                table.rows.iter().filter_map(|row| destination(row, allowlist.as_deref())).collect()
            });
            let destinations = Answer { query, result };
            let query = format!(
                "SELECT COALESCE(tool, action), COUNT(*) FROM audit_log WHERE {audit} \
                 GROUP BY COALESCE(tool, action) ORDER BY COUNT(*) DESC"
            );
            let result = ask(server, &query, tenant).await.map(|table| steps(&table));
            (destinations, Answer { query, result })
        }
    };
    let findings = Findings {
        as_of: server.clock().now(),
        checkpoint: server.journal().ledger().ok().map(|ledger| ledger.checkpoint().to_string()),
        destinations,
        audit,
        damage,
    };
    report::markdown(view, &findings)
}

async fn ask(server: &Server, query: &str, tenant: Option<EntityId>) -> Result<SqlTable, String> {
    let access = Access { tenant, limits: SqlLimits::default() };
    sql::query(server, query, access).await.map_err(|failure| failure.to_string())
}

/// What a runaway cost, by row R4's query, and what it and other tasks of its agent came to.
async fn damage(server: &Server, view: &IncidentView, tenant: Option<EntityId>) -> Option<Damage> {
    let opened = &view.opened.body;
    let (column, id) =
        opened.scope.iter().flat_map(|scope| scope.iter()).find_map(|scope| match scope {
            Scope::Entity { kind: Kind::Task, id } => Some(("task_id", id)),
            Scope::Entity { kind: Kind::Session, id } => Some(("session_id", id)),
            _ => None,
        })?;
    let own = format!("{column} = {}", literal(id.as_str()));
    let by = async |query: String, read: fn(&[Value]) -> Option<Spent>| {
        let rows = ask(server, &query, tenant.clone()).await;
        let result = rows.map(|table| table.rows.iter().filter_map(|row| read(row)).collect());
        Answer { query, result }
    };
    let tools = by(
        format!(
            "SELECT tool, COUNT(*), SUM(estimated_cost) FROM audit_log WHERE {own} GROUP BY tool;"
        ),
        |row| {
            let [name, records, cost] = row else { return None };
            spent(name, records, 0, cost)
        },
    )
    .await;
    let models = by(
        format!(
            "SELECT model, COUNT(*), SUM(COALESCE(input_tokens, 0) + COALESCE(output_tokens, 0)), \
             SUM(estimated_cost) FROM audit_log WHERE {own} AND model IS NOT NULL GROUP BY model"
        ),
        |row| {
            let [name, records, tokens, cost] = row else { return None };
            spent(name, records, tokens.as_u64().unwrap_or(0), cost)
        },
    )
    .await;
    let agent = opened.subject.agent.clone();
    let of_agent = agent.as_ref().map_or_else(
        || "agent_id IS NULL".to_owned(),
        |agent| format!("agent_id = {}", literal(agent.as_str())),
    );
    let tasks =
        format!("{of_agent} AND {column} IS NOT NULL AND COALESCE(decision, '') <> 'denied'");
    let query = format!(
        "SELECT is_own, COUNT(*), MAX(steps), MAX(tokens), MAX(cost) FROM (SELECT {own} AS is_own, \
         COUNT(*) AS steps, SUM(COALESCE(input_tokens, 0) + COALESCE(output_tokens, 0)) AS tokens, \
         SUM(estimated_cost) AS cost FROM audit_log WHERE {tasks} AND \
         COALESCE(action, '') <> '{LIMIT_ACTION}' GROUP BY {column}) GROUP BY is_own"
    );
    let sums = ask(server, &query, tenant.clone()).await;
    let calls_query = calls(column, &own, &tasks);
    let calls = ask(server, &calls_query, tenant).await;
    let result = sums.and_then(|sums| {
        let agent = agent.map(|agent| Untrusted::new(agent.to_string()));
        let mut tasks = Tasks { agent, ..Tasks::default() };
        for row in &sums.rows {
            sum(row, &mut tasks);
        }
        Ok(tasks.with_calls(calls?.rows.iter().filter_map(|row| call(row))))
    });
    Some(Damage { tools, models, tasks: Answer { query, result }, calls_query })
}

/// The query for the calls of tools, those of the incident's own task first. What came to neither a
/// result nor an error repeats nothing: nobody can tell.
fn calls(column: &str, own: &str, tasks: &str) -> String {
    let of_last = |column_of: &str| {
        format!(
            "({column_of} IS NOT DISTINCT FROM (LAG({column_of}) OVER (PARTITION BY {column} ORDER BY timestamp)))"
        )
    };
    let same = ["tool", "plugin", "action", "params", "result", "attributes"].map(of_last);
    let failed = r#"COALESCE(attributes LIKE '%"error":%', FALSE)"#;
    format!(
        "SELECT {own}, {column}, {} AND (result IS NOT NULL OR {failed}), {failed} FROM audit_log \
         WHERE {tasks} AND tool IS NOT NULL ORDER BY {own} DESC, {column}, timestamp LIMIT {CALLS_MAX}",
        same.join(" AND ")
    )
}

fn call(row: &[Value]) -> Option<Call> {
    let [is_own, task, repeats, failed] = row else { return None };
    Some(Call {
        is_own: is_own.as_bool()?,
        task: task.as_str()?.to_owned(),
        repeats: repeats.as_bool()?,
        failed: failed.as_bool()?,
    })
}

fn sum(row: &[Value], tasks: &mut Tasks) {
    let [is_own, count, steps, tokens, cost] = row else { return };
    let of = if is_own.as_bool() == Some(true) {
        &mut tasks.own
    } else {
        tasks.others = count.as_u64().unwrap_or(0);
        &mut tasks.calm
    };
    of.steps = steps.as_u64().unwrap_or(0);
    of.tokens = tokens.as_u64().unwrap_or(0);
    of.cost_usd = cost.as_f64();
}

fn spent(name: &Value, records: &Value, tokens: u64, cost: &Value) -> Option<Spent> {
    Some(Spent {
        name: name.as_str().map(|name| Untrusted::new(name.to_owned())),
        records: records.as_u64()?,
        tokens,
        cost_usd: cost.as_f64(),
    })
}

struct Filter {
    network: String,
    audit: String,
}

/// Whose rows: by the most specific thing that the incident names.
fn filter(view: &IncidentView) -> Option<Filter> {
    let opened = &view.opened.body;
    let subjects =
        std::iter::once(&opened.subject).chain(view.joined.iter().map(|entry| &entry.body.subject));
    let scopes = opened.scope.iter().flat_map(|scope| scope.iter());
    let in_scopes = scopes.filter_map(|scope| match scope {
        Scope::Entity { kind, id } => Some((*kind, id.clone())),
        _ => None,
    });
    let known: Vec<(Kind, EntityId)> = subjects
        .flat_map(|subject| subject.ids().map(|(kind, id)| (kind, id.clone())))
        .chain(in_scopes)
        .collect();
    let columns = [
        (Kind::Session, Some("session_id"), "session_id"),
        (Kind::Task, Some("task_id"), "task_id"),
        (Kind::Agent, Some("agent_id"), "agent_id"),
        (Kind::User, None, "user_id"),
        (Kind::Tenant, Some("tenant_id"), "requester_tenant_id"),
    ];
    columns.into_iter().find_map(|(kind, network, audit)| {
        let (_, id) = known.iter().find(|(known, _)| *known == kind)?;
        let literal = literal(id.as_str());
        Some(Filter {
            network: network
                .map_or_else(|| "FALSE".to_owned(), |column| format!("{column} = {literal}")),
            audit: format!("{audit} = {literal}"),
        })
    })
}

/// A text as an SQL literal: in standard SQL a quote is written twice, and nothing else is special.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn destination(row: &[Value], allowlist: Option<&Allowlist>) -> Option<DestinationBytes> {
    let [name, port, flows, sent, received, first, last] = row else { return None };
    let name = name.as_str().unwrap_or("(unknown)");
    let port = port.as_u64().and_then(|port| u16::try_from(port).ok());
    let listed = allowlist.map(|list| {
        name.parse::<Host>().is_ok_and(|host| list.allows(&host, port.unwrap_or(443)).is_some())
    });
    Some(DestinationBytes {
        destination: Untrusted::new(name.to_owned()),
        port,
        listed,
        flows: flows.as_u64().unwrap_or(0),
        bytes_sent: sent.as_u64().unwrap_or(0),
        bytes_received: received.as_u64().unwrap_or(0),
        first_at: time(first)?,
        last_at: time(last)?,
    })
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn steps(table: &SqlTable) -> AuditSummary {
    let tools: Vec<_> = table
        .rows
        .iter()
        .filter_map(|row| {
            let [tool, count] = row.as_slice() else { return None };
            Some((Untrusted::new(tool.as_str().unwrap_or("(unnamed)").to_owned()), count.as_u64()?))
        })
        .collect();
    AuditSummary { steps: tools.iter().map(|(_, count)| count).sum(), tools }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_id_stays_a_literal() {
        assert_eq!(literal("x' OR '1'='1"), "'x'' OR ''1''=''1'");
        assert_eq!(literal("back\\slash"), "'back\\slash'");
    }
}
