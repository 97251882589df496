//! The actions that playbooks know: their parameters, their effect, whether they may be repeated.
//!
//! What an action does is done elsewhere (`server` gives orders and sends host actions, `connect`
//! pages). A new action is a variant here and an executor there; nothing else knows the list.

use estoppel_model::{Destination, EntityId, Limit, Scope};
use serde::Deserialize;

use crate::input::{InputType, MICRO, Value};

/// What a step does to the world outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing that matters to what it acts on.
    None,
    /// Something that can be undone.
    Reversible,
    /// Something that cannot.
    Destructive,
}

impl Effect {
    /// The effect's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reversible => "reversible",
            Self::Destructive => "destructive",
        }
    }
}

/// Which queue a step waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Stops: they start as soon as what they need has ended, all at once.
    Stop,
    /// Everything else: some at a time.
    Work,
}

/// Whether doing an action twice is the same as doing it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repetition {
    /// It carries an id by which a repetition is recognised, or it leads to the same state.
    Idempotent,
    /// It must not be done again while nobody knows whether it was done.
    Once,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// Gives a halt order.
    Halt,
    /// Freezes the session's processes.
    Freeze,
    /// Gives a block order for a destination.
    Block,
    /// Gives a limit order.
    Limit,
    /// Captures evidence of the session's processes.
    Capture,
    /// Pages somebody.
    Notify,
    /// Kills the session's processes.
    Kill,
    /// Lets frozen processes go on.
    Thaw,
}

/// A parameter of an action.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) of: InputType,
    pub(crate) required: bool,
}

const fn required(name: &'static str, of: InputType) -> Parameter {
    Parameter { name, of, required: true }
}
const fn optional(name: &'static str, of: InputType) -> Parameter {
    Parameter { name, of, required: false }
}

impl ActionKind {
    /// All actions, in the order in which they are listed to people.
    pub const ALL: [Self; 8] = [
        Self::Halt,
        Self::Freeze,
        Self::Block,
        Self::Limit,
        Self::Capture,
        Self::Notify,
        Self::Kill,
        Self::Thaw,
    ];

