//! What each task may come to at a gateway: the bounds that stop it, and so many requests a minute.
//!
//! A gateway sees requests and tunnels, not an agent's steps: each that it lets through is a step
//! and, until both sides have ended it, a call under way. A tunnel is one, whatever goes through it.
//! The accounts are those of [`estoppel_link::breaker`]. Invariants:
//!
//! - What is refused for another reason has not been and counts nowhere.
//! - A task that trips is stopped here first: what it has under way is cut, what it sends further is
//!   refused. Then the server is told, once; nothing of the stop waits for that.
//! - Never are more under way than may be. A client may send its next request a moment before the
//!   gateway has seen the end of its last one, so that one more waits for room at most [`ROOM_WAIT`]
//!   before it counts as one too many.
//!
//! Cost, tokens, errors and results are not counted: what would tell them is inside TLS.

use std::{pin::pin, time::Duration};

use estoppel_link::{
    TooSoon,
    breaker::{Ended, Entry, Outcome, StepKind, Trip},
};
use estoppel_model::{
    AuditEvent, Boottime, Event, Excess, GATEWAY_ENFORCER, LIMIT_ACTION, Limit, Order, OrderBody,
    OrderId, Timestamp, Untrusted,
};
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{
    open::{Cause, Flow},
    registry::Flows,
};
use crate::policy::Mode;

/// Longest wait for room among the requests of a task that are under way.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// Each flow is one.
const KIND: StepKind = StepKind::Call;

/// Why a flow that nothing else refuses must not begin.
#[derive(Debug)]
pub(crate) enum Uncounted {
    /// It comes too soon behind others, which stops nobody.
    TooSoon(TooSoon),
    /// Its task is over a limit.
    Over(Cause),
    /// It was ended while it waited for room.
    Ended,
}

impl Flows {
    /// Counts a flow that nothing else refuses, once there is room for it. Dropped, it has counted
    /// nothing but towards the requests of the minute.
    ///
    /// # Errors
    /// When the flow must not begin.
    pub(crate) async fn count(&self, flow: &Flow) -> Result<(), Uncounted> {
        let subject = &flow.source.subject;
        if let Some(per_minute) = self.judge.authority.limit(subject).requests_per_minute {
            self.rates
                .take(subject, &flow.target, per_minute, self.clock.boottime())
                .map_err(Uncounted::TooSoon)?;
        }
        let entry = self.enter(flow).await.ok_or(Uncounted::Ended)?;
        if let Some(holder) = entry.holder {
            flow.counts_in(holder);
        }
        if entry.next_look_changed {
            self.look_changed.notify_one();
        }
        let Some(trip) = entry.trip else { return Ok(()) };
        if entry.is_new {
            self.tripped(&trip);
        }
        if trip.stops { Err(Uncounted::Over(Cause::Limit { trip, order: None })) } else { Ok(()) }
    }

    /// Waits for room; `None` when the flow was ended meanwhile.
    async fn enter(&self, flow: &Flow) -> Option<Entry> {
        let breakers = &self.judge.breakers;
        let subject = &flow.source.subject;
        // Both may change while it waits.
        let terms = || (stopping(&self.judge.authority.limit(subject)), self.clock.boottime());
        let mut too_long = pin!(tokio::time::sleep(ROOM_WAIT));
        loop {
            // It is told of all that leave from here on.
            let left = self.left.notified();
            let (limit, now) = terms();
            if let Some(entry) = breakers.enter_if_room(subject, KIND, &limit, now) {
                return Some(entry);
            }
            tokio::select! {
                biased;
                () = flow.ending.cancelled() => return None,
                () = left => {}
                () = &mut too_long => {
                    let (limit, now) = terms();
                    return Some(breakers.enter(subject, KIND, &limit, now));
                }
            }
        }
    }

    /// Counts a flow as ended whose sockets are done with.
    pub(super) fn uncount(&self, flow: &Flow) {
        let Some(holder) = flow.holder() else { return };
        let outcome = Outcome { ended: Ended::Well, cost_usd: 0.0, tokens: 0, fingerprint: None };
        // By ending, no task comes to be over a bound that is counted here.
        let limit = Limit::default();
        let now = self.clock.boottime();
        self.judge.breakers.leave(holder, &flow.source.subject, KIND, &outcome, &limit, now);
        self.left.notify_waiters();
    }

