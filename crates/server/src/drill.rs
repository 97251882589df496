//! Drills of the kill switch: a canary halt through every connected enforcer (row A1).
//!
//! A canary is a halt of nobody (`estoppel_killswitch::canary_of`) and takes the way of every halt:
//! signed, broadcast, persisted, checked by each enforcer's own view, confirmed, released by name.
//! It opens no incident and pages nobody. That it began and what it came to are records of the
//! ledger. A canary that a crash left in force is released at the next start.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use estoppel_api::{
    DrillOutcome, DrillStatus, DrillSummary, DrilledEnforcer, ReleaseRequest, Spread,
};
use estoppel_killswitch::{
    DRILL_ACTOR, canary_scope, is_drill,
    server::{EnforcerProgress, HaltProgress},
};
use estoppel_model::{
    Actor, Boottime, NewRecord, Order, OrderBody, OrderId, Record, RecordKind, Timestamp, Untrusted,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Server,
    http::{kill_switch::kind, problem::Failure},
    release,
};

const STARTED: RecordKind = RecordKind::new("drill.started");
const ENDED: RecordKind = RecordKind::new("drill.ended");
const REASON: &str = "a drill's canary: it halts nobody";
/// How long enforcers may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// First and longest pause between two looks at the answers.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// Most drills that may be started within [`RATE_WINDOW`]: each adds two orders for good.
const RATE_MAX: usize = 12;
const RATE_WINDOW: Duration = Duration::from_secs(60 * 60);
/// Most enforcers that a record lists.
const LISTED_MAX: usize = 1_000;
/// Most causes that a record lists.
const REASONS_MAX: usize = 20;
/// Most drills that are remembered.
const DRILLS_MAX: usize = 100;
/// Longest wait of the schedule before it looks at the clock again, which may have been set.
const NAP_MAX: Duration = Duration::from_secs(60);
/// After a failed attempt to start one.
const RETRY: Duration = Duration::from_secs(30);

/// The drills of the ledger, the latest last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drills(VecDeque<DrillSummary>);

impl Drills {
    /// Takes a record in.
    pub(crate) fn apply(&mut self, record: &Record) {
        if record.kind != STARTED && record.kind != ENDED {
            return;
        }
        match record.parse::<DrillSummary>() {
            Ok(drill) => {
                self.0.retain(|known| known.id != drill.id);
                if self.0.len() == DRILLS_MAX {
                    self.0.pop_front();
                }
                self.0.push_back(drill);
            }
            Err(error) => tracing::error!(record.seq, %error, "a drill cannot be read"),
        }
    }

    /// The drills, the latest first.
    pub(crate) fn latest_first(&self) -> impl Iterator<Item = &DrillSummary> {
        self.0.iter().rev()
    }
}

/// Lets one drill begin at a time, and not too many an hour.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Gated>);

#[derive(Debug, Default)]
struct Gated {
    running: bool,
    started: VecDeque<Boottime>,
}

/// A drill that may run; the next one may when this is dropped.
struct Passed<'a>(&'a Gate);

impl Gate {
    fn enter(&self, now: Boottime) -> Result<Passed<'_>, Failure> {
        let mut gated = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if gated.running {
            return Err(Failure::Conflict("a drill is going on: wait for its result".to_owned()));
        }
        while gated.started.front().is_some_and(|at| now.since(*at) >= RATE_WINDOW) {
            gated.started.pop_front();
        }
        if gated.started.len() >= RATE_MAX {
            return Err(Failure::TooMany(format!(
                "{RATE_MAX} drills were started within the last hour: each is kept for good"
            )));
        }
        gated.started.push_back(now);
        gated.running = true;
        Ok(Passed(self))
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).running = false;
    }
}

/// Drills once. Resolves when its result is in the ledger, after at most ten seconds of waiting for
/// enforcers.
///
/// # Errors
/// When one is going on, there were too many, or the ledger does not answer: what is not recorded
/// is no proof.
pub(crate) async fn run(server: &Server, by: Actor) -> Result<DrillSummary, Failure> {
    let _passed = server.drill_gate().enter(server.clock().boottime())?;
    sweep(server).await;
    let order = OrderId::new();
    let mut drill = DrillSummary {
        id: Uuid::now_v7(),
        order,
        by,
        started_at: server.clock().now(),
        ended_at: None,
        outcome: DrillOutcome::Running,
        reasons: Vec::new(),
        expected: 0,
        confirmed: 0,
        refusing: None,
        settled: None,
        enforcers: Vec::new(),
    };
    record(server, STARTED, &drill).await?;
    let canary = Order {
        id: order,
        scope: canary_scope(order).map_err(Failure::internal)?,
        reason: REASON.to_owned(),
        issued_by: drill_actor()?,
        issued_at: server.clock().now(),
        incident: None,
        tenant: None,
        body: OrderBody::Halt { until: None },
    };
    server.switchboard().give(canary).await??;
    let progress = answers(server, order).await?;
    judge(&mut drill, progress.as_ref());
    let released = end_canary(server, order).await;
    if let Err(error) = &released {
        fail(&mut drill, format!("the canary is not released yet: {error}"));
    }
    drill.ended_at = Some(server.clock().now());
    record(server, ENDED, &drill).await?;
    Ok(drill)
}

