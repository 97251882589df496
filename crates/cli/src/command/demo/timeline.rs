//! What happened when, from the records and from what the stage saw.

use estoppel_api::{HaltStatus, RunSummary};
use estoppel_model::Timestamp;
use serde_json::Value;

use super::{
    services::Services,
    stage::{Delivered, Stage},
};

/// One moment.
struct Moment {
    at: Timestamp,
    what: String,
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Moments, told from the first bad byte.
pub(super) struct Timeline {
    begun: Timestamp,
    zero: Option<Timestamp>,
    moments: Vec<Moment>,
}

impl Timeline {
    pub(super) const fn new(begun: Timestamp) -> Self {
        Self { begun, zero: None, moments: Vec::new() }
    }

    fn add(&mut self, at: Option<Timestamp>, what: impl Into<String>) {
        if let Some(at) = at {
            self.moments.push(Moment { at, what: what.into() });
        }
    }

    /// Collects the play's moments.
    pub(super) fn play(
        &mut self,
        stage: &Stage,
        view: &Value,
        status: &HaltStatus,
        detour: Option<&(Timestamp, String)>,
        reported: Timestamp,
    ) {
        let loot = stage.loot();
        if let Some((at, outcome)) = detour {
            self.add(Some(*at), format!("the agent tried without its proxy: {outcome}"));
        }
        let first = view["detections"]
            .as_array()
            .and_then(|list| list.first())
            .cloned()
            .unwrap_or_default();
        let bad = time(&first["event_at"]);
        self.add(bad, "first bad event: a flow to a destination that is not on the allowlist");
        self.add(loot.first_at, "first bad byte at the attacker");
        self.detected(&first);
        self.confirmed(status);
        self.add(loot.last_at, format!("last byte at the attacker: {} bytes in all", loot.bytes));
        self.kept(view);
        self.paged(&stage.pages());
        for run in view["runs"].as_array().into_iter().flatten() {
            let last = run["steps"]
                .as_object()
                .into_iter()
                .flat_map(|steps| steps.values())
                .filter_map(|step| time(&step["at"]))
                .max();
            let outcome = run["ended"][1].as_str().unwrap_or("?");
            self.add(
                last,
                format!("playbook {} {outcome}", run["playbook"].as_str().unwrap_or("?")),
            );
        }
        self.add(Some(reported), "report written");
        self.zero = loot.first_at.or(bad);
        self.moments.sort_by_key(|moment| moment.at);
    }

    /// Collects the moments of a runaway, told from its first retry.
    pub(super) fn runaway(
        &mut self,
        services: &Services,
        view: &Value,
        status: &HaltStatus,
        run: &RunSummary,
        reported: Timestamp,
    ) {
        let bill = services.bill();
        self.zero = bill.first_refused_at;
        self.add(
            bill.first_refused_at,
            "the first mail is refused: from here on the agent retries",
        );
        self.add(bill.last_call_at, format!("last call of the model: {} in all", bill.calls));
        let first = view["detections"].as_array().and_then(|list| list.first()).cloned();
        let first = first.unwrap_or_default();
        self.add(time(&first["event_at"]), "the guard's breaker trips: the task is stopped there");
        self.detected(&first);
        self.confirmed(status);
        self.kept(view);
        self.paged(&services.pages());
        for step in &run.steps {
            self.add(step.ended_at, format!("playbook: {} {}", step.id, step.state));
        }
        self.add(Some(reported), "report written");
        self.moments.sort_by_key(|moment| moment.at);
    }

    fn detected(&mut self, detection: &Value) {
        let rule = detection["rule"].as_str().unwrap_or("?").to_owned();
        self.add(time(&detection["received_at"]), format!("detected: {rule} reached the server"));
    }

    fn confirmed(&mut self, status: &HaltStatus) {
        self.add(
            Some(status.halt.timestamp),
            format!("halt of {} sent to {} enforcers", status.halt.scope, status.expected),
        );
        for word in &status.enforcers {
            self.add(word.refusing_at, format!("{} refuses new work", word.name));
            let count = |key: &str| word.settlement[key].as_u64().unwrap_or(0);
            let mut done = Vec::new();
            if count("connections_cut") > 0 {
                done.push(format!("{} connections cut", count("connections_cut")));
            }
            if count("processes_frozen") > 0 {
                done.push(format!("{} processes frozen", count("processes_frozen")));
            }
            let done =
                if done.is_empty() { "nothing in flight".to_owned() } else { done.join(", ") };
            self.add(word.settled_at, format!("{} has settled: {done}", word.name));
        }
    }

    fn kept(&mut self, view: &Value) {
        let evidence = view["evidence"].as_array().cloned().unwrap_or_default();
        if let Some(manifest) = evidence.iter().find(|item| super::is_manifest(item)) {
            let hash = manifest["sha256"].as_str().unwrap_or_default();
            self.add(
                time(&manifest["captured_at"]),
                format!(
                    "evidence captured: {} items, manifest {}...",
                    evidence.len().saturating_sub(1),
                    hash.get(..16).unwrap_or(hash)
                ),
            );
            self.add(time(&manifest["at"]), "evidence kept by the server");
        }
    }

    fn paged(&mut self, pages: &[Delivered]) {
        if let Some(page) = pages.first() {
            let summary = serde_json::from_str::<Value>(&page.body).ok();
            let id =
                summary.as_ref().and_then(|page| page["id"].as_str()).unwrap_or("?").to_owned();
            self.add(Some(page.at), format!("page delivered ({id})"));
        }
    }

    fn after_ms(&self, at: Timestamp) -> f64 {
        let zero = self.zero.unwrap_or(self.begun);
        (at.as_micros() - zero.as_micros()) as f64 / 1000.0
    }

    /// The moments as lines.
    pub(super) fn text(&self) -> String {
        let lines = self.moments.iter().map(|moment| {
            let what = crate::output::inline(&moment.what);
            format!("{:>+11.1} ms  {}  {what}", self.after_ms(moment.at), moment.at.time_of_day())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The moments for scripts.
    pub(super) fn document(&self) -> Value {
        let moments = self.moments.iter().map(|moment| {
            serde_json::json!({ "at": moment.at, "after_ms": self.after_ms(moment.at), "what": moment.what })
        });
        moments.collect()
    }
}
