//! Acts on orders until the agent has ended.
//!
//! On a halt: freeze, say so, then capture, then wait. Whether the agent is held is never a matter
//! of which events came but of what the orders say now ([`Supervisor::reconcile`]), so that events
//! may come late, twice or not at all. Nothing is thawed or killed in the middle of a capture.

mod actions;
mod captures;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use estoppel_link::{
    LinkEvent, LocalHalt, canary_of,
    frame::{Action, Outcome, Settlement},
};
use estoppel_model::{Actor, Clock, Order, OrderBody, OrderId, Subject, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::captures::Captures;
use crate::{
    Agent, AgentExit, CaptureLimits, Captured, FreezeReport, Orders, Processes, agent,
    control::{Halted, LocalRequest},
    signals::Signals,
};

/// How long freezing is waited for; it goes on by itself after that.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);
const THAW_WITHIN: Duration = Duration::from_secs(2);
const KILL_WITHIN: Duration = Duration::from_secs(5);
/// How long a local halt waits for the disk, while the agent is frozen already.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);
/// How often what is left of a held agent is looked at, once its first process has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the kernel is told that somebody supervises the agent, and for how long it believes so.
const BEAT: Duration = Duration::from_secs(1);
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// How many orders and outcomes are remembered, to know them again.
const REMEMBERED_MAX: usize = 1_024;
/// Most actions that wait for the end of a capture.
const DEFERRED_MAX: usize = 64;

/// Whether orders are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// What would have been done is reported.
    Observe,
}

/// How an agent is supervised.
#[derive(Debug, Clone)]
pub struct SuperviseConfig {
    /// Who acts: the same as in [`crate::RunConfig`].
    pub subject: Subject,
    /// Whether orders are carried out.
    pub mode: Mode,
    /// Folder for evidence on this host.
    pub evidence: PathBuf,
    /// Bounds of a capture.
    pub limits: CaptureLimits,
    /// Who captures, such as `host:NAME`.
    pub operator: Actor,
}

