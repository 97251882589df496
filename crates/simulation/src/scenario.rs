//! What happens to a world, and when: a list that a seed makes, and that the minimiser shortens.
//! What the network and the disks make of it is drawn while it runs.

use std::{fmt, time::Duration};

use estoppel_model::{EntityId, PluginRef, ScopeSet, Subject};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// What halts are given for.
const SCOPES: [&str; 9] = [
    "session:a",
    "session:b",
    "agent:x",
    "agent:y",
    "tenant:acme",
    "plugin:scraper@>=2",
    "tool:shell",
    "user:u",
    "global",
];
/// Tenants of tokens, by the number of the node.
const TENANTS: [Option<&str>; 4] = [None, Some("acme"), None, Some("other")];

/// A world's plan.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many servers share the ledger.
    pub servers: usize,
    /// How many enforcers there are.
    pub nodes: usize,
    /// How long leases are.
    pub lease: Duration,
    /// What happens, in the order of time.
    pub actions: Vec<(Duration, Action)>,
    /// When faults end and everything heals.
    pub heals_at: Duration,
}

/// Something that happens. Numbers of machines are below those of the scenario; `lasts` is how long
/// until it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say what the variant's line says")]
pub enum Action {
    /// A person halts a scope, at one server or at all.
    Halt { server: usize, scope: usize, tenant: bool, until: Option<Duration>, everywhere: bool },
    /// A person releases some of the orders that stand.
    Release { server: usize, first: usize, count: usize },
    /// A person halts a scope on an enforcer's host.
    HaltLocally { node: usize, scope: usize },
    /// Nothing passes between two machines, in one direction or both.
    Partition { node: usize, server: usize, up: bool, down: bool, lasts: Duration },
    /// Frames of an enforcer take up to this long.
    Slow { node: usize, by: Duration, lasts: Duration },
    /// Frames of an enforcer come twice, or change places.
    Unruly { node: usize, lasts: Duration },
    /// The enforcer's end of its connection is gone.
    Cut { node: usize },
    /// The server's end of an enforcer's connection is gone.
    CutAtServer { node: usize },
    /// Kill -9, or a power cut; it comes back.
    StopServer { server: usize, power: bool, lasts: Duration },
    /// Kill -9, or a power cut; it comes back.
    StopNode { node: usize, power: bool, lasts: Duration },
    /// A server's disk has room for a few bytes only.
    FillServer { server: usize, room: u64, lasts: Duration },
    /// An enforcer's disk has room for a few bytes only.
    FillNode { node: usize, room: u64, lasts: Duration },
    /// A server's fsyncs fail.
    FailServerSyncs { server: usize, lasts: Duration },
    /// An enforcer's fsyncs fail.
    FailNodeSyncs { node: usize, lasts: Duration },
    /// A server's disk does not answer.
    HangDisk { server: usize, lasts: Duration },
    /// A server's spool is copied away.
    Backup { server: usize },
    /// A server loses its spool while it is down.
    LoseSpool { server: usize, lasts: Duration },
    /// A server comes back with the copy; of one server, the ledger as it was then, too.
    RestoreBackup { server: usize, lasts: Duration },
    /// An enforcer loses its cache while it is down.
    LoseCache { node: usize, lasts: Duration },
    /// A byte of an enforcer's cache flips while it is down.
    DamageCache { node: usize, at: usize, lasts: Duration },
    /// Somebody sets a server's wall clock.
    JumpServerClock { server: usize, seconds: i64 },
    /// Somebody sets an enforcer's wall clock.
    JumpNodeClock { node: usize, seconds: i64 },
    /// A server's machine sleeps.
    SuspendServer { server: usize, lasts: Duration },
    /// An enforcer's machine sleeps.
    SuspendNode { node: usize, lasts: Duration },
    /// A server does not reach the ledger.
    LedgerAway { server: usize, lasts: Duration },
    /// Somebody puts a break-glass file into an enforcer's state folder.
    BreakGlass { node: usize, use_max: Duration, lasts: Duration },
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let servers = [1, 1, 1, 2, 3][random.random_range(0..5)];
        let nodes = random.random_range(1..=TENANTS.len());
        let lease = Duration::from_secs([6, 15, 15][random.random_range(0..3)]);
        let heals_at = Duration::from_secs(random.random_range(40..140));
        let draw = Draw { servers, nodes, lease };
        let mut actions: Vec<(Duration, Action)> = (0..random.random_range(6..40))
            .map(|_| (millis(&mut random, 500, heals_at), draw.action(&mut random)))
            .collect();
        for _ in 0..random.random_range(0..4) {
            let begins = millis(&mut random, 500, heals_at);
            actions.extend(draw.mishap(&mut random, begins));
        }
        if random.random_bool(0.3) {
            let begins = millis(&mut random, 500, heals_at);
            actions.extend(draw.break_glass(&mut random, begins));
        }
        actions.sort_by_key(|(at, _)| *at);
        Self { servers, nodes, lease, actions, heals_at }
    }
}

