//! The server's side of the stream.
//!
//! [`Switch`] takes orders from people and frames from enforcers and returns what to do, in order:
//! a halt is broadcast before it is persisted (invariant *stop-never-waits*), while a release is
//! only taken when the ledger has it (*starting-always-does*).
//!
//! Whoever drives it carries the effects out in the order of the steps that gave them: an answer to
//! a ping must not overtake an order that was accepted before (invariant *lease*).
//!
//! A connection is who its token says. What it confirms counts for its own enforcer id, and an id
//! belongs to the token that uses it. It may hand back what the server itself once signed, and
//! halts of its own key inside what its token permits, which the server then signs itself so that
//! the other enforcers obey them: never a release. So a hostile enforcer can stop what it may stop
//! anyway, and start nothing.

mod board;
mod glass;
mod greeting;
mod hand_back;
mod io;
mod progress;
mod release;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use estoppel_model::{
    Actor, Boottime, EnforcerId, Order, OrderBody, OrderId, ScopeSet, SignedOrder, Subject,
    Timestamp,
};

use self::board::{Board, Heard};
pub use self::{
    hand_back::{HANDED_BACK_MAX, LOCAL_ACTOR_PREFIX},
    io::{ConnectionId, Effect, Identity, Input, SubmitError, Submitted},
    progress::{EnforcerProgress, HaltCount, HaltProgress, Listing, Reached},
    release::{RELEASED_MAX, ReleaseError, ReleasePlan},
};
use crate::{
    Audience, Digest, Insert, Now, OrderSet, Signer, Verdicts,
    frame::{Action, EnforcerKind, ORDER_BYTES_MAX, SetDigest, ToEnforcer, ToServer},
};

/// How a switch behaves.
#[derive(Debug, Clone, Copy)]
pub struct SwitchConfig {
    /// How long an enforcer may go on without an answer.
    pub lease: Duration,
    /// How often an enforcer asks.
    pub ping: Duration,
}

impl Default for SwitchConfig {
    /// 15 s of lease, asked for every 3 s.
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), ping: Duration::from_secs(3) }
    }
}

/// An enforcer that is connected, or whose lease is not over.
#[derive(Debug, Clone)]
pub struct EnforcerState {
    /// Its id.
    pub id: EnforcerId,
    /// The name of its token.
    pub actor: Actor,
    /// Whose orders it receives.
    pub audience: Audience,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// Its name for people.
    pub name: Arc<str>,
    /// The subjects that it enforces, where it knows them beforehand.
    pub subjects: Vec<Subject>,
    /// What limits what it can do, in words.
    pub gaps: Vec<String>,
    /// Its own public key.
    pub key: String,
    /// Its connection, if it stands.
    pub connection: Option<ConnectionId>,
    /// The latest instant, on this machine's clock, at which its lease can still hold.
    pub lease_until: Option<Boottime>,
}

impl EnforcerState {
    /// Whether its lease can still hold.
    pub fn is_alive(&self, now: Boottime) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }
}

#[derive(Debug)]
enum Phase {
    Connected,
    /// The welcome is sent; the enforcer lists what it has.
    Syncing(EnforcerId),
    InSync(EnforcerId),
}

#[derive(Debug)]
struct Connection {
    identity: Identity,
    audience: Audience,
    phase: Phase,
    /// Halts of the enforcer's own key that came on this connection.
    handed_back: usize,
    /// How often it told of break-glass.
    glass_words: usize,
    /// The last ping, while leases are held back.
    held: Option<u64>,
}

impl Connection {
    const fn enforcer(&self) -> Option<EnforcerId> {
        match self.phase {
            Phase::Connected => None,
            Phase::Syncing(enforcer) | Phase::InSync(enforcer) => Some(enforcer),
        }
    }
}

/// The connections of one audience, with the digest of what they may see.
#[derive(Debug)]
struct Group {
    digest: Digest,
    /// Of the digest, for all hellos until the next order.
    summary: Option<SetDigest>,
    connections: BTreeSet<ConnectionId>,
}

/// The server's state.
pub struct Switch {
    config: SwitchConfig,
    signer: Box<dyn Signer>,
    orders: OrderSet,
    connections: BTreeMap<ConnectionId, Connection>,
    groups: BTreeMap<Audience, Group>,
    enforcers: BTreeMap<EnforcerId, EnforcerState>,
    board: Board,
    staleness: Duration,
    /// No ping is answered.
    holds_leases: bool,
    checkpoint: Option<String>,
    contact: Option<String>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch")
            .field("orders", &self.orders.len())
            .field("enforcers", &self.enforcers.len())
            .finish_non_exhaustive()
    }
}

