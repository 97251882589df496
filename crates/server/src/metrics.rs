//! What is counted and measured while the server runs, and the text in which Prometheus reads it.
//!
//! Counters and histograms are fed where things happen; gauges are read when somebody asks
//! ([`crate::http`]). No label holds what an agent, a caller or a name says: their values are the
//! words of enums and the routes of the API, so neither their number nor their text is anybody
//! else's to choose.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use estoppel_api::RedisStatus;
use estoppel_killswitch::frame::Stage;
use estoppel_model::OrderId;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

mod process;

pub(crate) use process::Process;

/// Orders whose confirmations are measured: the newest.
const ORDERS_MEASURED_MAX: usize = 256;

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageOutcome {
    Sent,
    Failed,
    /// Nobody can tell.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PageLabels {
    outcome: &'static str,
}

/// A word of ours as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    pub kind: &'static str,
}

/// A word of ours as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct State {
    pub state: &'static str,
}

/// An invariant of the kill switch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Promise {
    pub invariant: &'static str,
}

/// A part of the server, as in `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Part {
    pub part: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

/// A route of the API, never the path that was asked for, and the status of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    pub route: String,
    pub status: u16,
}

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub order_accept: Histogram,
    refusing: Histogram,
    settled: Histogram,
    pub ledger_append: Histogram,
    pub wal_sync: Histogram,
    pub events_accepted: Counter,
    pub events_duplicate: Counter,
    pub events_rejected: Counter,
    pages: Family<PageLabels, Counter>,
    pub requests: Family<Answered, Counter>,
    orders_behind: Gauge,
    pub gauges: Gauges,
    process: Process,
    measured: Mutex<VecDeque<(OrderId, Instant)>>,
}

/// What is read when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub halts_active: Gauge,
    pub enforcers_connected: Family<Kind, Gauge>,
    pub leases_expiring: Gauge,
    pub ledger_records: Gauge,
    pub wal_bytes: Gauge<f64, AtomicU64>,
    pub disk_free_bytes: Gauge<f64, AtomicU64>,
    pub sql_worker_starts: Counter,
    pub runs: Family<State, Gauge>,
    pub part_ready: Family<Part, Gauge>,
    pub tokens_ending_soon: Gauge,
    pub invariant_checks: Family<Promise, Counter>,
    pub invariant_violations: Family<Promise, Counter>,
    pub redis: RedisGauges,
}

/// The mirror in Redis, where one is configured.
#[derive(Debug, Default)]
pub(crate) struct RedisGauges {
    connected: Gauge,
    last_sync: Gauge<f64, AtomicU64>,
    keys_behind: Gauge,
    keys_ignored: Gauge,
    halts: Gauge,
    values_refused: Counter,
}

/// Counts an order as being behind until it is dropped.
#[derive(Debug)]
pub(crate) struct Behind<'a>(&'a Gauge);

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From a quarter of a millisecond to more than a lease.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 17))
}

impl Metrics {
    /// Metrics that start at nothing; those of the mirror where there is one.
    pub(crate) fn new(mirror: bool) -> Self {
        let mut registry = Registry::default();
        let process = Process::register(&mut registry);
        let ours = registry.sub_registry_with_prefix("estoppel");
        let build = Family::<Version, Gauge>::default();
        build.get_or_create(&Version { version: env!("CARGO_PKG_VERSION") }).set(1);
        ours.register("build_info", "The version that runs", build);
        let gauges = Gauges::default();
        gauges.register(ours);
        if mirror {
            gauges.redis.register(ours);
        }
        let mut metrics = Self {
            registry: Registry::default(),
            order_accept: latency(),
            refusing: latency(),
            settled: latency(),
            ledger_append: latency(),
            wal_sync: latency(),
            events_accepted: Counter::default(),
            events_duplicate: Counter::default(),
            events_rejected: Counter::default(),
            pages: Family::default(),
            requests: Family::default(),
            orders_behind: Gauge::default(),
            gauges,
            process,
            measured: Mutex::default(),
        };
        metrics.register(ours);
        metrics.registry = registry;
        metrics
    }

