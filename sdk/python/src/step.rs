//! A step as Python meets it: a context manager, synchronous or not.

use std::sync::{Arc, Mutex, PoisonError};

use estoppel_guard::{StepSpec, Usage, Work};
use estoppel_model::EntityId;
use pyo3::{
    exceptions::{PyRuntimeError, PyStopIteration, PyValueError},
    prelude::*,
};
use rustix::process::Pid;

use crate::{
    core::Core,
    halted,
    interrupt::{self, Stopper, Told},
    json::{self, as_json},
    marked::Mark,
    place::{self, Place},
    session::Session,
};

/// One step of an agent; entered once.
#[pyclass(frozen, subclass, module = "estoppel._native")]
pub(crate) struct Step {
    session: Py<Session>,
    interruptible: bool,
    /// Taken when the step is entered.
    spec: Mutex<Option<StepSpec>>,
    /// While the step is open.
    open: Mutex<Option<Open>>,
}

struct Open {
    core: Arc<Core>,
    stopper: Arc<Stopper>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

const NOT_OPEN: &str = "the step is not open: use it inside of its `with`";

#[pymethods]
impl Step {
    #[new]
    #[pyo3(signature = (session, tool=None, params=None, plugin=None, plugin_version=None,
        destination=None, accessed_tenant=None, action=None, interruptible=true, read_only=false,
        like=None))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's, by name")]
    fn new(
        session: Py<Session>,
        tool: Option<&str>,
        params: Option<&Bound<'_, PyAny>>,
        plugin: Option<&str>,
        plugin_version: Option<&str>,
        destination: Option<&str>,
        accessed_tenant: Option<&str>,
        action: Option<&str>,
        interruptible: bool,
        read_only: bool,
        like: Option<&Bound<'_, Self>>,
    ) -> PyResult<Self> {
        let (mut spec, interruptible) = match like {
            Some(like) => {
                let like = like.get();
                let spec = lock(&like.spec).clone();
                (spec.ok_or_else(entered_twice)?, like.interruptible)
            }
            None => {
                let mut spec = match tool {
                    Some(tool) => StepSpec::tool(tool).map_err(value_error)?,
                    None => StepSpec::action(action.unwrap_or("step")),
                };
                if let Some(action) = action.filter(|_| tool.is_some()) {
                    spec = spec.named(action);
                }
                if let Some(plugin) = plugin {
                    spec = spec.plugin(plugin, plugin_version).map_err(value_error)?;
                }
                if let Some(destination) = destination {
                    spec = spec.destination(destination).map_err(value_error)?;
                }
                if let Some(tenant) = accessed_tenant {
                    spec = spec.accessed_tenant(EntityId::new(tenant).map_err(value_error)?);
                }
                (if read_only { spec.read_only() } else { spec }, interruptible)
            }
        };
        if let Some(params) = params {
            spec = as_json(params, |params| spec.params(params));
        }
        Ok(Self { session, interruptible, spec: Mutex::new(Some(spec)), open: Mutex::new(None) })
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        self.exit(py, error)
    }

    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Ready> {
        slf.get().enter(slf.py())?;
        Ok(Ready { value: Some(slf.into_any().unbind()) })
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Ready> {
        self.exit(py, error)?;
        Ok(Ready { value: None })
    }

    /// Records what came out.
    fn result(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.with_open(|stopper| {
            stopper.with_step(|step| as_json(value, |value| step.handle().record_result(value)))
        })
    }

    /// Records what a model call used.
    #[pyo3(signature = (*, model=None, input_tokens=None, output_tokens=None, cost=None))]
    fn usage(
        &self,
        model: Option<String>,
        input_tokens: Option<u64>,
        output_tokens: Option<u64>,
        cost: Option<f64>,
    ) -> PyResult<()> {
        let usage = Usage { model, input_tokens, output_tokens, estimated_cost: cost };
        self.with_open(|stopper| stopper.with_step(|step| step.handle().record_usage(usage)))
    }

    /// Whether the step is stopped; for work that asks by itself.
    #[getter]
    fn stopped(&self) -> bool {
        lock(&self.open).as_ref().is_some_and(|open| open.stopper.is_stopped())
    }

    /// Kills this group of processes when the step is stopped.
    fn own_process_group(&self, group: i32) -> PyResult<()> {
        let group = process_group(group)?;
        self.with_open(|stopper| {
            stopper.owns_group(group);
            Some(())
        })
    }

    /// Kills the processes that carry this `NAME=VALUE` in their environment, with all that they
    /// started, when the step is stopped. What runs in Python is ended after them.
    fn own_marked(&self, mark: &str) -> PyResult<()> {
        let mark = Mark::new(mark).ok_or_else(|| {
            let mark: String = mark.chars().take(64).collect();
            PyValueError::new_err(format!(
                "{mark:?} is no mark: write a long NAME=VALUE of your own"
            ))
        })?;
        let open = lock(&self.open);
        let open = open.as_ref().filter(|open| open.core.is_of_here());
        let stopper = open.map(|open| &open.stopper);
        stopper.ok_or_else(|| PyRuntimeError::new_err(NOT_OPEN))?.owns_marked(mark);
        Ok(())
    }

    /// The group has ended, and its number may soon be another's.
    fn disown_process_group(&self, group: i32) -> PyResult<()> {
        let group = process_group(group)?;
        if let Some(open) = lock(&self.open).as_ref() {
            open.stopper.disowns_group(group);
        }
        Ok(())
    }
}

