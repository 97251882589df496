//! Makes a failing scenario shorter, so that a person can read it.

use crate::{Bug, Failure, Scenario, run_scenario};

/// Runs that a minimisation may take.
const RUNS_MAX: usize = 400;

/// Returns a scenario that fails alike with fewer actions: halves are left out, then quarters, down
/// to single actions. With each action that is gone the network draws anew, so the result may be of
/// another bug that breaks the same invariant.
pub fn minimise(
    seed: u64,
    scenario: &Scenario,
    planted: Option<Bug>,
    failure: &Failure,
) -> Scenario {
    let mut best = scenario.clone();
    let mut runs = 0;
    let mut size = best.actions.len().div_ceil(2);
    while size > 0 && runs < RUNS_MAX {
        let mut at = 0;
        while at < best.actions.len() && runs < RUNS_MAX {
            let mut shorter = best.clone();
            shorter.actions.drain(at..(at + size).min(best.actions.len()));
            runs += 1;
            let found = run_scenario(seed, &shorter, planted, false).failure;
            if found.is_some_and(|(_, found)| found.is_like(failure)) {
                best = shorter;
            } else {
                at += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    best
}
