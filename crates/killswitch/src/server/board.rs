//! Who has confirmed what.
//!
//! The denominator of an order is every enforcer that receives it and whose lease was alive at its
//! acceptance. It counts as done when it has settled, or when its lease is over: from then on it
//! refuses by itself. Who refused and lost its lease before it settled is counted apart, as *gone*:
//! nobody need wait for it, and nobody knows what became of its work in flight. Who comes later is
//! listed apart and changes no count.
//!
//! A server that was started again does not know whom the one before it gave leases. Until the last
//! of those is over, whoever says hello may have held one, and is expected of every order since the
//! start; until then no order counts as confirmed by all.
//!
//! Bounded: the last [`ORDERS_MAX`] orders are tracked, fewer where they have more than
//! [`MEMBERS_MAX`] enforcers between them, and of each at most [`LATE_MAX`] late enforcers.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::Arc,
};

use estoppel_model::{Actor, Boottime, EnforcerId, Order, OrderId, Timestamp};

use super::{
    EnforcerState,
    progress::{EnforcerProgress, HaltCount, HaltProgress, Listing, Reached},
};
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

#[derive(Debug)]
struct Member {
    actor: Actor,
    /// Shared: at an acceptance thousands are entered before the order leaves.
    name: Arc<str>,
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
    /// Its lease is over, and nothing was heard of it since.
    away: bool,
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
            away: false,
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
            gone: one(self.is_gone()),
            unknown: false,
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

    /// Whether it refused and will hardly say any more what became of its work in flight.
    fn is_gone(&self) -> bool {
        self.away && self.refusing.is_some() && self.settled.is_none()
    }
}

#[derive(Debug)]
struct Tracked {
    accepted: Now,
    members: BTreeMap<EnforcerId, Member>,
    late: usize,
    count: HaltCount,
}

/// What an enforcer's word changed.
#[derive(Debug)]
pub(super) struct Heard {
    /// It is the enforcer's first word on the order.
    pub(super) first: bool,
    /// How far the order has been carried out with it.
    pub(super) count: HaltCount,
}

/// The words on the last orders.
#[derive(Debug, Default)]
pub(super) struct Board {
    orders: BTreeMap<OrderId, Tracked>,
    by_age: VecDeque<OrderId>,
    /// Of all tracked orders together.
    members: usize,
    /// Until then a lease may hold that a server before this one gave.
    unknown_until: Option<Boottime>,
}

impl Board {
    /// A server before this one may have given leases that hold until then.
    pub(super) fn expect_unknown(&mut self, until: Boottime) {
        self.unknown_until = self.unknown_until.max(Some(until));
    }

    /// Until when a lease may hold that a server before this one gave, if that is not over.
    pub(super) fn unknown_until(&self, now: Boottime) -> Option<Boottime> {
        self.unknown_until.filter(|until| now < *until)
    }

    /// Whether the last lease of a server before this one is over since the last time this was
    /// asked: from now on all who are to be expected are known.
    pub(super) fn all_known(&mut self, now: Boottime) -> bool {
        let over = self.unknown_until.is_some() && self.unknown_until(now).is_none();
        if over {
            self.unknown_until = None;
            self.orders.values_mut().for_each(|tracked| tracked.count.unknown = false);
        }
        over
    }

