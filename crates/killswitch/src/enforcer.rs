//! The enforcer's side of the stream.
//!
//! [`Enforcer::step`] takes what happened and returns what to do, in this order: publish the new
//! verdicts first, then send. So a confirmation that new work is refused is true when it leaves.
//!
//! What it holds to: orders are only added, those of the server's key that it saw first, and halts
//! of its own key. Without a lease it refuses; the lease grows only by answers to its own pings,
//! which it sends when its orders are in step. A validly signed order that it does not understand
//! refuses its scope. Without a lease agents go on by a break-glass file alone
//! ([`crate::break_glass`]), which ends no order.

mod confirmations;
mod io;
mod outbox;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use estoppel_model::{Boottime, EnforcerId, EntityId, Order, OrderBody, OrderId, SignedOrder};

use self::confirmations::Confirmations;
pub use self::{
    io::{Effect, Input, Keep, Kept, Profile},
    outbox::Outbox,
};
use crate::{
    Audience, Insert, Lease, Now, OrderSet, Signatures, Verdicts,
    break_glass::{Glass, GlassUse, Holder, SignedBreakGlass},
    frame::{
        self, CONTACT_BYTES_MAX, Hello, IDS_PER_FRAME_MAX, Outcome, PROTOCOL, Settlement,
        ToEnforcer, ToServer, Welcome,
    },
};

/// Outcomes that are said again after a reconnect.
const OUTCOMES_MAX: usize = 64;
/// Shortest time between pings, whatever a server asks for.
const PING_MIN: Duration = Duration::from_millis(20);
/// How long a server may be silent before its first answer.
const GREETING_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Disconnected,
    /// The hello is sent.
    Greeting,
    /// The welcome came; the orders are not yet in step.
    Syncing,
    InSync,
}

/// An enforcer's state.
pub struct Enforcer {
    profile: Profile,
    signatures: Box<dyn Signatures>,
    server_key: Option<String>,
    tenant: Option<EntityId>,
    checkpoint: Option<String>,
    contact: Option<String>,
    orders: OrderSet,
    lease: Lease,
    glass: Glass,
    /// Whether the lease held at the last step.
    leased: bool,
    /// Whether `LeaseLost` was said last.
    lost: bool,
    phase: Phase,
    synced_before: bool,
    lease_duration: Duration,
    ping_every: Duration,
    next_ping: Boottime,
    heard_at: Boottime,
    confirmations: Confirmations,
    outcomes: VecDeque<Outcome>,
    /// Local halts that were given between the hello and the welcome.
    unlisted: Vec<SignedOrder>,
    /// When the first step was taken.
    began: Option<Boottime>,
    /// Kept orders, which count as arrived with the first step.
    restored: Vec<Arc<Order>>,
}

impl std::fmt::Debug for Enforcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enforcer")
            .field("id", &self.profile.id)
            .field("phase", &self.phase)
            .field("orders", &self.orders.len())
            .finish_non_exhaustive()
    }
}

impl Enforcer {
    /// An enforcer that starts, and for how many of the kept orders the signature was wrong: those
    /// are left out, and whoever kept them should be doubted.
    pub fn new(profile: Profile, signatures: Box<dyn Signatures>, kept: Kept) -> (Self, usize) {
        let Kept { server_key, tenant, checkpoint, contact, break_glass, orders } = kept;
        let mut this = Self {
            profile,
            signatures,
            server_key,
            tenant,
            checkpoint,
            contact,
            orders: OrderSet::default(),
            lease: Lease::default(),
            glass: Glass::default(),
            leased: false,
            lost: true,
            phase: Phase::Disconnected,
            synced_before: false,
            lease_duration: Duration::ZERO,
            ping_every: GREETING_MAX,
            next_ping: Boottime::default(),
            heard_at: Boottime::default(),
            confirmations: Confirmations::default(),
            outcomes: VecDeque::new(),
            unlisted: Vec::new(),
            began: None,
            restored: Vec::new(),
        };
        this.glass = Glass::new(break_glass, &this.holder());
        let mut wrong = 0;
        for signed in orders {
            if this.may_take(&signed).is_err() || this.orders.insert_or_refuse(signed).is_err() {
                wrong += 1;
            }
        }
        this.restored = this.orders.in_force().cloned().collect();
        this.restored.sort_unstable_by_key(|order| order.id);
        (this, wrong)
    }

