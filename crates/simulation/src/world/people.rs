//! What people do, and what they cannot help: the scenario's actions.

use std::time::Duration;

use estoppel_killswitch::{Audience, Signer as _, enforcer};
use estoppel_model::{Actor, EntityId, Order, OrderBody, OrderId, ScopeSet, SignedOrder};
use estoppel_orderfile::OrderSpool;
use estoppel_testkit::keys::{self, Keys};
use uuid::Uuid;

use super::{Event, World};
use crate::{Action, coverage::Fault, disk::DiskFile, scenario};

const SPOOL: &str = OrderSpool::<DiskFile>::FILE;
const CACHE: &str = "orders";

impl World {
    pub(super) fn act(&mut self, action: Action) {
        self.tell(|| format!("· {action:?}"));
        match action {
            Action::Halt { server, scope, tenant, until, everywhere } => {
                self.halt(server, scope, tenant, until, everywhere);
            }
            Action::Release { server, first, count } => self.release_some(server, first, count),
            Action::HaltLocally { node, scope } => self.halt_locally(node, scope),
            Action::Partition { node, server, up, down, lasts } => {
                let until = self.until(lasts);
                let cut_off = self.cut_off.entry((node, server)).or_default();
                cut_off.0 = if up { until } else { cut_off.0 };
                cut_off.1 = if down { until } else { cut_off.1 };
            }
            Action::Slow { node, by, lasts } => {
                self.nodes[node].slow_by = by;
                self.nodes[node].slow_until = self.until(lasts);
            }
            Action::Unruly { node, lasts } => self.nodes[node].unruly_until = self.until(lasts),
            Action::Cut { node } => {
                if let Some(connection) = self.nodes[node].connection {
                    self.close_at_node(connection);
                }
            }
            Action::CutAtServer { node } => {
                if let Some(connection) = self.nodes[node].connection {
                    self.close_at_server(connection);
                }
            }
            Action::StopServer { server, power, lasts } => {
                self.stop_server(server, power, lasts);
            }
            Action::StopNode { node, power, lasts } => {
                self.stop_node(node, power, lasts);
            }
            Action::LoseSpool { server, lasts } => self.lose_spool(server, lasts),
            Action::RestoreBackup { server, lasts } => self.restore(server, lasts),
            Action::LoseCache { node, lasts } => self.lose_cache(node, lasts),
            Action::DamageCache { node, at, lasts } => self.damage_cache(node, at, lasts),
            Action::FillServer { server, room, lasts } => {
                self.servers[server].disk.leave_room(Some(room));
                self.at(self.until(lasts), Event::Mend { server: Some(server), node: None });
            }
            Action::FillNode { node, room, lasts } => {
                self.nodes[node].disk.leave_room(Some(room));
                self.at(self.until(lasts), Event::Mend { server: None, node: Some(node) });
            }
            Action::FailServerSyncs { server, lasts } => {
                self.servers[server].disk.fail_syncs(true);
                self.at(self.until(lasts), Event::Mend { server: Some(server), node: None });
            }
            Action::FailNodeSyncs { node, lasts } => {
                self.nodes[node].disk.fail_syncs(true);
                self.at(self.until(lasts), Event::Mend { server: None, node: Some(node) });
            }
            Action::HangDisk { server, lasts } => {
                self.servers[server].hangs_until = self.until(lasts);
            }
            Action::Backup { server } => self.back_up(server),
            Action::JumpServerClock { server, seconds } => {
                self.coverage.happened(Fault::ClockJump);
                self.servers[server].machine.jump(seconds);
            }
            Action::JumpNodeClock { node, seconds } => {
                self.coverage.happened(Fault::ClockJump);
                self.nodes[node].machine.jump(seconds);
            }
            Action::SuspendServer { server, lasts } => {
                self.sleeps(lasts);
                let wakes = self.until(lasts);
                self.servers[server].machine.sleep(wakes);
            }
            Action::SuspendNode { node, lasts } => {
                self.sleeps(lasts);
                let wakes = self.until(lasts);
                self.nodes[node].machine.sleep(wakes);
                // Agents are awake before anything else is.
                self.at(wakes, Event::Look);
            }
            Action::BreakGlass { node, use_max, lasts } => self.place_glass(node, use_max, lasts),
            Action::LedgerAway { server, lasts } => {
                self.servers[server].ledger_away_until = self.until(lasts);
            }
        }
    }

