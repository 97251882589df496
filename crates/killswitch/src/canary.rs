//! Canaries: halts of nobody, by which a drill measures the way of a real one.
//!
//! A canary is a halt of one session of a reserved name, given by the server itself. It takes every
//! step that a halt takes: signed, broadcast, folded, published, confirmed. What distinguishes it is
//! asked in two places only: people are not shown it among what is really halted, and an enforcer
//! says of it whether its own check refuses the canary, so that a confirmation is more than an echo.
//!
//! The name alone makes no canary: who halts a session of such a name has halted it.

use estoppel_model::{Actor, EntityId, Kind, Order, OrderBody, OrderId, Scope, ScopeSet, Subject};

/// Who gives canaries and their releases. No token carries a name that begins with
/// [`SERVER_ACTOR_PREFIX`].
pub const DRILL_ACTOR: &str = "estoppel:drill";
/// What names the server itself and its parts begin with.
pub const SERVER_ACTOR_PREFIX: &str = "estoppel:";
const SESSION_PREFIX: &str = "estoppel-canary-";

/// The scope of a canary's order: its own id is the session's.
///
/// # Errors
/// Never for an order's id, which holds nothing that an id may not.
pub fn canary_scope(order: OrderId) -> Result<ScopeSet, estoppel_model::IdError> {
    let id = EntityId::new(&format!("{SESSION_PREFIX}{order}"))?;
    Ok(Scope::entity(Kind::Session, id).into())
}

/// Whether an order is part of a drill: given by [`DRILL_ACTOR`], for a canary's scope.
pub fn is_drill(order: &Order) -> bool {
    let mut scopes = order.scope.iter();
    let named = match (scopes.next(), scopes.next()) {
        (Some(Scope::Entity { kind: Kind::Session, id }), None) => {
            id.as_str().starts_with(SESSION_PREFIX)
        }
        _ => false,
    };
    named && is_drill_actor(&order.issued_by)
}

fn is_drill_actor(actor: &Actor) -> bool {
    actor.as_str() == DRILL_ACTOR
}

/// The subject that a canary halts, if the order is one.
pub fn canary_of(order: &Order) -> Option<Subject> {
    if !is_drill(order) || !matches!(order.body, OrderBody::Halt { .. }) {
        return None;
    }
    order.scope.iter().find_map(|scope| match scope {
        Scope::Entity { kind: Kind::Session, id } => Some(Subject::session(id.clone())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::halt;

    /// A1: a canary is known by its giver and its scope together, never by its name alone.
    #[test]
    fn a_canary_is_known_by_its_giver_and_its_scope() {
        let id = OrderId::new();
        let scope = canary_scope(id).unwrap();
        let canary = Order {
            scope: scope.clone(),
            issued_by: Actor::new(DRILL_ACTOR).unwrap(),
            ..halt(1, &["session:x"], None)
        };
        let subject = canary_of(&canary).unwrap();
        assert!(scope.reaches(&subject));
        assert_eq!(subject.session.unwrap().as_str(), format!("estoppel-canary-{id}"));

        let by_a_person = Order { issued_by: Actor::new("mallory").unwrap(), ..canary.clone() };
        assert!(!is_drill(&by_a_person) && canary_of(&by_a_person).is_none());
        let of_everything = Order { scope: Scope::Global.into(), ..canary.clone() };
        assert!(!is_drill(&of_everything));
        let wider = canary.scope.iter().cloned().chain(["user:u".parse().unwrap()]);
        let of_more = Order { scope: ScopeSet::new(wider).unwrap(), ..canary.clone() };
        assert!(!is_drill(&of_more), "a canary reaches nobody else");
        let release = Order { body: OrderBody::Release { orders: vec![id] }, ..canary };
        assert!(is_drill(&release) && canary_of(&release).is_none());
    }
}
