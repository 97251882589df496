//! Row K1 with Redis: a real server, loops that read it, tools that write to it, and what can
//! happen to either.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use estoppel_link::{
    Link, LinkConfig, LinkEvent,
    frame::{EnforcerKind, Settlement},
};
use estoppel_model::{Secret, Subject, SystemClock};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    redis_server::{Client, Redis, Reply},
    stage::{PATIENCE, Server, wait_for},
};

/// What `docs/redis.md` promises of a write on default settings.
const WITHIN: Duration = Duration::from_secs(1);
/// The same for polling among a million keys: a walk, and the rest of one that goes on.
const POLLED_MILLION: Duration = Duration::from_secs(8);
/// What a halt's answer has (invariant stop-never-waits).
const ANSWER: Duration = Duration::from_millis(250);

fn serve(redis: &Redis) -> Server {
    let server = Server::start_with(&format!("[redis]\nurl = \"{}\"\n", redis.url()));
    wait_for("the mirror", || mirror(&server)["connected"].as_bool()?.then_some(()));
    server
}

fn mirror(server: &Server) -> Value {
    server.send(&server.admin, "GET", "/v1/status", b"").1["redis"].clone()
}

fn state(server: &Server, scope: &str) -> Value {
    let scope = scope.replace('>', "%3E");
    server.send(&server.admin, "GET", &format!("/kill-switch?scope={scope}"), b"").1
}

fn halts(server: &Server, scope: &str) -> usize {
    state(server, scope)["halts"].as_array().unwrap().len()
}

fn halt(server: &Server, scope: &str) -> String {
    let body = json!({ "scope": scope, "reason": "suspected prompt injection" }).to_string();
    let (status, halt) = server.send(&server.admin, "POST", "/kill-switch", body.as_bytes());
    assert_eq!(status, 202, "{halt}");
    halt["id"].as_str().unwrap().to_owned()
}

fn release(server: &Server, scope: &str) {
    let halts: Vec<Value> = state(server, scope)["halts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|halt| halt["id"].clone())
        .collect();
    let body = json!({ "scope": scope, "reason": "false alarm", "halts": halts });
    let (status, answer) = server.admin("POST", "/kill-switch/release", &body);
    assert_eq!(status, 200, "{answer}");
}

fn key(scope: &str) -> String {
    format!("kill_switch:{scope}")
}

/// What an agent's loop does before each step.
fn stopped(client: &mut Client, scope: &str) -> bool {
    client.get(&key(scope)).is_some_and(|value| value["active"] == true)
}

fn wait_active(client: &mut Client, scope: &str) -> Value {
    wait_for(scope, || client.get(&key(scope)).filter(|value| value["active"] == true))
}

/// Row K1: an agent's loop that reads Redis, as it is, stops at a halt and goes on after the release.
#[test]
fn an_existing_loop_that_reads_redis_stops() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    let (steps, end) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut client = redis.client();
            while !end.load(Ordering::Relaxed) {
                if !stopped(&mut client, "global") && !stopped(&mut client, "session:abc") {
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let goes_on = || {
            let before = steps.load(Ordering::Relaxed);
            wait_for("a step", || (steps.load(Ordering::Relaxed) > before + 1).then_some(()));
        };
        goes_on();
        let id = halt(&server, "session:abc");
        let value = wait_active(&mut client, "session:abc");
        let known = state(&server, "session:abc");
        for field in ["active", "reason", "activated_by", "timestamp"] {
            assert_eq!(value[field], known[field], "{value}");
        }
        assert_eq!((&value["order_id"], value.as_object().unwrap().len()), (&json!(id), 5));
        // One step may have been under way.
        let at = steps.load(Ordering::Relaxed) + 1;
        (0..200).for_each(|_| assert!(stopped(&mut client, "session:abc")));
        assert!(steps.load(Ordering::Relaxed) <= at, "the loop went on");
        release(&server, "session:abc");
        goes_on();
        let value = client.get("kill_switch:session:abc").unwrap();
        assert_eq!((&value["active"], &value["reason"]), (&json!(false), &json!("false alarm")));
        end.store(true, Ordering::Relaxed);
    });
    // Who only reads Redis is never counted as one who must confirm.
    let status = server.send(&server.admin, "GET", "/v1/status", b"").1;
    assert_eq!(status["enforcers"], json!([]));
}

