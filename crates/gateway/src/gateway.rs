//! The running gateway: accepts connections, follows orders, reports.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use estoppel_link::{
    LinkEvent,
    frame::{ActionResult, Outcome},
};
use estoppel_model::{Order, OrderBody};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Authority, CredentialError, GatewayConfig, Identity, Policy, Totals,
    config::by_target,
    control::Control,
    credential::Verifier,
    dial::Dialler,
    flow::{Cause, Flows},
    proxy::{Proxy, Who},
    wire::Wire,
};

/// Longest wait for the tasks of connections that have been reset, until an order is settled.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often silent flows are looked for.
const IDLE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Why a gateway cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The server's key is not one.
    #[error(transparent)]
    Key(#[from] CredentialError),
    /// The listener cannot be used.
    #[error("the gateway's listener cannot be used")]
    Listener(#[source] io::Error),
    /// There must be a server for guards to be led to.
    #[error("no server is given for the agent's own guard")]
    NoServer,
    /// Servers cannot be spoken to.
    #[error("TLS to the servers cannot be used")]
    Control(#[source] reqwest::Error),
}

/// What a gateway has done, and does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// Connections of clients that are open.
    pub connections_open: usize,
    /// Flows that are open.
    pub flows_open: usize,
    /// Sums since the start.
    pub totals: Totals,
}

/// A running gateway. Cheap to clone; it runs until its token is cancelled, whoever holds this.
#[derive(Clone)]
pub struct Gateway {
    proxy: Arc<Proxy>,
    connections: Arc<Semaphore>,
    local_addr: SocketAddr,
}

impl Gateway {
    /// Starts to accept on the listener, which may have been made in another network namespace.
    ///
    /// `events` are those of the link that `authority` asks. When they end, or `stop` is cancelled,
    /// everything is cut and nothing more is accepted.
    ///
    /// # Errors
    /// When the listener or the server's key cannot be used.
    pub fn start(
        config: GatewayConfig,
        authority: Arc<dyn Authority>,
        events: mpsc::Receiver<LinkEvent>,
        listener: std::net::TcpListener,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let GatewayConfig {
            identity,
            policy,
            hosts,
            mut own_addresses,
            limits,
            control,
            resolver,
            clock,
        } = config;
        listener.set_nonblocking(true).map_err(GatewayError::Listener)?;
        let listener = TcpListener::from_std(listener).map_err(GatewayError::Listener)?;
        let local_addr = listener.local_addr().map_err(GatewayError::Listener)?;
        own_addresses.push(local_addr);
        let who = match identity {
            Identity::Fixed(source) => Who::Fixed(Arc::new(source)),
            Identity::Credential { server_key } => Who::Credential(Verifier::new(&server_key)?),
        };
        // A stop of our own: the gateway also ends when the orders do.
        let stop = stop.child_token();
        let control =
            control.map(|plane| Control::new(plane, tasks.clone(), stop.clone())).transpose()?;
        let hosts = by_target(&hosts);
        let proxy = Arc::new(Proxy {
            who,
            dialler: Dialler { hosts, own_addresses, resolver, limits },
            flows: Arc::new(Flows::new(authority, clock, policy)),
            limits,
            control,
            tasks: tasks.clone(),
            stop,
        });
        let connections = Arc::new(Semaphore::new(limits.connections_max));
        let gateway = Self { proxy, connections, local_addr };
        tasks.spawn(gateway.clone().accept(listener));
        tasks.spawn(gateway.clone().follow(events));
        Ok(gateway)
    }

    /// The address that it listens on.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What may go where.
    pub fn policy(&self) -> Policy {
        (*self.proxy.flows.policy()).clone()
    }

    /// Puts a policy in force and cuts what it no longer lets through.
    pub fn set_policy(&self, policy: Policy) {
        self.proxy.flows.set_policy(policy);
    }

    /// What the gateway has done, and does now.
    pub fn stats(&self) -> Stats {
        let free = self.connections.available_permits();
        Stats {
            connections_open: self.proxy.limits.connections_max.saturating_sub(free),
            flows_open: self.proxy.flows.len(),
            totals: self.proxy.flows.totals(),
        }
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.proxy.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (socket, _peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, for instance: wait for some to be closed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
                tracing::warn!("too many connections: one was refused");
                Wire::new(socket).reset();
                continue;
            };
            let proxy = Arc::clone(&self.proxy);
            self.proxy.tasks.spawn(proxy.serve(Wire::of_client(socket, place)));
        }
    }

    /// Carries out orders until there are none to come.
    async fn follow(self, mut events: mpsc::Receiver<LinkEvent>) {
        let flows = &self.proxy.flows;
        let ticks = |period: Duration| {
            // A period of zero is not one.
            let period = period.max(Duration::from_millis(1));
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut idle = ticks(IDLE_CHECK_EVERY.min(self.proxy.limits.idle_timeout));
        let mut report = ticks(self.proxy.limits.report_every);
        loop {
            // Worked out anew at least with each tick: a sleep of the machine counts.
            let until_look = flows.next_look().map(|at| at.since(flows.clock().boottime()));
            tokio::select! {
                biased;
                () = self.proxy.stop.cancelled() => break,
                event = events.recv() => match event {
                    Some(event) => self.carry_out(event),
                    None => break,
                },
                () = tokio::time::sleep(until_look.unwrap_or_default()), if until_look.is_some() => {
                    flows.look_at_limits();
                }
                () = flows.look_changed() => {}
                _ = idle.tick() => flows.end_idle(self.proxy.limits.idle_timeout),
                _ = report.tick() => flows.report_progress(),
            }
        }
        self.proxy.stop.cancel();
        flows.end_all(&Cause::Stop);
    }

    fn carry_out(&self, event: LinkEvent) {
        let flows = &self.proxy.flows;
        match event {
            LinkEvent::Ordered(order) => {
                flows.ordered(&order);
                flows.enforce();
                self.proxy.tasks.spawn(self.clone().settle(order));
            }
            LinkEvent::LeaseLost => flows.enforce(),
            LinkEvent::Released { orders } => flows.released(&orders),
            LinkEvent::LeaseRegained => {}
            LinkEvent::Action(action) => flows.authority().outcome(Outcome {
                action: action.id,
                result: ActionResult::NoSuchSubject,
                observed: "a gateway has no processes".to_owned(),
                detail: serde_json::Value::Null,
            }),
        }
    }

    async fn settle(self, order: Arc<Order>) {
        let flows = &self.proxy.flows;
        let mut settlement = flows.settle(order.id, SETTLE_TIMEOUT).await;
        if let OrderBody::Limit { limit } = &order.body {
            settlement.containment = Some(flows.enforced(limit));
        }
        flows.authority().settled(order.id, settlement);
    }
}
