//! `sql`.

use std::{io::Read as _, process::ExitCode};

use estoppel_api::{SqlRequest, SqlTable};

use crate::{
    args::{Connect, SqlArgs},
    error::Result,
    output::{Output, table},
};

/// `estoppel sql`.
pub(crate) async fn sql(args: SqlArgs, connect: &Connect, output: &Output) -> Result {
    let query = text_or_stdin(args.query)?;
    let answer = connect.client()?.sql(&SqlRequest { query }).await?;
    output.answer(&answer, lines)?;
    Ok(ExitCode::SUCCESS)
}

/// The text, or standard input for `-`.
pub(crate) fn text_or_stdin(text: String) -> Result<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut read = String::new();
    std::io::stdin().lock().read_to_string(&mut read)?;
    Ok(read)
}

fn lines(answer: &SqlTable) -> String {
    let header: Vec<&str> = answer.columns.iter().map(|column| column.name.as_str()).collect();
    let cell = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows: Vec<Vec<String>> =
        answer.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let more = if answer.truncated { ", and more: narrow the query" } else { "" };
    format!("{}\n({} rows{more}, {:.1} ms)", table(&header, &rows), rows.len(), answer.elapsed_ms)
}
