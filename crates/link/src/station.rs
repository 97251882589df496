//! The enforcer's state behind its lock, and the carrying out of its effects.
//!
//! Verdicts are published in the same moment in which an order is taken; nothing else (a slow
//! consumer of events, a slow disk, a stuck connection) is waited for before that. What must wait
//! is queued here for the tasks of `tasks.rs`: frames, events, things to keep.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use estoppel_killswitch::{
    Now,
    break_glass::{FILE_NAME, SignedBreakGlass},
    canary_of,
    enforcer::{Effect, Enforcer, Input, Keep, Outbox},
    frame::{Action, ActionResult, Outcome, Settlement, ToServer},
    invariant::{EnforcerWatch, Tally},
};
use estoppel_model::{Boottime, Clock, EnforcerId, Order, OrderId};
use tokio::sync::{Notify, watch};
use url::Url;

use crate::{
    LinkError, LinkEvent, LocalHalt, OnLost, View, WorkInFlight, cache::Cache, keys::Keys,
    view::Published,
};

/// Most actions that wait for the consumer; of more, each fails at once and says so.
const ACTIONS_MAX: usize = 256;
/// Most frames that wait for the connection; with more it is given up.
const FRAMES_MAX: usize = 100_000;

/// What the handles and the tasks of a link share.
pub(crate) struct Station {
    pub(crate) id: EnforcerId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) keys: Keys,
    owner: Owner,
    published: Arc<ArcSwap<Published>>,
    tally: Arc<Tally>,
    state: Mutex<State>,
    cache: Mutex<Option<Cache>>,
    pub(crate) ready: watch::Sender<bool>,
    /// Frames wait.
    pub(crate) frames: Notify,
    /// Events wait.
    pub(crate) events: Notify,
    /// Things to keep wait.
    pub(crate) keeps: Notify,
    /// The connection is to end.
    pub(crate) hang_up: Notify,
    /// The next tick may be due earlier than it was.
    pub(crate) ticks: Notify,
    /// The lease is over.
    pub(crate) lost: Notify,
}

struct State {
    enforcer: Enforcer,
    watch: EnforcerWatch,
    doubted: bool,
    frames: VecDeque<ToServer>,
    events: VecDeque<LinkEvent>,
    actions: usize,
    /// Nobody receives events any more.
    deaf: bool,
    keeps: Vec<Keep>,
    /// The kept file is damaged and can be written anew.
    rewrite: bool,
    connected_to: Option<Url>,
    /// What is wrong with the connection, or with what was kept.
    problem: Option<String>,
    /// What is wrong with the keeping; no connection mends it.
    disk_problem: Option<String>,
    /// Agents go on by a break-glass, or why they do not.
    glass: Option<Result<(), String>>,
}

/// Why a file is not looked at.
const DOUBTED: &str = "what was kept here is damaged, and a halt may be missing";

impl State {
    /// What a person can mend comes first.
    fn problem(&self) -> Option<String> {
        let glass = self.glass.as_ref().and_then(|glass| glass.as_ref().err());
        glass.or(self.problem.as_ref()).or(self.disk_problem.as_ref()).cloned()
    }
}

/// What the enforcer that owns a station chose.
pub(crate) struct Owner {
    pub(crate) on_lost: OnLost,
    pub(crate) in_flight: Option<Arc<dyn WorkInFlight>>,
}

/// How a station stands.
pub(crate) struct Standing {
    pub(crate) connected_to: Option<Url>,
    pub(crate) lease_until: Option<Boottime>,
    pub(crate) orders_in_force: usize,
    pub(crate) problem: Option<String>,
    pub(crate) goes_on_until: Option<Boottime>,
}

