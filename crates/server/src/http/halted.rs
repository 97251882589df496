//! How far a halt of before this server's start was carried out, from the records of its incident.

use std::time::Duration;

use estoppel_api::{Durable, EnforcerProgress, HaltState, HaltStatus};
use estoppel_incident::{Enforcement, IncidentView, record::ConfirmedStage};
use estoppel_killswitch::frame::Settlement;
use estoppel_model::{Order, Timestamp};

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
    let enforcers: Vec<EnforcerProgress> = words
        .into_iter()
        .flat_map(|words| words.values())
        .map(|word| progress(word, order.issued_at))
        .collect();
    let contained = incident.and_then(|view| view.containment(order.id)).map(|entry| &entry.body);
    let by_lease = contained.map_or(0, |it| usize::try_from(it.by_lease).unwrap_or(usize::MAX));
    let expected = accepted.map_or(0, |it| usize::try_from(it.enforcers).unwrap_or(usize::MAX));
    // Of more than 200 guards the words are counted and not recorded one by one.
    let counted = contained.map_or(0, |it| usize::try_from(it.settled).unwrap_or(usize::MAX));
    let refuses = |word: &&EnforcerProgress| word.refusing_at.is_some();
    let refusing = enforcers.iter().filter(refuses).count().min(expected).max(counted);
    let settled = enforcers.iter().filter(|word| word.settled_at.is_some()).count().min(expected);
    let settled = settled.max(counted);
    let state = if !in_force {
        HaltState::Released
    } else if contained.is_some_and(|it| it.is_complete()) {
        HaltState::Settled
    } else {
        HaltState::Sent
    };
    let halt = summary(order);
    HaltStatus { halt, state, expected, refusing, settled, by_lease, durable, enforcers }
}

fn progress(word: &Enforcement, accepted: Timestamp) -> EnforcerProgress {
    let last = &word.last;
    // Two clocks, and the way between them: an approximation, where the server's own is gone.
    let after = |at: Option<Timestamp>| at.map(|at| micros(at.since(accepted)));
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
        refusing_after_us: after(word.refusing_at),
        settled_at: word.settled_at,
        settled_after_us: after(word.settled_at),
        settlement: if settlement.is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::to_value(&settlement).unwrap_or_default()
        },
        unsupported: last.stage == ConfirmedStage::Unsupported,
        by_lease: false,
        lease_until: None,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
