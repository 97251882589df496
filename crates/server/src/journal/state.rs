//! What the records amount to.
//!
//! Two kinds of folds, apart: the *story* (incidents, runs, drills) may come from a snapshot. What
//! *decides* whether something may go on (orders, releases that wait for a second person, the
//! allowlist, break-glass files) or may be destroyed (custody, holds) is read from the ledger's records at every start: absence in a snapshot, whatever
//! made it, must never release (*starting-always-does*).

use std::collections::HashSet;

use estoppel_evidence::{Chains, HoldPlaced, HoldReleased, SignedEvent};
use estoppel_incident::Incidents;
use estoppel_model::{OrderId, Record, RecordKind};
use estoppel_playbook::Runs;
use serde::{Deserialize, Serialize};

use crate::{
    break_glass::{self, BreakGlasses},
    drill::Drills,
    order, release,
};

/// Body of an `allowlist.set` record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AllowlistSet {
    /// The entries; `None`: egress is learned.
    pub domains: Option<Vec<String>>,
    /// Who set it.
    pub by: estoppel_model::Actor,
}

impl AllowlistSet {
    pub(crate) const KIND: RecordKind = RecordKind::new("allowlist.set");
}

/// Kinds of records that decide.
pub(super) const DECIDING: [RecordKind; 8] = [
    order::ORDER,
    AllowlistSet::KIND,
    release::REQUESTED,
    break_glass::MADE,
    break_glass::USED,
    SignedEvent::KIND,
    HoldPlaced::KIND,
    HoldReleased::KIND,
];

/// What the records amount to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct State {
    /// The incidents.
    pub incidents: Incidents,
    /// The runs of playbooks.
    pub runs: Runs,
    /// Drills of the kill switch.
    pub drills: Drills,
    /// The allowlist's entries, `None` while egress is learned.
    pub allowlist: Option<Vec<String>>,
    /// Releases that wait, or waited, for a second person.
    pub release_requests: release::Requests,
    /// Break-glass files, and who used them.
    pub break_glasses: BreakGlasses,
    /// The vault's custody chains and holds.
    pub chains: Chains,
    /// Orders that the ledger has.
    pub orders: HashSet<OrderId>,
    /// How many records are folded in.
    pub applied: u64,
}

impl State {
    /// Takes the next record in.
    pub(super) fn apply(&mut self, record: &Record) {
        self.incidents.apply(record);
        self.runs.apply(record);
        self.drills.apply(record);
        self.decide(record);
        self.applied = record.seq + 1;
    }

    /// Takes in what a record decides; records of other kinds decide nothing.
    pub(super) fn decide(&mut self, record: &Record) {
        self.release_requests.apply(record);
        self.break_glasses.apply(record);
        self.chains.apply(record);
        if record.kind == AllowlistSet::KIND {
            match record.parse::<AllowlistSet>() {
                Ok(set) => self.allowlist = set.domains,
                Err(error) => tracing::error!(record.seq, %error, "an allowlist cannot be read"),
            }
        } else if record.kind == order::ORDER
            && let Some(id) = record.key.as_deref().and_then(order::id_of_key)
        {
            self.orders.insert(id);
        }
    }
}