impl Switch {
    /// A switch that starts with the orders that were kept, and how many of them could not be read
    /// or contradict another.
    pub fn new(
        config: SwitchConfig,
        signer: Box<dyn Signer>,
        kept: impl IntoIterator<Item = SignedOrder>,
    ) -> (Self, usize) {
        let mut orders = OrderSet::default();
        let mut wrong = 0;
        for signed in kept {
            if !matches!(orders.insert_or_refuse(signed), Ok(Insert::New(_) | Insert::Known(_))) {
                wrong += 1;
            }
        }
        let this = Self {
            config,
            signer,
            orders,
            connections: BTreeMap::new(),
            groups: BTreeMap::new(),
            enforcers: BTreeMap::new(),
            board: Board::default(),
            staleness: Duration::ZERO,
            holds_leases: false,
            checkpoint: None,
            contact: None,
        };
        (this, wrong)
    }

    /// Puts an order in force that is not yet in the ledger. A release cannot be given so.
    ///
    /// # Errors
    /// When it is no order that can be taken; nothing has changed.
    pub fn submit(
        &mut self,
        order: SignedOrder,
        now: Now,
    ) -> Result<(Submitted, Vec<Effect>), SubmitError> {
        let parsed = readable(&order)?;
        if matches!(parsed.body, OrderBody::Release { .. }) {
            return Err(SubmitError::ReleaseNeedsLedger);
        }
        let (submitted, mut effects) = self.add(order.clone(), parsed, now)?;
        if matches!(submitted, Submitted::New { .. }) {
            effects.push(Effect::Persist(order));
        }
        Ok((submitted, effects))
    }

    /// Puts an order in force that is in the ledger: a release, or what another node accepted.
    ///
    /// # Errors
    /// When it is no order that can be taken; nothing has changed.
    pub fn submit_recorded(
        &mut self,
        order: SignedOrder,
        now: Now,
    ) -> Result<(Submitted, Vec<Effect>), SubmitError> {
        let parsed = readable(&order)?;
        self.add(order, parsed, now)
    }

    /// Takes what happened and returns what to do, in order.
    pub fn step(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Connected { connection, identity } => {
                let audience = Audience::of(identity.tenant.as_ref());
                let entry = Connection {
                    identity: *identity,
                    audience,
                    phase: Phase::Connected,
                    handed_back: 0,
                    glass_words: 0,
                    held: None,
                };
                self.connections.insert(connection, entry);
            }
            Input::Disconnected { connection } => self.disconnected(connection),
            Input::Frame { connection, frame } => self.frame(connection, frame, now, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
        }
        effects
    }

    /// Sends an action to an enforcer; `None` when it is not connected.
    pub fn act(&self, enforcer: EnforcerId, action: Action) -> Option<Effect> {
        let connection = self.enforcers.get(&enforcer)?.connection?;
        Some(Effect::Send { connection, frame: ToEnforcer::Action(Box::new(action)) })
    }

    /// Sets how old this node's own knowledge of the ledger is; leases are shorter by it.
    pub const fn set_staleness(&mut self, staleness: Duration) {
        self.staleness = staleness;
    }

    /// A server before this one may have given leases that hold until `until` at the latest, to
    /// enforcers that this one does not know. Until then no order counts as confirmed by all, and
    /// whoever says hello is taken to hold such a lease.
    pub fn expect_unknown(&mut self, until: Boottime) {
        self.board.expect_unknown(until);
    }

    /// Until when enforcers may act that this server does not know, by its wall clock; `None` once
    /// all are known.
    pub fn unknown_until(&self, now: Now) -> Option<Timestamp> {
        self.board.unknown_until(now.boot).map(|until| board::wall(until, now))
    }

    /// From now on no ping is answered: this node may lack orders that the ledger has, and whoever
    /// gets a lease may act upon their absence. Orders are taken and broadcast all the same.
    pub const fn hold_leases(&mut self) {
        self.holds_leases = true;
    }

    /// This node has what the ledger has: answers the pings that waited, behind all orders.
    pub fn grant_leases(&mut self, now: Now) -> Vec<Effect> {
        self.holds_leases = false;
        let held: Vec<(ConnectionId, EnforcerId, u64)> = self
            .connections
            .iter_mut()
            .filter_map(|(id, connection)| {
                Some((*id, connection.enforcer()?, connection.held.take()?))
            })
            .collect();
        held.into_iter()
            .map(|(id, enforcer, nonce)| self.answer(id, enforcer, nonce, now))
            .collect()
    }