/// Rows K1, K6: every form of a scope has its key.
#[test]
fn every_scope_has_its_key_both_ways() {
    let Some(redis) = Redis::start(&["--databases", "4"]) else { return };
    let config = format!("[redis]\nurl = \"{}/3\"\n", redis.url());
    let server = Server::start_with(&config);
    let mut client = redis.client();
    client.call(&["SELECT", "3"]);
    let scopes = [
        "global",
        "session:abc123",
        "user:alice",
        "task:t",
        "tenant:acme",
        "plugin:scraper",
        "plugin:scraper@>=2.1",
        "agent:a",
        "tool:shell",
        "component:vector_search",
    ];
    for scope in scopes {
        halt(&server, scope);
        wait_active(&mut client, scope);
        release(&server, scope);
        wait_for(scope, || (!stopped(&mut client, scope)).then_some(()));
        client.set(&key(scope), r#"{"active": true, "reason": "by a tool"}"#);
        wait_for(scope, || (halts(&server, scope) == 1).then_some(()));
        release(&server, scope);
    }
    // One order of several scopes.
    halt_of(&server, &json!(["user:u1", "session:s1"]));
    wait_active(&mut client, "user:u1");
    wait_active(&mut client, "session:s1");
    assert!(mirror(&server)["address"].as_str().unwrap().ends_with("/3"));
}

fn halt_of(server: &Server, scope: &Value) {
    let (status, _) =
        server.admin("POST", "/kill-switch", &json!({ "scope": scope, "reason": "several" }));
    assert_eq!(status, 202);
}

/// Row K1: what Python's `json.dumps` writes halts Estoppel's enforcers, once, within a second, as
/// any halt does: with an incident.
#[test]
fn what_is_written_to_redis_halts() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let scope = format!("session:s{n}");
        let begun = Instant::now();
        client.set(
            &key(&scope),
            r#"{"active": true, "reason": "ops: leak", "activated_by": "carol", "timestamp": "2026-02-05T03:00:00Z"}"#,
        );
        wait_for(&scope, || (halts(&server, &scope) == 1).then_some(()));
        fastest = fastest.min(begun.elapsed());
        let known = state(&server, &scope);
        assert_eq!((&known["activated_by"], &known["stop"]), (&json!("redis"), &json!(true)));
        assert_eq!(known["reason"], "ops: leak (written to Redis, says by carol)");
        // Again, and with another reason: still one.
        client.set(&key(&scope), r#"{"active": true, "reason": "again"}"#);
        wait_for("our value", || client.get(&key(&scope)).filter(|it| it["order_id"].is_string()));
        assert_eq!(halts(&server, &scope), 1);
    }
    assert!(fastest < WITHIN, "the fastest of five took {fastest:?}");
    eprintln!("from a write to Redis to a halt: {fastest:?}");
    let incidents = wait_for("the incidents", || {
        let list = server.admin("GET", "/v1/incidents", &Value::Null).1;
        list.to_string().contains("session:s4").then_some(list)
    });
    assert!(incidents.to_string().contains("ops: leak"), "{incidents}");
    let status = server.json(&["status"]);
    assert_eq!(status["redis"]["halts_from_redis"], 5, "{status}");
    let text = String::from_utf8(server.cli(&["status"]).stdout).unwrap();
    assert!(text.contains("redis 127.0.0.1:") && text.contains("connected"), "{text}");
    let text = String::from_utf8(server.cli(&["doctor"]).stdout).unwrap();
    assert!(text.contains("redis: redis 127.0.0.1:"), "{text}");
}

