//! Proof of the stop: of each halt and each enforcer, what it said and when, with what it cannot
//! stop (rows K7, F1). A guard's word is a claim; a gateway or a host witnesses from outside.

use std::collections::BTreeMap;

use estoppel_model::{EnforcerId, OrderId, Timestamp};

use super::{at_seq, bounded_table};
use crate::{
    Enforcement, IncidentView,
    fold::Entry,
    markdown::code,
    record::{Halted, SilentEnforcer},
};

pub(super) fn section(incident: &IncidentView) -> String {
    if incident.halts.is_empty() {
        return "Nothing was ordered, so there is nothing to prove.".to_owned();
    }
    let proofs: Vec<String> = incident.halts.iter().map(|halt| proof(incident, halt)).collect();
    format!(
        "Times of stages are by each enforcer's own clock. A guard claims, inside the agent's \
         process; gateways and hosts witness from outside. An enforcer that fell silent refuses by \
         itself once its lease is over.\n\n{}",
        proofs.concat()
    )
}

fn proof(incident: &IncidentView, halt: &Entry<Halted>) -> String {
    let body = &halt.body;
    let mut out = format!(
        "Order {}, {} for {}, accepted {} ({}); {} enforcers had a lease then.\n\n",
        code(&body.order.to_string()),
        code(&body.what),
        code(&body.scope.to_string()),
        body.accepted_at,
        at_seq(halt.seq),
        body.enforcers,
    );
    let words = incident.enforcement.get(&body.order);
    let silent = silent(incident, body.order);
    let mut rows: Vec<Vec<String>> = words
        .into_iter()
        .flatten()
        .map(|(enforcer, word)| row(word, silent.get(enforcer).map(|(_, silent)| *silent)))
        .collect();
    let said = |enforcer: &EnforcerId| words.is_some_and(|words| words.contains_key(enforcer));
    let without = silent.iter().filter(|(enforcer, _)| !said(enforcer));
    rows.extend(without.map(|(_, (seq, silent))| silent_row(*seq, silent)));
    if rows.is_empty() {
        out.push_str("**No word of any enforcer is recorded.**\n\n");
        return out;
    }
    let header = [
        "Enforcer",
        "Its word",
        "Refusing at",
        "Settled at",
        "Steps cancelled",
        "Streams cut",
        "Processes frozen",
        "Last byte out",
        "Not interruptible",
        "Lease settles at",
        "Ref",
    ];
    out.push_str(&bounded_table(&header, &rows));
    out.push('\n');
    out
}

/// An enforcer that said something; `gone` if its lease was over before it had said all.
fn row(word: &Enforcement, gone: Option<&SilentEnforcer>) -> Vec<String> {
    let last = &word.last;
    let gone = gone.filter(|_| word.settled_at.is_none());
    let at =
        |at: Option<Timestamp>| at.map_or_else(|| "**not said**".to_owned(), |at| at.to_string());
    let stuck: Vec<String> = last.not_interruptible.iter().map(|it| code(it.raw())).collect();
    let settled = match gone {
        _ if last.observed_only => "**observed only**".to_owned(),
        Some(_) => "**gone**".to_owned(),
        None => at(word.settled_at),
    };
    vec![
        format!("{} {}", code(&last.kind), code(last.name.raw())),
        if last.kind == "guard" { "claims" } else { "witnesses" }.to_owned(),
        at(word.refusing_at.or(word.settled_at)),
        settled,
        last.steps_cancelled.to_string(),
        last.connections_cut.to_string(),
        last.processes_frozen.to_string(),
        last.last_byte_at.map_or_else(|| "none counted".to_owned(), |at| at.to_string()),
        if stuck.is_empty() { "nothing".to_owned() } else { stuck.join("; ") },
        gone.map_or_else(|| "not needed".to_owned(), lease_over),
        at_seq(word.seq),
    ]
}

fn lease_over(silent: &SilentEnforcer) -> String {
    silent.lease_until.map_or_else(|| "not known".to_owned(), |at| at.to_string())
}

/// Those whose lease had to settle it, each with the number of the record that says so.
fn silent(incident: &IncidentView, order: OrderId) -> BTreeMap<EnforcerId, (u64, &SilentEnforcer)> {
    let of_order = incident.silent.iter().filter(|entry| entry.body.order == order);
    of_order
        .flat_map(|entry| entry.body.enforcers.iter().map(move |silent| (entry.seq, silent)))
        .map(|(seq, silent)| (silent.enforcer, (seq, silent)))
        .collect()
}

/// An enforcer that said nothing.
fn silent_row(seq: u64, silent: &SilentEnforcer) -> Vec<String> {
    let mut row = vec![format!("{} {}", code(&silent.kind), code(silent.name.raw()))];
    row.push("**silent**".to_owned());
    row.extend(std::iter::repeat_n("not said".to_owned(), 7));
    row.extend([lease_over(silent), at_seq(seq)]);
    row
}
