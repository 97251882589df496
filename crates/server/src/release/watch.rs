//! What was released is watched closely for a while.

use std::{sync::Arc, time::Duration};

use estoppel_incident::record::Noted;
use estoppel_killswitch::is_drill;
use estoppel_model::{Order, OrderBody, OrderId, Scope, Untrusted};

use super::shortened;
use crate::{Server, http::problem::Failure};

/// How long what was released is watched when nobody says otherwise.
const WATCH_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest and longest watch, in seconds.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 60 * 60;

/// Checks for how long somebody wants it watched.
///
/// # Errors
/// When that is neither not at all nor within the bounds.
pub(super) fn check(wished: Option<u64>) -> Result<(), Failure> {
    match wished {
        Some(seconds) if seconds != 0 && !WATCH_SECONDS.contains(&seconds) => {
            Err(Failure::Unprocessable(format!(
                "`watch_seconds` is {seconds}: expected 0, or {} to {}",
                WATCH_SECONDS.start(),
                WATCH_SECONDS.end()
            )))
        }
        _ => Ok(()),
    }
}

/// Puts what is released under watch.
pub(super) async fn begin(
    server: &Server,
    wished: Option<u64>,
    release: &Order,
    orders: &[Arc<Order>],
) -> Option<Arc<Order>> {
    let is_halt = |order: &Arc<Order>| matches!(order.body, OrderBody::Halt { .. });
    if !orders.iter().any(is_halt) || orders.iter().any(|order| is_drill(order)) {
        return None;
    }
    let everything = release.scope.iter().any(|scope| *scope == Scope::Global);
    let duration = match wished {
        Some(0) => return None,
        Some(seconds) => Duration::from_secs(seconds),
        None if everything => return None,
        None => WATCH_DEFAULT,
    };
    let until = release.issued_at + duration;
    let order = Order {
        id: OrderId::new(),
        scope: release.scope.clone(),
        reason: shortened(format!("watched closely after a release: {}", release.reason)),
        issued_by: release.issued_by.clone(),
        issued_at: release.issued_at,
        incident: release.incident,
        tenant: release.tenant.clone(),
        body: OrderBody::Watch { until: Some(until) },
    };
    let given = match server.switchboard().give(order).await {
        Ok(Ok(given)) => given,
        Ok(Err(error)) => {
            tracing::error!(%error, "what is released is not watched");
            return None;
        }
        Err(_) => return None,
    };
    if let Some(incident) = release.incident {
        let text = format!("{} is watched closely until {until}", release.scope);
        let noted = Noted { incident, text: Untrusted::new(text), by: release.issued_by.clone() };
        match noted.record(release.issued_at) {
            Ok(record) => {
                if let Err(error) = server.journal().append(record).await {
                    tracing::error!(%error, "a note about a watch could not be written");
                }
            }
            Err(error) => tracing::error!(%error, "a note about a watch cannot be written"),
        }
    }
    Some(given.order)
}
