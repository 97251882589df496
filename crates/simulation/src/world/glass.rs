//! Break-glass: somebody puts a file into an enforcer's state folder, and it looks for one as the
//! link does.
//!
//! The world counts by its own clock how long a node went on by each file, over all its lives; that
//! must never be more than the file allows, whatever the node has kept or forgotten.

use std::time::Duration;

use estoppel_killswitch::{
    Signer as _,
    break_glass::{BreakGlass, GlassAudience, SignedBreakGlass},
    enforcer::{Input, Keep},
    invariant::Observation,
};
use estoppel_model::{Actor, Boottime};
use estoppel_testkit::keys::Keys;
use uuid::Uuid;

use super::World;
use crate::coverage::Fault;

/// A file, and how long its node went on by it.
pub(super) struct Placed {
    file: SignedBreakGlass,
    allowed: Duration,
    went: Duration,
}

impl World {
    /// Somebody puts a file into the node's state folder, in the place of one that is there.
    pub(super) fn place_glass(&mut self, node: usize, use_max: Duration, lasts: Duration) {
        let wall = self.nodes[node].machine.now(self.time).wall;
        let glass = BreakGlass {
            id: Uuid::from_u64_pair(9, self.number()),
            issued_by: Actor::new("alice").expect("a name"),
            issued_at: wall,
            until: wall + lasts,
            use_seconds_max: use_max.as_secs(),
            reason: "the servers are away".to_owned(),
            audience: GlassAudience::Everyone,
        };
        let text = serde_json::to_string(&glass).expect("plain data");
        let signed = Keys.sign(SignedBreakGlass::signed_text(&text));
        let file = SignedBreakGlass::of(text, signed);
        self.nodes[node].glass = Some(Placed { file, allowed: use_max, went: Duration::ZERO });
    }

    /// Looks for a file when it is time to.
    pub(super) fn look_for_glass(&mut self, node: usize) {
        let this = &self.nodes[node];
        let now = this.machine.now(self.time);
        let Some(enforcer) = &this.enforcer else { return };
        if !enforcer.looks_for_break_glass(now.boot) {
            return;
        }
        let file = this.glass.as_ref().filter(|_| !this.doubted).map(|glass| glass.file.clone());
        if file.is_none() && this.goes_on_until.is_none() {
            return;
        }
        self.at_node(node, Input::BreakGlass(file.map(Box::new)));
        let paid = self.nodes[node].keeps.iter().find_map(|keep| match keep {
            Keep::BreakGlass(usage) => Some(usage.clone()),
            _ => None,
        });
        if let Some(usage) = paid
            && self.keep(node)
        {
            self.at_node(node, Input::BreakGlassKept(usage));
        }
    }

    /// Enforcement code is shown until when it goes on: counts what it was not shown before, beyond
    /// the lease.
    pub(super) fn show_glass(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let now = this.machine.now(self.time).boot;
        let Some(until) = this.enforcer.as_ref().and_then(|enforcer| enforcer.goes_on_until())
        else {
            this.goes_on_until = None;
            return;
        };
        let leased = this.lease_until.is_some_and(|lease| now < lease);
        let covered = this.lease_until.into_iter().chain(this.went_until).fold(now, Boottime::max);
        this.goes_on_until = Some(until);
        this.went_until = this.went_until.max(Some(until));
        // What follows on a lease that holds is the grace, which may come to nothing.
        if leased || until <= covered {
            return;
        }
        let Some(glass) = &mut this.glass else { return };
        glass.went += until.since(covered);
        let spent = Observation::Spent { used: glass.went, allowed: glass.allowed };
        self.coverage.happened(Fault::BreakGlass);
        self.observe(spent);
    }
}
