//! What a runaway cost, by tool and by model (row R4), and the breakers that would have bounded it (R5).

use estoppel_model::{Limit, Untrusted};

use super::{Answer, bounded_table};
use crate::markdown::{code, code_up_to};

/// How much more than any calm task needed a proposed breaker leaves room for.
const ROOM: u64 = 2;

/// What a runaway cost, and what other tasks of its agent needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Damage {
    /// Q3: by tool.
    pub tools: Answer<Vec<Spent>>,
    /// Q4: by model.
    pub models: Answer<Vec<Spent>>,
    /// Q5: what other tasks of the same agent needed at most.
    pub calm: Answer<Calm>,
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

/// The most that any other task of the agent needed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calm {
    /// The agent.
    pub agent: Option<Untrusted<String>>,
    /// How many other tasks there are.
    pub tasks: u64,
    /// Most records of one.
    pub steps: u64,
    /// Most tokens of one.
    pub tokens: u64,
    /// Highest cost of one, in US dollars, where it is known.
    pub cost_usd: Option<f64>,
}

/// The section of the report.
pub(super) fn section(damage: &Damage) -> String {
    let mut out = by(&damage.tools, "tool", "Q3");
    out.push_str(&by(&damage.models, "model", "Q4"));
    out.push_str(&proposal(&damage.calm));
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

fn proposal(answer: &Answer<Calm>) -> String {
    match &answer.result {
        Err(reason) => {
            format!("No breakers are proposed: the query Q5 failed: {}.\n", code(reason))
        }
        Ok(calm) => match (propose(calm), &calm.agent) {
            (Some(limit), Some(agent)) => format!(
                "Proposed breakers: {}, for each task of agent {}. That is {ROOM} times what any of the {} \
                 other tasks of this agent needed (Q5), so that it would have stopped none of these. \
                 `estoppel limit` sets it.\n",
                code(&limit.to_string()),
                code_up_to(agent.raw(), 100),
                calm.tasks,
            ),
            _ => "No breakers are proposed: the audit log has no other task of this agent to go by (Q5).\n"
                .to_owned(),
        },
    }
}

/// The limit that lets every calm task pass with room to spare; `None` when there is none to go by.
pub fn propose(calm: &Calm) -> Option<Limit> {
    if calm.tasks == 0 || calm.steps == 0 {
        return None;
    }
    let room = |most: u64| (most > 0).then(|| most.saturating_mul(ROOM));
    #[expect(clippy::cast_precision_loss, reason = "it is two")]
    let cost = calm.cost_usd.filter(|cost| *cost > 0.0).map(|cost| cost * ROOM as f64);
    Some(Limit {
        steps_max: room(calm.steps),
        tokens_max: room(calm.tokens),
        cost_usd_max: cost,
        identical_calls_max: Some(5),
        errors_in_a_row_max: Some(5),
        ..Limit::default()
    })
}
