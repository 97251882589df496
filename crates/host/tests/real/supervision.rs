//! A supervised agent under orders.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::Instant,
};

use estoppel_host::{
    Agent, AgentExit, CaptureLimits, Captured, Mode, Prepared, SuperviseConfig, Wiring,
    control::LocalRequest, supervise,
};
use estoppel_link::{
    LinkEvent,
    frame::{Action, ActionResult, Outcome, Settlement, Verb},
};
use estoppel_model::{
    Actor, EntityId, IncidentId, Limit, Order, OrderBody, OrderId, Subject, SystemClock,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Test,
    machine::{Place, SOON, start, subject, until},
    orders::{Said, Script, canary, halt},
};

pub(crate) const SUBCOMMAND: &str = "supervisor";

pub(crate) const TESTS: &[Test] = &[
    ("real_a_halt_freezes_settles_captures_and_stays", a_halt),
    ("real_a_lost_lease_freezes_until_it_is_regained", a_lease),
    ("real_actions_are_done_once", actions),
    ("real_observing_stops_nothing", observing),
    ("real_a_kill_waits_for_the_evidence", kill_waits),
    ("real_the_wrapped_command_gets_signals_and_gives_its_exit_code", signals),
    ("real_an_agent_does_not_outlive_its_supervisor_with_a_network", outlive),
    ("real_what_an_agent_leaves_behind_is_ended", left_behind),
];

/// A supervised agent and everything that goes to it and comes from it.
pub(crate) struct Run {
    pub(crate) script: Script,
    pub(crate) said: mpsc::Receiver<Said>,
    pub(crate) local: mpsc::Sender<LocalRequest>,
    captured: mpsc::Receiver<Captured>,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<AgentExit>>,
}

impl Run {
    pub(crate) fn of(place: &Place, agent: Agent, mode: Mode) -> Self {
        let (script, events, said) = Script::new();
        let script = if mode == Mode::Enforce {
            script.expecting_frozen_first(agent.processes())
        } else {
            script
        };
        let (local, requests) = mpsc::channel(4);
        let (captures, captured) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let config = SuperviseConfig {
            subject: subject(),
            mode,
            evidence: place.path("evidence"),
            limits: CaptureLimits { total_within: SOON, ..CaptureLimits::default() },
            operator: Actor::new("host:test").unwrap(),
        };
        let wiring = Wiring {
            orders: script.clone(),
            events,
            local: requests,
            captured: captures,
            clock: Arc::new(SystemClock),
        };
        let tracker = tokio_util::task::TaskTracker::new();
        let task = tracker.spawn(supervise(agent, config, wiring, stop.clone()));
        Self { script, said, local, captured, stop, task }
    }

    async fn settled(&mut self) -> (OrderId, Settlement) {
        match timeout(SOON, self.said.recv()).await.unwrap().unwrap() {
            Said::Settled(order, settlement) => (order, settlement),
            said => panic!("{said:?}"),
        }
    }

    async fn outcome(&mut self) -> Outcome {
        match timeout(SOON, self.said.recv()).await.unwrap().unwrap() {
            Said::Outcome(outcome) => outcome,
            said => panic!("{said:?}"),
        }
    }

    async fn captured(&mut self) -> Captured {
        timeout(SOON, self.captured.recv()).await.unwrap().unwrap()
    }

    /// Asks for the state by an action, and so waits for whatever came before.
    async fn state(&mut self) -> String {
        self.act(Verb::Observe).await.observed
    }

    async fn act(&mut self, verb: Verb) -> Outcome {
        let action = self.send(verb, IncidentId::new());
        let outcome = self.outcome().await;
        assert_eq!(outcome.action, action);
        outcome
    }

    fn send(&self, verb: Verb, incident: IncidentId) -> Uuid {
        let id = Uuid::now_v7();
        let action = Action { id, incident, subject: subject(), verb };
        self.script.send(LinkEvent::Action(Box::new(action)));
        id
    }

    pub(crate) async fn end(self) -> AgentExit {
        self.stop.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap().unwrap()
    }
}

/// Runs a test within a runtime.
pub(crate) fn within<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test())
}

const COUNTS: &str = "while :; do echo x >> out; sleep 0.01; done";