    /// Takes what happened and returns what to do, in order.
    pub fn step(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.began.get_or_insert(now.boot);
        for order in std::mem::take(&mut self.restored) {
            self.confirmations.arrived(&order, now);
            effects.push(Effect::Ordered(order));
        }
        match input {
            Input::Connected => self.connected(now, &mut effects),
            Input::Disconnected => {
                self.phase = Phase::Disconnected;
                self.lease.disconnected();
            }
            Input::Frame(frame) => self.frame(frame, now, &mut effects),
            Input::Tick => {}
            Input::Settled { order, settlement } => {
                self.settled(order, settlement, now, &mut effects)
            }
            Input::Outcome(outcome) => {
                if self.phase == Phase::InSync {
                    effects.push(Effect::Send(ToServer::Outcome(Box::new(outcome.clone()))));
                }
                if self.outcomes.len() == OUTCOMES_MAX {
                    self.outcomes.pop_front();
                }
                self.outcomes.push_back(outcome);
            }
            Input::Local(signed) => self.local(signed, now, &mut effects),
            Input::BreakGlass(file) => self.break_glass(file.as_deref(), now, &mut effects),
            Input::BreakGlassKept(kept) => {
                if self.glass.kept(&kept) {
                    effects.push(Effect::Publish);
                }
            }
        }
        self.time_passed(now, &mut effects);
        effects
    }

    /// When the next [`Input::Tick`] is due at the latest.
    pub fn next_tick(&self) -> Boottime {
        let lease = match (self.leased, self.lost) {
            (true, _) => self.lease.until(),
            (false, false) => self.glass.until(),
            (false, true) => None,
        };
        let connection = match self.phase {
            Phase::Disconnected => None,
            Phase::Greeting | Phase::Syncing => Some(self.silent_after()),
            Phase::InSync => Some(self.silent_after().min(self.next_ping)),
        };
        lease.into_iter().chain(connection).min().unwrap_or(Boottime::from_nanos(u64::MAX))
    }

    /// The fold over the orders that are known.
    pub const fn verdicts(&self) -> &Verdicts {
        self.orders.verdicts()
    }

    /// All orders that are known.
    pub const fn orders(&self) -> &OrderSet {
        &self.orders
    }

    /// Who it is.
    pub const fn id(&self) -> EnforcerId {
        self.profile.id
    }

    /// The tenant that the token is bound to, as far as a server has said; a halt that is given
    /// here must carry it, or the server refuses it.
    pub const fn tenant(&self) -> Option<&EntityId> {
        self.tenant.as_ref()
    }

    /// Whom people are to call, as far as a server has said.
    pub fn contact(&self) -> Option<&str> {
        self.contact.as_deref()
    }

    /// When the lease is over; `None` before the first.
    pub const fn lease_until(&self) -> Option<Boottime> {
        self.lease.until()
    }

    /// Until when agents go on by a break-glass, whether or not the lease is over.
    pub const fn goes_on_until(&self) -> Option<Boottime> {
        self.glass.until()
    }

    /// Whether it is time to look for a break-glass file: the lease is over, or should have been
    /// renewed by now; or there was none, and servers had time to answer since the start.
    pub fn looks_for_break_glass(&self, now: Boottime) -> bool {
        match self.lease.until() {
            Some(until) => until.since(now) <= self.lease_duration / 2,
            None => self.began.is_some_and(|began| now.since(began) >= GREETING_MAX),
        }
    }

    /// How much was used of break-glass files, on this and earlier runs.
    pub fn break_glass_uses(&self) -> impl Iterator<Item = &GlassUse> {
        self.glass.uses()
    }

    /// Whether the orders were in step with a server's at least once since the start.
    pub const fn has_synced(&self) -> bool {
        self.synced_before
    }

