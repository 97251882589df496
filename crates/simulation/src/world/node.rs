//! An enforcer's process and machine: what `estoppel-link` does with threads and sockets.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use estoppel_killswitch::{
    Verdicts,
    enforcer::{Effect, Enforcer, Input, Keep, Kept, Outbox, Profile},
    frame::{EnforcerKind, Settlement, Stage, ToEnforcer, ToServer},
    invariant::{EnforcerWatch, Observation},
};
use estoppel_model::{Boottime, EnforcerId, EntityId, Order, OrderBody, OrderId, Subject};
use estoppel_orderfile::OrderCache;
use estoppel_testkit::keys::{self, Keys};
use rand::{RngExt as _, rngs::StdRng};
use uuid::Uuid;

use super::{Event, World, glass::Placed};
use crate::{
    bug::{self, Bug},
    coverage::Fault,
    disk::Disk,
    machine::Machine,
    scenario,
};

/// Longest sleep between ticks, as the link's.
const TICK_MAX: Duration = Duration::from_secs(1);
/// How often an enforcer has nothing in flight that a halt reaches.
const IDLE: f64 = 0.3;

pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) life: u64,
    pub(super) tenant: Option<EntityId>,
    pub(super) enforcer: Option<Enforcer>,
    watch: Option<EnforcerWatch>,
    /// What enforcement code sees.
    verdicts: Verdicts,
    pub(super) lease_until: Option<Boottime>,
    /// Until when it shows agents that they may go on by a break-glass.
    pub(super) goes_on_until: Option<Boottime>,
    /// The longest of those in this life.
    pub(super) went_until: Option<Boottime>,
    /// The break-glass file in its folder.
    pub(super) glass: Option<Placed>,
    pub(super) disk: Disk,
    cache: Option<OrderCache<Disk>>,
    pub(super) keeps: Vec<Keep>,
    pub(super) doubted: bool,
    rewrite: bool,
    pub(super) connection: Option<u64>,
    pub(super) next_server: usize,
    pub(super) last_server: Option<usize>,
    pub(super) slow_by: Duration,
    pub(super) slow_until: Duration,
    pub(super) unruly_until: Duration,
    /// Halts that this life has had in force.
    pub(super) taken: BTreeSet<OrderId>,
    /// Orders that the disk has acknowledged.
    pub(super) acknowledged: BTreeSet<OrderId>,
    /// What was in force here and not at the server when the two were last in step.
    unknown: Vec<OrderId>,
}

impl Node {
    pub(super) fn new(node: usize, disk: Disk, random: &mut StdRng) -> Self {
        Self {
            machine: Machine::new(random),
            life: 0,
            tenant: scenario::tenant_of(node),
            enforcer: None,
            watch: None,
            verdicts: Verdicts::default(),
            lease_until: None,
            goes_on_until: None,
            went_until: None,
            glass: None,
            disk,
            cache: None,
            keeps: Vec::new(),
            doubted: false,
            rewrite: false,
            connection: None,
            next_server: node,
            last_server: None,
            slow_by: Duration::ZERO,
            slow_until: Duration::ZERO,
            unruly_until: Duration::ZERO,
            taken: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            unknown: Vec::new(),
        }
    }

    pub(super) const fn is_up(&self) -> bool {
        self.enforcer.is_some()
    }

    pub(super) const fn lives(&self, life: u64) -> bool {
        self.is_up() && self.life == life
    }

    /// Whether enforcement code lets a subject act, as `estoppel_link::View` decides.
    pub(super) fn goes(&self, subject: &Subject, time: Duration) -> bool {
        self.is_up()
            && (self.is_leased(time) || self.goes_on(time))
            && self.verdicts.check(subject).is_none()
    }

    fn is_leased(&self, time: Duration) -> bool {
        let now = self.machine.now(time).boot;
        self.lease_until.is_some_and(|until| now < until)
    }

    /// Whether agents may go on by a break-glass alone.
    pub(super) fn goes_on(&self, time: Duration) -> bool {
        let now = self.machine.now(time).boot;
        let by_glass = self.goes_on_until.is_some_and(|until| now < until);
        by_glass && !self.doubted && !self.is_leased(time)
    }