/// Row K1: a halt that is written to Redis reaches an enforcer and is confirmed by it, while who
/// only reads Redis is not expected to.
#[test]
fn a_halt_from_redis_stops_an_enforcer() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let token = server.token("guard", "agent", None);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let subject = Subject::session("abc".parse().unwrap());
    let (servers, token) = (vec![server.url.parse().unwrap()], Secret::new(token));
    let config = LinkConfig {
        subjects: vec![subject.clone()],
        ..LinkConfig::new(servers, token, EnforcerKind::Guard, "a guard")
    };
    let _entered = runtime.enter();
    let (link, mut events) =
        Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap();
    wait_for("the lease", || link.view().check(&subject).is_ok().then_some(()));
    redis.client().set("kill_switch:session:abc", r#"{"active": true}"#);
    runtime.block_on(async {
        let ordered = async {
            loop {
                if let LinkEvent::Ordered(order) = events.recv().await.unwrap() {
                    return order.id;
                }
            }
        };
        let halt = tokio::time::timeout(PATIENCE, ordered).await.unwrap();
        assert!(link.view().check(&subject).is_err(), "the guard refuses");
        link.settled(halt, Settlement::default());
        let path = format!("/v1/halts/{halt}");
        let status = tokio::task::block_in_place(|| {
            wait_for("the confirmation", || {
                let status = server.admin("GET", &path, &Value::Null).1;
                (status["settled"] == 1).then_some(status)
            })
        });
        assert_eq!((&status["expected"], &status["state"]), (&json!(1), &json!("settled")));
        stop.cancel();
        tasks.close();
        tokio::time::timeout(PATIENCE, tasks.wait()).await.unwrap();
    });
}

/// Invariant starting-always-does: nothing that is done to a key, or to all, ends a halt; and the
/// keys say so again.
#[test]
fn nothing_done_to_redis_releases() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    for scope in ["global", "session:abc"] {
        halt(&server, scope);
    }
    let harm: [&[&str]; 9] = [
        &["DEL", "kill_switch:session:abc"],
        &["SET", "kill_switch:session:abc", r#"{"active": false}"#],
        &["SET", "kill_switch:session:abc", "garbage"],
        &["GETDEL", "kill_switch:session:abc"],
        &["RENAME", "kill_switch:session:abc", "elsewhere"],
        &["PEXPIRE", "kill_switch:session:abc", "1"],
        &["RESTORE", "kill_switch:session:abc", "0", "x"],
        &["FLUSHALL"],
        &["FLUSHDB", "ASYNC"],
    ];
    let mut client = redis.client();
    for command in harm {
        wait_active(&mut client, "session:abc");
        client.call(command);
        for scope in ["global", "session:abc"] {
            wait_active(&mut client, scope);
            assert_eq!(halts(&server, scope), 1, "{command:?}");
        }
    }
    client.call(&["DEL", "kill_switch:session:abc"]);
    client.call(&["RPUSH", "kill_switch:session:abc", "a"]);
    wait_active(&mut client, "session:abc");
    redis.restart();
    let mut client = redis.client();
    for scope in ["global", "session:abc"] {
        wait_active(&mut client, scope);
        assert_eq!(halts(&server, scope), 1);
    }
    // One that holds an old release and an old halt.
    release(&server, "session:abc");
    wait_for("the release", || (!stopped(&mut client, "session:abc")).then_some(()));
    assert!(stopped(&mut client, "global"));
}