    /// Sets the ledger's checkpoint, a C2SP signed note, that enforcers are given at hello.
    pub fn set_checkpoint(&mut self, checkpoint: String) {
        self.checkpoint = Some(checkpoint);
    }

    /// Sets whom people are to call, which enforcers are given at hello; at most
    /// [`crate::frame::CONTACT_BYTES_MAX`] bytes.
    pub fn set_contact(&mut self, contact: Option<String>) {
        self.contact = contact;
    }

    /// All orders.
    pub const fn orders(&self) -> &OrderSet {
        &self.orders
    }

    /// The fold over the orders in force.
    pub const fn verdicts(&self) -> &Verdicts {
        self.orders.verdicts()
    }

    /// The active halts that were given for at least these scopes, earliest first.
    pub fn active_halts(&self, scopes: &ScopeSet) -> Vec<Arc<Order>> {
        let mut halts = self.verdicts().halts_at(scopes);
        halts.retain(|order| matches!(order.body, OrderBody::Halt { .. }));
        halts
    }

    /// Whether what these scopes name must stop: a halt was given for them, or for everything.
    pub fn stop(&self, scopes: &ScopeSet) -> bool {
        let verdicts = self.verdicts();
        !verdicts.halts_at(scopes).is_empty()
            || !verdicts.halts_at(&estoppel_model::Scope::Global.into()).is_empty()
    }

    /// Who has confirmed an order. `None` for one that is not known, or so old that nobody asks.
    pub fn progress(&self, order: OrderId, now: Now) -> Option<HaltProgress> {
        self.progress_listing(order, now, Listing::All)
    }

    /// As [`Switch::progress`], with fewer enforcers listed: what many look at must not cost the
    /// thread that gives orders a copy of 10,000 words each time.
    pub fn progress_listing(
        &self,
        order: OrderId,
        now: Now,
        listing: Listing,
    ) -> Option<HaltProgress> {
        self.board.progress(order, &self.orders, &self.enforcers, now, listing)
    }

    /// How far an order has been carried out, in numbers; `None` as for [`Switch::progress`].
    pub fn count(&self, order: OrderId) -> Option<HaltCount> {
        self.board.count(order)
    }

    /// The enforcers that are connected or whose lease is not over.
    pub fn enforcers(&self) -> impl Iterator<Item = &EnforcerState> {
        self.enforcers.values()
    }

    /// The enforcer of this id, if it is connected or its lease is not over.
    pub fn enforcer(&self, id: EnforcerId) -> Option<&EnforcerState> {
        self.enforcers.get(&id)
    }

