//! Both sides over a network that loses, repeats and reorders, with restarts on either side and
//! clocks that agree on nothing.
//!
//! A connection delivers in order what it delivers, as TCP does, and may end at any point with all
//! the rest lost; the two ends notice that at different times. Orders frames may come twice, and
//! change places among themselves.
//!
//! After each step the named invariants are checked against the naive model:
//! *starting-always-does* (nothing that no release names is out of force anywhere, whatever was
//! lost) and *lease* (one lease after a halt was accepted nobody goes whom it reaches). At the end,
//! when everything has been delivered, all verdicts are the naive ones, and each expected enforcer
//! has confirmed or its lease is over (*confirmed*).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use estoppel_killswitch::{
    Audience, Now,
    enforcer::{self, Enforcer, Kept, Profile},
    frame::{EnforcerKind, Settlement, ToEnforcer, ToServer},
    server::{self, ConnectionId, Identity, Submitted, Switch, SwitchConfig},
};
use estoppel_model::{
    Actor, Boottime, EnforcerId, EntityId, Order, OrderBody, OrderId, ScopeSet, SignedOrder,
    Subject, Timestamp,
};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::support::{
    Keys, Naive, any_scopes, any_subject, any_tenant, id, order, order_id, sign, signed, text,
};

const LEASE: Duration = Duration::from_secs(15);
const NODES: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Halt {
        scope: ScopeSet,
        tenant: Option<EntityId>,
    },
    /// Ends some of the orders that stand.
    Release {
        first: usize,
        count: usize,
    },
    /// A halt that is given on a host.
    Local {
        node: usize,
        scope: ScopeSet,
    },
    Settle {
        node: usize,
    },
    Connect {
        node: usize,
    },
    /// The node connects, if it is not, and everything both ends say arrives.
    Sync {
        node: usize,
    },
    /// The node's end of its connection is gone; of what it has sent, some still arrives.
    Cut {
        node: usize,
        arriving: usize,
    },
    /// The server's end is gone.
    CutAtServer {
        connection: usize,
    },
    Up {
        connection: usize,
        count: usize,
    },
    Down {
        connection: usize,
        count: usize,
    },
    Repeat {
        connection: usize,
    },
    Swap {
        connection: usize,
        at: usize,
    },
    Wait {
        millis: u64,
    },
    RestartNode {
        node: usize,
    },
    /// The server starts from its ledger, of which the last orders are lost.
    RestartServer {
        lost: usize,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    let connection = 0_usize..4;
    prop_oneof![
        3 => (any_scopes(), any_tenant()).prop_map(|(scope, tenant)| Step::Halt { scope, tenant }),
        2 => (0_usize..8, 1_usize..3).prop_map(|(first, count)| Step::Release { first, count }),
        1 => (node.clone(), any_scopes()).prop_map(|(node, scope)| Step::Local { node, scope }),
        1 => node.clone().prop_map(|node| Step::Settle { node }),
        4 => node.clone().prop_map(|node| Step::Connect { node }),
        4 => node.clone().prop_map(|node| Step::Sync { node }),
        2 => (node.clone(), 0_usize..4).prop_map(|(node, arriving)| Step::Cut { node, arriving }),
        1 => connection.clone().prop_map(|connection| Step::CutAtServer { connection }),
        8 => (connection.clone(), 1_usize..5).prop_map(|(connection, count)| Step::Up { connection, count }),
        8 => (connection.clone(), 1_usize..5).prop_map(|(connection, count)| Step::Down { connection, count }),
        1 => connection.clone().prop_map(|connection| Step::Repeat { connection }),
        1 => (connection, 0_usize..4).prop_map(|(connection, at)| Step::Swap { connection, at }),
        4 => prop_oneof![1_u64..50, 1_000_u64..6_000, Just(14_999), 15_000_u64..40_000]
            .prop_map(|millis| Step::Wait { millis }),
        1 => node.prop_map(|node| Step::RestartNode { node }),
        1 => (0_usize..3).prop_map(|lost| Step::RestartServer { lost }),
    ]
}

