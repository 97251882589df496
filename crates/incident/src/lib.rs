//! Incidents: what is recorded about one, the fold that reads it back, and the report (row F1).
//!
//! An incident is nothing but the records that name it. [`Incidents`] folds the ledger, so that
//! every state shown to anybody can be shown again as of any place in the ledger. Its number is
//! given by the order of the ledger: nobody chooses one, and two nodes cannot give the same.
//!
//! Invariants:
//! - A record of a kind that is not known, or whose body cannot be read, changes nothing; the
//!   latter is counted in [`Incidents::unreadable`].
//! - The report claims nothing that has no reference: the place of a record in the ledger, the id
//!   of an event, the hash of an item of evidence, or the text of a query.
//! - Text of agents and people stands in the report only as inert code spans.
//!
//! This crate does no input or output, asks no questions of the event log (their answers come in
//! as [`report::Findings`]) and reads no clock.

mod fold;
mod markdown;
pub mod record;
pub mod report;

pub use fold::{
    Enforcement, Entry, IncidentState, IncidentView, Incidents, RunStepView, RunView, keys,
};
