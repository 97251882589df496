//! Orders that an enforcer has and the server lacks: after the loss of a server's disk, or a halt
//! that was given on a host while no server could be reached. They stay in force.

use std::sync::Arc;

use estoppel_model::{Order, OrderBody, SignedOrder};

use super::{ConnectionId, Effect, Identity, Submitted, Switch, readable};
use crate::{Audience, Now};

/// What the name of who gives a halt on a host begins with, such as `local:root@web-3`. Tokens
/// must not be named so: an enforcer could else speak for a person.
pub const LOCAL_ACTOR_PREFIX: &str = "local:";
/// Most halts of an enforcer's own key on one connection.
pub const HANDED_BACK_MAX: usize = 1_000;

impl Switch {
    pub(super) fn handed_back(
        &mut self,
        id: ConnectionId,
        orders: Vec<SignedOrder>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        for signed in orders {
            if let Err(reason) = self.hand_back(id, signed, now, effects) {
                effects.push(Effect::Rejected { connection: id, reason });
            }
        }
    }

    fn hand_back(
        &mut self,
        id: ConnectionId,
        signed: SignedOrder,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        let order = readable(&signed).map_err(|error| error.to_string())?;
        if self.orders.signed(order.id).is_some_and(|known| known.order == signed.order) {
            return Ok(());
        }
        if !self.signer.are_valid(&signed) {
            return Err(format!("order {}: its signature is wrong", order.id));
        }
        let signed =
            if signed.key == self.signer.key() { signed } else { self.adopt(id, &order, signed)? };
        let added = self.add(signed.clone(), order, now).map_err(|error| error.to_string())?;
        let (Submitted::New { order, .. }, sends) = added else { return Ok(()) };
        effects.extend(sends);
        effects.push(Effect::Persist(signed));
        let enforcer = self.connections.get(&id).and_then(super::Connection::enforcer);
        effects.extend(
            enforcer.map(|enforcer| Effect::HandedBack { enforcer, order: Arc::clone(&order) }),
        );
        Ok(())
    }

    /// Signs an enforcer's own halt as the server, so that the others obey it.
    fn adopt(
        &mut self,
        id: ConnectionId,
        order: &Order,
        signed: SignedOrder,
    ) -> Result<SignedOrder, String> {
        let connection = self.connections.get_mut(&id).ok_or("the connection is gone")?;
        let enforcer = connection.enforcer().and_then(|enforcer| self.enforcers.get(&enforcer));
        if enforcer.is_none_or(|enforcer| enforcer.key != signed.key) {
            return Err(format!("order {}: signed by key {}, a stranger's", order.id, signed.key));
        }
        is_permitted(order, &connection.identity)
            .map_err(|reason| format!("order {}: {reason}", order.id))?;
        if connection.handed_back == HANDED_BACK_MAX {
            return Err(format!(
                "order {}: more than {HANDED_BACK_MAX} halts on one connection",
                order.id
            ));
        }
        connection.handed_back += 1;
        Ok(self.signer.sign(signed.order))
    }
}

fn is_permitted(order: &Order, identity: &Identity) -> Result<(), &'static str> {
    if !matches!(order.body, OrderBody::Halt { .. }) {
        return Err("an enforcer may give halts only");
    }
    if !order.issued_by.as_str().starts_with(LOCAL_ACTOR_PREFIX) {
        return Err("an enforcer may speak for `local:` actors only");
    }
    let audience = Audience::of(identity.tenant.as_ref());
    if (identity.tenant.is_some() && order.tenant != identity.tenant) || !audience.admits(order) {
        return Err("it is not of the token's tenant, or for another");
    }
    let permitted = identity.scopes.as_ref().is_none_or(|permitted| {
        order.scope.iter().all(|scope| permitted.iter().any(|own| own == scope))
    });
    if permitted { Ok(()) } else { Err("the token does not permit its scope") }
}
