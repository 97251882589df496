//! Breakers: what each task has done, and which of them has been stopped for too much of it.
//!
//! A task is what the subject names as one; without a task, its session; without either, its agent;
//! what names none of them counts together. The accounts stand behind one lock that is held for some
//! arithmetic and never while anything is waited for. A task that is over a bound is *tripped*: it
//! stays refused, whether or not a server answers, until no halt of it stands any more of those that
//! did when it tripped or came since, and there was one: their release is a person's word that it may
//! begin anew. It does so in every enforcer that counts it, also where it was not tripped: else one
//! would stop it for what it did before.
//!
//! Memory is bounded: of very many tasks, those that were idle longest are forgotten, with their counts;
//! a tripped one never is. Where none can be forgotten, new ones count together with those that name
//! nobody, and are so refused sooner than they should be, never later.
//!
//! This module keeps the accounts of steps, whatever an enforcer counts as one: a guard the steps of
//! its agent, a gateway requests. What follows from a trip, the enforcer carries out.

mod account;
mod cycle;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use estoppel_model::{Boottime, EntityId, Excess, Kind, Limit, Order, OrderId, Scope, Subject};

use crate::{Rate, TooSoon};

pub use account::{Account, Ended, Outcome, StepKind};

/// Most tasks, most sessions and most agents that have an account.
const ACCOUNTS_MAX: usize = 10_000;
/// Most halts that are remembered of one task; the release of those ends its trip.
const HALTS_MAX: usize = 64;

/// Whose account it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A task's.
    Task(EntityId),
    /// A session's, of steps that name no task.
    Session(EntityId),
    /// An agent's, of steps that name neither.
    Agent(EntityId),
    /// All others' together.
    Others,
}

impl Holder {
    fn of(subject: &Subject) -> Self {
        let Subject { task, session, agent, .. } = subject;
        match (task, session, agent) {
            (Some(task), ..) => Self::Task(task.clone()),
            (None, Some(session), _) => Self::Session(session.clone()),
            (None, None, Some(agent)) => Self::Agent(agent.clone()),
            (None, None, None) => Self::Others,
        }
    }
}

/// Whose account it is, such as `task report-7`.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => write!(f, "task {id}"),
            Self::Session(id) => write!(f, "session {id}"),
            Self::Agent(id) => write!(f, "agent {id}"),
            Self::Others => f.write_str("what names no task, no session and no agent"),
        }
    }
}

/// A task came to be over a bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Trip {
    /// The task.
    pub holder: Holder,
    /// What it is over.
    pub excess: Excess,
    /// Who took the step that was one too many.
    pub subject: Subject,
    /// Whether it is stopped; `false` when it was found by who then only observed.
    pub stops: bool,
}

/// What entering a step came to.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The account that the step counts in; absent when it does not, since it must not begin.
    pub holder: Option<Holder>,
    /// Why it must not begin.
    pub trip: Option<Arc<Trip>>,
    /// Whether this very step tripped the task: somebody must be told.
    pub is_new: bool,
    /// It comes too soon behind others, which trips nobody.
    pub too_soon: Option<TooSoon>,
    /// Whether [`Breakers::next_look`] has changed: who waits for it must ask again.
    pub next_look_changed: bool,
}

/// All accounts of an enforcer.
#[derive(Debug, Default)]
pub struct Breakers {
    inner: Mutex<Inner>,
    /// How many are tripped: a check looks no further while none is.
    tripped: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    tasks: HashMap<EntityId, Slot>,
    sessions: HashMap<EntityId, Slot>,
    agents: HashMap<EntityId, Slot>,
    others: Slot,
    /// When the steps under way are to be looked at.
    look_at: Option<Boottime>,
    observes: bool,
}

#[derive(Debug, Default)]
struct Slot {
    account: Account,
    /// Steps of late; counted while a limit bounds them.
    rate: Rate,
    trip: Option<Arc<Trip>>,
    /// The halts of it that stand.
    halts: BTreeSet<OrderId>,
}

