//! The uploader against a real HTTP server that is up, down, slow, wrong, or hangs up half-way.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Response, StatusCode},
    routing::post,
};
use estoppel_model::{AuditEvent, EntityId, SystemClock, Untrusted};
use rand::{RngExt as _, SeedableRng as _};
use tokio::{net::TcpListener, sync::watch};

use super::*;

/// What the server does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// Takes the events and says so.
    Take,
    /// Refuses the events whose tool is `bad`, and takes the others.
    TakeGood,
    /// Takes the events and hangs up in the middle of the answer.
    TakeAndHangUp,
    /// Answers with this status and takes nothing.
    Status(u16),
    /// Refuses a request with an event whose tool is `bad` as a whole.
    RefuseWithBad,
    /// Answers 200 like a portal of a hotel's network.
    Portal,
    /// Takes the events and claims fewer.
    Miscount,
    /// Waits for leave, then takes the events.
    Wait,
}

#[derive(Debug, Default, Clone)]
struct Store {
    /// Event id → the event.
    kept: BTreeMap<Uuid, serde_json::Value>,
    /// Sizes of the requests, in events.
    requests: Vec<usize>,
}

impl Store {
    fn tools(&self) -> Vec<&str> {
        self.kept.values().filter_map(|event| event["tool"].as_str()).collect()
    }

    fn gaps(&self) -> Vec<&serde_json::Value> {
        self.kept.values().filter(|event| event["action"] == "estoppel.gap").collect()
    }
}

struct Shelf {
    store: watch::Sender<Store>,
    /// Reactions to come; when there are none, [`Reaction::Take`].
    reactions: Mutex<VecDeque<Reaction>>,
    leave: watch::Receiver<bool>,
}

struct Server {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    store: watch::Receiver<Store>,
    leave: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Server {
    async fn start(reactions: &[Reaction]) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), reactions).await
    }

    async fn start_at(address: SocketAddr, reactions: &[Reaction]) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leave, may_go) = watch::channel(false);
        let (store, stored) = watch::channel(Store::default());
        let reactions = Mutex::new(reactions.iter().copied().collect());
        let shelf = Arc::new(Shelf { store, reactions, leave: may_go });
        let router = Router::new().route("/v1/events", post(take)).with_state(Arc::clone(&shelf));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            stopped.run_until_cancelled(async { axum::serve(listener, router).await }).await
        });
        Self { address, shelf, store: stored, leave, stop }
    }

    fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// Waits until the server's store is as wanted.
    async fn until(&mut self, wanted: impl FnMut(&Store) -> bool) -> Store {
        timely(self.store.wait_for(wanted)).await.unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn timely<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("within half a minute")
}

