//! The world: machines, the network between them, what happens when, and one clock that is true.
//!
//! Events lie in one queue, by time and then in the order of their making. What belongs to a machine
//! that sleeps waits until it wakes; what belongs to a life of a process that has ended is nothing.

mod glass;
mod network;
mod node;
mod people;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use estoppel_killswitch::{
    Audience,
    invariant::{Observation, Tally, Violation},
};
use estoppel_model::{OrderId, SignedOrder};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use self::{network::Connection, node::Node, server::Server};
use crate::{
    Bug, Failure, Report, Scenario,
    coverage::{Coverage, Fault},
    disk::Disk,
    oracle::Oracle,
    scenario,
};

/// What will happen. Numbers of connections count up; a life is one run of a process.
#[derive(Debug, Clone)]
enum Event {
    /// The scenario's action of this number.
    Act(usize),
    /// What a person or a server gave reaches a server's disk.
    Write {
        server: usize,
        life: u64,
    },
    /// What the spool has goes on to the ledger.
    Feed {
        server: usize,
        life: u64,
    },
    /// A release reaches the ledger.
    Record {
        server: usize,
        life: u64,
        release: SignedOrder,
    },
    /// The server learns that the ledger has its release.
    Recorded {
        server: usize,
        life: u64,
        release: SignedOrder,
    },
    /// A server that has started compares its spool with the ledger.
    Reconcile {
        server: usize,
        life: u64,
    },
    /// One of several servers reads what is new in the ledger.
    Follow {
        server: usize,
        life: u64,
    },
    ServerTick {
        server: usize,
        life: u64,
    },
    StartServer {
        server: usize,
    },
    NodeTick {
        node: usize,
        life: u64,
    },
    /// The work in flight of an order has ended.
    Settle {
        node: usize,
        life: u64,
        order: OrderId,
    },
    /// What is to be kept reaches an enforcer's disk.
    Keep {
        node: usize,
        life: u64,
    },
    /// An enforcer tries the next server.
    Dial {
        node: usize,
        life: u64,
    },
    StartNode {
        node: usize,
    },
    /// Enforcement code learns late: [`Bug::ConfirmedTooEarly`].
    Show {
        node: usize,
        life: u64,
    },
    /// Frames are due at the server.
    Up {
        connection: u64,
    },
    /// Frames are due at the enforcer.
    Down {
        connection: u64,
    },
    /// A disk is as it should be again.
    Mend {
        server: Option<usize>,
        node: Option<usize>,
    },
    /// Everybody who may act is looked at.
    Look,
}

/// The ledger: one list in one order, which outlasts every machine.
#[derive(Debug, Default)]
struct Ledger {
    orders: Vec<SignedOrder>,
    ids: BTreeSet<OrderId>,
}

