//! Playbooks: what is done about an incident, as data.
//!
//! A [`Playbook`] is read from YAML by [`Playbook::parse`], which finds everything that can be
//! found before a run: an action that is not known, a parameter of the wrong type, a stop that
//! waits for a capture, a cycle. A [`Run`] is the fold of a run's journal in the ledger, and
//! [`Run::next`] says what to do now; after a crash it says the same.
//!
//! Invariants:
//! - A step whose intent is recorded without a result is observed before anything else happens to
//!   it (*observe-before-retry*). What can be neither observed nor repeated is `indeterminate`.
//! - A stop waits for nothing but stops, and never queues behind a capture.
//! - A parameter is a literal or one whole typed input: no text of an event is ever put together
//!   into a command, an address or a scope.
//!
//! This crate does no input or output, executes nothing and reads no clock.

mod action;
mod builtin;
mod diagnostic;
mod input;
mod lint;
mod plan;
mod playbook;
mod run;
mod syntax;

pub use estoppel_model::journal;

pub use action::{ActionKind, Call, Effect, Lane, Repetition};
pub use builtin::{BUILTIN, PROMPT_INJECTION, RUNAWAY, builtin};
pub use diagnostic::{Code, Diagnostic, Diagnostics};
pub use input::{InputError, InputType, Inputs, Value};
pub use plan::{Plan, PlannedStep};
pub use playbook::{
    Approval, Condition, InputSpec, OnTrouble, Playbook, Retry, SOURCE_BYTES_MAX, STEPS_MAX, Step,
    Undo,
};
pub use run::{
    AfterObservation, Next, Observation, Run, RunError, RunState, Runs, StepState, StepView,
    WORK_IN_FLIGHT_MAX, WaitReason,
};
