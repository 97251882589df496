//! The guard itself: the check, the two kinds of step, and the task that carries out orders.

use std::{
    collections::HashSet,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use estoppel_extract::HostPort;
use estoppel_link::{
    Link, LinkError, LinkEvent, LinkStatus, LocalHalt, Uploader, View, breaker::Breakers,
};
use estoppel_model::{Clock, Event, Limit, Order, OrderId, Scope, ScopeError, Subject};
use tokio::sync::{Notify, mpsc};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    Builder, ConnectError, Denied, DeniedReason, KillSwitch, OnStop, OpenStep, StepError,
    StepHandle, StepSpec, StepSpecError, Texts, Work, audit,
    denied::Cause,
    fingerprint::Fingerprints,
    in_flight::{InFlight, Settled},
    kill_switch,
    run::Run,
    step::PLUGIN_LOAD,
};

/// How long [`Guard::close`] waits for the last events.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// Most refusals of checks that are remembered as recorded.
const NOTED_MAX: usize = 4_096;

/// Whether a guard stops what is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It refuses and cancels.
    #[default]
    Enforce,
    /// It only records what it would have stopped, with the decision `would_stop`.
    Observe,
}

/// Estoppel inside the agent's process. Cheap to clone; the last clone that is dropped ends it.
#[derive(Clone)]
pub struct Guard {
    pub(crate) shared: Arc<Shared>,
    base: Arc<Subject>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: Arc<DropGuard>,
}

/// What the guard's handles, its steps and its task share.
pub(crate) struct Shared {
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) uploader: Uploader,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mode: Mode,
    pub(crate) texts: Texts,
    pub(crate) breakers: Arc<Breakers>,
    /// When the steps under way are to be looked at has changed.
    pub(crate) look_changed: Arc<Notify>,
    /// The limits of the code.
    pub(crate) own_limit: Limit,
    pub(crate) prints: Fingerprints,
    pub(crate) view: View,
    link: Link,
    closed: AtomicBool,
    /// Refusals by checks that have their record. A loop asks often; once is enough.
    noted: Mutex<HashSet<(DeniedReason, Option<OrderId>, Subject)>>,
}

