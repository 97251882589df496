//! Bodies of records from orders and from enforcers' words.

use estoppel_incident::record::{Confirmed, ConfirmedStage, Halted, IncidentKind, Opened, Source};
use estoppel_killswitch::frame::Stage;
use estoppel_model::{IncidentId, Order, OrderBody, Severity, Subject, Untrusted};

use crate::switchboard::Word;

/// The record that an order is in force.
pub(super) fn halted(order: &Order, incident: IncidentId, expected: usize) -> Halted {
    let what = match &order.body {
        OrderBody::Block { destination } => format!("block {destination}"),
        OrderBody::Limit { limit } => format!("limit to {limit}"),
        OrderBody::Halt { .. } => "halt".to_owned(),
        _ => "order".to_owned(),
    };
    Halted {
        incident,
        order: order.id,
        what,
        scope: order.scope.clone(),
        reason: Untrusted::new(order.reason.clone()),
        by: order.issued_by.clone(),
        accepted_at: order.issued_at,
        enforcers: expected as u64,
    }
}

/// The incident that a person's halt opens.
pub(super) fn opened_by(order: &Order, id: IncidentId) -> Opened {
    Opened {
        id,
        title: Untrusted::new(format!("Halt of {}: {}", order.scope, order.reason)),
        kind: IncidentKind::Other,
        severity: Severity::High,
        source: Source::Halt,
        scope: Some(order.scope.clone()),
        subject: Subject::default(),
        by: order.issued_by.clone(),
        description: None,
    }
}

/// The record of an enforcer's word.
pub(super) fn confirmed(incident: IncidentId, word: Word) -> Confirmed {
    let Word { enforcer, kind, name, confirmation, .. } = word;
    let settlement = confirmation.settlement;
    let untrusted = |text: Vec<String>| text.into_iter().map(Untrusted::new).collect();
    Confirmed {
        incident,
        order: confirmation.order,
        enforcer,
        kind: format!("{kind:?}").to_lowercase(),
        name: Untrusted::new(name.to_string()),
        stage: match confirmation.stage {
            Stage::Unsupported => ConfirmedStage::Unsupported,
            Stage::Refusing => ConfirmedStage::Refusing,
            Stage::Settled => ConfirmedStage::Settled,
        },
        confirmed_at: confirmation.at,
        after_us: confirmation.after_us,
        steps_cancelled: settlement.steps_cancelled,
        connections_cut: settlement.connections_cut,
        processes_frozen: settlement.processes_frozen,
        bytes_out: settlement.bytes_out,
        last_byte_at: settlement.last_byte_at,
        not_interruptible: untrusted(settlement.not_interruptible),
        containment: settlement.containment.map(Untrusted::new),
        observed_only: settlement.observed_only,
    }
}

/// Whom an incident concerns, in words.
pub(super) fn concerns(opened: &Opened) -> String {
    match &opened.scope {
        Some(scope) => scope.to_string(),
        None => opened.subject.to_string(),
    }
}
