//! The kill switch at work: one thread that owns the order set and every enforcer's queue.
//!
//! Nothing here waits for a disk, a database or an enforcer. Orders come before frames; a broadcast
//! is handed to the queues before the order is handed to the spool; an enforcer whose queue is full
//! is let go and catches up when it comes back, under the lease.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use estoppel_api::Durable;
use estoppel_killswitch::{
    Now, Signer as _,
    frame::{Action, Confirmation, EnforcerKind, Outcome, ToEnforcer, ToServer},
    invariant::{ServerWatch, Tally, Violation},
    server::{
        ConnectionId, Effect, HaltCount, HaltProgress, Identity, Input, SubmitError, Submitted,
        Switch, SwitchConfig,
    },
};
use estoppel_model::{Clock, EnforcerId, IncidentId, NewRecord, Order, OrderId, SignedOrder};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    StartError, break_glass::Told, metrics::Metrics, order::Notary, spool::Spool, watched::Watched,
};

/// Orders and questions that wait for the thread.
const ORDERS_WAITING_MAX: usize = 4_096;
/// Frames of enforcers that wait for the thread; more make their connections wait.
const FRAMES_WAITING_MAX: usize = 16_384;
/// Frames that wait for one enforcer.
const OUTGOING_MAX: usize = 4_096;
/// What the rest of the server is to be told and has not yet taken.
const NEWS_WAITING_MAX: usize = 65_536;
/// Most enforcers of an order of which the words of guards are recorded one by one.
const WORDS_RECORDED_MAX: usize = 200;
/// Orders that whoever follows them has not read yet; who lags reads all anew.
const FOLLOWED_MAX: usize = 4_096;
const TICK: Duration = Duration::from_millis(250);

/// What the rest of the server learns.
#[derive(Debug)]
pub(crate) enum News {
    /// An order is in force and on its way to the disk.
    Accepted(Accepted),
    /// An enforcer's word on an order.
    Confirmed(Box<Word>),
    /// Leases ended, perhaps of a server before this one: what waited for them may be complete.
    LeasesOver,
    /// An enforcer said hello, with the last checkpoint that it saw.
    Joined { enforcer: EnforcerId, checkpoint: String },
    /// A halt came from an enforcer.
    HandedBack { order: Arc<Order> },
    /// An enforcer's agents went on without a server.
    BreakGlass(Box<Told>),
}

/// What an enforcer said of an order.
#[derive(Debug)]
pub(crate) struct Word {
    pub enforcer: EnforcerId,
    pub kind: EnforcerKind,
    pub name: Arc<str>,
    pub confirmation: Confirmation,
    /// The order's incident, where the order names one.
    pub incident: Option<IncidentId>,
    /// How far the order has been carried out with it.
    pub count: HaltCount,
    /// Whether it becomes a record of its own.
    pub is_recorded: bool,
}

/// An order on its way to the disk.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub id: OrderId,
    pub signed: SignedOrder,
    pub kept: oneshot::Receiver<Result<(), crate::spool::SpoolError>>,
    pub durable: watch::Sender<Durable>,
}

/// An order that was given.
#[derive(Debug)]
pub(crate) struct Given {
    pub order: Arc<Order>,
    /// Enforcers that must confirm.
    pub expected: usize,
    /// The same order had been given before.
    pub repeated: bool,
    /// Follows how safely it is kept.
    pub durable: watch::Receiver<Durable>,
}

/// What is left of the servers before this one.
#[derive(Debug)]
pub(crate) struct Before {
    /// The orders of the spool.
    pub orders: Vec<SignedOrder>,
    /// The longest lease that they may have given; `None` where there were none.
    pub lease: Option<Duration>,
}

/// The switchboard's thread has ended, which happens only when the server does.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the server is ending")]
pub(crate) struct Ended;

type Job = Box<dyn FnOnce(&mut Desk) + Send>;

/// A handle to the thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Switchboard {
    jobs: mpsc::Sender<Job>,
    frames: mpsc::Sender<Input>,
    next_connection: Arc<AtomicU64>,
    watched: Watched,
    tally: Arc<Tally>,
    orders: broadcast::Sender<Arc<Order>>,
}

