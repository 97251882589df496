//! A server's process and machine: what the switchboard, the spool's thread and the feed to the
//! ledger do in `estoppel-server`, and, where there are several, what follows the ledger.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use estoppel_killswitch::{
    Audience,
    frame::{Stage, ToEnforcer},
    invariant::{Observation, ServerWatch, Tally},
    server::{ConnectionId, Effect, HaltProgress, Input, Submitted, Switch, SwitchConfig},
};
use estoppel_model::{Boottime, OrderBody, OrderId, SignedOrder};
use estoppel_orderfile::{AppendError, OrderSpool};
use estoppel_testkit::keys::Keys;
use rand::{RngExt as _, rngs::StdRng};

use super::{
    Event, World,
    node::{Node, is_halt},
};
use crate::{
    bug::Bug,
    coverage::Fault,
    disk::{Disk, DiskFile},
    machine::Machine,
};

pub(super) struct Server {
    pub(super) machine: Machine,
    pub(super) life: u64,
    pub(super) switch: Option<Switch>,
    watch: ServerWatch,
    pub(super) disk: Disk,
    spool: Option<OrderSpool<DiskFile>>,
    /// What waits for the spool's thread.
    to_write: Vec<SignedOrder>,
    pub(super) hangs_until: Duration,
    /// What waits for the ledger.
    to_feed: Vec<SignedOrder>,
    pub(super) ledger_away_until: Duration,
    /// How far the ledger was read, and when, of several servers.
    read: usize,
    read_at: Boottime,
    /// Orders that its disk has acknowledged.
    pub(super) acknowledged: BTreeSet<OrderId>,
    /// A copy of the spool, what it acknowledged, and how long the ledger was.
    pub(super) backup: Option<(Vec<u8>, BTreeSet<OrderId>, usize)>,
    /// Halts of this life whose release is on its way.
    pub(super) releasing: BTreeSet<OrderId>,
}

impl Server {
    pub(super) fn new(disk: Disk, tally: Arc<Tally>, random: &mut StdRng) -> Self {
        Self {
            machine: Machine::new(random),
            life: 0,
            switch: None,
            watch: ServerWatch::new(tally),
            disk,
            spool: None,
            to_write: Vec::new(),
            hangs_until: Duration::ZERO,
            to_feed: Vec::new(),
            ledger_away_until: Duration::ZERO,
            read: 0,
            read_at: Boottime::default(),
            acknowledged: BTreeSet::new(),
            backup: None,
            releasing: BTreeSet::new(),
        }
    }
}

impl World {
    pub(super) fn lives(&self, server: usize, life: u64) -> bool {
        let this = &self.servers[server];
        this.switch.is_some() && this.life == life
    }

    /// One of several servers knows only what it has read of the ledger.
    pub(super) fn is_alone(&self) -> bool {
        self.scenario.servers == 1
    }

