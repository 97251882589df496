//! Accesses across tenants (row T2): each is recorded with both tenants, and under strict tenant
//! validation, by order or from the code, refused unless both are known and the same.

use estoppel_model::{EntityId, Subject};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    Guard, Mode,
    audit::{self, summary},
    denied::{Cause, Denied, DeniedReason},
};

/// An access to data that belongs to a tenant.
#[derive(Debug, Clone)]
#[must_use]
pub struct Access {
    pub(crate) action: String,
    pub(crate) requester: Option<EntityId>,
    pub(crate) accessed: Option<EntityId>,
    pub(crate) params: Option<Box<RawValue>>,
}

impl Access {
    /// An access by `requester` to what belongs to `accessed`; `None` where it is not known.
    pub fn new(
        action: impl Into<String>,
        requester: Option<EntityId>,
        accessed: Option<EntityId>,
    ) -> Self {
        Self { action: action.into(), requester, accessed, params: None }
    }

    /// What was asked for. What is very large or very deep is recorded shortened.
    pub fn params(mut self, params: &impl Serialize) -> Self {
        self.params = Some(summary(params));
        self
    }

    fn is_within_one_tenant(&self) -> bool {
        self.requester.is_some() && self.requester == self.accessed
    }
}

impl Guard {
    /// Whether the subject, for the requesting tenant, may access what belongs to another. A limit
    /// counts that reaches the subject as the requester or as the accessed tenant.
    ///
    /// # Errors
    /// When the subject must not act at all, or strict tenant validation is in force and the two
    /// tenants differ or are not both known.
    pub fn access(&self, subject: &Subject, access: Access) -> Result<(), Denied> {
        let shared = &self.shared;
        let subject = Subject {
            tenant: access.requester.clone().or_else(|| subject.tenant.clone()),
            ..subject.clone()
        };
        let strict = || {
            let touched = Subject { tenant: access.accessed.clone(), ..subject.clone() };
            [&subject, &touched]
                .iter()
                .any(|subject| shared.limit(subject).tenant_validation_strict)
        };
        let cause = shared.refusal(&subject, None).or_else(|| {
            (!access.is_within_one_tenant() && strict())
                .then_some(Cause::Want(DeniedReason::TenantValidation))
        });
        let (decision, result) = match (&cause, shared.mode) {
            (None, _) => ("allowed", Ok(())),
            (Some(_), Mode::Observe) => ("would_stop", Ok(())),
            (Some(cause), Mode::Enforce) => ("denied", Err(shared.denied(cause))),
        };
        let now = shared.clock.now();
        shared.uploader.send(audit::access(&subject, access, decision, cause.as_ref(), now));
        result
    }
}