impl Step {
    fn with_open<R>(&self, with: impl FnOnce(&Stopper) -> Option<R>) -> PyResult<R> {
        let open = lock(&self.open);
        let done = open.as_ref().filter(|open| open.core.is_of_here());
        done.and_then(|open| with(&open.stopper)).ok_or_else(|| PyRuntimeError::new_err(NOT_OPEN))
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.session.get();
        let core = session.guard_of().shared_core(py)?;
        let spec = lock(&self.spec).take().ok_or_else(entered_twice)?;
        let place = if self.interruptible { Place::here(py)? } else { Place::Blocking };
        let work = if place.is_interruptible() { Work::Interruptible } else { Work::Blocking };
        let stopper = Stopper::new(place, Arc::clone(&core.interrupter));
        let told = Arc::new(Told(Arc::clone(&stopper)));
        match core.guard.begin(session.subject(), spec, work, told) {
            Ok(step) => {
                stopper.begun(step);
                *lock(&self.open) = Some(Open { core, stopper });
                session.guard_of().stepped(py)
            }
            Err(denied) => {
                stopper.leave();
                session.guard_of().stepped(py)?;
                Err(halted::error(py, &denied))
            }
        }
    }

    /// Ends the step. What stopped it is raised in the place of whatever came out of its work.
    fn exit(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<bool> {
        let open = lock(&self.open).take();
        let Some(Open { core, stopper }) = open else {
            return Err(PyRuntimeError::new_err(NOT_OPEN));
        };
        if !core.is_of_here() {
            // A child leaves what its parent entered: see `core`.
            std::mem::forget((core, stopper));
            return Ok(false);
        }
        let Some(step) = stopper.leave() else { return Ok(false) };
        if !step.is_stopped() {
            if !error.is_none() {
                step.handle().record_error(&json::type_name(error));
            }
            // An order may have come this very moment.
            let finished = step.finish().map(|()| false);
            return finished.map_err(|denied| halted::error_after(&denied, error, false));
        }
        let cancelled = stopper.was_interrupted();
        match &stopper.place {
            Place::Thread(thread) => interrupt::take_back(py, *thread, &stopper),
            Place::Task(_, task) if cancelled => place::uncancel(task.bind(py))?,
            Place::Task(..) | Place::Greenlet(..) | Place::Blocking => {}
        }
        let is_halted = !error.is_none() && halted::is_halted(error)?;
        // Also where a step around it was interrupted first, and this one ended with that.
        let ended_early =
            !error.is_none() && (cancelled || stopper.place.is_cancellation(error)?);
        let gave_way = stopper.was_killed() || is_halted || ended_early;
        let denied = if gave_way { step.gave_way() } else { step.finish().err() };
        match denied {
            Some(denied) if !is_halted => Err(halted::error_after(&denied, error, cancelled)),
            _ => Ok(false),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = open else { return };
        if open.core.is_of_here() {
            // Never left: dropped, it is recorded as given up. It is part of a ring with its stopper.
            drop(open.stopper.leave());
        } else {
            std::mem::forget(open);
        }
    }
}

fn entered_twice() -> PyErr {
    PyRuntimeError::new_err("a step is entered once: make another")
}

fn process_group(group: i32) -> PyResult<Pid> {
    // 0 would be the caller's own group, 1 and negative numbers everybody.
    Pid::from_raw(group)
        .filter(|_| group > 1)
        .ok_or_else(|| PyValueError::new_err(format!("{group} is no group of a child process")))
}

/// An awaitable that has ended already.
#[pyclass(module = "estoppel._native")]
pub(crate) struct Ready {
    value: Option<Py<PyAny>>,
}

#[pymethods]
impl Ready {
    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&mut self) -> PyResult<Option<Py<PyAny>>> {
        Err(PyStopIteration::new_err((self.value.take(),)))
    }
}