impl std::fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switchboard").finish_non_exhaustive()
    }
}

/// What the thread owns.
struct Desk {
    switch: Switch,
    watch: ServerWatch,
    notary: Notary,
    clock: Arc<dyn Clock>,
    spool: Spool,
    queues: HashMap<ConnectionId, mpsc::Sender<Message>>,
    durable: HashMap<OrderId, watch::Receiver<Durable>>,
    waiting: HashMap<Uuid, oneshot::Sender<Outcome>>,
    news: mpsc::Sender<News>,
    orders: broadcast::Sender<Arc<Order>>,
    watched: Watched,
    metrics: Arc<Metrics>,
}

impl Switchboard {
    /// Starts the thread with what is left of the servers before this one.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        config: SwitchConfig,
        notary: Notary,
        clock: Arc<dyn Clock>,
        spool: Spool,
        before: Before,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<News>), StartError> {
        let (jobs, mut jobs_in) = mpsc::channel::<Job>(ORDERS_WAITING_MAX);
        let (frames, mut frames_in) = mpsc::channel(FRAMES_WAITING_MAX);
        let (news, news_out) = mpsc::channel(NEWS_WAITING_MAX);
        let (orders, _) = broadcast::channel(FOLLOWED_MAX);
        // A spool that could not be synced says nothing of what the disk has.
        let level = if spool.is_failing() { Durable::No } else { Durable::Node };
        let durable: HashMap<_, _> = before
            .orders
            .iter()
            .filter_map(|signed| Some((signed.parse().ok()?.id, watch::channel(level).1)))
            .collect();
        let (mut switch, wrong) = Switch::new(config, Box::new(notary.clone()), before.orders);
        // The spool may be lost, an old copy, or may have been full: only the ledger knows.
        switch.hold_leases();
        if let Some(lease) = before.lease {
            switch.expect_unknown(clock.boottime() + lease);
        }
        if wrong > 0 {
            tracing::error!(wrong, "orders of the spool contradict one another or cannot be read");
        }
        let watched = Watched::default();
        watched.publish(switch.verdicts());
        let watch = ServerWatch::default();
        let tally = Arc::clone(watch.tally());
        let mut desk = Desk {
            switch,
            watch,
            notary,
            clock,
            spool,
            queues: HashMap::new(),
            durable,
            waiting: HashMap::new(),
            news,
            orders: orders.clone(),
            watched: watched.clone(),
            metrics,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(StartError::Runtime)?;
        let work = async move {
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    biased;
                    job = jobs_in.recv() => match job {
                        Some(job) => job(&mut desk),
                        None => return,
                    },
                    _ = tick.tick() => desk.step(Input::Tick),
                    frame = frames_in.recv() => match frame {
                        Some(frame) => desk.step(frame),
                        None => return,
                    },
                    () = stop.cancelled() => return,
                }
            }
        };
        std::thread::Builder::new()
            .name("switchboard".to_owned())
            .spawn(move || runtime.block_on(work))
            .map_err(StartError::Runtime)?;
        let next_connection = Arc::new(AtomicU64::new(0));
        Ok((Self { jobs, frames, next_connection, watched, tally, orders }, news_out))
    }

    /// Counts which invariants were checked, without asking the thread.
    pub(crate) const fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Tells of every order that comes into force from now on, and of every release. Who does not
    /// keep up learns that it missed some, and holds up nothing.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<Order>> {
        self.orders.subscribe()
    }

    /// Gives an order that is not a release; in force and on its way when this resolves.
    pub(crate) async fn give(&self, order: Order) -> Result<Result<Given, SubmitError>, Ended> {
        self.give_with(order, Vec::new()).await
    }

    /// As [`Switchboard::give`]; the records that follow from the order are kept with it in the
    /// spool, so that a process that ends before the ledger has them loses none.
    pub(crate) async fn give_with(
        &self,
        order: Order,
        follows: Vec<NewRecord>,
    ) -> Result<Result<Given, SubmitError>, Ended> {
        self.call(move |desk| desk.give(order, follows)).await
    }

    /// Puts orders in force that the ledger has.
    pub(crate) async fn give_recorded(
        &self,
        signed: SignedOrder,
    ) -> Result<Result<(), SubmitError>, Ended> {
        self.call(move |desk| desk.give_recorded(signed)).await
    }

    /// Signs an order's text with the node's key.
    pub(crate) async fn sign(&self, text: String) -> Result<SignedOrder, Ended> {
        self.call(move |desk| desk.notary.sign(text)).await
    }

    /// Asks the switch something.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Switch, Now) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        self.call(move |desk| question(&desk.switch, desk.now())).await
    }

    /// Who has confirmed an order.
    pub(crate) async fn progress(
        &self,
        order: OrderId,
    ) -> Result<Option<(HaltProgress, Durable)>, Ended> {
        let progress = self
            .call(move |desk| {
                let progress = desk.switch.progress(order, desk.now())?;
                report(desk.watch.progress(&progress));
                Some((progress, desk.durability(order)))
            })
            .await?;
        Ok(progress.map(|(progress, durable)| (progress.sorted(), durable)))
    }

    /// How far an order has been carried out, in numbers.
    pub(crate) async fn count(&self, order: OrderId) -> Result<Option<HaltCount>, Ended> {
        self.call(move |desk| desk.switch.count(order)).await
    }

    /// How safely an order is kept.
    pub(crate) async fn durability(&self, order: OrderId) -> Result<Durable, Ended> {
        self.call(move |desk| desk.durability(order)).await
    }

    /// Sends an action to an enforcer; the receiver learns its outcome. `None` when it is not
    /// connected.
    pub(crate) async fn act(
        &self,
        enforcer: EnforcerId,
        action: Action,
    ) -> Result<Option<oneshot::Receiver<Outcome>>, Ended> {
        self.call(move |desk| {
            let (done, outcome) = oneshot::channel();
            let id = action.id;
            // Those who waited and gave up need no answer any more.
            desk.waiting.retain(|_, waiting| !waiting.is_closed());
            let effect = desk.switch.act(enforcer, action)?;
            desk.waiting.insert(id, done);
            desk.carry_out(vec![effect]);
            Some(outcome)
        })
        .await
    }

    /// Gives leases from now on: what the ledger has is in force here.
    pub(crate) async fn grant_leases(&self) -> Result<(), Ended> {
        self.call(|desk| {
            let effects = desk.switch.grant_leases(desk.now());
            desk.carry_out(effects);
        })
        .await
    }

    /// The ledger's newest checkpoint, which enforcers get at hello.
    pub(crate) async fn set_checkpoint(&self, note: String) -> Result<(), Ended> {
        self.call(move |desk| desk.switch.set_checkpoint(note)).await
    }

    /// Whom people are to call, which enforcers get at hello.
    pub(crate) async fn set_contact(&self, contact: Option<String>) -> Result<(), Ended> {
        self.call(move |desk| desk.switch.set_contact(contact)).await
    }

    /// Who is watched closely.
    pub(crate) fn watched(&self) -> Watched {
        self.watched.clone()
    }

    /// Takes a connection in; what is to be sent to it comes out of the receiver, and its end means
    /// that it is to be closed.
    pub(crate) async fn connect(
        &self,
        identity: Identity,
    ) -> Result<(ConnectionId, mpsc::Receiver<Message>), Ended> {
        let connection = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
        let (queue, outgoing) = mpsc::channel(OUTGOING_MAX);
        self.call(move |desk| {
            desk.queues.insert(connection, queue);
            desk.step(Input::Connected { connection, identity: Box::new(identity) });
        })
        .await?;
        Ok((connection, outgoing))
    }

    /// Hands a frame of an enforcer in; waits while too many do.
    pub(crate) async fn frame(
        &self,
        connection: ConnectionId,
        frame: ToServer,
    ) -> Result<(), Ended> {
        self.frames.send(Input::Frame { connection, frame }).await.map_err(|_| Ended)
    }

    /// A connection is gone.
    pub(crate) async fn disconnect(&self, connection: ConnectionId) {
        let gone = move |desk: &mut Desk| {
            desk.queues.remove(&connection);
            desk.step(Input::Disconnected { connection });
        };
        // The thread that has ended knows no connections.
        let _ = self.call(gone).await;
    }

    async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |desk| {
            // Whoever asked may be gone; what was asked for is done all the same.
            let _ = answer.send(job(desk));
        });
        self.jobs.send(job).await.map_err(|_| Ended)?;
        answered.await.map_err(|_| Ended)
    }
}

