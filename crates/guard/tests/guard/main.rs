//! The guard against a real stream: halts between steps, in a step, in blocking work; a server that
//! is away; a lease that is over; observing.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod conformance;
mod limits;
mod open_step;
mod server;
mod tower;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    time::Duration,
};

use estoppel_guard::{DeniedReason, Guard, Mode, StepError, StepSpec, Usage};
use estoppel_killswitch::server::{HaltProgress, SwitchConfig};
use estoppel_model::{Boottime, Clock, OrderBody, Subject, SystemClock, Timestamp};
use server::{Server, timely};
use tokio::sync::oneshot;

async fn connect(server: &Server) -> Guard {
    connect_as(server, Mode::Enforce).await
}

async fn connect_as(server: &Server, mode: Mode) -> Guard {
    let guard = Guard::builder()
        .server(&server.url())
        .unwrap()
        .token("token")
        .agent("support")
        .unwrap()
        .mode(mode)
        .connect()
        .unwrap();
    timely(guard.ready()).await;
    guard
}

fn fetch() -> StepSpec {
    StepSpec::tool("fetch").unwrap()
}

/// Says when it is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

/// K4, K7, R4: a step runs and leaves its record; under a halt the next one is refused, with the
/// text, the order and a record.
#[tokio::test]
async fn a_halt_between_steps_refuses_the_next() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = Subject {
        task: Some("runaway-123".parse().unwrap()),
        ..guard.subject("session:abc123").unwrap()
    };
    let spec = fetch()
        .plugin("scraper", Some("2.1"))
        .unwrap()
        .accessed_tenant("acme".parse().unwrap())
        .params(&serde_json::json!({"url": "https://example.com"}));
    let value = guard
        .step(&subject, spec, async |step| {
            step.record_result(&"<html>");
            step.record_usage(Usage { estimated_cost: Some(0.25), ..Usage::default() });
            7
        })
        .await;
    assert_eq!(value, Ok(7));
    let event = server.event("allowed").await;
    for (column, value) in [
        ("kind", "audit"),
        ("session_id", "abc123"),
        ("task_id", "runaway-123"),
        ("agent_id", "support"),
        ("action", "tool_call"),
        ("tool", "fetch"),
        ("plugin", "scraper"),
        ("plugin_version", "2.1"),
        ("accessed_tenant_id", "acme"),
        ("result", "<html>"),
    ] {
        assert_eq!(event[column], value, "{column}: {event}");
    }
    assert_eq!(event["params"]["url"], "https://example.com");
    assert_eq!(event["estimated_cost"], 0.25);
    assert!(event["duration_ms"].as_f64().unwrap() >= 0.0);

    let halt = server.halt("session:abc123");
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    assert_eq!((progress.expected, progress.refusing), (1, 1));
    let mut ran = false;
    let error = guard.step(&subject, fetch(), async |_| ran = true).await.unwrap_err();
    assert!(!ran);
    assert_eq!(error.to_string(), "Your agent session has been suspended.");
    let StepError::Denied(denied) = error else { panic!("{error:?}") };
    let order = denied.order.unwrap();
    assert_eq!((order.id, order.issued_by.as_str()), (halt, "alice"));
    assert_eq!(order.reason, "suspected prompt injection");
    let event = server.event("denied").await;
    assert_eq!(event["attributes"]["order"], halt.to_string());
    assert!(guard.check(&guard.subject("session:other").unwrap()).is_ok());

    let everything = server.halt("global");
    server.until(everything, |progress| progress.settled == 1).await;
    let other = guard.subject("session:other").unwrap();
    assert_eq!(
        guard.check(&other).unwrap_err().to_string(),
        "Agent operations suspended. Contact security team."
    );
}

/// K7: work in flight is dropped at once, and the halt is settled when it is gone.
#[tokio::test]
async fn a_halt_in_a_step_drops_its_work() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let (began, begun) = oneshot::channel();
    let (dropped, gone) = oneshot::channel();
    let step = guard.step(&subject, fetch(), async |_| {
        let _dropped = Dropped(Some(dropped));
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let halt = async {
        begun.await.unwrap();
        server.halt("user:bob");
        server.halt("session:abc123")
    };
    let (ended, halt) = timely(async { tokio::join!(step, halt) }).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, StepError::Cancelled(_)), "{error:?}");
    assert_eq!(error.denied().unwrap().order.as_ref().unwrap().id, halt);
    timely(gone).await.unwrap();
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    let settlement = &progress.enforcers[0].settlement;
    assert_eq!(settlement.steps_cancelled, 1);
    assert!(settlement.not_interruptible.is_empty() && !settlement.observed_only);
    assert!(!progress.enforcers[0].witness, "a guard only claims");
    let event = server.event("cancelled").await;
    assert_eq!(event["attributes"]["order"], halt.to_string());
}