/// What actions are drawn from.
struct Draw {
    servers: usize,
    nodes: usize,
    lease: Duration,
}

impl Draw {
    fn action(&self, random: &mut StdRng) -> Action {
        let server = random.random_range(0..self.servers);
        let node = random.random_range(0..self.nodes);
        match random.random_range(0..100) {
            0..=24 => Action::Halt {
                server,
                scope: scope(random),
                tenant: random.random_bool(0.2),
                until: random.random_bool(0.3).then(|| millis(random, 1_000, self.lease * 3)),
                everywhere: random.random_bool(0.3),
            },
            25..=37 => Action::Release {
                server,
                first: random.random_range(0..4),
                count: random.random_range(1..3),
            },
            38..=42 => Action::HaltLocally { node, scope: scope(random) },
            43..=62 => self.network(random, server, node),
            63..=75 => self.stop(random, server, node),
            76..=87 => self.disk(random, server, node),
            88..=90 => Action::JumpServerClock { server, seconds: jump(random) },
            91..=93 => Action::JumpNodeClock { node, seconds: jump(random) },
            94..=95 => Action::SuspendServer { server, lasts: self.long(random) },
            96..=97 => Action::SuspendNode { node, lasts: self.long(random) },
            _ => Action::LedgerAway { server, lasts: self.long(random) },
        }
    }

    /// Things that are harmless alone and happen together, which chance alone seldom brings about.
    fn mishap(&self, random: &mut StdRng, begins: Duration) -> Vec<(Duration, Action)> {
        let server = random.random_range(0..self.servers);
        let node = random.random_range(0..self.nodes);
        let soon = |random: &mut StdRng, to_ms| millis(random, 0, Duration::from_millis(to_ms));
        let lasts = self.lease * 2;
        let halt = Action::Halt {
            server,
            scope: scope(random),
            tenant: false,
            until: None,
            everywhere: false,
        };
        let halted = begins + soon(random, 3_000);
        match random.random_range(0..5) {
            // An answer is late, and after it nothing comes.
            0 => {
                let by = millis(random, 1_000, self.lease);
                let cut_off = Action::Partition { node, server, up: true, down: true, lasts };
                vec![
                    (begins, Action::Slow { node, by, lasts: Duration::from_secs(4) }),
                    (halted, halt),
                    (halted + soon(random, 3_000), cut_off),
                ]
            }
            // A server is behind the ledger, and enforcers come to it.
            1 => {
                let behind = (server + 1) % self.servers;
                vec![
                    (begins, Action::LedgerAway { server: behind, lasts }),
                    (halted, halt),
                    (halted + soon(random, 3_000), Action::CutAtServer { node }),
                ]
            }
            // Two people at once.
            2 => vec![
                (begins, Action::Release { server, first: random.random_range(0..2), count: 1 }),
                (begins + soon(random, 20), halt),
            ],
            3 => {
                let restored = halted + soon(random, 10_000);
                vec![
                    (begins, Action::Backup { server }),
                    (halted, halt),
                    (restored, Action::RestoreBackup { server, lasts: soon(random, 5_000) }),
                ]
            }
            // The power is gone a moment after the answer.
            _ => {
                let power = Action::StopServer { server, power: true, lasts: soon(random, 5_000) };
                vec![(halted, halt), (halted + soon(random, 100), power)]
            }
        }
    }

    /// A node without servers that goes on by a file, and what may happen to it meanwhile.
    fn break_glass(&self, random: &mut StdRng, begins: Duration) -> Vec<(Duration, Action)> {
        let node = random.random_range(0..self.nodes);
        let lasts = self.lease + Duration::from_secs(random.random_range(10..60));
        let use_max = Duration::from_secs(random.random_range(5..30));
        let away = (0..self.servers).map(|server| {
            (begins, Action::Partition { node, server, up: true, down: true, lasts })
        });
        let mut actions: Vec<_> = away.collect();
        let placed = begins + millis(random, 0, self.lease * 2);
        let valid = Duration::from_secs(random.random_range(10..120));
        actions.push((placed, Action::BreakGlass { node, use_max, lasts: valid }));
        for _ in 0..random.random_range(0..3) {
            let at = placed + millis(random, 500, Duration::from_secs(30));
            let soon = millis(random, 10, Duration::from_secs(3));
            let power = random.random_bool(0.5);
            actions.push((
                at,
                match random.random_range(0..8) {
                    0..=4 => Action::StopNode { node, power, lasts: soon },
                    5 => Action::JumpNodeClock { node, seconds: jump(random) },
                    6 => Action::FillNode { node, room: 20, lasts: soon },
                    _ => Action::HaltLocally { node, scope: scope(random) },
                },
            ));
        }
        actions
    }