impl Breakers {
    /// Sets whether what is over a bound is only noted (`true`), or stopped, as it is from the start.
    ///
    /// What was only noted is forgotten when it is to be stopped from now on, so that it trips anew,
    /// at the next look. What was stopped stays so.
    pub fn set_observes(&self, observes: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.observes, observes) == observes || observes {
            return;
        }
        for slot in inner.slots_mut() {
            if slot.trip.take_if(|trip| !trip.stops).is_some() {
                self.tripped.fetch_sub(1, Relaxed);
            }
        }
        inner.look_at = Some(Boottime::default());
    }

    /// A step is about to begin. It is counted only if it may; by who observes, in any case.
    pub fn enter(&self, subject: &Subject, kind: StepKind, limit: &Limit, now: Boottime) -> Entry {
        self.enter_into(&mut self.lock(), subject, kind, limit, now)
    }

    /// As [`Breakers::enter`]; `None`, and nothing is counted, when as many are under way as may be,
    /// and the task is not stopped. For whom a step may end a moment later than its agent knows.
    pub fn enter_if_room(
        &self,
        subject: &Subject,
        kind: StepKind,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Entry> {
        let mut inner = self.lock();
        let is_full = !inner.observes
            && inner
                .slot(&Holder::of(subject))
                .is_some_and(|slot| slot.trip.is_none() && slot.account.is_full(kind, limit));
        (!is_full).then(|| self.enter_into(&mut inner, subject, kind, limit, now))
    }

    fn enter_into(
        &self,
        inner: &mut Inner,
        subject: &Subject,
        kind: StepKind,
        limit: &Limit,
        now: Boottime,
    ) -> Entry {
        let observes = inner.observes;
        let holder = inner.open(Holder::of(subject));
        let Some(slot) = inner.slot_mut(&holder) else { return Entry::default() };
        let known = slot.trip.clone();
        let per_minute = limit.requests_per_minute.filter(|_| known.is_none());
        let too_soon = per_minute.and_then(|per_minute| slot.rate.take(per_minute, now).err());
        if too_soon.is_some() && !observes {
            return Entry { too_soon, ..Entry::default() };
        }
        let found = if known.is_some() { Ok(()) } else { slot.account.enter(kind, limit, now) };
        let (trip, is_new) = match (known, found) {
            (Some(trip), _) => (Some(trip), false),
            (None, Err(excess)) => {
                (Some(self.trip(slot, &holder, subject, excess, !observes)), true)
            }
            (None, Ok(())) => (None, false),
        };
        if trip.is_some() && !observes {
            return Entry { trip, is_new, too_soon, ..Entry::default() };
        }
        if trip.is_some() {
            slot.account.count(kind, now);
        }
        let over_at = slot.account.time_is_over_at(limit);
        let next_look = inner.look_at.into_iter().chain(over_at).min();
        let next_look_changed = next_look != inner.look_at;
        inner.look_at = next_look;
        Entry { holder: Some(holder), trip, is_new, too_soon, next_look_changed }
    }

    /// A step that was counted has ended. Returns the trip that it was the cause of.
    pub fn leave(
        &self,
        holder: &Holder,
        subject: &Subject,
        kind: StepKind,
        outcome: &Outcome,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Arc<Trip>> {
        let mut inner = self.lock();
        let stops = !inner.observes;
        let slot = inner.slot_mut(holder)?;
        let excess = slot.account.leave(kind, outcome, limit, now);
        let excess = excess.filter(|_| slot.trip.is_none())?;
        Some(self.trip(slot, holder, subject, excess, stops))
    }

    /// Looks at a task some step of which is under way: returns the trip if it is over a bound, and
    /// notes when to look again.
    pub fn look(
        &self,
        holder: &Holder,
        subject: &Subject,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Arc<Trip>> {
        let mut inner = self.lock();
        let stops = !inner.observes;
        let slot = inner.slot_mut(holder)?;
        if slot.trip.is_some() {
            return None;
        }
        if let Some(excess) = slot.account.judge(limit, now) {
            return Some(self.trip(slot, holder, subject, excess, stops));
        }
        let over_at = slot.account.time_is_over_at(limit);
        inner.look_at = inner.look_at.into_iter().chain(over_at).min();
        None
    }

    /// The trip for which the subject must not act, or where it does not stop, should not.
    #[inline]
    pub fn tripped(&self, subject: &Subject) -> Option<Arc<Trip>> {
        if self.tripped.load(Relaxed) == 0 {
            return None;
        }
        let inner = self.lock();
        inner.slot(&Holder::of(subject))?.trip.clone()
    }

    /// A halt came into force: its release may let those begin anew that are tripped.
    pub fn halted(&self, order: &Order) {
        let mut inner = self.lock();
        let Inner { tasks, sessions, agents, others, .. } = &mut *inner;
        for scope in order.scope.iter() {
            let slot = match scope {
                Scope::Entity { kind: Kind::Task, id } => tasks.get_mut(id),
                Scope::Entity { kind: Kind::Session, id } => sessions.get_mut(id),
                Scope::Entity { kind: Kind::Agent, id } => agents.get_mut(id),
                _ => None,
            };
            slot.into_iter().for_each(|slot| slot.halted(order.id));
        }
        // Who has neither task nor session is stopped by halts of other kinds of scope.
        for slot in agents.values_mut().chain([others]) {
            if slot.trip.as_ref().is_some_and(|trip| order.scope.reaches(&trip.subject)) {
                slot.halted(order.id);
            }
        }
    }

    /// Orders were released: whoever was halted by them alone begins anew.
    pub fn released(&self, orders: &[OrderId]) {
        for slot in self.lock().slots_mut() {
            let before = slot.halts.len();
            slot.halts.retain(|halt| !orders.contains(halt));
            if slot.halts.len() < before && slot.halts.is_empty() {
                slot.account.reset();
                if slot.trip.take().is_some() {
                    self.tripped.fetch_sub(1, Relaxed);
                }
            }
        }
    }

    /// The bounds may have changed: the steps under way are to be looked at now. Who waits for
    /// [`Breakers::next_look`] must ask again.
    pub fn look_soon(&self) {
        self.lock().look_at = Some(Boottime::default());
    }

    /// When [`Breakers::look`] is to be asked next for the steps under way.
    pub fn next_look(&self) -> Option<Boottime> {
        self.lock().look_at
    }

    /// The steps under way are about to be looked at.
    pub fn looking(&self) {
        self.lock().look_at = None;
    }

    fn trip(
        &self,
        slot: &mut Slot,
        holder: &Holder,
        subject: &Subject,
        excess: Excess,
        stops: bool,
    ) -> Arc<Trip> {
        let trip = Trip { holder: holder.clone(), excess, subject: subject.clone(), stops };
        let trip = Arc::new(trip);
        slot.trip = Some(Arc::clone(&trip));
        self.tripped.fetch_add(1, Relaxed);
        trip
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn halted(&mut self, order: OrderId) {
        if self.halts.len() < HALTS_MAX {
            self.halts.insert(order);
        }
    }

    fn may_be_forgotten(&self) -> bool {
        self.trip.is_none() && self.account.is_idle()
    }
}

impl Inner {
    /// The account's holder, once there is an account.
    fn open(&mut self, holder: Holder) -> Holder {
        let (accounts, id) = match &holder {
            Holder::Task(id) => (&mut self.tasks, id),
            Holder::Session(id) => (&mut self.sessions, id),
            Holder::Agent(id) => (&mut self.agents, id),
            Holder::Others => return holder,
        };
        if !accounts.contains_key(id) {
            if accounts.len() >= ACCOUNTS_MAX {
                forget(accounts);
            }
            if accounts.len() >= ACCOUNTS_MAX {
                return Holder::Others;
            }
            accounts.insert(id.clone(), Slot::default());
        }
        holder
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let Self { tasks, sessions, agents, others, .. } = self;
        let named = [tasks, sessions, agents].into_iter().flat_map(HashMap::values_mut);
        named.chain([others])
    }

    fn slot_mut(&mut self, holder: &Holder) -> Option<&mut Slot> {
        match holder {
            Holder::Task(id) => self.tasks.get_mut(id),
            Holder::Session(id) => self.sessions.get_mut(id),
            Holder::Agent(id) => self.agents.get_mut(id),
            Holder::Others => Some(&mut self.others),
        }
    }

    fn slot(&self, holder: &Holder) -> Option<&Slot> {
        let (accounts, id) = match holder {
            Holder::Task(id) => (&self.tasks, id),
            Holder::Session(id) => (&self.sessions, id),
            Holder::Agent(id) => (&self.agents, id),
            Holder::Others => return Some(&self.others),
        };
        let full = accounts.len() >= ACCOUNTS_MAX;
        accounts.get(id).or_else(|| full.then_some(&self.others))
    }
}

/// Forgets a quarter of the accounts that may be, those that were touched longest ago.
fn forget(accounts: &mut HashMap<EntityId, Slot>) {
    let idle = accounts.values().filter(|slot| slot.may_be_forgotten());
    let mut touched: Vec<Boottime> = idle.map(|slot| slot.account.touched).collect();
    touched.sort_unstable();
    if let Some(until) = touched.get(touched.len() / 4).copied() {
        accounts.retain(|_, slot| !slot.may_be_forgotten() || slot.account.touched > until);
    }
}

#[cfg(test)]
mod tests;
