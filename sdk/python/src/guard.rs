//! The guard as Python holds it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use estoppel_guard::{EventBuffer, Limit, Mode, OnLost, Texts, WhenFull};
use estoppel_model::{
    Actor, Clock, EntityId, Order, OrderBody, OrderId, Scope, ScopeSet, Secret, SystemClock,
};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
};

use crate::{
    clock::Ahead,
    core::{Core, Settings},
    session,
};

/// How often a wait looks whether the user has pressed Ctrl-C.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// A guard that runs.
#[pyclass(frozen, module = "estoppel._native")]
pub(crate) struct Guard {
    settings: Settings,
    /// Another one in the child of a fork.
    core: ArcSwap<Core>,
    rehearsal: Option<Rehearsal>,
}

/// A halt at a step, without a server: for users' tests.
struct Rehearsal {
    /// The step, from 1 on; 0 for none.
    at_step: u64,
    scope: String,
    by: String,
    steps: AtomicU64,
    clock: Arc<Ahead>,
}

fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Reads bounds of Python's, as JSON.
pub(crate) fn read_limits(json: &str) -> PyResult<Limit> {
    let limit: Limit = serde_json::from_str(json).map_err(value_error)?;
    match limit.cost_usd_max {
        Some(cost) if cost < 0.0 => {
            Err(value_error(format!("cost_usd_max is {cost}: write an amount from 0")))
        }
        _ => Ok(limit),
    }
}

/// Reads one of two words.
fn one_of<T>(name: &str, word: &str, choices: [(&str, T); 2]) -> PyResult<T> {
    let expected = format!("write {:?} or {:?}", choices[0].0, choices[1].0);
    let found = choices.into_iter().find(|(known, _)| *known == word);
    found.map(|(_, value)| value).ok_or_else(|| {
        let word: String = word.chars().take(32).collect();
        PyValueError::new_err(format!("{name} is {word:?}: {expected}"))
    })
}

#[pymethods]
impl Guard {
    #[new]
    #[pyo3(signature = (*, servers, token, agent, mode, state_dir, on_lost, when_full, ca, name,
        text_global, text_other, limits, rehearsal))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's, by name")]
    fn new(
        py: Python<'_>,
        servers: Vec<String>,
        token: Option<String>,
        agent: Option<&str>,
        mode: &str,
        state_dir: Option<PathBuf>,
        on_lost: &str,
        when_full: &str,
        ca: Option<PathBuf>,
        name: Option<String>,
        text_global: Option<String>,
        text_other: Option<String>,
        limits: Option<&str>,
        rehearsal: Option<(u64, String, String)>,
    ) -> PyResult<Self> {
        let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
        let losts = [("refuse", OnLost::Refuse), ("allow", OnLost::Allow)];
        let fulls = [("drop", WhenFull::Drop), ("refuse", WhenFull::Refuse)];
        let texts = Texts::default();
        let rehearsal = rehearsal.map(|(at_step, scope, by)| Rehearsal {
            at_step,
            scope,
            by,
            steps: AtomicU64::new(0),
            clock: Arc::default(),
        });
        let clock: Arc<dyn Clock> = match &rehearsal {
            Some(rehearsal) => Arc::<Ahead>::clone(&rehearsal.clock),
            None => Arc::new(SystemClock),
        };
        let settings = Settings {
            servers,
            token: token.map(Secret::new),
            ca,
            agent: session::id(agent)?,
            name,
            state_dir,
            mode: one_of("mode", mode, modes)?,
            limit: limits.map(read_limits).transpose()?.unwrap_or_default(),
            on_lost: one_of("on_lost", on_lost, losts)?,
            events: EventBuffer {
                when_full: one_of("when_full", when_full, fulls)?,
                ..EventBuffer::default()
            },
            texts: Texts {
                global: text_global.map_or(texts.global, Into::into),
                other: text_other.map_or(texts.other, Into::into),
            },
            clock,
        };
        let starting = settings.clone();
        // It may read what was kept over a restart.
        let core = py.detach(|| Core::start(starting)).map_err(value_error)?;
        Ok(Self { settings, core: ArcSwap::new(core), rehearsal })
    }

    /// Waits for the orders to be in step with a server's; whether they are, within the time.
    fn wait_ready(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let mut left = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::ZERO);
        let core = self.shared_core(py)?;
        loop {
            let slice = left.min(SIGNALS_EVERY);
            if py.detach(|| core.ready_within(slice)) {
                return Ok(true);
            }
            left = left.saturating_sub(slice);
            if left.is_zero() {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    /// Whether what the scope names must stop; also for what is no scope.
    fn must_stop(&self, py: Python<'_>, scope: &str) -> PyResult<bool> {
        Ok(self.core(py)?.guard.kill_switch().check(scope))
    }

    /// Puts a halt in force in this process, without a server. Returns the order's id.
    fn halt_locally(
        &self,
        py: Python<'_>,
        scope: &str,
        reason: &str,
        by: &str,
    ) -> PyResult<String> {
        let scope: Scope = scope.parse().map_err(value_error)?;
        let order = Order {
            id: OrderId::new(),
            scope: ScopeSet::from(scope),
            reason: reason.to_owned(),
            issued_by: Actor::new(by).map_err(value_error)?,
            issued_at: SystemClock.now(),
            incident: None,
            tenant: None,
            body: OrderBody::Halt { until: None },
        };
        let core = self.shared_core(py)?;
        let halt = py.detach(|| {
            let halt = core.guard.halt_locally(order);
            // What it stops is told so before the caller goes on.
            core.interrupter.settle();
            halt
        });
        Ok(halt.map_err(value_error)?.order.to_string())
    }

    /// How the guard stands, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.core(py)?.guard.status();
        Ok(serde_json::json!({
            "enforcer": status.enforcer,
            "connected_to": status.connected_to.as_ref().map(ToString::to_string),
            "lease_left_s": status
                .lease_until
                .map(|until| until.since(self.settings.clock.boottime()).as_secs_f64()),
            "orders_in_force": status.orders_in_force,
            "problem": status.problem,
            "events": status.events,
        })
        .to_string())
    }

    /// Refuses all further steps, sends or spools the last events, and ends the guard's threads.
    fn close(&self, py: Python<'_>) {
        let core = self.core.load_full();
        if core.is_of_here() {
            py.detach(|| core.close());
        }
        leave_to_parent(core);
    }

    /// Lets time pass on the clock of a guard for tests.
    fn let_pass(&self, seconds: u64) -> PyResult<()> {
        let rehearsal = self.rehearsal.as_ref();
        let rehearsal = rehearsal.ok_or_else(|| value_error("the clock is the machine's"))?;
        rehearsal.clock.let_pass(Duration::from_secs(seconds));
        Ok(())
    }

    /// How many steps have begun or were refused; of a guard for tests.
    #[getter]
    fn steps(&self) -> u64 {
        self.rehearsal.as_ref().map_or(0, |rehearsal| rehearsal.steps.load(Relaxed))
    }

    /// The agent.
    #[getter]
    fn agent_name(&self) -> Option<&str> {
        self.agent().map(EntityId::as_str)
    }

    /// Whether it stops what is to be stopped, or only records that it would have.
    #[getter]
    const fn mode(&self) -> &'static str {
        match self.settings.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        }
    }
}

