//! The five tasks of a link. Each ends with the link's token; what one waits for holds up none of
//! the others.

use std::{sync::Arc, time::Duration};

use estoppel_killswitch::enforcer::Input;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{LinkEvent, connection::Connector, glass::GlassFile, station::Station};

/// Longest sleep between ticks: tokio's timers stand still while the machine sleeps, leases do not.
const TICK_MAX: Duration = Duration::from_secs(1);

pub(crate) fn start(
    station: &Arc<Station>,
    connector: Connector,
    glass: Option<GlassFile>,
    events: mpsc::Sender<LinkEvent>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let until_stopped = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    };
    until_stopped(Box::pin(tick(Arc::clone(station))));
    until_stopped(Box::pin(tell(Arc::clone(station), events)));
    if let Some(glass) = glass {
        tasks.spawn(break_glass(Arc::clone(station), glass, stop.clone()));
    }
    tasks.spawn(keep(Arc::clone(station), stop.clone()));
    tasks.spawn(connector.run(Arc::clone(station), stop.clone()));
}

async fn tick(station: Arc<Station>) {
    loop {
        let due = station.next_tick().since(station.clock.boottime());
        // A step that changes when the next tick is due wakes this up.
        let _ = tokio::time::timeout(due.min(TICK_MAX), station.ticks.notified()).await;
        if station.next_tick() <= station.clock.boottime() {
            station.step(Input::Tick);
        }
    }
}

/// Looks for a break-glass file while no lease holds, and takes it away when it is gone.
async fn break_glass(station: Arc<Station>, file: GlassFile, stop: CancellationToken) {
    loop {
        // Whichever comes first: the lease may be over in between.
        let pause = tokio::time::timeout(TICK_MAX, station.lost.notified());
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
        if !station.looks_for_break_glass() {
            continue;
        }
        let (station, file) = (Arc::clone(&station), file.clone());
        let looked = tokio::task::spawn_blocking(move || station.found_break_glass(file.read()));
        // To its end: the folder is its next owner's afterwards. A panic there lets nobody go on.
        let _ = looked.await;
    }
}

async fn tell(station: Arc<Station>, events: mpsc::Sender<LinkEvent>) {
    loop {
        while let Some(event) = station.next_event() {
            if events.send(event).await.is_err() {
                station.nobody_listens();
                return;
            }
        }
        tokio::select! {
            () = station.events.notified() => {}
            () = events.closed() => {
                station.nobody_listens();
                return;
            }
        }
    }
}

async fn keep(station: Arc<Station>, stop: CancellationToken) {
    loop {
        let stopped = stop.run_until_cancelled(station.keeps.notified()).await.is_none();
        let writer = Arc::clone(&station);
        // A panic there has poisoned nothing that is not dealt with; the next round writes.
        let _ = tokio::task::spawn_blocking(move || writer.keep()).await;
        if stopped {
            return;
        }
    }
}