fn drill_actor() -> Result<Actor, Failure> {
    Actor::new(DRILL_ACTOR).map_err(Failure::internal)
}

async fn record(server: &Server, kind: RecordKind, drill: &DrillSummary) -> Result<(), Failure> {
    let key = Some(format!("{kind}/{}", drill.id));
    let record =
        NewRecord::json(kind, key, server.clock().now(), drill).map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    Ok(())
}

/// Waits until every enforcer has settled, or for [`ANSWER_MAX`].
async fn answers(server: &Server, order: OrderId) -> Result<Option<HaltProgress>, Failure> {
    let until = tokio::time::Instant::now() + ANSWER_MAX;
    let mut pause = LOOK.0;
    loop {
        let last = tokio::time::Instant::now() >= until;
        let count = server.switchboard().count(order).await?;
        let complete = count.is_none_or(|it| it.settled + it.by_lease + it.gone >= it.expected);
        // The words of thousands are read seldom: the thread that gives them has halts to give.
        if last || complete || pause == LOOK.1 {
            let progress =
                server.switchboard().progress(order).await?.map(|(progress, _)| progress);
            // One that only observes settles, and is not counted as if it refused.
            let waits = progress.as_ref().is_some_and(|progress| {
                progress.enforcers.iter().any(|word| word.expected && word.settled.is_none())
            });
            if last || !waits {
                return Ok(progress);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

async fn end_canary(server: &Server, order: OrderId) -> Result<(), Failure> {
    let request = ReleaseRequest {
        scope: canary_scope(order).map_err(Failure::internal)?,
        reason: "the drill is over".to_owned(),
        halts: Some(vec![order]),
        id: None,
        watch_seconds: Some(0),
    };
    release::by_server(server, request, drill_actor()?).await.map(drop)
}

/// What the answers amount to.
fn judge(drill: &mut DrillSummary, progress: Option<&HaltProgress>) {
    drill.outcome = DrillOutcome::Passed;
    let words: Vec<&EnforcerProgress> = progress
        .iter()
        .flat_map(|progress| &progress.enforcers)
        .filter(|word| word.expected)
        .collect();
    drill.expected = words.len();
    if words.is_empty() {
        fail(drill, "no enforcer was connected: nothing would have been stopped".to_owned());
    }
    let micros = |after: Duration| u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
    let refusing = words.iter().filter_map(|word| word.refusing.map(|it| micros(it.after)));
    drill.refusing = Spread::of(refusing.collect());
    let settled = words.iter().filter_map(|word| word.settled.map(|it| micros(it.after)));
    drill.settled = Spread::of(settled.collect());
    drill.confirmed = words.iter().filter(|word| fault(word).is_none()).count();
    for word in &words {
        if let Some(fault) = fault(word) {
            let name = Untrusted::new(&*word.name).inline(100);
            fail(drill, format!("{} {name} {fault}", kind(word.kind)));
        }
    }
    let mut enforcers: Vec<(bool, DrilledEnforcer)> = words
        .iter()
        .map(|word| {
            let enforcer = DrilledEnforcer {
                name: word.name.to_string(),
                kind: kind(word.kind).to_owned(),
                refusing_after_us: word.refusing.map(|it| micros(it.after)),
                settled_after_us: word.settled.map(|it| micros(it.after)),
                canary_refused: word.settlement.canary_refused,
                observed_only: word.settlement.observed_only,
                lease_until: word.settled.is_none().then_some(word.lease_until).flatten(),
            };
            (fault(word).is_none(), enforcer)
        })
        .collect();
    // Faults first, then the slowest: they are what is looked for, and what is kept of very many.
    enforcers.sort_by_key(|(good, it)| (*good, std::cmp::Reverse(it.settled_after_us)));
    enforcers.truncate(LISTED_MAX);
    drill.enforcers = enforcers.into_iter().map(|(_, it)| it).collect();
}

/// Why an enforcer's answer is no proof.
fn fault(word: &EnforcerProgress) -> Option<&'static str> {
    let settlement = &word.settlement;
    match (word.settled, settlement.canary_refused) {
        (None, _) if word.refusing.is_none() => Some("did not answer"),
        (None, _) if word.gone => Some("refuses the canary, and was gone before it settled"),
        (None, _) => Some("refuses the canary, but has not settled"),
        (Some(_), _) if settlement.observed_only => Some("observes only and would stop nobody"),
        (Some(_), Some(true)) => None,
        (Some(_), Some(false)) => Some("lets the canary through in its own check"),
        (Some(_), None) => Some("does not say whether it refuses the canary: it is too old"),
    }
}

fn fail(drill: &mut DrillSummary, reason: String) {
    drill.outcome = DrillOutcome::Failed;
    match drill.reasons.len() {
        0..REASONS_MAX => drill.reasons.push(reason),
        REASONS_MAX => drill.reasons.push("and others".to_owned()),
        _ => {}
    }
}

/// Releases canaries of drills that were interrupted.
async fn sweep(server: &Server) {
    let left = server.switchboard().ask(|switch, _| {
        let canaries = switch.orders().in_force().filter(|order| is_drill(order));
        canaries.map(|order| order.id).collect::<Vec<_>>()
    });
    for order in left.await.unwrap_or_default() {
        if let Err(error) = end_canary(server, order).await {
            tracing::warn!(%order, %error, "an interrupted drill's canary is not released yet");
        }
    }
}

/// Tidies up after drills that a crash interrupted, then drills by schedule until the server stops.
/// Begins when the ledger is open.
pub(crate) async fn keep(server: Server, stop: CancellationToken) {
    sweep(&server).await;
    let interrupted: Vec<DrillSummary> = server.journal().read(|state| {
        let running = |it: &&DrillSummary| it.outcome == DrillOutcome::Running;
        state.drills.latest_first().filter(running).cloned().collect()
    });
    for mut drill in interrupted {
        drill.outcome = DrillOutcome::Interrupted;
        drill.reasons = vec!["the server ended in the middle of it".to_owned()];
        drill.ended_at = Some(server.clock().now());
        if let Err(error) = record(&server, ENDED, &drill).await {
            tracing::warn!(drill = %drill.id, %error, "an interrupted drill could not be written");
        }
    }
    let Some(every) = server.config().drill_every else { return };
    // Enforcers come back first: a drill without them would fail after each restart.
    if !nap(server.config().lease, &stop).await {
        return;
    }
    loop {
        let wait = until_due(&server, every);
        if !wait.is_zero() {
            if !nap(wait.min(NAP_MAX), &stop).await {
                return;
            }
            continue;
        }
        let Ok(actor) = drill_actor() else { return };
        let drilled = run(&server, actor).await;
        match drilled {
            Ok(drill) if drill.outcome == DrillOutcome::Passed => {}
            Ok(drill) => {
                tracing::error!(reasons = ?drill.reasons, "a drill of the kill switch failed")
            }
            Err(error) => {
                tracing::error!(%error, "a drill of the kill switch did not take place");
                if !nap(RETRY, &stop).await {
                    return;
                }
            }
        }
    }
}

/// Sleeps; whether the server still runs.
async fn nap(duration: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(duration)).await.is_some()
}

/// How long until the next drill by schedule. A clock that was set back does not put it off by more
/// than one interval.
fn until_due(server: &Server, every: Duration) -> Duration {
    let last = server
        .journal()
        .read(|state| state.drills.latest_first().next().map(|drill| drill.started_at));
    let Some(last) = last else { return Duration::ZERO };
    let now = server.clock().now();
    if last > now { every } else { every.saturating_sub(now.since(last)) }
}

/// How drills stand.
pub(crate) fn status(server: &Server) -> DrillStatus {
    let last = server.journal().read(|state| {
        let mut ended = state.drills.latest_first().filter(|it| it.ended_at.is_some());
        let last = ended.next()?;
        Some(DrillSummary { enforcers: Vec::new(), ..last.clone() })
    });
    let every = server.config().drill_every;
    let overdue = every.is_some_and(|every| {
        // Half an interval of grace, since the last one or since the server is there to drill.
        let since = last.as_ref().map_or(server.started_at(), |last| last.started_at);
        is_overdue(server.clock().now(), since, every)
    });
    DrillStatus { every_seconds: every.map(|every| every.as_secs()), last, overdue }
}

fn is_overdue(now: Timestamp, since: Timestamp, every: Duration) -> bool {
    now.since(since) > every + every / 2
}

/// What `status` warns of.
pub(crate) fn warnings(status: &DrillStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(last) = &status.last
        && last.outcome != DrillOutcome::Passed
    {
        warnings.push(format!(
            "the last drill of the kill switch, at {}, did not pass: {}",
            last.started_at,
            last.reasons.join("; ")
        ));
    }
    if status.overdue {
        warnings.push("a drill of the kill switch is overdue by its schedule".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_drill_runs_at_a_time_and_not_too_many_an_hour() {
        let gate = Gate::default();
        let at = |seconds: u64| Boottime::from_nanos(seconds * 1_000_000_000);
        let first = gate.enter(at(0)).unwrap();
        assert!(matches!(gate.enter(at(1)), Err(Failure::Conflict(_))));
        drop(first);
        for second in 1..RATE_MAX as u64 {
            drop(gate.enter(at(second)).unwrap());
        }
        assert!(matches!(gate.enter(at(60)), Err(Failure::TooMany(_))));
        drop(gate.enter(at(3_600)).unwrap());
        assert!(matches!(gate.enter(at(3_600)), Err(Failure::TooMany(_))));
    }

    #[test]
    fn a_drill_is_overdue_half_an_interval_late() {
        let start = Timestamp::from_micros(1_770_000_000_000_000);
        let day = Duration::from_secs(86_400);
        assert!(!is_overdue(start + day * 3 / 2, start, day));
        assert!(is_overdue(start + day * 3 / 2 + Duration::from_secs(1), start, day));
        assert!(!is_overdue(start, start + day, day), "a clock that was set back");
    }
}
