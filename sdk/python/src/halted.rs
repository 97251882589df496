//! The exceptions `estoppel.Halted` and `estoppel.Refused`, which Python defines and this module raises.

use estoppel_guard::Denied;
use pyo3::{intern, prelude::*, sync::PyOnceLock};

/// The class.
pub(crate) fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CLASS.import(py, "estoppel._halted", "Halted")
}

/// The class of refusals of one step, whose agent may go on.
fn refused(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CLASS.import(py, "estoppel._refused", "Refused")
}

/// The exception for a refusal: made of its JSON, and of its line for people.
pub(crate) fn of<'py>(py: Python<'py>, denied: &Denied) -> PyResult<Bound<'py, PyAny>> {
    let class = if denied.reason.is_of_the_step() { refused(py)? } else { class(py)? };
    class.call1(arguments(denied))
}

/// What the exception is made of.
pub(crate) fn arguments(denied: &Denied) -> (String, String) {
    (serde_json::to_string(denied).unwrap_or_default(), format!("{denied:#}"))
}

/// The exception, to be raised.
#[cold]
pub(crate) fn error(py: Python<'_>, denied: &Denied) -> PyErr {
    match of(py, denied) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// The exception, to be raised in the place of one that came out of the work; which is no news where
/// it is how the work was interrupted.
#[cold]
pub(crate) fn error_after(
    denied: &Denied,
    error: &Bound<'_, PyAny>,
    is_interruption: bool,
) -> PyErr {
    let py = error.py();
    let exception = of(py, denied).and_then(|exception| {
        if !error.is_none() {
            exception.setattr(intern!(py, "__context__"), error)?;
            exception.setattr(intern!(py, "__suppress_context__"), is_interruption)?;
        }
        Ok(exception)
    });
    exception.map_or_else(|error| error, PyErr::from_value)
}

/// Whether an exception is this one.
pub(crate) fn is_halted(error: &Bound<'_, PyAny>) -> PyResult<bool> {
    error.is_instance(class(error.py())?)
}
