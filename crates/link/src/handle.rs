//! The handle that an enforcer holds.

use std::sync::Arc;

use estoppel_killswitch::frame::{Action, Outcome, Settlement};
use estoppel_model::{Boottime, Clock, EnforcerId, Order, OrderId};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{LinkConfig, LinkError, View};

/// An enforcer's connection to its servers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {}

/// What an enforcer acts upon. Its view has changed before the event is sent.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// A halt, block, limit or watch came into force: cut what it reaches, then call
    /// [`Link::settled`].
    Ordered(Arc<Order>),
    /// These orders ended.
    Released {
        /// Those that were in force until now.
        orders: Vec<OrderId>,
    },
    /// Do this once; then call [`Link::outcome`].
    Action(Box<Action>),
    /// The lease is over and everything is refused. Not sent with [`crate::OnLost::Allow`].
    LeaseLost,
    /// A lease holds again, also the first one.
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
    /// How many orders are in force.
    pub orders_in_force: usize,
    /// What is wrong, in words, such as a server whose key has changed.
    pub problem: Option<String>,
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
    /// Starts to connect in the background. Everything is refused until the first hello, unless
    /// `config.on_lost` allows.
    ///
    /// # Errors
    /// When the configuration cannot work; a server that is away is no error.
    pub fn start(
        _config: LinkConfig,
        _clock: Arc<dyn Clock>,
        _tasks: &TaskTracker,
        _stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<LinkEvent>), LinkError> {
        Err(LinkError::NoServer)
    }

    /// What enforcement code asks.
    pub fn view(&self) -> View {
        View {}
    }

    /// Says that the order's work in flight has ended here: the second stage of a confirmation.
    /// The first stage the link sends itself.
    pub fn settled(&self, _order: OrderId, _settlement: Settlement) {}

    /// Says what an action came to.
    pub fn outcome(&self, _outcome: Outcome) {}

    /// Puts a halt in force here at once, without any server, signed with this enforcer's own key.
    ///
    /// # Errors
    /// When the order is no halt or cannot be signed.
    pub fn halt_locally(&self, _order: Order) -> Result<LocalHalt, LinkError> {
        Err(LinkError::NoServer)
    }

    /// Resolves once the orders are in step with a server's for the first time.
    pub async fn ready(&self) {}
}
