//! Who may see an order, and whom it reaches.
//!
//! A token may be bound to one tenant. Its enforcers never receive another tenant's orders, not
//! even their ids: digests and reconciliation are taken over what the audience may see.

use estoppel_model::{EntityId, Kind, Order, Scope, Subject};

/// Whose orders a connection receives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Bound to no tenant, such as a shared gateway: all orders.
    Everyone,
    /// Bound to this tenant.
    Tenant(EntityId),
}

impl Audience {
    /// The audience of a token that is bound to `tenant`, or to none.
    pub fn of(tenant: Option<&EntityId>) -> Self {
        tenant.map_or(Self::Everyone, |tenant| Self::Tenant(tenant.clone()))
    }

    /// Whether this audience receives the order: it is of the tenant or of nobody, and not meant
    /// for other tenants alone.
    pub fn admits(&self, order: &Order) -> bool {
        let Self::Tenant(own) = self else { return true };
        let foreign =
            |scope: &Scope| matches!(scope, Scope::Entity { kind: Kind::Tenant, id } if id != own);
        order.tenant.as_ref().is_none_or(|tenant| tenant == own) && !order.scope.iter().all(foreign)
    }
}

/// Whether an order reaches a subject: one of its scopes does, and the order is not of another
/// tenant. A subject whose tenant is not known is reached: when in doubt, stop.
///
/// The naive rule; [`crate::Verdicts`] folds it into an index.
pub fn reaches(order: &Order, subject: &Subject) -> bool {
    is_of_tenant(order, subject) && order.scope.reaches(subject)
}

/// Whether the order's tenant, if it has one, can be the subject's.
pub(crate) fn is_of_tenant(order: &Order, subject: &Subject) -> bool {
    match (&order.tenant, &subject.tenant) {
        (Some(own), Some(other)) => own == other,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{halt, id};

    #[test]
    fn a_tenants_enforcers_see_no_other_tenants_orders() {
        let acme = Audience::Tenant(id("acme"));
        let check = |scopes: &[&str], tenant: Option<&str>, expect: bool| {
            let order = halt(1, scopes, tenant);
            assert_eq!(acme.admits(&order), expect, "{scopes:?} of {tenant:?}");
            assert!(Audience::Everyone.admits(&order));
        };
        check(&["global"], None, true);
        check(&["global"], Some("acme"), true);
        check(&["global"], Some("other"), false);
        check(&["session:s"], None, true);
        check(&["session:s"], Some("other"), false);
        check(&["tenant:acme"], None, true);
        check(&["tenant:other"], None, false);
        check(&["tenant:other", "tenant:third"], None, false);
        check(&["tenant:other", "session:s"], None, true);
        check(&["tenant:other", "tenant:acme"], None, true);
    }

    #[test]
    fn a_tenants_order_reaches_its_own_and_the_unknown() {
        let order = halt(1, &["session:s"], Some("acme"));
        let mut subject = Subject::session(id("s"));
        assert!(reaches(&order, &subject), "the tenant is not known");
        subject.tenant = Some(id("acme"));
        assert!(reaches(&order, &subject));
        subject.tenant = Some(id("other"));
        assert!(!reaches(&order, &subject));
    }
}
