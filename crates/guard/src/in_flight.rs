//! The steps under way: which of them an order stops, and when an order is settled.
//!
//! A step enters before it is checked. The view changes before an order arrives here. So an order is
//! either seen by the check or finds the step in this register, never neither.
//!
//! An order is settled when every step that it stopped has ended or is named as one that cannot be
//! interrupted: blocking work at once, work that does not yield after [`YIELD_MAX`]. This module
//! only keeps the account; the link asks for it as soon as an order arrives ([`Stops`]), and
//! [`crate::guard`] tells it what settles later.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use estoppel_link::{
    WorkInFlight,
    breaker::{Breakers, Holder},
    frame::Settlement,
    reaches,
};
use estoppel_model::{Boottime, Clock, Order, OrderBody, OrderId, Subject, Timestamp};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    denied::Cause,
    guard::Mode,
    open_step::OnStop,
    step::{StepSpec, Usage},
};

/// How long an asynchronous step may take to let go before it is named as not interruptible.
pub(crate) const YIELD_MAX: Duration = Duration::from_millis(500);
/// Most steps that a settlement names.
const NAMED_MAX: usize = 100;

/// An order with what settling it came to.
pub(crate) type Settled = (OrderId, Settlement);

/// A step under way.
#[derive(Debug)]
pub(crate) struct Running {
    /// Who acts; with the step's tool and plugin.
    pub(crate) subject: Subject,
    pub(crate) spec: StepSpec,
    /// Whether dropping its future ends it.
    pub(crate) interruptible: bool,
    /// Told of a stop, where the work is not a future of ours.
    on_stop: Option<Arc<dyn OnStop>>,
    pub(crate) began_at: Timestamp,
    pub(crate) began: Boottime,
    stop: CancellationToken,
    stopped_by: OnceLock<Cause>,
    /// In observe mode: what would have stopped it.
    would_stop: OnceLock<Cause>,
    /// Whether its record is written.
    pub(crate) recorded: AtomicBool,
    /// The account that it counts in, once it does.
    holder: OnceLock<Holder>,
    notes: Mutex<Notes>,
}

/// What the work itself adds to its record.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) result: Option<Box<RawValue>>,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
    pub(crate) usage: Usage,
}

impl Running {
    pub(crate) fn new(
        subject: Subject,
        spec: StepSpec,
        interruptible: bool,
        began_at: Timestamp,
        began: Boottime,
    ) -> Self {
        Self {
            subject,
            spec,
            interruptible,
            on_stop: None,
            began_at,
            began,
            stop: CancellationToken::new(),
            stopped_by: OnceLock::new(),
            would_stop: OnceLock::new(),
            recorded: AtomicBool::new(false),
            holder: OnceLock::new(),
            notes: Mutex::default(),
        }
    }

    /// Tells `on_stop` of a stop, too.
    pub(crate) fn telling(self, on_stop: Arc<dyn OnStop>) -> Self {
        Self { on_stop: Some(on_stop), ..self }
    }

    /// Resolves when the step is stopped.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Why the step is stopped, if it is.
    pub(crate) fn stopped_by(&self) -> Option<&Cause> {
        self.stopped_by.get()
    }

    /// Why the step would have been stopped or refused, were it not for observe mode.
    pub(crate) fn would_stop(&self) -> Option<&Cause> {
        self.would_stop.get()
    }

    /// Notes what would have stopped the step; the first counts.
    pub(crate) fn note_would_stop(&self, cause: Cause) {
        let _ = self.would_stop.set(cause);
    }

    /// From now on the step counts in this account.
    pub(crate) fn counts_in(&self, holder: Holder) {
        let _ = self.holder.set(holder);
    }

