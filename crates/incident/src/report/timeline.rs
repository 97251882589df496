//! When it started, when it was detected, when it was stopped, and what lies between.

use std::time::Duration;

use estoppel_model::Timestamp;

use super::{at_seq, elapsed, moment};
use crate::{
    IncidentView,
    markdown::{code, table},
    record::{ConfirmedStage, Source},
};

/// A moment, and the reference of the record or event that says so.
type Said = (Timestamp, String);

/// The moments that the report counts from.
pub(super) struct Moments {
    /// The earliest event that a detection rests on, by its sender's clock.
    pub(super) started: Option<Said>,
    /// The first detection, or a person's report.
    pub(super) detected: Option<Said>,
    /// The first halt or block that was accepted.
    pub(super) halted: Option<Said>,
    /// Since when each halt has been carried out everywhere.
    pub(super) contained: Option<Said>,
}

impl Moments {
    pub(super) fn of(incident: &IncidentView) -> Self {
        let started =
            incident.detections.iter().min_by_key(|entry| entry.body.event_at).map(|entry| {
                let event = entry.body.evidence.first();
                let event = event.map_or_else(String::new, |id| format!("event {id}, "));
                (entry.body.event_at, format!("{event}{}", at_seq(entry.seq)))
            });
        let reported = (incident.opened.body.source == Source::Report)
            .then(|| (incident.opened.at, at_seq(incident.opened.seq)));
        let detected = incident
            .detections
            .iter()
            .map(|entry| (entry.at, at_seq(entry.seq)))
            .chain(reported)
            .min();
        let halted =
            incident.halts.iter().map(|entry| (entry.body.accepted_at, at_seq(entry.seq))).min();
        let complete: Option<Vec<Said>> = incident
            .halts
            .iter()
            .map(|halt| incident.carried_out(halt.body.order))
            .map(|entry| entry.map(|entry| (entry.at, at_seq(entry.seq))))
            .collect();
        let contained = complete.unwrap_or_default().into_iter().max();
        Self { started, detected, halted, contained }
    }

    pub(super) fn durations(&self) -> String {
        let say = |said: &Option<Said>| {
            said.as_ref().map_or_else(|| "not known".to_owned(), |(at, by)| moment(*at, by))
        };
        let between = |from: &Option<Said>, to: &Option<Said>| match (from, to) {
            (Some((from, _)), Some((to, _))) if to >= from => elapsed(to.since(*from)),
            (Some(_), Some(_)) => "before it: the clocks differ".to_owned(),
            _ => "not known".to_owned(),
        };
        let row = |name: &str, said: &Option<Said>, since: String| {
            vec![name.to_owned(), say(said), since]
        };
        table(
            &["", "When", "After the line above"],
            &[
                row("Started", &self.started, String::new()),
                row("Detected", &self.detected, between(&self.started, &self.detected)),
                row("Halted", &self.halted, between(&self.detected, &self.halted)),
                row("Contained", &self.contained, between(&self.halted, &self.contained)),
            ],
        )
    }
}

/// All that happened, in order of time.
pub(super) fn section(incident: &IncidentView, moments: &Moments) -> String {
    let mut lines: Vec<(Timestamp, String, String)> = Vec::new();
    let mut line = |at: Timestamp, what: String, reference: String| {
        lines.push((at, what, reference));
    };
    let opened = &incident.opened;
    line(
        opened.at,
        format!("Incident opened, from {}", opened.body.source.phrase()),
        at_seq(opened.seq),
    );
    for entry in &incident.detections {
        let body = &entry.body;
        let events: Vec<String> = body.evidence.iter().map(|id| format!("event {id}")).collect();
        line(
            body.event_at,
            format!("Event that {} rests on", code(&body.rule)),
            format!("{} {}", events.join(" "), at_seq(entry.seq)),
        );
        let what = format!("Detected by {}: {}", code(&body.rule), code(&body.summary));
        line(entry.at, what, at_seq(entry.seq));
    }
    for entry in &incident.joined {
        let what = format!("Joined by {} {}", entry.body.source.phrase(), code(&entry.body.what));
        line(entry.at, what, at_seq(entry.seq));
    }
    for entry in &incident.halts {
        let body = &entry.body;
        let what = format!("{} for {} accepted", code(&body.what), code(&body.scope.to_string()));
        line(body.accepted_at, what, at_seq(entry.seq));
    }
    for enforcement in incident.enforcement.values().flat_map(|enforcers| enforcers.values()) {
        let last = &enforcement.last;
        let stage = match last.stage {
            ConfirmedStage::Unsupported => "does not know the order",
            ConfirmedStage::Refusing => "refuses",
            ConfirmedStage::Settled => "has settled",
        };
        let who = format!("{} {}", code(&last.kind), code(last.name.raw()));
        line(last.confirmed_at, format!("{who} {stage}"), at_seq(enforcement.seq));
    }
    for halt in &incident.halts {
        let order = halt.body.order;
        if let Some(entry) = incident.carried_out(order) {
            let order = code(&order.to_string());
            line(entry.at, format!("Order {order} carried out everywhere"), at_seq(entry.seq));
        }
    }
    for page in &incident.pages {
        line(page.at, format!("Page to {}", code(&page.body.channel)), at_seq(page.seq));
    }
    if let Some(first) = incident.evidence.iter().min_by_key(|entry| entry.body.captured_at) {
        let what = format!("First evidence taken, of {} in all", incident.evidence.len());
        line(first.body.captured_at, what, at_seq(first.seq));
    }
    for run in &incident.runs {
        line(run.started_at, format!("Playbook {} started", code(&run.playbook)), at_seq(run.seq));
    }
    for release in &incident.releases {
        line(release.at, "Orders released".to_owned(), at_seq(release.seq));
    }
    if let Some(closed) = &incident.closed {
        line(closed.at, "Incident closed".to_owned(), at_seq(closed.seq));
    }
    lines.sort_by_key(|(at, _, _)| *at);
    let start = moments.started.as_ref().map(|(at, _)| *at);
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(at, what, reference)| {
            let offset = start.filter(|start| at >= *start).map_or_else(String::new, |start| {
                format!("+{}", elapsed(at.since(start).max(Duration::ZERO)))
            });
            vec![at.to_string(), offset, what, reference]
        })
        .collect();
    let table = super::bounded_table(&["Time", "Since start", "What", "Ref"], &rows);
    format!("{table}\nTimes of events and of confirmations are by their senders' clocks.\n")
}
