//! The forensic report of an incident in Markdown (row F1), from its records and the answers of
//! queries over the event log.
//!
//! Each claim carries its reference: `#12` is the record at place 12 of the ledger, `event ID` an
//! event, a hash an item of evidence, `Q1` the query of that number at the end. What is not known
//! is said to be not known; nothing is concluded that a record does not say.

mod damage;
mod findings;
mod gaps;
mod proof;
mod proposal;
mod timeline;

use std::time::Duration;

use estoppel_model::{OrderId, Timestamp};

pub use damage::{Damage, Spent};
pub use findings::{Answer, AuditSummary, DestinationBytes, Findings};
pub use proposal::{Call, Needed, Tasks, propose};

use crate::{
    Enforcement, IncidentState, IncidentView,
    fold::Entry,
    markdown::{code, code_up_to, table},
    record::{ConfirmedStage, Halted, PageResult},
};
use timeline::Moments;

/// Most rows of one table; further ones are counted.
const ROWS_MAX: usize = 200;

/// Writes the report.
pub fn markdown(incident: &IncidentView, findings: &Findings) -> String {
    let moments = Moments::of(incident);
    let mut out = String::new();
    let mut section = |title: &str, text: String| {
        out.push_str(&format!("## {title}\n\n{}\n\n", text.trim_end()));
    };
    section("Summary", summary(incident, &moments));
    section("Timeline", timeline::section(incident, &moments));
    section("What was stopped", stopped(incident));
    section("Proof of the stop", proof::section(incident));
    section("Data impact", impact(findings));
    if let Some(damage) = &findings.damage {
        section("Damage", damage::section(damage));
    }
    section("Actions taken", actions(incident));
    section("Evidence", evidence(incident));
    section("Root cause", root_cause(incident));
    section("Gaps in detection and response", gaps::section(incident, findings, &moments));
    section("Notes", notes(incident));
    section("References", references(incident, findings));
    format!("{}{}\n", heading(incident, findings), out.trim_end())
}

/// A reference to a record.
fn at_seq(seq: u64) -> String {
    format!("#{seq}")
}

/// A duration for people: microseconds to hours, three digits where they say something.
fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() == 0 => format!("{} µs", duration.as_micros()),
        0..60 => format!("{}.{:03} s", seconds, duration.subsec_millis()),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// Rows up to the bound, and how many are left out.
fn bounded_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let shown = rows.get(..ROWS_MAX).unwrap_or(rows);
    let mut out = table(header, shown);
    if rows.len() > shown.len() {
        out.push_str(&format!("\n{} more rows are left out here.\n", rows.len() - shown.len()));
    }
    out
}

fn heading(incident: &IncidentView, findings: &Findings) -> String {
    let opened = &incident.opened;
    let assignee = incident.assigned.as_ref().map_or_else(
        || "nobody".to_owned(),
        |entry| format!("{} ({})", code(entry.body.to.raw()), at_seq(entry.seq)),
    );
    let mut rows = vec![
        vec!["State".to_owned(), format!("**{}**", incident.state().as_str())],
        vec!["Type".to_owned(), opened.body.kind.phrase().to_owned()],
        vec!["Severity".to_owned(), opened.body.severity.to_string()],
        vec![
            "Opened".to_owned(),
            format!(
                "{} by {}, from {} ({})",
                opened.at,
                code(opened.body.by.as_str()),
                opened.body.source.phrase(),
                at_seq(opened.seq)
            ),
        ],
        vec!["Concerns".to_owned(), concerns(incident)],
        vec!["Assigned to".to_owned(), assignee],
        vec!["Incident id".to_owned(), code(&incident.id().to_string())],
    ];
    if let Some(closed) = &incident.closed {
        rows.push(vec![
            "Closed".to_owned(),
            format!(
                "{} by {}: {} ({})",
                closed.at,
                code(closed.body.by.as_str()),
                code(closed.body.reason.raw()),
                at_seq(closed.seq)
            ),
        ]);
    }
    format!(
        "# {}: {}\n\nAs of ledger place {} ({}). Times are in UTC.\n\n{}\n",
        incident.number,
        code(opened.body.title.raw()),
        at_seq(incident.last_seq),
        findings.as_of,
        table(&["", ""], &rows)
    )
}