/// Row K1: an old value of a released halt is put back; a later activation is a new halt.
#[test]
fn a_restored_value_is_stale_and_a_new_one_is_not() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    halt(&server, "session:abc");
    let old = wait_active(&mut client, "session:abc");
    release(&server, "session:abc");
    wait_for("the release", || (!stopped(&mut client, "session:abc")).then_some(()));
    client.set("kill_switch:session:abc", &old.to_string());
    wait_for("it is put back", || (!stopped(&mut client, "session:abc")).then_some(()));
    assert_eq!(state(&server, "session:abc")["active"], false);
    let renewed = Value::Object({
        let mut fields = old.as_object().unwrap().clone();
        fields.insert("timestamp".to_owned(), json!("2999-01-01T00:00:00Z"));
        fields
    });
    client.set("kill_switch:session:abc", &renewed.to_string());
    wait_for("a new halt", || (halts(&server, "session:abc") == 1).then_some(()));
}

/// Invariant stop-never-waits: a Redis that answers nobody holds up no halt, nor a start; what it
/// missed is there when it goes on.
#[test]
fn a_paused_redis_holds_up_nothing() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    halt(&server, "session:before");
    wait_active(&mut redis.client(), "session:before");
    redis.pause();
    let mut slowest = Duration::ZERO;
    for n in 0..30 {
        let begun = Instant::now();
        halt(&server, &format!("session:s{n}"));
        slowest = slowest.max(begun.elapsed());
        assert_eq!(state(&server, &format!("session:s{n}"))["stop"], true);
    }
    eprintln!("the slowest of 30 halts beside a paused Redis took {slowest:?}");
    assert!(slowest < ANSWER * 4, "a halt took {slowest:?}");
    release(&server, "session:s29");
    let status = wait_for("the outage is seen", || {
        let status = server.send(&server.admin, "GET", "/v1/status", b"").1;
        (status["redis"]["connected"] == false).then_some(status)
    });
    assert!(status["redis"]["behind"].as_u64().unwrap() >= 29, "{status}");
    assert!(status["warnings"].to_string().contains("Redis at"), "{status}");
    let text = String::from_utf8(server.cli(&["doctor"]).stdout).unwrap();
    assert!(text.contains("GAP   redis: "), "{text}");
    // A server that starts now takes halts, too.
    let server = server.crash_and_restart();
    halt(&server, "session:after");
    redis.go_on();
    let mut client = redis.client();
    for scope in ["session:before", "session:s0", "session:s28", "session:after"] {
        wait_active(&mut client, scope);
    }
    assert!(!stopped(&mut client, "session:s29"));
    wait_for("the mirror is in step", || {
        let mirror = mirror(&server);
        (mirror["connected"] == true && mirror["behind"] == 0).then_some(())
    });
}

