//! Bugs that are planted on purpose, to see that the simulation finds them.
//!
//! Each sits between a production state machine and the world, where it has the effect that the
//! same mistake inside of the machine would have: on what enforcement code sees, on what is sent
//! when, on what a start begins with, on what reaches the disk.

use std::time::Duration;

use estoppel_killswitch::{Now, OrderSet, Verdicts, enforcer::Enforcer, invariant::Invariant};
use estoppel_model::{Boottime, Order, OrderBody, OrderId};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A release ends all halts at its scopes.
    ReleaseEndsOthers,
    /// An enforcer extends its lease by itself.
    LeaseWithoutContact,
    /// A lease counts from the arrival of the answer.
    LeaseFromArrival,
    /// A server starts without its spool.
    SpoolForgotten,
    /// An enforcer confirms, and lets enforcement code know a moment later.
    ConfirmedTooEarly,
    /// At a new connection an enforcer forgets what the server does not have.
    SnapshotTrusted,
    /// A server that is behind the ledger gives full leases.
    StalenessIgnored,
    /// An enforcer ends a halt when its time is over.
    HaltExpires,
    /// Nobody syncs.
    SyncRemoved,
    /// A server that was started again takes those whom it knows for all.
    PredecessorForgotten,
    /// An enforcer that starts has forgotten how much of a break-glass it has used.
    BreakGlassForgotten,
    /// A break-glass lets go what is halted.
    BreakGlassReleases,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ReleaseEndsOthers,
        Self::LeaseWithoutContact,
        Self::LeaseFromArrival,
        Self::SpoolForgotten,
        Self::ConfirmedTooEarly,
        Self::SnapshotTrusted,
        Self::StalenessIgnored,
        Self::HaltExpires,
        Self::SyncRemoved,
        Self::PredecessorForgotten,
        Self::BreakGlassForgotten,
        Self::BreakGlassReleases,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReleaseEndsOthers => "release-ends-others",
            Self::LeaseWithoutContact => "lease-without-contact",
            Self::LeaseFromArrival => "lease-from-arrival",
            Self::SpoolForgotten => "spool-forgotten",
            Self::ConfirmedTooEarly => "confirmed-too-early",
            Self::SnapshotTrusted => "snapshot-trusted",
            Self::StalenessIgnored => "staleness-ignored",
            Self::HaltExpires => "halt-expires",
            Self::SyncRemoved => "sync-removed",
            Self::PredecessorForgotten => "predecessor-forgotten",
            Self::BreakGlassForgotten => "break-glass-forgotten",
            Self::BreakGlassReleases => "break-glass-releases",
        }
    }

    /// The invariant that it breaks.
    pub const fn breaks(self) -> Invariant {
        match self {
            Self::ReleaseEndsOthers
            | Self::SnapshotTrusted
            | Self::HaltExpires
            | Self::BreakGlassReleases => Invariant::StartingAlwaysDoes,
            Self::LeaseWithoutContact
            | Self::LeaseFromArrival
            | Self::StalenessIgnored
            | Self::BreakGlassForgotten => Invariant::Lease,
            Self::ConfirmedTooEarly | Self::PredecessorForgotten => Invariant::Confirmed,
            Self::SpoolForgotten | Self::SyncRemoved => Invariant::AcknowledgedIsKept,
        }
    }
}

/// What enforcement code is shown of an enforcer's orders, with the bug or without. `unknown` are
/// those that the server did not have when the two were last in step.
pub(crate) fn verdicts(
    planted: Option<Bug>,
    enforcer: &Enforcer,
    unknown: &[OrderId],
    now: Now,
) -> Verdicts {
    let left_out: Box<dyn Fn(&Order) -> bool> = match planted {
        Some(Bug::ReleaseEndsOthers) => {
            let releases: Vec<Order> = enforcer
                .orders()
                .iter()
                .filter_map(|signed| signed.parse().ok())
                .filter(|order| matches!(order.body, OrderBody::Release { .. }))
                .collect();
            Box::new(move |order| {
                let shares = |release: &Order| {
                    release.scope.iter().any(|scope| order.scope.iter().any(|own| own == scope))
                };
                releases.iter().any(|release| order.id < release.id && shares(release))
            })
        }
        Some(Bug::SnapshotTrusted) => {
            let unknown = unknown.to_vec();
            Box::new(move |order| unknown.contains(&order.id))
        }
        Some(Bug::BreakGlassReleases) => {
            let leased = enforcer.lease_until().is_some_and(|until| now.boot < until);
            let goes_on = enforcer.goes_on_until().is_some_and(|until| now.boot < until);
            Box::new(move |_| goes_on && !leased)
        }
        Some(Bug::HaltExpires) => Box::new(
            move |order| matches!(order.body, OrderBody::Halt { until: Some(until) } if until <= now.wall),
        ),
        _ => return enforcer.verdicts().clone(),
    };
    let mut shown = OrderSet::default();
    for order in enforcer.orders().in_force().filter(|order| !left_out(order)) {
        let signed = enforcer.orders().signed(order.id).expect("what is in force is signed");
        shown.insert_or_refuse(signed.clone()).expect("it was read before");
    }
    shown.verdicts().clone()
}

/// Until when enforcement code takes the lease to hold.
pub(crate) fn lease_until(
    planted: Option<Bug>,
    real: Option<Boottime>,
    shown: Option<Boottime>,
    answered: bool,
    lease: Duration,
    now: Now,
) -> Option<Boottime> {
    match planted {
        Some(Bug::LeaseWithoutContact) => real.map(|_| now.boot + lease),
        Some(Bug::LeaseFromArrival) if answered => real.map(|_| now.boot + lease),
        Some(Bug::LeaseFromArrival) => shown.max(real),
        _ => real,
    }
}