impl Station {
    pub(crate) fn new(
        enforcer: Enforcer,
        owner: Owner,
        clock: Arc<dyn Clock>,
        keys: Keys,
        cache: Option<Cache>,
        damage: Option<String>,
    ) -> Self {
        let doubted = damage.is_some();
        let published = Published {
            verdicts: enforcer.verdicts().clone(),
            lease_until: None,
            goes_on_until: None,
            doubted,
            contact: enforcer.contact().map(Arc::from),
        };
        let tally = Arc::new(Tally::default());
        let id = enforcer.id();
        let state = State {
            enforcer,
            watch: EnforcerWatch::new(Arc::clone(&tally)),
            doubted,
            frames: VecDeque::new(),
            events: VecDeque::new(),
            actions: 0,
            deaf: false,
            keeps: Vec::new(),
            rewrite: false,
            connected_to: None,
            problem: damage,
            disk_problem: None,
            glass: None,
        };
        Self {
            id,
            clock,
            keys,
            owner,
            published: Arc::new(ArcSwap::from_pointee(published)),
            tally,
            state: Mutex::new(state),
            cache: Mutex::new(cache),
            ready: watch::Sender::new(false),
            frames: Notify::new(),
            events: Notify::new(),
            keeps: Notify::new(),
            hang_up: Notify::new(),
            ticks: Notify::new(),
            lost: Notify::new(),
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            published: Arc::clone(&self.published),
            clock: Arc::clone(&self.clock),
            on_lost: self.owner.on_lost,
        }
    }

    /// Takes what happened. What it means for checks holds when this returns.
    pub(crate) fn step(&self, input: Input) {
        self.step_locked(&mut self.lock(), input);
    }

    /// Puts a halt in force that is given on this host.
    pub(crate) fn halt_locally(&self, mut order: Order) -> Result<LocalHalt, LinkError> {
        let id = order.id;
        {
            let mut state = self.lock();
            if order.tenant.is_none() {
                order.tenant = state.enforcer.tenant().cloned();
            }
            let text = serde_json::to_string(&order).map_err(LinkError::LocalText)?;
            self.step_locked(&mut state, Input::Local(self.keys.sign(text)));
            if !state.enforcer.orders().is_in_force(id) {
                return Err(LinkError::LocalNotTaken { id });
            }
        }
        let durable = self.keep();
        Ok(LocalHalt { order: id, durable })
    }

