//! Breakers: what each task has done, and which of them has been stopped for too much of it.
//!
//! A task is what the subject names as one; without a task, its session; steps with neither count
//! together. The accounts stand behind one lock that is held for some arithmetic and never while
//! anything is waited for. A task that is over a bound is *tripped*: it stays refused, whether or not
//! a server answers, until no halt of it stands any more of those that did when it tripped or came
//! since, and there was one: their release is a person's word that it may begin anew.
//!
//! Memory is bounded: of very many tasks, those that were idle longest are forgotten, with their counts;
//! a tripped one never is. Where none can be forgotten, new ones count together with those that have
//! neither task nor session, and are so refused sooner than they should be, never later.
//!
//! This module keeps the accounts; [`crate::limits`] carries out what follows.

mod account;
mod cycle;
mod fingerprint;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use estoppel_link::{Rate, TooSoon};
use estoppel_model::{Boottime, EntityId, Excess, Kind, Limit, Order, OrderId, Scope, Subject};
use tokio::sync::Notify;

pub(crate) use account::{Account, Ended, Outcome, StepKind};
pub(crate) use fingerprint::{Call, Fingerprints};

/// Most tasks and most sessions that have an account.
const ACCOUNTS_MAX: usize = 10_000;
/// Most halts that are remembered of one task; the release of those ends its trip.
const HALTS_MAX: usize = 64;

/// Whose account it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A task's.
    Task(EntityId),
    /// A session's, of steps that name no task.
    Session(EntityId),
    /// All others' together.
    Others,
}

impl Holder {
    fn of(subject: &Subject) -> Self {
        match (&subject.task, &subject.session) {
            (Some(task), _) => Self::Task(task.clone()),
            (None, Some(session)) => Self::Session(session.clone()),
            (None, None) => Self::Others,
        }
    }
}

/// A task was stopped for too much of something.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trip {
    pub(crate) holder: Holder,
    pub(crate) excess: Excess,
    /// Who took the step that was one too many.
    pub(crate) subject: Subject,
}

/// What entering a step came to.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The account that the step counts in; absent when it does not, since it must not begin.
    pub(crate) holder: Option<Holder>,
    /// Why it must not begin.
    pub(crate) trip: Option<Arc<Trip>>,
    /// Whether this very step tripped the task: somebody must be told.
    pub(crate) is_new: bool,
    /// It comes too soon behind others, which trips nobody.
    pub(crate) too_soon: Option<TooSoon>,
}

