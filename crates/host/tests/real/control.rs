//! `estoppel halt --local`: no server anywhere.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use estoppel_host::{
    Mode,
    control::{self, Door, halt_local},
};
use estoppel_model::{Scope, SystemClock};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Test,
    machine::{Place, start},
    orders::Said,
    supervision::{Run, within},
};

pub(crate) const TESTS: &[Test] = &[("real_a_local_halt_needs_no_server", local_halt)];

fn local_halt() {
    within(|| async {
        let place = Place::new();
        let run_dir = place.path("run");
        let scope = |text: &str| text.parse::<Scope>().unwrap().into();
        let agent = start(place.script("while :; do echo x >> out; sleep 0.01; done"));
        let mut run = Run::of(&place, agent, Mode::Enforce);
        let door = Door::open(&run_dir).unwrap();
        // One whose supervisor was killed.
        drop(std::os::unix::net::UnixListener::bind(run_dir.join("host-1.sock")).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (local, clock) = (run.local.clone(), Arc::new(SystemClock));
        let (serving, stopping) = (tasks.clone(), stop.clone());
        tasks.spawn(async move { control::serve(door, local, clock, &serving, stopping).await });
        place.await_growth("out");

        let (_, reports) =
            halt_local(&run_dir, scope("session:other"), "test", &SystemClock).await.unwrap();
        let [report] = reports.as_slice() else { panic!("{reports:?}") };
        assert!(!report.result.as_ref().unwrap().reaches);
        place.await_growth("out");

        let (id, reports) =
            halt_local(&run_dir, scope("session:real"), "servers are dead", &SystemClock)
                .await
                .unwrap();
        let [report] = reports.as_slice() else { panic!("{reports:?}") };
        let halted = report.result.as_ref().unwrap();
        assert_eq!((halted.order, halted.reaches, halted.durable), (id, true, true));
        assert!(halted.processes_frozen >= 1 && halted.not_stopped.is_empty(), "{halted:?}");
        assert!(halted.containment.contains("own cgroup"));
        assert!(place.stays("out"));
        let Some(Said::Settled(order, settlement)) = run.said.recv().await else { panic!() };
        assert_eq!((order, settlement.processes_frozen), (id, halted.processes_frozen));

        stop.cancel();
        tasks.close();
        tasks.wait().await;
        run.end().await;
        let left: Vec<_> = std::fs::read_dir(&run_dir).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "the own socket is gone: {left:?}");
        let mode = std::fs::metadata(&run_dir).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
    });
}