    /// Whether it is connected and its orders are in step.
    pub fn is_in_sync(&self) -> bool {
        self.phase == Phase::InSync
    }

    /// Everything that is to be kept over a restart, in an order that owes nothing to chance.
    pub fn kept(&self) -> Kept {
        let mut orders: Vec<SignedOrder> = self.orders.iter().cloned().collect();
        orders.sort_unstable_by(|one, other| one.order.cmp(&other.order));
        Kept {
            server_key: self.server_key.clone(),
            tenant: self.tenant.clone(),
            checkpoint: self.checkpoint.clone(),
            contact: self.contact.clone(),
            break_glass: self.glass.uses().cloned().collect(),
            orders,
        }
    }

    fn holder(&self) -> Holder<'_> {
        Holder {
            name: &self.profile.name,
            tenant: self.tenant.as_ref(),
            server_key: self.server_key.as_deref(),
            signatures: &*self.signatures,
            lease_until: self.lease.until(),
        }
    }

    fn break_glass(
        &mut self,
        file: Option<&SignedBreakGlass>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.glass.until();
        match file {
            None => self.glass.withdrawn(),
            Some(file) => {
                let mut glass = std::mem::take(&mut self.glass);
                let found = glass.found(file, &self.holder(), now);
                self.glass = glass;
                match found {
                    Ok(None) => {}
                    Ok(Some(usage)) => effects.push(Effect::Keep(Keep::BreakGlass(usage.into()))),
                    Err(error) => effects.push(Effect::BreakGlassRefused(error)),
                }
            }
        }
        if self.glass.until() != before {
            effects.insert(0, Effect::Publish);
        }
    }

    fn connected(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.phase = Phase::Greeting;
        self.unlisted.clear();
        self.lease.disconnected();
        self.glass.connected();
        self.heard_at = now.boot;
        let Profile { id, kind, name, subjects, key, gaps } = self.profile.clone();
        let hello = Hello {
            protocol: PROTOCOL,
            enforcer: id,
            kind,
            name,
            subjects,
            key,
            set: self.orders.digest(&Audience::Everyone).summary(),
            checkpoint: self.checkpoint.clone(),
            gaps,
        };
        effects.push(Effect::Send(ToServer::Hello(Box::new(hello))));
    }

    fn frame(&mut self, frame: ToEnforcer, now: Now, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Disconnected {
            return;
        }
        self.heard_at = now.boot;
        match frame {
            ToEnforcer::Welcome(welcome) => self.welcomed(*welcome, effects),
            ToEnforcer::Orders { orders } => self.take(orders, now, effects),
            ToEnforcer::Want { orders } => {
                let known = orders.iter().filter_map(|id| self.orders.signed(*id).cloned());
                let batches = frame::batches(known).into_iter();
                effects.extend(batches.map(|orders| Effect::Send(ToServer::Orders { orders })));
            }
            ToEnforcer::InSync if self.phase == Phase::Syncing => self.in_sync(now, effects),
            ToEnforcer::Pong { nonce, staleness_ms } if self.phase == Phase::InSync => {
                let staleness = Duration::from_millis(staleness_ms);
                if self.lease.answered(nonce, self.lease_duration, staleness) {
                    effects.push(Effect::Publish);
                }
            }
            ToEnforcer::Action(action) => effects.push(Effect::Act(action)),
            ToEnforcer::Refused { reason } => {
                let reason = format!("the server refuses this enforcer: {reason}");
                effects.push(Effect::Disconnect { reason });
            }
            ToEnforcer::InSync | ToEnforcer::Pong { .. } | ToEnforcer::Unknown => {}
        }
    }

    fn welcomed(&mut self, welcome: Welcome, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Greeting {
            return;
        }
        if welcome.protocol != PROTOCOL {
            let theirs = welcome.protocol;
            let reason = format!(
                "the server speaks protocol {theirs}, this enforcer {PROTOCOL}: update the older"
            );
            effects.push(Effect::Disconnect { reason });
            return;
        }
        match &self.server_key {
            Some(known) if *known != welcome.key => {
                let reason = format!(
                    "the server's key is not the one that was seen first, {known}: if the server was \
                     really set up anew, delete this enforcer's state folder"
                );
                effects.push(Effect::Disconnect { reason });
                return;
            }
            Some(_) => {}
            None => {
                effects.push(Effect::Keep(Keep::ServerKey(welcome.key.clone())));
                self.server_key = Some(welcome.key);
            }
        }
        if self.tenant != welcome.tenant {
            effects.push(Effect::Keep(Keep::Tenant(welcome.tenant.clone())));
            self.tenant = welcome.tenant;
        }
        if let Some(checkpoint) = welcome.checkpoint
            && self.checkpoint.as_ref() != Some(&checkpoint)
        {
            effects.push(Effect::Keep(Keep::Checkpoint(checkpoint.clone())));
            self.checkpoint = Some(checkpoint);
        }
        // Longer than it may be, it is nobody's word and left out.
        let contact = welcome.contact.filter(|contact| contact.len() <= CONTACT_BYTES_MAX);
        if self.contact != contact {
            effects.push(Effect::Keep(Keep::Contact(contact.clone())));
            self.contact = contact;
        }
        self.lease_duration = Duration::from_millis(welcome.lease_ms);
        self.ping_every = Duration::from_millis(welcome.ping_ms).max(PING_MIN);
        self.phase = Phase::Syncing;
        if let Some(buckets) = welcome.buckets {
            self.list(&buckets, effects);
        }
        if !self.unlisted.is_empty() {
            let orders = std::mem::take(&mut self.unlisted);
            effects.push(Effect::Send(ToServer::Orders { orders }));
        }
    }

    /// Lists what is here in the buckets that differ.
    fn list(&self, theirs: &[String], effects: &mut Vec<Effect>) {
        let mut frames = vec![std::collections::BTreeMap::new()];
        let mut count = 0;
        for bucket in self.orders.digest(&Audience::Everyone).differing(theirs) {
            let ids = self.orders.ids_in(bucket, &Audience::Everyone);
            if count > 0 && count + ids.len() > IDS_PER_FRAME_MAX {
                frames.push(std::collections::BTreeMap::new());
                count = 0;
            }
            count += ids.len();
            if let Some(last) = frames.last_mut() {
                last.insert(bucket, ids);
            }
        }
        let last = frames.len() - 1;
        effects.extend(
            frames.into_iter().enumerate().map(|(index, buckets)| {
                Effect::Send(ToServer::Have { buckets, more: index < last })
            }),
        );
    }

    fn in_sync(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.phase = Phase::InSync;
        self.synced_before = true;
        self.next_ping = now.boot;
        effects.push(Effect::Publish);
        effects.push(Effect::InSync);
        let confirmations = self.confirmations.all();
        effects.extend(confirmations.map(|word| Effect::Send(ToServer::Confirm(Box::new(word)))));
        let outcomes = self.outcomes.iter().cloned();
        effects.extend(outcomes.map(|word| Effect::Send(ToServer::Outcome(Box::new(word)))));
    }

    /// Takes orders from the server.
    fn take(&mut self, orders: Vec<SignedOrder>, now: Now, effects: &mut Vec<Effect>) {
        // Published once for all, and before anything else is done.
        let publish = effects.len();
        effects.push(Effect::Publish);
        for signed in orders {
            let taken = self.may_take(&signed).and_then(|()| {
                self.orders.insert_or_refuse(signed.clone()).map_err(|error| error.to_string())
            });
            match taken {
                Ok(insert) => self.inserted(signed, insert, now, effects),
                Err(reason) => effects.push(Effect::Rejected { reason }),
            }
        }
        if effects.len() == publish + 1 {
            effects.pop();
        }
    }

    fn inserted(
        &mut self,
        signed: SignedOrder,
        insert: Insert,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let added = match insert {
            Insert::New(added) => added,
            Insert::Known(_) => return,
            Insert::Conflict(order) => {
                let reason = format!("order {} is known with another text, which stays", order.id);
                effects.push(Effect::Rejected { reason });
                return;
            }
        };
        if added.in_force {
            let word = self.confirmations.arrived(&added.order, now);
            if self.phase == Phase::InSync {
                effects.push(Effect::Send(ToServer::Confirm(Box::new(word))));
            }
            effects.push(Effect::Ordered(Arc::clone(&added.order)));
        }
        if !added.ended.is_empty() {
            self.confirmations.ended(&added.ended);
            effects.push(Effect::Released { orders: added.ended });
        }
        effects.push(Effect::Keep(Keep::Order(signed)));
    }

    fn local(&mut self, signed: SignedOrder, now: Now, effects: &mut Vec<Effect>) {
        let audience = Audience::of(self.tenant.as_ref());
        if signed.parse().is_ok_and(|order| !audience.admits(&order)) {
            let reason = "the halt is for another tenant than this enforcer's".to_owned();
            effects.push(Effect::Rejected { reason });
            return;
        }
        let known = self.orders.len();
        let mut taken = Vec::new();
        self.take(vec![signed.clone()], now, &mut taken);
        if self.orders.len() > known {
            match self.phase {
                // The reconciliation of the next connection hands it over.
                Phase::Disconnected => {}
                // The hello's digest did not count it: the server may find the sets equal.
                Phase::Greeting => self.unlisted.push(signed),
                // After its publication, and before the word on it: the server must know it then.
                Phase::Syncing | Phase::InSync => {
                    let frame = ToServer::Orders { orders: vec![signed] };
                    taken.insert(1, Effect::Send(frame));
                }
            }
        }
        effects.extend(taken);
    }

    /// Whether the order is signed by whom this enforcer obeys.
    fn may_take(&self, signed: &SignedOrder) -> Result<(), String> {
        let of_server = self.server_key.as_ref() == Some(&signed.key);
        let own_halt = || {
            signed.key == self.profile.key
                && signed.parse().is_ok_and(|order| matches!(order.body, OrderBody::Halt { .. }))
        };
        if !(of_server || own_halt()) {
            return Err(format!("an order is signed by key {}, which may not", signed.key));
        }
        if !self.signatures.are_valid(signed) {
            return Err(format!("an order's signature by key {} is wrong", signed.key));
        }
        Ok(())
    }

    fn settled(
        &mut self,
        order: OrderId,
        settlement: Settlement,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if self.orders.order(order).is_none() {
            return;
        }
        let word = self.confirmations.settled(order, settlement, now);
        if self.phase == Phase::InSync {
            effects.push(Effect::Send(ToServer::Confirm(Box::new(word))));
        }
    }

    fn silent_after(&self) -> Boottime {
        let patience = match self.phase {
            Phase::InSync => {
                (self.lease_duration / 2).max(2 * self.ping_every).min(GREETING_MAX * 6)
            }
            _ => GREETING_MAX,
        };
        self.heard_at + patience
    }

    fn time_passed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let leased = self.lease.holds(now.boot);
        if leased && self.phase == Phase::InSync {
            // Who gives leases has a ledger to write it into.
            let untold = self.glass.untold().into_iter();
            effects.extend(untold.map(|usage| Effect::Send(ToServer::BreakGlass(Box::new(usage)))));
        }
        let ended = std::mem::replace(&mut self.leased, leased) && !leased;
        let holds = leased || self.glass.holds(now.boot);
        if holds == self.lost {
            self.lost = !holds;
            effects.push(if holds { Effect::LeaseRegained } else { Effect::LeaseLost });
        } else if ended {
            effects.push(Effect::GoesOn);
        }
        if self.phase == Phase::InSync && now.boot >= self.next_ping {
            let nonce = self.lease.ping(now.boot);
            self.next_ping = now.boot + self.ping_every;
            effects.push(Effect::Send(ToServer::Ping { nonce }));
        }
        if self.phase != Phase::Disconnected && now.boot >= self.silent_after() {
            // Heard from here on, so that this is said once while the connection is closed.
            self.heard_at = now.boot;
            effects.push(Effect::Disconnect { reason: "the server is silent".to_owned() });
        }
    }
}
