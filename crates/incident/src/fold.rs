//! Incidents as the fold of the ledger.

mod kept;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use estoppel_model::{
    EnforcerId, IncidentId, IncidentNumber, Kind, OrderId, Record, RunId, Scope, ScopeSet, Subject,
    Timestamp,
    journal::{RunEnded, RunOutcome, RunStarted, StepIntent, StepOutcome, StepResult},
};
use serde::{Deserialize, Serialize};

use crate::record::{
    Assigned, Closed, Confirmed, ConfirmedStage, Contained, Detected, EvidenceAdded, Halted,
    Joined, Noted, Opened, Paged, Released, RootCause, Silent,
};

/// A body with its place in the ledger: what a claim refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry<T> {
    /// The record's place.
    pub seq: u64,
    /// When it was made, by the clock of the node that made it.
    pub at: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub body: T,
}

/// How far an incident is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// Something may still be going on.
    Open,
    /// Each of its halts was carried out everywhere.
    Contained,
    /// It is over.
    Closed,
}

impl IncidentState {
    /// The state's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Contained => "contained",
            Self::Closed => "closed",
        }
    }
}

/// What an enforcer has said of an order so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    /// Place of the record that says what `last` says.
    pub seq: u64,
    /// Its furthest word.
    pub last: Confirmed,
    /// Time from the order's arrival there until it refused, in microseconds.
    pub refusing_after_us: Option<u64>,
    /// The same until it had settled.
    pub settled_after_us: Option<u64>,
    /// When it refused, by its own clock.
    #[serde(default)]
    pub refusing_at: Option<Timestamp>,
    /// When it had settled, by its own clock.
    #[serde(default)]
    pub settled_at: Option<Timestamp>,
}

/// A run of a playbook for an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// Place of its start in the ledger.
    pub seq: u64,
    /// The run.
    pub run: RunId,
    /// The playbook's name.
    pub playbook: String,
    /// Who started it.
    pub by: String,
    /// When it started.
    pub started_at: Timestamp,
    /// What it came to, and the place of the record that says so.
    pub ended: Option<(u64, RunOutcome)>,
    /// Its steps that were begun or skipped, by place in the playbook.
    pub steps: BTreeMap<usize, RunStepView>,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStepView {
    /// Place of its last record in the ledger.
    pub seq: u64,
    /// When that was made.
    pub at: Timestamp,
    /// The step's id in the playbook.
    pub step: String,
    /// What it does.
    pub action: String,
    /// Attempts so far.
    pub attempt: u32,
    /// What it came to; absent while it is going on.
    pub outcome: Option<StepOutcome>,
    /// What was observed.
    pub observed: String,
}

/// An incident, as far as a place in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field holds the records of its name")]
pub struct IncidentView {
    /// Its number, given by its place in the ledger.
    pub number: IncidentNumber,
    pub opened: Entry<Opened>,
    pub joined: Vec<Entry<Joined>>,
    pub notes: Vec<Entry<Noted>>,
    pub assigned: Option<Entry<Assigned>>,
    pub root_cause: Option<Entry<RootCause>>,
    pub closed: Option<Entry<Closed>>,
    pub detections: Vec<Entry<Detected>>,
    pub halts: Vec<Entry<Halted>>,
    /// Order → enforcer → what it said.
    pub enforcement: BTreeMap<OrderId, BTreeMap<EnforcerId, Enforcement>>,
    pub contained: Vec<Entry<Contained>>,
    pub silent: Vec<Entry<Silent>>,
    pub releases: Vec<Entry<Released>>,
    pub pages: Vec<Entry<Paged>>,
    pub evidence: Vec<Entry<EvidenceAdded>>,
    pub runs: Vec<RunView>,
    /// Place of the last record about it.
    pub last_seq: u64,
    keys: BTreeSet<Scope>,
}

impl IncidentView {
    /// The incident's id.
    pub const fn id(&self) -> IncidentId {
        self.opened.body.id
    }

    /// How far it is. It is contained when it was halted and the last word on each halt that was
    /// not released is that it was carried out everywhere.
    pub fn state(&self) -> IncidentState {
        if self.closed.is_some() {
            return IncidentState::Closed;
        }
        let released: BTreeSet<OrderId> =
            self.releases.iter().flat_map(|entry| entry.body.orders.iter().copied()).collect();
        let mut standing =
            self.halts.iter().filter(|halt| !released.contains(&halt.body.order)).peekable();
        let any = standing.peek().is_some();
        let all = standing.all(|halt| self.carried_out(halt.body.order).is_some());
        if any && all { IncidentState::Contained } else { IncidentState::Open }
    }

