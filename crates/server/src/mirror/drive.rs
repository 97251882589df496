//! The one task that speaks with Redis.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use estoppel_killswitch::Now;
use estoppel_model::{Order, Scope};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    time::{Instant, MissedTickBehavior},
};

use super::{
    MirrorState,
    backlog::{BATCH, Backlog},
    book::{Book, Judgement, Write},
    config::RedisConfig,
    inlet::{Inlet, Taken},
    value::{Found, Key, KeyError, Unreadable},
    walk::Walk,
    wire::{self, Held, Push, Wire, WireError},
};
use crate::{Server, switchboard::Ended};

/// First and longest pause before Redis is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often some keys are looked at without being told: where changes are told, and where not.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_POLLING: Duration = Duration::from_millis(200);
/// Between two exchanges: two who overwrite each other's keys do so at this pace.
const PACE: Duration = Duration::from_millis(5);
/// Messages about changes that are read between two exchanges.
const PUSHES_AT_ONCE: usize = 1_024;
/// Keys that are named in `status`.
const NAMED_MAX: usize = 20;

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

struct Mirror {
    server: Server,
    book: Book,
    inlet: Inlet,
    backlog: Backlog,
    orders: broadcast::Receiver<Arc<Order>>,
    state: MirrorState,
    /// Why keys cannot be walked over, and why nothing can be written.
    no_walk: Option<String>,
    no_write: Option<String>,
    /// Keys that say active although that is released here.
    insisted: BTreeSet<Key>,
    /// Keys whose halts wait.
    waiting: BTreeSet<Key>,
    /// Behind which scope the look at halted ones goes on.
    looked: Option<Scope>,
}

/// Mirrors until the server stops.
pub(super) async fn run(
    server: Server,
    config: RedisConfig,
    orders: broadcast::Receiver<Arc<Order>>,
    state: MirrorState,
) {
    // The actor's name is a constant.
    let Ok(inlet) = Inlet::new(server.clock().boottime()) else { return };
    let stopped = server.clone();
    let mut mirror = Mirror {
        server,
        book: Book::default(),
        inlet,
        backlog: Backlog::default(),
        orders,
        state,
        no_walk: None,
        no_write: None,
        insisted: BTreeSet::new(),
        waiting: BTreeSet::new(),
        looked: None,
    };
    tokio::select! {
        ended = mirror.keep(&config) => if ended.is_err() {
            tracing::debug!("the mirror ends with the switchboard");
        },
        () = stopped.draining() => {}
    }
}