impl Guard {
    pub(crate) const fn agent(&self) -> Option<&EntityId> {
        self.settings.agent.as_ref()
    }

    /// Takes note of a step that has begun, or was refused.
    #[inline]
    pub(crate) fn stepped(&self, py: Python<'_>) -> PyResult<()> {
        match &self.rehearsal {
            None => Ok(()),
            Some(rehearsal) => {
                let step = rehearsal.steps.fetch_add(1, Relaxed) + 1;
                if step == rehearsal.at_step {
                    let reason = format!("a test halts at step {step}");
                    self.halt_locally(py, &rehearsal.scope, &reason, &rehearsal.by)?;
                }
                Ok(())
            }
        }
    }

    /// What runs in this process, for a call that lets go of Python's lock.
    pub(crate) fn shared_core(&self, py: Python<'_>) -> PyResult<Arc<Core>> {
        self.core(py).map(|core| Arc::clone(&core))
    }

    /// What runs in this process.
    #[inline]
    pub(crate) fn core(&self, _py: Python<'_>) -> PyResult<arc_swap::Guard<Arc<Core>>> {
        let core = self.core.load();
        if core.is_of_here() { Ok(core) } else { self.start_in_child() }
    }

    /// In the child of a fork: a guard of its own, which refuses until a server has answered. The
    /// parent's folder is the parent's: a child keeps its orders and events in memory.
    #[cold]
    fn start_in_child(&self) -> PyResult<arc_swap::Guard<Arc<Core>>> {
        let name = self
            .settings
            .name
            .as_ref()
            .map(|name| format!("{name} (child, process {})", std::process::id()));
        let settings = Settings { state_dir: None, name, ..self.settings.clone() };
        let core = Core::start(settings)
            .map_err(|error| PyRuntimeError::new_err(format!("after a fork: {error}")))?;
        leave_to_parent(self.core.swap(core));
        Ok(self.core.load())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        leave_to_parent(self.core.load_full());
    }
}

/// Lets go of a core; one that a parent started is left lying, since locks of it may be held for ever.
fn leave_to_parent(core: Arc<Core>) {
    if !core.is_of_here() {
        std::mem::forget(core);
    }
}