/// K10: a task is killed, and another one of the same session goes on.
#[tokio::test]
async fn one_task_is_killed() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let task = |task: &str| Subject {
        task: Some(task.parse().unwrap()),
        ..guard.subject("session:abc123").unwrap()
    };
    let (runaway, other) = (task("runaway-123"), task("other"));
    let (finish, finished) = oneshot::channel();
    let killed = async {
        let ended = guard.step(&runaway, fetch(), |_| std::future::pending::<()>()).await;
        finish.send(()).unwrap();
        ended
    };
    let goes_on = guard.step(&other, fetch(), async |_| finished.await.unwrap());
    let halt = async { server.halt("task:runaway-123") };
    let (killed, goes_on, _) = timely(async { tokio::join!(killed, goes_on, halt) }).await;
    assert!(matches!(killed, Err(StepError::Cancelled(_))), "{killed:?}");
    assert_eq!(goes_on, Ok(()));
}

#[tokio::test]
async fn blocking_work_is_named_and_its_result_withheld() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let (began, begun) = oneshot::channel();
    let (go_on, may_go) = sync_channel(1);
    let step = guard.step_blocking(&subject, fetch(), move |step| {
        began.send(()).unwrap();
        may_go.recv().unwrap();
        assert!(step.is_cancelled(), "work can ask");
        "secret"
    });
    let halt = async {
        begun.await.unwrap();
        server.halt("session:abc123")
    };
    let (ended, halt) = timely(async { tokio::join!(step, halt) }).await;
    assert!(matches!(ended, Err(StepError::Withheld(_))), "{ended:?}");
    // The work is still running; the confirmation does not wait for it, and says so.
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    let settlement = &progress.enforcers[0].settlement;
    assert_eq!(settlement.not_interruptible, ["tool fetch: blocking work, its result is withheld"]);
    assert_eq!(settlement.steps_cancelled, 0);
    let event = server.event("cancelled").await;
    assert_eq!(event["attributes"]["ended"], "not_interruptible");
    go_on.send(()).unwrap();
    let late = |event: &serde_json::Value| event["action"] == "estoppel.ended_late";
    let events = server.events_until(|events| events.iter().any(late)).await;
    let event = events.into_iter().find(late).unwrap();
    assert_eq!(event["attributes"]["order"], halt.to_string());
}

#[tokio::test]
async fn blocking_work_that_is_not_stopped_gives_its_value() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    assert_eq!(guard.step_blocking(&subject, fetch(), |_| 7).await, Ok(7));
    server.event("allowed").await;
}

/// A step whose work does not yield: the halt is settled with its name, and its value is withheld.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_does_not_yield_is_named() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let (began, begun) = oneshot::channel();
    let (go_on, may_go) = sync_channel::<()>(1);
    let stepping = {
        let (guard, subject) = (guard.clone(), subject.clone());
        tokio_util::task::TaskTracker::new().spawn(async move {
            let work = |_| async move {
                began.send(()).unwrap();
                may_go.recv().unwrap();
                7
            };
            guard.step(&subject, fetch(), work).await
        })
    };
    begun.await.unwrap();
    let halt = server.halt("session:abc123");
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    assert_eq!(progress.enforcers[0].settlement.not_interruptible, ["tool fetch: has not yielded"]);
    go_on.send(()).unwrap();
    let ended = timely(stepping).await.unwrap();
    assert!(matches!(ended, Err(StepError::Withheld(_))), "{ended:?}");
}

#[tokio::test]
async fn a_blocked_destination_stops_the_step_that_goes_there() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let to = |destination: &str| fetch().destination(destination).unwrap();
    let (began, begun) = oneshot::channel();
    let step = guard.step(&subject, to("Evil.example."), async |_| {
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let block = async {
        begun.await.unwrap();
        server.order("global", OrderBody::Block { destination: "evil.example".parse().unwrap() })
    };
    let (ended, block) = timely(async { tokio::join!(step, block) }).await;
    assert!(matches!(ended, Err(StepError::Cancelled(_))), "{ended:?}");
    server.until(block, |progress| progress.settled == 1).await;
    let ended = guard.step(&subject, to("evil.example:8443"), async |_| ()).await;
    let Err(StepError::Denied(denied)) = ended else { panic!("{ended:?}") };
    assert_eq!(denied.reason, DeniedReason::Blocked);
    assert_eq!(guard.step(&subject, to("good.example"), async |_| 7).await, Ok(7));
}

/// K3: the loop of those who ask by scope.
#[tokio::test]
async fn a_loop_asks_by_scope() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let kill_switch = guard.kill_switch();
    let scopes = ["global", "user:u", "session:s", "task:t", "tenant:n", "plugin:p"];
    assert!(!scopes.iter().any(|scope| kill_switch.check(scope)));
    let settled = |halt| server.until(halt, |progress| progress.settled == 1);
    settled(server.halt("tenant:n")).await;
    assert_eq!(
        scopes.map(|scope| kill_switch.check(scope)),
        [false, false, false, false, true, false]
    );
    settled(server.halt("plugin:p@<2")).await;
    assert!(kill_switch.check("plugin:p"), "any version");
    settled(server.halt("global")).await;
    assert!(scopes.iter().all(|scope| kill_switch.check(scope)));
    assert!(kill_switch.check("sesion:s"), "what is no scope stops");
}

