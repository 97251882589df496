//! The run of a fleet: who speaks when, and what must be true of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use estoppel_killswitch::{
    Now, enforcer,
    frame::{Stage, ToEnforcer, ToServer},
    invariant::{Observation, ServerWatch, Tally},
    server::{ConnectionId, Effect, HaltCount, Input, Listing, Switch, SwitchConfig},
};
use estoppel_model::{EntityId, OrderId, SignedOrder, Subject, Timestamp};
use estoppel_testkit::keys::Keys;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    FleetReport, Halt, Memory, Restart, Work,
    member::{Member, START, halt, settlement, signed},
    meter::Meter,
    millis,
    network::ACCEPTS_PER_SECOND,
};
use crate::machine::EPOCH_US;

/// Within which time all try to connect first, in microseconds.
const ARRIVAL_US: u64 = 3_000_000;
/// When the server is killed after all have come, and for how long it is away.
const STEADY: Duration = Duration::from_secs(5);
const AWAY: Duration = Duration::from_millis(1_500);
/// How long a server that starts reads its ledger before it gives leases.
const RECOVERY: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(250);
/// How long a run may take: no fleet needs as long.
const RUN_MAX: Duration = Duration::from_secs(600);

pub(super) enum Event {
    ServerKilled,
    ServerStarts,
    /// It has read its ledger.
    Recovered,
    ServerTick,
    Dial {
        member: usize,
    },
    Accepted {
        member: usize,
    },
    Up {
        connection: u64,
        member: usize,
        json: String,
    },
    Down {
        connection: u64,
        member: usize,
        json: Arc<str>,
    },
    MemberTick {
        member: usize,
    },
    /// Work in flight has ended.
    Settles {
        member: usize,
        order: OrderId,
    },
    Halt,
}

pub(super) struct Fleet {
    seed: u64,
    pub(super) time: Duration,
    pub(super) random: StdRng,
    events: BTreeMap<(Duration, u64), Event>,
    pub(super) next: u64,
    pub(super) members: Vec<Member>,
    /// The member at the other end of each connection.
    pub(super) connections: BTreeMap<u64, usize>,
    pub(super) switch: Option<Switch>,
    watch: ServerWatch,
    tally: Arc<Tally>,
    meter: Meter,
    /// The orders that the server's disk has.
    kept: Vec<SignedOrder>,
    /// When the listener takes the next connection.
    pub(super) accepts_at: Duration,
    in_step: usize,
    /// When the server was started again.
    restarted: Option<Duration>,
    pub(super) restart: Restart,
    halt: Option<(OrderId, Duration)>,
    spent_before: Duration,
    told: Halt,
    wrong: Option<String>,
}

/// What a halt costs the thread that gives it.
const OF_A_HALT: [Work; 3] = [Work::Order, Work::Refusing, Work::Settled];

impl Fleet {
    pub(super) fn new(enforcers: usize, seed: u64) -> Self {
        let tally = Arc::new(Tally::default());
        let members = (0..enforcers).map(|number| Member::new(number, &tally)).collect();
        let mut this = Self {
            seed,
            time: Duration::ZERO,
            random: StdRng::seed_from_u64(seed),
            events: BTreeMap::new(),
            next: 0,
            members,
            connections: BTreeMap::new(),
            switch: None,
            watch: ServerWatch::new(Arc::clone(&tally)),
            tally,
            meter: Meter::new(),
            // What was ordered before, and those who come for the first time lack.
            kept: vec![signed(&halt(0))],
            accepts_at: Duration::ZERO,
            in_step: 0,
            restarted: None,
            restart: Restart {
                away_ms: millis(AWAY),
                accepts_per_second: ACCEPTS_PER_SECOND,
                ..Restart::default()
            },
            halt: None,
            spent_before: Duration::ZERO,
            told: Halt::default(),
            wrong: None,
        };
        this.at(Duration::ZERO, Event::ServerStarts);
        for member in 0..enforcers {
            let at = Duration::from_micros(this.random.random_range(0..ARRIVAL_US));
            this.at(at, Event::Dial { member });
        }
        this
    }

