//! What a server can see of the invariants while it runs.

use std::sync::Arc;

use estoppel_model::{EnforcerId, Order, OrderBody, OrderId};

use super::{Observation, Tally, Violation};
use crate::server::{Effect, HaltProgress, Submitted, Switch};

/// Checks what a switch answers. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct ServerWatch {
    tally: Arc<Tally>,
}

impl ServerWatch {
    /// A watch that counts there.
    pub const fn new(tally: Arc<Tally>) -> Self {
        Self { tally }
    }

    /// What was counted.
    pub const fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Checks what giving an order did. `in_force` is how many were before.
    pub fn submitted(
        &self,
        switch: &Switch,
        in_force: usize,
        submitted: &Submitted,
        effects: &[Effect],
    ) -> Vec<Violation> {
        let Submitted::New { order, ended, .. } = submitted else { return Vec::new() };
        let mut seen = vec![taken(order.id, effects)];
        seen.extend(
            ended.iter().map(|id| Observation::Ended { order: *id, named: names(order, *id) }),
        );
        seen.push(Observation::InForce {
            before: in_force,
            came: usize::from(switch.orders().is_in_force(order.id)),
            ended: ended.len(),
            after: switch.verdicts().in_force(),
        });
        self.judge(seen)
    }

    /// Checks the effects of a step.
    pub fn stepped(&self, switch: &Switch, effects: &[Effect]) -> Vec<Violation> {
        let seen = effects.iter().filter_map(|effect| match effect {
            Effect::Confirmed { enforcer, confirmation, .. } => Some(Observation::Said {
                order: confirmation.order,
                refuses: was_sent(switch, *enforcer, confirmation.order),
            }),
            Effect::HandedBack { order, .. } => Some(Observation::Taken {
                order: order.id,
                waited_for: (!switch.orders().is_in_force(order.id)
                    && !matches!(order.body, OrderBody::Release { .. })
                    && !switch.orders().is_ended(order.id))
                .then_some("it was told"),
            }),
            _ => None,
        });
        self.judge(seen)
    }

    /// Checks what is told of an order's progress.
    pub fn progress(&self, progress: &HaltProgress) -> Vec<Violation> {
        let HaltProgress { expected, refusing, settled, by_lease, gone, .. } = *progress;
        self.judge([Observation::Counted { expected, refusing, settled, by_lease, gone }])
    }

    fn judge(&self, seen: impl IntoIterator<Item = Observation>) -> Vec<Violation> {
        seen.into_iter().filter_map(|seen| self.tally.observe(seen).err()).collect()
    }
}

fn taken(order: OrderId, effects: &[Effect]) -> Observation {
    let persisted = effects.iter().position(|effect| matches!(effect, Effect::Persist(_)));
    let told = effects.iter().rposition(|effect| matches!(effect, Effect::Broadcast { .. }));
    let waits = persisted.is_some_and(|persisted| told.is_some_and(|told| persisted < told));
    Observation::Taken { order, waited_for: waits.then_some("the disk") }
}

fn names(order: &Order, id: OrderId) -> bool {
    matches!(&order.body, OrderBody::Release { orders } if orders.contains(&id))
}

/// Whether the enforcer can have received the order from this server.
fn was_sent(switch: &Switch, enforcer: EnforcerId, order: OrderId) -> bool {
    let admitted =
        |order: &Order| switch.enforcer(enforcer).is_some_and(|state| state.audience.admits(order));
    switch.orders().order(order).is_some_and(|order| admitted(order))
}