#[tokio::test]
async fn a_server_that_is_away_from_the_start_means_no() {
    let address = Server::start().await.address;
    let guard = Guard::builder()
        .server(&format!("http://{address}"))
        .unwrap()
        .token("token")
        .connect()
        .unwrap();
    let denied = guard.check(&Subject::default()).unwrap_err();
    assert_eq!(denied.reason, DeniedReason::NotYetConnected);
    assert_eq!(denied.to_string(), "Your agent session has been suspended.");
    let ended = guard.step(&Subject::default(), fetch(), async |_| ()).await;
    assert!(matches!(ended, Err(StepError::Denied(_))), "{ended:?}");
}

/// The machine's clocks, with a jump: as after a sleep of the machine.
#[derive(Default)]
struct Jumping(AtomicU64);

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn boottime(&self) -> Boottime {
        SystemClock.boottime() + Duration::from_secs(self.0.load(Relaxed))
    }
}

/// *lease*: the check itself reads the clock; what is in flight is dropped, too.
#[tokio::test]
async fn a_lease_that_is_over_means_no_until_a_server_answers() {
    // A ping within the test would end what is tested.
    let config = SwitchConfig { ping: Duration::from_secs(5), ..SwitchConfig::default() };
    let server = Server::start_with(config).await;
    let clock = Arc::new(Jumping::default());
    let guard = Guard::builder()
        .server(&server.url())
        .unwrap()
        .token("token")
        .clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .connect()
        .unwrap();
    timely(guard.ready()).await;
    let subject = guard.subject("session:abc123").unwrap();
    assert!(guard.check(&subject).is_ok());
    let (began, begun) = oneshot::channel();
    let step = guard.step(&subject, fetch(), async |_| {
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let sleep = async {
        begun.await.unwrap();
        clock.0.store(3_600, Relaxed);
        guard.check(&subject).unwrap_err()
    };
    let (ended, denied) = timely(async { tokio::join!(step, sleep) }).await;
    assert_eq!(denied.reason, DeniedReason::LeaseLost, "at once, without any task's help");
    let Err(StepError::Cancelled(denied)) = ended else { panic!("{ended:?}") };
    assert_eq!(denied.reason, DeniedReason::LeaseLost);
    // The server is there: the next answer is a new lease.
    timely(async {
        while guard.check(&subject).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn observing_stops_nothing_and_records_what_it_would_have() {
    let server = Server::start().await;
    let guard = connect_as(&server, Mode::Observe).await;
    let subject = guard.subject("session:abc123").unwrap();
    let (began, begun) = oneshot::channel();
    let (go_on, may_go) = oneshot::channel();
    let step = guard.step(&subject, fetch(), async |step| {
        began.send(()).unwrap();
        may_go.await.unwrap();
        assert!(!step.is_cancelled());
        7
    });
    let halt = async {
        begun.await.unwrap();
        let halt = server.halt("session:abc123");
        let told = |progress: &HaltProgress| progress.enforcers[0].settled.is_some();
        let progress = server.until(halt, told).await;
        go_on.send(()).unwrap();
        (halt, progress)
    };
    let (value, (halt, progress)) = timely(async { tokio::join!(step, halt) }).await;
    assert_eq!(value, Ok(7));
    assert_eq!((progress.refusing, progress.settled), (0, 0), "who observes stops nothing");
    let settlement = &progress.enforcers[0].settlement;
    assert!(settlement.observed_only);
    assert_eq!(settlement.steps_cancelled, 1);
    let event = server.event("would_stop").await;
    assert_eq!(event["attributes"]["order"], halt.to_string());

    assert_eq!(guard.step(&subject, fetch(), async |_| 8).await, Ok(8));
    for _ in 0..100 {
        assert!(guard.check(&subject).is_ok());
    }
    assert!(!guard.kill_switch().check("session:abc123"));
    guard.step(&subject, StepSpec::action("last"), async |_| ()).await.unwrap();
    let events = server.events_until(|all| all.iter().any(|event| event["action"] == "last")).await;
    let of = |action: &str| events.iter().filter(|event| event["action"] == action).count();
    assert_eq!(of("tool_call"), 2);
    assert_eq!(of("estoppel.check"), 2, "once for each subject: the loop's and the scope's");
    assert!(events.iter().all(|event| event["decision"] == "would_stop"));
}

/// Whatever becomes of a step, it leaves the register and a record.
#[tokio::test]
async fn a_step_that_is_given_up_or_panics_leaves_a_record() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let forever =
        guard.step(&subject, StepSpec::action("given up"), |_| std::future::pending::<()>());
    tokio::time::timeout(Duration::from_millis(1), forever).await.unwrap_err();
    let panicking = {
        let (guard, subject) = (guard.clone(), subject.clone());
        tokio_util::task::TaskTracker::new().spawn(async move {
            let work = async |_| panic!("the tool's own mistake");
            guard.step(&subject, StepSpec::action("panics"), work).await
        })
    };
    panicking.await.unwrap_err();
    let blocking = {
        let (guard, subject) = (guard.clone(), subject.clone());
        tokio_util::task::TaskTracker::new().spawn(async move {
            let work = |_| panic!("the tool's own mistake");
            guard.step_blocking(&subject, StepSpec::action("panics blocking"), work).await
        })
    };
    assert!(blocking.await.unwrap_err().is_panic(), "the caller sees it");
    let events = server.events_until(|events| events.len() == 3).await;
    let ended = |action: &str| {
        let event = events.iter().find(|event| event["action"] == action).unwrap();
        event["attributes"]["ended"].as_str().unwrap().to_owned()
    };
    assert_eq!(ended("given up"), "given_up");
    assert_eq!(ended("panics"), "panicked");
    assert_eq!(ended("panics blocking"), "panicked");
    let halt = server.halt("global");
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    assert!(progress.enforcers[0].settlement.not_interruptible.is_empty());
}

#[tokio::test]
async fn closing_sends_what_is_left_and_refuses_from_then_on() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let subject = guard.subject("session:abc123").unwrap();
    let kept = guard.clone();
    for _ in 0..50 {
        guard.step(&subject, fetch(), async |_| ()).await.unwrap();
    }
    timely(guard.close()).await;
    server.events_until(|events| events.len() == 50).await;
    assert_eq!(kept.check(&subject).unwrap_err().reason, DeniedReason::Closed);
}

/// With the owner's choice to refuse, nothing is done that could not be recorded.
#[tokio::test]
async fn without_room_for_its_record_no_step_is_taken() {
    use estoppel_guard::{EventBuffer, WhenFull};
    let server = Server::start().await;
    let events =
        EventBuffer { memory_bytes_max: 1_000, disk_bytes_max: 0, when_full: WhenFull::Refuse };
    let guard = Guard::builder()
        .server(&server.url())
        .unwrap()
        .token("token")
        .events(events)
        .connect()
        .unwrap();
    timely(guard.ready()).await;
    let subject = guard.subject("session:abc123").unwrap();
    // One step's record of this size fills the memory; nothing has sent it yet, since this task
    // has not waited since.
    let spec = fetch().params(&"x".repeat(600));
    assert!(guard.step(&subject, spec, async |_| ()).await.is_ok());
    let denied = guard.check(&subject).unwrap_err();
    assert_eq!(denied.reason, DeniedReason::EventsFull);
    timely(async {
        while guard.check(&subject).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.event("allowed").await;
}

/// The register must not be the place where a race hides: halts and steps at random, and no step
/// ends well under a halt that its check or the order's arrival should have seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_step_slips_between_its_check_and_a_halt() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let tasks = tokio_util::task::TaskTracker::new();
    let halted = Arc::new(AtomicBool::new(false));
    let slipped = Arc::new(Mutex::new(Vec::new()));
    for worker in 0..4 {
        let (guard, halted, slipped) = (guard.clone(), Arc::clone(&halted), Arc::clone(&slipped));
        tasks.spawn(async move {
            let subject = guard.subject("session:abc123").unwrap();
            loop {
                let settled_before = halted.load(Relaxed);
                match guard.step(&subject, fetch(), async |_| tokio::task::yield_now().await).await
                {
                    Ok(()) if settled_before => slipped.lock().unwrap().push(worker),
                    Ok(()) => {}
                    Err(_) => return,
                }
            }
        });
    }
    server.events_until(|events| events.len() > 100).await;
    let halt = server.halt("session:abc123");
    server.until(halt, |progress| progress.settled == 1).await;
    halted.store(true, Relaxed);
    tasks.close();
    timely(tasks.wait()).await;
    assert!(slipped.lock().unwrap().is_empty());
}
