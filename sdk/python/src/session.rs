//! Who acts, with the questions that are asked about them.

use estoppel_guard::Access;
use estoppel_model::{EntityId, Subject};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{guard::Guard, halted, json::as_json};

/// A subject under a guard.
#[pyclass(frozen, subclass, module = "estoppel._native")]
pub(crate) struct Session {
    guard: Py<Guard>,
    subject: Subject,
}

/// Reads an id of Python's.
pub(crate) fn id(text: Option<&str>) -> PyResult<Option<EntityId>> {
    let id = text.map(EntityId::new).transpose();
    id.map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (guard, id=None, *, user=None, tenant=None, task=None, component=None, agent=None))]
    fn new(
        guard: Py<Guard>,
        id: Option<&str>,
        user: Option<&str>,
        tenant: Option<&str>,
        task: Option<&str>,
        component: Option<&str>,
        agent: Option<&str>,
    ) -> PyResult<Self> {
        let subject = Subject {
            agent: self::id(agent)?.or_else(|| guard.get().agent().cloned()),
            session: self::id(id)?,
            user: self::id(user)?,
            tenant: self::id(tenant)?,
            task: self::id(task)?,
            component: self::id(component)?,
            ..Subject::default()
        };
        Ok(Self { guard, subject })
    }

    /// Raises `Halted` when the session must not act now.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.guard.get().core(py)?;
        core.guard.check(&self.subject).map_err(|denied| halted::error(py, &denied))
    }

    /// Whether the session may act now.
    fn allowed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.guard.get().core(py)?.guard.check(&self.subject).is_ok())
    }

    /// Whether a part of the product is on for the session.
    fn enabled(&self, py: Python<'_>, component: &str) -> PyResult<bool> {
        let subject = Subject { component: id(Some(component))?, ..self.subject.clone() };
        Ok(self.guard.get().core(py)?.guard.check(&subject).is_ok())
    }

    /// Records an access to a tenant's data, or raises `Halted`.
    #[pyo3(signature = (requester_tenant, accessed_tenant, action, params=None, component=None))]
    fn access(
        &self,
        py: Python<'_>,
        requester_tenant: Option<&str>,
        accessed_tenant: Option<&str>,
        action: &str,
        params: Option<&Bound<'_, PyAny>>,
        component: Option<&str>,
    ) -> PyResult<()> {
        let mut access = Access::new(action, id(requester_tenant)?, id(accessed_tenant)?);
        if let Some(params) = params {
            access = as_json(params, |params| access.params(params));
        }
        let component = id(component)?.or_else(|| self.subject.component.clone());
        let subject = Subject { component, ..self.subject.clone() };
        let core = self.guard.get().core(py)?;
        core.guard.access(&subject, access).map_err(|denied| halted::error(py, &denied))
    }

    /// Records that a plugin is loaded, or raises `Halted`.
    #[pyo3(signature = (name, version=None))]
    fn load_plugin(&self, py: Python<'_>, name: &str, version: Option<&str>) -> PyResult<()> {
        let core = self.guard.get().core(py)?;
        core.guard
            .load_plugin(&self.subject, name, version)
            .map_err(|error| PyValueError::new_err(error.to_string()))?
            .map_err(|denied| halted::error(py, &denied))
    }

    /// The guard.
    #[getter]
    fn guard(&self, py: Python<'_>) -> Py<Guard> {
        self.guard.clone_ref(py)
    }

    /// The session's id.
    #[getter]
    fn id(&self) -> Option<&str> {
        self.subject.session.as_ref().map(EntityId::as_str)
    }

    /// The user.
    #[getter]
    fn user(&self) -> Option<&str> {
        self.subject.user.as_ref().map(EntityId::as_str)
    }

    /// The tenant.
    #[getter]
    fn tenant(&self) -> Option<&str> {
        self.subject.tenant.as_ref().map(EntityId::as_str)
    }

    /// The agent.
    #[getter]
    fn agent(&self) -> Option<&str> {
        self.subject.agent.as_ref().map(EntityId::as_str)
    }

    /// The task.
    #[getter]
    fn task(&self) -> Option<&str> {
        self.subject.task.as_ref().map(EntityId::as_str)
    }

    fn __repr__(&self) -> String {
        format!("<estoppel.Session {}>", self.subject)
    }
}

impl Session {
    pub(crate) const fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn guard_of(&self) -> &Guard {
        self.guard.get()
    }
}
