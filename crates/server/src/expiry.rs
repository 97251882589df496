//! Releases what was halted until a time. No enforcer ends a halt by its own clock: the server
//! appends a release that names it. The wall clock decides: one that is set back makes a halt longer.
//! While the ledger does not answer nothing is released; it is tried again each second.

use std::time::Duration;

use estoppel_api::ReleaseRequest;
use estoppel_model::{Actor, Order, OrderBody};
use tokio_util::sync::CancellationToken;

use crate::{Server, release};

const LOOK_EVERY: Duration = Duration::from_secs(1);
const ACTOR: &str = "estoppel:until";

/// Looks every second until the server stops.
pub(crate) async fn run(server: Server, stop: CancellationToken) {
    let Ok(actor) = Actor::new(ACTOR) else { return };
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let now = server.clock().now();
        let due = server.switchboard().ask(move |switch, _| {
            let due = switch.orders().in_force().filter(|order| match order.body {
                OrderBody::Halt { until } | OrderBody::Watch { until } => {
                    until.is_some_and(|until| until <= now)
                }
                _ => false,
            });
            due.map(|order| Order::clone(order)).collect::<Vec<_>>()
        });
        for order in due.await.unwrap_or_default() {
            let request = ReleaseRequest {
                scope: order.scope.clone(),
                reason: "the time that was set for it is over".to_owned(),
                halts: Some(vec![order.id]),
                id: None,
                watch_seconds: None,
            };
            if let Err(error) = release::by_server(&server, request, actor.clone()).await {
                tracing::warn!(order = %order.id, %error, "a halt outlasts its time: it is not released yet");
            }
        }
    }
}
