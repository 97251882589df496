//! What an enforcer can see of the invariants while it runs.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use estoppel_model::{Boottime, OrderBody, OrderId};

use super::{Answer, Observation, Tally, Violation};
use crate::{
    Now,
    break_glass::{BreakGlass, USE_MAX},
    enforcer::{Effect, Enforcer, Input, Keep},
    frame::{Stage, ToEnforcer, ToServer},
};

/// Most pings that are remembered; an enforcer forgets as many.
const PINGS_MAX: usize = 64;

/// Drives an enforcer and checks what goes in against what comes out.
#[derive(Debug)]
pub struct EnforcerWatch {
    tally: Arc<Tally>,
    /// Nonce and instant of what was sent on this connection, oldest first.
    pings: VecDeque<(u64, Boottime)>,
    /// How long the server's leases are, from its welcome.
    lease: Duration,
    /// Kept orders are told with the first step.
    started: bool,
}

/// What of an input matters after the step has taken it.
enum Heard {
    Connection,
    Welcome(Duration),
    Pong {
        nonce: u64,
        staleness: Duration,
    },
    /// Time of a break-glass is paid for.
    Paid,
    Other,
}

impl EnforcerWatch {
    /// A watch of an enforcer that takes its first step.
    pub fn new(tally: Arc<Tally>) -> Self {
        Self { tally, pings: VecDeque::new(), lease: Duration::ZERO, started: false }
    }

    /// What was counted.
    pub const fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Takes the enforcer's step and returns its effects, and which invariants it broke.
    pub fn step(
        &mut self,
        enforcer: &mut Enforcer,
        input: Input,
        now: Now,
    ) -> (Vec<Effect>, Vec<Violation>) {
        let heard = Heard::of(&input);
        let heard_paid = matches!(heard, Heard::Paid);
        let (lease, in_force) = (enforcer.lease_until(), enforcer.verdicts().in_force());
        let goes_on = enforcer.goes_on_until();
        let effects = enforcer.step(input, now);
        let mut violations = Vec::new();
        let mut observe = |seen| violations.extend(self.tally.observe(seen).err());
        let answer = match heard {
            Heard::Connection => {
                self.pings.clear();
                None
            }
            Heard::Welcome(lease) => {
                self.lease = lease;
                None
            }
            Heard::Pong { nonce, staleness } => {
                let sent = self.pings.iter().find(|(own, _)| *own == nonce);
                sent.map(|(_, sent)| Answer { sent: *sent, lease: self.lease, staleness })
            }
            Heard::Paid | Heard::Other => None,
        };
        if let Some(until) = enforcer.goes_on_until().filter(|until| Some(*until) > goes_on) {
            let (now, lease_until) = (now.boot, enforcer.lease_until());
            observe(Observation::WentOn { until, now, lease_until, paid: heard_paid });
        }
        spent(&effects).for_each(&mut observe);
        if enforcer.lease_until() != lease {
            observe(Observation::LeaseMoved { from: lease, until: enforcer.lease_until(), answer });
        }
        let released = released(&effects);
        for (order, named) in &released {
            observe(Observation::Ended { order: *order, named: *named });
        }
        let came = effects.iter().filter(|effect| matches!(effect, Effect::Ordered(_))).count();
        let after = enforcer.verdicts().in_force();
        if self.started && (came > 0 || !released.is_empty() || after != in_force) {
            let ended = released.len();
            observe(Observation::InForce { before: in_force, came, ended, after });
        }
        let first = !std::mem::replace(&mut self.started, true);
        words(enforcer, &effects, first).for_each(observe);
        for effect in &effects {
            if let Effect::Send(ToServer::Ping { nonce }) = effect {
                if self.pings.len() == PINGS_MAX {
                    self.pings.pop_front();
                }
                self.pings.push_back((*nonce, now.boot));
            }
        }
        (effects, violations)
    }
}

impl Heard {
    const fn of(input: &Input) -> Self {
        match input {
            Input::Connected | Input::Disconnected => Self::Connection,
            Input::Frame(ToEnforcer::Welcome(welcome)) => {
                Self::Welcome(Duration::from_millis(welcome.lease_ms))
            }
            Input::Frame(ToEnforcer::Pong { nonce, staleness_ms }) => {
                Self::Pong { nonce: *nonce, staleness: Duration::from_millis(*staleness_ms) }
            }
            Input::BreakGlassKept(_) => Self::Paid,
            _ => Self::Other,
        }
    }
}

/// How much of which break-glass is used with what is to be kept.
fn spent(effects: &[Effect]) -> impl Iterator<Item = Observation> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Keep(Keep::BreakGlass(usage)) => {
            let glass: BreakGlass = serde_json::from_str(&usage.file.break_glass).ok()?;
            Some(Observation::Spent {
                used: Duration::from_millis(usage.used_ms),
                allowed: Duration::from_secs(glass.use_seconds_max).min(USE_MAX),
            })
        }
        _ => None,
    })
}

/// The orders that the step ended, each with whether a release that came with it names it.
fn released(effects: &[Effect]) -> Vec<(OrderId, bool)> {
    let ended = effects.iter().filter_map(|effect| match effect {
        Effect::Released { orders } => Some(orders),
        _ => None,
    });
    let ended: Vec<OrderId> = ended.flatten().copied().collect();
    if ended.is_empty() {
        return Vec::new();
    }
    let kept = effects.iter().filter_map(|effect| match effect {
        Effect::Keep(Keep::Order(signed)) => signed.parse().ok(),
        _ => None,
    });
    let named: HashSet<OrderId> = kept
        .filter_map(|order| match order.body {
            OrderBody::Release { orders } => Some(orders),
            _ => None,
        })
        .flatten()
        .collect();
    ended.into_iter().map(|order| (order, named.contains(&order))).collect()
}

/// What the step said of orders, and what it did before it had published those that came. The first
/// step tells of kept orders, too, which were published before.
fn words(
    enforcer: &Enforcer,
    effects: &[Effect],
    first: bool,
) -> impl Iterator<Item = Observation> {
    let came = effects.iter().any(|effect| matches!(effect, Effect::Keep(Keep::Order(_))));
    let published = effects.iter().position(|effect| matches!(effect, Effect::Publish));
    let late = move |at: usize| came && published.is_none_or(|published| at < published);
    effects.iter().enumerate().filter_map(move |(at, effect)| match effect {
        Effect::Send(ToServer::Confirm(word)) if word.stage != Stage::Unsupported => {
            let known = enforcer.orders().order(word.order).is_some();
            Some(Observation::Said { order: word.order, refuses: known && !late(at) })
        }
        Effect::Ordered(order) if came && !first => Some(Observation::Taken {
            order: order.id,
            waited_for: late(at).then_some("it was acted upon"),
        }),
        _ => None,
    })
}