    /// Writes what waits to be kept; whether all of it is on the disk. Blocks.
    pub(crate) fn keep(&self) -> bool {
        // The file is locked first, so that what was taken out of the queue earlier is written
        // earlier.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (keeps, replacement) = {
            let mut state = self.lock();
            let rewrite = std::mem::take(&mut state.rewrite);
            (std::mem::take(&mut state.keeps), rewrite.then(|| state.enforcer.kept()))
        };
        let Some(cache) = cache.as_mut() else { return false };
        let written = match replacement {
            Some(kept) => cache.replace(kept),
            // What was taken out of the queue by another may have failed.
            None if keeps.is_empty() => return cache.is_well(),
            None => cache.append(&keeps),
        };
        if let Err(error) = &written {
            tracing::error!(%error, "orders are in force but cannot be kept over a restart");
            let problem = format!("orders cannot be kept over a restart: {error}");
            self.lock().disk_problem = Some(problem);
        }
        written.is_ok()
    }

    /// Whether it is time to look for a break-glass file, or there was one.
    pub(crate) fn looks_for_break_glass(&self) -> bool {
        let state = self.lock();
        state.enforcer.looks_for_break_glass(self.clock.boottime()) || state.glass.is_some()
    }

    /// Takes what was found in the place of a break-glass file. Blocks for an fsync where agents go
    /// on by it: what is not written is not used.
    pub(crate) fn found_break_glass(&self, found: Result<Option<SignedBreakGlass>, String>) {
        let kept = {
            let mut state = self.lock();
            let now = self.clock.boottime();
            let file = match found {
                // A server answers: what lies there is of no use.
                _ if !state.enforcer.looks_for_break_glass(now) => {
                    state.glass = None;
                    None
                }
                Ok(None) => {
                    state.glass = None;
                    None
                }
                Ok(Some(_)) if state.doubted => {
                    Self::glass_refused(&mut state, DOUBTED.to_owned());
                    None
                }
                Ok(Some(file)) => Some(Box::new(file)),
                Err(reason) => {
                    Self::glass_refused(&mut state, reason);
                    None
                }
            };
            let before = state.keeps.len();
            self.step_locked(&mut state, Input::BreakGlass(file));
            state.keeps[before..].iter().find_map(|keep| match keep {
                Keep::BreakGlass(usage) => Some(usage.clone()),
                _ => None,
            })
        };
        let Some(usage) = kept else { return };
        if self.keep() {
            let mut state = self.lock();
            self.step_locked(&mut state, Input::BreakGlassKept(usage));
            Self::glass_taken(&mut state);
        } else {
            Self::glass_refused(&mut self.lock(), "its use cannot be written".to_owned());
        }
    }

    fn glass_taken(state: &mut State) {
        if state.glass != Some(Ok(())) {
            tracing::warn!("no server answers; agents go on by {FILE_NAME}");
            state.glass = Some(Ok(()));
        }
    }

    fn glass_refused(state: &mut State, reason: String) {
        let reason = format!("{FILE_NAME} lets nobody go on: {reason}");
        if state.glass.as_ref().and_then(|glass| glass.as_ref().err()) != Some(&reason) {
            tracing::error!("{reason}");
            state.glass = Some(Err(reason));
        }
    }

    /// The connection stands.
    pub(crate) fn connected(&self, server: &Url) {
        let mut state = self.lock();
        state.frames.clear();
        state.connected_to = Some(server.clone());
        self.step_locked(&mut state, Input::Connected);
    }

    /// The connection is gone, or could not be made. Returns whether orders were in step on it.
    pub(crate) fn disconnected(&self, problem: String) -> bool {
        let mut state = self.lock();
        let was_in_sync = state.enforcer.is_in_sync();
        state.frames.clear();
        state.connected_to = None;
        state.problem = Some(problem);
        self.step_locked(&mut state, Input::Disconnected);
        was_in_sync
    }

    pub(crate) fn next_frame(&self) -> Option<ToServer> {
        self.lock().frames.pop_front()
    }

    pub(crate) fn next_event(&self) -> Option<LinkEvent> {
        let mut state = self.lock();
        let event = state.events.pop_front();
        if matches!(event, Some(LinkEvent::Action(_))) {
            state.actions -= 1;
        }
        event
    }

    /// Nobody receives events any more: they need not be queued.
    pub(crate) fn nobody_listens(&self) {
        let mut state = self.lock();
        state.deaf = true;
        state.events.clear();
        state.actions = 0;
    }

    pub(crate) fn next_tick(&self) -> Boottime {
        self.lock().enforcer.next_tick()
    }

    pub(crate) const fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// An order's work in flight has ended.
    pub(crate) fn settled(&self, order: OrderId, settlement: Settlement) {
        let mut state = self.lock();
        let known = state.enforcer.orders().order(order).cloned();
        let settlement = known.map_or(settlement.clone(), |it| self.of_canary(&it, settlement));
        self.step_locked(&mut state, Input::Settled { order, settlement });
    }

    /// Adds whether this enforcer's own check refuses a drill's canary, if the order is one.
    fn of_canary(&self, order: &Order, mut settlement: Settlement) -> Settlement {
        if let Some(canary) = canary_of(order) {
            let view = self.view();
            let refused = view.halted_by(order, &canary) && view.check(&canary).is_err();
            settlement.canary_refused = Some(refused);
        }
        settlement
    }

    pub(crate) fn standing(&self) -> Standing {
        let state = self.lock();
        let in_sync = state.enforcer.is_in_sync();
        Standing {
            connected_to: state.connected_to.clone().filter(|_| in_sync),
            lease_until: state.enforcer.lease_until(),
            orders_in_force: state.enforcer.verdicts().in_force(),
            problem: state.problem(),
            goes_on_until: state.enforcer.goes_on_until(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step_locked(&self, state: &mut State, input: Input) {
        let (mut inputs, mut outbox) = (VecDeque::from([input]), Outbox::default());
        while let Some(input) = inputs.pop_front() {
            let now = Now { wall: self.clock.now(), boot: self.clock.boottime() };
            let (effects, violations) = state.watch.step(&mut state.enforcer, input, now);
            for effect in effects {
                inputs.extend(self.carry_out(state, &mut outbox, effect));
            }
            for violation in violations {
                tracing::error!(%violation, "please report this: it is a mistake of Estoppel");
            }
        }
        self.send(state, outbox);
        self.ticks.notify_one();
    }

    fn send(&self, state: &mut State, mut outbox: Outbox) {
        while let Some(frame) = outbox.pop() {
            if state.frames.len() == FRAMES_MAX {
                state.problem = Some("the server takes no frames".to_owned());
                self.hang_up.notify_one();
                return;
            }
            state.frames.push_back(frame);
            self.frames.notify_one();
        }
    }

    /// Carries out an effect, which may lead to another input.
    fn carry_out(&self, state: &mut State, outbox: &mut Outbox, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Publish => self.publish(state),
            Effect::Send(frame) => outbox.push(frame),
            Effect::Ordered(order) => match &self.owner.in_flight {
                Some(in_flight) => {
                    let settlement = self.of_canary(&order, in_flight.stop(&order)?);
                    return Some(Input::Settled { order: order.id, settlement });
                }
                None => self.tell(state, LinkEvent::Ordered(order)),
            },
            Effect::Released { orders } => {
                if let Some(in_flight) = &self.owner.in_flight {
                    in_flight.released(&orders);
                }
                self.tell(state, LinkEvent::Released { orders });
            }
            Effect::Act(action) => return self.act(state, action),
            Effect::GoesOn => self.lost.notify_one(),
            Effect::BreakGlassRefused(error) => Self::glass_refused(state, error.to_string()),
            Effect::LeaseLost => {
                self.lost.notify_one();
                tracing::warn!(on_lost = ?self.owner.on_lost, "the lease is over");
                if self.owner.on_lost == OnLost::Refuse {
                    self.tell(state, LinkEvent::LeaseLost);
                }
            }
            Effect::LeaseRegained => {
                self.ready.send_replace(true);
                self.tell(state, LinkEvent::LeaseRegained);
            }
            Effect::InSync => {
                tracing::info!(server = ?state.connected_to.as_ref().map(Url::as_str), "in step");
                state.problem = None;
                if std::mem::take(&mut state.doubted) {
                    state.rewrite = true;
                    self.keeps.notify_one();
                }
                self.publish(state);
            }
            Effect::Keep(thing) => {
                state.keeps.push(thing);
                self.keeps.notify_one();
            }
            Effect::Disconnect { reason } => {
                state.problem = Some(reason);
                self.hang_up.notify_one();
            }
            Effect::Rejected { reason } => tracing::warn!(reason, "not taken"),
        }
        None
    }

    fn publish(&self, state: &State) {
        self.published.store(Arc::new(Published {
            verdicts: state.enforcer.verdicts().clone(),
            lease_until: state.enforcer.lease_until(),
            goes_on_until: state.enforcer.goes_on_until(),
            doubted: state.doubted,
            contact: state.enforcer.contact().map(Arc::from),
        }));
    }

    fn tell(&self, state: &mut State, event: LinkEvent) {
        if !state.deaf {
            state.events.push_back(event);
            self.events.notify_one();
        }
    }

    fn act(&self, state: &mut State, action: Box<Action>) -> Option<Input> {
        if state.deaf || state.actions == ACTIONS_MAX {
            let observed = format!("not tried: {ACTIONS_MAX} actions wait here, or nobody acts");
            return Some(Input::Outcome(Outcome {
                action: action.id,
                result: ActionResult::Failed,
                observed,
                detail: serde_json::Value::Null,
            }));
        }
        state.actions += 1;
        self.tell(state, LinkEvent::Action(action));
        None
    }

    /// What is wrong with the connection that is to end.
    pub(crate) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }
}
