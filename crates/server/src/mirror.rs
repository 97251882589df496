//! Redis as a mirror and an inlet of the kill switch (row K1).
//!
//! Loops that read `kill_switch:{scope}` from Redis go on as they are: each halt stands there as
//! JSON. Tools that write such a key halt Estoppel's enforcers: an outside write of `active: true`
//! becomes one halt for the scope, given by the actor `redis`.
//!
//! - *stop-never-waits*: nothing waits for Redis. Orders reach this task by a bounded channel of the
//!   switchboard; whoever falls behind reads them anew.
//! - *starting-always-does*: from Redis nothing can be released ([`book`] has no way to). What is
//!   deleted, flushed, lost or denied is put back.
//! - A reader of Redis alone is nobody's enforcer: it is neither expected nor counted.
//!
//! Absent here: state of its own. What Redis is to say follows from the orders; what a value means,
//! from it and them. So a restart of either side ends in the same.

mod backlog;
mod book;
mod bucket;
mod config;
mod drive;
mod inlet;
mod value;
mod walk;
mod wire;

use std::sync::{Arc, Mutex, PoisonError};

use estoppel_api::RedisStatus;
use estoppel_model::Order;
use tokio::sync::broadcast;

pub(crate) use book::ACTOR;
pub use config::{RedisConfig, RedisConfigError};

use crate::Server;

/// How the mirror is, for `status`. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct MirrorState(Arc<Mutex<RedisStatus>>);

impl MirrorState {
    fn new(config: &RedisConfig) -> Self {
        Self(Arc::new(Mutex::new(RedisStatus {
            address: config.address(),
            connected: false,
            tracking: false,
            problem: Some("not connected yet".to_owned()),
            last_sync: None,
            behind: 0,
            behind_since: None,
            halts_from_redis: 0,
            halts_waiting: 0,
            not_written: 0,
            insisted: Vec::new(),
            ignored_keys: 0,
            ignored_key: None,
            values_refused: 0,
        })))
    }

    fn update(&self, change: impl FnOnce(&mut RedisStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How it is now.
    pub(crate) fn now(&self) -> RedisStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the mirror of a server; `orders` tells of every order from before the server's first.
pub(crate) fn start(
    server: &Server,
    config: RedisConfig,
    orders: broadcast::Receiver<Arc<Order>>,
) -> MirrorState {
    let state = MirrorState::new(&config);
    if config.is_exposed() {
        server.warn(format!(
            "Redis at {} is reached without TLS: its password and every halt cross the network in the clear; use rediss://",
            config.address()
        ));
    }
    let drive = drive::run(server.clone(), config, orders, state.clone());
    server.tasks().spawn(drive);
    state
}