async fn take(State(shelf): State<Arc<Shelf>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    assert_eq!(headers["authorization"], "Bearer secret-token");
    assert_eq!(headers["content-type"], "application/x-ndjson");
    let reaction = shelf
        .reactions
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front()
        .unwrap_or(Reaction::Take);
    if reaction == Reaction::Wait {
        shelf.leave.clone().wait_for(|may_go| *may_go).await.unwrap();
    }
    let body = std::str::from_utf8(&body).unwrap();
    let events: Vec<serde_json::Value> =
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let bad = |event: &serde_json::Value| event["tool"] == "bad";
    let refused: Vec<usize> = match reaction {
        Reaction::TakeGood => (0..events.len()).filter(|index| bad(&events[*index])).collect(),
        Reaction::Status(_) | Reaction::Portal => (0..events.len()).collect(),
        Reaction::RefuseWithBad if events.iter().any(bad) => (0..events.len()).collect(),
        _ => Vec::new(),
    };
    let mut report = IngestReport { rejected_count: refused.len(), ..IngestReport::default() };
    shelf.store.send_modify(|store| {
        store.requests.push(events.len());
        for (index, event) in events.iter().enumerate() {
            if refused.contains(&index) {
                report.rejected.push(estoppel_api::Rejected { index, error: "bad".into() });
                continue;
            }
            report.accepted += 1;
            let id: Uuid = event["id"].as_str().unwrap().parse().unwrap();
            report.duplicates += usize::from(store.kept.insert(id, event.clone()).is_some());
        }
    });
    let answer = |status, body: Body| Response::builder().status(status).body(body).unwrap();
    let json = serde_json::to_vec(&report).unwrap();
    match reaction {
        Reaction::Status(status) => answer(StatusCode::from_u16(status).unwrap(), Body::empty()),
        Reaction::RefuseWithBad if !refused.is_empty() => {
            answer(StatusCode::BAD_REQUEST, Body::empty())
        }
        Reaction::Portal => answer(StatusCode::OK, "<html>Welcome</html>".into()),
        Reaction::Miscount => {
            answer(StatusCode::OK, r#"{"accepted":0,"duplicates":0,"rejected_count":0}"#.into())
        }
        Reaction::TakeAndHangUp => {
            let half = Bytes::copy_from_slice(&json[..json.len() / 2]);
            let parts = [Ok(half), Err(std::io::Error::other("hung up"))];
            answer(StatusCode::OK, Body::from_stream(futures_util::stream::iter(parts)))
        }
        _ => answer(StatusCode::OK, json.into()),
    }
}

use estoppel_api::IngestReport;

/// An uploader and what it runs in.
struct Sender {
    uploader: Uploader,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Sender {
    fn start(servers: Vec<Url>, spool_dir: Option<&std::path::Path>, buffer: EventBuffer) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let uploader = Uploader::start(
            UploadConfig {
                trust: estoppel_api::Trust::system(),
                servers,
                token: Secret::new("secret-token".into()),
                spool_dir: spool_dir.map(Into::into),
                buffer,
            },
            Arc::new(SystemClock),
            &tasks,
            stop.clone(),
        );
        Self { uploader: uploader.unwrap(), tasks, stop }
    }

    fn send(&self, tools: impl IntoIterator<Item = impl ToString>) {
        for tool in tools {
            self.uploader.send(event(&tool.to_string()));
        }
    }

    /// Waits until the uploader's status is as wanted.
    async fn until(&self, wanted: impl Fn(&UploadStatus) -> bool) {
        timely(async {
            while !wanted(&self.uploader.status()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn end(self) -> UploadStatus {
        self.stop.cancel();
        self.tasks.close();
        timely(self.tasks.wait()).await;
        self.uploader.status()
    }
}

fn event(tool: &str) -> Event {
    Event::Audit(Box::new(AuditEvent {
        session_id: Some(EntityId::new("s").unwrap()),
        tool: Some(Untrusted::new(tool.to_owned())),
        ..AuditEvent::default()
    }))
}

fn small(disk_bytes_max: u64, memory_bytes_max: usize, when_full: WhenFull) -> EventBuffer {
    EventBuffer { memory_bytes_max, disk_bytes_max, when_full }
}

/// An address at which nobody listens, and will not by chance.
async fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_event_goes_out_with_an_id_and_a_time_on_one_line() {
    let mut server = Server::start(&[]).await;
    let sender = Sender::start(vec![server.url()], None, EventBuffer::default());
    let params = "{\n \"text\": \"a\\nb\",\r\n \"n\": 1\n}";
    sender.uploader.send(Event::Audit(Box::new(AuditEvent {
        params: Some(serde_json::value::RawValue::from_string(params.into()).unwrap()),
        ..AuditEvent::default()
    })));
    let store = server.until(|store| store.kept.len() == 1).await;
    let event = store.kept.values().next().unwrap();
    assert_eq!(event["params"], serde_json::json!({"text": "a\nb", "n": 1}));
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(Uuid::parse_str(event["id"].as_str().unwrap()).unwrap().get_version_num(), 7);
    let status = sender.end().await;
    assert_eq!((status.delivered, status.lost, status.rejected), (1, 0, 0));
}

#[tokio::test]
async fn what_comes_during_a_request_is_the_next_batch() {
    let mut server = Server::start(&[Reaction::Wait]).await;
    let sender = Sender::start(vec![server.url()], None, EventBuffer::default());
    sender.send(["first"]);
    // The request has left with it.
    sender.until(|status| status.queued == 0).await;
    sender.send(0..500);
    server.leave.send_replace(true);
    let store = server.until(|store| store.kept.len() == 501).await;
    assert_eq!(store.requests, [1, 500]);
    sender.end().await;
}

#[tokio::test]
async fn an_outage_loses_and_doubles_nothing_over_restarts_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let address = dead_address().await;
    let url: Url = format!("http://{address}").parse().unwrap();
    let sender = Sender::start(vec![url.clone()], Some(dir.path()), EventBuffer::default());
    sender.send(0..300);
    sender.until(|status| status.spooled == 300 && status.queued == 0).await;
    assert!(!sender.uploader.status().reachable);
    sender.send(300..310);
    let status = sender.end().await;
    assert_eq!((status.lost, status.spooled), (0, 310));

    let sender = Sender::start(vec![url], Some(dir.path()), EventBuffer::default());
    sender.send(310..320);
    let mut server = Server::start_at(address, &[]).await;
    let store = server.until(|store| store.kept.len() == 320).await;
    let mut tools: Vec<u32> = store.tools().iter().map(|tool| tool.parse().unwrap()).collect();
    tools.sort_unstable();
    assert_eq!(tools, (0..320).collect::<Vec<_>>());
    sender.until(|status| status.spooled == 0).await;
    let status = sender.end().await;
    assert_eq!((status.lost, status.rejected, status.spooled_bytes), (0, 0, 0));
}

#[tokio::test]
async fn an_answer_that_is_not_the_whole_report_is_no_answer() {
    for reaction in [
        Reaction::TakeAndHangUp,
        Reaction::Portal,
        Reaction::Miscount,
        Reaction::Status(500),
        Reaction::Status(503),
        Reaction::Status(429),
        Reaction::Status(401),
        Reaction::Status(307),
        Reaction::Status(404),
    ] {
        for spooled in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut server = Server::start(&[reaction, reaction]).await;
            let dir = spooled.then(|| dir.path());
            let sender = Sender::start(vec![server.url()], dir, EventBuffer::default());
            sender.send(0..3);
            let store = server.until(|store| store.requests.len() >= 3).await;
            assert_eq!(store.kept.len(), 3, "{reaction:?}");
            let status = sender.end().await;
            assert_eq!((status.lost, status.rejected), (0, 0), "{reaction:?}");
            assert_eq!(server.store.borrow().kept.len(), 3, "{reaction:?}");
        }
    }
}

#[tokio::test]
async fn a_bad_event_is_counted_and_does_not_take_its_neighbours_along() {
    for reaction in [Reaction::TakeGood, Reaction::RefuseWithBad] {
        let mut reactions = vec![Reaction::Wait];
        reactions.extend([reaction; 20]);
        let mut server = Server::start(&reactions).await;
        let sender = Sender::start(vec![server.url()], None, EventBuffer::default());
        sender.send(["first"]);
        sender.until(|status| status.queued == 0).await;
        sender.send(0..20);
        sender.send(["bad"]);
        sender.send(20..40);
        server.leave.send_replace(true);
        let store = server.until(|store| store.kept.len() == 41).await;
        assert!(!store.tools().contains(&"bad"));
        sender.until(|status| status.rejected == 1 && status.delivered == 41).await;
        let status = sender.end().await;
        assert_eq!((status.lost, status.queued), (0, 0), "{reaction:?}");
    }
}

#[tokio::test]
async fn another_server_takes_over() {
    let mut server = Server::start(&[]).await;
    let dead: Url = format!("http://{}", dead_address().await).parse().unwrap();
    let sender = Sender::start(vec![dead, server.url()], None, EventBuffer::default());
    sender.send(0..10);
    server.until(|store| store.kept.len() == 10).await;
    let status = sender.end().await;
    assert!(status.reachable);
}

#[tokio::test]
async fn what_finds_no_room_is_reported_with_its_number_and_times() {
    for on_disk in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let address = dead_address().await;
        let url: Url = format!("http://{address}").parse().unwrap();
        let buffer = small(20_000, 20_000, WhenFull::Drop);
        let sender = Sender::start(vec![url], on_disk.then(|| dir.path()), buffer);
        let start = SystemClock.now();
        sender.send(0..1_000);
        sender.until(|status| status.lost > 0).await;
        assert!(!sender.uploader.refusing());
        let mut server = Server::start_at(address, &[]).await;
        server.until(|store| !store.gaps().is_empty()).await;
        sender.until(|status| status.queued + status.spooled == 0).await;
        let status = sender.end().await;
        // Whatever was lost after the first report is in a later one.
        let lost = |store: &Store| -> u64 {
            store.gaps().iter().map(|gap| gap["attributes"]["lost"].as_u64().unwrap()).sum()
        };
        let store = server.until(|store| lost(store) == status.lost).await;
        assert_eq!(store.tools().len() as u64 + status.lost, 1_000, "on disk: {on_disk}");
        let first = &store.gaps()[0]["attributes"];
        let time =
            |field: &str| first[field].as_str().unwrap().parse::<estoppel_model::Timestamp>();
        assert!(start <= time("from").unwrap() && time("from").unwrap() <= time("to").unwrap());
    }
}

#[tokio::test]
async fn steps_are_refused_before_there_is_no_room_and_taken_again_after() {
    let dir = tempfile::tempdir().unwrap();
    let address = dead_address().await;
    let url: Url = format!("http://{address}").parse().unwrap();
    let buffer = small(50_000, 50_000, WhenFull::Refuse);
    let sender = Sender::start(vec![url], Some(dir.path()), buffer);
    let mut sent = 0;
    // As a guard does: no step without room.
    timely(async {
        while !sender.uploader.refusing() {
            sender.send([sent]);
            sent += 1;
            tokio::task::yield_now().await;
        }
    })
    .await;
    sender.send(["of a step under way"]);
    let mut server = Server::start_at(address, &[]).await;
    server.until(|store| store.kept.len() == sent + 1).await;
    sender.until(|status| !status.refusing && status.spooled == 0).await;
    assert_eq!(sender.end().await.lost, 0);
}

#[tokio::test]
async fn a_slow_answer_fills_the_disk_and_not_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[Reaction::Wait]).await;
    // Room for what waits and for as much on its way to disk.
    let buffer = small(1 << 20, 40_000, WhenFull::Drop);
    let sender = Sender::start(vec![server.url()], Some(dir.path()), buffer);
    sender.send(["first"]);
    sender.until(|status| status.queued == 0).await;
    for tool in 0..200 {
        sender.send([tool]);
        sender.until(|status| status.queued < 40).await;
    }
    assert!(sender.uploader.status().spooled > 0);
    server.leave.send_replace(true);
    server.until(|store| store.kept.len() == 201).await;
    assert_eq!(sender.end().await.lost, 0);
}