    /// An enforcer said hello that may hold a lease of a server before this one.
    pub(super) fn may_have_held(&mut self, state: &EnforcerState, orders: &OrderSet) {
        for (id, tracked) in self.orders.iter_mut().filter(|(_, tracked)| tracked.count.unknown) {
            if orders.order(*id).is_none_or(|order| !state.audience.admits(order)) {
                continue;
            }
            if let Entry::Vacant(new) = tracked.members.entry(state.id) {
                let member = Member::of(state, true);
                tracked.count.recount(&HaltCount::default(), &member.count());
                new.insert(member);
                self.members += 1;
            }
        }
        self.forget_oldest();
    }

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
        let unknown = self.unknown_until(now.boot).is_some();
        let count = HaltCount { expected, unknown, ..HaltCount::default() };
        self.members += expected;
        self.orders.insert(order.id, Tracked { accepted: now, members, late: 0, count });
        self.by_age.push_back(order.id);
        self.forget_oldest();
        expected
    }

    fn forget_oldest(&mut self) {
        let is_full = |this: &Self| {
            this.by_age.len() > ORDERS_MAX || (this.members > MEMBERS_MAX && this.by_age.len() > 1)
        };
        while is_full(self) {
            let Some(oldest) = self.by_age.pop_front() else { break };
            self.members -= self.orders.remove(&oldest).map_or(0, |tracked| tracked.members.len());
        }
    }

    /// Takes an enforcer's word, if it changes anything.
    pub(super) fn confirmed(
        &mut self,
        state: &EnforcerState,
        word: &Confirmation,
        orders: &OrderSet,
        now: Now,
    ) -> Option<Heard> {
        let tracked = self.orders.get_mut(&word.order)?;
        if orders.order(word.order).is_none_or(|order| !state.audience.admits(order)) {
            return None;
        }
        let member = match tracked.members.entry(state.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if tracked.late == LATE_MAX => return None,
            Entry::Vacant(new) => {
                tracked.late += 1;
                self.members += 1;
                new.insert(Member::of(state, false))
            }
        };
        if member.actor != state.actor {
            return None;
        }
        let before = member.count();
        // A late word of one whose lease is over may be its last: it is waited for when it has another.
        if state.is_alive(now.boot) {
            member.away = false;
        }
        let reached = Reached { at: word.at, after: now.boot.since(tracked.accepted.boot) };
        let first = member.refusing.is_none();
        let changed = match word.stage {
            Stage::Unsupported | Stage::Refusing => {
                member.unsupported = word.stage == Stage::Unsupported;
                // The first word stands: later ones are repetitions after a reconnect.
                member.refusing.get_or_insert(reached);
                first
            }
            Stage::Settled => {
                let settlement = (!word.settlement.is_empty()).then_some(&word.settlement);
                let changed =
                    member.settled.is_none() || member.settlement.as_deref() != settlement;
                // What has settled refuses, since the order came to it.
                let at = Timestamp::from_micros(
                    word.at.as_micros().saturating_sub_unsigned(word.after_us),
                );
                member.refusing.get_or_insert(Reached { at, ..reached });
                member.settled.get_or_insert(reached);
                member.settlement = settlement.cloned().map(Box::new);
                changed
            }
        };
        tracked.count.recount(&before, &member.count());
        changed.then_some(Heard { first, count: tracked.count })
    }

    pub(super) fn count(&self, order: OrderId) -> Option<HaltCount> {
        Some(self.orders.get(&order)?.count)
    }

    /// An enforcer's lease is over, or it left without one. Whether that changed any number.
    pub(super) fn lease_over(&mut self, state: &EnforcerState) -> bool {
        self.each_of(state.id, |member| {
            member.lease_until = state.lease_until.or(member.lease_until);
            (member.lapsed, member.away) = (true, true);
        })
    }

    /// An enforcer that had no lease has one again, of this server.
    pub(super) fn lease_again(&mut self, enforcer: EnforcerId) {
        self.each_of(enforcer, |member| member.away = false);
    }

    /// Changes what is known of an enforcer with every order; whether any number changed.
    fn each_of(&mut self, enforcer: EnforcerId, change: impl Fn(&mut Member)) -> bool {
        let mut changed = false;
        for tracked in self.orders.values_mut() {
            let Some(member) = tracked.members.get_mut(&enforcer) else { continue };
            let before = member.count();
            change(member);
            let after = member.count();
            tracked.count.recount(&before, &after);
            changed |= before != after;
        }
        changed
    }

    pub(super) fn progress(
        &self,
        order: OrderId,
        orders: &OrderSet,
        enforcers: &Enforcers,
        now: Now,
        listing: Listing,
    ) -> Option<HaltProgress> {
        let tracked = self.orders.get(&order)?;
        let mut rows: Vec<Row<'_>> = tracked
            .members
            .iter()
            .map(|(id, member)| Row::new(*id, member, enforcers, now))
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
            gone: tracked.count.gone,
            observing,
            unknown_until: self
                .unknown_until(now.boot)
                .filter(|_| tracked.count.unknown)
                .map(|until| wall(until, now)),
            words,
            enforcers: rows.iter().map(|row| row.word(enforcers, now)).collect(),
        })
    }
}

/// An enforcer's word as it stands now.
struct Row<'a> {
    id: EnforcerId,
    member: &'a Member,
    by_lease: bool,
}

type Enforcers = BTreeMap<EnforcerId, EnforcerState>;

impl<'a> Row<'a> {
    fn new(id: EnforcerId, member: &'a Member, enforcers: &Enforcers, now: Now) -> Self {
        let mut this = Self { id, member, by_lease: false };
        // The lease of one that has said something does not matter, and is not looked for.
        if member.refusing.is_none() {
            let over = || this.lease_until(enforcers).is_none_or(|until| until <= now.boot);
            this.by_lease = member.lapsed || over();
        }
        this
    }

    /// When its lease is over, or was.
    fn lease_until(&self, enforcers: &Enforcers) -> Option<Boottime> {
        let live = enforcers.get(&self.id).and_then(|state| state.lease_until);
        live.or(self.member.lease_until)
    }

    /// Whether it is still waited for.
    fn is_open(&self) -> bool {
        let over = self.by_lease || self.member.is_gone() || self.member.has_settled();
        self.member.expected && !over
    }

    fn open_first(one: &Self, other: &Self) -> std::cmp::Ordering {
        let rank = |row: &Self| (!row.is_open(), !row.member.expected);
        rank(one)
            .cmp(&rank(other))
            .then_with(|| (&one.member.name, one.id).cmp(&(&other.member.name, other.id)))
    }

    fn word(&self, enforcers: &Enforcers, now: Now) -> EnforcerProgress {
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
            lease_until: self.lease_until(enforcers).map(|until| wall(until, now)),
            by_lease: self.by_lease,
            gone: self.member.is_gone(),
        }
    }
}

/// An instant of the boot clock on the wall clock, as the two stand now.
pub(super) fn wall(instant: Boottime, now: Now) -> Timestamp {
    let ahead = i128::from(instant.as_nanos()) - i128::from(now.boot.as_nanos());
    let ahead_us = i64::try_from(ahead / 1_000).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.wall.as_micros().saturating_add(ahead_us))
}
