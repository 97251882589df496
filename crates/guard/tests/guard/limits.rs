//! Limits of tasks, from code and from orders: rows R1 (loop, usage), R5, R6.

use std::sync::atomic::AtomicUsize;

use estoppel_guard::{Breaker, Limit, OnLost, replay};
use estoppel_model::{AuditEvent, Event, Excess};
use serde_json::{Value, json};

use super::*;

async fn limited(server: &Server, limit: Limit) -> Guard {
    let guard = describe(server).limits(limit).connect().unwrap();
    timely(guard.ready()).await;
    guard
}

fn describe(server: &Server) -> estoppel_guard::Builder {
    Guard::builder().server(&server.url()).unwrap().token("token").agent("support").unwrap()
}

fn steps(max: u64) -> Limit {
    Limit { steps_max: Some(max), ..Limit::default() }
}

fn task(guard: &Guard, id: &str) -> Subject {
    guard.subject(&format!("task:{id}")).unwrap()
}

async fn call(guard: &Guard, subject: &Subject, result: Value) -> Result<(), StepError> {
    let spec = fetch().params(&json!({"url": "https://example.com", "page": 1}));
    guard.step(subject, spec, async |step| step.record_result(&result)).await
}

/// The limit for which a step was refused.
fn excess<T: std::fmt::Debug>(ended: Result<T, StepError>) -> Excess {
    let error = ended.unwrap_err();
    let denied = error.denied().unwrap();
    assert_eq!(denied.reason, DeniedReason::Limit, "{denied:#}");
    **denied.limit.as_ref().unwrap()
}

