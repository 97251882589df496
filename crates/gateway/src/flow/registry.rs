//! All flows that are open, and what cutting them came to.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use estoppel_extract::HostPort;
use estoppel_link::{breaker::Breakers, frame::Settlement};
use estoppel_model::{Clock, Event, FlowVerdict, NetworkEvent, OrderId, Timestamp, Untrusted};
use serde::Serialize;
use tokio::sync::Notify;

use super::{
    judge::Judge,
    open::{Cause, Flow, row_of},
    rates::Rates,
};
use crate::{
    Authority, Source,
    policy::{Listing, Mode, Policy},
    wire::Wire,
};

/// Most orders whose cuts are remembered until they are settled.
const TALLIES_MAX: usize = 10_000;
/// Longest destination that a row repeats of a request that named none, in characters.
const DESTINATION_CHARS_MAX: usize = 253;

/// Sums since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Flows that were judged.
    pub flows: u64,
    /// Flows of which nothing went out.
    pub refused: u64,
    /// Flows that were cut.
    pub cut: u64,
    /// Bytes handed to the kernel for destinations.
    pub bytes_sent: u64,
    /// Bytes that came from destinations.
    pub bytes_received: u64,
}

/// What an order has cut here.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    cut: u64,
    bytes_sent: u64,
    last_sent_at: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Arc<Flow>>,
    next: u64,
    tallies: HashMap<OrderId, Tally>,
}

