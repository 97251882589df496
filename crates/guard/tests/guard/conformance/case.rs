//! What a case is; `tests/conformance/README.md` says what each part means.

use estoppel_guard::{Breaker, Limit};
use estoppel_model::{EntityId, PluginRef, Subject};
use estoppel_testkit::authority::part::Given;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suite {
    pub(super) version: u32,
    pub(super) about: String,
    pub(super) cases: Vec<Case>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) case: String,
    pub(super) why: String,
    #[serde(default)]
    pub(super) guard: GuardSpec,
    pub(super) play: Vec<Action>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GuardSpec {
    pub(super) mode: Option<String>,
    pub(super) on_lost: Option<String>,
    pub(super) tenant: Option<EntityId>,
    pub(super) limits: Limit,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Action {
    Order(Given),
    Check {
        subject: Subject,
        verdict: Verdict,
    },
    Begin {
        step: String,
        subject: Subject,
        tool: String,
        plugin: Option<PluginRef>,
        destination: Option<String>,
        interruptible: Option<bool>,
        verdict: Verdict,
    },
    End {
        step: String,
    },
    Call {
        subject: Subject,
        tool: Option<String>,
        #[serde(default)]
        read_only: bool,
        params: Option<Value>,
        result: Option<Value>,
        error: Option<String>,
        #[serde(default)]
        tokens: u64,
        #[serde(default)]
        cost: f64,
        #[serde(default = "once")]
        times: u32,
        verdict: Verdict,
    },
    Access {
        subject: Subject,
        requester: Option<EntityId>,
        accessed: Option<EntityId>,
        verdict: Verdict,
    },
    Expect {
        step: String,
        state: State,
        order: Option<String>,
        reason: Option<String>,
        message: Option<String>,
        limit: Option<Over>,
    },
    Settled {
        order: String,
        cancelled: u64,
        not_interruptible: Vec<String>,
        #[serde(default)]
        observed_only: bool,
    },
    Scope {
        text: String,
        valid: bool,
    },
    ScopeCheck {
        scope: String,
        stop: bool,
    },
    Silence {
        seconds: u64,
    },
    Pass {
        seconds: u64,
    },
    Answer {},
    Reconnect {},
    Forget {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Running,
    Finished,
    Cancelled,
    Withheld,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Verdict {
    Allowed(Allowed),
    Denied(Refusal),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Allowed {
    Allowed,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) order: Option<String>,
    pub(super) message: Option<String>,
    pub(super) why: Option<String>,
    pub(super) by: Option<String>,
    pub(super) since: Option<u64>,
    pub(super) limit: Option<Over>,
    /// In how many seconds at most to try again.
    pub(super) retry_within: Option<u64>,
}

/// Over which limit a task is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Over {
    pub(super) breaker: Breaker,
    pub(super) max: f64,
    pub(super) value: Option<f64>,
    pub(super) period: Option<u8>,
}

const fn once() -> u32 {
    1
}

impl Case {
    /// The case once for each expectation, with that one turned round; and which action it is.
    pub(super) fn turned_round(&self) -> impl Iterator<Item = (usize, Self)> {
        (0..self.play.len()).filter_map(|place| {
            let mut case = self.clone();
            case.play[place].turn_round().then_some((place, case))
        })
    }
}

impl Action {
    /// Turns the expectation round; whether there is one.
    fn turn_round(&mut self) -> bool {
        match self {
            Self::Check { verdict, .. }
            | Self::Begin { verdict, .. }
            | Self::Call { verdict, .. }
            | Self::Access { verdict, .. } => *verdict = verdict.other(),
            Self::Expect { state: State::Running, .. } => return false,
            Self::Expect { state, .. } => {
                *state = if *state == State::Finished { State::Cancelled } else { State::Finished };
            }
            Self::Settled { cancelled, .. } => *cancelled += 1,
            Self::Scope { valid: turned, .. } | Self::ScopeCheck { stop: turned, .. } => {
                *turned = !*turned;
            }
            _ => return false,
        }
        true
    }
}

impl Verdict {
    /// Another verdict: of a refusal by order, one by another order; of one for a limit, one for another.
    fn other(&self) -> Self {
        match self {
            Self::Denied(refusal) if let Some(over) = &refusal.limit => {
                let limit = Some(Over { max: over.max + 1.0, ..over.clone() });
                Self::Denied(Refusal { limit, ..refusal.clone() })
            }
            Self::Denied(refusal) if refusal.order.is_some() => {
                let order = Some("another".to_owned());
                Self::Denied(Refusal { order, ..refusal.clone() })
            }
            Self::Denied(_) => Self::Allowed(Allowed::Allowed),
            Self::Allowed(_) => Self::Denied(Refusal {
                reason: "halted".to_owned(),
                order: None,
                message: None,
                why: None,
                by: None,
                since: None,
                limit: None,
                retry_within: None,
            }),
        }
    }
}
