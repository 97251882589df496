//! Guards in this process, connected to a server.

use std::{net::TcpListener, sync::Arc};

use estoppel_link::{Link, LinkConfig, OnLost, Trust, frame::EnforcerKind};
use estoppel_model::{Secret, SystemClock};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::stage::Server;

/// Guards that have a lease when they are made.
pub(crate) struct Guards {
    links: Vec<Link>,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: tokio::runtime::Runtime,
}

impl Guards {
    pub(crate) fn connect(server: &Server, token: &str, count: usize) -> Self {
        Self::start(&server.url, token, count, &Trust::system(), OnLost::Refuse)
    }

    pub(crate) fn trusting(url: &str, token: &str, count: usize, trust: &Trust) -> Self {
        Self::start(url, token, count, trust, OnLost::Refuse)
    }

    pub(crate) fn start(
        url: &str,
        token: &str,
        count: usize,
        trust: &Trust,
        on_lost: OnLost,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let start = |number| {
            let (servers, token) = (
                url.split(',').map(|url| url.parse().unwrap()).collect(),
                Secret::new(token.to_owned()),
            );
            let name = format!("guard {number}");
            let config = LinkConfig {
                on_lost,
                trust: trust.clone(),
                ..LinkConfig::new(servers, token, EnforcerKind::Guard, name)
            };
            Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap().0
        };
        let links: Vec<Link> = {
            let _inside = runtime.enter();
            (0..count).map(start).collect()
        };
        for link in &links {
            runtime.block_on(link.ready());
        }
        Self { links, tasks, stop, runtime }
    }

    pub(crate) fn all(&self) -> &[Link] {
        &self.links
    }

    pub(crate) fn first(&self) -> &Link {
        &self.links[0]
    }

    pub(crate) fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.runtime.block_on(self.tasks.wait());
    }
}

/// An address that is free now, for a server that must come back at the same one.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
