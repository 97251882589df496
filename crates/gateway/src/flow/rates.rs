//! How many requests each agent makes to each destination, for `limit` orders.
//!
//! Counted while a limit bounds them, by the task, else the session, else the agent that sends. Memory
//! is bounded: of very many destinations those that were not asked for a minute are forgotten, which
//! changes nothing; where none is left to forget, further ones count together, and are so refused
//! sooner than they should be, never later.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use estoppel_extract::HostPort;
use estoppel_link::{Rate, TooSoon};
use estoppel_model::{Boottime, EntityId, Kind, Subject};

/// Most pairs of an agent and a destination that are counted apart.
const PAIRS_MAX: usize = 10_000;

/// Who asks, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pair {
    who: Option<(Kind, EntityId)>,
    to: HostPort,
}

impl Pair {
    fn of(subject: &Subject, to: &HostPort) -> Self {
        let Subject { task, session, agent, .. } = subject;
        let kinds = [(Kind::Task, task), (Kind::Session, session), (Kind::Agent, agent)];
        let who = kinds.into_iter().find_map(|(kind, id)| Some((kind, id.clone()?)));
        Self { who, to: to.clone() }
    }
}

/// The requests of late.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    pairs: HashMap<Pair, Rate>,
    others: Rate,
}

impl Rates {
    /// Counts a request.
    ///
    /// # Errors
    /// When it comes too soon behind others; it does not count then.
    pub(super) fn take(
        &self,
        subject: &Subject,
        to: &HostPort,
        per_minute: u32,
        now: Boottime,
    ) -> Result<(), TooSoon> {
        // Nothing in here panics half-way through a change.
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counted { pairs, others } = &mut *counted;
        let pair = Pair::of(subject, to);
        if pairs.len() >= PAIRS_MAX && !pairs.contains_key(&pair) {
            pairs.retain(|_, rate| !rate.is_empty(now));
        }
        let rate = if pairs.len() >= PAIRS_MAX && !pairs.contains_key(&pair) {
            others
        } else {
            pairs.entry(pair).or_default()
        };
        rate.take(per_minute, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn to(host: &str) -> HostPort {
        HostPort::parse(host, Some(443)).unwrap()
    }

    #[test]
    fn each_agent_counts_for_itself_and_each_destination_too() {
        let rates = Rates::default();
        let now = Boottime::from_nanos(1);
        let (one, other) =
            (Subject::session("one".parse().unwrap()), Subject::session("other".parse().unwrap()));
        rates.take(&one, &to("a.example"), 1, now).unwrap();
        rates.take(&one, &to("b.example"), 1, now).unwrap();
        rates.take(&one, &to("a.example:80"), 1, now).unwrap();
        rates.take(&other, &to("a.example"), 1, now).unwrap();
        rates.take(&Subject::default(), &to("a.example"), 1, now).unwrap();
        rates.take(&one, &to("a.example"), 1, now).unwrap_err();
        let task = Subject { task: Some("t".parse().unwrap()), ..one };
        rates.take(&task, &to("a.example"), 1, now).unwrap();
    }

    /// Of more destinations than there is room for, the further ones count together; a minute later there
    /// is room again.
    #[test]
    fn very_many_destinations_cost_bounded_memory() {
        let rates = Rates::default();
        let subject = Subject::session("s".parse().unwrap());
        let ask = |n: usize, now| rates.take(&subject, &to(&format!("h{n}.example")), 2, now);
        let now = Boottime::from_nanos(1);
        for n in 0..PAIRS_MAX + 2 {
            ask(n, now).unwrap();
        }
        ask(PAIRS_MAX + 2, now).unwrap_err();
        ask(0, now).unwrap();
        assert_eq!(rates.0.lock().unwrap().pairs.len(), PAIRS_MAX);
        let later = now + Duration::from_mins(1);
        for n in 0..2 {
            ask(PAIRS_MAX + n, later).unwrap();
            ask(PAIRS_MAX + n, later).unwrap();
            ask(PAIRS_MAX + n, later).unwrap_err();
        }
        assert_eq!(rates.0.lock().unwrap().pairs.len(), 2);
    }
}
