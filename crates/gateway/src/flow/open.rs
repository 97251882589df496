//! One flow: who, where to, how many bytes, and whether it may go on.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use estoppel_extract::{Host, HostPort};
use estoppel_link::{
    Refusal,
    breaker::{Holder, Trip},
};
use estoppel_model::{Boottime, Clock, FlowVerdict, NetworkEvent, Order, Timestamp, Untrusted};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::judge::Judge;
use crate::{Source, policy::Listing, wire::Wire};

/// Why a flow was ended by the gateway.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    /// An order reaches it.
    Order(Arc<Order>),
    /// Its task is over a limit.
    Limit {
        /// Which.
        trip: Arc<Trip>,
        /// The order by which it is halted, too.
        order: Option<Arc<Order>>,
    },
    /// No lease holds.
    Refused(Refusal),
    /// The allowlist no longer lists its destination.
    Policy,
    /// The gateway stops.
    Stop,
    /// It has been silent for too long.
    Idle,
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Halted(order) | Refusal::Unsupported(order) => Self::Order(order),
            other => Self::Refused(other),
        }
    }
}

/// One flow. Everything in it may be read and changed from any thread.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) source: Arc<Source>,
    pub(crate) target: HostPort,
    pub(crate) listing: Listing,
    host: String,
    protocol: &'static str,
    judge: Arc<Judge>,
    started: Boottime,
    client: Wire,
    upstream: OnceLock<Wire>,
    /// The address that was judged, as orders write it; absent where it is the host itself.
    address: OnceLock<(String, u16)>,
    sent: AtomicU64,
    received: AtomicU64,
    last_sent_at: AtomicI64,
    active_at: AtomicU64,
    /// Whose account it counts in; absent until it does.
    holder: OnceLock<Holder>,
    reported: Mutex<(u64, u64)>,
    cause: OnceLock<Cause>,
    verdict: OnceLock<FlowVerdict>,
    /// Cancelled when the flow is to end.
    pub(crate) ending: CancellationToken,
    /// Cancelled when its sockets are done with and its last row is written.
    pub(crate) closed: CancellationToken,
}

