//! The native half of the Python package `estoppel`: `estoppel._native`.
//!
//! It puts the Rust guard (`estoppel-guard`) behind Python's objects. The network, the confirmations
//! and the audit log run on a thread that never takes Python's lock; a check reads an index in memory.
//! What stops what in Python is told in `interrupt`; what a fork leaves behind, in `core`.
//!
//! It is an implementation detail: what users may rely on is the package around it.

mod clock;
mod core;
mod guard;
mod halted;
mod interrupt;
mod json;
mod marked;
mod place;
mod session;
mod step;

use pyo3::{exceptions::PyValueError, prelude::*};

/// The native module.
#[pymodule(name = "_native")]
mod native {
    use super::{
        PyResult, PyValueError, Python, core, guard, halted, interrupt, marked, pyfunction,
    };

    #[pymodule_export]
    use super::{guard::Guard, session::Session, step::Step};

    /// Notes that this process is the child of a fork.
    #[pyfunction]
    fn after_fork_in_child() {
        core::forked();
    }

    /// Why the calling thread is being interrupted: the refusal as JSON and as a line.
    #[pyfunction]
    fn raised_here(py: Python<'_>) -> PyResult<Option<(String, String)>> {
        Ok(interrupt::raised_here(py).as_ref().map(halted::arguments))
    }

    /// Whether processes can be found by a mark in their environment: on Linux.
    #[pyfunction]
    const fn finds_marked() -> bool {
        marked::IS_POSSIBLE
    }

    /// Kills what carries this `NAME=VALUE` in its environment, with all that it started, and waits
    /// for its end, two seconds at most. Whether nothing is left.
    #[pyfunction]
    fn kill_marked(py: Python<'_>, mark: &str) -> PyResult<bool> {
        let mark = marked::Mark::new(mark)
            .ok_or_else(|| PyValueError::new_err("write a long NAME=VALUE of your own"))?;
        Ok(py.detach(|| marked::kill(&mark, interrupt::KILL_MAX).all))
    }

    /// Reads bounds, as JSON, without setting them. Raises `ValueError` when they are none.
    #[pyfunction]
    fn check_limits(json: &str) -> PyResult<()> {
        guard::read_limits(json).map(drop)
    }

    /// Whether the module was built for release: what is measured with another is no figure.
    #[pyfunction]
    const fn is_release() -> bool {
        !cfg!(debug_assertions)
    }

    /// The package's version.
    #[pyfunction]
    const fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}