fn concerns(incident: &IncidentView) -> String {
    let body = &incident.opened.body;
    let subject = body.subject.ids().map(|(kind, id)| format!("{kind}:{id}"));
    let scopes = body.scope.iter().flat_map(|scope| scope.iter().map(ToString::to_string));
    let all: std::collections::BTreeSet<String> = subject.chain(scopes).collect();
    if all.is_empty() {
        return "not known".to_owned();
    }
    all.iter().map(|text| code(text)).collect::<Vec<_>>().join(" ")
}

fn summary(incident: &IncidentView, moments: &Moments) -> String {
    let mut out = String::new();
    if let Some(description) = &incident.opened.body.description {
        let text = code_up_to(description.raw(), 2_000);
        out.push_str(&format!("Reported: {text} ({}).\n\n", at_seq(incident.opened.seq)));
    }
    out.push_str(match incident.state() {
        IncidentState::Closed => "The incident is closed.",
        IncidentState::Contained => {
            "The incident is contained: each enforcer that was connected when a halt was accepted \
             has settled, or its lease has run out."
        }
        IncidentState::Open if incident.halts.is_empty() => "Nothing was halted.",
        IncidentState::Open => {
            "**The incident is not known to be contained**: see *What was stopped*."
        }
    });
    out.push_str("\n\n");
    out.push_str(&moments.durations());
    out
}

fn stopped(incident: &IncidentView) -> String {
    if incident.halts.is_empty() {
        return "No halt and no block was given for this incident.".to_owned();
    }
    incident.halts.iter().map(|halt| stopped_by(incident, halt)).collect()
}

fn stopped_by(incident: &IncidentView, halt: &Entry<Halted>) -> String {
    let body = &halt.body;
    let mut out = format!(
        "**{}** for {}, order {}, by {}, accepted {} ({}): {}\n\n",
        code(&body.what),
        code(&body.scope.to_string()),
        code(&body.order.to_string()),
        code(body.by.as_str()),
        body.accepted_at,
        at_seq(halt.seq),
        code(body.reason.raw()),
    );
    out.push_str(&containment(incident, body.order, body.enforcers));
    let enforcers = incident.enforcement.get(&body.order);
    let rows: Vec<_> = enforcers.into_iter().flatten().map(|(_, it)| enforcer_row(it)).collect();
    if rows.is_empty() {
        out.push_str("No enforcer has confirmed it.\n\n");
        return out;
    }
    let header = ["Enforcer", "Its word", "Refusing", "Settled", "What ended", "Bytes out", "Ref"];
    out.push_str(&bounded_table(&header, &rows));
    out.push('\n');
    out
}

fn containment(incident: &IncidentView, order: OrderId, enforcers: u64) -> String {
    match incident.containment(order) {
        Some(entry) => {
            let body = &entry.body;
            let word = match incident.carried_out(order) {
                Some(_) => "Carried out",
                None => "**Not carried out everywhere**",
            };
            let gone = match body.gone {
                0 => String::new(),
                gone => format!(", {gone} refused and were gone before they settled"),
            };
            format!(
                "{word}: {} of {} enforcers settled, {} by lease{gone} ({}).\n\n",
                body.settled,
                body.enforcers,
                body.by_lease,
                at_seq(entry.seq)
            )
        }
        None => format!(
            "**Not known to be carried out**: {enforcers} enforcers were connected when it was \
             accepted, and no record says that all have settled.\n\n"
        ),
    }
}

