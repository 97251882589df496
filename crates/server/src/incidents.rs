//! Incidents as the server writes them: opened or joined by every halt, paged, followed until each
//! enforcer has settled.
//!
//! Which incident a halt belongs to is chosen in memory, so that the order can name it before any
//! disk has answered. Everything here happens behind the halt and may fail without touching it.

mod bodies;
mod paging;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use estoppel_connect::Pager;
use estoppel_incident::{
    keys,
    record::{Contained, Joined, Opened, Released, Silent, SilentEnforcer},
};
use estoppel_killswitch::{
    is_drill,
    server::{EnforcerProgress, HaltCount},
};
use estoppel_model::{
    Actor, Clock, IncidentId, NewRecord, Order, OrderBody, OrderId, Scope, ScopeSet, Subject,
    Untrusted,
};
use tokio_util::task::TaskTracker;

use crate::{
    journal::{Journal, JournalError},
    metrics::Metrics,
    switchboard::{Given, Switchboard, Word},
};
use bodies::{confirmed, halted, opened_by};
pub(crate) use paging::{Page, form_to_halt};

/// Most enforcers that are recorded as silent.
const SILENT_MAX: usize = 1_000;
/// Incidents that were opened in memory and are not in the ledger yet.
const OPENING_MAX: usize = 1_024;

/// An incident that was chosen for a halt or a detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Its id.
    pub id: IncidentId,
    /// Nobody has opened it yet.
    pub new: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Incidents(Arc<Inner>);

struct Inner {
    journal: Journal,
    switchboard: Switchboard,
    clock: Arc<dyn Clock>,
    pager: Option<Pager>,
    /// Where people look, for the page's link.
    url: String,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
    opening: Mutex<HashMap<IncidentId, BTreeSet<Scope>>>,
    /// Orders that are not carried out everywhere yet, with their incidents.
    followed: Mutex<HashMap<OrderId, IncidentId>>,
}

