//! Egress: data that goes where nobody said that it may (row P1).

use std::collections::{BTreeMap, BTreeSet};

use estoppel_extract::{Host, allowlist::DEFAULT_PORTS};
use estoppel_model::{
    Destination, EntityId, FlowVerdict, NetworkEvent, ReceivedEvent, Severity, Subject,
    text::quoted,
};

use crate::{
    DetectPolicy, Detection,
    detection::{EGRESS_LEARNED, EGRESS_UNLISTED},
    recent::Recent,
};

/// Most pairs of session and destination that are remembered.
const SEEN_MAX: usize = 65_536;
/// Most destinations that are learned.
const LEARNED_MAX: usize = 10_000;
/// Most sessions that are counted for one destination.
const SESSIONS_MAX: usize = 1_000;

/// Finds egress that is not on the allowlist, once for each session and destination.
#[derive(Debug, Clone)]
pub(crate) struct Egress {
    seen: Recent<(String, String, bool), ()>,
    pub(crate) learned: Learned,
}

impl Egress {
    pub(crate) fn new() -> Self {
        Self { seen: Recent::new(SEEN_MAX), learned: Learned::default() }
    }

    pub(crate) fn observe(
        &mut self,
        event: &ReceivedEvent,
        network: &NetworkEvent,
        subject: &Subject,
        policy: &DetectPolicy,
    ) -> Option<Detection> {
        let target = Target::of(network)?;
        let rule = match &policy.allowlist {
            Some(_) if target.is_listed(policy) => return None,
            Some(_) => EGRESS_UNLISTED,
            None => EGRESS_LEARNED,
        };
        if policy.allowlist.is_none() {
            self.learned.learn(&target, network.session_id.as_ref());
        }
        // With a list, an unlisted destination is news even if it was learned before.
        let key = (subject.to_string(), target.text.clone(), policy.allowlist.is_some());
        if !self.seen.touch(&key, || ()).0 {
            return None;
        }
        let severity = match (&policy.allowlist, network.verdict) {
            (None, _) => Severity::Low,
            (Some(_), Some(FlowVerdict::Blocked | FlowVerdict::Failed)) => Severity::Medium,
            (Some(_), _) => Severity::High,
        };
        let mut detection =
            Detection::new(rule, severity, subject.clone(), event, target.summary(network, policy));
        detection.destination = target.destination;
        Some(detection)
    }
}

/// Where an event says that bytes went.
struct Target {
    /// The host in normal form; `None` when it has none.
    host: Option<Host>,
    port: Option<u16>,
    /// The same for orders.
    destination: Option<Destination>,
    /// The same for people, inert.
    text: String,
}

impl Target {
    /// `None` when the event names no destination.
    fn of(network: &NetworkEvent) -> Option<Self> {
        let raw = network.destination.as_ref()?.raw();
        let port = network.port.filter(|port| *port != 0);
        let Ok(host) = Host::parse(raw) else {
            // What has no normal form is on no list, and cannot be blocked by its name either.
            return Some(Self { host: None, port, destination: None, text: quoted(raw) });
        };
        let destination = Destination { host: host.to_string(), port };
        Some(Self {
            text: format!("`{destination}`"),
            host: Some(host),
            port,
            destination: Some(destination),
        })
    }

    fn is_listed(&self, policy: &DetectPolicy) -> bool {
        let (Some(list), Some(host)) = (&policy.allowlist, &self.host) else { return false };
        match self.port {
            Some(port) => list.allows(host, port).is_some(),
            // Without a port, a name stands for those that an entry without one stands for.
            None => DEFAULT_PORTS.iter().any(|port| list.allows(host, *port).is_some()),
        }
    }

    fn summary(&self, network: &NetworkEvent, policy: &DetectPolicy) -> String {
        let what = match network.verdict {
            Some(FlowVerdict::Blocked) => "an attempt to reach",
            Some(FlowVerdict::Failed) => "a failed attempt to reach",
            Some(FlowVerdict::Cut) => "a flow, cut, to",
            _ => "a flow to",
        };
        let bytes = network
            .bytes_sent
            .map_or_else(String::new, |bytes| format!(", {bytes} bytes sent by then"));
        let why = match &policy.allowlist {
            Some(_) => "which is not on the allowlist",
            None => "learned, since no allowlist is set",
        };
        format!("{what} {}, {why}{bytes}", self.text)
    }
}

/// Where agents went while no allowlist was set: what `allowlist suggest` suggests.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    destinations: BTreeMap<Destination, Seen>,
    left_out: u64,
}

#[derive(Debug, Clone, Default)]
struct Seen {
    flows: u64,
    sessions: BTreeSet<EntityId>,
}

/// An entry that could be put on the allowlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The entry, as the allowlist reads it.
    pub entry: String,
    /// How many flows went there.
    pub flows: u64,
    /// How many sessions went there; 1000 stands for that many or more.
    pub sessions: u64,
}

impl Learned {
    fn learn(&mut self, target: &Target, session: Option<&EntityId>) {
        let Some(destination) = &target.destination else { return };
        if !self.destinations.contains_key(destination) && self.destinations.len() >= LEARNED_MAX {
            self.left_out += 1;
            return;
        }
        let seen = self.destinations.entry(destination.clone()).or_default();
        seen.flows += 1;
        if let Some(session) = session.filter(|_| seen.sessions.len() < SESSIONS_MAX) {
            seen.sessions.insert(session.clone());
        }
    }

    /// The entries that would let through what was seen, most flows first. An address without a
    /// port cannot be an entry and is left out.
    pub fn suggest(&self) -> Vec<Suggestion> {
        let mut merged: BTreeMap<String, (u64, BTreeSet<&EntityId>)> = BTreeMap::new();
        for (destination, seen) in &self.destinations {
            let Some(entry) = entry(destination) else { continue };
            let (flows, sessions) = merged.entry(entry).or_default();
            *flows += seen.flows;
            sessions.extend(&seen.sessions);
        }
        let mut suggestions: Vec<Suggestion> = merged
            .into_iter()
            .map(|(entry, (flows, sessions))| Suggestion {
                entry,
                flows,
                sessions: u64::try_from(sessions.len()).unwrap_or(u64::MAX),
            })
            .collect();
        suggestions.sort_by(|one, other| {
            other.flows.cmp(&one.flows).then_with(|| one.entry.cmp(&other.entry))
        });
        suggestions
    }

    /// Flows to destinations that there was no room to learn.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// The narrowest entry that lets a destination through.
fn entry(destination: &Destination) -> Option<String> {
    let address = destination.host.parse::<std::net::IpAddr>().is_ok();
    match destination.port {
        None if address => None,
        Some(port) if address || !DEFAULT_PORTS.contains(&port) => Some(destination.to_string()),
        _ => Some(destination.host.clone()),
    }
}

#[cfg(test)]
mod tests;