/// What comes in and goes out.
pub struct Wiring<O> {
    /// The orders in force.
    pub orders: O,
    /// Their changes.
    pub events: mpsc::Receiver<LinkEvent>,
    /// Halts given on this host.
    pub local: mpsc::Receiver<LocalRequest>,
    /// Captures, for delivery. When it is full they stay on this host:
    /// [`crate::pending_captures`].
    pub captured: mpsc::Sender<Captured>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Supervises a running agent until it has ended, and returns how.
///
/// When the agent's first process ends, what is left of it is killed, unless it is held: then this
/// goes on until the hold has ended or nothing is left. `stop` ends the agent, after a capture that
/// is under way. Within a runtime with at least one thread beside this task's.
///
/// # Errors
/// When signals cannot be taken; then the agent is ended.
pub async fn supervise<O: Orders>(
    mut agent: Agent,
    config: SuperviseConfig,
    wiring: Wiring<O>,
    stop: CancellationToken,
) -> io::Result<AgentExit> {
    let Wiring { orders, mut events, mut local, captured, clock } = wiring;
    let (nothing, ended) = tokio::sync::oneshot::channel();
    drop(nothing);
    let mut signals = agent.signals.take().map_or_else(Signals::new, Ok);
    let mut exiting = std::mem::replace(&mut agent.exit, ended);
    let mut supervisor = Supervisor {
        captures: Captures::new(
            Arc::clone(&agent.processes),
            captured,
            Arc::clone(&clock),
            &config,
        ),
        clock,
        containment: agent.containment.to_string(),
        agent,
        config,
        orders,
        frozen: None,
        asked: false,
        link_ended: false,
        handled: VecDeque::new(),
        outcomes: BTreeMap::new(),
        deferred: VecDeque::new(),
    };
    let mut exit = None;
    if signals.is_err() {
        stop.cancel();
    }
    let mut local_open = true;
    let mut beat = tokio::time::interval(BEAT);
    // An order may have come between the start and now.
    supervisor.reconcile().await;
    while exit.is_none() || supervisor.holds_something().await {
        tokio::select! {
            biased;
            _ = beat.tick() => supervisor.is_supervised(),
            event = events.recv(), if !supervisor.link_ended => match event {
                Some(event) => supervisor.event(event).await,
                None => supervisor.link_ended().await,
            },
            request = local.recv(), if local_open => match request {
                Some(request) => supervisor.halt_locally(request).await,
                None => local_open = false,
            },
            done = supervisor.captures.done() => supervisor.captured(done).await,
            ended = &mut exiting, if exit.is_none() => {
                exit = Some(ended.unwrap_or(AgentExit::Unknown));
            }
            signal = async { match &mut signals {
                Ok(signals) => signals.recv().await,
                Err(_) => std::future::pending().await,
            } } => supervisor.pass_on(signal),
            // What is held may be killed by somebody else, of which no event comes.
            () = tokio::time::sleep(LOOK_EVERY), if exit.is_some() => {}
            () = stop.cancelled() => break,
        }
    }
    supervisor.finish().await;
    let exit = match exit {
        Some(exit) => exit,
        None => exiting.await.unwrap_or(AgentExit::Unknown),
    };
    signals.map(|_| exit)
}

struct Supervisor<O> {
    agent: Agent,
    config: SuperviseConfig,
    orders: O,
    clock: Arc<dyn Clock>,
    containment: String,
    captures: Captures,
    /// What freezing came to, while the agent is held.
    frozen: Option<FreezeReport>,
    /// Whether an action asked for the freeze, so that only an action ends it.
    asked: bool,
    /// Whether no more events will come.
    link_ended: bool,
    /// Orders that were dealt with.
    handled: VecDeque<OrderId>,
    /// What actions came to, to say it again.
    outcomes: BTreeMap<Uuid, Outcome>,
    /// Actions that wait for the end of a capture.
    deferred: VecDeque<Action>,
}

impl<O: Orders> Supervisor<O> {
    async fn event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Ordered(order) => {
                self.ordered(&order).await;
            }
            LinkEvent::Released { .. } | LinkEvent::LeaseLost | LinkEvent::LeaseRegained => {
                self.reconcile().await;
            }
            LinkEvent::Action(action) => self.action(*action).await,
        }
    }

    /// Tells the kernel so. Without that it cuts the agent off the network.
    fn is_supervised(&mut self) {
        let deadline = self.clock.boottime() + BELIEVED_FOR;
        if let Some(cutoff) = &mut self.agent.cutoff
            && let Err(error) = cutoff.allow_until(deadline)
        {
            tracing::error!(%error, "the kernel will cut the agent's network");
        }
    }

    /// Without a link no halt arrives any more, and no lease ends by itself.
    async fn link_ended(&mut self) {
        self.link_ended = true;
        tracing::error!("the link has ended: the agent is held");
        self.reconcile().await;
    }

    /// Why the agent must be held, if it must.
    fn reason_to_hold(&self) -> Option<String> {
        if self.config.mode == Mode::Observe {
            return None;
        }
        let refusal = self.orders.check(&self.config.subject).err().map(|error| error.to_string());
        refusal
            .or_else(|| self.asked.then(|| "an action froze it".to_owned()))
            .or_else(|| self.link_ended.then(|| "the link has ended".to_owned()))
    }

    /// Makes the agent's state what the orders say now.
    async fn reconcile(&mut self) {
        match (self.reason_to_hold(), self.frozen) {
            (Some(reason), None) => {
                self.freeze().await;
                tracing::warn!(%reason, "the agent is held");
            }
            // In the middle of a capture it would change what is being read; `captured` comes here
            // again.
            (None, Some(_)) if !self.captures.are_running() => {
                if let Err(error) = self.thaw().await {
                    tracing::error!(%error, "the agent was not thawed");
                }
            }
            _ => {}
        }
    }

    /// Freezes, and kills where that is not possible. Returns what could not be stopped.
    async fn freeze(&mut self) -> Vec<String> {
        // Microseconds, where freezing takes milliseconds.
        if let Some(cutoff) = &mut self.agent.cutoff
            && let Err(error) = cutoff.cut()
        {
            tracing::error!(%error, "the agent's network is not cut");
        }
        let processes = Arc::clone(&self.agent.processes);
        // Before anything that could wait: from here on the kernel freezes by itself.
        let begun = processes.begin_freeze();
        let frozen = match begun {
            Ok(()) => blocking(&processes, |processes| processes.await_frozen(FREEZE_WITHIN)).await,
            Err(error) => Err(error),
        };
        match frozen {
            Ok(report) => {
                self.frozen = Some(report);
                if report.complete {
                    return Vec::new();
                }
                vec![format!(
                    "some of {} processes were not frozen within {} ms: they are as soon as they \
                     return from the kernel",
                    report.processes,
                    FREEZE_WITHIN.as_millis()
                )]
            }
            Err(error) => {
                // Where freezing is impossible, kill is the stop.
                tracing::error!(%error, "the agent cannot be frozen: it is killed");
                self.frozen = Some(FreezeReport { complete: false, processes: 0 });
                self.containment = format!("could not be frozen ({error}) and was killed instead");
                match blocking(&processes, |processes| processes.kill(KILL_WITHIN)).await {
                    Ok(()) => Vec::new(),
                    Err(error) => vec![format!("it could neither be frozen nor killed: {error}")],
                }
            }
        }
    }

    async fn thaw(&mut self) -> io::Result<()> {
        let deadline = self.clock.boottime() + BELIEVED_FOR;
        if let Some(cutoff) = &mut self.agent.cutoff {
            cutoff.mend(deadline).map_err(io::Error::other)?;
        }
        let thawed = blocking(&self.agent.processes, |processes| processes.thaw(THAW_WITHIN)).await;
        match thawed {
            // The kernel has been told, so that from here on it must be taken for running.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!("some processes have not been seen to go on yet");
            }
            thawed => thawed?,
        }
        self.frozen = None;
        self.captures.forget();
        tracing::info!("the agent goes on");
        Ok(())
    }

    /// Carries an order out and says so. Returns what could not be stopped.
    async fn ordered(&mut self, order: &Arc<Order>) -> Vec<String> {
        if self.handled.contains(&order.id) {
            return Vec::new();
        }
        if self.handled.len() == REMEMBERED_MAX {
            self.handled.pop_front();
        }
        self.handled.push_back(order.id);
        let reaches = self.orders.halted_by(order, &self.config.subject);
        let held = self.reason_to_hold().is_some();
        let mut settlement = Settlement::default();
        if self.config.mode == Mode::Observe {
            // A canary reaches nobody, and is answered for a halt that does.
            settlement.observed_only = reaches || canary_of(order).is_some();
        } else if held {
            settlement.not_interruptible = self.freeze().await;
            settlement.processes_frozen = self.frozen.map_or(0, |report| report.processes);
            settlement.last_byte_at = self.last_byte_at();
        }
        settlement.containment = match &order.body {
            OrderBody::Limit { limit } => Some(format!("a host does not enforce {limit}")),
            _ => reaches.then(|| self.containment.clone()),
        };
        let not_stopped = settlement.not_interruptible.clone();
        // One of an unknown kind holds the agent, too; the link has said that it is not supported.
        if order.body != OrderBody::Unsupported {
            self.orders.settled(order.id, settlement);
        }
        if reaches && held {
            self.captures.of_order(order, self.state(), &self.containment);
        }
        not_stopped
    }

    /// When the last packet went out: after the cut, none does.
    fn last_byte_at(&self) -> Option<Timestamp> {
        let counts = self.agent.cutoff.as_ref()?.counts();
        let last = counts.inspect_err(|error| tracing::warn!(%error, "packets are not counted"));
        let ago = self.clock.boottime().since(last.ok()?.last_out?);
        let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
        Some(Timestamp::from_micros(self.clock.now().as_micros().saturating_sub(ago)))
    }

    async fn halt_locally(&mut self, request: LocalRequest) {
        let LocalRequest { order, answer } = request;
        let subject = self.config.subject.clone();
        let result = if order.scope.reaches(&subject) {
            match self.put_in_force(&order).await {
                Ok(halt) => {
                    let not_stopped = self.ordered(&Arc::new(order)).await;
                    let halted = LocalRequest::reached(halt, subject, self.containment.clone());
                    Ok(self.halted(halted, not_stopped))
                }
                Err(why) => {
                    // Nothing may hold it now.
                    self.reconcile().await;
                    Err(why)
                }
            }
        } else {
            Ok(LocalRequest::not_reached(order.id, subject))
        };
        // Who asked may have gone; the halt is in force all the same.
        let _ = answer.send(result);
    }

    /// Freezes, and then gives the halt to the link, which writes it to a disk that may hang.
    async fn put_in_force(&mut self, order: &Order) -> Result<LocalHalt, String> {
        if self.config.mode == Mode::Enforce {
            self.freeze().await;
        }
        let (orders, given) = (self.orders.clone(), order.clone());
        let giving = tokio::task::spawn_blocking(move || orders.halt_locally(given));
        match tokio::time::timeout(DURABLE_WITHIN, giving).await {
            Ok(Ok(given)) => given.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            // It is in force before it is written.
            Err(_) if self.orders.halted_by(order, &self.config.subject) => {
                Ok(LocalHalt { order: order.id, durable: false })
            }
            Err(_) => Err("the link did not take the order in time".to_owned()),
        }
    }

    fn halted(&self, mut halted: Halted, not_stopped: Vec<String>) -> Halted {
        halted.not_stopped = not_stopped;
        halted.processes_frozen = self.frozen.map_or(0, |report| report.processes);
        if self.config.mode == Mode::Observe {
            halted.not_stopped.push("it only observes: nothing is stopped".to_owned());
        }
        halted
    }

    fn state(&self) -> estoppel_evidence::ProcessState {
        if self.frozen.is_some_and(|report| report.complete) {
            estoppel_evidence::ProcessState::Frozen
        } else {
            estoppel_evidence::ProcessState::Running
        }
    }

    /// A capture came to its end: answer for it, then do what waited for it.
    async fn captured(&mut self, done: captures::Done) {
        for action in done.actions {
            self.answer(Outcome {
                action,
                result: done.result,
                observed: done.observed.clone(),
                detail: done.detail.clone(),
            });
        }
        while !self.captures.are_running()
            && let Some(action) = self.deferred.pop_front()
        {
            Box::pin(self.action(action)).await;
        }
        self.reconcile().await;
    }

    fn pass_on(&self, signal: rustix::process::Signal) {
        if self.frozen.is_some() {
            tracing::warn!(
                signal = signal.as_raw(),
                "the agent is frozen: the signal waits until it goes on"
            );
        }
        if let Err(error) = self.agent.signal(signal) {
            tracing::warn!(signal = signal.as_raw(), %error, "the signal was not passed on");
        }
    }

    /// Whether something of the agent is held, or a capture is under way.
    async fn holds_something(&self) -> bool {
        if self.captures.are_running() {
            return true;
        }
        self.frozen.is_some()
            && blocking(&self.agent.processes, |processes| processes.count())
                .await
                .is_ok_and(|count| count > 0)
    }

    /// Ends what is left of the agent, after the evidence.
    async fn finish(&mut self) {
        while self.captures.are_running() {
            let done = self.captures.done().await;
            self.captured(done).await;
        }
        let killed = blocking(&self.agent.processes, |processes| processes.kill(KILL_WITHIN)).await;
        if let Err(error) = killed {
            tracing::error!(%error, "some of the agent's processes are left");
        }
        if self.agent.foreground {
            agent::take_terminal_back();
        }
    }
}

/// Does what waits for the kernel beside the runtime's own threads.
async fn blocking<T: Send + 'static>(
    processes: &Arc<Processes>,
    work: impl FnOnce(&Processes) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let processes = Arc::clone(processes);
    tokio::task::spawn_blocking(move || work(&processes)).await.map_err(io::Error::other)?
}
