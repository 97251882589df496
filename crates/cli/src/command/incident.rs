//! `incident` and `report`.

use std::process::ExitCode;

use estoppel_api::{
    AssignRequest, CloseRequest, IncidentOpened, IncidentSummary, NoteRequest, OpenIncidentRequest,
};
use estoppel_model::IncidentId;

use crate::{
    args::{Connect, IncidentCommand, ReportArgs},
    error::Result,
    output::{Output, inline, table},
};

/// `estoppel incident`.
pub(crate) async fn incident(
    command: IncidentCommand,
    connect: &Connect,
    output: &Output,
) -> Result {
    let client = connect.client()?;
    match command {
        IncidentCommand::Open(args) => open(args, false, connect, output).await?,
        IncidentCommand::List => output.answer(&client.incidents().await?, |list| lines(list))?,
        IncidentCommand::Show { incident } => {
            output.answer(&client.incident(&incident).await?, show)?;
        }
        IncidentCommand::Note { incident, text } => {
            let text = super::sql::text_or_stdin(text)?;
            let answer = client.note(&incident, &NoteRequest { text }).await?;
            output.answer(&answer, |_| format!("noted in {incident}"))?;
        }
        IncidentCommand::Assign { incident, to } => {
            let answer = client.assign(&incident, &AssignRequest { to: to.clone() }).await?;
            output.answer(&answer, |_| format!("{incident} is with {}", inline(&to)))?;
        }
        IncidentCommand::Report { incident, output: file } => {
            let report = client.text(&format!("/v1/incidents/{incident}/report")).await?;
            match file {
                Some(file) => {
                    std::fs::write(&file, &report)?;
                    let written = serde_json::json!({ "file": file, "bytes": report.len() });
                    output.answer(&written, |_| format!("wrote {}", file.display()))?;
                }
                None if output.is_json() => {
                    output.answer(&serde_json::json!({ "markdown": report }), |_| String::new())?;
                }
                None => output.write(&report)?,
            }
        }
        IncidentCommand::Close { incident, reason, root_cause } => {
            let answer = client.close(&incident, &CloseRequest { reason, root_cause }).await?;
            output.answer(&answer, |_| format!("closed {incident}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `estoppel report` (row P3).
pub(crate) async fn report(args: ReportArgs, connect: &Connect, output: &Output) -> Result {
    open(args, true, connect, output).await?;
    Ok(ExitCode::SUCCESS)
}

async fn open(args: ReportArgs, report: bool, connect: &Connect, output: &Output) -> Result<()> {
    let request = OpenIncidentRequest {
        title: args.title,
        kind: args.kind,
        severity: args.severity,
        description: args.description,
        subject: args.subject.subject(),
        report,
        id: Some(IncidentId::new()),
    };
    let opened = connect.client()?.open_incident(&request).await?;
    output.answer(&opened, |IncidentOpened { id, number }| {
        format!("opened {number}\nid {id}\nsee it with `estoppel incident show {number}`")
    })
}

fn lines(list: &[IncidentSummary]) -> String {
    if list.is_empty() {
        return "no incidents".to_owned();
    }
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|incident| {
            vec![
                incident.number.to_string(),
                incident.state.clone(),
                incident.severity.clone(),
                incident.kind.clone(),
                incident.opened_at.to_string(),
                incident.assignee.clone().unwrap_or_default(),
                incident.title.clone(),
            ]
        })
        .collect();
    table(&["incident", "state", "severity", "kind", "opened", "assignee", "title"], &rows)
}

/// Keys and values, nested by indentation: the document is made for scripts, people read the report.
fn show(value: &serde_json::Value) -> String {
    fn walk(value: &serde_json::Value, depth: usize, lines: &mut Vec<String>) {
        let indent = "  ".repeat(depth);
        let mut entry = |key: String, value: &serde_json::Value| match value {
            serde_json::Value::Object(_) | serde_json::Value::Array(_) => {
                lines.push(format!("{indent}{key}"));
                walk(value, depth + 1, lines);
            }
            serde_json::Value::String(text) => {
                lines.push(format!("{indent}{key} {}", inline(text)))
            }
            other => lines.push(format!("{indent}{key} {other}")),
        };
        match value {
            serde_json::Value::Object(map) => {
                map.iter().for_each(|(key, value)| entry(format!("{}:", inline(key)), value));
            }
            serde_json::Value::Array(list) => {
                list.iter().for_each(|value| entry("-".to_owned(), value));
            }
            other => lines.push(format!("{indent}{other}")),
        }
    }
    let mut lines = Vec::new();
    walk(value, 0, &mut lines);
    lines.join("\n")
}