    /// Whether enforcement code knows of a halt.
    pub(super) fn shows(&self, halt: &Order) -> bool {
        self.verdicts.halts(halt)
    }
}

impl World {
    pub(super) fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let disk = self.nodes[node].disk.clone();
        let (cache, found) = match OrderCache::open(disk) {
            Ok(opened) => opened,
            Err(error) => {
                self.tell(|| format!("enforcer {node} does not start: {error}"));
                return self.soon(500.0, 1_500.0, Event::StartNode { node });
            }
        };
        let life = self.number();
        self.tell(|| format!("enforcer {node} starts with {} orders", found.kept.orders.len()));
        let profile = Profile {
            id: EnforcerId::from_uuid(Uuid::from_u64_pair(life, node as u64)),
            kind: EnforcerKind::Guard,
            name: format!("enforcer {node}"),
            subjects: Vec::new(),
            key: keys::own(node as u64),
            gaps: Vec::new(),
        };
        let forgets = self.planted == Some(Bug::BreakGlassForgotten);
        let break_glass = if forgets { Vec::new() } else { found.kept.break_glass };
        let kept = Kept { orders: found.kept.orders, break_glass, ..found.kept };
        let (enforcer, forged) = Enforcer::new(profile, Box::new(Keys), kept);
        let acknowledged = std::mem::take(&mut self.nodes[node].acknowledged);
        let is_there = |id: &&OrderId| enforcer.orders().order(**id).is_some();
        let missing = acknowledged.len() - acknowledged.iter().filter(is_there).count();
        let missing = missing as u64;
        // What it has read it has also written again.
        let read = enforcer.orders().iter().filter_map(|signed| signed.parse().ok());
        let there: BTreeSet<OrderId> = read.map(|order| order.id).collect();
        self.observe(Observation::Sought { acknowledged: acknowledged.len() as u64, missing });
        // Without the line of the server's key its orders are nobody's.
        let damaged = found.damaged + forged > 0;
        if damaged {
            self.coverage.happened(Fault::CacheDamaged);
        }
        let halts = enforcer.orders().in_force().filter(|order| is_halt(order));
        let taken = halts.map(|order| order.id).collect();
        let this = &mut self.nodes[node];
        this.life = life;
        this.verdicts = enforcer.verdicts().clone();
        this.lease_until = None;
        (this.goes_on_until, this.went_until) = (None, None);
        this.enforcer = Some(enforcer);
        this.watch = Some(EnforcerWatch::new(Arc::clone(&self.tally)));
        this.cache = Some(cache);
        this.keeps.clear();
        (this.doubted, this.rewrite) = (damaged, false);
        (this.taken, this.acknowledged) = (taken, there);
        this.unknown.clear();
        self.soon(1.0, 100.0, Event::Dial { node, life });
        self.at(self.time, Event::NodeTick { node, life });
    }

    /// The process ends, and with the power what its disk had not synced; it starts again after a
    /// while. Whether it was up.
    pub(super) fn stop_node(&mut self, node: usize, power: bool, lasts: Duration) -> bool {
        if !self.nodes[node].is_up() {
            return false;
        }
        self.tell(|| {
            format!("enforcer {node} is {}", if power { "without power" } else { "killed" })
        });
        self.coverage.happened(if power { Fault::EnforcerPowerCut } else { Fault::EnforcerKilled });
        self.nodes[node].enforcer = None;
        self.nodes[node].cache = None;
        self.nodes[node].connection = None;
        self.hang_up(|one| one.node == node, true, power);
        if power {
            let (seed, folder) = (self.random.random(), self.folder());
            let swallowed = self.planted == Some(Bug::SyncRemoved);
            self.nodes[node].disk = self.nodes[node].disk.after_power_cut(seed, folder, swallowed);
        } else {
            self.nodes[node].disk.kill();
        }
        self.at(self.until(lasts), Event::StartNode { node });
        true
    }

    pub(super) fn tick_node(&mut self, node: usize) {
        let now = self.nodes[node].machine.now(self.time);
        let is_due = |enforcer: &Enforcer| enforcer.next_tick() <= now.boot;
        if self.nodes[node].enforcer.as_ref().is_some_and(is_due) {
            self.at_node(node, Input::Tick);
        } else {
            // Nothing has changed but the time, and those whom that concerns are looked at in time.
            self.meddle(node);
        }
        self.look_for_glass(node);
        let this = &self.nodes[node];
        let Some(enforcer) = &this.enforcer else { return };
        let due = enforcer.next_tick().since(now.boot);
        let life = this.life;
        let pause = due.clamp(Duration::from_millis(1), TICK_MAX);
        self.at(self.time + pause, Event::NodeTick { node, life });
    }

    pub(super) fn settle(&mut self, node: usize, order: OrderId) {
        let settlement = Settlement { steps_cancelled: 1, ..Settlement::default() };
        self.at_node(node, Input::Settled { order, settlement });
    }

    /// Writes what is to be kept, as the link's keeper does.
    pub(super) fn keep(&mut self, node: usize) -> bool {
        let this = &mut self.nodes[node];
        let (Some(cache), Some(enforcer)) = (&mut this.cache, &this.enforcer) else { return false };
        let keeps = std::mem::take(&mut this.keeps);
        let rewrite = std::mem::take(&mut this.rewrite);
        if keeps.is_empty() && !rewrite {
            return true;
        }
        let kept = enforcer.kept();
        let written = if rewrite { cache.replace(kept.clone()) } else { cache.append(&keeps) };
        match written {
            Ok(()) => {
                let orders = if rewrite { kept.orders } else { Vec::new() };
                let appended = keeps.into_iter().filter_map(|keep| match keep {
                    Keep::Order(signed) => Some(signed),
                    _ => None,
                });
                let ids = orders.into_iter().chain(appended).filter_map(|one| one.parse().ok());
                self.nodes[node].acknowledged.extend(ids.map(|order| order.id));
                true
            }
            Err(error) => {
                self.disk_refused(&error);
                self.tell(|| format!("enforcer {node} cannot keep: {error}"));
                false
            }
        }
    }

    pub(super) fn disk_refused(&mut self, error: &std::io::Error) {
        match error.kind() {
            std::io::ErrorKind::StorageFull => self.coverage.happened(Fault::DiskFull),
            _ => self.coverage.happened(Fault::SyncFailed),
        }
    }

    pub(super) fn at_node(&mut self, node: usize, input: Input) {
        let (mut inputs, mut outbox) = (VecDeque::from([input]), Outbox::default());
        let mut ordered = false;
        while let Some(input) = inputs.pop_front() {
            let this = &mut self.nodes[node];
            let now = this.machine.now(self.time);
            let (Some(enforcer), Some(watch)) = (&mut this.enforcer, &mut this.watch) else {
                return;
            };
            let answered = matches!(input, Input::Frame(ToEnforcer::Pong { .. }));
            let before = enforcer.lease_until();
            let (effects, violations) = watch.step(enforcer, input, now);
            let answered = answered && enforcer.lease_until() != before;
            violations.into_iter().for_each(|violation| self.broken(violation));
            for effect in effects {
                ordered |= matches!(effect, Effect::Ordered(_));
                inputs.extend(self.carry_out_at_node(node, effect, answered, &mut outbox));
            }
        }
        self.say_all(node, &mut outbox);
        if ordered {
            self.judge(node);
        }
        self.meddle(node);
    }

    /// Carries out an effect, which may lead to another input.
    fn carry_out_at_node(
        &mut self,
        node: usize,
        effect: Effect,
        answered: bool,
        outbox: &mut Outbox,
    ) -> Option<Input> {
        let life = self.nodes[node].life;
        match effect {
            Effect::Publish if self.planted == Some(Bug::ConfirmedTooEarly) => {
                self.soon(50.0, 300.0, Event::Show { node, life });
            }
            Effect::Publish => self.publish(node, answered),
            Effect::Send(frame) => outbox.push(frame),
            Effect::Ordered(order) => {
                if is_halt(&order) {
                    self.nodes[node].taken.insert(order.id);
                    if self.random.random_bool(IDLE) {
                        let (order, settlement) = (order.id, Settlement::default());
                        return Some(Input::Settled { order, settlement });
                    }
                    self.soon(1.0, 500.0, Event::Settle { node, life, order: order.id });
                }
            }
            Effect::Keep(thing) => {
                self.nodes[node].keeps.push(thing);
                self.soon(0.1, 5.0, Event::Keep { node, life });
            }
            Effect::InSync => self.in_sync(node),
            Effect::Disconnect { reason } => {
                self.tell(|| format!("enforcer {node} hangs up: {reason}"));
                self.say_all(node, outbox);
                if let Some(connection) = self.nodes[node].connection {
                    self.close_at_node(connection);
                }
            }
            Effect::Rejected { reason } => {
                self.unsettled(format!("enforcer {node} does not take an order: {reason}"));
            }
            Effect::Released { .. }
            | Effect::Act(_)
            | Effect::GoesOn
            | Effect::BreakGlassRefused(_)
            | Effect::LeaseLost
            | Effect::LeaseRegained => {}
        }
        None
    }

    fn in_sync(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let life = this.life;
        let connection = this.connection.and_then(|number| self.connections.get(&number));
        let server = connection.and_then(|one| self.servers[one.server].switch.as_ref());
        let own = this.enforcer.iter().flat_map(|enforcer| enforcer.orders().in_force());
        let is_unknown = |id: &OrderId| server.is_some_and(|it| it.orders().order(*id).is_none());
        this.unknown = own.map(|order| order.id).filter(is_unknown).collect();
        if std::mem::take(&mut this.doubted) {
            this.rewrite = true;
            self.soon(0.1, 5.0, Event::Keep { node, life });
        }
        self.publish(node, false);
    }

    /// Enforcement code sees what is in force now.
    fn publish(&mut self, node: usize, answered: bool) {
        let this = &mut self.nodes[node];
        let Some(enforcer) = &this.enforcer else { return };
        let now = this.machine.now(self.time);
        this.verdicts = bug::verdicts(self.planted, enforcer, &this.unknown, now);
        self.publish_lease(node, answered);
        self.show_glass(node);
        // From this moment on agents may do what they are let.
        self.judge(node);
    }

    fn publish_lease(&mut self, node: usize, answered: bool) {
        let (lease, this) = (self.scenario.lease, &mut self.nodes[node]);
        let Some(enforcer) = &this.enforcer else { return };
        let now = this.machine.now(self.time);
        let (real, shown) = (enforcer.lease_until(), this.lease_until);
        this.lease_until = bug::lease_until(self.planted, real, shown, answered, lease, now);
    }

    /// Bugs that need no publication.
    fn meddle(&mut self, node: usize) {
        if matches!(self.planted, Some(Bug::LeaseWithoutContact | Bug::HaltExpires)) {
            self.publish(node, false);
        }
    }

    /// [`Bug::ConfirmedTooEarly`]: a moment after it was said.
    pub(super) fn show(&mut self, node: usize) {
        self.publish(node, false);
    }

    fn say_all(&mut self, node: usize, outbox: &mut Outbox) {
        while let Some(frame) = outbox.pop() {
            self.say(node, &frame);
        }
    }

    /// Sends a frame; a word on an order must be true when it leaves.
    fn say(&mut self, node: usize, frame: &ToServer) {
        if let ToServer::Confirm(word) = frame
            && word.stage != Stage::Unsupported
            && let Some(given) = self.oracle.given.get(&word.order)
            && given.is_halt()
            && !self.oracle.is_released(word.order)
        {
            let refuses = self.nodes[node].shows(&given.order);
            self.observe(Observation::Said { order: word.order, refuses });
        }
        if let Some(connection) = self.nodes[node].connection {
            self.send_up(connection, frame);
        }
    }
}

pub(super) const fn is_halt(order: &Order) -> bool {
    matches!(order.body, OrderBody::Halt { .. })
}