    /// The record by which an order was carried out everywhere: the first such record, unless an
    /// enforcer that counts among them only observes.
    pub fn carried_out(&self, order: OrderId) -> Option<&Entry<Contained>> {
        let observers = self.enforcement.get(&order).is_some_and(|enforcers| {
            enforcers.values().any(|enforcement| enforcement.last.observed_only)
        });
        let mut complete = self
            .contained
            .iter()
            .filter(|entry| entry.body.order == order && entry.body.is_complete());
        if observers { None } else { complete.next() }
    }

    /// The last word on how far an order was carried out.
    pub fn containment(&self, order: OrderId) -> Option<&Entry<Contained>> {
        self.contained.iter().rev().find(|entry| entry.body.order == order)
    }

    /// Who works on it.
    pub fn assignee(&self) -> Option<&estoppel_model::Untrusted<String>> {
        self.assigned.as_ref().map(|entry| &entry.body.to)
    }
}

/// All incidents. Cheap to clone: what does not change afterwards is shared.
///
/// What is serialised is for the version that wrote it, and comes back equal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incidents {
    incidents: BTreeMap<IncidentId, Arc<IncidentView>>,
    /// In the order of their numbers.
    order: Vec<IncidentId>,
    runs: BTreeMap<RunId, IncidentId>,
    unreadable: u64,
}

/// What ties things to one incident: each scope of a halt, and of a subject its most specific id.
///
/// Not each of a subject's ids: else all incidents of one tenant were one.
pub fn keys(scope: Option<&ScopeSet>, subject: &Subject) -> BTreeSet<Scope> {
    const MOST_SPECIFIC_FIRST: [Kind; 8] = [
        Kind::Session,
        Kind::Task,
        Kind::Plugin,
        Kind::Component,
        Kind::Tool,
        Kind::Agent,
        Kind::User,
        Kind::Tenant,
    ];
    let specific = MOST_SPECIFIC_FIRST
        .into_iter()
        .find_map(|kind| subject.id(kind).map(|id| Scope::entity(kind, id.clone())));
    scope.into_iter().flat_map(ScopeSet::iter).cloned().chain(specific).collect()
}

impl Incidents {
    /// Takes a record in.
    pub fn apply(&mut self, record: &Record) {
        if self.try_apply(record).is_err() {
            self.unreadable += 1;
        }
    }

    /// The incident with this id.
    pub fn incident(&self, id: IncidentId) -> Option<&IncidentView> {
        self.incidents.get(&id).map(Arc::as_ref)
    }

    /// The incident with this number.
    pub fn numbered(&self, number: IncidentNumber) -> Option<&IncidentView> {
        self.iter().find(|incident| incident.number == number)
    }

    /// The newest incident that an order belongs to.
    pub fn of_order(&self, order: OrderId) -> Option<&IncidentView> {
        self.iter().rev().find(|view| view.halts.iter().any(|entry| entry.body.order == order))
    }

