//! The server's part in a conformance case (`tests/conformance`): it gives the case's orders, and says
//! what the guard confirmed. The guard's part is the runner's, in whatever language the guard is.

use std::{collections::HashMap, time::Duration};

use estoppel_killswitch::server::{HaltProgress, SwitchConfig};
use estoppel_model::{EntityId, OrderId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Authority;

/// The instant from which a case's times count.
pub const EPOCH: Timestamp = Timestamp::from_micros(1_770_260_400_000_000);
/// When orders are given that do not say when, in seconds from there: later than those that do.
const UNTIMED_S: u64 = 1_000;
const LEASE: Duration = Duration::from_secs(15);
/// Often, so that a new lease is soon there.
const PING: Duration = Duration::from_millis(20);

/// An order of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// By which the case speaks of it.
    pub name: String,
    /// Its kind, also one that nobody knows.
    pub kind: String,
    /// What it reaches.
    pub scope: Value,
    /// When it was given, in seconds from [`EPOCH`].
    pub at: Option<u64>,
    /// Why.
    pub reason: Option<String>,
    /// By whom.
    pub by: Option<String>,
    /// Whose order it is.
    pub tenant: Option<EntityId>,
    /// What a block blocks.
    pub destination: Option<String>,
    /// Which orders a release ends, by name.
    pub ends: Option<Vec<String>>,
    /// What a limit bounds.
    pub limit: Option<Value>,
}

/// A guard's last word on an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastWord {
    /// Steps that it cancelled.
    pub cancelled: u64,
    /// Steps that it could not, each up to its first colon.
    pub not_interruptible: Vec<String>,
    /// Whether it only observes.
    pub observed_only: bool,
}

/// The server of one case.
pub struct Part {
    authority: Authority,
    ids: HashMap<String, OrderId>,
    given: u64,
}

impl Part {
    /// A server for one guard, whose token is bound to the tenant, if there is one.
    pub async fn start(tenant: Option<EntityId>) -> Self {
        let config = SwitchConfig { lease: LEASE, ping: PING };
        let authority = Authority::start_for(config, tenant).await;
        Self { authority, ids: HashMap::new(), given: 0 }
    }

    /// Its address, for the guard.
    pub fn url(&self) -> String {
        self.authority.url()
    }

    /// Waits until the guard has a connection and a lease.
    pub async fn enforced(&self) {
        self.authority.until_enforced().await;
    }

    /// The id of an order of the case.
    pub fn id(&self, name: &str) -> Option<OrderId> {
        self.ids.get(name).copied()
    }

    /// Gives an order, and waits until the guard has it. Returns its id.
    ///
    /// # Panics
    /// When it is no order that any version could give.
    pub async fn give(&mut self, given: &Given) -> OrderId {
        self.given += 1;
        let at = given.at.unwrap_or(UNTIMED_S + self.given);
        let id = self.named(&given.name);
        let mut order = json!({
            "id": id,
            "scope": given.scope,
            "reason": given.reason.as_deref().unwrap_or("conformance"),
            "issued_by": given.by.as_deref().unwrap_or("alice"),
            "issued_at": EPOCH + Duration::from_secs(at),
            "kind": given.kind,
        });
        if let Some(tenant) = &given.tenant {
            order["tenant"] = json!(tenant);
        }
        if let Some(destination) = &given.destination {
            order["destination"] = json!(destination);
        }
        if let Some(limit) = &given.limit {
            order["limit"] = limit.clone();
        }
        if let Some(ends) = &given.ends {
            order["orders"] = ends.iter().map(|name| json!(self.named(name))).collect();
        }
        self.authority.give(order.to_string());
        self.has_arrived().await;
        id
    }

    /// Waits for the guard's last word on an order.
    ///
    /// # Errors
    /// When the case has no such order, or there is more than one enforcer.
    pub async fn last_word(&self, order: &str) -> Result<LastWord, String> {
        let id = self.id(order).ok_or_else(|| format!("no order is named `{order}`"))?;
        let progress = self.authority.until(id, has_settled).await;
        let [enforcer] = progress.enforcers.as_slice() else {
            return Err(format!(
                "{} enforcers, where there is one guard",
                progress.enforcers.len()
            ));
        };
        let settlement = &enforcer.settlement;
        let before_colon = |text: &String| text.split(':').next().unwrap_or_default().to_owned();
        Ok(LastWord {
            cancelled: settlement.steps_cancelled,
            not_interruptible: settlement.not_interruptible.iter().map(before_colon).collect(),
            observed_only: settlement.observed_only,
        })
    }

    /// Answers no ping from now on.
    pub fn fall_silent(&self) {
        self.authority.fall_silent();
    }

    /// Answers pings again.
    pub fn answer(&self) {
        self.authority.answer();
    }

    /// Loses the connection, and waits until the guard is back.
    pub async fn reconnect(&self) {
        self.authority.cut();
        self.has_arrived().await;
    }

    /// Loses the connection and all orders, and waits until the guard is back.
    pub async fn forget(&self) {
        self.authority.forget();
        self.authority.until_enforced().await;
        self.has_arrived().await;
    }

    fn named(&mut self, name: &str) -> OrderId {
        *self.ids.entry(name.to_owned()).or_default()
    }

    /// Waits until the guard has all that was ordered: frames keep their order.
    async fn has_arrived(&self) {
        let last = self.authority.halt(&format!("session:conformance-{}", OrderId::new()));
        self.authority.until(last, has_settled).await;
    }
}

/// Whether the guard has said its last word; one that only observes settles nothing.
fn has_settled(progress: &HaltProgress) -> bool {
    progress.settled + progress.observing == 1
}
