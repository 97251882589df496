//! What was not detected, stopped, kept or told: found in the records, not confessed by hand.

use std::time::Duration;

use estoppel_model::journal::StepOutcome;

use super::{Findings, at_seq, elapsed, timeline::Moments};
use crate::{
    IncidentView,
    markdown::{code, code_up_to},
    record::{ConfirmedStage, PageResult},
};

/// A detection later than this after the first event is a gap.
const DETECTION_MAX: Duration = Duration::from_secs(5);
/// A halt that took longer than this to be carried out is a gap.
const CONTAINMENT_MAX: Duration = Duration::from_secs(15);

pub(super) fn section(incident: &IncidentView, findings: &Findings, moments: &Moments) -> String {
    let mut gaps = Vec::new();
    detection(incident, moments, &mut gaps);
    containment(incident, moments, &mut gaps);
    response(incident, &mut gaps);
    preservation(incident, &mut gaps);
    for (name, failed) in [
        ("Q1, the network log", findings.destinations.result.as_ref().err()),
        ("Q2, the audit log", findings.audit.result.as_ref().err()),
    ] {
        if let Some(reason) = failed {
            gaps.push(format!("The query {name} failed: {}.", code(reason)));
        }
    }
    if gaps.is_empty() {
        return "The records show none. That says nothing of what was not recorded.".to_owned();
    }
    gaps.into_iter().map(|gap| format!("- {gap}\n")).collect()
}

fn detection(incident: &IncidentView, moments: &Moments, gaps: &mut Vec<String>) {
    if incident.detections.is_empty() {
        gaps.push(format!(
            "No detector saw it: it was opened from {} ({}).",
            incident.opened.body.source.phrase(),
            at_seq(incident.opened.seq)
        ));
    }
    if let (Some((started, _)), Some((detected, reference))) = (&moments.started, &moments.detected)
        && detected.since(*started) > DETECTION_MAX
    {
        let after = elapsed(detected.since(*started));
        gaps.push(format!("It was detected {after} after the first event ({reference})."));
    }
    for entry in &incident.detections {
        let late = entry.body.received_at.since(entry.body.event_at);
        if late > DETECTION_MAX {
            gaps.push(format!(
                "The event of {} arrived {} after it happened ({}).",
                code(&entry.body.rule),
                elapsed(late),
                at_seq(entry.seq)
            ));
        }
    }
}

fn containment(incident: &IncidentView, moments: &Moments, gaps: &mut Vec<String>) {
    for halt in &incident.halts {
        let order = halt.body.order;
        let name = format!("Order {}", code(&order.to_string()));
        let reference = at_seq(halt.seq);
        match incident.containment(order) {
            None => gaps.push(format!("{name} is not known to be carried out ({reference}).")),
            Some(entry) if !entry.body.is_complete() => gaps.push(format!(
                "{name} was not carried out by {} of {} enforcers ({}).",
                entry
                    .body
                    .enforcers
                    .saturating_sub(entry.body.settled)
                    .saturating_sub(entry.body.by_lease)
                    .saturating_sub(entry.body.gone),
                entry.body.enforcers,
                at_seq(entry.seq)
            )),
            Some(entry) => {
                let reference = at_seq(entry.seq);
                if entry.body.by_lease > 0 {
                    gaps.push(format!(
                        "{name}: {} enforcers fell silent and are stopped only by their leases \
                         ({reference}).",
                        entry.body.by_lease,
                    ));
                }
                if entry.body.gone > 0 {
                    gaps.push(format!(
                        "{name}: {} enforcers refused and were gone before they settled; what \
                         became of their work in flight is not known ({reference}).",
                        entry.body.gone,
                    ));
                }
            }
        }
        if halt.body.enforcers == 0 {
            gaps.push(format!("No enforcer was connected when {name} was accepted ({reference})."));
        }
    }
    if let (Some((halted, _)), Some((contained, reference))) = (&moments.halted, &moments.contained)
        && contained.since(*halted) > CONTAINMENT_MAX
    {
        let after = elapsed(contained.since(*halted));
        gaps.push(format!("Containment took {after} from the first halt ({reference})."));
    }
    for enforcement in incident.enforcement.values().flat_map(|enforcers| enforcers.values()) {
        let last = &enforcement.last;
        let who = format!("{} {}", code(&last.kind), code(last.name.raw()));
        let reference = at_seq(enforcement.seq);
        if last.observed_only {
            gaps.push(format!("{who} only observes, and stopped nothing ({reference})."));
        }
        if last.stage == ConfirmedStage::Unsupported {
            gaps.push(format!("{who} is too old to know the order ({reference})."));
        }
        for work in &last.not_interruptible {
            let work = code(work.raw());
            gaps.push(format!("{who} could not interrupt {work} ({reference})."));
        }
    }
}

fn response(incident: &IncidentView, gaps: &mut Vec<String>) {
    for step in incident.runs.iter().flat_map(|run| run.steps.values()) {
        let trouble = match step.outcome {
            Some(StepOutcome::Failed) => "failed",
            Some(StepOutcome::Indeterminate) => "is indeterminate",
            None => "has begun and has no result",
            Some(StepOutcome::Done | StepOutcome::Skipped) => continue,
        };
        gaps.push(format!(
            "Step {} {trouble}: {} ({}).",
            code(&step.step),
            code(&step.observed),
            at_seq(step.seq)
        ));
    }
    let accepted = |result: &PageResult| matches!(result, PageResult::Accepted { .. });
    if incident.pages.is_empty() {
        gaps.push("Nobody was paged.".to_owned());
    } else if !incident.pages.iter().any(|page| accepted(&page.body.result)) {
        let last = incident.pages.last().map_or(incident.last_seq, |page| page.seq);
        gaps.push(format!("No channel is known to have taken a page ({}).", at_seq(last)));
    }
}

fn preservation(incident: &IncidentView, gaps: &mut Vec<String>) {
    if incident.evidence.is_empty() {
        gaps.push("No evidence was kept.".to_owned());
    }
    for entry in &incident.evidence {
        let reference = at_seq(entry.seq);
        for gap in &entry.body.gaps {
            let (item, gap) = (code(entry.body.item.raw()), code_up_to(gap.raw(), 200));
            gaps.push(format!("Evidence {item}: {gap} ({reference})."));
        }
    }
}
