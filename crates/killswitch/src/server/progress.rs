//! Who has confirmed what.
//!
//! The denominator of an order is every enforcer that receives it and whose lease was alive at its
//! acceptance. It counts as done when it has confirmed, or when its lease is over: from then on it
//! refuses by itself. Who comes later is listed apart and changes no count.
//!
//! Bounded: the last [`ORDERS_MAX`] orders are tracked, fewer where they have more than
//! [`MEMBERS_MAX`] enforcers between them, and of each at most [`LATE_MAX`] late enforcers.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use estoppel_model::{Actor, Boottime, EnforcerId, Order, OrderId, Timestamp};

use super::EnforcerState;
use crate::{
    Now, OrderSet,
    frame::{Confirmation, EnforcerKind, Settlement, Stage},
};

/// Most orders that are tracked.
const ORDERS_MAX: usize = 256;
/// Most enforcers of all tracked orders together, of some 200 bytes each; the newest order is tracked
/// whatever its size.
const MEMBERS_MAX: usize = 300_000;
/// Most enforcers that came after the acceptance and are listed.
const LATE_MAX: usize = 1_000;

/// When an enforcer reached a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// By the enforcer's wall clock.
    pub at: Timestamp,
    /// From the acceptance to the word's arrival at the server, on the server's boot clock.
    pub after: Duration,
}

/// How far an order has been carried out, in numbers: kept up to date by each word, so that asking
/// costs nothing however many enforcers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HaltCount {
    /// Enforcers whose lease was alive at the acceptance.
    pub expected: usize,
    /// Of those, how many refuse new work. One that only observes refuses nothing.
    pub refusing: usize,
    /// Of those, how many have settled.
    pub settled: usize,
    /// Of those, how many did not confirm and whose lease is over.
    pub by_lease: usize,
}

impl HaltCount {
    /// Whether every expected enforcer has settled, or refuses by its lease.
    pub const fn is_complete(&self) -> bool {
        self.expected > 0 && self.settled + self.by_lease >= self.expected
    }

    /// Counts a member out as it was, and in as it is.
    fn recount(&mut self, before: &Self, after: &Self) {
        let moved = |total: usize, from: usize, to: usize| total + to - from;
        self.expected = moved(self.expected, before.expected, after.expected);
        self.refusing = moved(self.refusing, before.refusing, after.refusing);
        self.settled = moved(self.settled, before.settled, after.settled);
        self.by_lease = moved(self.by_lease, before.by_lease, after.by_lease);
    }
}

/// How far an order has been carried out.
#[derive(Debug, Clone)]
pub struct HaltProgress {
    /// The order.
    pub order: Arc<Order>,
    /// When this server accepted it.
    pub accepted_at: Timestamp,
    /// Whether it is still in force.
    pub in_force: bool,
    /// Enforcers whose lease was alive at the acceptance.
    pub expected: usize,
    /// Of those, how many refuse new work. One that only observes refuses nothing.
    pub refusing: usize,
    /// Of those, how many have settled.
    pub settled: usize,
    /// Of those, how many did not confirm and whose lease is over.
    pub by_lease: usize,
    /// Of those, how many only observe: they stop nothing.
    pub observing: usize,
    /// Enforcers that have a word here, listed or not.
    pub words: usize,
    /// Each enforcer's word, as the [`Listing`] says.
    pub enforcers: Vec<EnforcerProgress>,
}

/// Which enforcers' words are listed. The counts are over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// All, by id.
    All,
    /// At most so many: those that are still waited for first, then the expected ones, each part
    /// by name.
    OpenFirst(usize),
}

impl HaltProgress {
    /// Brings the expected enforcers to the front, each part by name. Not done by the switch itself,
    /// which has orders to broadcast.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.enforcers.sort_by(|one, other| {
            (!one.expected, &one.name, one.enforcer).cmp(&(
                !other.expected,
                &other.name,
                other.enforcer,
            ))
        });
        self
    }
}

/// One enforcer's word on one order.
#[derive(Debug, Clone)]
pub struct EnforcerProgress {
    /// Who.
    pub enforcer: EnforcerId,
    /// Its name for people.
    pub name: String,
    /// Which enforcement point.
    pub kind: EnforcerKind,
    /// Whether it sees effects from outside of the agent, or only claims.
    pub witness: bool,
    /// Whether its lease was alive at the acceptance.
    pub expected: bool,
    /// It does not know the order's kind, and refuses its scope.
    pub unsupported: bool,
    /// When it refused new work.
    pub refusing: Option<Reached>,
    /// When its work in flight had ended.
    pub settled: Option<Reached>,
    /// What settling came to.
    pub settlement: Settlement,
    /// When its lease is over at the latest, by the server's wall clock.
    pub lease_until: Option<Timestamp>,
    /// Its lease is over, and it has not confirmed.
    pub by_lease: bool,
}