struct Node {
    enforcer: Enforcer,
    tenant: Option<EntityId>,
    /// This machine's boot clock at the start of the simulation.
    booted: Duration,
    /// What it has in force, as the naive model of all that it was ever given says.
    given: Vec<Order>,
}

impl Node {
    fn start(index: usize, starts: u64, tenant: Option<&EntityId>, kept: Kept) -> Enforcer {
        let profile = Profile {
            id: EnforcerId::from_uuid(Uuid::from_u64_pair(starts, u64::try_from(index).unwrap())),
            kind: EnforcerKind::Guard,
            name: format!("node-{index} of {tenant:?}"),
            subjects: Vec::new(),
            key: own_key(index),
            gaps: Vec::new(),
        };
        let (enforcer, wrong) = Enforcer::new(profile, Box::new(Keys), kept);
        assert_eq!(wrong, 0, "what it kept is rightly signed");
        enforcer
    }

    fn now(&self, time: Duration, index: usize) -> Now {
        // Wall clocks are wrong by hours, one way and the other.
        let wrong = i64::try_from(index).unwrap() * 7_200_000_000 - 7_200_000_000;
        let wall = Timestamp::from_micros(i64::try_from(time.as_micros()).unwrap() + wrong);
        Now { wall, boot: Boottime::default() + self.booted + time }
    }
}

fn own_key(index: usize) -> String {
    format!("{index:064x}")
}

/// The frame as the other side reads its JSON.
fn as_read<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: &T) -> T {
    let read = serde_json::from_str(&serde_json::to_string(frame).unwrap()).unwrap();
    assert_eq!(*frame, read);
    read
}

struct Connection {
    id: ConnectionId,
    node: usize,
    up: VecDeque<ToServer>,
    down: VecDeque<ToEnforcer>,
    open_at_node: bool,
    open_at_server: bool,
}

struct World {
    time: Duration,
    server: Switch,
    nodes: Vec<Node>,
    connections: Vec<Connection>,
    next_connection: u64,
    /// How often nodes were started again.
    starts: u64,
    next_order: u64,
    /// The ledger, in its order.
    ledger: Vec<SignedOrder>,
    /// Every order that anyone ever gave.
    given: HashMap<OrderId, Order>,
    /// When the server that now runs took each order.
    accepted: HashMap<OrderId, Duration>,
    /// What a release was given for.
    released: HashSet<OrderId>,
    subjects: Vec<Subject>,
}

impl World {
    fn new(subjects: Vec<Subject>) -> Self {
        let nodes = [None, Some(id("0")), None].into_iter().zip([5_u64, 90_000, 7]).enumerate();
        Self {
            time: Duration::ZERO,
            server: Self::server([]),
            nodes: nodes
                .map(|(index, (tenant, booted))| Node {
                    enforcer: Node::start(index, 0, tenant.as_ref(), Kept::default()),
                    tenant,
                    booted: Duration::from_secs(booted),
                    given: Vec::new(),
                })
                .collect(),
            connections: Vec::new(),
            next_connection: 0,
            starts: 0,
            next_order: 0,
            ledger: Vec::new(),
            given: HashMap::new(),
            accepted: HashMap::new(),
            released: HashSet::new(),
            subjects,
        }
    }

    fn server(kept: impl IntoIterator<Item = SignedOrder>) -> Switch {
        let config = SwitchConfig { lease: LEASE, ping: Duration::from_secs(3) };
        let (server, wrong) = Switch::new(config, Box::new(Keys), kept);
        assert_eq!(wrong, 0);
        server
    }