    pub(super) fn start_server(&mut self, server: usize) {
        if self.servers[server].switch.is_some() {
            return;
        }
        let (spool, recovered) = match OrderSpool::open(&self.servers[server].disk) {
            Ok(opened) => opened,
            Err(error) => {
                self.tell(|| format!("server {server} does not start: {error}"));
                return self.soon(500.0, 1_500.0, Event::StartServer { server });
            }
        };
        let life = self.number();
        let lease = self.scenario.lease;
        let config = SwitchConfig { lease, ping: lease / 5 };
        let forgets = self.planted == Some(Bug::SpoolForgotten);
        let orders = if forgets { Vec::new() } else { recovered.orders };
        self.tell(|| format!("server {server} starts with {} orders", orders.len()));
        let (mut switch, wrong) = Switch::new(config, Box::new(Keys), orders);
        switch.hold_leases();
        // All servers of a world give leases of one length.
        let is_first = self.servers[server].life == 0;
        if !is_first && self.planted != Some(Bug::PredecessorForgotten) {
            let now = self.servers[server].machine.now(self.time);
            switch.expect_unknown(now.boot + lease);
        }
        if wrong > 0 {
            self.unsettled(format!("server {server} kept {wrong} orders that contradict others"));
        }
        let acknowledged = self.servers[server].acknowledged.clone();
        let missing = acknowledged.iter().filter(|id| switch.orders().order(**id).is_none());
        let missing = missing.count() as u64;
        self.observe(Observation::Sought { acknowledged: acknowledged.len() as u64, missing });
        let ledger = &self.ledger.ids;
        if self.scenario.servers == 1 {
            // Nobody else had them, and nobody was told that they are kept.
            let has = switch.orders();
            self.oracle.lost(|id| has.order(id).is_none() && !ledger.contains(&id));
        }
        // The server says of what it has read that it is durable, unless the disk would not sync it.
        let read = switch.orders().iter().filter_map(|signed| signed.parse().ok());
        let read: Vec<OrderId> = read.map(|order| order.id).collect();
        let this = &mut self.servers[server];
        if !recovered.not_durable {
            this.acknowledged.extend(read);
        }
        this.life = life;
        this.switch = Some(switch);
        this.spool = Some(spool);
        this.to_write.clear();
        this.to_feed.clear();
        (this.read, this.read_at) = (0, Boottime::default());
        this.releasing.clear();
        self.at(self.time, Event::ServerTick { server, life });
        if self.is_alone() {
            self.soon(5.0, 3_000.0, Event::Reconcile { server, life });
        } else {
            self.at(self.time, Event::Reconcile { server, life });
            self.soon(1.0, 500.0, Event::Follow { server, life });
        }
    }

    /// The process ends, and with the power what its disk had not synced; it starts again after a
    /// while. Whether it was up.
    pub(super) fn stop_server(&mut self, server: usize, power: bool, lasts: Duration) -> bool {
        if self.servers[server].switch.take().is_none() {
            return false;
        }
        self.tell(|| {
            format!("server {server} is {}", if power { "without power" } else { "killed" })
        });
        self.coverage.happened(if power { Fault::ServerPowerCut } else { Fault::ServerKilled });
        self.servers[server].spool = None;
        self.hang_up(|one| one.server == server, false, power);
        if power {
            let (seed, folder) = (self.random.random(), self.folder());
            let swallowed = self.planted == Some(Bug::SyncRemoved);
            let this = &mut self.servers[server];
            this.disk = this.disk.after_power_cut(seed, folder, swallowed);
        } else {
            self.servers[server].disk.kill();
        }
        self.at(self.until(lasts), Event::StartServer { server });
        true
    }

    pub(super) fn tick_server(&mut self, server: usize) {
        self.silent_at(server).into_iter().for_each(|number| self.close_at_server(number));
        self.at_server(server, Input::Tick);
        self.release_what_is_due(server);
        self.judge_progress(server);
        let life = self.servers[server].life;
        self.at(self.time + Duration::from_secs(1), Event::ServerTick { server, life });
    }

    pub(super) fn at_server(&mut self, server: usize, input: Input) {
        let alone = self.is_alone() || self.planted == Some(Bug::StalenessIgnored);
        let this = &mut self.servers[server];
        let now = this.machine.now(self.time);
        let Some(switch) = &mut this.switch else { return };
        switch.set_staleness(if alone { Duration::ZERO } else { now.boot.since(this.read_at) });
        let effects = switch.step(input, now);
        let violations = this.watch.stepped(switch, &effects);
        violations.into_iter().for_each(|violation| self.broken(violation));
        self.carry_out(server, effects);
    }

    /// A person's order, which is no release, is taken.
    pub(super) fn submit(&mut self, server: usize, signed: SignedOrder) {
        let this = &mut self.servers[server];
        let now = this.machine.now(self.time);
        let Some(switch) = &mut this.switch else { return };
        let in_force = switch.verdicts().in_force();
        let taken = switch.submit(signed, now).map(|(submitted, effects)| {
            let violations = this.watch.submitted(switch, in_force, &submitted, &effects);
            (submitted, effects, violations)
        });
        self.taken(server, taken);
    }