impl Desk {
    fn now(&self) -> Now {
        Now { wall: self.clock.now(), boot: self.clock.boottime() }
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        let effects = self.switch.step(input, now);
        let violations = self.watch.stepped(&self.switch, &effects);
        self.carry_out(effects);
        report(violations);
    }

    fn give(&mut self, order: Order, follows: Vec<NewRecord>) -> Result<Given, SubmitError> {
        let id = order.id;
        if let Some(order) =
            self.switch.orders().order(id).cloned().filter(|known| same(known, &order))
        {
            let durable =
                self.durable.get(&id).cloned().unwrap_or_else(|| watch::channel(Durable::Node).1);
            return Ok(Given { order, expected: 0, repeated: true, durable });
        }
        let text = serde_json::to_string(&order).map_err(estoppel_model::OrderError::from)?;
        let signed = self.notary.sign(text);
        let in_force = self.switch.verdicts().in_force();
        let (submitted, effects) = self.switch.submit(signed, self.now())?;
        let violations = self.watch.submitted(&self.switch, in_force, &submitted, &effects);
        self.carry_out_with(effects, follows);
        self.watched.publish(self.switch.verdicts());
        report(violations);
        let (order, expected, repeated) = match submitted {
            Submitted::New { order, expected, .. } => (order, expected, false),
            Submitted::Known(order) => (order, 0, true),
        };
        let durable =
            self.durable.get(&id).cloned().unwrap_or_else(|| watch::channel(Durable::No).1);
        Ok(Given { order, expected, repeated, durable })
    }