/// All flows that are open.
pub(crate) struct Flows {
    pub(super) judge: Arc<Judge>,
    pub(super) clock: Arc<dyn Clock>,
    policy: ArcSwap<Policy>,
    pub(super) rates: Rates,
    /// A flow that counted has left: there may be room for another.
    pub(super) left: Notify,
    /// When tasks are to be looked at has changed.
    pub(super) look_changed: Notify,
    state: Mutex<State>,
    judged: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

/// Keeps a flow registered. Dropped after the flow's sockets, it writes the last row.
pub(crate) struct FlowGuard {
    id: u64,
    flow: Arc<Flow>,
    flows: Arc<Flows>,
}

impl Flows {
    pub(crate) fn new(
        authority: Arc<dyn Authority>,
        clock: Arc<dyn Clock>,
        policy: Policy,
    ) -> Self {
        let breakers = Breakers::default();
        breakers.set_observes(policy.mode == Mode::Observe);
        Self {
            judge: Arc::new(Judge { authority, breakers }),
            clock,
            policy: ArcSwap::from_pointee(policy),
            rates: Rates::default(),
            left: Notify::new(),
            look_changed: Notify::new(),
            state: Mutex::default(),
            judged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn authority(&self) -> &Arc<dyn Authority> {
        &self.judge.authority
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Puts a policy in force and cuts what it no longer lets through.
    pub(crate) fn set_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
        // A flow is registered under the lock that `all` takes, so it has seen this policy or is
        // among these.
        let policy = self.policy();
        self.judge.breakers.set_observes(policy.mode == Mode::Observe);
        self.look_changed.notify_one();
        for flow in self.all() {
            if policy.judge(&flow.target.host, flow.target.port) == Listing::Blocked {
                flow.end(Cause::Policy);
            }
        }
    }

    /// Registers a flow. Whether it may go out is the caller's next question.
    pub(crate) fn open(
        self: &Arc<Self>,
        source: Arc<Source>,
        target: HostPort,
        protocol: &'static str,
        client: Wire,
    ) -> FlowGuard {
        self.judged.fetch_add(1, Relaxed);
        let mut state = self.state();
        let listing = self.policy.load().judge(&target.host, target.port);
        let judge = Arc::clone(&self.judge);
        let now = self.clock.boottime();
        let flow = Arc::new(Flow::new(judge, source, target, protocol, listing, client, now));
        state.next += 1;
        let id = state.next;
        state.open.insert(id, Arc::clone(&flow));
        drop(state);
        FlowGuard { id, flow, flows: Arc::clone(self) }
    }

    /// Records a request that was refused before it was known where it goes, or who sends.
    pub(crate) fn refused(&self, source: &Source, protocol: &'static str, destination: &str) {
        self.judged.fetch_add(1, Relaxed);
        self.refused.fetch_add(1, Relaxed);
        let destination = destination.chars().take(DESTINATION_CHARS_MAX).collect();
        self.record(NetworkEvent {
            destination: Some(Untrusted::new(destination)),
            bytes_sent: Some(0),
            bytes_received: Some(0),
            verdict: Some(FlowVerdict::Blocked),
            ..row_of(source, protocol, self.clock.now())
        });
    }

    fn record(&self, row: NetworkEvent) {
        self.judge.authority.record(Event::Network(Box::new(row)));
    }

    /// Writes a row for a flow now.
    pub(crate) fn report(&self, flow: &Flow) {
        self.record(flow.row(self.clock.now(), self.clock.boottime()));
    }

    /// Writes a row for each flow whose bytes have moved since its last one.
    pub(crate) fn report_progress(&self) {
        for flow in self.all().iter().filter(|flow| flow.has_news()) {
            self.report(flow);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Flow>> {
        self.state().open.values().cloned().collect()
    }

    /// Cuts every flow that the orders, the lease and the limits no longer let go on.
    pub(crate) fn enforce(&self) {
        for flow in self.all() {
            if let Some(cause) = flow.refusal() {
                flow.end(cause);
            }
        }
    }

    /// Ends every flow that has been silent for longer than this.
    pub(crate) fn end_idle(&self, longest: Duration) {
        let now = self.clock.boottime();
        for flow in self.all().iter().filter(|flow| flow.is_idle(now, longest)) {
            flow.end(Cause::Idle);
        }
    }

    /// Cuts everything.
    pub(crate) fn end_all(&self, cause: &Cause) {
        for flow in self.all() {
            flow.end(cause.clone());
        }
    }

    /// Waits until what an order has cut is closed, and says what that came to.
    pub(crate) async fn settle(&self, order: OrderId, longest: Duration) -> Settlement {
        let cut = |flow: &Arc<Flow>| flow.ended_by().is_some_and(|by| by.id == order);
        let flows: Vec<_> = self.all().into_iter().filter(cut).collect();
        let closed = async {
            for flow in &flows {
                flow.closed.cancelled().await;
            }
        };
        let in_time = tokio::time::timeout(longest, closed).await.is_ok();
        let tally = self.state().tallies.remove(&order).unwrap_or_default();
        let open = flows.iter().filter(|flow| !flow.closed.is_cancelled()).count();
        Settlement {
            connections_cut: tally.cut,
            bytes_out: tally.bytes_sent,
            last_byte_at: tally.last_sent_at,
            not_interruptible: if in_time {
                Vec::new()
            } else {
                vec![format!("{open} connections were reset but had not been let go of")]
            },
            containment: Some("egress through this gateway".to_owned()),
            ..Settlement::default()
        }
    }

    /// Forgets cuts of orders that have ended.
    pub(super) fn forget(&self, orders: &[OrderId]) {
        let mut state = self.state();
        for order in orders {
            state.tallies.remove(order);
        }
    }

    /// How many flows are open.
    pub(crate) fn len(&self) -> usize {
        self.state().open.len()
    }

    /// Sums since the start, open flows included.
    pub(crate) fn totals(&self) -> Totals {
        let flows = self.all();
        let sum = |of: fn(&Flow) -> u64| flows.iter().map(|flow| of(flow)).sum::<u64>();
        Totals {
            flows: self.judged.load(Relaxed),
            refused: self.refused.load(Relaxed),
            cut: self.cut.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed) + sum(Flow::sent),
            bytes_received: self.bytes_received.load(Relaxed) + sum(Flow::received),
        }
    }
}

impl FlowGuard {
    pub(crate) const fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        let Self { id, flow, flows } = self;
        flows.uncount(flow);
        let row = flow.row(flows.clock.now(), flows.clock.boottime());
        match row.verdict {
            Some(FlowVerdict::Cut) => flows.cut.fetch_add(1, Relaxed),
            Some(FlowVerdict::Blocked) => flows.refused.fetch_add(1, Relaxed),
            _ => 0,
        };
        flows.record(row);
        let mut state = flows.state();
        state.open.remove(id);
        flows.bytes_sent.fetch_add(flow.sent(), Relaxed);
        flows.bytes_received.fetch_add(flow.received(), Relaxed);
        if let Some(order) = flow.ended_by()
            && (state.tallies.len() < TALLIES_MAX || state.tallies.contains_key(&order.id))
        {
            let tally = state.tallies.entry(order.id).or_default();
            tally.cut += 1;
            tally.bytes_sent += flow.sent();
            tally.last_sent_at = tally.last_sent_at.max(flow.last_sent_at());
        }
        drop(state);
        flow.closed.cancel();
    }
}