    fn register(&self, ours: &mut Registry) {
        let timed = [
            (
                "halt_accept",
                "From the request of a halt or block to its being in force and handed to every enforcer's queue",
                &self.order_accept,
            ),
            (
                "halt_refusing",
                "From a halt's acceptance to an enforcer's word that it refuses new work",
                &self.refusing,
            ),
            (
                "halt_settled",
                "From a halt's acceptance to an enforcer's word that its work in flight has ended",
                &self.settled,
            ),
            (
                "ledger_append",
                "From handing a record to the ledger to its being durable",
                &self.ledger_append,
            ),
            ("wal_sync", "One sync of the event log", &self.wal_sync),
        ];
        for (name, help, histogram) in timed {
            ours.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        let counted = [
            ("events_accepted", "Events that were new and are durable", &self.events_accepted),
            ("events_duplicate", "Events that were known by their ids", &self.events_duplicate),
            (
                "events_rejected",
                "Events that were refused as malformed or not the sender's",
                &self.events_rejected,
            ),
        ];
        for (name, help, counter) in counted {
            ours.register(name, help, counter.clone());
        }
        ours.register("pages", "Pages, by what became of them", self.pages.clone());
        ours.register("http_requests", "Requests, by route and status", self.requests.clone());
        ours.register(
            "orders_behind",
            "Orders in force that the ledger does not have yet",
            self.orders_behind.clone(),
        );
    }

    /// An order was handed to the enforcers.
    pub(crate) fn accepted(&self, order: OrderId, at: Instant) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.len() == ORDERS_MEASURED_MAX {
            measured.pop_front();
        }
        measured.push_back((order, at));
    }

