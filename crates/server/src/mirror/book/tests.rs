use estoppel_model::Actor;
use proptest::prelude::*;

use super::*;

const NOW: Now = Now { wall: Timestamp::from_micros(0), boot: Boottime::from_nanos(0) };
const LATER: Now = Now { boot: Boottime::from_nanos(u64::MAX / 2), ..NOW };

fn id(n: u64) -> OrderId {
    OrderId::from_uuid(uuid::Uuid::from_u128(
        0x0197_0000_0000_7000_8000_0000_0000_0000 | u128::from(n),
    ))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn order(n: u64, scope: &str, by: &str, body: OrderBody) -> Arc<Order> {
    let scopes = scope.split(' ').map(|scope| scope.parse().unwrap());
    Arc::new(Order {
        id: id(n),
        scope: estoppel_model::ScopeSet::new(scopes).unwrap(),
        reason: format!("reason {n}"),
        issued_by: Actor::new(by).unwrap(),
        issued_at: at(i64::try_from(n).unwrap()),
        incident: None,
        tenant: None,
        body,
    })
}

fn halt(n: u64, scope: &str) -> Arc<Order> {
    order(n, scope, "alice", OrderBody::Halt { until: None })
}

fn release(n: u64, scope: &str, halts: &[OrderId]) -> Arc<Order> {
    order(n, scope, "bob", OrderBody::Release { orders: halts.to_vec() })
}

fn key(scope: &str) -> Key {
    Key::of(&scope.parse().unwrap())
}

fn says(text: &str) -> Found {
    Found::read(text.as_bytes())
}

/// What a halt that follows from Redis is to the switchboard.
fn given(new: &NewHalt, n: u64) -> Arc<Order> {
    let order = order(n, &new.scope.to_string(), ACTOR, OrderBody::Halt { until: None });
    let order_id = new.id.unwrap_or(order.id);
    Arc::new(Order { id: order_id, reason: new.claim.reason(), ..Order::clone(&order) })
}

fn json(judgement: &Judgement) -> serde_json::Value {
    match judgement {
        Judgement::Write(write) => serde_json::from_str(&write.text).unwrap(),
        other => panic!("nothing is written: {other:?}"),
    }
}

/// Judges, and gives the halt that follows, if one does.
fn honour(book: &mut Book, key: &Key, text: &str, n: u64) -> (Option<OrderId>, Judgement) {
    match book.judge(key, &says(text), NOW) {
        Judgement::Halt(new) => {
            let order = given(&new, n);
            book.honoured(&new);
            book.add(&order);
            (Some(order.id), book.judge(key, &says(text), NOW))
        }
        other => (None, other),
    }
}

/// Row K1: the value of a halt, and of its release.
#[test]
fn a_halt_and_its_release_are_written_as_json() {
    let mut book = Book::default();
    assert_eq!(book.add(&halt(1, "session:a")), [key("session:a")]);
    let written = json(&book.judge(&key("session:a"), &Found::Nothing, NOW));
    assert_eq!(
        written,
        serde_json::json!({
            "active": true,
            "reason": "reason 1",
            "activated_by": "alice",
            "timestamp": "1970-01-01T00:00:01.000000Z",
            "order_id": id(1),
        })
    );
    assert_eq!(book.judge(&key("session:a"), &says(&written.to_string()), NOW), Judgement::Leave);
    assert_eq!(book.add(&release(2, "session:a", &[id(1)])), [key("session:a")]);
    let ended = json(&book.judge(&key("session:a"), &says(&written.to_string()), NOW));
    assert_eq!((&ended["active"], &ended["order_id"]), (&false.into(), &id(2).to_string().into()));
    assert_eq!(ended["activated_by"], "bob");
    assert_eq!(book.judge(&key("session:a"), &says(&ended.to_string()), NOW), Judgement::Leave);
}

/// Row K1, invariant starting-always-does: absence and `active: false` release nothing.
#[test]
fn what_is_deleted_or_denied_is_put_back() {
    let mut book = Book::default();
    book.add(&halt(1, "session:a user:u"));
    for scope in ["session:a", "user:u"] {
        for text in ["", r#"{"active": false}"#, "false", "garbage", "[]", "{}"] {
            let written = json(&book.judge(&key(scope), &says(text), NOW));
            assert_eq!(written["active"], true, "{scope}: {text}");
        }
        let list = Found::Unreadable(crate::mirror::value::Unreadable::Type);
        assert_eq!(json(&book.judge(&key(scope), &list, NOW))["active"], true);
    }
    assert_eq!(book.judge(&key("session:b"), &Found::Nothing, NOW), Judgement::Leave);
}

/// Row K1: one halt for a scope, however often, by whomever and with whatever reason it is written.
#[test]
fn repeated_writes_are_one_halt() {
    let mut book = Book::default();
    let key = key("global");
    let (first, next) = honour(&mut book, &key, r#"{"active": true, "reason": "one"}"#, 1);
    assert!(first.is_some());
    assert_eq!(json(&next)["order_id"], first.unwrap().to_string(), "it is made ours");
    for text in [r#"{"active": true, "reason": "one"}"#, r#"{"active": true, "reason": "two"}"#] {
        let (again, next) = honour(&mut book, &key, text, 2);
        assert_eq!(again, None, "{text}");
        assert_eq!(json(&next)["order_id"], first.unwrap().to_string());
    }
    let ours = json(&next).to_string().replace("one", "another reason, our order");
    assert_eq!(honour(&mut book, &key, &ours, 3), (None, Judgement::Leave));
    assert_eq!(book.halts_from_redis(), 1);
}

/// Row K1: a person's halt at the scope does not swallow one that is written to Redis.
#[test]
fn an_outside_halt_stands_beside_a_persons() {
    let mut book = Book::default();
    book.add(&halt(1, "session:a"));
    let (new, next) = honour(&mut book, &key("session:a"), r#"{"active": true}"#, 5);
    assert_eq!(json(&next)["order_id"], id(1).to_string(), "the earliest is shown");
    book.add(&release(6, "session:a", &[id(1)]));
    let wanted = book.wanted(&"session:a".parse().unwrap()).unwrap();
    assert!(wanted.active && wanted.text.contains(&new.unwrap().to_string()), "{wanted:?}");
}

/// Row K1: an old value of a released halt is put back, not honoured; a new activation is.
#[test]
fn a_stale_value_is_put_back_and_a_new_one_is_honoured() {
    let mut book = Book::default();
    let key = key("session:a");
    book.add(&halt(1, "session:a"));
    let stale = json(&book.judge(&key, &Found::Nothing, NOW)).to_string();
    book.add(&release(2, "session:a", &[id(1)]));
    let (new, next) = honour(&mut book, &key, &stale, 3);
    assert_eq!((new, &json(&next)["active"]), (None, &false.into()));
    let ended = json(&next).to_string();

    // As it was, but dated later: a tool read it and activated again.
    let renewed = stale.replace("00:00:01", "00:00:09");
    let (new, _) = honour(&mut book, &key, &renewed, 4);
    assert!(new.is_some_and(|new| new != id(1)), "{new:?}");
    book.add(&release(10, "session:a", &[new.unwrap()]));

    // A tool read what the release had left, and set `active` in it.
    let (new, next) = honour(&mut book, &key, &ended.replace("false", "true"), 11);
    assert!(new.is_some());
    assert_eq!(json(&next)["active"], true);
    book.add(&release(12, "session:a", &[new.unwrap()]));
    for n in 13..16 {
        let (new, _) = honour(&mut book, &key, r#"{"active": true}"#, n * 10);
        assert!(new.is_some(), "without an id each activation is a new one");
        book.add(&release(n * 10 + 1, "session:a", &[new.unwrap()]));
        let Judgement::Write(write) = book.judge(&key, &says(r#"{"active": true}"#), LATER) else {
            panic!("what was honoured and is released is put back");
        };
        book.written(&key, &write, NOW);
    }
}

/// Who insists on a value that was released here is not fought: the key stays active.
#[test]
fn an_insisting_writer_wins_towards_active() {
    let mut book = Book::default();
    let key = key("session:a");
    book.add(&halt(1, "session:a"));
    let stale = json(&book.judge(&key, &Found::Nothing, NOW)).to_string();
    book.add(&release(2, "session:a", &[id(1)]));
    // The release, and once more.
    for _ in 0..2 {
        let Judgement::Write(write) = book.judge(&key, &says(&stale), NOW) else { panic!() };
        book.written(&key, &write, NOW);
    }
    assert_eq!(book.judge(&key, &says(&stale), NOW), Judgement::Insists);
    let next = Now { boot: NOW.boot + INSISTED.0, ..NOW };
    let Judgement::Write(write) = book.judge(&key, &says(&stale), next) else { panic!() };
    book.written(&key, &write, next);
    let later = Now { boot: next.boot + INSISTED.0, ..NOW };
    assert_eq!(book.judge(&key, &says(&stale), later), Judgement::Insists);
}

/// A tenant's token stops its own `user:bob`, not everybody's.
#[test]
fn a_tenants_halt_is_written_at_the_tenants_key_only() {
    let mut book = Book::default();
    let tenants = Order {
        tenant: Some("acme".parse().unwrap()),
        ..Order::clone(&halt(1, "user:bob tenant:acme"))
    };
    assert_eq!(book.add(&Arc::new(tenants)), [key("tenant:acme")]);
    assert_eq!(book.judge(&key("user:bob"), &Found::Nothing, NOW), Judgement::Leave);
    let hidden =
        Order { tenant: Some("acme".parse().unwrap()), ..Order::clone(&halt(2, "user:x")) };
    assert!(book.add(&Arc::new(hidden)).is_empty());
    assert_eq!(book.unwritten(), 1);
    book.add(&release(3, "user:x", &[id(2)]));
    assert_eq!(book.unwritten(), 0);
}

#[test]
fn another_spelling_of_a_key_is_followed() {
    let mut book = Book::default();
    let other = Key::parse(b"kill_switch:plugin:x@>= 2").unwrap();
    let (new, next) = honour(&mut book, &other, r#"{"active": true}"#, 1);
    assert_eq!(json(&next)["active"], true);
    let keys = book.add(&release(2, "plugin:x@>=2", &[new.unwrap()]));
    assert_eq!(keys, [key("plugin:x@>=2"), other.clone()]);
    assert_eq!(json(&book.judge(&other, &says(&json(&next).to_string()), NOW))["active"], false);
}

/// A model of Redis with servers on it; each step of a run is one of these.
#[derive(Debug, Clone)]
enum Step {
    Outside(usize, Write_),
    Halt(usize, usize),
    Release(usize, usize),
    Restart(usize),
    Sync(usize),
}

/// What somebody else writes to a key.
#[derive(Debug, Clone)]
enum Write_ {
    Text(&'static str),
    /// A value that stood at some key before, as a restored backup brings it.
    Old(usize),
    Flush,
}

const SCOPES: [&str; 3] = ["global", "session:a", "plugin:x@>=2"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let texts = prop::sample::select(vec![
        r#"{"active": true, "reason": "outside"}"#,
        r#"{"active": true}"#,
        "{active: true}",
        r#"{"active": true, "order_id": "7d1f9d3e-0000-4000-8000-000000000001", "timestamp": "1970-01-01T00:00:00Z"}"#,
        r#"{"active": false}"#,
        "",
        "garbage",
    ]);
    let write = prop_oneof![
        4 => texts.prop_map(Write_::Text),
        2 => any::<usize>().prop_map(Write_::Old),
        1 => Just(Write_::Flush),
    ];
    let step = prop_oneof![
        4 => (0..SCOPES.len(), write).prop_map(|(key, write)| Step::Outside(key, write)),
        2 => (0..3usize, 0..SCOPES.len()).prop_map(|(server, scope)| Step::Halt(server, scope)),
        2 => (0..3usize, any::<usize>()).prop_map(|(server, halt)| Step::Release(server, halt)),
        1 => (0..3usize).prop_map(Step::Restart),
        4 => (0..3usize).prop_map(Step::Sync),
    ];
    prop::collection::vec(step, 1..60)
}

struct World {
    redis: Vec<String>,
    old: Vec<String>,
    servers: Vec<Node>,
    next: u64,
}

#[derive(Default)]
struct Node {
    book: Book,
    orders: Vec<Arc<Order>>,
}

impl Node {
    fn add(&mut self, order: &Arc<Order>) {
        self.orders.push(Arc::clone(order));
        self.book.add(order);
    }

    /// The halts in force by the naive rule.
    fn in_force(&self) -> Vec<&Arc<Order>> {
        let ended: HashSet<OrderId> = self
            .orders
            .iter()
            .filter_map(|order| match &order.body {
                OrderBody::Release { orders } => Some(orders),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        let halts = self.orders.iter().filter(|order| matches!(order.body, OrderBody::Halt { .. }));
        halts.filter(|order| !ended.contains(&order.id)).collect()
    }

    fn halted(&self, scope: &str) -> bool {
        self.in_force().iter().any(|order| order.scope.to_string() == scope)
    }
}

impl World {
    fn new(servers: usize) -> Self {
        let servers = (0..servers).map(|_| Node::default()).collect();
        Self { redis: vec![String::new(); SCOPES.len()], old: Vec::new(), servers, next: 1 }
    }

    fn set(&mut self, key: usize, text: String) {
        self.old.push(std::mem::replace(&mut self.redis[key], text));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// One server looks at all keys; whether it did anything.
    fn sync(&mut self, server: usize, now: Now) -> bool {
        let mut did = false;
        let now = Now { wall: at(i64::try_from(self.number()).unwrap()), ..now };
        for (index, scope) in SCOPES.iter().enumerate() {
            // Once more after a halt, as the mirror does.
            for _ in 0..2 {
                let found = says(&self.redis[index]);
                let before = self.servers[server].in_force().len();
                let judged = self.servers[server].book.judge(&key(scope), &found, now);
                match judged {
                    Judgement::Leave | Judgement::Insists => break,
                    Judgement::Write(write) => {
                        if matches!(found, Found::Active(_)) && !write.active {
                            assert!(!self.servers[server].halted(scope), "a halt was taken back");
                        }
                        self.servers[server].book.written(&key(scope), &write, now);
                        self.set(index, write.text);
                        did = true;
                        break;
                    }
                    Judgement::Halt(new) => {
                        let order = given(&new, self.number());
                        let node = &mut self.servers[server];
                        assert!(!node.orders.iter().any(|known| known.id == order.id), "id taken");
                        node.book.honoured(&new);
                        node.add(&order);
                        assert_eq!(node.in_force().len(), before + 1);
                        did = true;
                    }
                }
            }
        }
        did
    }

    /// Syncs in turn until nobody does anything more.
    fn settle(&mut self, now: Now) {
        for _ in 0..20 {
            let servers = self.servers.len();
            if !(0..servers).map(|server| self.sync(server, now)).fold(false, |a, b| a | b) {
                return;
            }
        }
        panic!("the servers overwrite each other without end: {:?}", self.redis);
    }

    fn step(&mut self, step: &Step) {
        let count = self.servers.len();
        match step {
            Step::Outside(_, Write_::Flush) => {
                (0..SCOPES.len()).for_each(|index| self.set(index, String::new()));
            }
            Step::Outside(index, Write_::Text(text)) => self.set(*index, (*text).to_owned()),
            Step::Outside(index, Write_::Old(which)) => {
                if let Some(text) = self.old.get(which % self.old.len().max(1)).cloned() {
                    self.set(*index, text);
                }
            }
            Step::Halt(server, scope) => {
                let order = halt(self.number(), SCOPES[*scope]);
                self.servers[server % count].add(&order);
            }
            Step::Release(server, which) => {
                let n = self.number();
                let node = &mut self.servers[server % count];
                let halts = node.in_force();
                if halts.is_empty() {
                    return;
                }
                let halt = Arc::clone(halts[which % halts.len()]);
                let release = release(n, &halt.scope.to_string(), &[halt.id]);
                node.add(&release);
            }
            Step::Restart(server) => {
                let node = &mut self.servers[server % count];
                node.book = Book::default();
                // Later ones first: arrival must not matter.
                let orders: Vec<_> = node.orders.iter().rev().cloned().collect();
                for order in orders {
                    node.book.add(&order);
                }
            }
            Step::Sync(server) => {
                self.sync(server % count, NOW);
            }
        }
    }
}

proptest! {
    /// Row K1, invariant starting-always-does: whatever is written, restored, deleted and flushed,
    /// and whoever restarts, no halt ends but by a release, none that is found is lost, what is
    /// halted anywhere is active in Redis, and any number of servers come to rest.
    #[test]
    fn no_halt_is_lost_and_none_ended(steps in steps(), servers in 1..4usize) {
        let mut world = World::new(servers);
        for step in &steps {
            let before: Vec<Vec<OrderId>> = world
                .servers
                .iter()
                .map(|node| node.in_force().iter().map(|order| order.id).collect())
                .collect();
            world.step(step);
            if !matches!(step, Step::Release(..)) {
                for (node, before) in world.servers.iter().zip(before) {
                    let now: Vec<OrderId> = node.in_force().iter().map(|order| order.id).collect();
                    prop_assert!(before.iter().all(|halt| now.contains(halt)), "{step:?} ended one");
                }
            }
        }
        world.settle(NOW);
        for (index, scope) in SCOPES.iter().enumerate() {
            let found = says(&world.redis[index]);
            if world.servers.iter().any(|node| node.halted(scope)) {
                prop_assert!(matches!(found, Found::Active(_)), "{scope}: {}", world.redis[index]);
            }
            for node in &world.servers {
                let of_redis = node.in_force().into_iter().filter(|order| {
                    is_from_redis(order) && order.scope.to_string() == *scope
                });
                prop_assert!(of_redis.count() <= 1, "several halts of one scope: {scope}");
            }
        }
        // An activation at the end halts everybody.
        world.set(1, r#"{"active": true, "reason": "last"}"#.to_owned());
        world.settle(NOW);
        for node in &world.servers {
            prop_assert!(node.halted("session:a"));
        }
    }

    /// What people release everywhere is over: nothing brings it back, and the keys say so.
    #[test]
    fn what_all_release_is_over(steps in steps(), servers in 1..4usize) {
        let mut world = World::new(servers);
        steps.iter().for_each(|step| world.step(step));
        world.settle(NOW);
        // Somebody's halt may be taken over by those who had released it: once for each server.
        for _ in 0..=servers {
            for server in 0..servers {
                while !world.servers[server].in_force().is_empty() {
                    world.step(&Step::Release(server, 0));
                }
            }
            world.settle(LATER);
        }
        for node in &world.servers {
            prop_assert!(node.in_force().is_empty(), "{:?}", node.in_force());
        }
        for text in &world.redis {
            prop_assert!(!matches!(says(text), Found::Active(_)), "{text}");
        }
    }
}
