//! Leases: an enforcer's against the naive rule, whatever a server says and leaves out; and both sides
//! together, over a network that is slow and breaks. Invariants *lease*, *confirmed*; row K7.

use std::{collections::VecDeque, time::Duration};

use estoppel_killswitch::{
    LEASE_MAX, Now,
    enforcer::{self, Enforcer, Kept},
    frame::{PROTOCOL, Settlement, ToEnforcer, ToServer, Welcome},
    server::{self, ConnectionId, Switch, SwitchConfig},
};
use estoppel_model::{Boottime, OrderId, Subject};
use estoppel_testkit::keys::SERVER;
use proptest::prelude::*;

use crate::{
    by_hand::{identity, sent, submit, switch},
    enforcer::enforcer,
    support::{at, halt, id, order_id},
};

/// Most pings that wait for an answer at a time.
const WAITING_MAX: usize = 64;

/// What an enforcer meets.
#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Connected,
    Disconnected,
    Welcome {
        lease_ms: u64,
        ping_ms: u64,
    },
    InSync,
    /// An answer to the ping so many before the last one, which may have been answered before, or on
    /// another connection.
    Pong {
        back: u64,
        staleness_ms: u64,
    },
    /// An answer to nothing.
    Stray(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..8_000_u64).prop_map(Event::Pass),
        1 => (0..400_000_u64).prop_map(Event::Pass),
        2 => Just(Event::Connected),
        1 => Just(Event::Disconnected),
        3 => (0..400_000_u64, 0..5_000_u64)
            .prop_map(|(lease_ms, ping_ms)| Event::Welcome { lease_ms, ping_ms }),
        3 => Just(Event::InSync),
        6 => (0..4_u64, prop_oneof![Just(0), 0..30_000_u64])
            .prop_map(|(back, staleness_ms)| Event::Pong { back, staleness_ms }),
        1 => (0..70_u64, Just(0_u64))
            .prop_map(|(back, staleness_ms)| Event::Pong { back, staleness_ms }),
        1 => any::<u64>().prop_map(Event::Stray),
    ]
}

struct Asked {
    nonce: u64,
    sent: Boottime,
    connection: u32,
    answered: bool,
}

/// The rule by the book: it remembers everything.
#[derive(Default)]
struct Naive {
    connection: u32,
    /// No welcome came on this connection; only the first one counts.
    greets: bool,
    /// How long leases are, by the last welcome that counted.
    lease: Duration,
    asked: Vec<Asked>,
    until: Option<Boottime>,
}

impl Naive {
    fn holds(&self, now: Now) -> bool {
        self.until.is_some_and(|until| now.boot < until)
    }

    fn answered(&mut self, nonce: u64, staleness: Duration) {
        let connection = self.connection;
        let mut waiting: Vec<&mut Asked> = self
            .asked
            .iter_mut()
            .filter(|ping| ping.connection == connection && !ping.answered)
            .collect();
        let forgotten = waiting.len().saturating_sub(WAITING_MAX);
        let Some(ping) = waiting.drain(forgotten..).find(|ping| ping.nonce == nonce) else {
            return;
        };
        ping.answered = true;
        let until = ping.sent + self.lease.min(LEASE_MAX).saturating_sub(staleness);
        self.until = self.until.max(Some(until));
    }
}

fn welcome(lease_ms: u64, ping_ms: u64) -> ToEnforcer {
    ToEnforcer::Welcome(Box::new(Welcome {
        protocol: PROTOCOL,
        key: SERVER.to_owned(),
        tenant: None,
        lease_ms,
        ping_ms,
        buckets: None,
        checkpoint: None,
        contact: None,
    }))
}

