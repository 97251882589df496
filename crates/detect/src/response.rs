//! What follows from detections: a report, a question to a person, or a halt (*bounded automation*).

use std::{collections::VecDeque, time::Duration};

use estoppel_model::{Kind, Scope, Subject, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    DetectPolicy, Detection, DetectionId, EgressMode, Family, detection::EGRESS_UNLISTED,
    recent::Recent,
};

/// Most subjects whose detections are remembered.
const SUBJECTS_MAX: usize = 16_384;
/// Most detections that are remembered of one subject.
const DETECTIONS_MAX: usize = 64;

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// It is recorded.
    Report,
    /// A person is asked whether to halt.
    Ask,
    /// The session, task or plugin is halted.
    Act,
}

/// What follows from the detections of one subject so far.
///
/// Without an allowlist nothing is known to be foreign, and all is only reported. Unlisted egress
/// alone asks, or acts where the owner has set `auto`. It acts when a second, independent signal
/// lies within the window. Text with the shape of an injection alone asks when it is grave. A task
/// that is over a limit is halted.
///
/// For those who are watched closely ([`DetectPolicy::tightened`]) unlisted egress alone acts, and
/// whatever else is detected asks.
pub fn assess(detections: &[Detection], policy: &DetectPolicy) -> Response {
    let Some(latest) = detections.iter().map(|detection| detection.received_at).max() else {
        return Response::Report;
    };
    // What is too much was decided beforehand, by whoever set the limit.
    if detections.iter().any(|detection| detection.family == Family::Runaway) {
        return Response::Act;
    }
    if policy.allowlist.is_none() && !policy.watched {
        return Response::Report;
    }
    let recent =
        |detection: &&Detection| latest.since(detection.received_at) <= policy.signal_window;
    let unlisted =
        detections.iter().filter(recent).any(|detection| detection.rule == EGRESS_UNLISTED.name);
    let mut others = detections
        .iter()
        .filter(recent)
        .filter(|detection| detection.family == Family::Injection)
        .peekable();
    let second = others.peek().is_some();
    let grave = others.any(|detection| detection.severity >= estoppel_model::Severity::High);
    match (unlisted, second) {
        (true, true) => Response::Act,
        (true, false) if policy.egress == EgressMode::Auto || policy.watched => Response::Act,
        (true, false) => Response::Ask,
        (false, true) if grave || policy.watched => Response::Ask,
        (false, _) => Response::Report,
    }
}

/// The widest scope that a detection of this family may halt by itself: a session, else a task, else
/// a plugin. A runaway is a task, else a session: its plugin has done nothing wrong.
pub fn halt_scope(family: Family, subject: &Subject) -> Option<Scope> {
    let kinds: &[Kind] = match family {
        Family::Egress | Family::Injection => &[Kind::Session, Kind::Task, Kind::Plugin],
        Family::Runaway => &[Kind::Task, Kind::Session],
    };
    kinds.iter().find_map(|kind| subject.id(*kind).map(|id| Scope::entity(*kind, id.clone())))
}

/// How many halts were given by themselves within the last hour.
#[derive(Debug, Clone, Default)]
pub struct HaltRate {
    given: VecDeque<Timestamp>,
}

impl HaltRate {
    /// Whether one more may be given now; counts it if so.
    pub fn permit(&mut self, now: Timestamp, per_hour_max: u32) -> bool {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        // A clock that was set back leaves entries of the future; they count until it is there.
        while self.given.front().is_some_and(|at| now.since(*at) >= HOUR) {
            self.given.pop_front();
        }
        let room = self.given.len() < usize::try_from(per_hour_max).unwrap_or(usize::MAX);
        if room {
            self.given.push_back(now);
        }
        room
    }
}

/// What follows from one detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What follows.
    pub response: Response,
    /// What a halt would reach; absent when nothing narrow enough is known.
    pub scope: Option<Scope>,
    /// The detections that it rests on.
    pub because: Vec<DetectionId>,
    /// Why it is less than it would have been.
    pub held_back: Option<&'static str>,
}

/// Folds detections to decisions.
#[derive(Debug, Clone)]
pub struct Responses {
    subjects: Recent<Scope, State>,
    rate: HaltRate,
}

#[derive(Debug, Clone, Default)]
struct State {
    detections: VecDeque<Detection>,
    /// A halt is given once; whoever releases it decides anew.
    acted: bool,
}

impl Default for Responses {
    fn default() -> Self {
        Self::new()
    }
}

impl Responses {
    /// Responses to nothing yet.
    pub fn new() -> Self {
        Self { subjects: Recent::new(SUBJECTS_MAX), rate: HaltRate::default() }
    }

    /// Takes a detection in and says what follows from it.
    pub fn respond(&mut self, detection: &Detection, policy: &DetectPolicy) -> Decision {
        let Some(scope) = halt_scope(detection.family, &detection.subject) else {
            let response = assess(std::slice::from_ref(detection), policy);
            let held = (response == Response::Act)
                .then_some("neither session nor task nor plugin is known: a person must decide");
            return Decision {
                response: response.min(Response::Ask),
                scope: None,
                because: vec![detection.id.clone()],
                held_back: held,
            };
        };
        let (_, state) = self.subjects.touch(&scope, State::default);
        if !state.detections.iter().any(|known| known.id == detection.id) {
            if state.detections.len() == DETECTIONS_MAX {
                state.detections.pop_front();
            }
            state.detections.push_back(detection.clone());
        }
        let known = state.detections.make_contiguous();
        let response = assess(known, policy);
        let because = known.iter().map(|known| known.id.clone()).collect();
        let mut decision = Decision { response, scope: Some(scope), because, held_back: None };
        if response == Response::Act {
            if state.acted {
                (decision.response, decision.held_back) =
                    (Response::Report, Some("it has been halted for this before"));
            } else if self.rate.permit(detection.received_at, policy.halts_per_hour_max) {
                state.acted = true;
            } else {
                (decision.response, decision.held_back) =
                    (Response::Ask, Some("the hour's halts by detection are used up"));
            }
        }
        decision
    }

    /// Knows that a scope was halted by itself before this process began.
    pub fn halted(&mut self, scope: &Scope) {
        self.subjects.touch(scope, State::default).1.acted = true;
    }

    /// Forgets what a scope was halted for: a person has released it.
    pub fn released(&mut self, scope: &Scope) {
        *self.subjects.touch(scope, State::default).1 = State::default();
    }
}

#[cfg(test)]
mod tests;