fn enforcer_row(enforcement: &Enforcement) -> Vec<String> {
    let last = &enforcement.last;
    let silence = if last.stage == ConfirmedStage::Settled { "not said" } else { "not yet" };
    let after = |after_us: Option<u64>| {
        after_us.map_or_else(|| silence.to_owned(), |us| elapsed(Duration::from_micros(us)))
    };
    let mut ended: Vec<String> = [
        (last.steps_cancelled, "steps cancelled"),
        (last.connections_cut, "connections cut"),
        (last.processes_frozen, "processes frozen"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if last.observed_only {
        ended.push("observed only: nothing was stopped".to_owned());
    }
    if last.stage == ConfirmedStage::Unsupported {
        ended.push("the order's kind is not known there; its scope is refused".to_owned());
    }
    ended.extend(last.containment.iter().map(|text| code(text.raw())));
    ended.extend(
        last.not_interruptible
            .iter()
            .map(|text| format!("not interruptible: {}", code(text.raw()))),
    );
    let word = if last.kind == "guard" { "claims" } else { "witnesses" };
    let last_byte =
        last.last_byte_at.map_or_else(String::new, |at| format!(", last at {}", at.time_of_day()));
    vec![
        format!("{} {}", code(&last.kind), code(last.name.raw())),
        word.to_owned(),
        after(enforcement.refusing_after_us),
        after(enforcement.settled_after_us),
        if ended.is_empty() { "nothing was in flight".to_owned() } else { ended.join("; ") },
        format!("{}{last_byte}", last.bytes_out),
        at_seq(enforcement.seq),
    ]
}

fn impact(findings: &Findings) -> String {
    let mut out = String::new();
    match &findings.destinations.result {
        Err(reason) => {
            out.push_str(&format!(
                "**Not determined**: the query Q1 over the network log failed: {}.\n\n",
                code(reason)
            ));
        }
        Ok(rows) if rows.is_empty() => out.push_str("The network log has no flow (Q1).\n\n"),
        Ok(rows) => out.push_str(&destinations(rows)),
    }
    match &findings.audit.result {
        Err(reason) => {
            let reason = code(reason);
            out.push_str(&format!("The query Q2 over the audit log failed: {reason}.\n"));
        }
        Ok(summary) if summary.steps == 0 => out.push_str("The audit log has no step (Q2).\n"),
        Ok(summary) => {
            let tools: Vec<String> = summary
                .tools
                .iter()
                .take(20)
                .map(|(tool, count)| format!("{} × {count}", code_up_to(tool.raw(), 60)))
                .collect();
            let tools = if tools.is_empty() { "none named".to_owned() } else { tools.join(", ") };
            out.push_str(&format!("Steps: {}. Tools: {tools} (Q2).\n", summary.steps));
        }
    }
    out.push_str(
        "\nBytes are those that a gateway or host counted. What they held is known only where the \
         audit log or the evidence says so.\n",
    );
    out
}

fn destinations(rows: &[DestinationBytes]) -> String {
    let outside = rows.iter().filter(|row| row.listed == Some(false));
    let bytes = outside.fold(0_u64, |sum, row| sum.saturating_add(row.bytes_sent));
    let mut out = if rows.iter().any(|row| row.listed.is_none()) {
        "No allowlist was set, so that no destination can be called foreign (Q1).\n\n".to_owned()
    } else {
        format!("{bytes} bytes were sent to destinations that are not on the allowlist (Q1).\n\n")
    };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let port = row.port.map_or_else(|| "any".to_owned(), |port| port.to_string());
            let listed = match row.listed {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "no list",
            };
            vec![
                code(row.destination.raw()),
                port,
                listed.to_owned(),
                row.flows.to_string(),
                row.bytes_sent.to_string(),
                row.bytes_received.to_string(),
                row.first_at.to_string(),
                row.last_at.to_string(),
            ]
        })
        .collect();
    let header = ["Destination", "Port", "Listed", "Flows", "Sent", "Received", "First", "Last"];
    out.push_str(&bounded_table(&header, &cells));
    out.push('\n');
    out
}

fn actions(incident: &IncidentView) -> String {
    let mut out = String::new();
    for run in &incident.runs {
        let ended = run.ended.map_or_else(
            || "not ended".to_owned(),
            |(seq, outcome)| format!("{} ({})", format!("{outcome:?}").to_lowercase(), at_seq(seq)),
        );
        out.push_str(&format!(
            "Playbook {}, run {}, started by {} at {} ({}): {ended}.\n\n",
            code(&run.playbook),
            code(&run.run.to_string()),
            code(&run.by),
            run.started_at,
            at_seq(run.seq)
        ));
        let rows: Vec<_> = run
            .steps
            .values()
            .map(|step| {
                let outcome = step.outcome.map_or("begun, no result", |outcome| outcome.as_str());
                vec![
                    step.at.time_of_day(),
                    code(&step.step),
                    code(&step.action),
                    format!("{outcome} (attempt {})", step.attempt),
                    code(&step.observed),
                    at_seq(step.seq),
                ]
            })
            .collect();
        let header = ["Time", "Step", "Action", "Outcome", "Observed", "Ref"];
        out.push_str(&bounded_table(&header, &rows));
        out.push('\n');
    }
    let pages: Vec<_> = incident
        .pages
        .iter()
        .map(|page| {
            let (result, detail) = match &page.body.result {
                PageResult::Accepted { receipt } => ("accepted by the channel", receipt),
                PageResult::Failed { reason } => ("**failed**", reason),
                PageResult::Indeterminate { reason } => ("**nobody can tell**", reason),
            };
            vec![
                page.at.time_of_day(),
                code(&page.body.channel),
                format!("{result} after {} attempts", page.body.attempts),
                code(detail.raw()),
                code(&page.body.dedup_key),
                at_seq(page.seq),
            ]
        })
        .collect();
    if !pages.is_empty() {
        out.push_str("Pages. That a channel took one does not mean that a person saw it.\n\n");
        let header = ["Time", "Channel", "Result", "Answer", "Deduplication key", "Ref"];
        out.push_str(&bounded_table(&header, &pages));
    }
    for release in &incident.releases {
        let orders: Vec<_> = release.body.orders.iter().map(|it| code(&it.to_string())).collect();
        out.push_str(&format!(
            "\nReleased {} by {} at {}: {} ({}).\n",
            orders.join(" "),
            code(release.body.by.as_str()),
            release.at,
            code(release.body.reason.raw()),
            at_seq(release.seq)
        ));
    }
    if out.is_empty() { "No playbook was run and nobody was paged.".to_owned() } else { out }
}