/// Acknowledged-is-kept over both: what is written while the server is away halts when it comes
/// back, and what it had taken stays.
#[test]
fn a_crash_loses_no_halt_from_redis() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    client.set("kill_switch:session:a", r#"{"active": true}"#);
    wait_for("the halt", || (halts(&server, "session:a") == 1).then_some(()));
    let data = server.data.clone();
    let folder = server.crash_with(|| {
        client.set("kill_switch:session:b", r#"{"active": "true"}"#);
        client.call(&["DEL", "kill_switch:session:a"]);
    });
    let server = Server::at(&data);
    wait_for("the second halt", || (halts(&server, "session:b") == 1).then_some(()));
    wait_active(&mut client, "session:a");
    for scope in ["session:a", "session:b"] {
        assert_eq!(halts(&server, scope), 1, "{scope}");
    }
    drop(folder);
}

/// Bad input: hostile keys and values halt nobody, break nothing, and are told of; a halt with a
/// huge reason is a halt.
#[test]
fn hostile_values_are_inert() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    let deep = "[".repeat(100_000);
    let values: [&[u8]; 8] = [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        br#"{"active": []}"#,
        br#"{"active": "maybe"}"#,
        br#"{"inactive": true}"#,
        deep.as_bytes(),
    ];
    for (n, value) in values.iter().enumerate() {
        client.call(&[b"SET", format!("kill_switch:session:v{n}").as_bytes(), value]);
    }
    let keys: [&[u8]; 6] = [
        b"kill_switch:",
        b"kill_switch:\xff\x00",
        b"kill_switch:Session:x",
        b"kill_switch:session:a b",
        b"kill_switch:session:\xe2\x80\xaex",
        b"kill_switch:everything",
    ];
    for name in keys {
        client.call(&[b"SET", name, br#"{"active": true}"#]);
    }
    client.call(&["HSET", "kill_switch:user:u", "active", "true"]);
    client.call(&["XADD", "kill_switch:user:x", "*", "active", "true"]);
    let reason = format!("\u{1b}[2J<script>{}", "x".repeat(8 << 20));
    let huge = json!({ "active": true, "reason": reason, "activated_by": "\u{202e}" });
    client.set("kill_switch:session:huge", &huge.to_string());
    wait_for("the halt with the huge reason", || {
        (halts(&server, "session:huge") == 1).then_some(())
    });
    let known = state(&server, "session:huge")["reason"].as_str().unwrap().to_owned();
    assert!(known.len() < 2_000 && !known.contains(['\u{1b}', '\u{202e}']), "{known:?}");
    assert_eq!(server.json(&["status"])["halts"].as_array().unwrap().len(), 1);
    // The walk over all keys finds those that name no scope.
    let server = server.crash_and_restart();
    let mirror = wait_for("the walk", || {
        let mirror = mirror(&server);
        (mirror["ignored_keys"] == 6).then_some(mirror)
    });
    assert!(mirror["ignored_key"].is_string(), "{mirror}");
    let text = String::from_utf8(server.cli(&["status"]).stdout).unwrap();
    assert!(text.contains("6 keys under `kill_switch:`") && !text.contains('\u{202e}'), "{text}");
    assert_eq!(server.json(&["status"])["halts"].as_array().unwrap().len(), 1);
}

/// Row K1: thousands of activations at once are paced, and do not stand before a global one.
#[test]
fn a_flood_does_not_hold_up_a_global_halt() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    for n in 0..3_000 {
        client.send(&["SET", &format!("kill_switch:session:f{n}"), r#"{"active": true}"#]);
    }
    (0..3_000).for_each(|_| assert_ne!(client.reply(), Reply::Nil));
    wait_for("the flood", || (mirror(&server)["halts_waiting"].as_u64()? > 0).then_some(()));
    let begun = Instant::now();
    client.set("kill_switch:global", r#"{"active": true, "reason": "stop all"}"#);
    wait_for("the global halt", || (halts(&server, "global") == 1).then_some(()));
    eprintln!("a global halt in a flood took {:?}", begun.elapsed());
    let status = server.send(&server.admin, "GET", "/v1/status", b"").1;
    assert!(status["redis"]["halts_waiting"].as_u64().unwrap() > 0, "{status}");
    assert!(status["halts"].as_array().unwrap().len() < 1_500, "they are paced");
    assert!(status["warnings"].to_string().contains("too many came at once"), "{status}");
    let before = status["halts"].as_array().unwrap().len();
    wait_for("those that wait are taken up", || {
        (server.json(&["status"])["halts"].as_array().unwrap().len() > before).then_some(())
    });
}

/// Row K1: a million keys of others change nothing about the second, and Redis answers its others.
#[test]
fn among_a_million_foreign_keys() {
    let Some(redis) = Redis::start(&["--enable-debug-command", "local"]) else { return };
    let mut client = redis.client();
    let filled = client.call(&["DEBUG", "POPULATE", "1000000"]);
    assert_eq!(filled, Reply::Bytes(b"OK".to_vec()));
    client.set("kill_switch:session:old", r#"{"active": true}"#);
    let server = serve(&redis);
    wait_for("what stood there before", || (halts(&server, "session:old") == 1).then_some(()));
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let begun = Instant::now();
        client.set(&format!("kill_switch:session:s{n}"), r#"{"active": true}"#);
        wait_for("the halt", || (halts(&server, &format!("session:s{n}")) == 1).then_some(()));
        fastest = fastest.min(begun.elapsed());
    }
    eprintln!("among a million keys, from a write to Redis to a halt: {fastest:?}");
    assert!(fastest < WITHIN, "{fastest:?}");
    halt(&server, "global");
    wait_active(&mut client, "global");
    client.call(&["DEL", "kill_switch:global"]);
    wait_active(&mut client, "global");
}

/// Row K1: where Redis tells of no changes, the bound is that of a walk over all keys, for a quarter of
/// Redis's time; `global` is looked at all the same.
#[test]
fn polled_among_a_million_foreign_keys() {
    let Some(redis) = Redis::start(&["--enable-debug-command", "local"]) else { return };
    let mut client = redis.client();
    let user = ["ACL", "SETUSER", "polled", "on", ">hunter2", "~kill_switch:*", "+@all", "-client"];
    assert_eq!(client.call(&user), Reply::Bytes(b"OK".to_vec()));
    let filled = client.call(&["DEBUG", "POPULATE", "1000000"]);
    assert_eq!(filled, Reply::Bytes(b"OK".to_vec()));
    let url = format!("redis://polled:hunter2@127.0.0.1:{}", redis.port);
    let server = Server::start_in("", &[("ESTOPPEL_REDIS", &url)]);
    wait_for("the mirror", || (mirror(&server)["connected"] == true).then_some(()));
    assert_eq!(mirror(&server)["tracking"], false);
    let mut took = Vec::new();
    for n in 0..8 {
        let begun = Instant::now();
        client.set(&format!("kill_switch:session:s{n}"), r#"{"active": true}"#);
        wait_for("the halt", || (halts(&server, &format!("session:s{n}")) == 1).then_some(()));
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let begun = Instant::now();
    client.set("kill_switch:global", r#"{"active": true}"#);
    wait_for("the halt", || (halts(&server, "global") == 1).then_some(()));
    let global = begun.elapsed();
    eprintln!(
        "polled among a million keys, from a write to Redis to a halt: {took:?}; global {global:?}"
    );
    assert!(took[took.len() / 2] < POLLED_MILLION, "{took:?}");
    assert!(global < WITHIN, "{global:?}");
}

/// A name that is longer than any scope's is counted and left where it is.
#[test]
fn a_huge_name_is_counted_and_taken_over_nowhere() {
    let Some(redis) = Redis::start(&[]) else { return };
    let server = serve(&redis);
    let mut client = redis.client();
    let marker = "needle".repeat(200_000);
    // A plugin's range: without a bound this would be a scope.
    let spaces = " ".repeat(1 << 20);
    for name in [format!("session:{marker}"), format!("plugin:x@>={spaces}2")] {
        client.set(&format!("kill_switch:{name}"), r#"{"active": true}"#);
    }
    client.set("kill_switch:session:odd", "no json");
    client.set("kill_switch:session:good", r#"{"active": true}"#);
    wait_for("the halt", || (halts(&server, "session:good") == 1).then_some(()));
    // Walked over after a start.
    let server = server.crash_and_restart();
    let told = wait_for("the count", || {
        let mirror = mirror(&server);
        (mirror["ignored_keys"] == 2).then_some(mirror)
    });
    assert!(told["ignored_key"].as_str().unwrap().contains("bytes: at most 1024"), "{told}");
    let status = server.send(&server.admin, "GET", "/v1/status", b"").1.to_string();
    assert!(status.len() < 20_000 && !server.log().contains(&marker[..600]), "{status}");
    assert_eq!(server.json(&["status"])["halts"].as_array().unwrap().len(), 1);
    let metrics = wait_for("the measures", || {
        let text = server.send(&server.admin, "GET", "/metrics", b"").1;
        let text = text.as_str().unwrap().to_owned();
        let has = |sample: &str| text.lines().any(|line| line.starts_with(sample));
        (has("estoppel_redis_connected 1")
            && has("estoppel_redis_halts 1")
            && has("estoppel_redis_keys_ignored 2")
            && has("estoppel_redis_last_sync_timestamp_seconds 1"))
        .then_some(text)
    });
    let line = metrics.lines().find(|it| it.starts_with("estoppel_redis_values_refused_total "));
    let refused: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(refused >= 1.0, "{metrics}");
    drop(redis);
    wait_for("the loss", || {
        let text = server.send(&server.admin, "GET", "/metrics", b"").1;
        text.as_str().unwrap().contains("\nestoppel_redis_connected 0\n").then_some(())
    });
    let without = Server::start();
    let text = without.admin("GET", "/metrics", &Value::Null).1;
    assert!(!text.as_str().unwrap().contains("\nestoppel_redis_connected "), "there is none");
}

/// A user that may do no more than docs/redis.md says is enough; one that may not be told of
/// changes is polled; one that may not write is told of, and its halts still count.
#[test]
fn a_user_with_few_permissions() {
    let Some(redis) = Redis::start(&[]) else { return };
    let mut client = redis.client();
    let rights = std::fs::read_to_string("../../docs/redis.md").unwrap();
    let line = rights.lines().find(|line| line.starts_with("ACL SETUSER estoppel ")).unwrap();
    let documented: Vec<String> =
        line.split_whitespace().map(|word| word.replace("PASSWORD", "hunter2")).collect();
    assert_eq!(client.call(&documented), Reply::Bytes(b"OK".to_vec()), "{line}");
    let mut check = |name: &str, rights: &[&str], expect: &dyn Fn(&Value, &mut Client)| {
        if !rights.is_empty() {
            let user = [&["ACL", "SETUSER", name, "on", ">hunter2"], rights].concat();
            assert_eq!(client.call(&user), Reply::Bytes(b"OK".to_vec()));
        }
        let url = format!("redis://{name}:hunter2@127.0.0.1:{}", redis.port);
        let server = Server::start_in("", &[("ESTOPPEL_REDIS", &url)]);
        wait_for("the mirror", || mirror(&server)["connected"].as_bool()?.then_some(()));
        client.set(&format!("kill_switch:session:{name}"), r#"{"active": true}"#);
        let scope = format!("session:{name}");
        wait_for(&scope, || (halts(&server, &scope) == 1).then_some(()));
        let begun = Instant::now();
        client.set("kill_switch:session:second", &format!(r#"{{"active": true, "by": "{name}"}}"#));
        wait_for("second", || (halts(&server, "session:second") == 1).then_some(()));
        eprintln!("{name}: {:?}", begun.elapsed());
        let found = wait_for("the look", || {
            let mirror = mirror(&server);
            (mirror["last_sync"].is_string() || mirror["problem"].is_string()).then_some(mirror)
        });
        expect(&found, &mut client);
        client.call(&["FLUSHALL"]);
    };
    check("estoppel", &[], &|mirror, client| {
        assert_eq!((&mirror["tracking"], &mirror["problem"]), (&json!(true), &Value::Null));
        wait_active(client, "session:second");
    });
    let polled = ["~kill_switch:*", "+@all", "-client"];
    check("polled", &polled, &|mirror, client| {
        assert_eq!(mirror["tracking"], false, "{mirror}");
        wait_for("our value", || {
            client.get("kill_switch:session:second")?.get("order_id").cloned()
        });
    });
    let reader = ["%R~kill_switch:*", "+@all"];
    check("reader", &reader, &|mirror, _| {
        assert!(mirror["problem"].to_string().contains("it takes no writes"), "{mirror}");
    });
}

/// Row K1: several servers at one Redis agree, come to rest, and each of them can be released.
#[test]
fn two_servers_at_one_redis() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (one, other) = (serve(&redis), serve(&redis));
    let mut client = redis.client();
    halt(&one, "session:abc");
    wait_for("the other", || (halts(&other, "session:abc") == 1).then_some(()));
    client.set("kill_switch:user:u", r#"{"active": true}"#);
    for server in [&one, &other] {
        wait_for("both", || (halts(server, "user:u") == 1).then_some(()));
    }
    let sets = |client: &mut Client| {
        let Reply::Bytes(text) = client.call(&["INFO", "commandstats"]) else { panic!() };
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find(|line| line.starts_with("cmdstat_set:")).unwrap();
        line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Four looks of each server, and no write.
    let (before, begun) = (sets(&mut client), Instant::now());
    wait_for("four seconds", || (begun.elapsed() > Duration::from_secs(4)).then_some(()));
    assert_eq!(sets(&mut client), before, "the servers overwrite each other");
    for scope in ["session:abc", "user:u"] {
        release(&one, scope);
        assert!(wait_active(&mut client, scope)["active"] == true, "the other's stands");
        release(&other, scope);
        wait_for(scope, || {
            // Who saw the other's value before its own release may have taken it over once more.
            for server in [&one, &other] {
                if halts(server, scope) > 0 {
                    release(server, scope);
                }
            }
            (!stopped(&mut client, scope)).then_some(())
        });
    }
}

/// Secrets: a password is nowhere but at Redis; a wrong one is told of, and halts go on.
#[test]
fn a_password_is_used_and_never_shown() {
    let Some(redis) = Redis::start(&["--requirepass", "hunter2"]) else { return };
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", redis.port);
    let server = Server::start_in("", &[("ESTOPPEL_REDIS", &url("wrong-hunter3"))]);
    let problem = wait_for("the refusal", || {
        let problem = mirror(&server)["problem"].as_str()?.to_owned();
        (problem != "not connected yet").then_some(problem)
    });
    assert!(problem.to_lowercase().contains("pass"), "{problem}");
    halt(&server, "session:a");
    let shown = format!(
        "{}{}",
        server.json(&["status"]),
        std::fs::read_to_string(server.data.with_extension("log")).unwrap()
    );
    assert!(!shown.contains("hunter"), "{shown}");
    drop(server);
    let file = format!(
        "[redis]\nurl = \"redis://127.0.0.1:{}\"\npassword_env = \"REDIS_PASSWORD\"\n",
        redis.port
    );
    let server = Server::start_in(&file, &[("REDIS_PASSWORD", "hunter2")]);
    halt(&server, "session:a");
    let mut client = redis.client();
    client.call(&["AUTH", "hunter2"]);
    wait_active(&mut client, "session:a");
    let shown = format!(
        "{}{}",
        server.json(&["status"]),
        std::fs::read_to_string(server.data.with_extension("log")).unwrap()
    );
    assert!(!shown.contains("hunter"), "{shown}");
    let wrong = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["serve", "--redis", "http://:hunter2@127.0.0.1", "--data"])
        .arg(redis.folder.path().join("data"))
        .output()
        .unwrap();
    let told = String::from_utf8(wrong.stderr).unwrap();
    assert!(told.contains("not a Redis URL") && !told.contains("hunter"), "{told}");
}

/// TLS: the server is checked against the authority that is named, and not spoken to otherwise.
#[test]
fn a_redis_behind_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(redis) = Redis::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        cert.to_str().unwrap(),
        "--tls-key-file",
        key.to_str().unwrap(),
        "--tls-ca-cert-file",
        cert.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
    ]) else {
        return;
    };
    let url = format!("[redis]\nurl = \"rediss://localhost:{port}\"\n");
    let server = Server::start_with(&format!("{url}ca_file = \"{}\"\n", cert.display()));
    halt(&server, "session:a");
    wait_active(&mut redis.client(), "session:a");
    let server = Server::start_with(&url);
    let problem = wait_for("the refusal", || {
        let problem = mirror(&server)["problem"].as_str()?.to_owned();
        (problem != "not connected yet").then_some(problem)
    });
    assert!(problem.contains("certificate"), "{problem}");
}
