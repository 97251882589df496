//! From the hello to the moment when both sides have the same orders.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use estoppel_model::OrderId;

use super::{ConnectionId, Effect, EnforcerState, Group, Identity, Phase, Switch, close};
use crate::{
    Now,
    frame::{self, Hello, PROTOCOL, ToEnforcer, Welcome},
};

/// Longest name of an enforcer, in bytes.
const NAME_BYTES_MAX: usize = 256;

impl Switch {
    pub(super) fn hello(
        &mut self,
        id: ConnectionId,
        hello: Hello,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let known = self.enforcers.get(&hello.enforcer);
        if let Err(reason) = acceptable(&hello, &connection.identity, known) {
            close(id, &reason, effects);
            return;
        }
        let before = known.and_then(|state| state.connection);
        // It may hold a lease of a server before this one.
        let unknown_until = self.board.unknown_until(now.boot);
        let lease_until = known.and_then(|state| state.lease_until).max(unknown_until);
        let audience = connection.audience.clone();
        connection.phase = Phase::Syncing(hello.enforcer);
        let state = EnforcerState {
            id: hello.enforcer,
            actor: connection.identity.actor.clone(),
            audience: audience.clone(),
            kind: hello.kind,
            name: hello.name.into(),
            subjects: hello.subjects,
            gaps: hello.gaps,
            key: hello.key,
            connection: Some(id),
            lease_until,
        };
        let tenant = connection.identity.tenant.clone();
        if let Some(before) = before {
            self.disconnected(before);
            effects.push(Effect::Close { connection: before, reason: "it came back".to_owned() });
        }
        if unknown_until.is_some() {
            self.board.may_have_held(&state, &self.orders);
        }
        self.enforcers.insert(hello.enforcer, state);
        let orders = &self.orders;
        let group = self.groups.entry(audience).or_insert_with_key(|audience| Group {
            digest: orders.digest(audience),
            summary: None,
            connections: BTreeSet::new(),
        });
        group.connections.insert(id);
        let digest = &group.digest;
        let equal = *group.summary.get_or_insert_with(|| digest.summary()) == hello.set;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let welcome = Welcome {
            protocol: PROTOCOL,
            key: self.signer.key().to_owned(),
            tenant,
            lease_ms: millis(self.config.lease),
            ping_ms: millis(self.config.ping),
            buckets: (!equal).then(|| group.digest.buckets()),
            checkpoint: self.checkpoint.clone(),
            contact: self.contact.clone(),
        };
        let frame = ToEnforcer::Welcome(Box::new(welcome));
        effects.push(Effect::Send { connection: id, frame });
        effects.push(Effect::Joined { enforcer: hello.enforcer, checkpoint: hello.checkpoint });
        if equal {
            self.in_sync(id, effects);
        }
    }

    /// Sends what the enforcer lacks in the buckets that it listed, and asks for what this side
    /// lacks.
    pub(super) fn reconcile(
        &self,
        id: ConnectionId,
        theirs: &BTreeMap<u8, Vec<OrderId>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (mut lacking, mut wanted) = (Vec::new(), Vec::new());
        for (bucket, theirs) in theirs {
            let own = self.orders.ids_in(*bucket, &connection.audience);
            let theirs: BTreeSet<OrderId> = theirs.iter().copied().collect();
            lacking.extend(own.into_iter().filter(|order| !theirs.contains(order)));
            // What this side knows and the audience may not see is not asked for: asking would tell.
            wanted.extend(theirs.into_iter().filter(|order| self.orders.order(*order).is_none()));
        }
        // In the order in which they were given, so that a release does not come long before what
        // it ends.
        lacking.sort_unstable();
        let lacking = lacking.iter().filter_map(|order| self.orders.signed(*order).cloned());
        let batches = frame::batches(lacking).into_iter();
        effects.extend(
            batches.map(|orders| Effect::Send {
                connection: id,
                frame: ToEnforcer::Orders { orders },
            }),
        );
        if !wanted.is_empty() {
            let frame = ToEnforcer::Want { orders: wanted };
            effects.push(Effect::Send { connection: id, frame });
        }
    }

    pub(super) fn in_sync(&mut self, id: ConnectionId, effects: &mut Vec<Effect>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(enforcer) = connection.enforcer() else { return };
        connection.phase = Phase::InSync(enforcer);
        effects.push(Effect::Send { connection: id, frame: ToEnforcer::InSync });
    }
}

/// Whether a hello can be accepted: `known` is the enforcer that uses the id.
fn acceptable(
    hello: &Hello,
    identity: &Identity,
    known: Option<&EnforcerState>,
) -> Result<(), String> {
    if hello.protocol != PROTOCOL {
        let theirs = hello.protocol;
        return Err(format!("protocol {theirs} is not {PROTOCOL}: update the older side"));
    }
    if hello.name.len() > NAME_BYTES_MAX {
        let bytes = hello.name.len();
        return Err(format!("the name has {bytes} bytes: at most {NAME_BYTES_MAX}"));
    }
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if hello.key.len() != 64 || !hello.key.bytes().all(is_hex) {
        return Err("the key is not 64 lower-case hex digits".to_owned());
    }
    if known.is_some_and(|known| known.actor != identity.actor || known.key != hello.key) {
        return Err(format!("enforcer id {} is another's", hello.enforcer));
    }
    Ok(())
}