fn evidence(incident: &IncidentView) -> String {
    if incident.evidence.is_empty() {
        return "**No evidence was kept.**".to_owned();
    }
    let rows: Vec<_> = incident
        .evidence
        .iter()
        .map(|entry| {
            let body = &entry.body;
            let hash =
                body.sha256.as_ref().map_or_else(|| "not captured".to_owned(), |it| code(it));
            vec![
                code(body.item.raw()),
                code(body.origin.raw()),
                code(body.method.raw()),
                body.captured_at.time_of_day(),
                body.bytes.to_string(),
                hash,
                body.redactions.to_string(),
                at_seq(entry.seq),
            ]
        })
        .collect();
    let header = ["Item", "From", "Method", "Taken", "Bytes", "SHA-256", "Redactions", "Ref"];
    let mut out = bounded_table(&header, &rows);
    let manifests: std::collections::BTreeSet<_> =
        incident.evidence.iter().map(|entry| entry.body.manifest_sha256.as_str()).collect();
    let manifests: Vec<_> = manifests.into_iter().map(code).collect();
    out.push_str(&format!("\nManifests, by SHA-256: {}.\n", manifests.join(", ")));
    out
}

fn root_cause(incident: &IncidentView) -> String {
    match &incident.root_cause {
        Some(entry) => format!(
            "{}\n\nDetermined by {} at {} ({}).",
            code_up_to(entry.body.text.raw(), 4_000),
            code(entry.body.by.as_str()),
            entry.at,
            at_seq(entry.seq)
        ),
        None => "**Not determined.** The detections say what was seen, not why it was possible."
            .to_owned(),
    }
}

fn notes(incident: &IncidentView) -> String {
    if incident.notes.is_empty() {
        return "None.".to_owned();
    }
    incident
        .notes
        .iter()
        .map(|note| {
            let text = code_up_to(note.body.text.raw(), 2_000);
            let by = code(note.body.by.as_str());
            format!("- {} {by}: {text} ({})\n", note.at, at_seq(note.seq))
        })
        .collect()
}

fn references(incident: &IncidentView, findings: &Findings) -> String {
    let checkpoint = findings.checkpoint.as_ref().map_or_else(
        || "No checkpoint was given with this report.".to_owned(),
        |note| format!("Checkpoint of the ledger: {}.", code_up_to(note, 1_000)),
    );
    let of_damage = findings.damage.as_ref().map_or_else(String::new, |damage| {
        let Damage { tools, models, tasks, calls_query } = damage;
        [("Q3", &tools.query), ("Q4", &models.query), ("Q5", &tasks.query), ("Q6", calls_query)]
            .map(|(name, query)| format!("- {name}: {}\n", code_up_to(query, 2_000)))
            .concat()
    });
    format!(
        "- `#N` is the record at place N of the ledger; `estoppel ledger verify` checks that none \
         was changed. {checkpoint}\n\
         - `event ID` is an event of the event log: `SELECT * FROM audit_log WHERE id = 'ID'`, or \
         `network_log`.\n\
         - Evidence is named by the SHA-256 of its content; each manifest, by its own.\n\
         - Q1: {}\n- Q2: {}\n{of_damage}- `estoppel incident show {}` shows the records themselves.\n",
        code_up_to(&findings.destinations.query, 2_000),
        code_up_to(&findings.audit.query, 2_000),
        incident.number
    )
}

/// A moment with what says so.
fn moment(at: Timestamp, reference: &str) -> String {
    format!("{at} ({reference})")
}

#[cfg(test)]
mod tests;
