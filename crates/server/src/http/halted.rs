//! How far a halt of before this server's start was carried out, from the records of its incident.
//!
//! The moments of stages are those of the enforcers' own clocks. How long after the halt they came
//! is not told: the clock that took it is gone, and the difference of two machines' clocks is none.

use estoppel_api::{Durable, EnforcerProgress, HaltState, HaltStatus};
use estoppel_incident::{Enforcement, IncidentView, record::ConfirmedStage};
use estoppel_killswitch::frame::Settlement;
use estoppel_model::Order;

use super::kill_switch::summary;

/// The halt as its incident knows it. Without one nothing is known of enforcers, and none is
/// listed.
pub(super) fn status(
    order: &Order,
    incident: Option<&IncidentView>,
    in_force: bool,
    durable: Durable,
) -> HaltStatus {
    let accepted = incident
        .and_then(|view| view.halts.iter().find(|entry| entry.body.order == order.id))
        .map(|entry| &entry.body);
    let words = incident.and_then(|view| view.enforcement.get(&order.id));
    let enforcers: Vec<EnforcerProgress> =
        words.into_iter().flat_map(|words| words.values()).map(progress).collect();
    let contained = incident.and_then(|view| view.containment(order.id)).map(|entry| &entry.body);
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let by_lease = contained.map_or(0, |it| size(it.by_lease));
    let gone = contained.map_or(0, |it| size(it.gone));
    // Who was expected is written with what became of it: after a restart more may have come.
    let expected = accepted.map_or(0, |it| size(it.enforcers));
    let expected = contained.map_or(expected, |it| size(it.enforcers));
    // Of more than 200 guards the words are counted and not recorded one by one.
    let counted = contained.map_or(0, |it| size(it.settled));
    let refuses = |word: &&EnforcerProgress| word.refusing_at.is_some();
    let refusing = enforcers.iter().filter(refuses).count().min(expected).max(counted);
    let settled = enforcers.iter().filter(|word| word.settled_at.is_some()).count().min(expected);
    let settled = settled.max(counted);
    let state = if !in_force {
        HaltState::Released
    } else if contained.is_some_and(|it| it.is_complete() && it.gone > 0) {
        HaltState::Unsettled
    } else if contained.is_some_and(|it| it.is_complete()) {
        HaltState::Settled
    } else {
        HaltState::Sent
    };
    let halt = summary(order);
    let unknown_until = None;
    HaltStatus {
        halt,
        state,
        expected,
        refusing,
        settled,
        by_lease,
        gone,
        unknown_until,
        break_glass_until: None,
        durable,
        enforcers,
    }
}

fn progress(word: &Enforcement) -> EnforcerProgress {
    let last = &word.last;
    let settlement = Settlement {
        steps_cancelled: last.steps_cancelled,
        connections_cut: last.connections_cut,
        processes_frozen: last.processes_frozen,
        last_byte_at: last.last_byte_at,
        bytes_out: last.bytes_out,
        not_interruptible: last.not_interruptible.iter().map(|it| it.raw().clone()).collect(),
        containment: last.containment.as_ref().map(|it| it.raw().clone()),
        observed_only: last.observed_only,
        canary_refused: None,
    };
    EnforcerProgress {
        name: last.name.raw().clone(),
        kind: last.kind.clone(),
        witness: last.kind != "guard",
        expected: true,
        refusing_at: word.refusing_at,
        refusing_after_us: None,
        settled_at: word.settled_at,
        settled_after_us: None,
        settlement: if settlement.is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::to_value(&settlement).unwrap_or_default()
        },
        unsupported: last.stage == ConfirmedStage::Unsupported,
        by_lease: false,
        gone: false,
        lease_until: None,
    }
}
