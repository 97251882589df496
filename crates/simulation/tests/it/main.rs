//! The simulation as a test: a sample of seeds, what must have happened in it, and bugs that it must
//! find. Rows K1, K3, K6, K7; invariants *stop-never-waits*, *starting-always-does*, *lease*,
//! *confirmed*, *acknowledged-is-kept*.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic; clippy's setting knows functions marked `#[test]` only"
)]

use std::fmt::Write as _;

use estoppel_killswitch::invariant::Invariant;
use estoppel_simulation::{
    Bug, FLEET_MAX, Failure, Fault, Scenario, Work, fleet, minimise, run, run_many, run_scenario,
};

/// Seeds of the sample.
const SEEDS: u64 = 2_000;
/// Seeds within which each planted bug must be found.
const SEEDS_PLANTED: u64 = 300;

/// What a person needs to see the failure again.
fn told(failed: &[(u64, Failure)]) -> String {
    let mut text = String::new();
    for (seed, failure) in failed.iter().take(5) {
        write!(text, "seed {seed}: {failure}\n    replay it: ./dev simulate {seed}\n").unwrap();
    }
    text
}

/// All invariants hold in all worlds of the sample, and the sample is worth something: each kind of
/// fault had an effect, and each invariant was checked.
#[test]
fn the_invariants_hold_in_2000_worlds() {
    let (coverage, failed) = run_many(0..SEEDS, None);
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed\n{}", failed.len(), told(&failed));
    assert_eq!(coverage.worlds, SEEDS);
    for fault in Fault::ALL {
        assert!(coverage.of(*fault) > 0, "`{}` never happened:\n{coverage}", fault.name());
    }
    for count in coverage.checks() {
        assert!(count.checks > 1_000, "{} was hardly checked:\n{coverage}", count.invariant);
    }
}

/// The same seed is the same world: else nothing can be replayed.
#[test]
fn a_seed_is_one_world() {
    for seed in 0..25 {
        let scenario = Scenario::of(seed);
        let [one, other] = [(); 2].map(|()| run_scenario(seed, &scenario, None, true));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert!(one.trace.len() > 5, "seed {seed}");
        assert_eq!(one.coverage.to_string(), other.coverage.to_string(), "seed {seed}");
    }
}

/// The bug is found by the invariant that it breaks, and that seed fails because of it.
fn is_found(bug: Bug) {
    let finds = |seed: &u64| {
        let failure = run(*seed, Some(bug)).failure;
        failure.is_some_and(|(_, failure)| failure.invariant() == Some(bug.breaks()))
    };
    let Some(seed) = (0..SEEDS_PLANTED).find(finds) else {
        panic!("`{}` was not found in {SEEDS_PLANTED} seeds", bug.name());
    };
    assert_eq!(run(seed, None).failure, None, "seed {seed} fails without the bug, too");
}

#[test]
fn a_release_that_ends_others_is_found() {
    is_found(Bug::ReleaseEndsOthers);
}

#[test]
fn a_lease_that_renews_without_contact_is_found() {
    is_found(Bug::LeaseWithoutContact);
}

#[test]
fn a_lease_that_counts_from_the_arrival_of_the_answer_is_found() {
    is_found(Bug::LeaseFromArrival);
}

#[test]
fn a_restart_that_forgets_the_spool_is_found() {
    is_found(Bug::SpoolForgotten);
}

#[test]
fn a_confirmation_before_the_order_is_applied_is_found() {
    is_found(Bug::ConfirmedTooEarly);
}

#[test]
fn a_stale_snapshot_after_fail_over_is_found() {
    is_found(Bug::SnapshotTrusted);
}

#[test]
fn full_leases_of_a_server_behind_the_ledger_are_found() {
    is_found(Bug::StalenessIgnored);
}

#[test]
fn a_halt_that_an_enforcer_expires_is_found() {
    is_found(Bug::HaltExpires);
}

#[test]
fn a_missing_fsync_is_found() {
    is_found(Bug::SyncRemoved);
}

#[test]
fn a_restart_that_takes_those_it_knows_for_all_is_found() {
    is_found(Bug::PredecessorForgotten);
}

/// K7: a server and a fleet, through a restart of the server with all coming back at once, and a
/// halt that all confirm; each of their invariants was checked, and the numbers are those of all.
#[test]
fn a_fleet_comes_back_and_confirms() {
    const ENFORCERS: usize = 3_000;
    let report = fleet(ENFORCERS, 0).unwrap();
    assert_eq!((report.halt.expected, report.restart.leases_lost), (ENFORCERS, 0));
    let steps = |work| report.server[&work].steps;
    let all = ENFORCERS as u64;
    let greeted = [Work::FirstHello, Work::Have, Work::Hello].map(steps);
    assert_eq!(greeted, [all, all, all], "after the restart all have what it has");
    // Of the old halt and the new. What has settled is said again after the restart; that it refuses
    // goes without saying then, as it does for who had settled before the first hello.
    assert_eq!(steps(Work::Settled), 3 * all);
    assert!((all..=2 * all).contains(&steps(Work::Refusing)), "{}", steps(Work::Refusing));
    assert!(report.halt.all_refuse_ms <= report.halt.all_settled_ms, "{:?}", report.halt);
    // The server's first leases were over by then, and not before.
    let since_start = report.restart.all_back_ms + 1_000 + report.halt.confirmed_ms;
    assert!((14_990..16_000).contains(&since_start), "{:?} {:?}", report.restart, report.halt);
    assert!(report.memory.bytes_each > 0.0, "{:?}", report.memory);
    for count in report.invariants {
        let checked = count.checks > 0 || count.invariant == Invariant::AcknowledgedIsKept;
        assert!(checked && count.violations == 0, "{count:?}");
    }
    assert!(fleet(0, 0).is_err() && fleet(FLEET_MAX + 1, 0).is_err());
}

#[test]
fn a_break_glass_whose_use_is_forgotten_is_found() {
    is_found(Bug::BreakGlassForgotten);
}

#[test]
fn a_break_glass_that_lets_go_what_is_halted_is_found() {
    is_found(Bug::BreakGlassReleases);
}

/// A failing scenario is shortened to what matters, and still fails alike.
#[test]
fn a_failure_is_minimised() {
    let bug = Some(Bug::ReleaseEndsOthers);
    let seed = (0..SEEDS_PLANTED).find(|seed| run(*seed, bug).failure.is_some()).unwrap();
    let scenario = Scenario::of(seed);
    let (_, failure) = run_scenario(seed, &scenario, bug, false).failure.unwrap();
    let shortest = minimise(seed, &scenario, bug, &failure);
    assert!(shortest.actions.len() < scenario.actions.len(), "{shortest}");
    assert!(shortest.actions.len() <= 4, "{shortest}");
    let again = run_scenario(seed, &shortest, bug, true);
    let (_, found) = again.failure.unwrap();
    assert!(found.is_like(&failure), "{found}, and was {failure}");
    let name = failure.invariant().map(Invariant::name).unwrap();
    assert!(again.trace.iter().any(|line| line.contains(name)), "{:?}", again.trace);
}