impl std::fmt::Debug for Incidents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incidents").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incidents {
    pub(crate) fn new(
        journal: Journal,
        switchboard: Switchboard,
        clock: Arc<dyn Clock>,
        pager: Option<Pager>,
        url: String,
        tasks: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (opening, followed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner {
            journal,
            switchboard,
            clock,
            pager,
            url,
            tasks,
            metrics,
            opening,
            followed,
        }))
    }

    /// Chooses the incident of a halt or a detection: the one that was asked for, else the open one
    /// of the same scope or subject, else a new one. Memory alone is asked.
    pub(crate) fn choose(
        &self,
        scope: Option<&ScopeSet>,
        subject: &Subject,
        wished: Option<IncidentId>,
    ) -> Chosen {
        if let Some(id) = wished {
            let known = self.0.journal.read(|state| state.incidents.incident(id).is_some());
            return Chosen { id, new: !known && !lock(&self.0.opening).contains_key(&id) };
        }
        let keys = keys(scope, subject);
        let mut opening = lock(&self.0.opening);
        let known =
            opening.iter().find(|(_, theirs)| !theirs.is_disjoint(&keys)).map(|(id, _)| *id);
        let known = known.or_else(|| {
            self.0.journal.read(|state| Some(state.incidents.find_open(scope, subject)?.id()))
        });
        if let Some(id) = known {
            return Chosen { id, new: false };
        }
        let id = IncidentId::new();
        if opening.len() < OPENING_MAX {
            opening.insert(id, keys);
        }
        Chosen { id, new: true }
    }

    /// Takes a choice back: nothing came of it.
    pub(crate) fn forget(&self, chosen: Chosen) {
        if chosen.new {
            lock(&self.0.opening).remove(&chosen.id);
        }
    }

    /// Opens the chosen incident, or joins it; waits until the ledger has it.
    pub(crate) async fn open(&self, chosen: Chosen, opened: Opened) -> Result<(), JournalError> {
        let record = self.first_record(&chosen, opened)?;
        self.keep(record).await?;
        self.forget(chosen);
        Ok(())
    }

    /// The record by which the chosen incident is opened, or joined.
    pub(crate) fn first_record(
        &self,
        chosen: &Chosen,
        opened: Opened,
    ) -> Result<NewRecord, JournalError> {
        let now = self.0.clock.now();
        Ok(if chosen.new {
            opened.record(now)?
        } else {
            let Opened { source, scope, subject, by, title, .. } = opened;
            let what = title.inline(100);
            Joined { incident: chosen.id, source, scope, subject, what, by }.record(now)?
        })
    }

    /// What follows from a person's order, to be kept with it.
    pub(crate) fn follows(&self, order: &Order, chosen: &Chosen) -> Vec<NewRecord> {
        self.first_record(chosen, opened_by(order, chosen.id))
            .inspect_err(|error| tracing::error!(order = %order.id, %error, "not kept with it"))
            .into_iter()
            .collect()
    }

    /// Appends a record, and tries again while the ledger is not open yet or has no room.
    async fn keep(&self, record: NewRecord) -> Result<(), JournalError> {
        let mut changes = self.0.journal.changes();
        loop {
            match self.0.journal.commit(record.clone()).await {
                Ok(_) => return Ok(()),
                Err(error @ JournalError::Json(_)) => return Err(error),
                Err(error) => {
                    if self.0.tasks.is_closed() {
                        return Err(error);
                    }
                    tracing::warn!(kind = %record.kind, %error, "a record waits for the ledger");
                }
            }
            // Either the ledger opens, or it is time to try again.
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
        }
    }

    /// An order was given by a person: opens or joins its incident, pages, and follows the order.
    pub(crate) fn halted_by_person(&self, given: &Given, chosen: Chosen) {
        self.ordered(given);
        let order = Arc::clone(&given.order);
        let opened = opened_by(&order, chosen.id);
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let page = Page::ahead(&opened, false).of_halt(order.id);
            let open = this.open(chosen, opened);
            // A ledger that does not answer must not keep people asleep.
            let (opened, ()) = tokio::join!(open, this.deliver_soon(page));
            if let Err(error) = opened {
                tracing::error!(order = %order.id, %error, "a halt's incident could not be written");
            }
        });
    }

    /// One of many orders at a time: joins the incident of those before it, whose page is out.
    pub(crate) fn halted_beside(&self, given: &Given, chosen: Chosen) {
        self.ordered(given);
        let opened = opened_by(&given.order, chosen.id);
        let this = self.clone();
        self.0.tasks.spawn(async move {
            if let Err(error) = this.open(chosen, opened).await {
                tracing::error!(%error, "a halt's incident could not be written");
            }
        });
    }

    /// An order is in force: records it with its incident and follows it.
    pub(crate) fn ordered(&self, given: &Given) {
        let Some(incident) = given.order.incident else { return };
        self.follow(&given.order, incident, given.expected);
    }

    /// Records an order with its incident and follows it.
    fn follow(&self, order: &Order, incident: IncidentId, expected: usize) {
        lock(&self.0.followed).insert(order.id, incident);
        let halted = halted(order, incident, expected);
        let this = self.clone();
        self.0.tasks.spawn(async move {
            this.opened(incident).await;
            if let Ok(record) = halted.record(this.0.clock.now())
                && let Err(error) = this.keep(record).await
            {
                tracing::error!(order = %halted.order, %error, "a halt could not be written");
            }
            this.look(halted.order, incident).await;
        });
    }

    /// An order of before this process's start that no incident knows: its incident learns of it.
    /// Who had to carry it out then is not known any more.
    pub(crate) async fn take_up(&self, order: &Order) -> Result<(), JournalError> {
        let Some(incident) = order.incident else { return Ok(()) };
        let record = halted(order, incident, 0).record(self.0.clock.now())?;
        self.0.journal.commit(record).await.map(drop)
    }

    /// A halt that an enforcer handed back, such as one given on its host: opens or joins an
    /// incident and pages, as every activation does.
    pub(crate) fn handed_back(&self, order: &Arc<Order>) {
        if !matches!(order.body, OrderBody::Halt { .. }) || is_drill(order) {
            return;
        }
        let chosen = self.choose(Some(&order.scope), &Subject::default(), order.incident);
        let (order, incident) = (Arc::clone(order), chosen.id);
        let opened = opened_by(&order, incident);
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let count = this.0.switchboard.count(order.id).await.ok().flatten();
            let expected = count.map_or(0, |count| count.expected);
            this.follow(&order, incident, expected);
            let page = Page::ahead(&opened, false).of_halt(order.id);
            let (opened, ()) = tokio::join!(this.open(chosen, opened), this.deliver_soon(page));
            if let Err(error) = opened {
                tracing::error!(%error, "a halt that was handed back could not be written");
            }
        });
    }

    /// Orders were released: their incidents learn it.
    pub(crate) async fn released(
        &self,
        orders: &[Arc<Order>],
        reason: &str,
        by: &Actor,
    ) -> Result<(), JournalError> {
        let mut of: HashMap<IncidentId, Vec<OrderId>> = HashMap::new();
        for order in orders {
            if let Some(incident) = order.incident {
                of.entry(incident).or_default().push(order.id);
            }
        }
        for (incident, orders) in of {
            let reason = Untrusted::new(reason.to_owned());
            let released = Released { incident, orders, reason, by: by.clone() };
            self.0.journal.append(released.record(self.0.clock.now())?).await?;
        }
        Ok(())
    }

    /// Resolves when the ledger has the incident, or it is clear that it will not soon.
    async fn opened(&self, incident: IncidentId) {
        let mut changes = self.0.journal.changes();
        let there = || self.0.journal.read(|state| state.incidents.incident(incident).is_some());
        let wait = async {
            while !there() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // A record about an incident that is not there yet would be folded into nothing.
        if tokio::time::timeout(Duration::from_secs(60), wait).await.is_err() {
            tracing::error!(%incident, "an incident is still not in the ledger");
        }
    }

    /// An enforcer's word came.
    pub(crate) async fn confirmed(&self, word: Word) {
        let order = word.confirmation.order;
        let followed = lock(&self.0.followed).get(&order).copied();
        // A word may come before whoever gave the order has said whose it is.
        let Some(incident) = followed.or(word.incident) else { return };
        self.opened(incident).await;
        let count = word.count;
        if word.is_recorded {
            self.write(confirmed(incident, word).record(self.0.clock.now())).await;
        }
        self.contained(order, incident, &count).await;
    }

    /// Leases ended: what waited for those enforcers may be complete.
    pub(crate) async fn leases_over(&self) {
        let followed: Vec<_> =
            lock(&self.0.followed).iter().map(|(order, incident)| (*order, *incident)).collect();
        for (order, incident) in followed {
            self.look(order, incident).await;
        }
    }

    async fn look(&self, order: OrderId, incident: IncidentId) {
        if let Ok(Some(count)) = self.0.switchboard.count(order).await {
            self.contained(order, incident, &count).await;
        }
    }

    async fn contained(&self, order: OrderId, incident: IncidentId, count: &HaltCount) {
        if !count.is_complete() || lock(&self.0.followed).remove(&order).is_none() {
            return;
        }
        let contained = Contained {
            incident,
            order,
            enforcers: count.expected as u64,
            settled: count.settled as u64,
            by_lease: count.by_lease as u64,
            gone: count.gone as u64,
        };
        if count.by_lease + count.gone > 0 {
            self.silent(order, incident).await;
        }
        self.write(contained.record(self.0.clock.now())).await;
    }

    /// Writes what an order came to. A failure is logged: the stop does not depend on it.
    async fn write(&self, record: Result<NewRecord, serde_json::Error>) {
        match record {
            Ok(record) => {
                if let Err(error) = self.keep(record).await {
                    tracing::error!(%error, "what an order came to could not be written");
                }
            }
            Err(error) => tracing::error!(%error, "what an order came to cannot be written"),
        }
    }

    /// Records who did not answer, or was gone before it settled, and when their leases were over.
    async fn silent(&self, order: OrderId, incident: IncidentId) {
        let Ok(Some((progress, _))) = self.0.switchboard.progress(order).await else { return };
        let is_silent = |word: &&EnforcerProgress| word.expected && (word.by_lease || word.gone);
        let silent = progress.enforcers.iter().filter(is_silent);
        let enforcers = silent
            .take(SILENT_MAX)
            .map(|word| SilentEnforcer {
                enforcer: word.enforcer,
                kind: format!("{:?}", word.kind).to_lowercase(),
                name: Untrusted::new(word.name.to_string()),
                lease_until: word.lease_until,
            })
            .collect();
        let silent = Silent { incident, order, enforcers };
        self.write(silent.record(self.0.clock.now())).await;
    }
}