    /// Lets everything happen until the halt is confirmed by all.
    pub(super) fn run(mut self, memory: Memory) -> Result<FleetReport, String> {
        while self.wrong.is_none()
            && self.told.confirmed_ms == 0
            && let Some(((time, _), event)) = self.events.pop_first()
        {
            if time > RUN_MAX {
                return Err(self.stuck());
            }
            self.time = time;
            self.happen(event);
        }
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        self.judge()?;
        Ok(FleetReport {
            enforcers: self.members.len(),
            seed: self.seed,
            server: self.meter.spent(),
            memory,
            restart: self.restart,
            halt: self.told,
            invariants: self.tally.counts(),
        })
    }

    fn stuck(&self) -> String {
        let all = self.members.len();
        format!(
            "the fleet does not come to rest: {} of {all} are in step, {:?}",
            self.in_step, self.told
        )
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ServerStarts => self.server_starts(),
            Event::ServerKilled => self.server_killed(),
            Event::Recovered => {
                let now = self.now();
                let effects = self.switch.as_mut().map(|switch| switch.grant_leases(now));
                self.carry_out(effects.unwrap_or_default());
            }
            Event::ServerTick => {
                if self.switch.is_some() {
                    self.at_server(Work::Tick, Input::Tick);
                    self.look();
                    self.at(self.time + TICK, Event::ServerTick);
                }
            }
            Event::Dial { member } => self.dial(member),
            Event::Accepted { member } => self.accepted(member),
            Event::Up { connection, member, json } => self.up(connection, member, &json),
            Event::Down { connection, member, json } => {
                if self.members[member].connection == Some(connection) {
                    let frame = serde_json::from_str(&json).expect("it was written here");
                    self.at_member(member, enforcer::Input::Frame(frame));
                }
            }
            Event::MemberTick { member } => {
                if self.members[member].tick_at == self.time {
                    self.at_member(member, enforcer::Input::Tick);
                }
            }
            Event::Settles { member, order } => {
                let settlement = settlement();
                self.at_member(member, enforcer::Input::Settled { order, settlement });
            }
            Event::Halt => self.give_halt(),
        }
    }

    fn server_starts(&mut self) {
        let config = SwitchConfig::default();
        let (mut switch, _) = Switch::new(config, Box::new(Keys), self.kept.clone());
        switch.hold_leases();
        if self.time > Duration::ZERO {
            self.restarted = Some(self.time);
            switch.expect_unknown(self.now().boot + config.lease);
        }
        self.switch = Some(switch);
        self.accepts_at = self.time;
        self.at(self.time, Event::ServerTick);
        self.at(self.time + RECOVERY, Event::Recovered);
    }

    fn server_killed(&mut self) {
        self.switch = None;
        self.in_step = 0;
        for (_, member) in std::mem::take(&mut self.connections) {
            self.hung_up(member);
        }
        self.at(self.time + AWAY, Event::ServerStarts);
    }

    fn up(&mut self, number: u64, member: usize, json: &str) {
        if self.switch.is_none() || self.connections.get(&number) != Some(&member) {
            return;
        }
        let read = || serde_json::from_str(json).expect("it was written here");
        let frame: ToServer = self.meter.measure(Work::FrameRead, read);
        let work = match &frame {
            ToServer::Hello(hello) if hello.set.count == 0 => Work::FirstHello,
            ToServer::Hello(_) => Work::Hello,
            ToServer::Have { .. } => Work::Have,
            ToServer::Ping { .. } => Work::Ping,
            ToServer::Confirm(word) if word.stage == Stage::Settled => Work::Settled,
            ToServer::Confirm(_) => Work::Refusing,
            other => {
                self.wrong = Some(format!("enforcer {member} sent {other:?}"));
                return;
            }
        };
        self.at_server(work, Input::Frame { connection: ConnectionId(number), frame });
    }

    pub(super) fn at_server(&mut self, work: Work, input: Input) {
        let now = self.now();
        let Some(switch) = &mut self.switch else { return };
        let effects = self.meter.measure(work, || switch.step(input, now));
        if let Some(violation) = self.watch.stepped(switch, &effects).into_iter().next() {
            self.wrong = Some(violation.to_string());
        }
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Broadcast { connections, frame } => {
                    let json = self.written(&frame);
                    for ConnectionId(number) in connections {
                        self.send_down(number, Arc::clone(&json));
                    }
                }
                Effect::Send { connection: ConnectionId(number), frame } => {
                    let json = self.written(&frame);
                    self.send_down(number, json);
                }
                Effect::Close { reason, .. } | Effect::Rejected { reason, .. } => {
                    self.wrong = Some(format!("the server refuses what it was sent: {reason}"));
                }
                Effect::Persist(signed) => self.kept.push(signed),
                Effect::Confirmed { confirmation, count, .. } => {
                    self.counted(confirmation.order, count);
                }
                Effect::Joined { .. }
                | Effect::LeaseOver { .. }
                | Effect::AllKnown
                | Effect::Outcome { .. }
                | Effect::BreakGlassUsed { .. }
                | Effect::HandedBack { .. } => {}
            }
        }
    }

    fn written(&mut self, frame: &ToEnforcer) -> Arc<str> {
        let write = || serde_json::to_string(frame).expect("frames are plain data");
        self.meter.measure(Work::FrameWritten, write).into()
    }

    pub(super) fn at_member(&mut self, member: usize, input: enforcer::Input) {
        let now = self.now();
        let this = &mut self.members[member];
        let (effects, violations) = this.watch.step(&mut this.enforcer, input, now);
        if let Some(violation) = violations.into_iter().next() {
            self.wrong = Some(violation.to_string());
        }
        for effect in effects {
            match effect {
                enforcer::Effect::Send(frame) => self.send_up(member, &frame),
                enforcer::Effect::Ordered(order) => {
                    let ends = self.time + Duration::from_millis(self.random.random_range(1..50));
                    self.at(ends, Event::Settles { member, order: order.id });
                }
                enforcer::Effect::InSync => self.is_in_step(),
                enforcer::Effect::LeaseLost => self.members[member].lost_a_lease = true,
                enforcer::Effect::Disconnect { reason } | enforcer::Effect::Rejected { reason } => {
                    self.wrong = Some(format!("enforcer {member} does not go on: {reason}"));
                }
                enforcer::Effect::Publish
                | enforcer::Effect::Released { .. }
                | enforcer::Effect::Act(_)
                | enforcer::Effect::LeaseRegained
                | enforcer::Effect::GoesOn
                | enforcer::Effect::BreakGlassRefused(_)
                | enforcer::Effect::Keep(_) => {}
            }
        }
        let this = &mut self.members[member];
        let due = this.enforcer.next_tick().since(START.boot).max(self.time);
        if due != this.tick_at && due < RUN_MAX {
            this.tick_at = due;
            self.at(due, Event::MemberTick { member });
        }
    }

    /// One more has the server's orders; once all have, the server is killed; once all are back,
    /// somebody halts.
    fn is_in_step(&mut self) {
        self.in_step += 1;
        if self.in_step < self.members.len() {
            return;
        }
        let Some(restarted) = self.restarted else {
            return self.at(self.time + STEADY, Event::ServerKilled);
        };
        self.restart.all_back_ms = millis(self.time - restarted);
        self.restart.leases_lost = self.members.iter().filter(|one| one.lost_a_lease).count();
        self.at(self.time + Duration::from_secs(1), Event::Halt);
    }

    fn give_halt(&mut self) {
        let now = self.now();
        let order = halt(1);
        let signed = signed(&order);
        self.spent_before = self.meter.total(&OF_A_HALT);
        let Some(switch) = &mut self.switch else { return };
        let in_force = switch.verdicts().in_force();
        let given = self.meter.measure(Work::Order, || switch.submit(signed, now));
        match given {
            Ok((submitted, effects)) => {
                let violations = self.watch.submitted(switch, in_force, &submitted, &effects);
                self.wrong = violations.into_iter().next().map(|broken| broken.to_string());
                self.halt = Some((order.id, self.time));
                self.carry_out(effects);
            }
            Err(error) => self.wrong = Some(error.to_string()),
        }
    }

    /// A word was counted.
    fn counted(&mut self, order: OrderId, count: HaltCount) {
        let Some((_, given)) = self.halt.filter(|(halt, _)| *halt == order) else { return };
        let (after, all) = (millis(self.time - given), self.members.len());
        first(&mut self.told.all_refuse_ms, after, count.refusing == all);
        first(&mut self.told.all_settled_ms, after, count.settled == all);
    }

    /// Looks how far the halt is, as people do.
    fn look(&mut self) {
        let now = self.now();
        let (Some((order, given)), Some(switch)) = (self.halt, &self.switch) else { return };
        let ask = || switch.progress_listing(order, now, Listing::OpenFirst(100));
        let Some(progress) = self.meter.measure(Work::Question, ask) else { return };
        let broken = self.watch.progress(&progress).into_iter().next();
        self.wrong = self.wrong.take().or_else(|| broken.map(|broken| broken.to_string()));
        let is_confirmed = progress.is_over() && progress.expected > 0;
        first(&mut self.told.confirmed_ms, millis(self.time - given), is_confirmed);
        self.told.expected = progress.expected;
        let spent = self.meter.total(&OF_A_HALT) - self.spent_before;
        self.told.server_us_each = spent.as_secs_f64() * 1e6 / self.members.len() as f64;
    }

    /// After the halt nobody does what it reaches, everybody the rest; all were counted.
    fn judge(&self) -> Result<(), String> {
        let (now, all) = (self.now(), self.members.len());
        let (Some((order, _)), Some(switch)) = (self.halt, &self.switch) else {
            return Err(self.stuck());
        };
        let subject = |name: &str| Subject::session(EntityId::new(name).expect("a name"));
        let (halted, other) = (subject("halted"), subject("other"));
        let goes = |member: &Member, subject: &Subject| {
            member.enforcer.lease_until().is_some_and(|until| now.boot < until)
                && member.enforcer.verdicts().check(subject).is_none()
        };
        let acting = self.members.iter().filter(|member| goes(member, &halted)).count();
        let seen = Observation::AllRefuse { order, acting };
        self.tally.observe(seen).map_err(|violation| violation.to_string())?;
        let stopped = self.members.iter().filter(|member| !goes(member, &other)).count();
        if stopped > 0 {
            return Err(format!("{stopped} enforcers refuse what nobody halted"));
        }
        let count = switch.count(order).unwrap_or_default();
        if (count.expected, count.refusing, count.settled) != (all, all, all) {
            return Err(format!("{all} enforcers were counted as {count:?}"));
        }
        Ok(())
    }

    fn now(&self) -> Now {
        let micros = i64::try_from(self.time.as_micros()).expect("a run lasts minutes");
        Now { wall: Timestamp::from_micros(EPOCH_US + micros), boot: START.boot + self.time }
    }

    pub(super) fn at(&mut self, time: Duration, event: Event) {
        self.next += 1;
        self.events.insert((time, self.next), event);
    }
}

/// Notes when something was reached first.
const fn first(told_ms: &mut u64, after_ms: u64, reached: bool) {
    if reached && *told_ms == 0 {
        *told_ms = after_ms;
    }
}