#[tokio::test]
async fn the_end_sends_or_keeps_what_is_there_and_counts_the_rest() {
    let mut server = Server::start(&[]).await;
    let sender = Sender::start(vec![server.url()], None, EventBuffer::default());
    sender.send(0..2_500);
    let uploader = sender.uploader.clone();
    let status = sender.end().await;
    assert_eq!((status.delivered, status.lost), (2_500, 0));
    server.until(|store| store.kept.len() == 2_500).await;
    uploader.send(event("too late"));
    assert_eq!(uploader.status().lost, 1);

    let dead: Url = format!("http://{}", dead_address().await).parse().unwrap();
    let sender = Sender::start(vec![dead], None, EventBuffer::default());
    sender.send(0..7);
    assert_eq!(sender.end().await.lost, 7);
}

#[tokio::test]
async fn an_unreported_gap_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let address = dead_address().await;
    let url: Url = format!("http://{address}").parse().unwrap();
    let buffer = small(5_000, 5_000, WhenFull::Drop);
    let sender = Sender::start(vec![url.clone()], Some(dir.path()), buffer);
    sender.send(0..500);
    let lost = sender.end().await.lost;
    assert!(lost > 0);
    let sender = Sender::start(vec![url], Some(dir.path()), buffer);
    let mut server = Server::start_at(address, &[]).await;
    let store = server.until(|store| !store.gaps().is_empty()).await;
    let reported: u64 =
        store.gaps().iter().map(|gap| gap["attributes"]["lost"].as_u64().unwrap()).sum();
    assert_eq!(reported, lost);
    sender.end().await;
}