proptest! {
    /// The lease is what the answers of this connection gave, counted from the sending, at most
    /// [`LEASE_MAX`], and each once; that it is lost and regained is said when it is, once.
    #[test]
    fn an_enforcers_lease_is_the_naive_rule(events in prop::collection::vec(any_event(), 1..120)) {
        let (mut enforcer, _) = enforcer(Kept::default());
        let mut naive = Naive::default();
        let (mut millis, mut held) = (0, false);
        for event in events {
            let was_in_sync = enforcer.is_in_sync();
            let input = match event {
                Event::Pass(passed) => {
                    millis += passed;
                    enforcer::Input::Tick
                }
                Event::Connected => enforcer::Input::Connected,
                Event::Disconnected => enforcer::Input::Disconnected,
                Event::Welcome { lease_ms, ping_ms } => {
                    if std::mem::take(&mut naive.greets) {
                        naive.lease = Duration::from_millis(lease_ms);
                    }
                    enforcer::Input::Frame(welcome(lease_ms, ping_ms))
                }
                Event::InSync => enforcer::Input::Frame(ToEnforcer::InSync),
                Event::Pong { back, staleness_ms } => {
                    let last = naive.asked.last().map_or(0, |ping| ping.nonce);
                    let nonce = last.wrapping_sub(back);
                    if was_in_sync {
                        naive.answered(nonce, Duration::from_millis(staleness_ms));
                    }
                    enforcer::Input::Frame(ToEnforcer::Pong { nonce, staleness_ms })
                }
                Event::Stray(nonce) => {
                    // One in 2^64 is none.
                    let nonce = nonce | 1 << 63;
                    enforcer::Input::Frame(ToEnforcer::Pong { nonce, staleness_ms: 0 })
                }
            };
            if matches!(input, enforcer::Input::Connected | enforcer::Input::Disconnected) {
                naive.connection += 1;
                naive.greets = matches!(input, enforcer::Input::Connected);
            }
            let now = at(millis);
            let effects = enforcer.step(input, now);
            for effect in &effects {
                if let enforcer::Effect::Send(ToServer::Ping { nonce }) = effect {
                    prop_assert!(enforcer.is_in_sync(), "a ping before the orders are in step");
                    let (sent, connection) = (now.boot, naive.connection);
                    naive.asked.push(Asked { nonce: *nonce, sent, connection, answered: false });
                }
            }
            prop_assert_eq!(enforcer.lease_until(), naive.until);
            let lost = effects.iter().any(|it| matches!(it, enforcer::Effect::LeaseLost));
            let regained = effects.iter().any(|it| matches!(it, enforcer::Effect::LeaseRegained));
            let holds = naive.holds(now);
            prop_assert_eq!((lost, regained), (held && !holds, !held && holds));
            held = holds;
        }
    }
}

/// What happens between an enforcer and a server.
#[derive(Debug, Clone)]
enum Move {
    Pass(u64),
    /// The oldest frame that is under way arrives.
    Up,
    Down,
    Connect,
    /// The connection breaks with all that is under way; both sides notice.
    Break,
    Halt,
    /// The oldest halt that arrived and has not settled does.
    Settle,
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        5 => (0..4_000_u64).prop_map(Move::Pass),
        1 => (0..40_000_u64).prop_map(Move::Pass),
        9 => Just(Move::Up),
        9 => Just(Move::Down),
        2 => Just(Move::Connect),
        1 => Just(Move::Break),
        1 => Just(Move::Halt),
        2 => Just(Move::Settle),
    ]
}

/// A server, an enforcer, and what is under way between them.
struct World {
    switch: Switch,
    enforcer: Enforcer,
    millis: u64,
    connection: Option<u64>,
    connections: u64,
    up: VecDeque<ToServer>,
    down: VecDeque<ToEnforcer>,
    to_settle: VecDeque<OrderId>,
    /// Halts, when they were accepted, and whether the enforcer had a lease then.
    halts: Vec<(OrderId, u64, bool)>,
}

impl World {
    fn new() -> Self {
        Self {
            switch: switch(),
            enforcer: enforcer(Kept::default()).0,
            millis: 0,
            connection: None,
            connections: 0,
            up: VecDeque::new(),
            down: VecDeque::new(),
            to_settle: VecDeque::new(),
            halts: Vec::new(),
        }
    }

    fn play(&mut self, event: Move) {
        match event {
            Move::Pass(millis) => {
                self.millis += millis;
                self.server(server::Input::Tick);
                self.enforcer(enforcer::Input::Tick);
            }
            Move::Up => {
                if let (Some(n), Some(frame)) = (self.connection, self.up.pop_front()) {
                    self.server(server::Input::Frame { connection: ConnectionId(n), frame });
                }
            }
            Move::Down => {
                if let Some(frame) = self.down.pop_front() {
                    self.enforcer(enforcer::Input::Frame(frame));
                }
            }
            Move::Connect if self.connection.is_none() => {
                self.connections += 1;
                self.connection = Some(self.connections);
                let connection = ConnectionId(self.connections);
                let identity = Box::new(identity("a", None));
                self.server(server::Input::Connected { connection, identity });
                self.enforcer(enforcer::Input::Connected);
            }
            Move::Connect => {}
            Move::Break => self.cut(),
            Move::Halt => {
                let n = self.halts.len() as u64;
                let held = self.enforcer.lease_until() > Some(at(self.millis).boot);
                self.halts.push((order_id(n), self.millis, held));
                let order = halt(n, &[&format!("session:s{n}")]);
                let (_, effects) = submit(&mut self.switch, &order, self.millis);
                self.carry(&effects);
            }
            Move::Settle => {
                if let Some(order) = self.to_settle.pop_front() {
                    let settlement = Settlement::default();
                    self.enforcer(enforcer::Input::Settled { order, settlement });
                }
            }
        }
    }