    /// An enforcer confirmed an order; what has settled refuses, whether or not it said so before.
    pub(crate) fn confirmed(&self, order: OrderId, stage: Stage, first: bool, at: Instant) {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, accepted)) = measured.iter().rev().find(|(id, _)| *id == order) else {
            return;
        };
        let after = at.saturating_duration_since(*accepted).as_secs_f64();
        if first && stage != Stage::Unsupported {
            self.refusing.observe(after);
        }
        if stage == Stage::Settled {
            self.settled.observe(after);
        }
    }

    /// An order is on its way to the ledger for as long as the value lives.
    pub(crate) fn behind(&self) -> Behind<'_> {
        self.orders_behind.inc();
        Behind(&self.orders_behind)
    }

    /// A page was delivered, or was not.
    pub(crate) fn paged(&self, outcome: PageOutcome) {
        let outcome = match outcome {
            PageOutcome::Sent => "sent",
            PageOutcome::Failed => "failed",
            PageOutcome::Unknown => "unknown",
        };
        self.pages.get_or_create(&PageLabels { outcome }).inc();
    }

    /// All metrics as `OpenMetrics` 1.0, with the process's own read now.
    pub(crate) fn open_metrics(&self) -> String {
        self.process.read();
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

impl Gauges {
    fn register(&self, ours: &mut Registry) {
        let gauges = [
            ("halts_active", "Halts in force", &self.halts_active),
            (
                "leases_expiring",
                "Enforcers that are away and whose lease is not over",
                &self.leases_expiring,
            ),
            ("ledger_records", "Records in the ledger", &self.ledger_records),
            ("tokens_ending_soon", "Tokens that end within two weeks", &self.tokens_ending_soon),
        ];
        for (name, help, gauge) in gauges {
            ours.register(name, help, gauge.clone());
        }
        let sizes = [
            ("event_log_unsealed", "Durable events that are not sealed yet", &self.wal_bytes),
            ("disk_free", "Room on the data folder's disk", &self.disk_free_bytes),
        ];
        for (name, help, gauge) in sizes {
            ours.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        ours.register(
            "enforcers_connected",
            "Enforcers that are connected, by enforcement point",
            self.enforcers_connected.clone(),
        );
        ours.register(
            "sql_worker_starts",
            "Starts of the SQL worker; more than one is a restart",
            self.sql_worker_starts.clone(),
        );
        ours.register(
            "invariant_checks",
            "How often an invariant of the kill switch was checked",
            self.invariant_checks.clone(),
        );
        ours.register(
            "invariant_violations",
            "How often it was found broken, which is a mistake of Estoppel",
            self.invariant_violations.clone(),
        );
        ours.register("runs", "Runs of playbooks, by state", self.runs.clone());
        ours.register(
            "part_ready",
            "Whether a part is ready, as in /readyz",
            self.part_ready.clone(),
        );
    }
}

impl RedisGauges {
    fn register(&self, ours: &mut Registry) {
        ours.register("redis_connected", "Whether Redis answers", self.connected.clone());
        ours.register_with_unit(
            "redis_last_sync_timestamp",
            "When Redis was last seen to say what it is to say; 0: never",
            Unit::Seconds,
            self.last_sync.clone(),
        );
        let gauges = [
            (
                "redis_keys_behind",
                "Keys that do not say yet what they are to say",
                &self.keys_behind,
            ),
            (
                "redis_keys_ignored",
                "Keys under kill_switch: that name no scope, at the last look",
                &self.keys_ignored,
            ),
            ("redis_halts", "Halts in force that somebody wrote to Redis", &self.halts),
        ];
        for (name, help, gauge) in gauges {
            ours.register(name, help, gauge.clone());
        }
        ours.register(
            "redis_values_refused",
            "Values that were read and say neither active nor inactive",
            self.values_refused.clone(),
        );
    }

    /// Takes over how the mirror is.
    pub(crate) fn set(&self, redis: &RedisStatus) {
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.connected.set(i64::from(redis.connected));
        let last_sync = redis.last_sync.map_or(0.0, |at| at.as_micros() as f64 / 1e6);
        self.last_sync.set(last_sync);
        self.keys_behind.set(whole(redis.behind));
        self.keys_ignored.set(whole(redis.ignored_keys));
        self.halts.set(whole(redis.halts_from_redis));
        self.values_refused.inner().store(redis.values_refused, Ordering::Relaxed);
    }
}

/// The same as Prometheus's own text format 0.0.4, in which a counter's family has the name of its
/// sample and there are neither units nor an end.
pub(crate) fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // What it is follows, and decides its name.
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_halt_is_measured_from_its_acceptance_and_the_oldest_are_forgotten() {
        let metrics = Metrics::new(false);
        let (begun, order) = (Instant::now(), OrderId::new());
        metrics.accepted(order, begun);
        metrics.confirmed(order, Stage::Refusing, true, begun + Duration::from_millis(3));
        metrics.confirmed(order, Stage::Settled, false, begun + Duration::from_secs(2));
        metrics.confirmed(OrderId::new(), Stage::Settled, true, begun);
        let text = metrics.open_metrics();
        assert!(text.contains("\nestoppel_halt_refusing_seconds_sum 0.003\n"), "{text}");
        assert!(text.contains("\nestoppel_halt_refusing_seconds_count 1\n"), "{text}");
        let settled_once = |text: &str| text.contains("\nestoppel_halt_settled_seconds_count 1\n");
        assert!(settled_once(&text), "{text}");
        for _ in 0..ORDERS_MEASURED_MAX {
            metrics.accepted(OrderId::new(), begun);
        }
        metrics.confirmed(order, Stage::Settled, true, begun);
        assert!(settled_once(&metrics.open_metrics()));
        assert_eq!(metrics.measured.lock().unwrap().len(), ORDERS_MEASURED_MAX);
    }

    #[test]
    fn what_is_behind_is_counted_while_it_is() {
        let metrics = Metrics::new(false);
        let behind = metrics.behind();
        assert!(metrics.open_metrics().contains("\nestoppel_orders_behind 1\n"));
        drop(behind);
        assert!(metrics.open_metrics().contains("\nestoppel_orders_behind 0\n"));
    }

    #[test]
    fn a_counter_has_one_name_in_each_format() {
        let metrics = Metrics::new(false);
        metrics.paged(PageOutcome::Failed);
        let open = metrics.open_metrics();
        assert!(open.contains("# TYPE estoppel_pages counter\n"), "{open}");
        assert!(open.ends_with("# EOF\n"));
        let classic = classic(&open);
        assert!(classic.contains("# TYPE estoppel_pages_total counter\n"), "{classic}");
        assert!(classic.contains("\nestoppel_pages_total{outcome=\"failed\"} 1\n"), "{classic}");
        assert!(classic.contains("# TYPE estoppel_wal_sync_seconds histogram\n"), "{classic}");
        assert!(!classic.contains("# UNIT") && !classic.contains("# EOF"));
    }
}