impl Flow {
    pub(crate) fn new(
        judge: Arc<Judge>,
        source: Arc<Source>,
        target: HostPort,
        protocol: &'static str,
        listing: Listing,
        client: Wire,
        now: Boottime,
    ) -> Self {
        let host = target.host.to_string();
        Self {
            source,
            target,
            listing,
            host,
            protocol,
            judge,
            started: now,
            client,
            upstream: OnceLock::new(),
            address: OnceLock::new(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            last_sent_at: AtomicI64::new(0),
            active_at: AtomicU64::new(now.as_nanos()),
            holder: OnceLock::new(),
            reported: Mutex::new((0, 0)),
            cause: OnceLock::new(),
            verdict: OnceLock::new(),
            ending: CancellationToken::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Why the flow may not go on, by the orders, the lease and its task's limits at this moment.
    pub(crate) fn refusal(&self) -> Option<Cause> {
        let Self { judge, source, host, target, .. } = self;
        if let Some(cause) = judge.refusal(&source.subject) {
            return Some(cause);
        }
        let authority = &judge.authority;
        authority
            .blocked(&source.subject, host, target.port)
            .or_else(|| {
                let (address, port) = self.address.get()?;
                authority.blocked(&source.subject, address, *port)
            })
            .map(Cause::Order)
    }

    /// Why another host on the same port may not be reached: a server name in a tunnel.
    pub(crate) fn refusal_of(&self, host: &Host) -> Option<Cause> {
        self.judge
            .authority
            .blocked(&self.source.subject, &host.to_string(), self.target.port)
            .map(Cause::Order)
    }

    /// Notes the address that is about to be connected to.
    pub(crate) fn set_address(&self, address: std::net::SocketAddr) {
        let host = Host::from(address.ip()).to_string();
        if host != self.host {
            // Only the first address is ever kept: a flow connects once.
            let _ = self.address.set((host, address.port()));
        }
    }

    /// Gives the flow its connection to the destination.
    pub(crate) fn connect(self: &Arc<Self>, socket: Wire, clock: Arc<dyn Clock>) -> Upstream {
        // The first one stays; a flow connects once.
        let wire = self.upstream.get_or_init(|| socket).clone();
        // `end` sets the cause before it looks here, so one of the two sees the other.
        if self.ending.is_cancelled() {
            wire.reset();
        }
        Upstream { wire, flow: Arc::clone(self), clock }
    }

    /// Ends the flow now: both peers get RST.
    pub(crate) fn end(&self, cause: Cause) {
        let _ = self.cause.set(cause);
        self.ending.cancel();
        self.client.reset();
        if let Some(upstream) = self.upstream.get() {
            upstream.reset();
        }
    }

    /// The order that ended the flow, if one did.
    pub(crate) fn ended_by(&self) -> Option<&Arc<Order>> {
        match self.cause.get() {
            Some(Cause::Order(order) | Cause::Limit { order: Some(order), .. }) => Some(order),
            _ => None,
        }
    }

    /// Notes whose account the flow counts in.
    pub(crate) fn counts_in(&self, holder: Holder) {
        // A flow counts once.
        let _ = self.holder.set(holder);
    }

    /// Whose account the flow counts in.
    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.get()
    }

    /// Whether the gateway cut the flow.
    pub(crate) fn is_cut(&self) -> bool {
        self.cause.get().is_some_and(|cause| !matches!(cause, Cause::Idle))
    }

    /// Sets the verdict of the last row: nothing went out, or nothing answered.
    pub(crate) fn conclude(&self, verdict: FlowVerdict) {
        let _ = self.verdict.set(verdict);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(crate) fn last_sent_at(&self) -> Option<Timestamp> {
        match self.last_sent_at.load(Relaxed) {
            0 => None,
            micros => Some(Timestamp::from_micros(micros)),
        }
    }

    pub(crate) fn is_idle(&self, now: Boottime, longest: Duration) -> bool {
        now.since(Boottime::from_nanos(self.active_at.load(Relaxed))) > longest
    }

    /// The flow's verdict, were it over now.
    pub(crate) fn verdict(&self) -> FlowVerdict {
        match self.verdict.get() {
            Some(verdict) => *verdict,
            None if self.is_cut() => FlowVerdict::Cut,
            None => self.listing.verdict(),
        }
    }

    /// A row with the bytes since the last one.
    pub(crate) fn row(&self, wall: Timestamp, boot: Boottime) -> NetworkEvent {
        let (sent, received) = (self.sent(), self.received());
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_sent = sent.saturating_sub(reported.0);
        let bytes_received = received.saturating_sub(reported.1);
        *reported = (sent, received);
        drop(reported);
        NetworkEvent {
            destination: Some(Untrusted::new(self.host.clone())),
            port: Some(self.target.port),
            bytes_sent: Some(bytes_sent),
            bytes_received: Some(bytes_received),
            duration_ms: Some(boot.since(self.started).as_secs_f64() * 1_000.0),
            verdict: Some(self.verdict()),
            ..row_of(&self.source, self.protocol, wall)
        }
    }

    /// Whether bytes have moved since the last row.
    pub(crate) fn has_news(&self) -> bool {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        *reported != (self.sent(), self.received())
    }
}

/// A row with the columns that tell who.
pub(crate) fn row_of(source: &Source, protocol: &str, at: Timestamp) -> NetworkEvent {
    let Source { subject, process, pid } = source;
    let process = if process.is_empty() { "agent" } else { process };
    NetworkEvent {
        id: Some(uuid::Uuid::now_v7()),
        timestamp: Some(at),
        session_id: subject.session.clone(),
        agent_id: subject.agent.clone(),
        task_id: subject.task.clone(),
        tenant_id: subject.tenant.clone(),
        plugin: subject.plugin.as_ref().map(|plugin| Untrusted::new(plugin.name.to_string())),
        source_process: Some(Untrusted::new(process.to_owned())),
        pid: *pid,
        protocol: Some(Untrusted::new(protocol.to_owned())),
        ..NetworkEvent::default()
    }
}

/// A flow's connection to its destination: counts, and asks before each write.
pub(crate) struct Upstream {
    wire: Wire,
    flow: Arc<Flow>,
    clock: Arc<dyn Clock>,
}

impl Upstream {
    fn touch(&self) {
        self.flow.active_at.store(self.clock.boottime().as_nanos(), Relaxed);
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        if count > 0 {
            self.flow.received.fetch_add(count as u64, Relaxed);
            self.touch();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.flow.ending.is_cancelled()
            && let Some(cause) = self.flow.refusal()
        {
            self.flow.end(cause);
        }
        if self.flow.ending.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let count = ready!(Pin::new(&mut self.wire).poll_write(cx, bytes))?;
        self.flow.sent.fetch_add(count as u64, Relaxed);
        self.flow.last_sent_at.store(self.clock.now().as_micros(), Relaxed);
        self.touch();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
