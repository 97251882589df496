//! Where a step's work runs: on a thread, in a task of asyncio, in a greenlet of gevent.

use std::sync::Arc;

use pyo3::{
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyString},
};

use crate::{
    halted,
    interrupt::{self, Stopper},
};

/// Where a step's work runs, and so how it is interrupted.
pub(crate) enum Place {
    /// On this thread of Python's.
    Thread(u64),
    /// In a task of asyncio: its loop, and the task.
    Task(Py<PyAny>, Py<PyAny>),
    /// In a greenlet of gevent: its hub's loop, and the greenlet.
    Greenlet(Py<PyAny>, Py<PyAny>),
    /// Where it is not to be interrupted.
    Blocking,
}

impl Place {
    /// Where the caller runs. What was never imported is not looked for: this is on the way of each
    /// step.
    pub(crate) fn here(py: Python<'_>) -> PyResult<Self> {
        let modules = modules(py)?;
        if modules.contains(intern!(py, "asyncio"))?
            && let Some((of_loop, task)) = current_task(py)?
        {
            return Ok(Self::Task(of_loop, task));
        }
        if modules.contains(intern!(py, "gevent"))?
            && let Some((of_loop, greenlet)) = current_greenlet(py)?
        {
            return Ok(Self::Greenlet(of_loop, greenlet));
        }
        if modules.contains(intern!(py, "trio"))? && is_in_trio(py)? {
            // An exception in the thread would hit whichever of trio's tasks runs then.
            return Ok(Self::Blocking);
        }
        Ok(Self::Thread(interrupt::this_thread()))
    }

    pub(crate) const fn is_interruptible(&self) -> bool {
        !matches!(self, Self::Blocking)
    }

    /// Whether an exception is how a task is ended, by whomever.
    pub(crate) fn is_cancellation(&self, error: &Bound<'_, PyAny>) -> PyResult<bool> {
        static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let Self::Task(..) = self else { return Ok(false) };
        error.is_instance(CANCELLED.import(error.py(), "asyncio", "CancelledError")?)
    }

    /// Interrupts the step's work, if it is still under way.
    pub(crate) fn interrupt(py: Python<'_>, stopper: &Arc<Stopper>) {
        if !stopper.is_inside() {
            return;
        }
        let result = match &stopper.place {
            Self::Blocking => Ok(()),
            Self::Thread(thread) => {
                interrupt::raise_in_thread(py, *thread, stopper);
                Ok(())
            }
            Self::Task(of_loop, _) => {
                call_in(py, of_loop, intern!(py, "call_soon_threadsafe"), stopper)
            }
            Self::Greenlet(of_loop, _) => {
                call_in(py, of_loop, intern!(py, "run_callback_threadsafe"), stopper)
            }
        };
        // A loop that is closed, say, has ended the work by itself. What did not end is named in the
        // order's confirmation; a traceback of ours in the agent's output would say less.
        drop(result);
    }
}

fn call_in(
    py: Python<'_>,
    of_loop: &Py<PyAny>,
    method: &Bound<'_, PyString>,
    stopper: &Arc<Stopper>,
) -> PyResult<()> {
    let callback = Interrupt { stopper: Arc::clone(stopper) };
    of_loop.bind(py).call_method1(method, (callback,)).map(drop)
}

/// What a loop calls between its tasks: ends the step's work, if it is still under way.
#[pyclass(frozen, module = "estoppel._native")]
struct Interrupt {
    stopper: Arc<Stopper>,
}

#[pymethods]
impl Interrupt {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        if !self.stopper.is_inside() {
            return Ok(());
        }
        match &self.stopper.place {
            Place::Task(_, task) => {
                self.stopper.note_interrupted();
                task.bind(py).call_method0(intern!(py, "cancel")).map(drop)
            }
            Place::Greenlet(_, greenlet) => {
                self.stopper.note_interrupted();
                let Some(denied) = self.stopper.denied() else { return Ok(()) };
                let exception = halted::of(py, &denied)?;
                greenlet.bind(py).call_method1(intern!(py, "throw"), (exception,)).map(drop)
            }
            Place::Thread(_) | Place::Blocking => Ok(()),
        }
    }
}

/// Undoes a cancellation of ours, so that what comes after the step is not taken for cancelled.
/// Tasks count cancellations from Python 3.11 on.
pub(crate) fn uncancel(task: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = task.py();
    if task.hasattr(intern!(py, "uncancel"))? {
        task.call_method0(intern!(py, "uncancel"))?;
    }
    Ok(())
}

fn modules(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    MODULES
        .get_or_try_init(py, || {
            Ok(py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?.unbind())
        })
        .map(|modules| modules.bind(py))
}

fn current_task(py: Python<'_>) -> PyResult<Option<(Py<PyAny>, Py<PyAny>)>> {
    static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let running = RUNNING_LOOP.import(py, "asyncio", "_get_running_loop")?.call0()?;
    if running.is_none() {
        return Ok(None);
    }
    let task = CURRENT_TASK.import(py, "asyncio", "current_task")?.call1((&running,))?;
    // A callback of a loop is no task: it runs on its thread as plain code does.
    Ok((!task.is_none()).then(|| (running.unbind(), task.unbind())))
}

fn current_greenlet(py: Python<'_>) -> PyResult<Option<(Py<PyAny>, Py<PyAny>)>> {
    static HUB: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    // `gevent.get_hub` would make a hub for a thread that has none.
    let hub = HUB.import(py, "gevent._hub_local", "get_hub_if_exists")?.call0()?;
    if hub.is_none() {
        return Ok(None);
    }
    let of_loop = hub.getattr(intern!(py, "loop"))?;
    let greenlet = CURRENT.import(py, "gevent", "getcurrent")?.call0()?;
    // Code of the hub itself, such as a callback, must not be thrown into.
    let usable = !of_loop.is_none() && !greenlet.is(&hub);
    Ok(usable.then(|| (of_loop.unbind(), greenlet.unbind())))
}

fn is_in_trio(py: Python<'_>) -> PyResult<bool> {
    static IN_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    IN_TASK.import(py, "trio.lowlevel", "in_trio_task")?.call0()?.extract()
}
