//! What the engine says, as what the person who asked can do.

use datafusion::{common::DataFusionError, common::SchemaError};
use estoppel_model::{Untrusted, text::quoted};

use crate::{SqlError, SqlLimit, SqlLimits, row::EventTable};

/// Longest message of the engine that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 1000;

/// The error of a query that went over one of its limits.
pub(super) fn over(limit: SqlLimit, limits: &SqlLimits) -> SqlError {
    let allowed = match limit {
        SqlLimit::Time => format!("{} ms", limits.time.as_millis()),
        SqlLimit::Rows => format!("{} rows", limits.rows),
        SqlLimit::Bytes => format!("{} bytes of result", limits.bytes),
        SqlLimit::Memory => format!("{} bytes of memory", limits.memory_bytes),
        SqlLimit::Text => format!("{} bytes of text", crate::protocol::QUERY_BYTES_MAX),
    };
    SqlError::Limit { limit, allowed }
}

/// What an error of the engine means.
pub(super) fn of(error: &DataFusionError, limits: &SqlLimits) -> SqlError {
    let root = error.find_root();
    let message = match root {
        DataFusionError::ResourcesExhausted(_) => return over(SqlLimit::Memory, limits),
        DataFusionError::External(source) => {
            if let Some(own) = source.downcast_ref::<SqlError>() {
                return own.clone();
            }
            source.to_string()
        }
        DataFusionError::ExecutionJoin(_) => {
            return SqlError::Engine { message: "it panicked on this query".to_owned() };
        }
        DataFusionError::Internal(text) => {
            return SqlError::Engine { message: clean(text) };
        }
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let known = valid_fields.iter().map(|field| field.name.as_str());
                unknown("column", &field.name, known)
            }
            other => other.to_string(),
        },
        DataFusionError::Plan(text) => match missing_table(text) {
            Some(table) => {
                let known = EventTable::ALL.map(EventTable::name);
                unknown("table", table, known.into_iter().chain(["allowlist"]))
            }
            None => text.replace(".\nDid you mean '", ": did you mean '"),
        },
        other => other.message().into_owned(),
    };
    SqlError::Query { message: clean(&message) }
}

fn clean(message: &str) -> String {
    let first = message.split("\n\nbacktrace:").next().unwrap_or_default();
    Untrusted::new(first.replace('\n', " ")).inline(MESSAGE_CHARS_MAX)
}

/// The table's name in the engine's own message, which has no form to match on.
fn missing_table(text: &str) -> Option<&str> {
    let name = text.strip_prefix("table '")?.split_once("' not found")?.0;
    Some(name.strip_prefix("datafusion.public.").unwrap_or(name))
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&name.to_lowercase(), known), *known))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    match nearest {
        Some((_, known)) => format!("unknown {what} {}: did you mean `{known}`?", quoted(name)),
        None => format!("unknown {what} {}: there are {}", quoted(name), known.join(", ")),
    }
}