    fn give_recorded(&mut self, signed: SignedOrder) -> Result<(), SubmitError> {
        let in_force = self.switch.verdicts().in_force();
        let (submitted, effects) = self.switch.submit_recorded(signed.clone(), self.now())?;
        let violations = self.watch.submitted(&self.switch, in_force, &submitted, &effects);
        self.carry_out(effects);
        self.watched.publish(self.switch.verdicts());
        report(violations);
        if matches!(submitted, Submitted::New { .. }) {
            self.persist(signed, Vec::new());
        }
        Ok(())
    }

    fn durability(&self, order: OrderId) -> Durable {
        self.durable.get(&order).map_or(Durable::No, |durable| *durable.borrow())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        self.carry_out_with(effects, Vec::new());
    }

    /// `follows` belongs to the one order that is among the effects.
    fn carry_out_with(&mut self, effects: Vec<Effect>, mut follows: Vec<NewRecord>) {
        let mut leases_over = false;
        for effect in effects {
            match effect {
                Effect::Broadcast { connections, frame } => {
                    if let Some(message) = message(&frame) {
                        for connection in connections {
                            self.send(connection, message.clone());
                        }
                    }
                }
                Effect::Send { connection, frame } => {
                    if let Some(message) = message(&frame) {
                        self.send(connection, message);
                    }
                }
                Effect::Persist(signed) => self.persist(signed, std::mem::take(&mut follows)),
                Effect::Close { connection, reason } => {
                    tracing::info!(connection = connection.0, reason, "a stream is ended");
                    self.queues.remove(&connection);
                }
                Effect::Joined { enforcer, checkpoint } => {
                    if let Some(checkpoint) = checkpoint {
                        self.tell(News::Joined { enforcer, checkpoint });
                    }
                }
                Effect::LeaseOver { .. } | Effect::AllKnown => leases_over = true,
                Effect::Confirmed { enforcer, confirmation, first, count } => {
                    let (order, stage) = (confirmation.order, confirmation.stage);
                    self.metrics.confirmed(order, stage, first, Instant::now());
                    self.confirmed(enforcer, *confirmation, count);
                }
                Effect::Outcome { outcome, .. } => {
                    if let Some(waiting) = self.waiting.remove(&outcome.action) {
                        // The run that waited may have been given up.
                        let _ = waiting.send(*outcome);
                    }
                }
                Effect::HandedBack { enforcer, order } => {
                    tracing::warn!(%enforcer, order = %order.id, "an enforcer handed back an order that was missing here");
                    self.watched.publish(self.switch.verdicts());
                    self.tell(News::HandedBack { order });
                }
                Effect::BreakGlassUsed { enforcer, glass, usage } => {
                    let Some(state) = self.switch.enforcer(enforcer) else { continue };
                    let (actor, kind) = (state.actor.clone(), state.kind);
                    let (name, glass, usage) = (state.name.clone(), *glass, *usage);
                    let told = Told { glass, usage, actor, kind, name };
                    self.tell(News::BreakGlass(Box::new(told)));
                }
                Effect::Rejected { connection, reason } => {
                    tracing::warn!(
                        connection = connection.0,
                        reason,
                        "what an enforcer sent was not taken"
                    );
                }
            }
        }
        if leases_over {
            self.tell(News::LeasesOver);
        }
    }