/// All accounts of a guard.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    inner: Mutex<Inner>,
    /// How many are tripped: a check looks no further while none is.
    tripped: AtomicUsize,
    /// [`Breakers::next_look`] has changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    tasks: HashMap<EntityId, Slot>,
    sessions: HashMap<EntityId, Slot>,
    others: Slot,
    /// When the steps under way are to be looked at.
    look_at: Option<Boottime>,
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
    /// A step is about to begin. With `refuses` it is counted only if it may; else it is counted in
    /// any case.
    pub(crate) fn enter(
        &self,
        subject: &Subject,
        kind: StepKind,
        limit: &Limit,
        now: Boottime,
        refuses: bool,
    ) -> Entry {
        let mut inner = self.lock();
        let holder = inner.open(Holder::of(subject));
        let Some(slot) = inner.slot_mut(&holder) else {
            return Entry { holder: None, trip: None, is_new: false, too_soon: None };
        };
        let known = slot.trip.clone();
        let per_minute = limit.requests_per_minute.filter(|_| known.is_none());
        let too_soon = per_minute.and_then(|per_minute| slot.rate.take(per_minute, now).err());
        if too_soon.is_some() && refuses {
            return Entry { holder: None, trip: None, is_new: false, too_soon };
        }
        let found = if known.is_some() { Ok(()) } else { slot.account.enter(kind, limit, now) };
        let (trip, is_new) = match (known, found) {
            (Some(trip), _) => (Some(trip), false),
            (None, Err(excess)) => (Some(self.trip(slot, &holder, subject, excess)), true),
            (None, Ok(())) => (None, false),
        };
        if trip.is_some() && refuses {
            return Entry { holder: None, trip, is_new, too_soon };
        }
        if trip.is_some() {
            slot.account.count(kind, now);
        }
        if let Some(over_at) = slot.account.time_is_over_at(limit)
            && inner.look_at.is_none_or(|look_at| over_at < look_at)
        {
            inner.look_at = Some(over_at);
            self.changed.notify_one();
        }
        Entry { holder: Some(holder), trip, is_new, too_soon }
    }

    /// A step that was counted has ended. Returns the trip that it was the cause of.
    pub(crate) fn leave(
        &self,
        holder: &Holder,
        subject: &Subject,
        kind: StepKind,
        outcome: &Outcome,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Arc<Trip>> {
        let mut inner = self.lock();
        let slot = inner.slot_mut(holder)?;
        let excess = slot.account.leave(kind, outcome, limit, now);
        excess.filter(|_| slot.trip.is_none()).map(|it| self.trip(slot, holder, subject, it))
    }

    /// Looks at a task some step of which is under way: returns the trip if it is over a bound, and
    /// notes when to look again.
    pub(crate) fn look(
        &self,
        holder: &Holder,
        subject: &Subject,
        limit: &Limit,
        now: Boottime,
    ) -> Option<Arc<Trip>> {
        let mut inner = self.lock();
        let slot = inner.slot_mut(holder)?;
        if slot.trip.is_some() {
            return None;
        }
        if let Some(excess) = slot.account.judge(limit, now) {
            return Some(self.trip(slot, holder, subject, excess));
        }
        let over_at = slot.account.time_is_over_at(limit);
        inner.look_at = inner.look_at.into_iter().chain(over_at).min();
        None
    }

    /// The trip for which the subject must not act.
    #[inline]
    pub(crate) fn tripped(&self, subject: &Subject) -> Option<Arc<Trip>> {
        if self.tripped.load(Relaxed) == 0 {
            return None;
        }
        let inner = self.lock();
        inner.slot(&Holder::of(subject))?.trip.clone()
    }

    /// A halt came into force: its release may let those begin anew that are tripped.
    pub(crate) fn halted(&self, order: &Order) {
        let mut inner = self.lock();
        let Inner { tasks, sessions, others, .. } = &mut *inner;
        for scope in order.scope.iter() {
            let slot = match scope {
                Scope::Entity { kind: Kind::Task, id } => tasks.get_mut(id),
                Scope::Entity { kind: Kind::Session, id } => sessions.get_mut(id),
                _ => None,
            };
            slot.into_iter().for_each(|slot| slot.halted(order.id));
        }
        if others.trip.as_ref().is_some_and(|trip| order.scope.reaches(&trip.subject)) {
            others.halted(order.id);
        }
    }

    /// Orders were released: whoever is tripped and was halted by them alone begins anew.
    pub(crate) fn released(&self, orders: &[OrderId]) {
        let mut inner = self.lock();
        let Inner { tasks, sessions, others, .. } = &mut *inner;
        for slot in tasks.values_mut().chain(sessions.values_mut()).chain([others]) {
            let before = slot.halts.len();
            slot.halts.retain(|halt| !orders.contains(halt));
            if slot.halts.len() < before && slot.halts.is_empty() && slot.trip.take().is_some() {
                slot.account.reset();
                self.tripped.fetch_sub(1, Relaxed);
            }
        }
    }

    /// The bounds may have changed: the steps under way are to be looked at now.
    pub(crate) fn look_soon(&self) {
        self.lock().look_at = Some(Boottime::default());
        self.changed.notify_one();
    }

    /// When [`Breakers::look`] is to be asked next for the steps under way.
    pub(crate) fn next_look(&self) -> Option<Boottime> {
        self.lock().look_at
    }

    /// The steps under way are about to be looked at.
    pub(crate) fn looking(&self) {
        self.lock().look_at = None;
    }

    /// Resolves when [`Breakers::next_look`] has changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn trip(
        &self,
        slot: &mut Slot,
        holder: &Holder,
        subject: &Subject,
        excess: Excess,
    ) -> Arc<Trip> {
        let trip = Trip { holder: holder.clone(), excess, subject: subject.clone() };
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

    fn slot_mut(&mut self, holder: &Holder) -> Option<&mut Slot> {
        match holder {
            Holder::Task(id) => self.tasks.get_mut(id),
            Holder::Session(id) => self.sessions.get_mut(id),
            Holder::Others => Some(&mut self.others),
        }
    }

    fn slot(&self, holder: &Holder) -> Option<&Slot> {
        let (accounts, id) = match holder {
            Holder::Task(id) => (&self.tasks, id),
            Holder::Session(id) => (&self.sessions, id),
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
