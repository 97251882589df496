//! What a runaway cost, by tool and by model (row R4), and the breakers that would have bounded it (R5).

use estoppel_model::Untrusted;

use super::{
    Answer, bounded_table,
    proposal::{Tasks, propose},
};
use crate::markdown::{code, code_up_to};

/// What a runaway cost, and what other tasks of its agent needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Damage {
    /// Q3: by tool.
    pub tools: Answer<Vec<Spent>>,
    /// Q4: by model.
    pub models: Answer<Vec<Spent>>,
    /// Q5, with Q6: what the task came to, and other tasks of the same agent at most.
    pub tasks: Answer<Tasks>,
    /// Q6: its calls of tools, and those of the others.
    pub calls_query: String,
}

/// What was done with one tool or model.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// Its name, as the agent gave it; absent where it gave none.
    pub name: Option<Untrusted<String>>,
    /// How many records name it; refused steps have one, too.
    pub records: u64,
    /// Tokens in and out.
    pub tokens: u64,
    /// Cost in US dollars, where it is known.
    pub cost_usd: Option<f64>,
}

/// The section of the report.
pub(super) fn section(damage: &Damage) -> String {
    let mut out = by(&damage.tools, "tool", "Q3");
    out.push_str(&by(&damage.models, "model", "Q4"));
    out.push_str(&proposal(damage));
    out
}

fn by(answer: &Answer<Vec<Spent>>, what: &str, reference: &str) -> String {
    match &answer.result {
        Err(reason) => {
            format!(
                "**Not determined** by {what}: the query {reference} failed: {}.\n\n",
                code(reason)
            )
        }
        Ok(rows) if rows.is_empty() => {
            format!("No {what} is named in its records ({reference}).\n\n")
        }
        Ok(rows) => {
            let cost: f64 = rows.iter().filter_map(|row| row.cost_usd).sum();
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|row| {
                    let name = row.name.as_ref();
                    vec![
                        name.map_or_else(|| "(none)".to_owned(), |it| code_up_to(it.raw(), 60)),
                        row.records.to_string(),
                        row.tokens.to_string(),
                        dollars(row.cost_usd),
                    ]
                })
                .collect();
            let header = [what, "Records", "Tokens", "US dollars"];
            let table = bounded_table(&header, &cells);
            format!(
                "By {what}, {} US dollars in all ({reference}):\n\n{table}\n",
                dollars(Some(cost))
            )
        }
    }
}

fn dollars(cost: Option<f64>) -> String {
    cost.map_or_else(|| "not known".to_owned(), |cost| format!("{cost:.4}"))
}

fn proposal(damage: &Damage) -> String {
    let tasks = match &damage.tasks.result {
        Ok(tasks) => tasks,
        Err(reason) => {
            return format!(
                "No breakers are proposed: the queries Q5 and Q6 failed: {}.\n",
                code(reason)
            );
        }
    };
    match (propose(tasks), &tasks.agent) {
        (Some(limit), Some(agent)) => format!(
            "Proposed breakers: {}, for each task of agent {}. By the records each of them would have stopped this \
             task, and none of the {} other tasks of this agent (Q5, Q6). `estoppel limit` sets them.\n",
            code(&limit.to_string()),
            code_up_to(agent.raw(), 100),
            tasks.others,
        ),
        _ => "No breakers are proposed: nothing in the audit log tells this task from others of its agent (Q5, \
              Q6).\n"
            .to_owned(),
    }
}
