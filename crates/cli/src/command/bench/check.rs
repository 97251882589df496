//! The check before each step: empty, and with 100,000 orders and six ids; beside the two Redis
//! GETs that loops do today.

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use estoppel_killswitch::OrderSet;
use estoppel_model::{
    Actor, Clock as _, EntityId, Kind, Order, OrderBody, OrderId, PluginRef, Scope, SignedOrder,
    Subject, SystemClock,
};
use serde_json::{Value, json};

use super::timed;
use crate::error::{CommandError, Exit, Result};

const CHECKS: u32 = 1_000_000;
const ORDERS: usize = 100_000;
const GETS: u32 = 2_000;

pub(super) fn run() -> Result<Value> {
    let subject = subject()?;
    let clock = per_call(|| {
        black_box(SystemClock.boottime());
    });
    let empty = OrderSet::default();
    let check = |orders: &OrderSet| {
        per_call(|| {
            black_box(SystemClock.boottime());
            black_box(orders.verdicts().check(black_box(&subject)));
        })
    };
    let on_empty = check(&empty);
    let full = orders()?;
    let on_full = check(&full);
    let redis = two_gets();
    let ratio = redis.as_ref().ok().map(|redis| redis / on_full);
    Ok(json!({
        "boottime_ns": clock,
        "empty_ns": on_empty,
        "empty_beyond_boottime_ns": on_empty - clock,
        "orders": ORDERS,
        "with_orders_ns": on_full,
        "with_orders_beyond_boottime_ns": on_full - clock,
        "two_redis_gets_ns": redis.as_ref().ok(),
        "redis": redis.as_ref().err(),
        "redis_over_check": ratio,
    }))
}

/// Nanoseconds of one call: the least of five rounds.
fn per_call(mut call: impl FnMut()) -> f64 {
    let mut round = || {
        let ((), elapsed) = timed(|| (0..CHECKS).for_each(|_| call()));
        elapsed.as_secs_f64() * 1e9 / f64::from(CHECKS)
    };
    (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn id(text: &str) -> Result<EntityId> {
    EntityId::new(text).map_err(|error| CommandError::new(Exit::Failed, error))
}

/// Six ids, none of which is halted.
fn subject() -> Result<Subject> {
    Ok(Subject {
        agent: Some(id("agent")?),
        session: Some(id("session")?),
        user: Some(id("user")?),
        task: Some(id("task")?),
        tenant: Some(id("tenant")?),
        plugin: Some(PluginRef { name: id("plugin")?, version: Some(id("1.2.3")?) }),
        ..Subject::default()
    })
}

fn orders() -> Result<OrderSet> {
    let failed = |error: anyhow::Error| CommandError::new(Exit::Failed, error);
    let actor = Actor::new("bench").map_err(|error| failed(error.into()))?;
    let mut set = OrderSet::default();
    for index in 0..ORDERS {
        let kind = Kind::ALL[index % Kind::ALL.len()];
        let order = Order {
            id: OrderId::new(),
            scope: Scope::entity(kind, id(&format!("other-{index}"))?).into(),
            reason: "bench".to_owned(),
            issued_by: actor.clone(),
            issued_at: SystemClock.now(),
            incident: None,
            tenant: None,
            body: OrderBody::Halt { until: None },
        };
        let order = serde_json::to_string(&order)?;
        let signed = SignedOrder { order, key: String::new(), signature: String::new() };
        set.insert(signed).map_err(|error| failed(error.into()))?;
    }
    Ok(set)
}

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nanoseconds of the two GETs (`global` and one id) of a loop, over a connection that stays open.
#[expect(clippy::disallowed_methods, reason = "a benchmark waits for another process")]
fn two_gets() -> std::result::Result<f64, String> {
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|error| error.to_string())?
        .port();
    let _redis = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .stdout(Stdio::null())
        .spawn()
        .map(Redis)
        .map_err(|error| {
            format!("not measured: redis-server: {error} (apt-get install redis-server)")
        })?;
    let connect = || {
        for _ in 0..100 {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                return Ok(stream);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("not measured: redis-server does not answer".to_owned())
    };
    let mut stream = connect()?;
    let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    let gets = [get("kill_switch:global"), get("kill_switch:session:abc123")];
    let mut answer = *b"$-1\r\n";
    let mut both = |stream: &mut TcpStream| -> std::io::Result<()> {
        for get in &gets {
            stream.write_all(get.as_bytes())?;
            // An answer is a few bytes, which come at once: `$-1` and a line's end.
            stream.read_exact(&mut answer)?;
        }
        Ok(())
    };
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (result, elapsed) = timed(|| (0..GETS).try_for_each(|_| both(&mut stream)));
    result.map_err(|error| error.to_string())?;
    Ok(elapsed.as_secs_f64() * 1e9 / f64::from(GETS))
}