    /// An order that the ledger has is put in force, and spooled.
    pub(super) fn give_recorded(&mut self, server: usize, signed: SignedOrder) {
        let this = &mut self.servers[server];
        let now = this.machine.now(self.time);
        let Some(switch) = &mut this.switch else { return };
        let in_force = switch.verdicts().in_force();
        let taken = switch.submit_recorded(signed.clone(), now).map(|(submitted, effects)| {
            let violations = this.watch.submitted(switch, in_force, &submitted, &effects);
            (submitted, effects, violations)
        });
        if self.taken(server, taken) {
            self.persist(server, signed);
        }
    }

    /// Whether the order is new there.
    fn taken(
        &mut self,
        server: usize,
        taken: Result<
            (Submitted, Vec<Effect>, Vec<estoppel_killswitch::invariant::Violation>),
            estoppel_killswitch::server::SubmitError,
        >,
    ) -> bool {
        match taken {
            Ok((submitted, effects, violations)) => {
                violations.into_iter().for_each(|violation| self.broken(violation));
                self.carry_out(server, effects);
                match submitted {
                    Submitted::New { order, .. } => {
                        self.accepted(server, order.id);
                        true
                    }
                    Submitted::Known(_) => false,
                }
            }
            Err(error) => {
                self.unsettled(format!("server {server} does not take an order: {error}"));
                false
            }
        }
    }

    /// With one server the promise begins when it has the order.
    fn accepted(&mut self, server: usize, order: OrderId) {
        self.tell(|| format!("server {server} has {order}"));
        if self.is_alone() {
            self.promise(order);
        }
    }

    fn promise(&mut self, order: OrderId) {
        if self.oracle.counts_since(order, self.time) {
            self.at(self.time + self.oracle.bound, Event::Look);
        }
    }