/// Rows K7, P4, P7: frozen first, confirmed with what holds, preserved, and frozen still.
fn a_halt() {
    within(|| async {
        let place = Place::new();
        let mut run = Run::of(&place, start(place.script(COUNTS)), Mode::Enforce);
        place.await_growth("out");
        let (case, other) = (IncidentId::new(), halt("session:other", None));
        run.script.order(&other);
        assert_eq!(run.settled().await, (other.id, Settlement::default()));
        assert!(run.state().await.ends_with("running"));
        let limit = Limit { steps_max: Some(3), ..Limit::default() };
        let limit = Order { body: OrderBody::Limit { limit }, ..(*halt("global", None)).clone() };
        run.script.send(LinkEvent::Ordered(Arc::new(limit.clone())));
        let (order, settlement) = run.settled().await;
        assert_eq!((order, settlement.processes_frozen), (limit.id, 0));
        let word = settlement.containment.as_deref();
        assert_eq!(
            word,
            Some("a host does not enforce steps_max 3"),
            "an honest word, and no stop"
        );

        let (first, second) = (halt("session:real", Some(case)), halt("global", Some(case)));
        let ordered = Instant::now();
        run.script.order(&first);
        let (order, settlement) = run.settled().await;
        eprintln!("ordered to settled: {:?}", ordered.elapsed());
        assert_eq!(order, first.id);
        assert!(settlement.processes_frozen >= 1 && settlement.not_interruptible.is_empty());
        assert!(settlement.containment.unwrap().contains("only the gateway is reachable"));
        assert!(place.stays("out"));

        let captured = run.captured().await;
        eprintln!("ordered to captured: {:?}, {} bytes", ordered.elapsed(), captured.bytes);
        assert_eq!((captured.case, captured.order), (Some(case), Some(first.id)));
        let (_, manifest) = Captured::open(&captured.folder).unwrap();
        assert_eq!(manifest.authority, "halt by alice: suspected injection");
        assert_eq!(manifest.gaps, []);
        assert!(manifest.items.len() > 10);

        // A second halt holds it, too, and finds the evidence there; one release is not enough.
        run.script.order(&second);
        assert_eq!(run.settled().await.0, second.id);
        run.script.release(first.id);
        let refused = run.act(Verb::Thaw).await;
        assert_eq!(refused.result, ActionResult::Failed);
        assert!(refused.observed.contains(&second.id.to_string()), "{}", refused.observed);
        assert!(run.state().await.ends_with("frozen"));
        assert!(place.stays("out"));
        run.script.release(second.id);
        place.await_growth("out");
        assert!(run.state().await.ends_with("running"));
        assert!(run.captured.try_recv().is_err(), "one capture for one incident and freeze");
        assert_eq!(run.end().await, AgentExit::Signal(9));
    });
}

fn a_lease() {
    within(|| async {
        let place = Place::new();
        let mut run = Run::of(&place, start(place.script(COUNTS)), Mode::Enforce);
        place.await_growth("out");
        run.script.lease(true);
        assert!(run.state().await.ends_with("frozen"));
        assert!(place.stays("out"));
        run.script.lease(false);
        place.await_growth("out");
        assert!(run.captured.try_recv().is_err());
        run.end().await;
    });
}

fn actions() {
    within(|| async {
        let place = Place::new();
        let mut run = Run::of(&place, start(place.script(COUNTS)), Mode::Enforce);
        place.await_growth("out");

        assert_eq!(run.act(Verb::Freeze).await.result, ActionResult::Done);
        assert!(place.stays("out"));
        // What an action froze no change of the orders thaws.
        run.script.lease(true);
        run.script.lease(false);
        assert!(run.state().await.ends_with("frozen"));

        let captured = run.act(Verb::Capture).await;
        assert_eq!(captured.result, ActionResult::Done, "{}", captured.observed);
        let of_folder = run.captured().await;
        assert_eq!(captured.detail["manifest_sha256"], of_folder.manifest.digest().to_string());
        assert_eq!(captured.detail["manifest"], of_folder.manifest.text());

        assert_eq!(run.act(Verb::Thaw).await.result, ActionResult::Done);
        place.await_growth("out");

        let mut elsewhere = Subject::session(EntityId::new("other").unwrap());
        for subject in [elsewhere.clone(), Subject::default(), {
            elsewhere.session = Some(EntityId::new("real").unwrap());
            elsewhere.user = Some(EntityId::new("who").unwrap());
            elsewhere
        }] {
            let (id, incident) = (Uuid::now_v7(), IncidentId::new());
            let action = Action { id, incident, subject, verb: Verb::Kill };
            run.script.send(LinkEvent::Action(Box::new(action)));
            assert_eq!(run.outcome().await.result, ActionResult::NoSuchSubject);
        }

        // The same action again is answered again and not done again.
        let freeze = Action {
            id: Uuid::now_v7(),
            incident: IncidentId::new(),
            subject: subject(),
            verb: Verb::Freeze,
        };
        run.script.send(LinkEvent::Action(Box::new(freeze.clone())));
        let first = run.outcome().await;
        assert_eq!(run.act(Verb::Thaw).await.result, ActionResult::Done);
        run.script.send(LinkEvent::Action(Box::new(freeze)));
        assert_eq!(run.outcome().await, first);
        place.await_growth("out");

        assert_eq!(run.act(Verb::Kill).await.result, ActionResult::Done);
        let exit = timeout(SOON, run.task).await.unwrap().unwrap().unwrap();
        assert_eq!((exit, exit.exit_code()), (AgentExit::Signal(9), 137));
    });
}

