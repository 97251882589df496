//! What a step is, what its work is given, and how it can end.

use std::sync::Arc;

use estoppel_extract::{HostError, HostPort};
use estoppel_model::{EntityId, IdError, PluginRef};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{audit::summary, denied::Denied, in_flight::Running};

/// How much of an error is recorded.
const ERROR_CHARS_MAX: usize = 1_000;
/// Port of a destination that names none.
const HTTPS: u16 = 443;
/// The `action` of asking a model.
const MODEL_CALL: &str = "model_call";
/// The `action` of loading a plugin.
pub(crate) const PLUGIN_LOAD: &str = "plugin_load";

/// What a step is about to do, for the check and for the audit log.
#[derive(Debug, Clone)]
#[must_use]
pub struct StepSpec {
    pub(crate) action: String,
    pub(crate) tool: Option<EntityId>,
    pub(crate) plugin: Option<PluginRef>,
    pub(crate) destination: Option<HostPort>,
    pub(crate) accessed_tenant: Option<EntityId>,
    pub(crate) params: Option<Box<RawValue>>,
    read_only: bool,
}

/// Why a step cannot be described so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepSpecError {
    /// A name is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A destination is none.
    #[error(transparent)]
    Destination(#[from] HostError),
}

impl StepSpec {
    /// A step that does something other than to call a tool, such as `model_call`.
    pub fn action(action: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            tool: None,
            plugin: None,
            destination: None,
            accessed_tenant: None,
            params: None,
            read_only: false,
        }
    }

    /// A call of a tool.
    ///
    /// # Errors
    /// When the name is none that a scope could hold.
    pub fn tool(name: &str) -> Result<Self, StepSpecError> {
        Ok(Self { tool: Some(EntityId::new(name)?), ..Self::action("tool_call") })
    }

    /// Another name for what is done than the one that goes with a tool or without.
    pub fn named(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }

    /// The plugin that the tool belongs to, with its version where it is known.
    ///
    /// # Errors
    /// When name or version are none that a scope could hold.
    pub fn plugin(mut self, name: &str, version: Option<&str>) -> Result<Self, StepSpecError> {
        let version = version.map(EntityId::new).transpose()?;
        self.plugin = Some(PluginRef { name: EntityId::new(name)?, version });
        Ok(self)
    }

    /// Where the step will connect to: `HOST`, `HOST:PORT` or `[IPV6]:PORT`; port 443 if it is not
    /// said. A block of the destination then stops the step.
    ///
    /// # Errors
    /// When it is no host.
    pub fn destination(mut self, destination: &str) -> Result<Self, StepSpecError> {
        self.destination = Some(HostPort::parse(destination, Some(HTTPS))?);
        Ok(self)
    }

    /// Whose data the step touches, where that may be another tenant than the subject's.
    pub fn accessed_tenant(mut self, tenant: EntityId) -> Self {
        self.accessed_tenant = Some(tenant);
        self
    }

    /// Declares that the step changes nothing anywhere: it may be while a limit is in force that lets
    /// only such steps be. A claim of the code's own, which nobody checks.
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whether it counts as a step that changes nothing: it is declared so; or it only asks a model,
    /// whose answer changes nothing until a tool is called; or it only loads a plugin, whose tools
    /// are steps of their own.
    pub(crate) fn changes_nothing(&self) -> bool {
        let is_harmless = matches!(self.action.as_str(), MODEL_CALL | PLUGIN_LOAD);
        self.read_only || (is_harmless && self.tool.is_none())
    }

    /// What the tool is called with. What is very large or very deep is recorded shortened.
    pub fn params(mut self, params: &impl Serialize) -> Self {
        self.params = Some(summary(params));
        self
    }
}

/// What a model call used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// The model.
    pub model: Option<String>,
    /// Tokens that went in.
    pub input_tokens: Option<u64>,
    /// Tokens that came out.
    pub output_tokens: Option<u64>,
    /// Cost in US dollars.
    pub estimated_cost: Option<f64>,
}

/// What the work of a step is given: to learn that it is stopped, and to add to its record.
#[derive(Debug, Clone)]
pub struct StepHandle {
    pub(crate) running: Arc<Running>,
}

impl StepHandle {
    /// Resolves when the step is stopped. Only for work that goes on elsewhere, such as a process
    /// to be killed: the future of [`crate::Guard::step`] itself is dropped then.
    pub async fn cancelled(&self) {
        self.running.stopped().await;
    }

    /// Whether the step is stopped; for loops inside [`crate::Guard::step_blocking`], which should
    /// return as soon as it is.
    pub fn is_cancelled(&self) -> bool {
        self.running.stopped_by().is_some()
    }

    /// Records what came out. What is very large or very deep is recorded shortened.
    pub fn record_result(&self, result: &impl Serialize) {
        self.running.notes().result = Some(summary(result));
    }

    /// Records that the work failed, and how; at most its first 1,000 characters. A step whose error is
    /// recorded counts as an error in a row of those.
    pub fn record_error(&self, error: &(impl std::fmt::Display + ?Sized)) {
        let error = error.to_string().chars().take(ERROR_CHARS_MAX).collect();
        self.running.notes().error = Some(error);
    }

    /// Records what a model call used.
    pub fn record_usage(&self, usage: Usage) {
        self.running.notes().usage = usage;
    }
}

/// Why a step came to nothing. Shown, it is the text for the agent's user.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// It was refused before it began.
    #[error(transparent)]
    Denied(Denied),
    /// It was stopped in flight: its future was dropped.
    #[error(transparent)]
    Cancelled(Denied),
    /// It was stopped in flight and could not be interrupted; its result is withheld. Of blocking
    /// work, it may still be running.
    #[error(transparent)]
    Withheld(Denied),
    /// The runtime ended before the step did.
    #[error("the runtime ended before the step did")]
    RuntimeEnded,
}

impl StepError {
    /// The refusal behind it.
    pub const fn denied(&self) -> Option<&Denied> {
        match self {
            Self::Denied(denied) | Self::Cancelled(denied) | Self::Withheld(denied) => Some(denied),
            Self::RuntimeEnded => None,
        }
    }

    /// The refusal behind it, by value.
    pub fn into_denied(self) -> Option<Denied> {
        match self {
            Self::Denied(denied) | Self::Cancelled(denied) | Self::Withheld(denied) => Some(denied),
            Self::RuntimeEnded => None,
        }
    }
}