    fn network(&self, random: &mut StdRng, server: usize, node: usize) -> Action {
        let lasts = self.long(random);
        match random.random_range(0..10) {
            0..=3 => {
                let (up, down) = [(true, true), (true, true), (true, false), (false, true)]
                    [random.random_range(0..4)];
                Action::Partition { node, server, up, down, lasts }
            }
            4..=6 => Action::Slow { node, by: millis(random, 200, self.lease), lasts },
            7 => Action::Unruly { node, lasts },
            8 => Action::Cut { node },
            _ => Action::CutAtServer { node },
        }
    }

    fn stop(&self, random: &mut StdRng, server: usize, node: usize) -> Action {
        let lasts = millis(random, 10, self.lease * 2);
        let power = random.random_bool(0.6);
        match random.random_range(0..10) {
            0..=2 => Action::StopServer { server, power, lasts },
            3..=5 => Action::StopNode { node, power, lasts },
            6 => Action::LoseSpool { server, lasts },
            7 => Action::RestoreBackup { server, lasts },
            8 => Action::LoseCache { node, lasts },
            _ => Action::DamageCache { node, at: random.random_range(0..1_000), lasts },
        }
    }

    fn disk(&self, random: &mut StdRng, server: usize, node: usize) -> Action {
        let (room, lasts) = (random.random_range(0..600), self.long(random));
        match random.random_range(0..10) {
            0..=1 => Action::FillServer { server, room, lasts },
            2 => Action::FillNode { node, room, lasts },
            3..=4 => Action::FailServerSyncs { server, lasts },
            5 => Action::FailNodeSyncs { node, lasts },
            6..=7 => Action::HangDisk { server, lasts },
            _ => Action::Backup { server },
        }
    }

    /// Up to two and a half leases: what a lease must bridge, and what it cannot.
    fn long(&self, random: &mut StdRng) -> Duration {
        millis(random, 100, self.lease * 5 / 2)
    }
}

fn scope(random: &mut StdRng) -> usize {
    // Everything at once hides what goes wrong with the rest: seldom.
    let last = if random.random_bool(0.2) { SCOPES.len() } else { SCOPES.len() - 1 };
    random.random_range(0..last)
}

fn jump(random: &mut StdRng) -> i64 {
    random.random_range(-7_200..=7_200)
}

fn millis(random: &mut StdRng, from: u64, to: Duration) -> Duration {
    let to = u64::try_from(to.as_millis()).expect("a world lasts minutes");
    Duration::from_millis(random.random_range(from..to.max(from + 1)))
}

/// The scope of this number.
pub(crate) fn scope_set(number: usize) -> ScopeSet {
    let scope: estoppel_model::Scope = SCOPES[number].parse().expect("a scope");
    scope.into()
}

/// The tenant that a node's token is bound to.
pub(crate) fn tenant_of(node: usize) -> Option<EntityId> {
    TENANTS[node].map(entity)
}

/// A tenant for orders of one.
pub(crate) fn acme() -> EntityId {
    entity("acme")
}

fn entity(text: &str) -> EntityId {
    EntityId::new(text).expect("a name")
}

/// Who acts on every node.
pub(crate) fn subjects() -> Vec<Subject> {
    let session = |id: &str| Subject::session(entity(id));
    let scraper =
        |version: &str| PluginRef { name: entity("scraper"), version: Some(entity(version)) };
    vec![
        Subject { agent: Some(entity("x")), ..session("a") },
        Subject { agent: Some(entity("y")), tenant: Some(entity("acme")), ..session("b") },
        Subject { plugin: Some(scraper("2.5")), agent: Some(entity("z")), ..session("c") },
        Subject { plugin: Some(scraper("1.0")), tool: Some(entity("shell")), ..session("d") },
        Subject { user: Some(entity("u")), tenant: Some(entity("other")), ..session("e") },
    ]
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, nodes, lease, actions, heals_at } = self;
        writeln!(f, "{servers} servers, {nodes} enforcers, leases of {lease:?}")?;
        for (at, action) in actions {
            writeln!(f, "{:>9.3}s  {action:?}", at.as_secs_f64())?;
        }
        writeln!(f, "{:>9.3}s  everything heals", heals_at.as_secs_f64())
    }
}