    fn server_now(&self) -> Now {
        let wall = Timestamp::from_micros(i64::try_from(self.time.as_micros()).unwrap());
        Now { wall, boot: Boottime::default() + Duration::from_secs(1_234) + self.time }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Halt { scope, tenant } => {
                let halt = order(self.number(), scope, OrderBody::Halt { until: None });
                self.submit(&Order { tenant, ..halt });
            }
            Step::Release { first, count } => self.release(first, count),
            Step::Local { node, scope } => self.halt_locally(node, scope),
            Step::Settle { node } => {
                let order =
                    self.nodes[node].enforcer.orders().in_force().map(|order| order.id).min();
                if let Some(order) = order {
                    let settlement = Settlement { steps_cancelled: 1, ..Settlement::default() };
                    self.at_node(node, enforcer::Input::Settled { order, settlement });
                }
            }
            Step::Connect { node } => self.connect(node),
            Step::Sync { node } => {
                self.connect(node);
                self.exchange(node);
            }
            Step::Cut { node, arriving } => self.cut(node, arriving),
            Step::CutAtServer { connection } => {
                if let Some(connection) = self.pick(connection) {
                    self.close_at_server(connection);
                }
            }
            Step::Up { connection, count } => {
                if let Some(connection) = self.pick(connection) {
                    self.deliver_up(connection, count);
                }
            }
            Step::Down { connection, count } => {
                if let Some(connection) = self.pick(connection) {
                    self.deliver_down(connection, count);
                }
            }
            Step::Repeat { connection } => {
                let connection = self.pick(connection);
                let down = connection.map(|index| &mut self.connections[index].down);
                if let Some(down) = down
                    && let Some(frame @ ToEnforcer::Orders { .. }) = down.front().cloned()
                {
                    down.push_front(frame);
                }
            }
            Step::Swap { connection, at } => {
                let connection = self.pick(connection);
                let down = connection.map(|index| &mut self.connections[index].down);
                if let Some(down) = down
                    && let Some(ToEnforcer::Orders { .. }) = down.get(at)
                    && let Some(ToEnforcer::Orders { .. }) = down.get(at + 1)
                {
                    down.swap(at, at + 1);
                }
            }
            Step::Wait { millis } => self.wait(Duration::from_millis(millis)),
            Step::RestartNode { node } => {
                self.cut(node, 0);
                self.starts += 1;
                let Node { enforcer, tenant, .. } = &mut self.nodes[node];
                *enforcer = Node::start(node, self.starts, tenant.as_ref(), enforcer.kept());
            }
            Step::RestartServer { lost } => self.restart_server(lost),
        }
    }

    fn number(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    fn pick(&self, connection: usize) -> Option<usize> {
        (!self.connections.is_empty()).then(|| connection % self.connections.len())
    }

    fn submit(&mut self, order: &Order) {
        self.given.insert(order.id, order.clone());
        let now = self.server_now();
        let (submitted, effects) = match order.body {
            OrderBody::Release { .. } => {
                self.ledger.push(signed(order));
                self.server.submit_recorded(signed(order), now).unwrap()
            }
            _ => self.server.submit(signed(order), now).unwrap(),
        };
        assert!(matches!(submitted, Submitted::New { .. }));
        self.accepted.insert(order.id, self.time);
        self.at_server(effects);
    }

    fn release(&mut self, first: usize, count: usize) {
        let mut standing: Vec<OrderId> =
            self.server.orders().in_force().map(|order| order.id).collect();
        standing.sort_unstable();
        let named: Vec<OrderId> = standing.into_iter().skip(first).take(count).collect();
        let Some(scope) = named.first().and_then(|id| self.server.orders().order(*id)) else {
            return;
        };
        let scope = scope.scope.iter().next().cloned().map(ScopeSet::from).unwrap();
        let Ok(plan) = self.server.plan_release(&scope, Some(&named)) else { return };
        let body = OrderBody::Release { orders: plan.orders.clone() };
        self.released.extend(plan.orders);
        let release = order(self.number(), plan.scope, body);
        self.submit(&Order { tenant: plan.tenant, ..release });
    }

    fn halt_locally(&mut self, node: usize, scope: ScopeSet) {
        let Node { enforcer, tenant, .. } = &self.nodes[node];
        if enforcer.tenant() != tenant.as_ref() {
            // It has never reached a server: the halt would carry no tenant and stay its own.
            return;
        }
        let halt = order(self.next_order + 1, scope, OrderBody::Halt { until: None });
        let issued_by = Actor::new("local:root").unwrap();
        let halt = Order { issued_by, tenant: tenant.clone(), ..halt };
        if !Audience::of(tenant.as_ref()).admits(&halt) {
            return;
        }
        self.next_order += 1;
        self.given.insert(halt.id, halt.clone());
        self.at_node(node, enforcer::Input::Local(sign(&own_key(node), text(&halt))));
        assert!(self.nodes[node].enforcer.orders().is_in_force(halt.id));
    }

    fn connect(&mut self, node: usize) {
        if self.connections.iter().any(|one| one.node == node && one.open_at_node) {
            return;
        }
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.connections.push(Connection {
            id,
            node,
            up: VecDeque::new(),
            down: VecDeque::new(),
            open_at_node: true,
            open_at_server: true,
        });
        let actor = Actor::new(&format!("token-{node}")).unwrap();
        let identity =
            Box::new(Identity { actor, tenant: self.nodes[node].tenant.clone(), scopes: None });
        let effects = self
            .server
            .step(server::Input::Connected { connection: id, identity }, self.server_now());
        self.at_server(effects);
        self.at_node(node, enforcer::Input::Connected);
    }

    fn cut(&mut self, node: usize, arriving: usize) {
        let found = self.connections.iter_mut().find(|one| one.node == node && one.open_at_node);
        let Some(connection) = found else { return };
        connection.open_at_node = false;
        connection.down.clear();
        connection.up.truncate(arriving);
        self.at_node(node, enforcer::Input::Disconnected);
        self.forget_closed();
    }

    fn close_at_server(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.open_at_server {
            return;
        }
        connection.open_at_server = false;
        connection.up.clear();
        let connection = connection.id;
        let effects =
            self.server.step(server::Input::Disconnected { connection }, self.server_now());
        self.at_server(effects);
        self.forget_closed();
    }

    fn forget_closed(&mut self) {
        self.connections.retain(|one| one.open_at_node || one.open_at_server);
    }

    fn deliver_up(&mut self, index: usize, count: usize) {
        let id = self.connections[index].id;
        for _ in 0..count {
            let Some(connection) = self.connections.iter_mut().find(|one| one.id == id) else {
                return;
            };
            if !connection.open_at_server {
                return;
            }
            let Some(frame) = connection.up.pop_front() else { return };
            let input = server::Input::Frame { connection: id, frame };
            let effects = self.server.step(input, self.server_now());
            self.at_server(effects);
        }
    }

    fn deliver_down(&mut self, index: usize, count: usize) {
        let id = self.connections[index].id;
        for _ in 0..count {
            let Some(connection) = self.connections.iter_mut().find(|one| one.id == id) else {
                return;
            };
            let node = connection.node;
            if !connection.open_at_node {
                return;
            }
            match connection.down.pop_front() {
                Some(frame) => self.at_node(node, enforcer::Input::Frame(frame)),
                // Behind the last byte the node sees that the server has closed.
                None if !connection.open_at_server => self.cut(node, 0),
                None => return,
            }
        }
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.time + duration;
        while self.time < end {
            self.time = (self.time + Duration::from_secs(1)).min(end);
            let effects = self.server.step(server::Input::Tick, self.server_now());
            self.at_server(effects);
            for node in 0..self.nodes.len() {
                self.at_node(node, enforcer::Input::Tick);
            }
            self.check();
        }
    }

    /// Delivers what the node and the server have to say to each other, for some rounds.
    fn exchange(&mut self, node: usize) {
        for _ in 0..6 {
            let open = |one: &Connection| one.node == node && one.open_at_node;
            let Some(index) = self.connections.iter().position(open) else { return };
            self.deliver_up(index, 100);
            let Some(index) = self.connections.iter().position(open) else { return };
            self.deliver_down(index, 100);
        }
    }

    fn restart_server(&mut self, lost: usize) {
        for connection in &mut self.connections {
            connection.open_at_server = false;
            connection.up.clear();
        }
        self.forget_closed();
        self.ledger.truncate(self.ledger.len().saturating_sub(lost));
        let kept: HashSet<OrderId> =
            self.ledger.iter().map(|order| order.parse().unwrap().id).collect();
        self.accepted.retain(|id, _| kept.contains(id));
        self.server = Self::server(self.ledger.iter().cloned());
    }

    fn at_node(&mut self, index: usize, input: enforcer::Input) {
        let now = self.nodes[index].now(self.time, index);
        let effects = self.nodes[index].enforcer.step(input, now);
        for effect in effects {
            match effect {
                enforcer::Effect::Send(frame) => {
                    let open = |one: &&mut Connection| one.node == index && one.open_at_node;
                    if let Some(connection) = self.connections.iter_mut().find(open)
                        && connection.open_at_server
                    {
                        connection.up.push_back(as_read(&frame));
                    }
                }
                enforcer::Effect::Keep(enforcer::Keep::Order(order)) => {
                    self.nodes[index].given.push(order.parse().unwrap());
                }
                enforcer::Effect::Disconnect { .. } => self.cut(index, usize::MAX),
                enforcer::Effect::Rejected { reason } => panic!("node {index}: {reason}"),
                _ => {}
            }
        }
    }

    fn at_server(&mut self, effects: Vec<server::Effect>) {
        for effect in effects {
            match effect {
                server::Effect::Broadcast { connections, frame } => {
                    for connection in connections {
                        self.send(connection, frame.clone());
                    }
                }
                server::Effect::Send { connection, frame } => self.send(connection, frame),
                server::Effect::Persist(order) => self.ledger.push(order),
                server::Effect::Close { connection, .. } => {
                    let index = self.connections.iter().position(|one| one.id == connection);
                    if let Some(index) = index {
                        self.close_at_server(index);
                    }
                }
                server::Effect::HandedBack { order, .. } => {
                    self.accepted.insert(order.id, self.time);
                }
                server::Effect::Rejected { reason, .. } => panic!("server: {reason}"),
                _ => {}
            }
        }
    }

    fn send(&mut self, id: ConnectionId, frame: ToEnforcer) {
        let connection = self.connections.iter_mut().find(|one| one.id == id);
        let connection = connection.expect("the server sends to connections that stand there");
        assert!(connection.open_at_server);
        if connection.open_at_node {
            connection.down.push_back(as_read(&frame));
        }
    }

    /// Whether the node lets the subject act.
    fn goes(&self, index: usize, subject: &Subject) -> bool {
        let node = &self.nodes[index];
        let boot = node.now(self.time, index).boot;
        node.enforcer.lease_until().is_some_and(|until| boot < until)
            && node.enforcer.verdicts().check(subject).is_none()
    }

    fn check(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            // starting-always-does
            for order in &node.given {
                let is_release = matches!(order.body, OrderBody::Release { .. });
                assert!(
                    is_release
                        || self.released.contains(&order.id)
                        || node.enforcer.orders().is_in_force(order.id),
                    "{} ended at node {index}, and no release names it",
                    order.id
                );
            }
            // lease
            let audience = Audience::of(node.tenant.as_ref());
            for (id, accepted) in &self.accepted {
                let order = &self.given[id];
                let binds = matches!(order.body, OrderBody::Halt { .. })
                    && audience.admits(order)
                    && !self.released.contains(id)
                    && self.time >= *accepted + LEASE;
                for subject in self.subjects.iter().filter(|_| binds) {
                    let reached = estoppel_killswitch::reaches(order, subject);
                    assert!(
                        !(reached && self.goes(index, subject)),
                        "node {index} lets {subject} go a lease after {id} was accepted"
                    );
                }
            }
        }
        let known = self.server.orders();
        for id in self.accepted.keys().filter(|id| !self.released.contains(id)) {
            let order = &self.given[id];
            let is_release = matches!(order.body, OrderBody::Release { .. });
            assert!(is_release || known.is_in_force(*id), "{id} ended at the server");
        }
    }

    /// Connects everybody and delivers everything.
    fn settle(&mut self) {
        for round in 0..50 {
            for node in 0..self.nodes.len() {
                self.connect(node);
            }
            let moved: usize =
                self.connections.iter().map(|one| one.up.len() + one.down.len()).sum();
            let half_open =
                self.connections.iter().any(|one| !(one.open_at_node && one.open_at_server));
            if round > 2 && moved == 0 && !half_open {
                return;
            }
            for id in self.connections.iter().map(|one| one.id).collect::<Vec<_>>() {
                let find = |world: &Self| world.connections.iter().position(|one| one.id == id);
                if let Some(index) = find(self) {
                    self.deliver_up(index, 1_000);
                }
                if let Some(index) = find(self) {
                    self.deliver_down(index, 1_000);
                }
                if let Some(index) =
                    find(self).filter(|index| !self.connections[*index].open_at_node)
                {
                    self.close_at_server(index);
                }
            }
        }
        panic!("the two sides do not come to rest");
    }

    fn check_settled(&self) {
        let everything =
            Naive(self.server.orders().iter().map(|signed| signed.parse().unwrap()).collect());
        for (index, node) in self.nodes.iter().enumerate() {
            assert!(node.enforcer.is_in_sync(), "node {index}");
            let audience = Audience::of(node.tenant.as_ref());
            let naive = everything.seen_by(&audience);
            for subject in &self.subjects {
                let found = node.enforcer.verdicts().check(subject).map(|order| order.id);
                assert_eq!(found, naive.check(subject), "node {index}, {subject}");
                let server = self.server.verdicts().check(subject).map(|order| order.id);
                assert_eq!(server, everything.check(subject), "server, {subject}");
            }
            assert_eq!(
                node.enforcer.orders().digest(&Audience::Everyone),
                self.server.orders().digest(&audience),
                "node {index}"
            );
            assert!(node.given.iter().all(|order| self.server.orders().order(order.id).is_some()));
        }
        for order in self.server.orders().in_force() {
            if let Some(progress) = self.server.progress(order.id, self.server_now()) {
                assert_eq!(
                    progress.refusing + progress.by_lease,
                    progress.expected,
                    "{progress:?}"
                );
            }
        }
    }
}

