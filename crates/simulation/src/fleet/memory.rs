//! What an enforcer takes of the server's memory: a switch that is driven alone, with nothing else
//! allocated beside it, by what the process grows.

use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{Confirmation, Settlement, Stage, ToServer},
    server::{ConnectionId, Input, Switch, SwitchConfig},
};
use estoppel_testkit::keys::Keys;
use serde::Serialize;

use super::member;

/// Bytes of the server's state machine for each enforcer, as the process grows by them. Queues,
/// sockets and tasks of a connection come on top.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// One that is connected and has a lease.
    pub bytes_each: f64,
    /// What an order adds that each has confirmed in both stages.
    pub bytes_each_and_order: f64,
}

impl Memory {
    pub(super) fn measure(enforcers: usize) -> Self {
        let (mut switch, _) = Switch::new(SwitchConfig::default(), Box::new(Keys), []);
        let set = OrderSet::default().digest(&Audience::Everyone).summary();
        let frame = |switch: &mut Switch, number: usize, frame: ToServer| {
            let input = Input::Frame { connection: connection(number), frame };
            switch.step(input, member::START);
        };
        let before = resident_bytes();
        for number in 0..enforcers {
            let identity = Box::new(member::identity(number));
            let input = Input::Connected { connection: connection(number), identity };
            switch.step(input, member::START);
            let hello = member::hello(number, set.clone());
            frame(&mut switch, number, ToServer::Hello(Box::new(hello)));
            frame(&mut switch, number, ToServer::Ping { nonce: 0 });
        }
        let connected = resident_bytes();
        let order = member::halt(1);
        let id = order.id;
        switch.submit(member::signed(&order), member::START).expect("a good order");
        for number in 0..enforcers {
            for stage in [Stage::Refusing, Stage::Settled] {
                let settlement = match stage {
                    Stage::Settled => member::settlement(),
                    _ => Settlement::default(),
                };
                let at = member::START.wall;
                let word = Confirmation { order: id, stage, at, after_us: 0, settlement };
                frame(&mut switch, number, ToServer::Confirm(Box::new(word)));
            }
        }
        let each = |from: u64, to: u64| to.saturating_sub(from) as f64 / enforcers as f64;
        Self {
            bytes_each: each(before, connected),
            bytes_each_and_order: each(connected, resident_bytes()),
        }
    }
}

fn connection(number: usize) -> ConnectionId {
    ConnectionId(number as u64)
}

/// What the process has in memory; 0 where the system does not say so.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1_024
}
