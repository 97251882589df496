//! Freezing, thawing and killing whole trees.

use estoppel_host::{Agent, CgroupMode};

use crate::{
    Test,
    machine::{Place, SOON, each_freezer, end_agents, start, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("real_a_tree_that_forks_and_detaches_stays_frozen", forks_and_detaches),
    ("real_the_fallback_stops_a_tree_that_forks_and_detaches", fallback_forks_and_detaches),
    ("real_a_cgroup_is_gone_with_its_agent", gone_with_its_agent),
];

/// Forks without end but bounded, counts in a process that is detached by a double fork and
/// `setsid`, and in one that ignores what can be ignored.
const TREE: &str = "\
    (setsid sh -c 'while :; do echo x >> detached; done' &) ; \
    sh -c 'trap \"\" TERM INT HUP; while :; do echo x >> stubborn; done' & \
    while :; do for i in 1 2 3 4 5 6 7 8; do sleep 0.01 & done; wait -n 2>/dev/null || sleep 0.01; \
    echo x >> main; done";
const COUNTERS: [&str; 3] = ["detached", "stubborn", "main"];

fn forks_and_detaches() {
    let place = Place::new();
    let [with_cgroup, _] = each_freezer(&place, TREE);
    check(&place, &start(with_cgroup));
}

fn fallback_forks_and_detaches() {
    let place = Place::new();
    let [_, without] = each_freezer(&place, TREE);
    assert_eq!(without.cgroup, CgroupMode::None);
    check(&place, &start(without));
}

fn check(place: &Place, agent: &Agent) {
    let processes = agent.processes();
    for _ in 0..3 {
        COUNTERS.iter().for_each(|counter| place.await_growth(counter));
        processes.begin_freeze().unwrap();
        let report = processes.await_frozen(SOON).unwrap();
        assert!(report.complete && report.processes >= 3, "{report:?}");
        for counter in COUNTERS {
            assert!(place.stays(counter), "{counter} goes on");
        }
        assert_eq!(processes.count().unwrap(), report.processes);
        processes.thaw(SOON).unwrap();
    }
    COUNTERS.iter().for_each(|counter| place.await_growth(counter));
    // Killed when frozen, too.
    processes.begin_freeze().unwrap();
    processes.await_frozen(SOON).unwrap();
    processes.kill(SOON).unwrap();
    assert_eq!(processes.count().unwrap(), 0);
    for counter in COUNTERS {
        assert!(place.stays(counter), "{counter} goes on");
    }
}

fn gone_with_its_agent() {
    let place = Place::new();
    let agent = start(place.script("echo $$ > pid; exec sleep 1000"));
    place.await_line("pid");
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", agent.pid())).unwrap();
    let name = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    assert!(name.contains("/estoppel/real-"), "{name}");
    let folder = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(|root| std::path::PathBuf::from(format!("{root}{name}")))
        .into_iter()
        .find(|path| path.exists())
        .unwrap();
    drop(agent);
    end_agents();
    until(|| (!folder.exists()).then_some(()));
}