proptest! {
    // Half of what `PROPTEST_CASES` says: one case is a whole story.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn the_invariants_hold_under_a_hostile_network(
        steps in prop::collection::vec(any_step(), 1..150),
        subjects in prop::collection::vec(any_subject(), 1..6),
    ) {
        let mut world = World::new(subjects);
        for step in steps {
            world.step(step);
            world.check();
        }
        world.settle();
        // One lease later those that are gone are out of account.
        for _ in 0..=LEASE.as_secs() {
            world.wait(Duration::from_secs(1));
            world.settle();
            world.check();
        }
        world.check_settled();
    }
}

/// The simulation itself can fail: an enforcer that never hears of a halt is found.
#[test]
fn a_halt_that_does_not_arrive_is_noticed() {
    let subject = Subject::session(id("0"));
    let mut world = World::new(vec![subject.clone()]);
    world.settle();
    assert!(world.goes(0, &subject));
    let halt = order(
        1,
        "session:0".parse::<estoppel_model::Scope>().unwrap().into(),
        OrderBody::Halt { until: None },
    );
    world.submit(&halt);
    for connection in &mut world.connections {
        // A network that drops one frame and goes on, which TCP does not.
        connection.down.retain(|frame| !matches!(frame, ToEnforcer::Orders { .. }));
    }
    let noticed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..20 {
            world.wait(Duration::from_secs(1));
            world.settle();
        }
    }));
    assert!(noticed.is_err(), "a lease was held although order {} was not there", order_id(1));
}