    fn cut(&mut self) {
        let Some(n) = self.connection.take() else { return };
        self.up.clear();
        self.down.clear();
        self.server(server::Input::Disconnected { connection: ConnectionId(n) });
        self.enforcer(enforcer::Input::Disconnected);
    }

    fn server(&mut self, input: server::Input) {
        let effects = self.switch.step(input, at(self.millis));
        self.carry(&effects);
    }

    fn carry(&mut self, effects: &[server::Effect]) {
        let Some(n) = self.connection else { return };
        self.down.extend(sent(effects, n).into_iter().cloned());
        let closes = |it: &server::Effect| matches!(it, server::Effect::Close { connection, .. } if *connection == ConnectionId(n));
        if effects.iter().any(closes) {
            self.cut();
        }
    }

    fn enforcer(&mut self, input: enforcer::Input) {
        let effects = self.enforcer.step(input, at(self.millis));
        let ends = effects.iter().any(|it| matches!(it, enforcer::Effect::Disconnect { .. }));
        for effect in effects {
            match effect {
                enforcer::Effect::Send(frame) => self.up.push_back(frame),
                enforcer::Effect::Ordered(order) => self.to_settle.push_back(order.id),
                _ => {}
            }
        }
        if ends {
            self.cut();
        }
    }

    /// What must hold at every moment.
    fn judge(&self) -> Result<(), TestCaseError> {
        let now = at(self.millis).boot;
        let acts = self.enforcer.lease_until() > Some(now);
        let known = self.switch.enforcer(self.enforcer.id());
        if acts {
            let counted = known.is_some_and(|known| known.is_alive(now));
            prop_assert!(counted, "it may act, and the server counts on its lease being over");
        }
        let lease = SwitchConfig::default().lease;
        for (order, accepted, held) in &self.halts {
            let count = self.switch.count(*order).unwrap();
            prop_assert!(!held || count.expected == 1, "it had a lease, and is not expected");
            let stopped = self.enforcer.verdicts().check(&subject(*order)).is_some();
            let over = count.settled + count.by_lease + count.gone;
            prop_assert!(over <= count.expected && count.refusing <= count.expected);
            prop_assert!(count.refusing == 0 || stopped, "counted as refusing, and does not");
            if count.is_complete() || now >= at(*accepted).boot + lease {
                prop_assert!(stopped || !acts, "it acts though it must have stopped: {count:?}");
            }
        }
        Ok(())
    }
}

fn subject(order: OrderId) -> Subject {
    let n = (0..).find(|n| order_id(*n) == order).unwrap_or_default();
    Subject::session(id(&format!("s{n}")))
}

proptest! {
    /// Whoever holds a lease is counted on by the server; a halt expects everybody who may act; what
    /// counts as confirmed is so; and one lease after its acceptance nobody acts against it.
    #[test]
    fn both_sides_agree_on_who_may_act(moves in prop::collection::vec(any_move(), 1..250)) {
        let mut world = World::new();
        world.play(Move::Connect);
        for event in moves {
            world.play(event);
            world.judge()?;
        }
    }
}

/// The worlds above are no empty ones: in one by hand everything is reached.
#[test]
fn a_world_in_which_all_goes_well_comes_to_its_end() {
    let mut world = World::new();
    world.play(Move::Connect);
    let settle = |world: &mut World| {
        for _ in 0..12 {
            world.play(Move::Up);
            world.play(Move::Down);
        }
    };
    settle(&mut world);
    world.play(Move::Pass(3_000));
    settle(&mut world);
    assert!(world.enforcer.lease_until() > Some(at(world.millis).boot));
    world.play(Move::Halt);
    settle(&mut world);
    world.play(Move::Settle);
    settle(&mut world);
    let count = world.switch.count(order_id(0)).unwrap();
    assert_eq!((count.expected, count.refusing, count.settled), (1, 1, 1));
    assert!(count.is_complete());
    world.judge().unwrap();
}