    fn carry_out(&mut self, server: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Broadcast { connections, frame } => {
                    for ConnectionId(number) in connections {
                        self.send_down(number, &frame);
                    }
                }
                Effect::Send { connection, frame } => {
                    if let ToEnforcer::Pong { staleness_ms, .. } = frame
                        && staleness_ms > 1_000
                    {
                        self.coverage.happened(Fault::StaleServer);
                    }
                    self.send_down(connection.0, &frame);
                }
                Effect::Persist(signed) => self.persist(server, signed),
                Effect::Close { connection, reason } => {
                    self.tell(|| format!("server {server} closes {}: {reason}", connection.0));
                    self.close_at_server(connection.0);
                }
                Effect::Confirmed { enforcer, confirmation, first, .. } => {
                    if first && confirmation.stage != Stage::Unsupported {
                        self.judge_word(enforcer, confirmation.order);
                    }
                }
                Effect::HandedBack { order, .. } => {
                    self.coverage.happened(Fault::HandedBack);
                    self.accepted(server, order.id);
                }
                Effect::BreakGlassUsed { .. } => {}
                Effect::Rejected { reason, .. } => {
                    self.unsettled(format!("server {server} refuses what it was sent: {reason}"));
                }
                Effect::Joined { .. }
                | Effect::LeaseOver { .. }
                | Effect::AllKnown
                | Effect::Outcome { .. } => {}
            }
        }
    }

    fn persist(&mut self, server: usize, signed: SignedOrder) {
        self.servers[server].to_write.push(signed);
        let life = self.servers[server].life;
        self.soon(0.1, 5.0, Event::Write { server, life });
    }

    /// The spool's thread writes what waits, and says what is kept.
    pub(super) fn write(&mut self, server: usize) {
        let this = &mut self.servers[server];
        let life = this.life;
        if this.to_write.is_empty() {
            return;
        }
        if this.hangs_until > self.time {
            let until = this.hangs_until;
            self.coverage.happened(Fault::DiskHung);
            return self.at(until, Event::Write { server, life });
        }
        let orders = std::mem::take(&mut this.to_write);
        let Some(spool) = &mut this.spool else { return };
        match spool.append(&orders) {
            Ok(()) => {
                let ids = orders.iter().filter_map(|one| one.parse().ok()).map(|order| order.id);
                this.acknowledged.extend(ids);
            }
            Err(error) => {
                if let AppendError::Disk(error) = &error {
                    self.disk_refused(error);
                }
                self.tell(|| format!("server {server} cannot keep orders: {error}"));
            }
        }
        self.servers[server].to_feed.extend(orders);
        self.soon(1.0, 20.0, Event::Feed { server, life });
    }

    /// What was accepted becomes part of the ledger.
    pub(super) fn feed(&mut self, server: usize) {
        let life = self.servers[server].life;
        if self.servers[server].to_feed.is_empty() {
            return;
        }
        if self.is_ledger_away(server) {
            self.coverage.happened(Fault::LedgerAway);
            return self.at(self.time + Duration::from_secs(1), Event::Feed { server, life });
        }
        for signed in std::mem::take(&mut self.servers[server].to_feed) {
            self.append(signed);
        }
    }

    pub(super) fn is_ledger_away(&self, server: usize) -> bool {
        self.servers[server].ledger_away_until > self.time
    }

    /// Appends to the ledger, once.
    pub(super) fn append(&mut self, signed: SignedOrder) {
        let order = signed.parse().expect("it was parsed before");
        if self.ledger.ids.insert(order.id) {
            self.tell(|| format!("the ledger has {}", order.id));
            self.ledger.orders.push(signed);
            self.oracle.recorded(&order);
            self.promise(order.id);
        }
    }

    /// What the spool has and the ledger lacks is fed to it, and the other way round.
    pub(super) fn reconcile(&mut self, server: usize) {
        let life = self.servers[server].life;
        if self.is_ledger_away(server) {
            self.coverage.happened(Fault::LedgerAway);
            return self.at(self.time + Duration::from_secs(1), Event::Reconcile { server, life });
        }
        let Some(switch) = &self.servers[server].switch else { return };
        let mut spooled: Vec<SignedOrder> = switch.orders().iter().cloned().collect();
        spooled.sort_unstable_by(|one, other| one.order.cmp(&other.order));
        spooled.into_iter().for_each(|signed| self.append(signed));
        if self.is_alone() {
            for signed in self.ledger.orders.clone() {
                self.give_recorded(server, signed);
            }
            self.grant_leases(server);
        }
    }

    fn grant_leases(&mut self, server: usize) {
        let this = &mut self.servers[server];
        let now = this.machine.now(self.time);
        if let Some(switch) = &mut this.switch {
            let effects = switch.grant_leases(now);
            self.carry_out(server, effects);
        }
    }

    /// One of several servers reads what is new, and knows how old that is.
    pub(super) fn follow(&mut self, server: usize) {
        let life = self.servers[server].life;
        if self.is_ledger_away(server) {
            self.coverage.happened(Fault::LedgerAway);
        } else {
            let read_at = self.servers[server].machine.now(self.time).boot;
            let new = self.ledger.orders[self.servers[server].read..].to_vec();
            self.servers[server].read = self.ledger.orders.len();
            new.into_iter().for_each(|signed| self.give_recorded(server, signed));
            self.servers[server].read_at = read_at;
            self.grant_leases(server);
        }
        self.at(self.time + Duration::from_millis(500), Event::Follow { server, life });
    }

    /// A word was counted: who gave it refuses.
    fn judge_word(&mut self, enforcer: estoppel_model::EnforcerId, order: OrderId) {
        let (life, node) = enforcer.as_uuid().as_u64_pair();
        let node = usize::try_from(node).expect("a node's number");
        let Some(given) = self.oracle.given.get(&order) else { return };
        let stands = given.is_halt() && !self.oracle.is_released(order);
        if !stands || !self.nodes[node].lives(life) {
            return;
        }
        let goes =
            |subject: &usize| self.nodes[node].goes(&self.oracle.subjects[*subject], self.time);
        let refuses = !given.reached.iter().any(goes);
        self.observe(Observation::Said { order, refuses });
    }

    /// Once it is told that all refuse, nobody acts: of those who were counted, and of those who
    /// were not.
    ///
    /// Of one server only: each of several knows the leases that it gave itself, and an enforcer
    /// that it counts by lease may have one of another.
    fn judge_progress(&mut self, server: usize) {
        if !self.is_alone() {
            return;
        }
        let this = &self.servers[server];
        let now = this.machine.now(self.time);
        let Some(switch) = &this.switch else { return };
        let slack = self.oracle.bound - self.scenario.lease;
        let mut seen = Vec::new();
        let mut violations = Vec::new();
        for given in self.oracle.standing() {
            let Some(progress) = switch.progress(given.order.id, now) else { continue };
            violations.extend(this.watch.progress(&progress));
            if !progress.all_refuse() {
                continue;
            }
            // Whose lease is over is over by the server's clock.
            let acts = |node: &Node| {
                // What it never heard of does not hold there while a break-glass lets it go on: a
                // count by the lease says nothing of it then.
                let excused = node.goes_on(self.time) && !node.taken.contains(&given.order.id);
                !excused
                    && given.reached.iter().any(|subject| {
                        let subject = &self.oracle.subjects[*subject];
                        node.goes(subject, self.time) && node.goes(subject, self.time + slack)
                    })
            };
            for word in progress.enforcers.iter().filter(|word| word.expected) {
                let (life, node) = word.enforcer.as_uuid().as_u64_pair();
                let node = &self.nodes[usize::try_from(node).expect("a node's number")];
                let refuses = !node.lives(life) || !acts(node);
                seen.push(Observation::Said { order: given.order.id, refuses });
            }
            let concerned = self
                .nodes
                .iter()
                .filter(|node| Audience::of(node.tenant.as_ref()).admits(&given.order));
            let acting = concerned.filter(|node| acts(node)).count();
            seen.push(Observation::AllRefuse { order: given.order.id, acting });
        }
        violations.into_iter().for_each(|violation| self.broken(violation));
        seen.into_iter().for_each(|seen| self.observe(seen));
    }

    /// What a server still waits for, long after everything has healed: a halt that everybody has
    /// settled, or that those who have not cannot act against any more, is over.
    pub(super) fn waits_for(&self, server: usize) -> Option<String> {
        let this = &self.servers[server];
        let (switch, now) = (this.switch.as_ref()?, this.machine.now(self.time));
        let orders =
            self.oracle.standing().filter_map(|given| switch.progress(given.order.id, now));
        let open = orders.filter(|progress| progress.in_force && progress.expected > 0);
        let waits = |progress: &HaltProgress| {
            let complete = switch.count(progress.order.id).is_some_and(|count| count.is_complete());
            !(progress.is_over() && complete)
        };
        let one = open.into_iter().find(waits)?;
        let count = switch.count(one.order.id).unwrap_or_default();
        let HaltProgress { expected, settled, by_lease, gone, .. } = one;
        Some(format!(
            "server {server} waits for {} for ever ({expected} expected, {settled} settled, {by_lease} by lease, \
             {gone} gone; {count:?})",
            one.order.id
        ))
    }

    /// Halts whose time is over by this server's clock are released, by name.
    fn release_what_is_due(&mut self, server: usize) {
        let this = &self.servers[server];
        let wall = this.machine.now(self.time).wall;
        let Some(switch) = &this.switch else { return };
        let is_due = |order: &&Arc<estoppel_model::Order>| {
            matches!(order.body, OrderBody::Halt { until: Some(until) } if until <= wall)
                && !this.releasing.contains(&order.id)
        };
        let mut due: Vec<_> = switch.orders().in_force().filter(is_due).cloned().collect();
        due.sort_unstable_by_key(|order| order.id);
        for order in due.iter().filter(|order| is_halt(order)) {
            if self.release(server, &order.scope, &[order.id]) {
                self.coverage.happened(Fault::UntilOver);
            }
        }
    }
}