#[derive(Debug)]
struct Member {
    actor: Actor,
    name: String,
    kind: EnforcerKind,
    expected: bool,
    unsupported: bool,
    refusing: Option<Reached>,
    settled: Option<Reached>,
    /// What it said of it; most say nothing.
    settlement: Option<Box<Settlement>>,
    /// As it was at the acceptance, or when it was over.
    lease_until: Option<Boottime>,
    /// Its lease has been over since: it came back with this order, or not at all.
    lapsed: bool,
}

impl Member {
    fn of(state: &EnforcerState, expected: bool) -> Self {
        Self {
            actor: state.actor.clone(),
            name: state.name.clone(),
            kind: state.kind,
            expected,
            unsupported: false,
            refusing: None,
            settled: None,
            settlement: None,
            lease_until: state.lease_until,
            lapsed: false,
        }
    }

    /// What it adds to the numbers.
    fn count(&self) -> HaltCount {
        let one = |counts: bool| usize::from(self.expected && counts);
        HaltCount {
            expected: one(true),
            refusing: one(self.refuses()),
            settled: one(self.has_settled()),
            by_lease: one(self.lapsed && self.refusing.is_none()),
        }
    }

    fn refuses(&self) -> bool {
        self.refusing.is_some() && !self.observes()
    }

    fn observes(&self) -> bool {
        self.settlement.as_ref().is_some_and(|settlement| settlement.observed_only)
    }

    fn has_settled(&self) -> bool {
        self.refuses() && self.settled.is_some()
    }
}

#[derive(Debug)]
struct Tracked {
    accepted: Now,
    members: BTreeMap<EnforcerId, Member>,
    late: usize,
    count: HaltCount,
}

/// The words on the last orders.
#[derive(Debug, Default)]
pub(super) struct Board {
    orders: BTreeMap<OrderId, Tracked>,
    by_age: VecDeque<OrderId>,
}