    /// The action's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Freeze => "freeze",
            Self::Block => "block",
            Self::Limit => "limit",
            Self::Capture => "capture",
            Self::Notify => "notify",
            Self::Kill => "kill",
            Self::Thaw => "thaw",
        }
    }

    /// The action of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }

    /// What the action does at most.
    pub const fn effect(self) -> Effect {
        match self {
            Self::Capture | Self::Notify => Effect::None,
            Self::Halt | Self::Freeze | Self::Block | Self::Limit | Self::Thaw => {
                Effect::Reversible
            }
            Self::Kill => Effect::Destructive,
        }
    }

    /// The lane that a step of this action waits in unless it says otherwise.
    ///
    /// A kill waits for evidence and is therefore no stop: freezing is.
    pub const fn lane(self) -> Lane {
        match self {
            Self::Halt | Self::Freeze | Self::Block | Self::Limit => Lane::Stop,
            Self::Capture | Self::Notify | Self::Kill | Self::Thaw => Lane::Work,
        }
    }

    /// Whether the action may be repeated when nobody knows whether it was done.
    ///
    /// Orders carry an id, pages a deduplication key; frozen is frozen; a second capture destroys
    /// nothing. A thaw could undo somebody's freeze of meanwhile, a kill could hit a process that
    /// was started since.
    pub const fn repetition(self) -> Repetition {
        match self {
            Self::Halt
            | Self::Freeze
            | Self::Block
            | Self::Limit
            | Self::Capture
            | Self::Notify => Repetition::Idempotent,
            Self::Kill | Self::Thaw => Repetition::Once,
        }
    }

    /// How the effect is taken back, where it can be, unless the step says otherwise.
    pub const fn undo(self) -> Option<&'static str> {
        match self {
            Self::Halt => Some("a lead releases the halt by its id, with a reason"),
            Self::Block => Some("a lead releases the block by its id, with a reason"),
            Self::Limit => Some("a lead releases the limit by its id, with a reason"),
            Self::Freeze => Some("thaw, once no halt reaches the session"),
            Self::Thaw => Some("freeze"),
            Self::Capture | Self::Notify | Self::Kill => None,
        }
    }

    pub(crate) const fn parameters(self) -> &'static [Parameter] {
        const SESSION: &[Parameter] = &[required("session", InputType::Session)];
        const HALT: &[Parameter] =
            &[required("scope", InputType::Scope), required("reason", InputType::Text)];
        const BLOCK: &[Parameter] = &[
            required("scope", InputType::Scope),
            required("destination", InputType::Destination),
            required("reason", InputType::Text),
        ];
        const LIMIT: &[Parameter] = &[
            required("scope", InputType::Scope),
            required("reason", InputType::Text),
            optional("steps_max", InputType::Count),
            optional("wall_clock_ms_max", InputType::Count),
            optional("cost_usd_max", InputType::Usd),
            optional("tokens_max", InputType::Count),
            optional("concurrency_max", InputType::Count),
            optional("errors_in_a_row_max", InputType::Count),
            optional("identical_calls_max", InputType::Count),
            optional("requests_per_minute", InputType::Count),
            optional("read_only", InputType::Flag),
        ];
        const NOTIFY: &[Parameter] =
            &[optional("channel", InputType::Name), required("summary", InputType::Text)];
        match self {
            Self::Halt => HALT,
            Self::Block => BLOCK,
            Self::Limit => LIMIT,
            Self::Notify => NOTIFY,
            Self::Freeze | Self::Capture | Self::Kill | Self::Thaw => SESSION,
        }
    }

    /// The call with its parameters. `None` when one is missing or of another type, which the
    /// linter and the run's inputs rule out beforehand.
    pub(crate) fn call(self, mut parameter: impl FnMut(&str) -> Option<Value>) -> Option<Call> {
        let mut of = |name: &str, wanted: InputType| match (wanted, parameter(name)?) {
            (InputType::Scope, Value::Session(id)) => {
                Some(Value::Scope(Scope::entity(estoppel_model::Kind::Session, id)))
            }
            (_, value) => Some(value),
        };
        let mut session = || match of("session", InputType::Session)? {
            Value::Session(session) => Some(session),
            _ => None,
        };
        match self {
            Self::Freeze => session().map(|session| Call::Freeze { session }),
            Self::Thaw => session().map(|session| Call::Thaw { session }),
            Self::Kill => session().map(|session| Call::Kill { session }),
            Self::Capture => session().map(|session| Call::Capture { session }),
            Self::Halt => match (of("scope", InputType::Scope)?, of("reason", InputType::Text)?) {
                (Value::Scope(scope), Value::Text(reason)) => Some(Call::Halt { scope, reason }),
                _ => None,
            },
            Self::Block => match (
                of("scope", InputType::Scope)?,
                of("destination", InputType::Destination)?,
                of("reason", InputType::Text)?,
            ) {
                (Value::Scope(scope), Value::Destination(destination), Value::Text(reason)) => {
                    Some(Call::Block { scope, destination, reason })
                }
                _ => None,
            },
            Self::Limit => match (of("scope", InputType::Scope)?, of("reason", InputType::Text)?) {
                (Value::Scope(scope), Value::Text(reason)) => {
                    let limit = limit(|name, wanted| of(name, wanted))?;
                    Some(Call::Limit { scope, limit: Box::new(limit), reason })
                }
                _ => None,
            },
            Self::Notify => {
                match (of("channel", InputType::Name), of("summary", InputType::Text)?) {
                    (Some(Value::Name(channel)), Value::Text(summary)) => {
                        Some(Call::Notify { channel: Some(channel), summary })
                    }
                    (None, Value::Text(summary)) => Some(Call::Notify { channel: None, summary }),
                    _ => None,
                }
            }
        }
    }
}