    /// The account that the step counts in.
    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.get()
    }

    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        // Each change is one assignment.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what stops the step; whether it is the first, which counts. [`Running::tell`] follows.
    fn mark(&self, cause: Cause) -> bool {
        self.stopped_by.set(cause).is_ok()
    }

    /// Tells a step's work that it is stopped. Once all that one order stops are marked: work that
    /// ends because a step around it was told has to find itself stopped, too.
    fn tell(&self) {
        self.stop.cancel();
        if let Some(on_stop) = &self.on_stop {
            on_stop.stopped();
        }
    }

    /// Whether the order stops this step.
    fn is_stopped_by(&self, order: &Order) -> bool {
        let by_kind = match &order.body {
            OrderBody::Halt { .. } | OrderBody::Unsupported => true,
            OrderBody::Block { destination } => self
                .spec
                .destination
                .as_ref()
                .is_some_and(|to| destination.covers(&to.host.to_string(), to.port)),
            OrderBody::Release { .. } | OrderBody::Watch { .. } | OrderBody::Limit { .. } => false,
        };
        by_kind && reaches(order, &self.subject)
    }

    /// The step in words, for a settlement. Names are ids and hold nothing that deceives.
    fn name(&self) -> String {
        match &self.spec.tool {
            Some(tool) => format!("tool {tool}"),
            None => "a step without a tool".to_owned(),
        }
    }
}

/// Names a step in the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StepId(u64);

/// How a step leaves the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It was refused.
    NeverBegan,
    /// Its future was dropped.
    Dropped,
    /// Its work came to its end.
    ByItself,
}

/// The register.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    inner: Mutex<Inner>,
    /// An order waits for steps.
    waits: Notify,
}

/// The register as the link sees it.
pub(crate) struct Stops {
    in_flight: Arc<InFlight>,
    breakers: Arc<Breakers>,
    look_changed: Arc<Notify>,
    mode: Mode,
    clock: Arc<dyn Clock>,
}

impl Stops {
    pub(crate) const fn new(
        in_flight: Arc<InFlight>,
        breakers: Arc<Breakers>,
        look_changed: Arc<Notify>,
        mode: Mode,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { in_flight, breakers, look_changed, mode, clock }
    }
}

impl WorkInFlight for Stops {
    fn stop(&self, order: &Arc<Order>) -> Option<Settlement> {
        match order.body {
            OrderBody::Halt { .. } => self.breakers.halted(order),
            OrderBody::Limit { .. } => {
                self.breakers.look_soon();
                self.look_changed.notify_one();
            }
            _ => {}
        }
        let settled = self.in_flight.ordered(order, self.mode, self.clock.boottime());
        settled.map(|(_, settlement)| settlement)
    }

    /// Steps that were stopped stay so; tasks that were may begin anew.
    fn released(&self, orders: &[OrderId]) {
        self.breakers.released(orders);
    }
}

#[derive(Debug, Default)]
struct Inner {
    entered: u64,
    steps: HashMap<StepId, Arc<Running>>,
    settling: HashMap<OrderId, Settling>,
}

/// An order some of whose steps have not ended.
#[derive(Debug)]
struct Settling {
    waits_for: HashSet<StepId>,
    settlement: Settlement,
    /// When those that are left are named as not interruptible.
    until: Boottime,
}

impl InFlight {
    /// Enters a step.
    pub(crate) fn enter(&self, running: Arc<Running>) -> StepId {
        let mut inner = self.lock();
        let id = StepId(inner.entered);
        inner.entered += 1;
        inner.steps.insert(id, running);
        id
    }

    /// Stops the steps that an order reaches. Returns the order if it is settled by that.
    pub(crate) fn ordered(&self, order: &Arc<Order>, mode: Mode, now: Boottime) -> Option<Settled> {
        let mut inner = self.lock();
        let mut waits_for = HashSet::new();
        let mut stopped = Vec::new();
        let mut settlement =
            Settlement { observed_only: mode == Mode::Observe, ..Settlement::default() };
        settlement.containment = goes_on(order, inner.steps.values());
        for (id, running) in &inner.steps {
            if !running.is_stopped_by(order) {
                continue;
            }
            let cause = Cause::Order(Arc::clone(order));
            if mode == Mode::Observe {
                running.note_would_stop(cause);
                settlement.steps_cancelled += 1;
            } else {
                if running.mark(cause) {
                    stopped.push(running);
                }
                if running.interruptible {
                    waits_for.insert(*id);
                } else {
                    name(&mut settlement, running, "blocking work, its result is withheld");
                }
            }
        }
        stopped.into_iter().for_each(|running| running.tell());
        if waits_for.is_empty() {
            return Some((order.id, settlement));
        }
        let settling = Settling { waits_for, settlement, until: now + YIELD_MAX };
        inner.settling.insert(order.id, settling);
        self.waits.notify_one();
        None
    }