/// R5: a task over its limit is stopped at once, in all its steps and in nobody else's; its user is
/// told, its program learns which limit at what value, and so does the server.
#[tokio::test]
async fn a_task_over_its_limit_is_stopped_and_the_server_is_told() {
    let server = Server::start().await;
    let guard = limited(&server, steps(3)).await;
    let (subject, other) = (task(&guard, "runaway-123"), task(&guard, "calm"));
    let (began, begun) = oneshot::channel();
    let pending = guard.step(&subject, fetch(), async |_| {
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let runaway = async {
        begun.await.unwrap();
        for _ in 0..2 {
            guard.step(&subject, StepSpec::action("model_call"), async |_| ()).await.unwrap();
        }
        guard.step(&subject, fetch(), async |_| ()).await
    };
    let (pending, refused) = timely(async { tokio::join!(pending, runaway) }).await;
    let expected = Excess { breaker: Breaker::Steps, value: 4.0, max: 3.0, period: None };
    assert_eq!(excess(refused), expected);
    assert!(matches!(pending, Err(StepError::Cancelled(_))), "{pending:?}");
    assert_eq!(excess(pending), expected);
    let denied = guard.check(&subject).unwrap_err();
    assert_eq!(denied.to_string(), "Your agent session has been suspended.");
    assert_eq!(
        format!("{denied:#}"),
        "Your agent session has been suspended. Over a limit: 4 steps of at most 3."
    );
    let of_denied = serde_json::to_value(&denied).unwrap();
    assert_eq!(of_denied["limit"], json!({"breaker": "steps", "value": 4.0, "max": 3.0}));
    guard.step(&other, fetch(), async |_| ()).await.unwrap();

    let told = |event: &Value| event["action"] == "estoppel.limit";
    let events = server.events_until(|events| events.iter().any(told)).await;
    let events: Vec<_> = events.iter().filter(|event| told(event)).collect();
    assert_eq!(events.len(), 1, "once");
    let attributes = json!({"reason": "limit", "limit": of_denied["limit"], "tool": "fetch"});
    assert_eq!(events[0]["attributes"], attributes);
    assert_eq!(
        (&events[0]["decision"], &events[0]["task_id"]),
        (&json!("denied"), &json!("runaway-123"))
    );

    // The server halts the task; the refusal says so, and still for which limit.
    server.halt("task:runaway-123");
    timely(async {
        while guard.check(&subject).unwrap_err().order.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(guard.check(&subject).unwrap_err().reason, DeniedReason::Limit);
}

/// R5: a person's release lets the task begin anew; until then it stays stopped, with a server or
/// without.
#[tokio::test]
async fn the_limit_holds_without_a_server_and_ends_by_a_release() {
    let server = Server::start().await;
    let guard = describe(&server).limits(steps(1)).on_lost(OnLost::Allow).connect().unwrap();
    timely(guard.ready()).await;
    let subject = task(&guard, "t");
    call(&guard, &subject, json!(1)).await.unwrap();
    excess(call(&guard, &subject, json!(1)).await);
    let halt = server.halt("task:t");
    server.until(halt, |progress| progress.settled == 1).await;
    server.order("task:t", OrderBody::Release { orders: vec![halt] });
    timely(async {
        while guard.check(&subject).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    call(&guard, &subject, json!(1)).await.unwrap();
    excess(call(&guard, &subject, json!(1)).await);
    drop(server);
    excess(call(&guard, &subject, json!(1)).await);
    let alone = task(&guard, "alone");
    call(&guard, &alone, json!(1)).await.unwrap();
    excess(call(&guard, &alone, json!(1)).await);
}

/// R5: of limits from code and from orders the stricter holds, bound by bound, for work that is under
/// way, too; a released one loosens again.
#[tokio::test]
async fn limit_orders_tighten_and_their_release_loosens() {
    let server = Server::start().await;
    let guard = limited(&server, steps(5)).await;
    let order = server.order("agent:support", OrderBody::Limit { limit: steps(2) });
    let progress = server.until(order, |progress| progress.settled == 1).await;
    assert_eq!(progress.enforcers[0].settlement.containment, None, "all of it is enforced");
    let one = task(&guard, "one");
    for _ in 0..2 {
        call(&guard, &one, json!(1)).await.unwrap();
    }
    assert_eq!(excess(call(&guard, &one, json!(1)).await).max, 2.0);
    server.order("agent:support", OrderBody::Release { orders: vec![order] });
    timely(async {
        while guard.status().orders_in_force > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let two = task(&guard, "two");
    for _ in 0..5 {
        call(&guard, &two, json!(1)).await.unwrap();
    }
    assert_eq!(excess(call(&guard, &two, json!(1)).await).max, 5.0);
    assert!(guard.check(&one).is_err(), "what it stopped stays stopped");

    let three = task(&guard, "three");
    call(&guard, &three, json!(1)).await.unwrap();
    let (began, begun) = oneshot::channel();
    let pending = guard.step(&three, fetch(), async |_| {
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let tighten = async {
        begun.await.unwrap();
        server.order("global", OrderBody::Limit { limit: steps(1) });
    };
    let (pending, ()) = timely(async { tokio::join!(pending, tighten) }).await;
    assert_eq!(
        excess(pending),
        Excess { breaker: Breaker::Steps, value: 2.0, max: 1.0, period: None }
    );
}

/// R5: the time of a task is over while a step of it is under way: the step is stopped then.
#[tokio::test]
async fn the_wall_clock_stops_a_step_under_way() {
    let server = Server::start().await;
    let limit = Limit { wall_clock_ms_max: Some(50), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let subject = task(&guard, "t");
    let pending = guard.step(&subject, fetch(), |_| std::future::pending::<()>());
    let found = excess(timely(pending).await);
    assert_eq!((found.breaker, found.max), (Breaker::WallClock, 50.0));
    assert!(found.value > 50.0);
}

/// R1, R5: cost and tokens count over all steps of a task; what is no cost counts as none.
#[tokio::test]
async fn cost_and_tokens_are_bounded() {
    let server = Server::start().await;
    let limit = Limit { cost_usd_max: Some(1.0), tokens_max: Some(1_000), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let ask = async |subject: &Subject, cost: f64, tokens: u64| {
        let usage = Usage {
            estimated_cost: Some(cost),
            input_tokens: Some(tokens),
            output_tokens: Some(tokens),
            ..Usage::default()
        };
        guard
            .step(subject, StepSpec::action("model_call"), async |step| step.record_usage(usage))
            .await
    };
    let dear = task(&guard, "dear");
    for cost in [0.5, f64::NAN, -8.0, f64::INFINITY, 0.5] {
        ask(&dear, cost, 10).await.unwrap();
    }
    ask(&dear, 0.25, 10).await.unwrap();
    let found = excess(ask(&dear, 0.0, 0).await);
    assert_eq!((found.breaker, found.value, found.max), (Breaker::Cost, 1.25, 1.0));
    let chatty = task(&guard, "chatty");
    ask(&chatty, 0.0, 500).await.unwrap();
    ask(&chatty, 0.0, u64::MAX).await.unwrap();
    assert_eq!(excess(ask(&chatty, 0.0, 0).await).breaker, Breaker::Tokens);
}

/// R1: errors in a row trip, also with model calls between that go well; an error now and then does not.
#[tokio::test]
async fn errors_in_a_row_trip() {
    let server = Server::start().await;
    let limit = Limit { errors_in_a_row_max: Some(3), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let fail = async |subject: &Subject| {
        guard.step(subject, fetch(), async |step| step.record_error(&"connection refused")).await
    };
    let subject = task(&guard, "unlucky");
    for _ in 0..4 {
        fail(&subject).await.unwrap();
        fail(&subject).await.unwrap();
        call(&guard, &subject, json!("ok")).await.unwrap();
    }
    let subject = task(&guard, "broken");
    for _ in 0..4 {
        fail(&subject).await.unwrap();
        let _ = guard.step(&subject, StepSpec::action("model_call"), async |_| ()).await;
    }
    let found = excess(fail(&subject).await);
    assert_eq!((found.breaker, found.value), (Breaker::ErrorsInARow, 4.0));
    let events = server.events_until(|events| events.len() > 12).await;
    assert_eq!(events[0]["attributes"]["error"], "connection refused");
}

/// R1: the same call with the same result over and over is a loop, however its arguments are spelt; polling whose
/// results change is none, nor is a call whose result nobody records.
#[tokio::test]
async fn a_loop_trips_and_polling_passes() {
    let server = Server::start().await;
    let limit = Limit { identical_calls_max: Some(3), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let polling = task(&guard, "polling");
    for progress in 0..20 {
        call(&guard, &polling, json!({"progress": progress})).await.unwrap();
    }
    let silent = task(&guard, "silent");
    for _ in 0..20 {
        guard.step(&silent, fetch(), async |_| ()).await.unwrap();
    }
    let looping = task(&guard, "looping");
    let spelt = |text: &str| {
        let params: Box<serde_json::value::RawValue> = serde_json::from_str(text).unwrap();
        guard.step(&looping, fetch().params(&params), async |step| step.record_result(&"same"))
    };
    for text in
        [r#"{"a":1,"b":2}"#, r#"{"b":2.0,"a":1}"#, r#"{ "a": 1e0, "b": 2 }"#, r#"{"a":1,"b":2}"#]
    {
        spelt(text).await.unwrap();
    }
    let found = excess(spelt(r#"{"a":1,"b":2}"#).await);
    assert_eq!((found.breaker, found.value, found.period), (Breaker::IdenticalCalls, 4.0, Some(1)));
    let circling = task(&guard, "circling");
    let round = async |n: usize| {
        let spec = StepSpec::tool(["search", "fetch", "summarise"][n % 3]).unwrap();
        guard.step(&circling, spec, async |step| step.record_result(&"same")).await
    };
    for n in 0..12 {
        round(n).await.unwrap();
    }
    let found = excess(round(12).await);
    assert_eq!((found.value, found.period), (4.0, Some(3)));
}

/// R6: the records of a task that nothing stopped, as a server received them, are put through the breakers:
/// these would have stopped it, and by the records of a calm task do not stop that one.
#[tokio::test]
async fn the_records_of_an_incident_are_a_regression_case() {
    let server = Server::start().await;
    let guard = limited(&server, Limit::default()).await;
    let (runaway, calm) = (task(&guard, "runaway-123"), task(&guard, "calm-1"));
    for n in 0..40 {
        guard
            .step(&runaway, StepSpec::action("model_call").params(&n), async |step| {
                step.record_usage(Usage { estimated_cost: Some(0.05), ..Usage::default() });
            })
            .await
            .unwrap();
        let send = fetch().params(&json!({"to": "alice", "text": "hello"}));
        guard
            .step(&runaway, send, async |step| step.record_error(&"550 mailbox full"))
            .await
            .unwrap();
        call(&guard, &calm, json!({"page": n})).await.unwrap();
    }
    let events = server.events_until(|events| events.len() == 120).await;
    let of = |task: &str| -> Vec<AuditEvent> {
        let of_task = events.iter().filter(|event| event["task_id"] == task);
        let records = of_task.map(|event| match Event::parse(&event.to_string()).unwrap() {
            Event::Audit(record) => *record,
            Event::Network(_) => panic!("no audit event"),
        });
        records.collect()
    };
    let (runaway, calm) = (of("runaway-123"), of("calm-1"));
    let check = |limit: Limit, breaker: Breaker, at: usize| {
        let stopped = replay(&runaway, &limit).unwrap();
        assert_eq!((stopped.excess.breaker, stopped.at), (breaker, at));
        assert_eq!(replay(&calm, &limit), None, "{breaker:?}");
    };
    let none = Limit::default;
    // Model call and tool call in turn: the tool's calls are at 1, 3, 5, ...
    check(Limit { identical_calls_max: Some(5), ..none() }, Breaker::IdenticalCalls, 11);
    check(Limit { errors_in_a_row_max: Some(5), ..none() }, Breaker::ErrorsInARow, 11);
    check(Limit { cost_usd_max: Some(1.0), ..none() }, Breaker::Cost, 40);
    check(Limit { steps_max: Some(50), ..none() }, Breaker::Steps, 50);
    assert_eq!(replay(&runaway, &none()), None, "it was not stopped");
}

/// R5: 200 threads at once, and never more calls under way than the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_holds_the_concurrency_limit_under_200_threads() {
    const THREADS: usize = 200;
    let server = Server::start().await;
    let limit = Limit { concurrency_max: Some(8), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = std::sync::Barrier::new(THREADS);
    let subject = task(&guard, "fan-out");
    let runtime = tokio::runtime::Handle::current();
    let ended: Vec<_> = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let call = || {
                start.wait();
                // Until the trip stops it: at least one call too many was tried by then.
                let work = async |_| {
                    peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                    std::future::pending::<()>().await;
                };
                runtime.block_on(timely(guard.step(&subject, fetch(), work)))
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(call)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    });
    assert!(peak.into_inner() <= 8);
    let cancelled = ended.iter().filter(|it| matches!(it, Err(StepError::Cancelled(_)))).count();
    let refused = ended.iter().filter(|it| matches!(it, Err(StepError::Denied(_)))).count();
    assert_eq!((cancelled, refused), (8, THREADS - 8));
    for step in ended {
        assert_eq!(excess(step).breaker, Breaker::Concurrency);
    }
}

/// Who observes stops nothing and records once what it would have stopped.
#[tokio::test]
async fn an_observing_guard_records_what_is_over_a_limit() {
    let server = Server::start().await;
    let guard = describe(&server).mode(Mode::Observe).limits(steps(2)).connect().unwrap();
    timely(guard.ready()).await;
    let subject = task(&guard, "t");
    for _ in 0..6 {
        call(&guard, &subject, json!(1)).await.unwrap();
    }
    let ended =
        |events: &[Value]| events.iter().filter(|it| it["action"] == "tool_call").count() == 6;
    let events = server.events_until(ended).await;
    let trips: Vec<_> = events.iter().filter(|event| event["action"] == "estoppel.limit").collect();
    assert_eq!(trips.len(), 1);
    assert_eq!(trips[0]["decision"], "would_stop");
    let would =
        events.iter().filter(|it| it["decision"] == "would_stop" && it["action"] == "tool_call");
    assert_eq!(would.count(), 4);
}

/// R5: so many steps of a task each minute; one more is refused with the word when to try again, and trips
/// nobody: the task's check passes, other tasks go on, and it does itself once there is room.
#[tokio::test]
async fn steps_each_minute_are_bounded_without_a_trip() {
    let server = Server::start().await;
    let guard = limited(&server, Limit::default()).await;
    let limit = Limit { requests_per_minute: Some(2), ..Limit::default() };
    let order = server.order("agent:support", OrderBody::Limit { limit });
    let progress = server.until(order, |progress| progress.settled == 1).await;
    assert_eq!(progress.enforcers[0].settlement.containment, None);
    let (busy, other) = (task(&guard, "busy"), task(&guard, "other"));
    call(&guard, &busy, json!(1)).await.unwrap();
    guard.step(&busy, StepSpec::action("model_call"), async |_| ()).await.unwrap();
    let error = call(&guard, &busy, json!(3)).await.unwrap_err();
    let denied = error.denied().unwrap();
    assert_eq!(denied.reason, DeniedReason::TooManyRequests);
    let wait = denied.retry_after_ms.unwrap().get();
    assert!((1..=30_000).contains(&wait), "{wait} ms");
    assert!(
        denied.message.starts_with("Refused for now: at most 2 requests each minute: try again in"),
        "{denied}"
    );
    assert_eq!(serde_json::to_value(denied).unwrap()["retry_after_ms"], wait);
    guard.check(&busy).unwrap();
    call(&guard, &other, json!(1)).await.unwrap();
    let refused = |event: &Value| event["attributes"]["reason"] == "too_many_requests";
    let events = server.events_until(|events| events.iter().any(refused)).await;
    assert!(!events.iter().any(|event| event["action"] == "estoppel.limit"), "nobody is stopped");
    server.order("agent:support", OrderBody::Release { orders: vec![order] });
    timely(async {
        while call(&guard, &busy, json!(4)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// R5: who waits as long as is said may go on.
#[tokio::test]
async fn a_step_that_came_too_soon_may_be_later() {
    let server = Server::start().await;
    let limit = Limit { requests_per_minute: Some(600), ..Limit::default() };
    let guard = limited(&server, limit).await;
    let subject = task(&guard, "busy");
    let mut begun = 0_u64;
    let wait = loop {
        match guard.step(&subject, fetch(), async |_| ()).await {
            Ok(()) => begun += 1,
            Err(error) => break error.denied().unwrap().retry_after_ms.unwrap(),
        }
        assert!(begun < 100_000, "nothing refuses");
    };
    assert!(begun >= 600, "a minute's worth at once: {begun}");
    assert!(wait.get() <= 100, "{wait} ms");
    timely(async {
        let mut wait = Some(wait);
        while let Some(ms) = wait {
            tokio::time::sleep(Duration::from_millis(ms.get())).await;
            let again = guard.step(&subject, fetch(), async |_| ()).await;
            wait = again.err().and_then(|error| error.denied()?.retry_after_ms);
        }
    })
    .await;
}

/// R5: under a limit to what changes nothing, steps that are declared so and model calls may be; all others are
/// refused, which trips nobody; loading a plugin is no step of that kind.
#[tokio::test]
async fn only_what_changes_nothing_may_be_under_read_only() {
    let server = Server::start().await;
    let guard = limited(&server, Limit::default()).await;
    let subject = task(&guard, "t");
    let (began, begun) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let pending = guard.step(&subject, fetch(), async |_| {
        began.send(()).unwrap();
        ended.await.unwrap();
    });
    let ordered = async {
        begun.await.unwrap();
        let limit = Limit { read_only: true, ..Limit::default() };
        let order = server.order("agent:support", OrderBody::Limit { limit });
        let progress = server.until(order, |progress| progress.settled == 1).await;
        let word = progress.enforcers[0].settlement.containment.clone().unwrap();
        assert!(word.contains("under way go on to their end"), "{word}");
        end.send(()).unwrap();
        order
    };
    let (pending, order) = timely(async { tokio::join!(pending, ordered) }).await;
    pending.unwrap();
    let ask = async |spec: StepSpec| guard.step(&subject, spec, async |_| ()).await;
    ask(fetch().read_only()).await.unwrap();
    ask(StepSpec::action("model_call")).await.unwrap();
    guard.load_plugin(&subject, "scraper", None).unwrap().unwrap();
    for spec in [fetch(), StepSpec::action("deploy"), fetch().named("model_call")] {
        let error = ask(spec).await.unwrap_err();
        let denied = error.denied().unwrap();
        assert_eq!((denied.reason, denied.retry_after_ms), (DeniedReason::ReadOnly, None));
        assert_eq!(
            denied.to_string(),
            "Refused: at the moment only what changes nothing may be done."
        );
    }
    guard.check(&subject).unwrap();
    server.order("agent:support", OrderBody::Release { orders: vec![order] });
    timely(async {
        while ask(fetch()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Who observes refuses neither, and records what it would have refused.
#[tokio::test]
async fn an_observing_guard_records_what_it_would_have_refused() {
    let server = Server::start().await;
    let limit = Limit { requests_per_minute: Some(1), read_only: true, ..Limit::default() };
    let guard = describe(&server).mode(Mode::Observe).limits(limit).connect().unwrap();
    timely(guard.ready()).await;
    let subject = task(&guard, "t");
    call(&guard, &subject, json!(1)).await.unwrap();
    call(&guard, &subject, json!(2)).await.unwrap();
    let calls = |events: &[Value]| -> Vec<Value> {
        let calls = events.iter().filter(|it| it["action"] == "tool_call");
        calls.map(|it| it["attributes"]["reason"].clone()).collect()
    };
    let events = server.events_until(|events| calls(events).len() == 2).await;
    assert_eq!(calls(&events), [json!("read_only"), json!("too_many_requests")]);
    assert!(events.iter().all(|it| it["decision"] == "would_stop"), "{events:?}");
}
