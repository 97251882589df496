//! Which orders a release ends, decided before it is written.

use std::{collections::BTreeSet, sync::Arc};

use estoppel_model::{EntityId, Order, OrderId, ScopeSet};

use super::Switch;

/// Most orders that one release ends.
pub const RELEASED_MAX: usize = 1_000;

/// What a release must hold to end exactly what was asked for and to reach all who know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasePlan {
    /// The orders that it names.
    pub orders: Vec<OrderId>,
    /// Its scope: all of theirs.
    pub scope: ScopeSet,
    /// Its tenant: theirs.
    pub tenant: Option<EntityId>,
}

/// Why nothing is released. The halts that stand are listed, for a person to choose from.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReleaseError {
    /// There is nothing to end.
    #[error("no halt is active at `{scope}`")]
    NothingActive {
        /// The scope that was asked for.
        scope: ScopeSet,
    },
    /// The halts were not named, and not exactly one stands at the scope and there alone.
    #[error("{} halts are active at `{scope}` or also elsewhere: name those that shall end", .active.len())]
    Ambiguous {
        /// The scope that was asked for.
        scope: ScopeSet,
        /// The halts at the scope, earliest first.
        active: Vec<Arc<Order>>,
    },
    /// Some that were named are not in force at the scope.
    #[error("not in force at `{scope}`: {}", list(.orders))]
    NotActive {
        /// The scope that was asked for.
        scope: ScopeSet,
        /// Those that were named in vain.
        orders: Vec<OrderId>,
        /// The halts at the scope, earliest first.
        active: Vec<Arc<Order>>,
    },
    /// Orders of several tenants cannot end by one release: each may be seen by its tenant alone.
    #[error("the orders are of several tenants: release one tenant's at a time")]
    SeveralTenants,
    /// A release has a bound.
    #[error(
        "{orders} orders with {scopes} scopes: a release ends at most {RELEASED_MAX} orders of {} scopes",
        ScopeSet::MAX
    )]
    TooMany {
        /// How many orders were named.
        orders: usize,
        /// How many scopes they have together.
        scopes: usize,
    },
}

fn list(orders: &[OrderId]) -> String {
    orders.iter().map(OrderId::to_string).collect::<Vec<_>>().join(", ")
}

impl Switch {
    /// Decides which orders a release of `scope` ends: those that are `named`, or the one halt that
    /// stands there and nowhere else. Named orders may be of any kind that can be in force.
    ///
    /// # Errors
    /// When that is nothing, or not clear.
    pub fn plan_release(
        &self,
        scope: &ScopeSet,
        named: Option<&[OrderId]>,
    ) -> Result<ReleasePlan, ReleaseError> {
        let active = || self.active_halts(scope);
        let orders: Vec<&Arc<Order>> = match named {
            None => match active().as_slice() {
                [] => return Err(ReleaseError::NothingActive { scope: scope.clone() }),
                [one] if one.scope == *scope => self.orders.order(one.id).into_iter().collect(),
                _ => {
                    return Err(ReleaseError::Ambiguous { scope: scope.clone(), active: active() });
                }
            },
            Some([]) => {
                return Err(ReleaseError::Ambiguous { scope: scope.clone(), active: active() });
            }
            Some(named) => {
                let named: BTreeSet<OrderId> = named.iter().copied().collect();
                let is_active = |id: &OrderId| {
                    self.orders.is_in_force(*id)
                        && self.orders.order(*id).is_some_and(|order| stands_at(order, scope))
                };
                let wrong: Vec<OrderId> =
                    named.iter().copied().filter(|id| !is_active(id)).collect();
                if !wrong.is_empty() {
                    let scope = scope.clone();
                    return Err(ReleaseError::NotActive { scope, orders: wrong, active: active() });
                }
                named.iter().filter_map(|id| self.orders.order(*id)).collect()
            }
        };
        plan(&orders)
    }
}

fn stands_at(order: &Order, scopes: &ScopeSet) -> bool {
    scopes.iter().all(|scope| order.scope.iter().any(|own| own == scope))
}

fn plan(orders: &[&Arc<Order>]) -> Result<ReleasePlan, ReleaseError> {
    let tenant = orders.first().and_then(|order| order.tenant.clone());
    if orders.iter().any(|order| order.tenant != tenant) {
        return Err(ReleaseError::SeveralTenants);
    }
    let scopes: BTreeSet<_> = orders.iter().flat_map(|order| order.scope.iter()).collect();
    let too_many = ReleaseError::TooMany { orders: orders.len(), scopes: scopes.len() };
    if orders.len() > RELEASED_MAX {
        return Err(too_many);
    }
    let scope = ScopeSet::new(scopes.into_iter().cloned()).map_err(|_| too_many)?;
    Ok(ReleasePlan { orders: orders.iter().map(|order| order.id).collect(), scope, tenant })
}