    /// All incidents, in the order of their numbers.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &IncidentView> {
        self.order.iter().filter_map(|id| self.incident(*id))
    }

    /// The newest incident that is not closed and shares a key with this scope or subject: what
    /// comes next of the same belongs to it.
    pub fn find_open(&self, scope: Option<&ScopeSet>, subject: &Subject) -> Option<&IncidentView> {
        let keys = keys(scope, subject);
        self.iter()
            .rev()
            .find(|incident| incident.closed.is_none() && !incident.keys.is_disjoint(&keys))
    }

    /// Records of a known kind whose body could not be read.
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }

    fn try_apply(&mut self, record: &Record) -> Result<(), serde_json::Error> {
        let (seq, at) = (record.seq, record.at);
        macro_rules! entry {
            ($body:expr) => {
                Entry { seq, at, body: $body }
            };
        }
        // `on!(TYPE, |incident, body| ...)`: if the record is of this kind, for its incident.
        macro_rules! on {
            ($type:ty, |$view:ident, $body:ident| $do:expr) => {
                if record.kind == <$type>::KIND {
                    let $body: $type = record.parse()?;
                    if let Some($view) = self.incident_mut($body.incident) {
                        $view.last_seq = seq;
                        $do;
                    }
                    return Ok(());
                }
            };
        }
        if record.kind == Opened::KIND {
            let body: Opened = record.parse()?;
            self.open(entry!(body));
            return Ok(());
        }
        on!(Joined, |view, body| {
            view.keys.extend(keys(body.scope.as_ref(), &body.subject));
            view.joined.push(entry!(body));
        });
        on!(Noted, |view, body| view.notes.push(entry!(body)));
        on!(Assigned, |view, body| view.assigned = Some(entry!(body)));
        on!(RootCause, |view, body| view.root_cause = Some(entry!(body)));
        on!(Closed, |view, body| {
            view.closed.get_or_insert(entry!(body));
        });
        on!(Detected, |view, body| view.detections.push(entry!(body)));
        on!(Halted, |view, body| view.halts.push(entry!(body)));
        on!(Confirmed, |view, body| confirm(view, seq, body));
        on!(Contained, |view, body| view.contained.push(entry!(body)));
        on!(Silent, |view, body| view.silent.push(entry!(body)));
        on!(Released, |view, body| view.releases.push(entry!(body)));
        on!(Paged, |view, body| view.pages.push(entry!(body)));
        on!(EvidenceAdded, |view, body| view.evidence.push(entry!(body)));
        self.journal(record)
    }

    fn open(&mut self, opened: Entry<Opened>) {
        let id = opened.body.id;
        if self.incidents.contains_key(&id) {
            return;
        }
        let last = self.iter().next_back().map(|incident| incident.number);
        let number = IncidentNumber::following(last, opened.at);
        let keys = keys(opened.body.scope.as_ref(), &opened.body.subject);
        let last_seq = opened.seq;
        let view = IncidentView {
            number,
            opened,
            joined: Vec::new(),
            notes: Vec::new(),
            assigned: None,
            root_cause: None,
            closed: None,
            detections: Vec::new(),
            halts: Vec::new(),
            enforcement: BTreeMap::new(),
            contained: Vec::new(),
            silent: Vec::new(),
            releases: Vec::new(),
            pages: Vec::new(),
            evidence: Vec::new(),
            runs: Vec::new(),
            last_seq,
            keys,
        };
        self.order.push(id);
        self.incidents.insert(id, Arc::new(view));
    }

    fn incident_mut(&mut self, id: IncidentId) -> Option<&mut IncidentView> {
        self.incidents.get_mut(&id).map(Arc::make_mut)
    }

    /// The journals of the runs that serve an incident.
    fn journal(&mut self, record: &Record) -> Result<(), serde_json::Error> {
        let seq = record.seq;
        if record.kind == RunStarted::KIND {
            let RunStarted { run, incident, playbook, by, .. } = record.parse()?;
            if let Some(view) = self.incident_mut(incident) {
                view.last_seq = seq;
                view.runs.push(RunView {
                    seq,
                    run,
                    playbook,
                    by: by.to_string(),
                    started_at: record.at,
                    ended: None,
                    steps: BTreeMap::new(),
                });
                self.runs.insert(run, incident);
            }
        } else if record.kind == StepIntent::KIND {
            let StepIntent { run, index, step, action, attempt } = record.parse()?;
            if let Some(view) = self.run_mut(run, seq) {
                let (at, outcome, observed) = (record.at, None, String::new());
                let step = RunStepView { seq, at, step, action, attempt, outcome, observed };
                view.steps.insert(index, step);
            }
        } else if record.kind == StepResult::KIND {
            let StepResult { run, index, step, action, attempt, outcome, observed, .. } =
                record.parse()?;
            if let Some(view) = self.run_mut(run, seq) {
                let (at, outcome) = (record.at, Some(outcome));
                let step = RunStepView { seq, at, step, action, attempt, outcome, observed };
                view.steps.insert(index, step);
            }
        } else if record.kind == RunEnded::KIND {
            let RunEnded { run, outcome } = record.parse()?;
            if let Some(view) = self.run_mut(run, seq) {
                view.ended.get_or_insert((seq, outcome));
            }
        }
        Ok(())
    }

    fn run_mut(&mut self, run: RunId, seq: u64) -> Option<&mut RunView> {
        let incident = self.incident_mut(*self.runs.get(&run)?)?;
        incident.last_seq = seq;
        incident.runs.iter_mut().find(|view| view.run == run)
    }
}

fn confirm(view: &mut IncidentView, seq: u64, body: Confirmed) {
    let (stage, after_us, at) = (body.stage, body.after_us, body.confirmed_at);
    let enforcement =
        view.enforcement.entry(body.order).or_default().entry(body.enforcer).or_insert_with(|| {
            Enforcement {
                seq,
                last: body.clone(),
                refusing_after_us: None,
                settled_after_us: None,
                refusing_at: None,
                settled_at: None,
            }
        });
    match stage {
        ConfirmedStage::Refusing => {
            enforcement.refusing_after_us.get_or_insert(after_us);
            enforcement.refusing_at.get_or_insert(at);
        }
        ConfirmedStage::Settled => {
            // What has settled refuses, since the order came to it.
            let arrived = Timestamp::from_micros(at.as_micros().saturating_sub_unsigned(after_us));
            enforcement.refusing_after_us.get_or_insert(0);
            enforcement.refusing_at.get_or_insert(arrived);
            enforcement.settled_after_us.get_or_insert(after_us);
            enforcement.settled_at.get_or_insert(at);
        }
        ConfirmedStage::Unsupported => {}
    }
    if stage >= enforcement.last.stage {
        (enforcement.seq, enforcement.last) = (seq, body);
    }
}

#[cfg(test)]
mod tests;