    fn confirmed(&self, enforcer: EnforcerId, confirmation: Confirmation, count: HaltCount) {
        let Some(state) = self.switch.enforcer(enforcer) else { return };
        // Of thousands of guards the numbers say enough; who witnesses is always named.
        let is_recorded =
            count.expected <= WORDS_RECORDED_MAX || !matches!(state.kind, EnforcerKind::Guard);
        if !is_recorded && !count.is_complete() {
            return;
        }
        let (kind, name) = (state.kind, state.name.clone());
        let order = self.switch.orders().order(confirmation.order);
        let incident = order.and_then(|order| order.incident);
        self.tell(News::Confirmed(Box::new(Word {
            enforcer,
            kind,
            name,
            confirmation,
            incident,
            count,
            is_recorded,
        })));
    }

    fn send(&mut self, connection: ConnectionId, message: Message) {
        let Some(queue) = self.queues.get(&connection) else { return };
        if queue.try_send(message).is_err() {
            // A frame left out would break the lease's promise: it must come back and reconcile.
            tracing::warn!(connection = connection.0, "an enforcer does not keep up and is let go");
            self.queues.remove(&connection);
        }
    }

    fn persist(&mut self, signed: SignedOrder, follows: Vec<NewRecord>) {
        // What is in force was parsed before.
        let Ok(order) = signed.parse() else { return };
        let (durable, follow) = watch::channel(Durable::No);
        self.durable.insert(order.id, follow);
        let kept = self.spool.keep(order.id, signed.clone(), follows);
        self.metrics.accepted(order.id, Instant::now());
        self.tell(News::Accepted(Accepted { id: order.id, signed, kept, durable }));
        // Nobody may follow.
        let _ = self.orders.send(Arc::new(order));
    }

    fn tell(&self, news: News) {
        // Who ends takes no news any more.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.news.try_send(news) {
            tracing::error!("the server does not keep up with its enforcers; a record is missing");
        }
    }
}

/// Whether two orders say the same but for the moment of their signing: a client's retry.
fn same(one: &Order, other: &Order) -> bool {
    Order { issued_at: other.issued_at, incident: other.incident, ..one.clone() } == *other
}

/// A broken invariant is our own mistake: it is told, and changes nothing.
fn report(violations: Vec<Violation>) {
    for violation in violations {
        tracing::error!(%violation, "please report this: it is a mistake of Estoppel");
    }
}

fn message(frame: &ToEnforcer) -> Option<Message> {
    // Frames are plain data, which always serialises.
    serde_json::to_string(frame).ok().map(|text| Message::Text(Utf8Bytes::from(text)))
}