    fn sleeps(&mut self, lasts: Duration) {
        if self.until(lasts) - self.time > self.scenario.lease {
            self.coverage.happened(Fault::Suspend);
        }
    }

    fn order_id(&mut self) -> OrderId {
        OrderId::from_uuid(Uuid::from_u64_pair(7, self.number()))
    }

    fn halt(
        &mut self,
        server: usize,
        scope: usize,
        tenant: bool,
        until: Option<Duration>,
        everywhere: bool,
    ) {
        let wall = self.servers[server].machine.now(self.time).wall;
        let order = Order {
            id: self.order_id(),
            scope: scenario::scope_set(scope),
            reason: "a person wants it".to_owned(),
            issued_by: Actor::new("alice").expect("a name"),
            issued_at: wall,
            incident: None,
            tenant: tenant.then(scenario::acme),
            body: OrderBody::Halt { until: until.map(|until| wall + until) },
        };
        let signed = sign(&order);
        let awake: Vec<usize> = (0..self.servers.len())
            .filter(|number| everywhere || *number == server)
            .filter(|number| {
                let server = &self.servers[*number];
                server.switch.is_some() && !server.machine.is_asleep(self.time)
            })
            .collect();
        if awake.is_empty() {
            return;
        }
        if awake.len() > 1 {
            self.coverage.happened(Fault::HaltEverywhere);
        }
        if self.servers.iter().any(|server| !server.releasing.is_empty()) {
            self.coverage.happened(Fault::HaltBesideRelease);
        }
        self.oracle.gave(&order);
        awake.into_iter().for_each(|server| self.submit(server, signed.clone()));
    }

    fn release_some(&mut self, server: usize, first: usize, count: usize) {
        let this = &self.servers[server];
        let Some(switch) = this.switch.as_ref().filter(|_| !this.machine.is_asleep(self.time))
        else {
            return;
        };
        let mut standing: Vec<OrderId> = switch.orders().in_force().map(|order| order.id).collect();
        standing.sort_unstable();
        let named: Vec<OrderId> = standing.into_iter().skip(first).take(count).collect();
        let Some(order) = named.first().and_then(|id| switch.orders().order(*id)) else { return };
        let scope = order.scope.clone();
        self.release(server, &scope, &named);
    }

    /// A release is planned, and goes to the ledger; whether it is on its way.
    pub(super) fn release(&mut self, server: usize, scope: &ScopeSet, named: &[OrderId]) -> bool {
        let this = &self.servers[server];
        let Some(Ok(plan)) = this.switch.as_ref().map(|one| one.plan_release(scope, Some(named)))
        else {
            return false;
        };
        if self.is_ledger_away(server) {
            self.coverage.happened(Fault::LedgerAway);
            return false;
        }
        let (wall, life) = (this.machine.now(self.time).wall, this.life);
        let order = Order {
            id: self.order_id(),
            scope: plan.scope,
            reason: "a person wants it".to_owned(),
            issued_by: Actor::new("lea").expect("a name"),
            issued_at: wall,
            incident: None,
            tenant: plan.tenant,
            body: OrderBody::Release { orders: plan.orders.clone() },
        };
        self.servers[server].releasing.extend(plan.orders);
        self.oracle.gave(&order);
        self.soon(1.0, 60.0, Event::Record { server, life, release: sign(&order) });
        true
    }

    /// The release reaches the ledger, or is refused.
    pub(super) fn record(&mut self, server: usize, life: u64, release: SignedOrder) {
        let order = release.parse().expect("it was made here");
        if let OrderBody::Release { orders } = &order.body {
            for order in orders {
                self.servers[server].releasing.remove(order);
            }
        }
        if self.is_ledger_away(server) {
            return self.coverage.happened(Fault::LedgerAway);
        }
        self.append(release.clone());
        self.soon(0.1, 30.0, Event::Recorded { server, life, release });
    }

