//! From a value in Redis to a halt, as often as that may happen.
//!
//! Who can write to Redis can halt anything, and so can a program gone wild. Halts of single scopes
//! are therefore paced and bounded in number; what has to wait stays in Redis and is taken up later,
//! and `status` says so. A global halt never waits: it stops all that the others would. Beyond some
//! in a minute they join one incident and page nobody a second time.

use std::{sync::Arc, time::Duration};

use estoppel_model::{
    Actor, Boottime, IdError, IncidentId, Order, OrderBody, OrderId, Scope, ScopeSet, Subject,
};

use super::{
    book::{ACTOR, NewHalt},
    bucket::Bucket,
};
use crate::{Server, switchboard::Ended};

/// Halts at once, and then one more each.
const HALTS: (u32, Duration) = (200, Duration::from_millis(100));
/// Halts with an incident and a page of their own at once, and then one more each.
const PAGES: (u32, Duration) = (20, Duration::from_secs(3));
/// Halts that followed from Redis and are in force; more wait until some are released.
const IN_FORCE_MAX: usize = 10_000;

/// Gives halts.
#[derive(Debug)]
pub(super) struct Inlet {
    actor: Actor,
    halts: Bucket,
    pages: Bucket,
    /// The incident that a flood joins.
    latest: Option<IncidentId>,
}

/// What came of a halt that is to be given.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is in force.
    Given(Arc<Order>),
    /// It has to wait for others.
    Waits,
}

impl Inlet {
    pub(super) fn new(now: Boottime) -> Result<Self, IdError> {
        Ok(Self {
            actor: Actor::new(ACTOR)?,
            halts: Bucket::new(HALTS.0, HALTS.1, now),
            pages: Bucket::new(PAGES.0, PAGES.1, now),
            latest: None,
        })
    }

    /// Gives a halt, while `in_force` others are that followed from Redis.
    ///
    /// # Errors
    /// When the server is ending.
    pub(super) async fn give(
        &mut self,
        server: &Server,
        halt: &NewHalt,
        in_force: usize,
    ) -> Result<Taken, Ended> {
        let now = server.clock().boottime();
        if halt.scope != Scope::Global && (in_force >= IN_FORCE_MAX || !self.halts.take(now)) {
            return Ok(Taken::Waits);
        }
        let alone = self.pages.take(now) || halt.scope == Scope::Global;
        let joins = if alone { None } else { self.latest };
        let scope = ScopeSet::from(halt.scope.clone());
        let chosen = server.incidents().choose(Some(&scope), &Subject::default(), joins);
        let order = Order {
            id: halt.id.unwrap_or_default(),
            scope,
            reason: halt.claim.reason(),
            issued_by: self.actor.clone(),
            issued_at: server.clock().now(),
            incident: Some(chosen.id),
            tenant: None,
            body: OrderBody::Halt { until: None },
        };
        let given = match server.switchboard().give(order.clone()).await? {
            // The id was taken in this moment: a halt is a halt under another, too.
            Err(_) => server.switchboard().give(Order { id: OrderId::new(), ..order }).await?,
            given => given,
        };
        match given {
            Ok(given) => {
                tracing::warn!(order = %given.order.id, scope = %halt.scope, "a halt was written to Redis");
                self.latest = Some(chosen.id);
                if given.repeated {
                    server.incidents().forget(chosen);
                } else if joins.is_some() {
                    server.incidents().halted_beside(&given, chosen);
                } else {
                    server.incidents().halted_by_person(&given, chosen);
                }
                Ok(Taken::Given(given.order))
            }
            Err(error) => {
                server.incidents().forget(chosen);
                tracing::error!(scope = %halt.scope, %error, "a halt that was written to Redis is not taken; it is tried again");
                Ok(Taken::Waits)
            }
        }
    }
}