fn observing() {
    within(|| async {
        let place = Place::new();
        let mut run = Run::of(&place, start(place.script(COUNTS)), Mode::Observe);
        place.await_growth("out");
        let order = halt("session:real", None);
        run.script.order(&order);
        let (settled, settlement) = run.settled().await;
        assert_eq!((settled, settlement.observed_only), (order.id, true));
        assert_eq!(settlement.processes_frozen, 0);
        // A drill's canary reaches nobody here, and the answer is that of a halt that does.
        let canary = canary();
        run.script.order(&canary);
        let (settled, settlement) = run.settled().await;
        assert_eq!((settled, settlement.observed_only), (canary.id, true));
        let other = halt("session:other", None);
        run.script.order(&other);
        let (settled, settlement) = run.settled().await;
        assert_eq!((settled, settlement.observed_only), (other.id, false));
        for verb in [Verb::Freeze, Verb::Kill] {
            assert_eq!(run.act(verb).await.result, ActionResult::Failed);
        }
        place.await_growth("out");
        run.end().await;
    });
}

/// Evidence before destruction.
fn kill_waits() {
    within(|| async {
        let place = Place::new();
        let mut run = Run::of(&place, start(place.script(COUNTS)), Mode::Enforce);
        place.await_growth("out");
        let case = IncidentId::new();
        let order = halt("session:real", Some(case));
        run.script.order(&order);
        let kill = run.send(Verb::Kill, case);
        let capture = run.send(Verb::Capture, case);
        assert_eq!(run.settled().await.0, order.id);
        // The capture for the order answers for the action, and the kill comes behind it.
        let first = run.outcome().await;
        assert_eq!((first.action, first.result), (capture, ActionResult::Done));
        assert!(first.detail["items"].as_u64().unwrap() > 10);
        let second = run.outcome().await;
        assert_eq!((second.action, second.result), (kill, ActionResult::Done));
        let manifest = Captured::open(&run.captured().await.folder).unwrap().1;
        assert_eq!(manifest.gaps, []);
        let exit = timeout(SOON, run.task).await.unwrap().unwrap().unwrap();
        assert_eq!(exit, AgentExit::Signal(9));
    });
}

/// A supervisor as a process: `supervisor FOLDER SCRIPT`. Says its agent's pid, ends as it ends.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let script = arguments.next().unwrap().into_string().unwrap();
    within(|| async {
        let place = Place::new();
        let mut prepared = Prepared::new(place.config(&["sh", "-c", &script])).unwrap();
        let gateway = prepared.take_listener().unwrap();
        let agent = prepared.start(&Script::free(), Mode::Enforce).unwrap();
        println!("{}", agent.pid());
        let run = Run::of(&place, agent, Mode::Enforce);
        let exit = timeout(SOON * 3, run.task).await.unwrap().unwrap().unwrap();
        drop((gateway, run.script));
        ExitCode::from(exit.exit_code())
    })
}

fn supervisor(script: &str) -> (Child, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([SUBCOMMAND, script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn signals() {
    let (mut child, _) = supervisor("exit 5");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    for name in ["TERM", "HUP", "INT", "QUIT", "USR1"] {
        let place = Place::new();
        let ready = place.path("ready");
        let (mut child, _) = supervisor(&format!(
            "trap 'exit 7' {name}; echo > {}; while :; do sleep 0.01; done",
            ready.display()
        ));
        place.await_line("ready");
        signal(child.id(), format!("SIG{name}").parse().unwrap());
        assert_eq!(child.wait().unwrap().code(), Some(7), "{name}");
    }
}

/// A supervisor that is killed takes its agent along; what had detached itself has no network.
fn outlive() {
    let place = Place::new();
    let program = place.agent(&[]).command[0].clone();
    let (out, left) = (place.path("out"), place.path("left"));
    let (mut child, agent) = supervisor(&format!(
        "(setsid {} agent keep-reaching {} 127.0.0.1:3128 & echo $! > {}); exec sleep 1000",
        program.display(),
        out.display(),
        left.display()
    ));
    let left: u32 = place.await_line("left").trim().parse().unwrap();
    let main = estoppel_host::Process::open(agent).unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{left}/cgroup")).unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    until(|| estoppel_host::Process::open(agent).is_err().then_some(()));
    drop(main);
    until(|| place.read("out").ends_with("127.0.0.1:3128 ConnectionRefused\n").then_some(()));
    signal(left, Signal::SIGKILL);
    let name = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    until(|| {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .any(|root| std::fs::remove_dir(format!("{root}{name}")).is_ok())
            .then_some(())
    });
}

fn left_behind() {
    let place = Place::new();
    let out = place.path("out");
    let (mut child, _) = supervisor(&format!(
        "(setsid sh -c 'while :; do echo x >> {out}; sleep 0.01; done' &); \
         while [ ! -e {out} ]; do sleep 0.01; done",
        out = out.display()
    ));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(place.stays("out"));
}