impl Board {
    /// An order came into force; returns how many enforcers must confirm.
    pub(super) fn accepted<'a>(
        &mut self,
        order: &Order,
        enforcers: impl Iterator<Item = &'a EnforcerState>,
        now: Now,
    ) -> usize {
        let members: BTreeMap<_, _> = enforcers
            .filter(|state| state.is_alive(now.boot) && state.audience.admits(order))
            .map(|state| (state.id, Member::of(state, true)))
            .collect();
        let expected = members.len();
        let count = HaltCount { expected, ..HaltCount::default() };
        self.orders.insert(order.id, Tracked { accepted: now, members, late: 0, count });
        self.by_age.push_back(order.id);
        let mut members: usize = self.orders.values().map(|tracked| tracked.members.len()).sum();
        while self.by_age.len() > ORDERS_MAX || (members > MEMBERS_MAX && self.by_age.len() > 1) {
            let Some(oldest) = self.by_age.pop_front() else { break };
            members -= self.orders.remove(&oldest).map_or(0, |tracked| tracked.members.len());
        }
        expected
    }

    /// Takes an enforcer's word; the numbers, if it changed anything.
    pub(super) fn confirmed(
        &mut self,
        state: &EnforcerState,
        word: &Confirmation,
        orders: &OrderSet,
        now: Now,
    ) -> Option<HaltCount> {
        let tracked = self.orders.get_mut(&word.order)?;
        if orders.order(word.order).is_none_or(|order| !state.audience.admits(order)) {
            return None;
        }
        let member = match tracked.members.entry(state.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if tracked.late == LATE_MAX => return None,
            Entry::Vacant(new) => {
                tracked.late += 1;
                new.insert(Member::of(state, false))
            }
        };
        if member.actor != state.actor {
            return None;
        }
        let before = member.count();
        let reached = Reached { at: word.at, after: now.boot.since(tracked.accepted.boot) };
        let changed = match word.stage {
            Stage::Unsupported | Stage::Refusing => {
                member.unsupported = word.stage == Stage::Unsupported;
                // The first word stands: later ones are repetitions after a reconnect.
                member.refusing.replace(member.refusing.unwrap_or(reached)).is_none()
            }
            Stage::Settled => {
                let settlement = (!word.settlement.is_empty()).then_some(&word.settlement);
                let changed =
                    member.settled.is_none() || member.settlement.as_deref() != settlement;
                // What has settled refuses, should the first word have been lost.
                member.refusing.get_or_insert(reached);
                member.settled.get_or_insert(reached);
                member.settlement = settlement.cloned().map(Box::new);
                changed
            }
        };
        tracked.count.recount(&before, &member.count());
        changed.then_some(tracked.count)
    }

    pub(super) fn count(&self, order: OrderId) -> Option<HaltCount> {
        Some(self.orders.get(&order)?.count)
    }

    /// An enforcer's lease is over.
    pub(super) fn lease_over(&mut self, state: &EnforcerState) {
        for tracked in self.orders.values_mut() {
            if let Some(member) = tracked.members.get_mut(&state.id) {
                let before = member.count();
                member.lease_until = state.lease_until;
                member.lapsed = true;
                tracked.count.recount(&before, &member.count());
            }
        }
    }

    pub(super) fn progress(
        &self,
        order: OrderId,
        orders: &OrderSet,
        enforcers: &BTreeMap<EnforcerId, EnforcerState>,
        now: Now,
        listing: Listing,
    ) -> Option<HaltProgress> {
        let tracked = self.orders.get(&order)?;
        let mut rows: Vec<Row<'_>> = tracked
            .members
            .iter()
            .map(|(id, member)| {
                let live = enforcers.get(id).and_then(|state| state.lease_until);
                Row::new(*id, member, live.or(member.lease_until), now)
            })
            .collect();
        let count = |is: fn(&Row<'_>) -> bool| {
            rows.iter().filter(|row| row.member.expected && is(row)).count()
        };
        let by_lease = count(|row| row.by_lease);
        let observing = count(|row| row.member.observes());
        let words = rows.len();
        if let Listing::OpenFirst(most) = listing {
            // The few that are listed are found without sorting the many.
            if (1..words).contains(&most) {
                rows.select_nth_unstable_by(most - 1, Row::open_first);
            }
            rows.truncate(most);
            rows.sort_unstable_by(Row::open_first);
        }
        Some(HaltProgress {
            order: Arc::clone(orders.order(order)?),
            accepted_at: tracked.accepted.wall,
            in_force: orders.is_in_force(order),
            expected: tracked.count.expected,
            refusing: tracked.count.refusing,
            settled: tracked.count.settled,
            by_lease,
            observing,
            words,
            enforcers: rows.iter().map(|row| row.word(now)).collect(),
        })
    }
}

/// An enforcer's word as it stands now.
struct Row<'a> {
    id: EnforcerId,
    member: &'a Member,
    lease_until: Option<Boottime>,
    by_lease: bool,
}

impl<'a> Row<'a> {
    fn new(id: EnforcerId, member: &'a Member, lease_until: Option<Boottime>, now: Now) -> Self {
        let over = lease_until.is_none_or(|until| until <= now.boot);
        let by_lease = (over || member.lapsed) && member.refusing.is_none();
        Self { id, member, lease_until, by_lease }
    }

    /// Whether it is still waited for.
    fn is_open(&self) -> bool {
        self.member.expected && !self.by_lease && !self.member.has_settled()
    }

    fn open_first(one: &Self, other: &Self) -> std::cmp::Ordering {
        let rank = |row: &Self| (!row.is_open(), !row.member.expected);
        rank(one)
            .cmp(&rank(other))
            .then_with(|| (&one.member.name, one.id).cmp(&(&other.member.name, other.id)))
    }

    fn word(&self, now: Now) -> EnforcerProgress {
        let member = self.member;
        EnforcerProgress {
            enforcer: self.id,
            name: member.name.clone(),
            kind: member.kind,
            witness: member.kind != EnforcerKind::Guard,
            expected: member.expected,
            unsupported: member.unsupported,
            refusing: member.refusing,
            settled: member.settled,
            settlement: member.settlement.as_deref().cloned().unwrap_or_default(),
            lease_until: self.lease_until.map(|until| wall(until, now)),
            by_lease: self.by_lease,
        }
    }
}

/// An instant of the boot clock on the wall clock, as the two stand now.
fn wall(instant: Boottime, now: Now) -> Timestamp {
    let ahead = i128::from(instant.as_nanos()) - i128::from(now.boot.as_nanos());
    let ahead_us = i64::try_from(ahead / 1_000).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.wall.as_micros().saturating_add(ahead_us))
}