    /// An order came into force: the release of a halt lets begin anew, and a limit may be over at once.
    pub(crate) fn ordered(&self, order: &Order) {
        match order.body {
            OrderBody::Halt { .. } => self.judge.breakers.halted(order),
            // The one who follows the orders asks for the next look behind each.
            OrderBody::Limit { .. } => self.judge.breakers.look_soon(),
            _ => {}
        }
    }

    /// Orders were released: whom they alone had halted begins anew.
    pub(crate) fn released(&self, orders: &[OrderId]) {
        self.judge.breakers.released(orders);
        self.forget(orders);
    }

    /// When [`Flows::look_at_limits`] is to be asked next.
    pub(crate) fn next_look(&self) -> Option<Boottime> {
        self.judge.breakers.next_look()
    }

    /// Resolves when [`Flows::next_look`] has changed.
    pub(crate) async fn look_changed(&self) {
        self.look_changed.notified().await;
    }

    /// Looks at the tasks that have something under way: their time may be over, or their bounds may
    /// have become stricter.
    pub(crate) fn look_at_limits(&self) {
        let Self { judge, clock, .. } = self;
        judge.breakers.looking();
        let now = clock.boottime();
        for flow in self.all() {
            let Some(holder) = flow.holder() else { continue };
            let subject = &flow.source.subject;
            let limit = stopping(&judge.authority.limit(subject));
            if let Some(trip) = judge.breakers.look(holder, subject, &limit, now) {
                self.tripped(&trip);
            }
        }
    }

    /// Cuts what a tripped task has under way, and tells the server.
    #[cold]
    fn tripped(&self, trip: &Trip) {
        if trip.stops {
            for flow in self.all().iter().filter(|flow| flow.holder() == Some(&trip.holder)) {
                if let Some(cause) = flow.refusal() {
                    flow.end(cause);
                }
            }
        }
        tracing::warn!(excess = %trip.excess, subject = %trip.subject, "a task is over a limit");
        self.judge.authority.record(told(trip, self.clock.now()));
    }

    /// What of a limit is enforced here, in words.
    pub(crate) fn enforced(&self, limit: &Limit) -> String {
        let own = stopping(limit);
        let others = Limit {
            requests_per_minute: None,
            steps_max: None,
            wall_clock_ms_max: None,
            concurrency_max: None,
            ..limit.clone()
        };
        let rate = limit.requests_per_minute.map(|per_minute| {
            format!(
                "{per_minute} requests each minute to each destination, a tunnel as one request"
            )
        });
        let observes = self.policy().mode == Mode::Observe;
        let only = if observes { ", which in the mode `observe` is only recorded" } else { "" };
        let stops = (!own.is_none())
            .then(|| format!("{own}, a request or a tunnel as one step and one call{only}"));
        let not = (!others.is_none()).then(|| format!("a gateway does not enforce {others}"));
        [rate, stops, not].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// Those of the bounds that stop a task here.
fn stopping(limit: &Limit) -> Limit {
    Limit {
        steps_max: limit.steps_max,
        wall_clock_ms_max: limit.wall_clock_ms_max,
        concurrency_max: limit.concurrency_max,
        ..Limit::default()
    }
}

/// The record that a task is over a limit, by which the server learns of it.
fn told(trip: &Trip, now: Timestamp) -> Event {
    #[derive(Serialize)]
    struct Attributes<'a> {
        reason: &'static str,
        limit: &'a Excess,
        enforcer: &'static str,
    }
    let attributes =
        Attributes { reason: "limit", limit: &trip.excess, enforcer: GATEWAY_ENFORCER };
    let decision = if trip.stops { "denied" } else { "would_stop" };
    let subject = &trip.subject;
    Event::Audit(Box::new(AuditEvent {
        id: Some(uuid::Uuid::now_v7()),
        timestamp: Some(now),
        session_id: subject.session.clone(),
        user_id: subject.user.clone(),
        task_id: subject.task.clone(),
        agent_id: subject.agent.clone(),
        requester_tenant_id: subject.tenant.clone(),
        action: Some(Untrusted::new(LIMIT_ACTION.to_owned())),
        decision: Some(Untrusted::new(decision.to_owned())),
        attributes: to_raw_value(&attributes).ok(),
        ..AuditEvent::default()
    }))
}