impl Mirror {
    /// Connects again and again.
    async fn keep(&mut self, config: &RedisConfig) -> Result<(), Ended> {
        self.all_orders().await?;
        let mut pause = RETRY.0;
        loop {
            let begun = Instant::now();
            let lost = match self.connect(config).await? {
                Ok((mut wire, pushes)) => {
                    tracing::info!(address = config.address(), "Redis is connected");
                    self.connected(&wire);
                    match self.mirror(&mut wire, pushes).await {
                        Lost::Ended(ended) => return Err(ended),
                        lost => lost,
                    }
                }
                Err(error) => error.into(),
            };
            if begun.elapsed() > RETRY.1 * 2 {
                pause = RETRY.0;
            }
            let problem = lost.to_string();
            let behind = self.backlog.behind();
            self.state.update(|state| {
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(address = state.address, problem, "Redis is away");
                }
                state.connected = false;
                state.problem = Some(problem);
                (state.behind, state.behind_since) = behind;
            });
            self.taking_orders(tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn connect(
        &mut self,
        config: &RedisConfig,
    ) -> Result<Result<(Wire, mpsc::Receiver<Push>), WireError>, Ended> {
        self.taking_orders(wire::connect(config)).await
    }

    /// Waits for something while orders come in.
    async fn taking_orders<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::pin!(wait);
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => self.order(order).await?,
                done = &mut wait => return Ok(done),
            }
            let (behind, since) = self.backlog.behind();
            self.state.update(|state| (state.behind, state.behind_since) = (behind, since));
        }
    }

    fn connected(&self, wire: &Wire) {
        let untold = wire.untold.clone();
        if let Some(reason) = &untold {
            tracing::warn!(reason, "Redis tells of no changes; its keys are polled");
        }
        self.state.update(|state| {
            state.connected = true;
            state.tracking = untold.is_none();
            state.problem = None;
        });
    }

    /// Reads all orders anew.
    async fn all_orders(&mut self) -> Result<(), Ended> {
        let orders =
            self.server.switchboard().ask(|switch, _| switch.orders().all().cloned().collect());
        let orders: Vec<Arc<Order>> = orders.await?;
        orders.iter().for_each(|order| self.add(order));
        Ok(())
    }

    fn add(&mut self, order: &Arc<Order>) {
        let keys = self.book.add(order);
        self.backlog.ordered(keys, self.server.clock().now());
    }

    async fn order(&mut self, order: Result<Arc<Order>, RecvError>) -> Result<(), Ended> {
        match order {
            Ok(order) => self.add(&order),
            Err(RecvError::Lagged(_)) => self.all_orders().await?,
            Err(RecvError::Closed) => return Err(Ended),
        }
        Ok(())
    }

    /// Mirrors over a connection until it is lost.
    async fn mirror(&mut self, wire: &mut Wire, mut pushes: mpsc::Receiver<Push>) -> Lost {
        // Whatever was told before is unknown: everything halted is looked at, then everything else.
        let polling = wire.untold.is_some();
        let mut walk = Walk::begin(polling);
        self.backlog.ordered(self.book.active_keys(), self.server.clock().now());
        let mut look = tokio::time::interval(if polling { LOOK_EVERY_POLLING } else { LOOK_EVERY });
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let work = !self.backlog.is_idle();
            let done = tokio::select! {
                order = self.orders.recv() => self.order(order).await.map_err(Lost::from),
                push = pushes.recv() => self.told(push, &mut walk).map_err(Lost::from),
                _ = look.tick() => {
                    self.look();
                    Ok(())
                }
                () = walk.due() => self.step(wire, &mut walk).await.map_err(Lost::from),
                () = std::future::ready(()), if work => Ok(()),
            };
            if let Err(lost) = done {
                return lost;
            }
            for _ in 0..PUSHES_AT_ONCE {
                let Ok(push) = pushes.try_recv() else { break };
                if let Err(lost) = self.told(Some(push), &mut walk) {
                    return lost.into();
                }
            }
            if wire.lost() {
                self.backlog.ordered(self.book.active_keys(), self.server.clock().now());
                walk.anew();
            }
            if let Err(lost) = self.settle(wire).await {
                return lost;
            }
        }
    }

    /// Redis told of changes.
    fn told(&mut self, push: Option<Push>, walk: &mut Walk) -> Result<(), WireError> {
        let now = self.server.clock().now();
        match push {
            None | Some(Push::Ended) => return Err(WireError::Closed),
            Some(Push::Flushed) => self.backlog.ordered(self.book.active_keys(), now),
            Some(Push::Changed(names)) => {
                for name in names {
                    if let Ok(key) = Key::parse(&name)
                        && !self.backlog.named(key, now)
                    {
                        walk.anew();
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at some keys without being told: that of everything, what was put off, and some of
    /// those that are halted, in turn.
    fn look(&mut self) {
        let now = self.server.clock().now();
        self.backlog.again();
        let (keys, looked) = self.book.next_active(self.looked.as_ref(), BATCH);
        self.looked = looked;
        self.backlog.ordered(keys.into_iter().chain([Key::of(&Scope::Global)]), now);
    }

    /// One step of the walk over all keys.
    async fn step(&mut self, wire: &mut Wire, walk: &mut Walk) -> Result<(), WireError> {
        let begun = Instant::now();
        let (cursor, names) = match wire.scan(walk.cursor()).await {
            Ok(found) => found,
            Err(error) if error.is_refusal() => {
                walk.refused();
                self.no_walk = Some(format!("its keys cannot be walked over: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.no_walk = None;
        let now = self.server.clock().now();
        for name in names {
            match Key::parse(&name) {
                Ok(key) => {
                    // What finds no room is met again by the next walk.
                    self.backlog.named(key, now);
                }
                Err(KeyError::Foreign) => {}
                Err(error) => {
                    walk.ignored += 1;
                    walk.example.get_or_insert_with(|| error.to_string());
                }
            }
        }
        if walk.stepped(cursor, begun) {
            let (ignored, example) = (std::mem::take(&mut walk.ignored), walk.example.take());
            self.state.update(|state| (state.ignored_keys, state.ignored_key) = (ignored, example));
        }
        Ok(())
    }

    /// Looks at the next keys and does what follows.
    async fn settle(&mut self, wire: &mut Wire) -> Result<(), Lost> {
        let keys = self.backlog.batch();
        if keys.is_empty() {
            self.report();
            return Ok(());
        }
        let held = match wire.read(&keys).await {
            Ok(held) => held,
            Err(error) => {
                self.backlog.ordered(keys, self.server.clock().now());
                return Err(error.into());
            }
        };
        let mut writes = Vec::new();
        for (key, held) in keys.iter().zip(held) {
            let found = match held {
                Held::Bytes(bytes) => Found::read(&bytes),
                Held::OtherType => Found::Unreadable(Unreadable::Type),
            };
            if matches!(found, Found::Unreadable(_)) {
                self.state.update(|state| state.values_refused += 1);
            }
            writes.extend(self.judge(key, &found).await?.map(|write| (key.clone(), write)));
        }
        if writes.is_empty() {
            wire.unwatch().await?;
        } else if let Err(error) = self.write(wire, &writes).await {
            self.backlog.ordered(writes.into_iter().map(|(key, _)| key), self.server.clock().now());
            return Err(error.into());
        }
        self.report();
        tokio::time::sleep(PACE).await;
        Ok(())
    }

    fn now(&self) -> Now {
        let clock = self.server.clock();
        Now { wall: clock.now(), boot: clock.boottime() }
    }

    /// Judges what stands at a key; gives the halt that follows, and returns what is to be written.
    async fn judge(&mut self, key: &Key, found: &Found) -> Result<Option<Write>, Ended> {
        // Once more after a halt.
        for _ in 0..2 {
            let judged = self.book.judge(key, found, self.now());
            if judged == Judgement::Insists {
                if self.insisted.len() < NAMED_MAX {
                    self.insisted.insert(key.clone());
                }
            } else {
                self.insisted.remove(key);
            }
            self.waiting.remove(key);
            match judged {
                Judgement::Leave | Judgement::Insists => return Ok(None),
                Judgement::Write(write) => return Ok(Some(write)),
                Judgement::Halt(halt) => {
                    let in_force = self.book.halts_from_redis();
                    match self.inlet.give(&self.server, &halt, in_force).await? {
                        Taken::Given(order) => {
                            self.book.honoured(&halt);
                            self.add(&order);
                        }
                        Taken::Waits => {
                            // Without room, the next walk finds it.
                            if self.backlog.put_off(key.clone()) {
                                self.waiting.insert(key.clone());
                            }
                            return Ok(None);
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    async fn write(&mut self, wire: &mut Wire, writes: &[(Key, Write)]) -> Result<(), WireError> {
        let keys = || writes.iter().map(|(key, _)| key.clone());
        match wire.write(writes).await {
            Ok(true) => {
                let now = self.now();
                writes.iter().for_each(|(key, write)| self.book.written(key, write, now));
                self.no_write = None;
            }
            Ok(false) => self.backlog.disturbed(keys()),
            Err(error) if error.is_refusal() => {
                let problem = format!("it takes no writes: {error}");
                if self.no_write.as_ref() != Some(&problem) {
                    tracing::warn!(problem, "the mirror stands still; halts from Redis go on");
                }
                self.no_write = Some(problem);
                for key in keys() {
                    self.backlog.put_off(key);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn report(&mut self) {
        let behind = self.backlog.behind();
        let now = self.server.clock().now();
        let (from_redis, not_written) = (self.book.halts_from_redis(), self.book.unwritten());
        let insisted = self.insisted.iter().map(|key| key.scope().to_string()).collect();
        let problem = self.no_write.as_ref().or(self.no_walk.as_ref()).cloned();
        self.state.update(|state| {
            state.problem = problem;
            (state.behind, state.behind_since) = behind;
            if behind.0 == 0 {
                state.last_sync = Some(now);
            }
            state.halts_from_redis = from_redis;
            state.halts_waiting = self.waiting.len();
            state.not_written = not_written;
            state.insisted = insisted;
        });
    }
}