/// What a guard is made of.
pub(crate) struct Parts {
    pub(crate) link: Link,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) look_changed: Arc<Notify>,
    pub(crate) limit: Limit,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mode: Mode,
    pub(crate) texts: Texts,
    pub(crate) base: Subject,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Guard {
    /// Starts to describe a guard.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts to describe a guard, with what the environment says: `ESTOPPEL_URL` (several servers
    /// of one deployment separated by commas), `ESTOPPEL_TOKEN`, and optionally
    /// `ESTOPPEL_STATE_DIR`, `ESTOPPEL_MODE` (`enforce` or `observe`) and `ESTOPPEL_LIMITS` (JSON of a
    /// [`Limit`]).
    ///
    /// # Errors
    /// When a variable is missing or wrong.
    pub fn from_env() -> Result<Builder, ConnectError> {
        Builder::from_vars(|name| std::env::var(name).ok())
    }

    pub(crate) fn start(parts: Parts) -> Self {
        let Parts {
            link,
            events,
            in_flight,
            breakers,
            look_changed,
            limit,
            clock,
            mode,
            texts,
            base,
            tasks,
            stop,
        } = parts;
        let shared = Arc::new(Shared {
            in_flight,
            breakers,
            look_changed,
            own_limit: limit,
            prints: Fingerprints::default(),
            uploader: link.uploader(),
            clock,
            mode,
            texts,
            view: link.view(),
            link,
            closed: AtomicBool::new(false),
            noted: Mutex::default(),
        });
        tasks.spawn(carry_out_orders(Arc::clone(&shared), events, stop.clone()));
        let stop_when_dropped = Arc::new(stop.clone().drop_guard());
        Self { shared, base: Arc::new(base), tasks, stop, _stop_when_dropped: stop_when_dropped }
    }

    /// Resolves when the orders are in step with a server's for the first time. Before, everything
    /// is refused, unless the owner chose otherwise; set a timeout around it.
    pub async fn ready(&self) {
        self.shared.link.ready().await;
    }

    /// The guard's own subject with the ids of the scope added, such as `session:abc123`.
    ///
    /// # Errors
    /// When the text is no scope.
    pub fn subject(&self, scope: &str) -> Result<Subject, ScopeError> {
        let scope: Scope = scope.parse()?;
        Ok(kill_switch::subject_of(&scope, (*self.base).clone()))
    }

    /// Whether the subject may act now. Reads a clock and an index: no lock, no network, no disk.
    ///
    /// In [`Mode::Observe`] it never refuses. A refusal is recorded once for each order and subject.
    ///
    /// # Errors
    /// When the subject must not act.
    #[inline]
    pub fn check(&self, subject: &Subject) -> Result<(), Denied> {
        match self.shared.refusal(subject, None) {
            None => Ok(()),
            Some(cause) => self.shared.refused(subject, &cause),
        }
    }

    /// Checks, runs the work, and records the step. When an order that reaches the subject arrives
    /// meanwhile, the work's future is dropped at once.
    ///
    /// Dropping reaches what awaits. Work that does not yield goes on to its next `await`; its value
    /// is withheld then. For work that blocks see [`Guard::step_blocking`].
    ///
    /// # Errors
    /// When the step is refused, or was stopped before it ended.
    pub async fn step<T, F, Fut>(
        &self,
        subject: &Subject,
        spec: StepSpec,
        work: F,
    ) -> Result<T, StepError>
    where
        F: FnOnce(StepHandle) -> Fut,
        Fut: Future<Output = T>,
    {
        let run = Run::begin(&self.shared, subject, spec, true, None)?;
        let handle = run.handle();
        let running = Arc::clone(&handle.running);
        // The future must be gone before the step is said to have ended: hence the block.
        let value = {
            let work = pin!(work(handle));
            tokio::select! {
                biased;
                () = running.stopped() => None,
                value = work => Some(value),
            }
        };
        match value {
            Some(value) => run.finish(value),
            None => Err(run.cancelled()),
        }
    }

    /// As [`Guard::step`], for work that blocks its thread; it gets one of its own. Such work cannot
    /// be interrupted: when an order arrives meanwhile, the call returns at once and the result will
    /// be withheld, the order's confirmation names the step as not interruptible, and the audit log
    /// says when the work really ended. Work that asks [`StepHandle::is_cancelled`] ends sooner.
    ///
    /// # Errors
    /// When the step is refused, or was stopped before it ended.
    ///
    /// # Panics
    /// When the work does.
    pub async fn step_blocking<T, F>(
        &self,
        subject: &Subject,
        spec: StepSpec,
        work: F,
    ) -> Result<T, StepError>
    where
        T: Send + 'static,
        F: FnOnce(StepHandle) -> T + Send + 'static,
    {
        let run = Run::begin(&self.shared, subject, spec, false, None)?;
        let handle = run.handle();
        let running = Arc::clone(&handle.running);
        let task = self.tasks.spawn_blocking(move || {
            let value = work(handle);
            (run, value)
        });
        tokio::select! {
            biased;
            () = running.stopped() => Err(self.shared.withhold(&running)),
            joined = task => match joined {
                Ok((run, value)) => run.finish(value),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(StepError::RuntimeEnded),
                },
            },
        }
    }

    /// Begins a step whose work is the caller's own: a call on this thread, another language's
    /// task, a process. `on_stop` is told when an order that reaches the subject arrives meanwhile;
    /// the caller ends the work and says how it went by [`OpenStep::finish`] or
    /// [`OpenStep::gave_way`].
    ///
    /// # Errors
    /// When the step is refused; `on_stop` is not told of that.
    pub fn begin(
        &self,
        subject: &Subject,
        spec: StepSpec,
        work: Work,
        on_stop: Arc<dyn OnStop>,
    ) -> Result<OpenStep, Denied> {
        let interruptible = work == Work::Interruptible;
        match Run::begin(&self.shared, subject, spec, interruptible, Some(on_stop)) {
            Ok(run) => Ok(OpenStep::new(run)),
            Err(refused) => Err(refused.into_denied().unwrap_or_else(|| self.shared.closed())),
        }
    }

    /// Whether a plugin may be loaded, by its name and, where it is known, its version: a halt of a
    /// range of versions reaches a plugin without one. Recorded either way.
    ///
    /// # Errors
    /// When it must not be, or name or version are none that a scope could hold.
    pub fn load_plugin(
        &self,
        subject: &Subject,
        name: &str,
        version: Option<&str>,
    ) -> Result<Result<(), Denied>, StepSpecError> {
        let spec = StepSpec::action(PLUGIN_LOAD).plugin(name, version)?;
        let loaded = Run::begin(&self.shared, subject, spec, false, None)
            .and_then(|run| run.finish(()))
            .or_else(|refused| refused.into_denied().map_or(Ok(()), Err));
        Ok(loaded)
    }

    /// Puts a halt in force in this process, without any server, and hands it to the server when one
    /// is reached; `order.issued_by` says who, as `local:USER@HOST`. Blocks for one fsync where there
    /// is a state folder, after the halt is in force.
    ///
    /// # Errors
    /// When the order is no halt, does not name a local actor, or its id is known already.
    pub fn halt_locally(&self, order: Order) -> Result<LocalHalt, LinkError> {
        self.shared.link.halt_locally(order)
    }

    /// The same orders for loops that ask by scope.
    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch::new(self.clone())
    }

    /// Sends an event of the caller's own. Never waits.
    pub fn send(&self, event: Event) {
        self.shared.uploader.send(event);
    }

    /// How the guard stands: connection, lease, orders, events on their way.
    pub fn status(&self) -> LinkStatus {
        self.shared.link.status()
    }

    /// Refuses all further steps, sends the last events, and ends the guard, within ten seconds.
    pub async fn close(self) {
        self.shared.closed.store(true, Relaxed);
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("the guard's last work did not end in time");
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("base", &self.base).field("mode", &self.shared.mode).finish()
    }
}
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Shared {
    /// Why the subject must not act, or must not connect there.
    #[inline]
    pub(crate) fn refusal(&self, subject: &Subject, to: Option<&HostPort>) -> Option<Cause> {
        if let Err(refusal) = self.view.check(subject) {
            return Some(self.refused_by(refusal.into(), subject));
        }
        if let Some(trip) = self.breakers.tripped(subject) {
            return Some(Cause::Limit { trip, order: None });
        }
        if self.closed.load(Relaxed) {
            return Some(Cause::Want(DeniedReason::Closed));
        }
        if self.uploader.refusing() {
            return Some(Cause::Want(DeniedReason::EventsFull));
        }
        let to = to?;
        self.view.blocked(subject, &to.host.to_string(), to.port).map(Cause::Order)
    }

    /// Of a task that is over a limit, that is why it is refused, whoever has halted it since.
    #[cold]
    fn refused_by(&self, cause: Cause, subject: &Subject) -> Cause {
        match (cause, self.breakers.tripped(subject)) {
            (Cause::Order(order), Some(trip)) => Cause::Limit { trip, order: Some(order) },
            (cause, _) => cause,
        }
    }

    /// Tells the link what is settled.
    pub(crate) fn settle(&self, settled: impl IntoIterator<Item = Settled>) {
        for (order, settlement) in settled {
            self.link.settled(order, settlement);
        }
    }

    /// What the agent is told.
    #[cold]
    pub(crate) fn denied(&self, cause: &Cause) -> Denied {
        cause.denied(&self.texts, self.view.contact())
    }

    /// What a caller is told once the guard has ended.
    #[cold]
    pub(crate) fn closed(&self) -> Denied {
        self.denied(&Cause::Want(DeniedReason::Closed))
    }

    #[cold]
    fn refused(&self, subject: &Subject, cause: &Cause) -> Result<(), Denied> {
        let noted = (cause.reason(), cause.order().map(|order| order.id), subject.clone());
        let is_new = {
            let mut all = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= NOTED_MAX {
                all.clear();
            }
            all.insert(noted)
        };
        let (decision, result) = match self.mode {
            Mode::Enforce => ("denied", Err(self.denied(cause))),
            Mode::Observe => ("would_stop", Ok(())),
        };
        if is_new {
            self.uploader.send(audit::check(subject, cause, decision, self.clock.now()));
        }
        result
    }

    fn carry_out(&self, event: LinkEvent) {
        match event {
            LinkEvent::LeaseLost => self.in_flight.stop_where(self.mode, |running| {
                self.view.check(&running.subject).err().map(Cause::from)
            }),
            LinkEvent::LeaseRegained => {
                // The next loss of the lease is another one.
                self.noted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|(_, order, _)| order.is_some());
            }
            // The register was told of orders and releases; actions are for hosts and gateways.
            LinkEvent::Ordered(_) | LinkEvent::Released { .. } | LinkEvent::Action(_) => {}
        }
    }
}

/// Runs until `stop` or the link ends.
async fn carry_out_orders(
    shared: Arc<Shared>,
    mut events: mpsc::Receiver<LinkEvent>,
    stop: CancellationToken,
) {
    loop {
        let until_overdue =
            shared.in_flight.next_overdue().map(|at| at.since(shared.clock.boottime()));
        let until_look = shared.breakers.next_look().map(|at| at.since(shared.clock.boottime()));
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => shared.carry_out(event),
                None => break,
            },
            () = tokio::time::sleep(until_overdue.unwrap_or_default()), if until_overdue.is_some() => {
                shared.settle(shared.in_flight.overdue(shared.clock.boottime()));
            }
            () = tokio::time::sleep(until_look.unwrap_or_default()), if until_look.is_some() => {
                shared.look_at_limits();
            }
            () = shared.in_flight.waits() => {}
            () = shared.look_changed.notified() => {}
            () = stop.cancelled() => break,
        }
    }
}