    /// Stops the steps for which `cause_of` has one; for the end of a lease.
    pub(crate) fn stop_where(&self, mode: Mode, cause_of: impl Fn(&Running) -> Option<Cause>) {
        let inner = self.lock();
        let mut stopped = Vec::new();
        for running in inner.steps.values() {
            match cause_of(running) {
                Some(cause) if mode == Mode::Observe => running.note_would_stop(cause),
                Some(cause) => stopped.extend(running.mark(cause).then_some(running)),
                None => {}
            }
        }
        stopped.into_iter().for_each(|running| running.tell());
    }

    /// Takes a step out. What stopped it until now is all that ever will. Returns the orders that
    /// are settled by that.
    pub(crate) fn leave(&self, id: StepId, how: Leaving) -> Vec<Settled> {
        let mut inner = self.lock();
        let Some(running) = inner.steps.remove(&id) else { return Vec::new() };
        for settling in inner.settling.values_mut() {
            if !settling.waits_for.remove(&id) {
                continue;
            }
            match how {
                Leaving::NeverBegan => {}
                Leaving::Dropped => settling.settlement.steps_cancelled += 1,
                Leaving::ByItself => {
                    let how = "ended by itself, its result is withheld";
                    name(&mut settling.settlement, &running, how);
                }
            }
        }
        inner.take_settled(|settling| settling.waits_for.is_empty())
    }

    /// Returns the orders whose steps have had long enough, with those steps named.
    pub(crate) fn overdue(&self, now: Boottime) -> Vec<Settled> {
        let mut inner = self.lock();
        let Inner { steps, settling, .. } = &mut *inner;
        for settling in settling.values_mut().filter(|settling| settling.until <= now) {
            for id in settling.waits_for.drain() {
                if let Some(running) = steps.get(&id) {
                    name(&mut settling.settlement, running, "has not yielded");
                }
            }
        }
        inner.take_settled(|settling| settling.waits_for.is_empty())
    }

    /// The steps under way.
    pub(crate) fn running(&self) -> Vec<Arc<Running>> {
        self.lock().steps.values().map(Arc::clone).collect()
    }

    /// Resolves when an order has begun to wait for steps: [`InFlight::next_overdue`] has changed.
    pub(crate) async fn waits(&self) {
        self.waits.notified().await;
    }

    /// When [`InFlight::overdue`] is to be asked next.
    pub(crate) fn next_overdue(&self) -> Option<Boottime> {
        self.lock().settling.values().map(|settling| settling.until).min()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_settled(&mut self, is_settled: impl Fn(&Settling) -> bool) -> Vec<Settled> {
        self.settling
            .extract_if(|_, settling| is_settled(settling))
            .map(|(order, settling)| (order, settling.settlement))
            .collect()
    }
}

/// What an order leaves to go on in this process, in words.
fn goes_on<'a>(order: &Order, mut steps: impl Iterator<Item = &'a Arc<Running>>) -> Option<String> {
    match &order.body {
        OrderBody::Watch { .. } => Some("a guard does not enforce this kind of order".to_owned()),
        OrderBody::Limit { limit } if limit.read_only => steps
            .any(|it| !it.spec.changes_nothing() && reaches(order, &it.subject))
            .then(|| "steps that may change something and are under way go on to their end".into()),
        _ => None,
    }
}

/// Names a step that could not be interrupted.
fn name(settlement: &mut Settlement, running: &Running, how: &str) {
    let named = &mut settlement.not_interruptible;
    match named.len() {
        0..NAMED_MAX => named.push(format!("{}: {how}", running.name())),
        NAMED_MAX => named.push("further steps".to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