#[tokio::test]
async fn an_event_that_no_server_takes_is_lost_at_once() {
    let mut server = Server::start(&[]).await;
    let sender = Sender::start(vec![server.url()], None, EventBuffer::default());
    sender.send(["x".repeat(EVENT_BYTES_MAX)]);
    sender.send(["small"]);
    server.until(|store| store.gaps().len() == 1 && store.tools() == ["small"]).await;
    assert_eq!(sender.end().await.lost, 1);
}

/// Seeded: whatever a server does in whatever order, and however often both start anew, each event
/// is kept exactly once, and none is lost.
#[tokio::test]
async fn nothing_is_lost_or_doubled_by_any_order_of_faults() {
    for seed in 0..4 {
        let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
        let reactions: Vec<Reaction> = (0..12)
            .map(|_| {
                [
                    Reaction::Take,
                    Reaction::TakeAndHangUp,
                    Reaction::Status(500),
                    Reaction::Portal,
                    Reaction::Take,
                ][random.random_range(0..5)]
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(&reactions).await;
        let mut sent = 0;
        for _ in 0..3 {
            let sender =
                Sender::start(vec![server.url()], Some(dir.path()), EventBuffer::default());
            for _ in 0..random.random_range(1..20) {
                let count = random.random_range(1..60);
                sender.send(sent..sent + count);
                sent += count;
                if random.random_bool(0.5) {
                    let requests = server.store.borrow().requests.len();
                    server.until(|store| store.requests.len() > requests).await;
                }
            }
            assert_eq!(sender.end().await.lost, 0, "seed {seed}");
        }
        server.shelf.reactions.lock().unwrap().clear();
        let sender = Sender::start(vec![server.url()], Some(dir.path()), EventBuffer::default());
        let store = server.until(|store| store.kept.len() >= sent).await;
        sender.until(|status| status.spooled == 0).await;
        let mut tools: Vec<usize> =
            store.tools().iter().map(|tool| tool.parse().unwrap()).collect();
        tools.sort_unstable();
        assert_eq!(tools, (0..sent).collect::<Vec<_>>(), "seed {seed}");
        sender.end().await;
    }
}