/// A world.
pub(crate) struct World {
    scenario: Scenario,
    planted: Option<Bug>,
    random: StdRng,
    time: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    /// Counts events, connections, lives, orders and folders.
    next: u64,
    servers: Vec<Server>,
    nodes: Vec<Node>,
    connections: BTreeMap<u64, Connection>,
    /// Until when nothing passes from an enforcer to a server, and back.
    cut_off: BTreeMap<(usize, usize), (Duration, Duration)>,
    ledger: Ledger,
    oracle: Oracle,
    tally: Arc<Tally>,
    coverage: Coverage,
    failure: Option<(Duration, Failure)>,
    trace: Option<Vec<String>>,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, planted: Option<Bug>, traced: bool) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let mut world = Self {
            oracle: Oracle::new(scenario::subjects(), scenario.lease),
            scenario,
            planted,
            // Another stream than the scenario's.
            random: StdRng::seed_from_u64(!seed),
            time: Duration::ZERO,
            queue: BTreeMap::new(),
            next: 0,
            servers: Vec::new(),
            nodes: Vec::new(),
            connections: BTreeMap::new(),
            cut_off: BTreeMap::new(),
            ledger: Ledger::default(),
            tally: Arc::default(),
            coverage: Coverage::default(),
            failure: None,
            trace: traced.then(Vec::new),
            folder: folder.expect("a temporary folder can be made"),
        };
        for server in 0..world.scenario.servers {
            let disk = world.empty_disk();
            world.servers.push(Server::new(disk, Arc::clone(&world.tally), &mut world.random));
            world.start_server(server);
        }
        for node in 0..world.scenario.nodes {
            let disk = world.empty_disk();
            world.nodes.push(Node::new(node, disk, &mut world.random));
            world.start_node(node);
        }
        for number in 0..world.scenario.actions.len() {
            let (at, _) = world.scenario.actions[number];
            world.at(at, Event::Act(number));
        }
        world.see_clocks();
        world
    }

    /// Lets everything happen, and judges what is left.
    pub(crate) fn run(mut self) -> Report {
        let ends = self.ends_at();
        while self.failure.is_none()
            && let Some(((time, _), event)) = self.queue.pop_first()
            && time <= ends
        {
            self.time = time;
            match self.asleep_until(&event) {
                Some(wakes) => self.at(wakes, event),
                None => self.happen(event),
            }
        }
        if self.failure.is_none() {
            self.judge_rest();
        }
        self.coverage.checked(self.tally.counts());
        Report {
            failure: self.failure,
            coverage: self.coverage,
            trace: self.trace.unwrap_or_default(),
        }
    }

    /// All that waits for the healing, and for the leases of whoever came after it, has happened by
    /// then, twice.
    fn ends_at(&self) -> Duration {
        let last = self.scenario.actions.last().map_or(Duration::ZERO, |(at, _)| *at);
        self.scenario.heals_at.max(last) + self.scenario.lease * 2 + Duration::from_secs(20)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(number) => {
                let (_, action) = self.scenario.actions[number].clone();
                self.act(action);
            }
            Event::Write { server, life } if self.lives(server, life) => self.write(server),
            Event::Feed { server, life } if self.lives(server, life) => self.feed(server),
            // The request is on its way, whatever becomes of the server.
            Event::Record { server, life, release } => self.record(server, life, release),
            Event::Recorded { server, life, release } if self.lives(server, life) => {
                self.give_recorded(server, release);
            }
            Event::Reconcile { server, life } if self.lives(server, life) => self.reconcile(server),
            Event::Follow { server, life } if self.lives(server, life) => self.follow(server),
            Event::ServerTick { server, life } if self.lives(server, life) => {
                self.tick_server(server);
            }
            Event::StartServer { server } => self.start_server(server),
            Event::NodeTick { node, life } if self.nodes[node].lives(life) => self.tick_node(node),
            Event::Settle { node, life, order } if self.nodes[node].lives(life) => {
                self.settle(node, order);
            }
            Event::Keep { node, life } if self.nodes[node].lives(life) => {
                self.keep(node);
            }
            Event::Dial { node, life } if self.nodes[node].lives(life) => self.dial(node),
            Event::Show { node, life } if self.nodes[node].lives(life) => self.show(node),
            Event::StartNode { node } => self.start_node(node),
            Event::Up { connection } => self.deliver_up(connection),
            Event::Down { connection } => self.deliver_down(connection),
            Event::Mend { server, node } => {
                let disks = server.map(|server| &self.servers[server].disk);
                for disk in disks.into_iter().chain(node.map(|node| &self.nodes[node].disk)) {
                    disk.leave_room(None);
                    disk.fail_syncs(false);
                }
            }
            Event::Look => (0..self.nodes.len()).for_each(|node| self.judge(node)),
            _ => {}
        }
    }

    /// When the machine of an event wakes, if it sleeps.
    fn asleep_until(&self, event: &Event) -> Option<Duration> {
        let machine = match event {
            Event::Write { server, .. }
            | Event::Feed { server, .. }
            | Event::Recorded { server, .. }
            | Event::Reconcile { server, .. }
            | Event::Follow { server, .. }
            | Event::ServerTick { server, .. } => &self.servers[*server].machine,
            Event::NodeTick { node, .. }
            | Event::Settle { node, .. }
            | Event::Keep { node, .. }
            | Event::Dial { node, .. }
            | Event::Show { node, .. } => &self.nodes[*node].machine,
            Event::Up { connection } => {
                &self.servers[self.connections.get(connection)?.server].machine
            }
            Event::Down { connection } => {
                &self.nodes[self.connections.get(connection)?.node].machine
            }
            _ => return None,
        };
        machine.is_asleep(self.time).then_some(machine.asleep_until)
    }

    fn at(&mut self, time: Duration, event: Event) {
        let number = self.number();
        self.queue.insert((time.max(self.time), number), event);
    }

    /// Happens after a pause between the bounds, in milliseconds.
    fn soon(&mut self, from_ms: f64, to_ms: f64, event: Event) {
        let pause = self.random.random_range(from_ms..to_ms);
        self.at(self.time + Duration::from_secs_f64(pause / 1_000.0), event);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// When something that lasts is over: with the healing at the latest.
    fn until(&self, lasts: Duration) -> Duration {
        (self.time + lasts).min(self.scenario.heals_at.max(self.time))
    }

    fn folder(&mut self) -> PathBuf {
        let number = self.number();
        self.folder.path().join(number.to_string())
    }

    fn empty_disk(&mut self) -> Disk {
        let folder = self.folder();
        Disk::over(folder, self.planted == Some(Bug::SyncRemoved))
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        let time = self.time;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3}s  {}", time.as_secs_f64(), line()));
        }
    }

    fn observe(&mut self, seen: Observation) {
        if let Err(violation) = self.tally.observe(seen) {
            self.broken(violation);
        }
    }

    fn broken(&mut self, violation: Violation) {
        self.fail(Failure::Broken(violation));
    }

    fn unsettled(&mut self, what: String) {
        self.fail(Failure::Unsettled(what));
    }

    fn fail(&mut self, failure: Failure) {
        self.tell(|| failure.to_string());
        self.failure.get_or_insert((self.time, failure));
    }

    /// Whether what an agent on a node may do is what it may do.
    fn judge(&mut self, node: usize) {
        let (time, bound) = (self.time, self.oracle.bound);
        if !self.nodes[node].is_up() || self.nodes[node].machine.is_asleep(time) {
            return;
        }
        let goes: Vec<bool> =
            self.oracle.subjects.iter().map(|one| self.nodes[node].goes(one, time)).collect();
        let own = Audience::of(self.nodes[node].tenant.as_ref());
        let mut seen = Vec::new();
        for given in self.oracle.standing() {
            let order = given.order.id;
            if self.nodes[node].taken.contains(&order) {
                let named = self.nodes[node].shows(&given.order);
                seen.push(Observation::Ended { order, named });
            }
            // What it never heard of it cannot hold to: that is what a break-glass decides.
            let excused =
                self.nodes[node].goes_on(time) && !self.nodes[node].taken.contains(&order);
            if let Some(since) = given.since
                && !excused
                && own.admits(&given.order)
                && time >= since + bound
            {
                let acts = given.reached.iter().any(|subject| goes[*subject]);
                let after = if acts { time - since } else { Duration::ZERO };
                seen.push(Observation::Acts {
                    halt: order,
                    after,
                    bound: bound - Duration::from_nanos(1),
                });
            }
        }
        seen.into_iter().for_each(|seen| self.observe(seen));
    }

    /// After everything has healed both sides have the same orders and mean the same by them, and no
    /// halt is waited for.
    fn judge_rest(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.judge(node));
        let servers = 0..self.servers.len();
        let mut wrong: Vec<String> = servers.filter_map(|server| self.waits_for(server)).collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(enforcer) = &node.enforcer else {
                wrong.push(format!("enforcer {number} is not up"));
                continue;
            };
            let connection = node.connection.and_then(|number| self.connections.get(&number));
            let server = connection.map(|connection| &self.servers[connection.server]);
            let Some(switch) = server.and_then(|server| server.switch.as_ref()) else {
                wrong.push(format!("enforcer {number} has no server"));
                continue;
            };
            let own = Audience::of(node.tenant.as_ref());
            if !enforcer.is_in_sync()
                || enforcer.orders().digest(&Audience::Everyone) != switch.orders().digest(&own)
            {
                wrong.push(format!("enforcer {number} is not in step"));
            }
            for subject in &self.oracle.subjects {
                let orders = switch.orders().in_force();
                let halted = orders.filter(|order| {
                    matches!(order.body, estoppel_model::OrderBody::Halt { .. })
                        && own.admits(order)
                        && estoppel_killswitch::reaches(order, subject)
                });
                if node.goes(subject, self.time) == (halted.count() > 0) {
                    wrong.push(format!("enforcer {number} is wrong about {subject:?}"));
                }
            }
        }
        if let [first, rest @ ..] = &wrong[..] {
            self.unsettled(format!("{first}, and {} more", rest.len()));
        }
    }

    fn see_clocks(&mut self) {
        let nodes = self.nodes.iter().map(|node| &node.machine);
        let walls: Vec<_> = nodes
            .chain(self.servers.iter().map(|server| &server.machine))
            .map(|machine| machine.now(Duration::ZERO).wall)
            .collect();
        let first = walls.iter().min().copied().unwrap_or_default();
        if walls.iter().any(|wall| wall.since(first) > self.scenario.lease) {
            self.coverage.happened(Fault::ClockSkew);
        }
    }
}