    fn halt_locally(&mut self, node: usize, scope: usize) {
        let this = &self.nodes[node];
        let Some(enforcer) = &this.enforcer else { return };
        // Before the first welcome its tenant is not known, and no server would take the halt.
        if this.machine.is_asleep(self.time) || enforcer.tenant() != this.tenant.as_ref() {
            return;
        }
        let tenant: Option<EntityId> = this.tenant.clone();
        let order = Order {
            id: OrderId::from_uuid(Uuid::from_u64_pair(7, self.next + 1)),
            scope: scenario::scope_set(scope),
            reason: "somebody on the host wants it".to_owned(),
            issued_by: Actor::new("local:root").expect("a name"),
            issued_at: this.machine.now(self.time).wall,
            incident: None,
            tenant: tenant.clone(),
            body: OrderBody::Halt { until: None },
        };
        if !Audience::of(tenant.as_ref()).admits(&order) {
            return;
        }
        self.number();
        self.coverage.happened(Fault::LocalHalt);
        self.oracle.gave(&order);
        self.at_node(
            node,
            enforcer::Input::Local(keys::sign(&keys::own(node as u64), text(&order))),
        );
        self.keep(node);
    }

    fn lose_spool(&mut self, server: usize, lasts: Duration) {
        if !self.stop_server(server, true, lasts) {
            return;
        }
        if self.servers[server].disk.content(SPOOL).is_some_and(|it| !it.is_empty()) {
            self.coverage.happened(Fault::SpoolLost);
        }
        self.servers[server].disk = self.empty_disk();
        self.servers[server].acknowledged.clear();
    }

    fn lose_cache(&mut self, node: usize, lasts: Duration) {
        if !self.stop_node(node, true, lasts) {
            return;
        }
        if self.nodes[node].disk.content(CACHE).is_some_and(|it| !it.is_empty()) {
            self.coverage.happened(Fault::CacheLost);
        }
        self.nodes[node].disk = self.empty_disk();
        self.nodes[node].acknowledged.clear();
        // It lay in the same folder.
        self.nodes[node].glass = None;
    }

    fn damage_cache(&mut self, node: usize, at: usize, lasts: Duration) {
        if !self.stop_node(node, false, lasts) {
            return;
        }
        let content = self.nodes[node].disk.content(CACHE);
        let Some(mut content) = content.filter(|content| !content.is_empty()) else { return };
        let at = at % content.len();
        content[at] ^= 1;
        self.nodes[node].disk = self.empty_disk();
        self.nodes[node].disk.put(CACHE, &content);
        self.nodes[node].acknowledged.clear();
        // The line of its use may be gone.
        self.nodes[node].glass = None;
    }

    fn back_up(&mut self, server: usize) {
        let this = &mut self.servers[server];
        let content = this.disk.content(SPOOL).unwrap_or_default();
        // A copy of a file that is being written may end in the middle of a line.
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let content = content[..whole].to_vec();
        this.backup = Some((content, this.acknowledged.clone(), self.ledger.orders.len()));
    }

    /// A server comes back as it was when it was backed up.
    fn restore(&mut self, server: usize, lasts: Duration) {
        let Some((content, acknowledged, ledger)) = self.servers[server].backup.clone() else {
            return;
        };
        if !self.stop_server(server, true, lasts) {
            return;
        }
        let is_older = acknowledged.len() < self.servers[server].acknowledged.len();
        if is_older || (self.is_alone() && ledger < self.ledger.orders.len()) {
            self.coverage.happened(Fault::BackupRestored);
        }
        self.servers[server].disk = self.empty_disk();
        self.servers[server].disk.put(SPOOL, &content);
        self.servers[server].acknowledged = acknowledged;
        if self.is_alone() {
            for gone in self.ledger.orders.split_off(ledger.min(self.ledger.orders.len())) {
                let order = gone.parse().expect("it was parsed before");
                self.ledger.ids.remove(&order.id);
            }
        }
    }
}

fn text(order: &Order) -> String {
    serde_json::to_string(order).expect("orders are plain data")
}

fn sign(order: &Order) -> SignedOrder {
    Keys.sign(text(order))
}
