//! Proof of the stop: of each halt and each enforcer, what it said and when, with what it cannot
//! stop (rows K7, F1). A guard's word is a claim; a gateway or a host witnesses from outside.

use estoppel_model::{OrderId, Timestamp};

use super::{at_seq, bounded_table};
use crate::{Enforcement, IncidentView, fold::Entry, markdown::code, record::Halted};

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
    let mut rows: Vec<Vec<String>> =
        words.into_iter().flat_map(|words| words.values()).map(row).collect();
    rows.extend(silent_rows(incident, body.order));
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

fn row(word: &Enforcement) -> Vec<String> {
    let last = &word.last;
    let at =
        |at: Option<Timestamp>| at.map_or_else(|| "**not said**".to_owned(), |at| at.to_string());
    let stuck: Vec<String> = last.not_interruptible.iter().map(|it| code(it.raw())).collect();
    let settled =
        if last.observed_only { "**observed only**".to_owned() } else { at(word.settled_at) };
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
        "not needed".to_owned(),
        at_seq(word.seq),
    ]
}

/// Those whose lease had to settle it.
fn silent_rows(incident: &IncidentView, order: OrderId) -> Vec<Vec<String>> {
    let of_order = incident.silent.iter().filter(|entry| entry.body.order == order);
    of_order
        .flat_map(|entry| entry.body.enforcers.iter().map(move |enforcer| (entry.seq, enforcer)))
        .map(|(seq, enforcer)| {
            let unknown = || "not known".to_owned();
            let until = enforcer.lease_until.map_or_else(unknown, |at| at.to_string());
            let mut row = vec![format!("{} {}", code(&enforcer.kind), code(enforcer.name.raw()))];
            row.push("**silent**".to_owned());
            row.extend(std::iter::repeat_n("not said".to_owned(), 7));
            row.extend([until, at_seq(seq)]);
            row
        })
        .collect()
}
