//! The handle that an enforcer holds.

use std::{fmt, sync::Arc};

use estoppel_killswitch::{
    enforcer::{Enforcer, Input, Kept, Profile},
    frame::{Action, Outcome, Settlement},
    invariant::{Count, Invariant},
    server::LOCAL_ACTOR_PREFIX,
};
use estoppel_model::{Boottime, Clock, EnforcerId, Order, OrderBody, OrderId};
use estoppel_orderfile::Found;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    LinkConfig, LinkError, UploadConfig, UploadStatus, Uploader, View,
    cache::Cache,
    connection::Connector,
    glass::GlassFile,
    keys::{Ed25519, Keys},
    station::{Owner, Station},
    tasks,
};

/// Room for events between the link and the enforcer; the link queues more by itself.
const EVENTS: usize = 64;

/// An enforcer's connection to its servers. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    station: Arc<Station>,
    uploader: Uploader,
}

/// What an enforcer acts upon. Its view has changed before the event is sent.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// A halt, block, limit or watch came into force: cut what it reaches, then call
    /// [`Link::settled`]. Not sent with [`LinkConfig::in_flight`].
    Ordered(Arc<Order>),
    /// These orders ended.
    Released {
        /// Those that were in force until now.
        orders: Vec<OrderId>,
    },
    /// Do this once; then call [`Link::outcome`].
    Action(Box<Action>),
    /// The lease is over, no break-glass lets agents go on, and everything is refused. Not sent with
    /// [`crate::OnLost::Allow`].
    LeaseLost,
    /// A lease holds again, also the first one; or a break-glass lets agents go on without.
    LeaseRegained,
}

/// How a link stands, for `status` and `doctor`.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// This enforcer.
    pub enforcer: EnforcerId,
    /// The server that it is connected to and in step with.
    pub connected_to: Option<url::Url>,
    /// When the lease is over.
    pub lease_until: Option<Boottime>,
    /// Until when a break-glass lets agents go on; it is renewed while its file lies there.
    pub goes_on_until: Option<Boottime>,
    /// How many orders are in force.
    pub orders_in_force: usize,
    /// What is wrong, in words, such as a server whose key has changed.
    pub problem: Option<String>,
    /// How the events fare.
    pub events: UploadStatus,
}

/// What giving a halt on this host came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalHalt {
    /// The order: in force here from now on, and handed to the server when one is reached.
    pub order: OrderId,
    /// Whether it is on this host's disk and so outlasts a restart.
    pub durable: bool,
}

impl Link {
    /// Starts to connect in the background. Everything is refused until a server has answered,
    /// unless `config.on_lost` allows. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the configuration cannot work; a server that is away is no error.
    pub fn start(
        config: LinkConfig,
        clock: Arc<dyn Clock>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<LinkEvent>), LinkError> {
        let connector = Connector::new(&config.servers, &config.token, config.trust.clone())?;
        let state_dir = config.state_dir.as_deref();
        let (cache, Found { kept, damaged }) = match state_dir {
            Some(dir) => {
                let failed = |source| LinkError::StateDir { path: dir.to_owned(), source };
                let (cache, found) = Cache::open(dir).map_err(failed)?;
                (Some(cache), found)
            }
            None => (None, Found::default()),
        };
        let keys = Keys::open(state_dir)?;
        let uploader = Uploader::start(
            UploadConfig {
                servers: config.servers,
                token: config.token,
                trust: config.trust,
                spool_dir: state_dir.map(|dir| dir.join("events")),
                buffer: config.events,
            },
            Arc::clone(&clock),
            tasks,
            stop.clone(),
        )?;
        let mut gaps = config.gaps;
        if config.on_lost == crate::OnLost::Allow {
            gaps.push("it goes on by the orders that it knows when its lease is over".to_owned());
        }
        let profile = Profile {
            id: EnforcerId::new(),
            kind: config.kind,
            name: config.name,
            subjects: config.subjects,
            key: keys.public().to_owned(),
            gaps,
        };
        let (enforcer, damage) = restore(profile, kept, damaged);
        let owner = Owner { on_lost: config.on_lost, in_flight: config.in_flight };
        let station = Arc::new(Station::new(enforcer, owner, clock, keys, cache, damage));
        let (sender, events) = mpsc::channel(EVENTS);
        let glass = config.state_dir.as_deref().map(GlassFile::of);
        tasks::start(&station, connector, glass, sender, tasks, &stop);
        Ok((Self { station, uploader }, events))
    }

    /// What enforcement code asks.
    pub fn view(&self) -> View {
        self.station.view()
    }

    /// Where events go to.
    pub fn uploader(&self) -> Uploader {
        self.uploader.clone()
    }

    /// Says that the order's work in flight has ended here: the second stage of a confirmation.
    /// The first stage the link sends itself. Said again, the last word counts.
    ///
    /// Of a drill's canary the link adds whether this enforcer's own check refuses it.
    pub fn settled(&self, order: OrderId, settlement: Settlement) {
        self.station.settled(order, settlement);
    }

    /// Says what an action came to.
    pub fn outcome(&self, outcome: Outcome) {
        self.station.step(Input::Outcome(outcome));
    }

    /// Puts a halt in force here at once, without any server, signed with this enforcer's own key;
    /// `order.issued_by` says who, as `local:USER@HOST`. Blocks for one fsync after it is in force.
    ///
    /// # Errors
    /// When the order is no halt, does not name a local actor, or its id is known already.
    pub fn halt_locally(&self, order: Order) -> Result<LocalHalt, LinkError> {
        if !matches!(order.body, OrderBody::Halt { .. }) {
            return Err(LinkError::LocalNoHalt { id: order.id });
        }
        if !order.issued_by.as_str().starts_with(LOCAL_ACTOR_PREFIX) {
            return Err(LinkError::LocalActor { actor: order.issued_by });
        }
        self.station.halt_locally(order)
    }

    /// Resolves once a lease holds for the first time: the orders are in step with a server's and
    /// what is not halted may go; or once a break-glass lets it go without. Safe to cancel.
    pub async fn ready(&self) {
        let mut ready = self.station.ready.subscribe();
        // The sender lives in the station, which this handle holds.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// How often each invariant of the kill switch was checked here since the start, and found
    /// broken.
    pub fn invariants(&self) -> [Count; Invariant::ALL.len()] {
        self.station.tally().counts()
    }

    /// How this link stands.
    pub fn status(&self) -> LinkStatus {
        let standing = self.station.standing();
        LinkStatus {
            enforcer: self.station.id,
            connected_to: standing.connected_to,
            lease_until: standing.lease_until,
            goes_on_until: standing.goes_on_until,
            orders_in_force: standing.orders_in_force,
            problem: standing.problem,
            events: self.uploader.status(),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("enforcer", &self.station.id).finish_non_exhaustive()
    }
}

/// The enforcer with what was kept, and what is wrong with that.
fn restore(profile: Profile, kept: Kept, damaged: usize) -> (Enforcer, Option<String>) {
    let (enforcer, forged) = Enforcer::new(profile, Box::new(Ed25519), kept);
    let damage = (damaged + forged > 0).then(|| {
        let damage = format!(
            "the kept orders are damaged ({damaged} lines cannot be read, {forged} are not rightly \
             signed): refusing until a server has answered"
        );
        tracing::error!("{damage}");
        damage
    });
    (enforcer, damage)
}
