//! Orders by script, in place of a server.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use estoppel_host::{Orders, Processes};
use estoppel_link::{
    LinkError, LinkEvent, LocalHalt, Refusal,
    frame::{Outcome, Settlement},
};
use estoppel_model::{Actor, IncidentId, Order, OrderBody, OrderId, Scope, Subject, Timestamp};
use tokio::sync::mpsc;

#[derive(Debug, Default)]
struct State {
    halts: Vec<Arc<Order>>,
    released: BTreeSet<OrderId>,
    lease_lost: bool,
}

/// What an enforcer said.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Settled(OrderId, Settlement),
    Outcome(Outcome),
}

/// The orders in force, as the test says, and what was answered to them.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    state: Arc<Mutex<State>>,
    /// Must be frozen when a local halt is given.
    frozen_first: Option<Arc<Processes>>,
    events: mpsc::Sender<LinkEvent>,
    said: mpsc::Sender<Said>,
}

pub(crate) fn halt(scope: &str, incident: Option<IncidentId>) -> Arc<Order> {
    Arc::new(Order {
        id: OrderId::new(),
        scope: scope.parse::<Scope>().unwrap().into(),
        reason: "suspected injection".to_owned(),
        issued_by: Actor::new("alice").unwrap(),
        issued_at: Timestamp::from_micros(0),
        incident,
        tenant: None,
        body: OrderBody::Halt { until: None },
    })
}

/// A drill's canary, as the server gives it.
pub(crate) fn canary() -> Arc<Order> {
    let order = halt("global", None);
    let scope: Scope = format!("session:estoppel-canary-{}", order.id).parse().unwrap();
    let issued_by = Actor::new("estoppel:drill").unwrap();
    Arc::new(Order { scope: scope.into(), issued_by, ..(*order).clone() })
}

impl Script {
    pub(crate) fn new() -> (Self, mpsc::Receiver<LinkEvent>, mpsc::Receiver<Said>) {
        let (events, receiver) = mpsc::channel(64);
        let (said, hear) = mpsc::channel(64);
        (Self { state: Arc::default(), frozen_first: None, events, said }, receiver, hear)
    }

    pub(crate) fn expecting_frozen_first(mut self, processes: Arc<Processes>) -> Self {
        self.frozen_first = Some(processes);
        self
    }

    /// One that nobody listens to and that stops nothing.
    pub(crate) fn free() -> Self {
        Self::new().0
    }

    pub(crate) fn send(&self, event: LinkEvent) {
        self.events.try_send(event).unwrap();
    }

    /// As a link does it: in force first, then told.
    pub(crate) fn order(&self, order: &Arc<Order>) {
        self.state.lock().unwrap().halts.push(Arc::clone(order));
        self.send(LinkEvent::Ordered(Arc::clone(order)));
    }

    pub(crate) fn release(&self, order: OrderId) {
        self.state.lock().unwrap().released.insert(order);
        self.send(LinkEvent::Released { orders: vec![order] });
    }

    pub(crate) fn lease(&self, lost: bool) {
        self.state.lock().unwrap().lease_lost = lost;
        self.send(if lost { LinkEvent::LeaseLost } else { LinkEvent::LeaseRegained });
    }
}

impl Orders for Script {
    fn check(&self, subject: &Subject) -> Result<(), Refusal> {
        let state = self.state.lock().unwrap();
        let in_force = |order: &&Arc<Order>| {
            order.scope.reaches(subject) && !state.released.contains(&order.id)
        };
        match state.halts.iter().find(in_force) {
            Some(order) => Err(Refusal::Halted(Arc::clone(order))),
            None if state.lease_lost => Err(Refusal::LeaseLost),
            None => Ok(()),
        }
    }

    fn halted_by(&self, order: &Order, subject: &Subject) -> bool {
        let state = self.state.lock().unwrap();
        order.scope.reaches(subject) && !state.released.contains(&order.id)
    }

    fn settled(&self, order: OrderId, settlement: Settlement) {
        self.said.try_send(Said::Settled(order, settlement)).unwrap();
    }

    fn outcome(&self, outcome: Outcome) {
        self.said.try_send(Said::Outcome(outcome)).unwrap();
    }

    fn halt_locally(&self, order: Order) -> Result<LocalHalt, LinkError> {
        let id = order.id;
        if let Some(processes) = &self.frozen_first {
            let now = std::time::Duration::ZERO;
            assert!(processes.await_frozen(now).unwrap().complete, "a disk came before the freeze");
        }
        self.order(&Arc::new(order));
        Ok(LocalHalt { order: id, durable: true })
    }
}