impl std::fmt::Display for ActionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The bounds among an action's parameters. `None` when a count is larger than it can be.
fn limit(mut parameter: impl FnMut(&str, InputType) -> Option<Value>) -> Option<Limit> {
    let mut count = |name: &str| match parameter(name, InputType::Count) {
        Some(Value::Count(count)) => Some(count),
        _ => None,
    };
    let [steps_max, wall_clock_ms_max, tokens_max] =
        ["steps_max", "wall_clock_ms_max", "tokens_max"].map(&mut count);
    let small =
        ["concurrency_max", "errors_in_a_row_max", "identical_calls_max", "requests_per_minute"]
            .map(|name| count(name).map(u32::try_from).transpose().ok());
    let [concurrency_max, errors_in_a_row_max, identical_calls_max, requests_per_minute] = small;
    let cost_usd_max = match parameter("cost_usd_max", InputType::Usd) {
        #[expect(clippy::cast_precision_loss, reason = "a budget beyond 2^53 millionths is none")]
        Some(Value::Usd { micro }) => Some(micro as f64 / MICRO as f64),
        _ => None,
    };
    Some(Limit {
        steps_max,
        wall_clock_ms_max,
        cost_usd_max,
        tokens_max,
        concurrency_max: concurrency_max?,
        errors_in_a_row_max: errors_in_a_row_max?,
        identical_calls_max: identical_calls_max?,
        requests_per_minute: requests_per_minute?,
        read_only: parameter("read_only", InputType::Flag) == Some(Value::Flag(true)),
        ..Limit::default()
    })
}

/// An action with its parameters, ready for its executor.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Give a halt order.
    Halt {
        /// What it reaches.
        scope: Scope,
        /// Why.
        reason: String,
    },
    /// Freeze the session's processes.
    Freeze {
        /// Whose.
        session: EntityId,
    },
    /// Give a block order.
    Block {
        /// Whom it reaches.
        scope: Scope,
        /// Where nothing may go.
        destination: Destination,
        /// Why.
        reason: String,
    },
    /// Give a limit order.
    Limit {
        /// Whom it reaches.
        scope: Scope,
        /// The bounds.
        limit: Box<Limit>,
        /// Why.
        reason: String,
    },
    /// Capture evidence of the session's processes.
    Capture {
        /// Whose.
        session: EntityId,
    },
    /// Page somebody.
    Notify {
        /// The channel's name in the server's configuration; absent: all of them.
        channel: Option<EntityId>,
        /// What to say.
        summary: String,
    },
    /// Kill the session's processes.
    Kill {
        /// Whose.
        session: EntityId,
    },
    /// Let frozen processes go on.
    Thaw {
        /// Whose.
        session: EntityId,
    },
}

impl Call {
    /// Which action it is.
    pub const fn kind(&self) -> ActionKind {
        match self {
            Self::Halt { .. } => ActionKind::Halt,
            Self::Freeze { .. } => ActionKind::Freeze,
            Self::Block { .. } => ActionKind::Block,
            Self::Limit { .. } => ActionKind::Limit,
            Self::Capture { .. } => ActionKind::Capture,
            Self::Notify { .. } => ActionKind::Notify,
            Self::Kill { .. } => ActionKind::Kill,
            Self::Thaw { .. } => ActionKind::Thaw,
        }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Halt { scope, .. } => write!(f, "halt {scope}"),
            Self::Freeze { session } => write!(f, "freeze the processes of session {session}"),
            Self::Block { scope, destination, .. } => {
                write!(f, "block {destination} for {scope}")
            }
            Self::Limit { scope, limit, .. } => write!(f, "limit {scope} to {limit}"),
            Self::Capture { session } => {
                write!(f, "capture evidence of the processes of session {session}")
            }
            Self::Notify { channel: Some(channel), .. } => write!(f, "page channel {channel}"),
            Self::Notify { channel: None, .. } => f.write_str("page every configured channel"),
            Self::Kill { session } => write!(f, "kill the processes of session {session}"),
            Self::Thaw { session } => {
                write!(f, "let the frozen processes of session {session} go on")
            }
        }
    }
}