    /// The connected enforcers of a kind with a listed subject that an order reaches.
    pub fn enforcing<'a>(
        &'a self,
        kind: EnforcerKind,
        order: &'a Order,
    ) -> impl Iterator<Item = (&'a EnforcerState, &'a Subject)> {
        self.enforcers
            .values()
            .filter(move |state| state.kind == kind && state.connection.is_some())
            .filter(move |state| state.audience.admits(order))
            .flat_map(|state| state.subjects.iter().map(move |subject| (state, subject)))
            .filter(move |(_, subject)| crate::reaches(order, subject))
    }

    fn add(
        &mut self,
        signed: SignedOrder,
        parsed: Order,
        now: Now,
    ) -> Result<(Submitted, Vec<Effect>), SubmitError> {
        let added = match self.orders.insert_parsed(signed.clone(), Arc::new(parsed)) {
            Insert::New(added) => added,
            Insert::Known(order) => return Ok((Submitted::Known(order), Vec::new())),
            Insert::Conflict(order) => return Err(SubmitError::Conflict(order)),
        };
        let order = added.order;
        let frame = ToEnforcer::Orders { orders: vec![signed] };
        let mut effects = Vec::new();
        for (audience, group) in &mut self.groups {
            if !audience.admits(&order) {
                continue;
            }
            if let Some(mark) = self.orders.mark(order.id) {
                group.digest.add(mark);
                group.summary = None;
            }
            let connections = group.connections.iter().copied().collect();
            effects.push(Effect::Broadcast { connections, frame: frame.clone() });
        }
        let expected = if added.in_force {
            self.board.accepted(&order, self.enforcers.values(), now)
        } else {
            0
        };
        Ok((Submitted::New { order, expected, ended: added.ended }, effects))
    }

    fn frame(&mut self, id: ConnectionId, frame: ToServer, now: Now, effects: &mut Vec<Effect>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (phase, enforcer) = (&connection.phase, connection.enforcer());
        match (frame, phase) {
            (ToServer::Unknown, _) => {}
            (ToServer::Hello(hello), Phase::Connected) => self.hello(id, *hello, now, effects),
            (ToServer::Have { buckets, more }, Phase::Syncing(_)) => {
                self.reconcile(id, &buckets, effects);
                if !more {
                    self.in_sync(id, effects);
                }
            }
            (ToServer::Orders { orders }, Phase::Syncing(_) | Phase::InSync(_)) => {
                self.handed_back(id, orders, now, effects);
            }
            (ToServer::Ping { nonce }, Phase::InSync(enforcer)) => {
                let enforcer = *enforcer;
                if !self.holds_leases {
                    effects.push(self.answer(id, enforcer, nonce, now));
                } else if let Some(connection) = self.connections.get_mut(&id) {
                    connection.held = Some(nonce);
                }
            }
            (ToServer::Confirm(confirmation), Phase::Syncing(_) | Phase::InSync(_)) => {
                let state = enforcer.and_then(|enforcer| self.enforcers.get(&enforcer));
                if let Some(state) = state
                    && let Some(Heard { first, count }) =
                        self.board.confirmed(state, &confirmation, &self.orders, now)
                {
                    let enforcer = state.id;
                    effects.push(Effect::Confirmed { enforcer, confirmation, first, count });
                }
            }
            (ToServer::Outcome(outcome), Phase::Syncing(enforcer) | Phase::InSync(enforcer)) => {
                effects.push(Effect::Outcome { enforcer: *enforcer, outcome });
            }
            (ToServer::BreakGlass(usage), Phase::Syncing(_) | Phase::InSync(_)) => {
                self.glass_used(id, usage, effects);
            }
            (_, Phase::Connected) => close(id, "the first frame must be a hello", effects),
            (ToServer::Hello(_), _) => close(id, "a second hello", effects),
            (ToServer::Have { .. } | ToServer::Ping { .. }, _) => {
                close(id, "a frame that does not belong here", effects);
            }
        }
    }

    /// Answers a ping, which gives a lease.
    fn answer(&mut self, id: ConnectionId, enforcer: EnforcerId, nonce: u64, now: Now) -> Effect {
        // Rounded up: a lease may be shorter than it could be, never longer.
        let staleness_ms = self.staleness.as_nanos().div_ceil(1_000_000);
        let staleness_ms = u64::try_from(staleness_ms).unwrap_or(u64::MAX);
        if let Some(state) = self.enforcers.get_mut(&enforcer) {
            let until = now.boot + self.config.lease.saturating_sub(self.staleness);
            if state.lease_until.is_none() {
                self.board.lease_again(enforcer);
            }
            state.lease_until = state.lease_until.max(Some(until));
        }
        let frame = ToEnforcer::Pong { nonce, staleness_ms };
        Effect::Send { connection: id, frame }
    }

    fn disconnected(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(group) = self.groups.get_mut(&connection.audience) {
            group.connections.remove(&id);
            if group.connections.is_empty() {
                self.groups.remove(&connection.audience);
            }
        }
        let state = connection.enforcer().and_then(|enforcer| self.enforcers.get_mut(&enforcer));
        if let Some(state) = state
            && state.connection == Some(id)
        {
            state.connection = None;
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Self { enforcers, board, .. } = self;
        enforcers.retain(|id, state| {
            let over = state.lease_until.is_some_and(|until| until <= now.boot);
            let left = state.connection.is_none() && state.lease_until.is_none();
            if over || left {
                let changed = board.lease_over(state);
                state.lease_until = None;
                if over || changed {
                    effects.push(Effect::LeaseOver { enforcer: *id });
                }
            }
            state.connection.is_some() || state.lease_until.is_some()
        });
        if board.all_known(now.boot) {
            effects.push(Effect::AllKnown);
        }
    }
}

/// Reads an order that someone gives, strictly.
fn readable(signed: &SignedOrder) -> Result<Order, SubmitError> {
    if signed.order.len() > ORDER_BYTES_MAX {
        return Err(SubmitError::TooLarge { bytes: signed.order.len() });
    }
    Ok(signed.parse()?)
}

fn close(connection: ConnectionId, reason: &str, effects: &mut Vec<Effect>) {
    let frame = ToEnforcer::Refused { reason: reason.to_owned() };
    effects.push(Effect::Send { connection, frame });
    effects.push(Effect::Close { connection, reason: reason.to_owned() });
}
